"""LoRA files of any trainer: one table of endings, one index of layer names, every layer at its true strength.

A file is read into `Factors` by layer, whatever its layout: diffusers old and new, PEFT, kohya's sd-scripts,
OneTrainer, with per-layer ranks and alphas, plain or DoRA. alpha / rank (or alpha / sqrt(rank)) is multiplied into the
up matrix, which is exact, so no reader of patterns has to find the right layer again. What is not a LoRA, does not fit
or is broken is refused in one line. Knows no family and no pipeline: the caller says which modules there are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbayes.errors import UserError
from fewbayes.files.decode import parse_json, typed

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger("fewbayes")

ENDINGS = {
    r"\.lora_(?:A|down)(?:\.\w+)?\.weight": "down",
    r"\.lora_(?:B|up)(?:\.\w+)?\.weight": "up",
    r"(?:\.|_)lora(?:_linear_layer)?\.down\.weight": "down",
    r"(?:\.|_)lora(?:_linear_layer)?\.up\.weight": "up",
    r"\.alpha": "alpha",
    r"\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?": "magnitude",
    r"\.dora_scale": "magnitude",
}
"""How the tensors of one layer end, in all layouts, and what they are."""
_ENDING = re.compile("|".join(f"(?P<e{i}>{ending})$" for i, ending in enumerate(ENDINGS)))

OTHER_KINDS = {
    "hada_": "a LoHa (LyCORIS)",
    "lokr_": "a LoKr (LyCORIS)",
    "oft_": "an OFT adapter",
    "ia3": "an IA3 adapter",
    ".lora_mid.": "a LoCon with Tucker factors (LyCORIS)",
    ".diff": "a file of whole differences (LyCORIS full)",
    ".w_norm": "a file of norm layers (LyCORIS)",
    ".bias": "a LoRA with trained biases",
    "glora": "a GLoRA (LyCORIS)",
    "boft": "a BOFT adapter",
}
"""Parts of names that tell what else a file is."""
Spellings = Callable[[str, str], Iterable[str]]
"""(part, layer) -> names."""
Places = tuple[tuple[str, str], ...]
"""(part, layer) of one, or of query, key and value where a file has one layer for them."""
LEFT_OUT = ("bundle_emb.", "emb_params", "string_to_param")
"""Learned words that some trainers bundle with a LoRA; they belong to a tokenizer and are not part of it."""

HEADER = "lora_adapter_metadata"


@dataclass
class Found:
    """What a file says of one layer; None for what it leaves out."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Factors:
    """The change of one layer, up @ down. down: (rank, inputs, ...); up: (outputs, rank, ...), float32, alpha taken in.

    magnitude: lengths of the rows of a DoRA, one for each output; None for a plain LoRA.
    """

    down: Tensor
    up: Tensor
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class Lora:
    """A LoRA as it fits a model: `layers` by part and layer.

    left_out: learned words in the file that are not used. unsaid: whether neither tensors nor header name an alpha, so
    that strength 1 was assumed.
    """

    layers: Mapping[str, Mapping[str, Factors]]
    left_out: tuple[str, ...] = ()
    unsaid: bool = False


@dataclass(frozen=True)
class _Settings:
    """What a header or adapter_config.json says of a part's strength."""

    alpha: float | None = None
    rslora: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)

    def alpha_of(self, layer: str) -> float | None:
        found = [a for ending, a in self.alphas.items() if layer == ending or layer.endswith(f".{ending}")]
        return found[0] if found else self.alpha


def read_lora(
    file: Path,
    modules: Mapping[str, nn.Module],
    spellings: Spellings,
    *,
    alpha: float | None = None,
    spoilt: bool = False,
) -> Lora:
    """The LoRA in a safetensors file, for these modules. spellings: what other trainers call a layer, all of its name.

    alpha: of a file that does not say its own; None is strength 1. spoilt: read numbers that are not finite too, to
    look at them. UserError names the layer, the kind or the header that is wrong.
    """
    tensors, header = _load(file)
    index = layer_index(modules, spellings)
    settings = _settings(file, header)
    found: dict[Places, Found] = {}
    left_out, strange = [], []
    for name, tensor in tensors.items():
        if not spoilt and not tensor.isfinite().all():
            raise UserError(f"{file} is spoilt: {name} holds numbers that are not finite; train or fetch it again")
        if any(mark in name for mark in LEFT_OUT):
            left_out.append(name)
            continue
        ending = _ENDING.search(name)
        if ending is None:
            _refuse_kind(file, name)
            strange.append(name)
            continue
        places = next((index[each] for each in _written(name[: ending.start()]) if each in index), None)
        if places is None:
            strange.append(name)
            continue
        kind = list(ENDINGS.values())[int((ending.lastgroup or "e0")[1:])]
        setattr(found.setdefault(places, Found()), kind, tensor)
    if strange or not found:
        _refuse_strange(file, strange, len(tensors))
    layers: dict[str, dict[str, Factors]] = {}
    unsaid = False
    for places, told in found.items():
        part, layer = places[0]
        said = _alpha(layer, told, settings.get(part, settings.get("", _Settings())))
        unsaid = unsaid or (said is None and alpha is None)
        shapes = [_shape(modules[part].get_submodule(each)) for _, each in places]
        whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        factors = _completed(file, f"{part}.{layer}", told, whole, alpha if said is None else said)
        layers.setdefault(part, {}).update(
            _apart(factors, {each: s[0] for (_, each), s in zip(places, shapes, strict=True)})
        )
    return Lora(layers, tuple(left_out), unsaid)


