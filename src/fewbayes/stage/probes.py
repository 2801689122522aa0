"""What a model does with fixed inputs: six probes of the corruption stage that need no sampling and no other model.

A `Prober` holds the images, prompts and draws, all pure functions of a seed, so that readings at several steps, of
adapters on and off, or of two models are comparable. Latents go in; one *forward* is one example through the denoiser.

| probe        | input                                         | theory of one image (docs/theory.md)    | paper      |
|--------------|-----------------------------------------------|-----------------------------------------|------------|
| `sigma_1`    | training images, noised                       | retention r, sigma_1                    | -          |
| `from_noise` | noise alone, x_t = b(t) eps                   | the same r and sigma_1                  | Fig. 4     |
| `gain`       | noised training images + a local disturbance  | retention^2 of pass-through 1/alpha_bar | Fig. 5     |
| `losses`     | those of `sigma_1`                            | retention^2                             | -          |
| `blank`      | x_t = 0                                       | 1 - retention times the nearest image   | Fig. 3, 11 |
| `scaled`     | x_t = k x'                                    | 1 + gain (k - sqrt(alpha_bar)) times x' | Fig. 12    |

All inputs lie on the variance-preserving path that belongs to the model's process (x_t over sqrt(a^2 + b^2)), which is
the path of the theory; they leave it where the network is asked. Times are chosen by their noise-to-signal ratio b/a,
so the same questions are put to any process.

The caller puts the model into the state that is asked about: means of the weights, dropout off, adapters on or off
(`adapters_off`), no autocast if small gains matter. Knows a family only as something that predicts, and nothing of
training or of stages.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.process import Process, level_of_step
from fewbayes.errors import UserError
from fewbayes.seeds import generator
from fewbayes.stage.readings import Blank, Losses, Reading, ResidualGain, Scaled, Sigma1

Probe = Literal["sigma_1", "from_noise", "gain", "losses", "blank", "scaled"]
PROBES: tuple[Probe, ...] = get_args(Probe)


class Probed(Protocol):
    """The part of a family that the probes speak to; encoded prompts are passed on unseen, by row."""

    @property
    def process(self) -> Process: ...
    @property
    def device(self) -> torch.device: ...
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning: ...
    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor: ...


USUAL_STEPS, BLANK_STEP, SCALED_STEP = (50, 100, 200, 400, 600), 100, 400
"""Where models are asked, as timesteps of Stable Diffusion's schedule."""


@dataclass(frozen=True)
class ProbeSettings:
    """What is fed to the model. Levels are noise-to-signal ratios b/a; a model is asked at its nearest times.

    levels: of all probes but `blank` and `scaled`; examples: noised pictures per level, spread over the images;
    disturbance: standard deviation of the local noise in units of the noise's; patch: its side as a share of the
    picture's; blank_levels: of `blank`, infinity for the noisiest that has any signal; scaled_level, ks: of `scaled`;
    batch_size: forwards at once.
    """

    levels: tuple[float, ...] = field(default_factory=lambda: tuple(map(level_of_step, USUAL_STEPS)))
    examples: int = 2
    disturbance: float = 1.0
    patch: float = 0.25
    blank_levels: tuple[float, ...] = field(default_factory=lambda: (level_of_step(BLANK_STEP), math.inf))
    scaled_level: float = field(default_factory=lambda: level_of_step(SCALED_STEP))
    ks: tuple[float, ...] = (0.5, 1.0, 1.5)
    batch_size: int = 8
    seed: int = 0


@contextmanager
def adapters_off(*modules: nn.Module) -> Iterator[None]:
    """Inside, the modules compute what the base model computes; for adapters in PEFT's layers, of any library."""
    layers: list[Any] = [layer for module in modules for layer in module.modules() if _is_adapted(layer)]
    before = [bool(layer.disable_adapters) for layer in layers]
    grads = {p: p.requires_grad for layer in layers for p in layer.parameters()}
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer.enable_adapters(not off)
        for parameter, wanted in grads.items():  # enabling asks for gradients as it sees fit
            parameter.requires_grad_(wanted)


