"""What training will need of the device's memory, told from a model's config files before any weight is loaded.

The network is built without weights, the method is attached to it, and a forward and a backward pass of shapes alone
say what is held at once. It is a lower bound: what kernels, a sampler or the autoencoder need in passing, and what
the allocator scatters, is not in the numbers (a LoRA step of SD 1.5 took 6.9 GB where 5.9 were estimated). Knows
nothing of training beyond what it keeps in memory.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.errors import UserError
from fewbayes.files.atomic import file_sha256
from fewbayes.files.cache import remembered
from fewbayes.methods import Method, make_method, registered
from fewbayes.models import Family, ModelCard, meta_family
from fewbayes.models.family import text_parts
from fewbayes.models.folders import present
from fewbayes.models.precision import BYTES, quantisable
from fewbayes.models.registry import family_named
from fewbayes.posterior.where import select
from fewbayes.settings.config import TrainConfig, memory_bytes, train_settings

log = logging.getLogger("fewbayes")

TRAINED = 4  # bytes of a trained number: `train` refuses other than float32
SHARE_OF_FREE = 0.8  # of the memory that is free now: the rest is for what the estimate leaves out, see below


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for; activations are what a step holds at its worst beside the gradients.

    before: text encoders that read all prompts before the first step and are dropped. aside: where they are larger than
    all of the training they read in main memory, and this is of another.
    """

    parts: Mapping[str, int]
    before: int = 0
    aside: bool = False

    @property
    def training(self) -> int:
        return sum(self.parts.values())

    @property
    def peak(self) -> int:
        return self.training if self.aside else max(self.before, self.training)

    def largest(self, count: int = 3) -> str:
        if self.peak == self.before:
            return f"the text encoders, before the first step {shown(self.before)}"
        parts = sorted(self.parts.items(), key=lambda part: -part[1])[:count]
        return ", ".join(f"{name} {shown(size)}" for name, size in parts)


def estimate(card: ModelCard, config: TrainConfig, *, loaded: bool = False, device: str = "cpu") -> MemoryEstimate:
    """What a resolved config needs while it trains; `loaded`: beyond the model itself, which is there already."""
    model, config_of_shapes = _Model(card.folder, card.family, card.resolution), _what_matters(config)
    counts = _counts(model, config_of_shapes)
    in_shapes = "bf16" if config.base_precision in BYTES else config.base_precision
    plain = dataclasses.replace(config_of_shapes, bayes=False, where="linear", base_precision=in_shapes)
    passing = _passing(model, plain)
    remembered = 2 if config.use_8bit_adam else 2 * TRAINED
    deviations = {"elementwise": counts.random, "row": counts.random_rows, "fixed": 0}[config.weight_std_learn]
    deviations = deviations if config.bayes else 0
    gradients = TRAINED * (counts.trained + deviations)
    read = counts.texts if encodes_once(config) and not loaded else 0
    parts = {
        "model": 0 if loaded else counts.model - read,
        "a layer unpacked": counts.unpacked,
        "adapters": counts.added,
        "gradients": gradients,
        "optimizer": remembered * (counts.trained + deviations),
        "deviations": TRAINED * deviations,
        "a draw of the weights and its noise": 2 * TRAINED * counts.random if config.bayes else 0,
        "the prior's means": TRAINED * counts.random if config.bayes and config.kl_weight > 0 else 0,
        "averages": TRAINED * counts.trained if config.use_ema else 0,
        "initial weights": TRAINED * counts.trained if config.l2_init_weight > 0 else 0,
        "activations": max(0, passing - gradients),
    }
    return MemoryEstimate(parts, before=read, aside=device != "cpu")


def encodes_once(config: TrainConfig) -> bool:
    """Whether prompts are read before the denoiser is loaded, by text encoders that nothing changes or saves."""
    changed = config.train_text_encoder or config.train_rare_token or registered()[config.method].kind == "full"
    return config.cache_latents and not changed


