"""Fine-tuning methods: which weights are trained, which of them may be random, and what is saved.

Every method is one small file with the same verbs in the same order: attach, trainable, random, export, detach.
This file names the verbs and picks a method. It knows nothing of diffusers, of optimizers or of run folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn

METHODS = ("full",)


class Method(Protocol):
    """How a family is fine-tuned."""

    def attach(self, family: Any) -> None:
        """Make the trained weights trainable and freeze all others."""
        ...

    def trainable(self, family: Any) -> dict[str, nn.Parameter]:
        """The trained parameters by name, "denoiser." or "text_encoder." and the module's own name."""
        ...

    def random(self, family: Any, where: str) -> tuple[nn.Module, Any]:
        """The module whose weights a posterior may make random, and the rule that picks among them."""
        ...

    def export(self, family: Any, folder: Path) -> None:
        """Write the trained model as others load it."""
        ...

    def detach(self, family: Any) -> None:
        """Freeze everything again; what `attach` added is gone, the weights stay as they are."""
        ...


def make_method(name: str, *, train_text_encoder: bool = False) -> Method:
    """The method of this name; ValueError lists the known ones."""
    if name == "full":
        from fewbayes.methods.full import Full

        return Full(train_text_encoder=train_text_encoder)
    raise ValueError(f"method {name!r} is not known; choose one of {', '.join(METHODS)}")