def _shape(layer: Any) -> tuple[int, ...]:
    """A quantised weight has another shape than its layer."""
    return (layer.out_features, layer.in_features) if hasattr(layer, "in_features") else tuple(layer.weight.shape)


def _apart(factors: Factors, outputs: Mapping[str, int]) -> dict[str, Factors]:
    """Each layer's rows of a change that stands under one name for several."""
    rows = list(outputs.values())
    ups = factors.up.split(rows)
    magnitudes = [None] * len(rows) if factors.magnitude is None else factors.magnitude.flatten().split(rows)
    return {
        layer: Factors(factors.down, up, magnitude)
        for layer, up, magnitude in zip(outputs, ups, magnitudes, strict=True)
    }


def attach(modules: Mapping[str, nn.Module], lora: Lora, name: str = "default") -> None:
    """Put the LoRA into the modules as layers of PEFT, each at strength 1, to stay there."""
    from peft import LoraConfig
    from peft.functional import inject_adapter_in_model

    for part, named in lora.layers.items():
        module = modules[part]
        dora = {layer for layer, factors in named.items() if factors.magnitude is not None}
        if dora and len(dora) < len(named):
            raise UserError(
                f"{len(dora)} of {len(named)} layers of {part} are DoRA and the others plain; such a mixture is not "
                "read, convert it to a plain LoRA"
            )
        ranks = {layer: factors.rank for layer, factors in named.items()}
        settings = LoraConfig(
            r=max(ranks.values()),
            lora_alpha=max(ranks.values()),
            target_modules=list(ranks),
            rank_pattern={f"^{re.escape(layer)}": rank for layer, rank in ranks.items()},
            alpha_pattern={f"^{re.escape(layer)}": rank for layer, rank in ranks.items()},
            use_dora=bool(dora),
            inference_mode=True,
        )
        inject_adapter_in_model(settings, module, adapter_name=name)
        for layer, factors in named.items():
            _fill(module.get_submodule(layer), factors, name)


def layer_index(modules: Mapping[str, nn.Module], spellings: Spellings) -> dict[str, Places]:
    """Layers by every name that a file may have for them.

    modules: by part, the denoiser first: names without any part's prefix are its own.
    """
    from torch import nn

    index: dict[str, Places] = {}
    for number, (part, module) in enumerate(modules.items()):
        for layer, inner in module.named_modules():
            if isinstance(inner, (nn.Linear, nn.Conv2d)):
                own = [spelled for each in _spelled(layer) for spelled in (f"{part}.{each}", each)[: 2 - (number > 0)]]
                for name in {*own, *spellings(part, layer)}:
                    if index.setdefault(name, ((part, layer),))[0][0] == part and (part, layer) not in index[name]:
                        index[name] += ((part, layer),)
    return index


def _written(name: str) -> tuple[str, ...]:
    """The layer's name without what wrappers and old attention processors put into it, as it may stand in the index."""
    bare = name.replace("base_model.model.", "").replace(".processor.", ".")
    original = bare.removeprefix("diffusion_model.").replace(".", "_")  # kohya's names with dots, by some trainers
    return bare, f"{bare}.0" if bare.endswith(".to_out") else bare, f"lora_unet_{original}"


def _spelled(layer: str) -> list[str]:
    """transformers 5.6 dropped "text_model." from the names of CLIP's text encoders; files have either."""
    bare = layer.removeprefix("text_model.")
    return [layer, bare, f"text_model.{bare}"] if bare.startswith(("encoder.", "embeddings.")) else [layer]


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read, it is damaged or no safetensors file: {error}") from error


