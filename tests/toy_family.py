"""A family that shares nothing with Stable Diffusion: a small diffusion transformer on a straight path, told words and
a mask by an encoder that is no CLIP. The contract and a whole training pass on it, so nothing above asks for a U-Net.

It is also what docs/extending.md points at: one class with what `fewbayes.models.family.Family` asks for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.guidance import EVERYWHERE, Interval
from fewbayes.diffusion.process import Flow
from fewbayes.errors import UserError
from fewbayes.models.family import ModelCard, Part
from fewbayes.models.folders import INDEX, SCHEDULER, SETTINGS, meta_part, part_class, read_json, settings_of
from fewbayes.models.registry import register

WORDS, LENGTH, PATCH = 64, 8, 4


class ToyAutoencoder(ModelMixin, ConfigMixin):
    """Pixels in [-1, 1] to channels, 4 x 4 at a time, and mixed by an orthogonal matrix: nothing is lost."""

    @register_to_config
    def __init__(self, channels: int = 3 * PATCH**2):
        super().__init__()
        self.mix = nn.Parameter(nn.init.orthogonal_(torch.empty(channels, channels)))


class ToyText(ModelMixin, ConfigMixin):
    """A word is its embedding, passed through one layer."""

    @register_to_config
    def __init__(self, width: int = 16):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.proj = nn.Linear(width, width)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, ids: Tensor) -> Tensor:
        return self.proj(self.embedding(ids))


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v, seen[:, None, None]).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pictures and words attend to each other in one sequence, each step scaled by the time."""

    def __init__(self, width: int):
        super().__init__()
        self.ada = nn.Linear(width, 2 * width)
        self.norm, self.attn = nn.LayerNorm(width), Attention(width)
        self.mlp = nn.ModuleDict({"up": nn.Linear(width, 2 * width), "down": nn.Linear(2 * width, width)})

    def forward(self, x: Tensor, time: Tensor, seen: Tensor) -> Tensor:
        scale, shift = self.ada(time)[:, None].chunk(2, -1)
        x = x + self.attn(self.norm(x) * (1 + scale) + shift, seen)
        return x + self.mlp["down"](F.gelu(self.mlp["up"](x)))


