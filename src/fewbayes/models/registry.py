"""The families that there are, and the way from a model's name to its family.

A family is a class with what `Family` asks for, registered under its name. Those of this package register themselves
when their file is imported; a family of one's own calls `register` before its model is opened. Imports neither torch
nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from fewbayes.errors import UserError
from fewbayes.models.family import Family, ModelCard

if TYPE_CHECKING:
    from torch import nn

BUILT_IN = tuple(f"fewbayes.models.{name}" for name in ("unet_clip", "sd3", "flux2", "z_image"))
_REGISTERED: dict[str, type[Family]] = {}

F = TypeVar("F", bound=type[Family])


def register(family: F) -> F:
    """Make a family known under its name; a class decorator. A name or a pipeline class has one family."""
    mine = {family.name, family.pipeline_class}
    taken = [
        other for other in _REGISTERED.values() if other is not family and {other.name, other.pipeline_class} & mine
    ]
    assert not taken, f"two families are called {family.name} or open {family.pipeline_class}"
    _REGISTERED[family.name] = family
    return family


def families() -> dict[str, type[Family]]:
    """All families by name."""
    for module in BUILT_IN:
        import_module(module)
    return dict(_REGISTERED)


def family_named(name: str) -> type[Family]:
    return families()[name]


def family_of(model: str) -> type[Family]:
    """The family of a model by its pipeline's class; UserError where there is no such model or family."""
    from fewbayes.models.folders import INDEX, locate, read_json, what_it_is

    kind = str(read_json(locate(model) / INDEX).get("_class_name"))
    for family in families().values():
        if family.pipeline_class == kind:
            return family
    known = ", ".join(f"{family.pipeline_class} ({family.described})" for family in families().values())
    raise UserError(f"{model} is a {kind}{what_it_is(kind)}; this program fine-tunes {known}")


def inspect_model(model: str) -> ModelCard:
    """Look at a model without loading it: `tiny`, a pipeline folder, or an id on the Hugging Face hub.

    Raises UserError naming the missing part, the pickled weights or the unsupported class.
    """
    from fewbayes.models.folders import check_layout, locate

    family, folder = family_of(model), locate(model)
    check_layout(folder, family)
    return family.inspect(model, folder)


def load_family(model: str | ModelCard, *, whole: bool = True) -> Family:
    """Load a model into memory, on the CPU, in the precision that its family says."""
    card = inspect_model(model) if isinstance(model, str) else model
    return family_named(card.family).load(card, whole=whole)


def meta_family(card: ModelCard) -> Family:
    """A model on the meta device: the true classes, names and shapes of all parts, no weights and no memory.

    Only the config.json of each part is read, so the folder needs no weights; there are no tokenizers.
    """
    return family_named(card.family).without_weights(card)


def meta_denoiser(card: ModelCard) -> nn.Module:
    """The denoiser alone, on the meta device."""
    from fewbayes.models.folders import meta_part

    family = family_named(card.family)
    return meta_part(card.folder, family.denoiser_part, family.parts[family.denoiser_part])


def parameter_counts(card: ModelCard) -> dict[str, int]:
    """Parameters of each part of a model by its folder's name, "denoiser" for what is fine-tuned.

    Only the config.json of each part is read.
    """
    from fewbayes.models.folders import meta_part, present

    family = family_named(card.family)
    parts, _ = present(card.folder, family)
    modules = {name: meta_part(card.folder, name, part) for name, part in parts.items()}
    return {
        "denoiser" if name == family.denoiser_part else name: sum(weight.numel() for weight in module.parameters())
        for name, module in modules.items()
    }
