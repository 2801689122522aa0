"""Naming which weights are random: the rows of the paper's table, patterns of names, or any predicate.

Knows parameter paths and classes of modules, nothing of diffusers: the presets speak the names that U-Nets have there
(`attn1`, `attn2`, `ff`, `time_embedding`, `time_emb_proj`, `up_blocks`) and mean what they say on any other module.
Biases are selected with their weights, as in the authors' code. Frozen parameters are never selected.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewbayes.errors import UserError

# (path of the module, the module, name of its parameter) -> is it random?
Predicate = Callable[[str, nn.Module, str], bool]

_CROSS_ATTENTION = {"attn2"}
_TIME = {"time_embedding", "time_emb_proj", "add_embedding"}
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Selected:
    """One random weight under the first name that the module tree gives it."""

    name: str
    parameter: nn.Parameter


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def linear_with_cross_attention(name: str, module: nn.Module, parameter_name: str) -> bool:
    """Every linear layer. SD 1.5: 270,209,280 weights, 31.4 %."""
    return _is_linear(module)


def linear(name: str, module: nn.Module, parameter_name: str) -> bool:
    """Linear layers except cross-attention, as the paper's text says. SD 1.5: 226,246,720 weights, 26.3 %."""
    return _is_linear(module) and not _CROSS_ATTENTION.intersection(name.split("."))


def linear_no_time(name: str, module: nn.Module, parameter_name: str) -> bool:
    """The same without the layers of the time step, as in the authors' script. SD 1.5: 198,371,200, 23.1 %."""
    return linear(name, module, parameter_name) and not _TIME.intersection(name.split("."))


def linear_up(name: str, module: nn.Module, parameter_name: str) -> bool:
    """`linear` in the up-blocks and the common time embedding. SD 1.5: 118,864,320, 13.8 % as the paper counts."""
    return linear(name, module, parameter_name) and name.split(".")[0] in {"up_blocks", "time_embedding"}


def norm(name: str, module: nn.Module, parameter_name: str) -> bool:
    """Scales and shifts of layer and group norms. SD 1.5: 200,320 weights, 0.02 %."""
    return "Norm" in type(module).__name__


def everything(name: str, module: nn.Module, parameter_name: str) -> bool:
    """Every trainable parameter."""
    return True


PRESETS: dict[str, Predicate] = {
    "linear": linear,
    "linear-no-time": linear_no_time,
    "linear-up": linear_up,
    "linear-cross": linear_with_cross_attention,
    "norm": norm,
    "all": everything,
}


def predicate(where: str | Predicate) -> Predicate:
    """The predicate of a preset's name or of `pattern:<regex>` (searched in the whole parameter name)."""
    if callable(where):
        return where
    if where in PRESETS:
        return PRESETS[where]
    if where.startswith("pattern:"):
        return _pattern(where.removeprefix("pattern:"))
    raise UserError(f"where={where!r} is unknown: use one of {', '.join(PRESETS)}, or pattern:<regular expression>")


def _pattern(regex: str) -> Predicate:
    try:
        compiled = re.compile(regex)
    except re.error as error:
        raise UserError(f"where='pattern:{regex}' is not a regular expression: {error}") from error
    return lambda name, module, parameter_name: compiled.search(_join(name, parameter_name)) is not None


def select(module: nn.Module, where: str | Predicate) -> list[Selected]:
    """The random weights in the order of the module tree, each tensor once however often it is tied."""
    chosen = predicate(where)
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
    presets = [name for name, chosen in PRESETS.items() if any(chosen(*place) for place in trainable)]
    choices = ", ".join([*presets, "pattern:<regular expression>"])
    head = f"where={where!r} selects nothing in {type(module).__name__}. It could select from"
    return "\n".join([head, *lines, f"by {choices}"])