def _is_adapted(layer: nn.Module) -> bool:
    return hasattr(layer, "base_layer") and callable(getattr(layer, "enable_adapters", None))


@dataclass(frozen=True)
class _Draws:
    """Examples of one set of images, by timestep and example: noised, disturbed, and the patch of the disturbance."""

    t: Tensor
    x0: Tensor
    eps: Tensor
    noisy: Tensor
    disturbed: Tensor
    patch: Tensor
    rows: list[int]


class Prober:
    """Fixed questions to a model. images: (count, channels, height, width) scaled latents; prompts: one per image.

    others: images that are not trained on, class images or samples of the base model, with their prompts.
    """

    def __init__(
        self,
        family: Probed,
        images: Tensor,
        prompts: Sequence[str],
        *,
        others: Tensor | None = None,
        other_prompts: Sequence[str] = (),
        settings: ProbeSettings | None = None,
    ):
        self.family, self.settings = family, settings or ProbeSettings()
        _check_settings(self.settings)
        self._process = family.process.to("cpu")
        self.times = tuple(map(self._process.time_of, self.settings.levels))
        self._blank_times = tuple(map(self._process.time_of, self.settings.blank_levels))
        self._scaled_time = self._process.time_of(self.settings.scaled_level)
        _check_images("images", images, prompts)
        self.images = images.detach().cpu().float()
        self._prompts = list(dict.fromkeys([*prompts, *other_prompts]))
        self._first = self._prompts.index(prompts[0])
        self._training = self._draw(self.images, prompts, "probe")
        self._others = None
        if others is not None:
            _check_images("others", others, other_prompts)
            self._others = self._draw(others.detach().cpu().float(), other_prompts, "probe others")

    def forwards(self, probes: Collection[Probe] = PROBES) -> int:
        """What `read(probes)` costs, in examples through the denoiser."""
        sets = 1 if self._others is None else 2
        noised = len(self.settings.levels) * self.settings.examples * sets
        return (
            noised * (not {"sigma_1", "gain", "losses"}.isdisjoint(probes))
            + noised * ("gain" in probes)
            + len(self._training.t) * ("from_noise" in probes)
            + len(self.settings.blank_levels) * ("blank" in probes)
            + len(self.settings.ks) * ("scaled" in probes)
        )

    @torch.no_grad()
    def read(self, probes: Collection[Probe] = PROBES) -> Reading:
        """The model as it is now. Probes of the same inputs share their forwards."""
        unknown = set(probes) - set(PROBES)
        if unknown:
            raise UserError(f"there is no probe {', '.join(sorted(unknown))}; there are {', '.join(PROBES)}")
        cond = self.family.encode_prompts(self._prompts)  # anew each time: the text encoder may be trained too
        found = self._around(self._training, probes, cond)
        if self._others is not None:
            found |= {f"others_{name}": value for name, value in self._around(self._others, probes, cond).items()}
        if "from_noise" in probes:
            found["from_noise"] = self._from_noise(self._training, cond)
        if "blank" in probes:
            found["blank"] = self._blank(cond)
        if "scaled" in probes:
            found["scaled"] = self._scaled(cond)
        return Reading(forwards=self.forwards(probes), **found)

    def _draw(self, images: Tensor, prompts: Sequence[str], stream: str) -> _Draws:
        settings = self.settings
        chosen = _spread(len(images), settings.examples)
        drawn = [self._example(images.shape[1:], stream, i) for i in range(settings.examples)]
        eps, delta, patch = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        count = len(self.times)
        t = self._process.times(self.times).repeat_interleave(settings.examples)
        x0, eps, delta, patch = (part.repeat(count, 1, 1, 1) for part in (images[chosen], eps, delta, patch))
        noisy = self._process.noised(x0, eps, t) / self._of(self._process.scale(t, x0.dtype))
        noise_std = self._of((1 - self._process.alpha_bar(t)).sqrt().float())
        rows = [self._prompts.index(prompts[i]) for i in chosen] * count
        return _Draws(t, x0, eps, noisy, noisy + settings.disturbance * noise_std * delta, patch, rows)

    def _example(self, shape: Sequence[int], stream: str, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noise, unit noise within a patch at a random place, and where the patch is."""
        draw = generator(self.settings.seed, stream, index)
        eps, delta = torch.randn(2, *shape, generator=draw)
        height, width = shape[1:]
        side = [max(1, round(self.settings.patch * length)) for length in (height, width)]
        top, left = (torch.rand(2, generator=draw) * torch.tensor([height - side[0] + 1, width - side[1] + 1])).long()
        patch = torch.zeros(1, height, width)
        patch[:, top : top + side[0], left : left + side[1]] = 1
        return eps, delta * patch, patch

    def _denoised(self, preserving: Tensor, t: Tensor, rows: list[int], cond: Conditioning) -> Tensor:
        """x0_hat of x_t on the variance-preserving path, in double precision, on the CPU; latents are small."""
        device, answers = self.family.device, []
        xt = preserving * self._of(self._process.scale(t, preserving.dtype))
        for start in range(0, len(xt), self.settings.batch_size):
            part = slice(start, start + self.settings.batch_size)
            asked = xt[part].to(device), t[part].to(device)
            answers.append(self.family.predict(*asked, cond.rows(rows[part])).detach().cpu().double())
        return self._process.x0(torch.cat(answers), xt.double(), t)

    def _around(self, draws: _Draws, probes: Collection[Probe], cond: Conditioning) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if {"sigma_1", "gain", "losses"}.isdisjoint(probes):
            return found
        clean = self._denoised(draws.noisy, draws.t, draws.rows, cond)
        if "sigma_1" in probes:
            found["sigma_1"] = self._sigma_1(draws, clean)
        if "losses" in probes:
            found["losses"] = self._losses(draws, clean)
        if "gain" in probes:
            found["gain"] = self._gain(draws, self._denoised(draws.disturbed, draws.t, draws.rows, cond) - clean)
        return found

    def _sigma_1(self, draws: _Draws, clean: Tensor) -> Sigma1:
        return self._regression(draws.t, clean, draws.noisy, draws.x0)

    def _from_noise(self, draws: _Draws, cond: Conditioning) -> Sigma1:
        """Around x*, the training image whose noised picture each draw of pure noise is nearest to."""
        alpha_bar = self._alpha_bar(draws.t)
        xt = ((1 - alpha_bar).sqrt() * draws.eps).float()
        noised = alpha_bar.sqrt()[:, None] * self.images  # (draws, images, channels, height, width)
        x_star = self.images[(xt[:, None] - noised).flatten(2).square().sum(2).argmin(1)]
        return self._regression(draws.t, self._denoised(xt, draws.t, draws.rows, cond), xt, x_star)

    def _regression(self, t: Tensor, answer: Tensor, xt: Tensor, x_star: Tensor) -> Sigma1:
        root = self._alpha_bar(t).sqrt()
        deviation = xt - root * x_star
        alpha_bar = tuple(self._process.alpha_bar(self._process.times(self.times)).tolist())
        retention = self._ratios(root * (answer - x_star) * deviation, deviation**2)
        return Sigma1(self.times, alpha_bar, retention)

    def _losses(self, draws: _Draws, clean: Tensor) -> Losses:
        alpha_bar = self._alpha_bar(draws.t)
        error = (clean - draws.x0) ** 2 / ((1 - alpha_bar) / alpha_bar)
        return Losses(self.times, self._ratios(error, draws.eps**2))

    def _gain(self, draws: _Draws, change: Tensor) -> ResidualGain:
        alpha_bar = self._alpha_bar(draws.t)
        delta = (draws.disturbed - draws.noisy).double()
        return ResidualGain(
            self.times,
            relative=self._ratios(alpha_bar * change**2, delta**2),
            retention=self._ratios(alpha_bar.sqrt() * change * delta, delta**2),
            inside=self._ratios(change**2 * draws.patch, change**2),
        )

    def _blank(self, cond: Conditioning) -> Blank:
        t = self._process.times(self._blank_times)
        blank = torch.zeros(len(t), *self.images.shape[1:])
        answers = self._denoised(blank, t, [self._first] * len(t), cond)
        similarity = [[_correlation(answer, image) for image in self.images] for answer in answers]
        like = [self.images[row.index(max(row))] for row in similarity]
        return Blank(
            self._blank_times,
            tuple(tuple(row) for row in similarity),
            scale=tuple(_projection(answer, image) for answer, image in zip(answers, like, strict=True)),
            contrast=tuple(_contrast(answer, image) for answer, image in zip(answers, like, strict=True)),
        )

    def _scaled(self, cond: Conditioning) -> Scaled:
        ks, t = self.settings.ks, self._process.times([self._scaled_time] * len(self.settings.ks))
        image = self.images[0]
        asked = torch.stack([k * image for k in ks]), t
        answers = self._denoised(*asked, [self._first] * len(ks), cond)
        factor = tuple(_projection(answer, image) for answer in answers)
        similarity = tuple(_correlation(answer, image) for answer in answers)
        return Scaled(self._scaled_time, float(self._process.alpha_bar(t[0])), ks, factor, similarity)

    def _alpha_bar(self, t: Tensor) -> Tensor:
        """In double precision, to broadcast over latents."""
        return self._of(self._process.alpha_bar(t))

    def _of(self, factors: Tensor) -> Tensor:
        return factors.view(-1, 1, 1, 1)

    def _ratios(self, over: Tensor, under: Tensor) -> tuple[float, ...]:
        """Sum over sum, by time; 0 where there is nothing under, as in the place of a change that is none."""
        shape = (len(self.times), -1)
        top, bottom = over.double().reshape(shape).sum(1), under.double().reshape(shape).sum(1)
        return tuple(torch.where(bottom > 0, top / bottom, 0).tolist())


def _spread(images: int, examples: int) -> list[int]:
    """Which image each example shows: all of them in turn, or evenly chosen ones where there are too many."""
    return [i * images // examples if images > examples else i % images for i in range(examples)]


def _correlation(answer: Tensor, image: Tensor) -> float:
    """In [-1, 1], the mean of every channel taken out: colour plates are not likeness. 0 if either is flat."""
    a, b = (part.double() - part.double().mean((1, 2), keepdim=True) for part in (answer, image))
    size = float((a**2).sum().sqrt() * (b**2).sum().sqrt())
    return float((a * b).sum()) / size if size > 0 else 0.0


def _projection(answer: Tensor, image: Tensor) -> float:
    image = image.double()
    return float((answer * image).sum() / (image**2).sum())


def _contrast(answer: Tensor, image: Tensor) -> float:
    """Of the deviations from the means of the channels."""
    a, b = (part.double() - part.double().mean((1, 2), keepdim=True) for part in (answer, image))
    return float((a**2).sum().sqrt() / (b**2).sum().sqrt())


def _check_settings(settings: ProbeSettings) -> None:
    if settings.examples < 1 or settings.batch_size < 1 or not settings.levels or not settings.blank_levels:
        raise UserError("the probes need one example, one noise level and a batch of one at least")
    if len(set(settings.ks)) < 2:
        raise UserError(f"ks is {settings.ks}; a slope needs two different factors at least")
    if not 0 < settings.patch <= 1 or not 0 < settings.disturbance < math.inf:
        raise UserError(
            f"patch is {settings.patch} and disturbance {settings.disturbance}; a patch is a share of the side, above "
            "0 and at most 1, and the disturbance is positive"
        )


def _check_images(name: str, images: Tensor, prompts: Sequence[str]) -> None:
    if images.dim() != 4 or len(images) == 0:
        raise UserError(f"{name} have shape {tuple(images.shape)}; latents are (count, channels, height, width)")
    if len(images) != len(prompts):
        raise UserError(f"{len(images)} {name} and {len(prompts)} prompts; give one prompt for each")
