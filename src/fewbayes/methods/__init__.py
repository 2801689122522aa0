"""Fine-tuning methods: which weights are trained, which of them may be random, and what is saved.

Every method is one small file with the same verbs in the same order: attach, trainable, random, penalty, begin_step,
training, export, load, detach. This file names the verbs and picks a method. It knows nothing of diffusers, of
optimizers or of run folders.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fewbayes.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewbayes.models import Family
    from fewbayes.settings.config import TrainConfig

METHODS = {
    "full": "Full",
    "lora": "Lora",
    "oft": "Oft",
    "monteclora": "MonteClora",
    "pvera": "Pvera",
    "tlora": "TLora",
}
"""Methods by the name of their file, with the class in it."""

COMPARISON_ARMS = ("monteclora", "pvera", "tlora")
"""Methods of others with a noise or a cure of their own: compared with Bayesian weights, never mixed with them."""


class Method(Protocol):
    """How a family is fine-tuned."""

    @property
    def result(self) -> str:
        """The file of an export, relative to its folder, whose presence says that the export is there."""
        ...

    def attach(self, family: Family) -> None:
        """Put in what is to be trained, a function of the seed; freeze all else. The outputs are as before."""
        ...

    def trainable(self, family: Family) -> dict[str, nn.Parameter]:
        """The trained parameters by name: "denoiser.", "text_encoder.", ... and the module's own name."""
        ...

    def random(self, family: Family, where: str) -> tuple[nn.Module, Any]:
        """The module whose weights a posterior may make random, and the rule that picks among them."""
        ...

    def penalty(self, family: Family) -> Tensor | None:
        """The method's own regulariser after a forward pass, to be added to the loss; None if it has none."""
        ...

    def begin_step(self, family: Family, step: int, row: int = 0) -> None:
        """Told before each forward pass of optimizer step `step`, on the images of its batch from `row` on.

        A method's own noise is a function of both: micro-batches and processes draw each their own.
        """
        ...

    def training(self, family: Family, on: bool) -> None:
        """Switch what belongs to training alone (dropout, noise of its own); off after `attach`."""
        ...

    def export(self, family: Family, folder: Path) -> None:
        """Write the trained model, or what was added to it, as others load it."""
        ...

    def load(self, family: Family, folder: Path) -> None:
        """Read what `export` wrote into a family to which this method, with the same settings, is attached."""
        ...

    def detach(self, family: Family) -> None:
        """Freeze everything and take out what `attach` put in: classes, keys and frozen weights are as before."""
        ...


def make_method(config: TrainConfig) -> Method:
    """The method that the settings ask for; UserError where they do not go together."""
    if config.method not in METHODS:
        raise UserError(f"method {config.method!r} is not known; choose one of {', '.join(METHODS)}")
    if config.bayes and config.method in COMPARISON_ARMS:
        raise UserError(
            f"method {config.method} is compared with Bayesian weights and does not take them; leave out bayes, or "
            "take method lora with it"
        )
    method = getattr(import_module(f"fewbayes.methods.{config.method}"), METHODS[config.method])(config)
    if not config.train_rare_token:
        return method
    from fewbayes.methods.rare_token import RareToken

    return RareToken(method, config)