class ToyTransformer(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, channels: int = 3 * PATCH**2, width: int = 16, depth: int = 2, side: int = 8):
        super().__init__()
        self.enter, self.leave = nn.Linear(channels, width), nn.Linear(width, channels)
        self.words, self.time = nn.Linear(16, width), nn.Linear(width, width)
        self.place = nn.Parameter(0.02 * torch.randn(side**2, width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.recompute = False

    def forward(self, xt: Tensor, s: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        picture = self.enter(xt.flatten(2).transpose(1, 2)) + self.place[: xt[0, 0].numel()]
        waves = s.float()[:, None] * 2.0 ** torch.arange(self.time.in_features // 2, device=s.device)
        time = self.time(torch.cat([waves.sin(), waves.cos()], -1))
        x = torch.cat([picture, self.words(words)], 1)
        seen = torch.cat([mask.new_ones(picture.shape[:2]), mask], 1)
        for block in self.blocks:
            if self.recompute:
                x = torch.utils.checkpoint.checkpoint(block, x, time, seen, use_reentrant=False)
            else:
                x = block(x, time, seen)
        return self.leave(x[:, : picture.shape[1]]).transpose(1, 2).reshape(xt.shape)


def build_toy(folder: Path, *, seed: int = 0) -> Path:
    """Write a whole model folder; pictures are 32 x 32, latents 48 x 8 x 8."""
    torch.manual_seed(seed)
    modules = {"vae": ToyAutoencoder(), "transformer": ToyTransformer(), "text_encoder": ToyText()}
    card = ModelCard("toy", folder, ToyFamily.name, "flow", 32)
    (folder / "scheduler").mkdir(parents=True)
    (folder / SCHEDULER).write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    (folder / SETTINGS).write_text(json.dumps({"rare_token": "<v>", "recommended": {"learning_rate": 1e-3}}))
    ToyFamily(card, modules).save(folder)
    return folder


@register
class ToyFamily:
    name = "toy"
    pipeline_class = "ToyPipeline"
    described = "the toy of the tests"
    parts: Mapping[str, Part] = {
        "vae": Part("toy_family", "ToyAutoencoder", "diffusion_pytorch_model", once=True),
        "transformer": Part("toy_family", "ToyTransformer", "diffusion_pytorch_model"),
        "text_encoder": Part("toy_family", "ToyText", "diffusion_pytorch_model", once=True),
    }
    denoiser_part = "transformer"
    tokenizer_parts: Mapping[str, str] = {}
    samplers: Mapping[str, str] = {"straight": "FlowMatchEulerDiscreteScheduler"}
    layer_groups: Mapping[str, str] = {
        "self-attention": r"\.attn\.",
        "feed-forward": r"\.mlp\.",
        "time": r"^time$|\.ada$",
        "time-embedding": r"^time$",
    }
    adapter_targets: Mapping[str, Sequence[str]] = {
        "attention": ("attn.q", "attn.k", "attn.v", "attn.out"),
        "ff": ("mlp.up", "mlp.down"),
    }
    text_targets: Sequence[str] = ("proj",)
    embedding_keys: Mapping[str, str] = {}
    formats: Sequence[str] = ()
    foreign_arguments: Mapping[str, Any] = {}
    guidance_less: float = 0.0
    precision = "fp32"
    tag = "toy"

    def __init__(self, card: ModelCard, modules: Mapping[str, nn.Module]):
        for module in modules.values():
            module.eval().requires_grad_(False)
        self.card, self.modules = card, dict(modules)
        self.process, self.tokenizers = Flow(), {}

    @classmethod
    def inspect(cls, model: str, folder: Path) -> ModelCard:
        side = read_json(folder / "transformer/config.json")["side"]
        told = settings_of(folder)
        advice, word = told["recommended"], told["rare_token"]
        return ModelCard(model, folder, cls.name, "flow", side * PATCH, advice, word, side_unit=PATCH)

    @classmethod
    def load(cls, card: ModelCard, *, whole: bool = True) -> Self:
        return cls(card, {name: part_class(it).from_pretrained(card.folder / name) for name, it in cls.parts.items()})

    @classmethod
    def without_weights(cls, card: ModelCard) -> Self:
        return cls(card, {name: meta_part(card.folder, name, part) for name, part in cls.parts.items()})

    @property
    def denoiser(self) -> nn.Module:
        return self.modules["transformer"]

    @property
    def text_encoders(self) -> dict[str, Any]:
        return {"text_encoder": self.modules["text_encoder"]}

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        for module in self.modules.values():
            module.to(device)
        return self

    def reduce(self, precision: str) -> None:
        if precision != "fp32":
            raise UserError("the toy computes in float32 alone")

    def fetch(self, *parts: str) -> None:
        """All of it is always there."""

    drop = fetch

    def keep_prompts(self, folder: Path, *, on: Any = None) -> None:
        """It encodes them anew."""

    def checkpoint_gradients(self, on: bool) -> None:
        self.denoiser.recompute = on

    @torch.no_grad()
    def encode_images(self, pixels: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        shades = torch.as_tensor(np.array(pixels)).to(self.device).permute(0, 3, 1, 2) / 127.5 - 1
        latents = torch.einsum("oc,bchw->bohw", self.modules["vae"].mix, F.pixel_unshuffle(shades, PATCH))
        return latents, torch.full_like(latents, 1e-3)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> np.ndarray:
        shades = self.decoded(latents, torch.float32).permute(0, 2, 3, 1).clamp(-1, 1) * 127.5 + 127.5
        return shades.round().byte().cpu().numpy()

    @torch.no_grad()
    def decoded(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        mixed = torch.einsum("oc,bohw->bchw", self.modules["vae"].mix.to(dtype), latents.to(self.device, dtype))
        return F.pixel_shuffle(mixed, PATCH).float()

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        ids = [[_number(word) for word in prompt.split()[:LENGTH]] for prompt in prompts]
        padded = torch.tensor([row + [0] * (LENGTH - len(row)) for row in ids], device=self.device)
        return Conditioning(words=self.text_encoders["text_encoder"](padded), mask=padded > 0)

    def encode_negative(self, prompt: str) -> Conditioning:
        return self.encode_prompts([prompt])

    def count_tokens(self, word: str) -> int:
        return len(word.split())

    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.denoiser(xt, t, cond["words"], cond["mask"])

    @torch.no_grad()
    def draw_latents(
        self,
        cond: Conditioning,
        negative: Conditioning,
        generators: Sequence[torch.Generator],
        *,
        sampler: str,
        steps: int,
        guidance: float,
        resolution: int | None,
        interval: Interval = EVERYWHERE,
    ) -> Tensor:
        """Euler's method from noise to the picture."""
        shape = 3 * PATCH**2, *[(resolution or self.card.resolution) // PATCH] * 2
        x = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(self.device)
        times = torch.linspace(Flow.LAST, 0, steps + 1)
        scales = interval.scales(self.process.noise_to_signal(times).tolist(), guidance)
        for scale, (now, then) in zip(scales, pairwise(times), strict=False):
            s = now.expand(len(x)).to(self.device)
            velocity = self.predict(x, s, cond)
            if scale > 1:
                unguided = self.predict(x, s, negative)
                velocity = unguided + scale * (velocity - unguided)
            x = x + (then - now) * velocity
        return x

    def example_batch(self, count: int, resolution: int, *, encode: bool) -> tuple[Tensor, Tensor, Conditioning]:
        ids = torch.zeros(count, LENGTH, dtype=torch.long)
        words = self.text_encoders["text_encoder"](ids) if encode else torch.empty(count, LENGTH, 16)
        cond = Conditioning(words=words, mask=torch.ones(count, LENGTH, dtype=torch.bool))
        return torch.empty(count, 3 * PATCH**2, *[resolution // PATCH] * 2), torch.rand(count), cond

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        for name, module in self.modules.items():
            module.save_pretrained(folder / name)
        (folder / "scheduler").mkdir(exist_ok=True)
        for file in (SCHEDULER, SETTINGS):
            if not (folder / file).is_file():
                (folder / file).write_bytes((self.card.folder / file).read_bytes())
        kinds = {name: [part.library, part.kind] for name, part in self.parts.items()}
        (folder / INDEX).write_text(json.dumps({"_class_name": self.pipeline_class, **kinds}))

    def lora_name(self, part: str, layer: str) -> str:
        return layer

    def kohya_name(self, part: str, layer: str) -> str:
        raise AssertionError("formats has no kohya")

    def original_weights(self) -> dict[str, Tensor]:
        raise AssertionError("formats has no original")

    def published_as(self) -> tuple[str, str]:
        return "toy", "toy"


def _number(word: str) -> int:
    return 1 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "big") % (WORDS - 1)
