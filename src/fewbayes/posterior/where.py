"""Naming which weights are random: the rows of the paper's table, patterns of names, or any predicate.

The presets speak of groups of layers ("cross-attention", "time", "up"), which a model family names by patterns of
module paths; without groups they choose by kind of layer alone. Biases are selected with their weights, as in the
authors' code. Frozen parameters are never selected. Knows paths and classes of modules, nothing of models.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from fewbayes.errors import UserError

# (path of the module, the module, name of its parameter) -> is it random?
Predicate = Callable[[str, nn.Module, str], bool]

Groups = Mapping[str, str]
"""Groups of layers: a name, and the regular expression that is searched in the paths of modules."""

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Selected:
    """One random weight under the first name that the module tree gives it."""

    name: str
    parameter: nn.Parameter


@dataclass(frozen=True)
class Preset:
    """Layers of one kind: within one of some groups, the first of which a model has to have, and outside of others."""

    kind: Callable[[nn.Module], bool]
    within: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()

    def rule(self, groups: Groups) -> Predicate:
        """Groups that a model has not leave nothing out, and nothing is within them."""
        within, outside = ([groups[name] for name in names if name in groups] for names in (self.within, self.outside))

        def chosen(name: str, module: nn.Module, parameter_name: str) -> bool:
            inside = not self.within or any(re.search(pattern, name) for pattern in within)
            return inside and self.kind(module) and not any(re.search(pattern, name) for pattern in outside)

        return chosen


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


# With the weights that each selects of SD 1.5's denoiser (Table 3).
PRESETS = {
    # all but cross-attention, as the paper's text says: 226,246,720, 26.3 %
    "linear": Preset(_is_linear, outside=("cross-attention",)),
    # the same without the layers of the time step, as in the authors' script: 198,371,200, 23.1 %
    "linear-no-time": Preset(_is_linear, outside=("cross-attention", "time")),
    # `linear` in the up-blocks and the common time embedding, as the paper counts: 118,864,320, 13.8 %
    "linear-up": Preset(_is_linear, within=("up", "time-embedding"), outside=("cross-attention",)),
    # every linear layer: 270,209,280, 31.4 %
    "linear-cross": Preset(_is_linear),
    # scales and shifts of layer and group norms: 200,320, 0.02 %
    "norm": Preset(_is_norm),
    # every trainable parameter
    "all": Preset(lambda module: True),
}


@dataclass(frozen=True)
class Rule:
    """A preset's name or `pattern:<regex>` (searched in the whole parameter name), as a predicate."""

    where: str
    groups: Groups = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self._chosen  # what is unknown is refused here

    @cached_property
    def _chosen(self) -> Predicate:
        if self.where.startswith("pattern:"):
            return _pattern(self.where.removeprefix("pattern:"))
        if self.where not in PRESETS:
            known = ", ".join(PRESETS)
            raise UserError(f"where={self!r} is unknown: use one of {known}, or pattern:<regular expression>")
        preset = PRESETS[self.where]
        if self.groups and preset.within and preset.within[0] not in self.groups:
            raise UserError(
                f"where={self!r} is of layers called {preset.within[0]}, which this model has not: use another preset, "
                "or pattern:<regular expression>"
            )
        return preset.rule(self.groups)

    def __call__(self, name: str, module: nn.Module, parameter_name: str) -> bool:
        return self._chosen(name, module, parameter_name)

    def __repr__(self) -> str:
        return repr(self.where)


def _pattern(regex: str) -> Predicate:
    try:
        compiled = re.compile(regex)
    except re.error as error:
        raise UserError(f"where='pattern:{regex}' is not a regular expression: {error}") from error
    return lambda name, module, parameter_name: compiled.search(_join(name, parameter_name)) is not None


def select(module: nn.Module, where: str | Predicate) -> list[Selected]:
    """The random weights in the order of the module tree, each tensor once however often it is tied.

    where: a preset or a pattern, or any predicate; a `Rule` is a preset with a model's groups of layers.
    """
    chosen = Rule(where) if isinstance(where, str) else where
    found: dict[int, Selected] = {}
    for path, owner, key, parameter in _parameters(module):
        if parameter.requires_grad and id(parameter) not in found and chosen(path, owner, key):
            _check(_join(path, key), parameter)
            found[id(parameter)] = Selected(_join(path, key), parameter)
    if not found:
        raise UserError(_nothing_selected(module, where))
    return list(found.values())


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    for path, owner in module.named_modules():
        for key, parameter in owner.named_parameters(recurse=False):
            yield path, owner, key, parameter


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _check(name: str, parameter: nn.Parameter) -> None:
    if parameter.dtype not in _DTYPES:
        raise UserError(
            f"{name} holds {parameter.dtype} and cannot be random: choose weights in float32, float16 or bfloat16 "
            "(of a quantised model: the adapter's, e.g. where='pattern:lora_B')"
        )
    if type(parameter.data) is not Tensor:
        raise UserError(
            f"{name} is a {type(parameter.data).__name__} (sharded or quantised) and cannot be random: "
            "choose weights that are plain tensors"
        )


def _nothing_selected(module: nn.Module, where: str | Predicate) -> str:
    trainable = [(path, owner, key) for path, owner, key, parameter in _parameters(module) if parameter.requires_grad]
    if not trainable:
        return f"where={where!r} selects nothing: {type(module).__name__} has no trainable parameter"
    by_class: dict[str, list[str]] = {}
    for path, owner, key in trainable:
        by_class.setdefault(type(owner).__name__, []).append(_join(path, key))
    lines = [f"  {kind}: {len(names)} parameters, e.g. {names[0]}" for kind, names in sorted(by_class.items())]
    rules = {name: preset.rule(getattr(where, "groups", {})) for name, preset in PRESETS.items()}
    presets = [name for name, rule in rules.items() if any(rule(*place) for place in trainable)]
    choices = ", ".join([*presets, "pattern:<regular expression>"])
    head = f"where={where!r} selects nothing in {type(module).__name__}. It could select from"
    return "\n".join([head, *lines, f"by {choices}"])