def check(card: ModelCard, config: TrainConfig, device: torch.device, *, loaded: bool = False) -> MemoryEstimate:
    """The estimate; UserError where it is more than memory_limit, or than the device has free, with what would fit."""
    try:
        need = estimate(card, config, loaded=loaded, device=device.type)
    except UserError:
        raise  # the user's settings
    except Exception as error:  # passes of shapes alone are beyond what torch promises: no reason not to train
        log.warning("the memory that training needs could not be estimated (%s: %s)", type(error).__name__, error)
        return MemoryEstimate({})
    limit, whose = _limit(config, device)
    if limit is None or need.peak <= limit:
        return need
    raise UserError(
        f"training would need about {shown(need.peak)} (a lower bound) and {whose} {shown(limit)}; most of it is for "
        f"{need.largest()}. {_way_out(card, config, limit, loaded, device)}"
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device now, None where the system does not say."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, for the next
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable")), None)
    return 1024 * int(found) if found else None


def shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _limit(config: TrainConfig, device: torch.device) -> tuple[int | None, str]:
    if config.memory_limit:
        return memory_bytes(config.memory_limit), "memory_limit is"
    free = free_memory(device)
    return int(SHARE_OF_FREE * free) if free is not None else None, f"{device} has free, with a fifth in reserve,"


# --- what would fit ---------------------------------------------------------------------------------------------------


def _way_out(card: ModelCard, config: TrainConfig, limit: int, loaded: bool, device: torch.device) -> str:
    """The single changes that fit; where there are none, the largest of them together until they do."""

    def peak(changed: TrainConfig) -> int:
        return estimate(card, changed, loaded=loaded, device=device.type).peak

    changes = _changes(config)
    alone = {name: peak(change(config)) for name, change in changes.items()}
    fitting = [f"{name} (about {shown(size)})" for name, size in alone.items() if size <= limit]
    if fitting:
        return f"It would fit with {', or with '.join(fitting)}"
    names, together = [], config
    while changes and peak(together) > limit:
        best = min(changes, key=lambda name: peak(changes[name](together)))
        names, together = [*names, best], changes.pop(best)(together)
    if peak(together) <= limit:
        return f"It would fit with {', '.join(names)} together (about {shown(peak(together))})"
    least = f" (even with {', '.join(names)} about {shown(peak(together))})" if names else ""
    return f"Nothing here would make it fit{least}; take a smaller resolution or model, or a device with more memory"


def _changes(config: TrainConfig) -> dict[str, Callable[[TrainConfig], TrainConfig]]:
    """Settings that save memory and are not taken yet, each as a change of the config."""

    def setting(**values: Any) -> Callable[[TrainConfig], TrainConfig]:
        return lambda config: dataclasses.replace(config, **values)

    whole, known = registered()[config.method], train_settings()
    own = whole.own_settings
    possible = {
        "train_batch_size 1": (config.train_batch_size > 1, setting(train_batch_size=1)),
        "gradient_checkpointing": (not config.gradient_checkpointing, setting(gradient_checkpointing=True)),
        **{
            f"base_precision {lower}": (
                (config.base_precision in above) and whole.kind != "full" and config.mixed_precision != "fp16",
                setting(base_precision=lower),
            )
            for lower, above in (("bf16", ["fp32"]), ("nf4", ["fp32", "bf16", "int8"]))
        },
        "mixed_precision bf16": (config.mixed_precision == "no", setting(mixed_precision="bf16")),
        "use_8bit_adam": (not config.use_8bit_adam, setting(use_8bit_adam=True)),
        "method lora": (whole.kind == "full", setting(method="lora", **{name: known[name].default for name in own})),
    }
    return {name: change for name, (open_, change) in possible.items() if open_}


# --- counting ---------------------------------------------------------------------------------------------------------

_MATTERS = (
    "method",
    "train_text_encoder",
    "train_rare_token",
    "bayes",
    "resolution",
    "with_prior_preservation",
    "class_prompt",
    "train_batch_size",
    "gradient_accumulation_steps",
    "mixed_precision",
    "base_precision",
    "cache_latents",
    "gradient_checkpointing",
)


@dataclass(frozen=True)
class _Model:
    """What shapes depend on of a model, in a form that a cache takes."""

    folder: Path
    family: str
    resolution: int

    def card(self) -> ModelCard:
        return ModelCard(str(self.folder), self.folder, self.family, "epsilon", self.resolution)


@dataclass(frozen=True)
class _Counts:
    """Bytes of the model as it is held, of its text encoders, of a quantised layer while it computes, and of what the
    method puts in; numbers of trained and of random parameters."""

    model: int
    texts: int
    unpacked: int
    added: int
    trained: int
    random: int
    random_rows: int


def _what_matters(config: TrainConfig) -> TrainConfig:
    """The settings that shapes depend on."""
    own = registered()[config.method].own_settings
    values = {name: getattr(config, name) for name in (*_MATTERS, *own)} | {"method": config.method}
    return TrainConfig(model="-", instance_data_dir="-", instance_prompt="<v>", output_dir="-", **values)


@lru_cache(maxsize=256)
def _counts(model: _Model, config: TrainConfig) -> _Counts:
    return remembered("memory", ["counts", *_about(model, config)], _Counts, lambda: _counted(model, config))


@lru_cache(maxsize=256)
def _passing(model: _Model, config: TrainConfig) -> int:
    return remembered("memory", ["passing", *_about(model, config)], int, lambda: _passed(model, config))


def _about(model: _Model, config: TrainConfig) -> list[object]:
    """All that shapes follow from: settings of the model and of the run, and the code that makes networks of them."""
    kinds = (family_named(model.family), registered()[config.method].make)
    parts, _ = present(model.folder, kinds[0])
    shapes = [(name, (model.folder / name / "config.json").read_text()) for name in parts]
    return [model.family, model.resolution, shapes, config.to_dict(), _code(*(kind.__module__ for kind in kinds))]


@cache
def _code(*modules: str) -> list[str]:
    """Digests of the files that a count passes through, and the versions of the libraries."""
    ours = Path(__file__).parents[1]
    files = [file for room in ("diffusion", "models", "methods", "posterior") for file in (ours / room).glob("*.py")]
    others = {sys.modules[module].__file__ or __file__ for module in modules}
    digests = map(file_sha256, sorted({*files, Path(__file__), *map(Path, others)}))
    return [*digests, *map(version, ("torch", "diffusers", "transformers", "peft"))]


def _counted(model: _Model, config: TrainConfig) -> _Counts:
    family, method = _in_half(meta_family(model.card()), config), _method(config)
    size, saved = _size(family), {name: _saved(module, config) for name, module in family.modules.items()}
    unpacked = max((2 * it.weight.numel() for it in quantisable(family.denoiser).values()), default=0)
    texts = sum(_bytes(family.modules[name]) - saved[name] for name in text_parts(family))
    with torch.device("meta"):
        method.attach(family)
    chosen = select(*method.random(family)) if config.bayes else []
    return _Counts(
        model=size - sum(saved.values()),
        texts=texts,
        unpacked=unpacked if config.base_precision in BYTES else 0,
        added=_size(family) - size,
        trained=sum(weight.numel() for weight in method.trainable(family).values()),
        random=sum(weight.parameter.numel() for weight in chosen),
        random_rows=sum(len(weight.parameter) for weight in chosen),
    )


def _method(config: TrainConfig) -> Method:
    """Without the rare token, whose one row counts for nothing and whose tokenizers are not there."""
    return make_method(dataclasses.replace(config, train_rare_token=False))


def _modules(family: Family) -> list[nn.Module]:
    return list(family.modules.values())


def _in_half(family: Family, config: TrainConfig) -> Family:
    """Of shapes alone, which are not quantised: `_saved` says what that saves beyond."""
    family.reduce("fp32" if config.base_precision == "fp32" else "bf16")
    return family


def _saved(module: nn.Module, config: TrainConfig) -> int:
    if config.base_precision not in BYTES:
        return 0
    weights = [it.weight for it in quantisable(module).values() if it.weight.dtype == torch.bfloat16]
    return int(sum(weight.numel() * (2 - BYTES[config.base_precision]) for weight in weights))


def _size(family: Family) -> int:
    return sum(map(_bytes, _modules(family)))


def _bytes(module: nn.Module) -> int:
    return sum(it.numel() * it.element_size() for it in (*module.parameters(), *module.buffers()))


class _Live(TorchDispatchMode):
    """The memory of all tensors that are made inside, as they come and go, and the most that there was at once."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}
        for tensor in there:
            self._known[tensor.untyped_storage()._cdata] = tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _passed(model: _Model, config: TrainConfig) -> int:
    """The most that forward and backward pass of a step hold at once, in bytes: activations, gradients, copies.

    The tensors are torch's fake ones, of shapes alone, that believe to be on a CPU: kernels are chosen as for real,
    which on the meta device they are not (attention would keep its whole matrix).
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    family = _in_half(meta_family(model.card()), config)
    with torch.device("meta"):
        _method(config).attach(family)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision)
    passed = list(family.modules.values()) if _encodes(config) else [family.denoiser]
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in passed:
            module.to_empty(device="cpu")
        family.checkpoint_gradients(config.gradient_checkpointing)
        there = [it for module in passed for it in (*module.parameters(), *module.buffers())]
        live = _Live(there)
        with live:
            for _ in range(min(2, config.gradient_accumulation_steps)):
                with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
                    errors = family.predict(*_inputs(family, config)).float().square().mean()
                errors.backward()
                del errors
    return live.peak


def _inputs(family: Family, config: TrainConfig) -> tuple[Tensor, Tensor, Conditioning]:
    """One micro-batch for `predict`; class images double it. Text encoders that gradients pass run here too."""
    count = config.train_batch_size * (2 if config.with_prior_preservation else 1)
    if config.train_rare_token:
        for encoder in family.text_encoders.values():
            encoder.get_input_embeddings().register_forward_hook(lambda *passed: passed[-1].detach().requires_grad_())
    return family.example_batch(count, config.resolution or family.card.resolution, encode=_encodes(config))


def _encodes(config: TrainConfig) -> bool:
    """Whether gradients pass text encoders."""
    return config.train_text_encoder or config.train_rare_token
