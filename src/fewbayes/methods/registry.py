"""What a method is, and where methods register themselves.

Each is one file of this folder that ends in `register(...)`; nothing else names them. The files are found and imported
when somebody first asks which methods there are, so they import torch and PEFT inside functions alone: the settings
and the help of the command need every method's fields. Layers of a method's own stand in a file beside it whose name
begins with an underscore. Knows no single method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewbayes.errors import UserError
from fewbayes.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from fewbayes.models import Family
    from fewbayes.models.family import Layout


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What every method sees of a run's settings, as `TrainConfig` explains them; its own class adds its own."""

    model: str
    method: str
    train_text_encoder: bool
    train_rare_token: bool
    rare_token: str | None
    bayes: bool
    seed: int

    @classmethod
    def check(cls, config: Any) -> None:
        """UserError where the settings of a run with this method do not go together."""


class Method:
    """How a family is fine-tuned. Verbs that do nothing here are for methods that have something to do."""

    config: Any
    """An instance of the method's own settings."""

    def __init__(self, config: MethodSettings) -> None:
        self.config = config

    @property
    def chosen(self) -> str:
        """Which of the weights are random, in words."""
        return "those that the method names"

    def attach(self, family: Family) -> None:
        """Put in what is to be trained, a function of the seed; freeze all else. The outputs are as before."""
        raise NotImplementedError

    def trainable(self, family: Family) -> dict[str, nn.Parameter]:
        """The trained parameters by name: "denoiser.", "text_encoder.", ... and the module's own name."""
        raise NotImplementedError

    def random(self, family: Family) -> tuple[nn.Module, Any]:
        """The module whose weights a posterior may make random, and the rule that picks among them."""
        return family.denoiser, f"pattern:{registered()[self.config.method].random}"

    def training(self, family: Family, on: bool) -> None:
        """Switch what belongs to training alone, such as dropout; off after `attach`."""

    def export(self, family: Family, folder: Path) -> None:
        """Write the trained model, or what was added to it, as others load it."""
        raise NotImplementedError

    def load(self, family: Family, folder: Path) -> None:
        """Read what `export` wrote into a family to which this method, with the same settings, is attached."""
        raise NotImplementedError

    def detach(self, family: Family) -> None:
        """Freeze everything and take out what `attach` put in: classes, keys and frozen weights are as before."""
        raise NotImplementedError


@dataclass(frozen=True)
class Registered:
    """One method, as its file registered it."""

    name: str
    make: type[Method]
    settings: type[MethodSettings]
    title: str
    """Its name in tables."""
    trains: str
    """What it trains, in a few words for the help."""
    learning_rate: float
    """Of the paper's experiments with it."""
    steps_per_image: int
    """Of the paper's experiments with it."""
    kind: Literal["full", "lora", "adapter"]
    """Of its export: a whole pipeline; a LoRA file, a sum of low-rank products; or another adapter, which can be
    merged."""
    result: str
    """The file of an export, relative to its folder, whose presence says that the export is there; "{denoiser}" in it
    stands for the folder of a pipeline's denoiser."""
    random: str
    """Pattern of the denoiser's parameters that may be random."""
    has_spread: bool = False
    """Its random weights do not begin at zero, so that weight_std can be relative to their spread."""

    def result_in(self, layout: Layout | type[Layout]) -> str:
        """`result` in the pipelines of a family."""
        return self.result.format(denoiser=layout.denoiser_part)

    @property
    def own_settings(self) -> tuple[str, ...]:
        common = {field.name for field in dataclasses.fields(MethodSettings)}
        return tuple(field.name for field in dataclasses.fields(self.settings) if field.name not in common)


METHODS: Registry[Registered] = Registry("fewbayes.methods")


def register(entry: Registered) -> None:
    """Make a method known by its name."""
    METHODS.add(entry.name, entry)


def registered() -> Mapping[str, Registered]:
    """All methods by name."""
    return dict(sorted(METHODS.all().items()))


def make_method(config: MethodSettings) -> Method:
    """The method of a run's settings, with the rare token beside it where the run trains it."""
    entry = registered().get(config.method)
    if entry is None:
        raise UserError(f"method {config.method!r} is not known; choose one of {', '.join(registered())}")
    method = entry.make(config)
    if not config.train_rare_token:
        return method
    from fewbayes.methods.rare_token import RareToken

    return RareToken(method, config)
