"""The parts of a loaded pipeline: loaded whole or where they are first used, dropped again, kept in a low precision.

What is encoded once (text encoders, an autoencoder) need not stay in memory beside the denoiser. A part that was
dropped has its shapes alone, and is loaded from the model's folder where it is used next. Knows nothing of what the
parts compute.
"""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

from fewbayes.errors import UserError
from fewbayes.models.family import ModelCard, Part
from fewbayes.models.folders import (
    AGAIN,
    SCHEDULER,
    loading,
    meta_part,
    part_class,
    present,
    quiet,
    read_json,
    weight_files,
)

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from torch import nn

log = logging.getLogger("fewbayes")


class HeldParts(ABC):
    """See `fewbayes.models.family` for what every member means."""

    parts: Mapping[str, Part]
    denoiser_part: str
    tokenizer_parts: Mapping[str, str]

    def __init__(
        self,
        card: ModelCard,
        modules: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Any],
        scheduler_config: dict[str, Any],
        *,
        dropped: bool = False,
    ):
        self.card = card
        self.modules = dict(modules)
        self.parts = {name: self.parts[name] for name in modules}
        self.tokenizers = dict(tokenizers)
        self.scheduler_config = scheduler_config
        self.precision = "fp32"
        self._dropped = set(modules) if dropped else set[str]()
        self._place: Any = "cpu"
        self._apart: dict[str, Any] = {}  # where parts are that are not there
        for name in modules:
            self._placed(name)

    def _placed(self, name: str) -> None:
        """After a module has come to its place in `modules`."""
        self.modules[name].eval().requires_grad_(False)

    @classmethod
    def load(cls, card: ModelCard, *, whole: bool = True) -> Self:
        """On the CPU, in float32 whatever the parts are stored in."""
        if (card.folder / "safety_checker").is_dir():
            log.warning("the safety checker of %s is not loaded, and will not be in what is saved", card.model)
        parts, tokenizer_parts = present(card.folder, cls)  # pyright: ignore[reportArgumentType]
        with quiet():
            tokenizers = {name: _tokenizer(card.folder / name, cls.tokenizer_parts[name]) for name in tokenizer_parts}
        made = partial(_loaded, precision="fp32") if whole else meta_part
        modules = {name: made(card.folder, name, part) for name, part in parts.items()}
        return cls(card, modules, tokenizers, read_json(card.folder / SCHEDULER), dropped=not whole)

    @classmethod
    def without_weights(cls, card: ModelCard) -> Self:
        parts, _ = present(card.folder, cls)  # pyright: ignore[reportArgumentType]
        modules = {name: meta_part(card.folder, name, part) for name, part in parts.items()}
        return cls(card, modules, {}, read_json(card.folder / SCHEDULER))

    def fetch(self, *parts: str) -> None:
        for name in parts or [*self.modules]:
            if name not in self._dropped:
                continue
            module = _loaded(self.card.folder, name, self.parts[name], self._precision_of(name))
            self.modules[name] = module.to(self._apart.get(name, self._place))
            self._dropped.discard(name)
            self._placed(name)

    def drop(self, *parts: str) -> None:
        for name in parts:
            self.modules[name] = self.modules[name].to("meta")
            self._dropped.add(name)

    def reduce(self, precision: str) -> None:
        from fewbayes.models.precision import check_precision, reduced

        check_precision(precision)
        self.precision = precision
        for name, module in self.modules.items():
            if name not in self._dropped and self._precision_of(name) != "fp32":
                self.modules[name] = reduced(module, precision)

    def _precision_of(self, name: str) -> str:
        return "fp32" if name == "vae" else self.precision

    def _computing(self, kind: str | None = None) -> AbstractContextManager[Any]:
        """Inside, half weights meet numbers of any precision; kind: of another device than the denoiser's."""
        import torch

        if self.precision == "fp32":
            return nullcontext()
        kind = (kind or self.device.type).replace("meta", "cpu")
        return nullcontext() if torch.is_autocast_enabled(kind) else torch.autocast(kind, torch.bfloat16)

    @property
    def vae(self) -> AutoencoderKL:
        self.fetch("vae")
        return cast("AutoencoderKL", self.modules["vae"])

    @property
    def denoiser(self) -> nn.Module:
        return self.modules[self.denoiser_part]

    @property
    def text_encoders(self) -> dict[str, Any]:
        """Those that fine-tuning may change."""
        return {name: it for name, it in self.modules.items() if self.parts[name].kind.startswith("CLIPText")}

    @property
    def device(self) -> torch.device:
        import torch

        # diffusers' own property walks all modules, 4 ms each time
        return torch.device(self._place) if self._dropped else next(self.denoiser.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        self._place = device
        for name, module in self.modules.items():
            if name not in self._dropped and name not in self._apart:
                module.to(device)
        return self

    def checkpoint_gradients(self, on: bool) -> None:
        verb = "enable" if on else "disable"
        getattr(self.denoiser, f"{verb}_gradient_checkpointing")()
        for text_encoder in self.text_encoders.values():
            # transformers 5 has renamed its own
            ours = getattr(text_encoder, f"activation_checkpointing_{verb}", None)
            (ours or getattr(text_encoder, f"gradient_checkpointing_{verb}"))()
            text_encoder.train(on)  # transformers recompute in training mode only; CLIP's text encoders drop nothing


def _loaded(folder: Path, name: str, part: Part, precision: str) -> Any:
    """On the CPU. Of a low precision never more than half of float32 is in memory."""
    import torch

    files, low = weight_files(folder, name, part), precision != "fp32"
    how: dict[str, Any] = {"use_safetensors": True, "variant": "fp16" if ".fp16" in files[0].name else None}
    how |= {"torch_dtype" if part.library == "diffusers" else "dtype": torch.bfloat16} if low else {}
    with quiet(), loading(folder / name):
        module = part_class(part).from_pretrained(folder / name, **how)
        if not low:
            module.to(getattr(torch, part.dtype))
    if low:
        from fewbayes.models.precision import read_vectors, reduced

        read_vectors(module, files)
        return reduced(module, precision)
    if name == "vae":
        check_finite(folder / name, module)
    return module


def _tokenizer(folder: Path, kind: str) -> Any:
    import transformers

    with loading(folder):
        found = getattr(transformers, kind).from_pretrained(folder)
    longest = found.model_max_length
    if type(longest) is not int or longest < 2 or found.pad_token_id is None:
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: model_max_length is {longest!r} and pad_token "
            f"{found.pad_token!r}; they must be a whole number of at least 2 and a token; {AGAIN}"
        )
    return found


def check_finite(folder: Path, vae: nn.Module) -> None:
    broken = [name for name, weight in vae.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise UserError(
            f"{folder} holds numbers that are not finite ({broken[0]}), as a conversion to half precision may leave "
            "them: every picture would be NaN; put the float32 autoencoder of the same model in its place"
        )