def _settings(file: Path, header: Mapping[str, str]) -> dict[str, _Settings]:
    """By part, from the header that diffusers writes, or from a PEFT folder's adapter_config.json beside the file."""
    beside = file.with_name("adapter_config.json")
    if HEADER in header:
        told, source = _json(header[HEADER], f"the header ({HEADER}) of {file}"), "header"
    elif file.name == "adapter_model.safetensors" and beside.is_file():
        told, source = _json(beside.read_text(encoding="utf-8", errors="replace"), str(beside)), "config"
    else:
        return {}
    parts: dict[str, dict[str, Any]] = {}
    for key, value in told.items():
        part, _, setting = key.rpartition(".") if source == "header" else ("", "", key)
        parts.setdefault(part, {})[setting] = value
    _say_unknown(file, {setting for values in parts.values() for setting in values})
    return {part: _part_settings(values) for part, values in parts.items()}


def _say_unknown(file: Path, settings: set[str]) -> None:
    from peft import LoraConfig

    if unknown := sorted(settings - set(LoraConfig.__dataclass_fields__)):
        log.warning("%s names settings that the PEFT here does not know, and they are ignored: %s", file, unknown)


def _part_settings(told: Mapping[str, Any]) -> _Settings:
    alpha, alphas = told.get("lora_alpha"), told.get("alpha_pattern")
    return _Settings(
        float(alpha) if isinstance(alpha, (int, float)) else None,
        told.get("use_rslora") is True,
        {str(k): float(v) for k, v in alphas.items()} if isinstance(alphas, dict) else {},
    )


def _json(text: str, what: str) -> dict[str, Any]:
    cure = "the strength of the LoRA is written there; save the file again"
    return typed(parse_json(text, what, cure=cure), dict[str, Any], what, cure=cure)


def _alpha(layer: str, found: Found, settings: _Settings) -> float | None:
    """By which the product is multiplied once it is divided by the rank; None where nothing says it."""
    if found.alpha is not None:
        return float(found.alpha)
    said = settings.alpha_of(layer)
    if said is not None and settings.rslora and found.down is not None:
        return said * len(found.down) ** 0.5  # alpha / sqrt(rank)
    return said


def _completed(file: Path, name: str, found: Found, shape: Sequence[int], alpha: float | None) -> Factors:
    """One layer's factors, checked against the shape of the model's weight, at full strength."""
    if found.down is None or found.up is None:
        missing = "down (lora_A)" if found.down is None else "up (lora_B)"
        raise UserError(f"{file} is incomplete: {name} has no {missing} matrix; fetch or save the file again")
    outputs, inputs = shape[:2]
    theirs = (found.up.shape[0], found.down.shape[1])
    fits = found.up.shape[1] == found.down.shape[0] and found.down.shape[2:] == tuple(shape[2:])
    if theirs != (outputs, inputs) or not fits:
        raise UserError(
            f"{file} is for another base model: {name} takes {inputs} numbers to {outputs} here, and {theirs[1]} to "
            f"{theirs[0]} there"
        )
    if found.magnitude is not None and found.magnitude.numel() != outputs:
        raise UserError(
            f"{file} is a DoRA along the inputs of {name} ({found.magnitude.numel()} lengths for {outputs} outputs), "
            "which no library here computes; convert it to a plain LoRA"
        )
    scale = 1.0 if alpha is None else alpha / len(found.down)
    return Factors(found.down, (found.up.double() * scale).float(), found.magnitude)


def _fill(layer: Any, factors: Factors, name: str) -> None:
    import torch

    with torch.no_grad():
        for matrix, tensor in ((layer.lora_A[name], factors.down), (layer.lora_B[name], factors.up)):
            matrix.weight.copy_(tensor.reshape(matrix.weight.shape))
        if factors.magnitude is not None:
            vector = layer.lora_magnitude_vector[name].weight
            vector.copy_(factors.magnitude.reshape(vector.shape))


def _refuse_kind(file: Path, name: str) -> None:
    kind = next((kind for mark, kind in OTHER_KINDS.items() if mark in name), None)
    if kind:
        raise UserError(
            f"{file} is {kind}, as {name} tells, and not a LoRA; convert it to one (LyCORIS' extract or your trainer's "
            "merge and extract), or merge it into the model and give the pipeline folder"
        )


def _refuse_strange(file: Path, strange: list[str], count: int) -> None:
    if not strange:
        raise UserError(f"{file} holds no layer of a LoRA ({count} tensors)")
    raise UserError(
        f"{len(strange)} of the {count} tensors of {file} belong to no layer of this model, as {strange[0]}: it is for "
        "another base model, or in a layout that is not known here"
    )
