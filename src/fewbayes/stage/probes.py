"""What a model does with fixed inputs: six probes of the corruption stage that need no sampling and no other model.

A `Prober` holds the images, prompts and draws, all pure functions of a seed, so that readings at several steps, of
adapters on and off, or of two models are comparable. Latents go in; one *forward* is one example through the denoiser.

| probe        | input                                         | theory of one image (docs/theory.md)    | paper      |
|--------------|-----------------------------------------------|-----------------------------------------|------------|
| `sigma_1`    | training images, noised                       | retention r, sigma_1                    | -          |
| `from_noise` | noise alone, x_t = noise_std(t) eps           | the same r and sigma_1                  | Fig. 4     |
| `gain`       | noised training images + a local disturbance  | retention^2 of pass-through 1/alpha_bar | Fig. 5     |
| `losses`     | those of `sigma_1`                            | retention^2                             | -          |
| `blank`      | x_t = 0                                       | 1 - retention times the nearest image   | Fig. 3, 11 |
| `scaled`     | x_t = k x'                                    | 1 + gain (k - sqrt(alpha_bar)) times x' | Fig. 12    |

The caller puts the model into the state that is asked about: means of the weights, dropout off, adapters on or off
(`adapters_off`), no autocast if small gains matter. Knows a family only as something that predicts, and nothing of
training or of stages.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from fewbayes.diffusion.process import add_noise, to_x0
from fewbayes.errors import UserError
from fewbayes.seeds import generator
from fewbayes.stage.readings import Blank, Losses, Reading, ResidualGain, Scaled, Sigma1

Probe = Literal["sigma_1", "from_noise", "gain", "losses", "blank", "scaled"]
PROBES: tuple[Probe, ...] = get_args(Probe)


class Probed(Protocol):
    """The part of a family that the probes speak to; prompt embeddings are passed on unseen, by row."""

    @property
    def alpha_bar(self) -> Tensor: ...
    @property
    def prediction_type(self) -> str: ...
    def encode_prompts(self, prompts: Sequence[str]) -> Any: ...
    def predict(self, xt: Tensor, t: Tensor, cond: Any) -> Tensor: ...


@dataclass(frozen=True)
class ProbeSettings:
    """What is fed to the model; the defaults suit a schedule of 1000 steps.

    timesteps: of all probes but `blank` and `scaled`; examples: noised pictures per timestep, spread over the images;
    disturbance: standard deviation of the local noise in units of noise_std(t); patch: its side as a share of the
    picture's; blank_timesteps: of `blank`; scaled_timestep, ks: of `scaled`; batch_size: forwards at once.
    """

    timesteps: tuple[int, ...] = (50, 100, 200, 400, 600)
    examples: int = 2
    disturbance: float = 1.0
    patch: float = 0.25
    blank_timesteps: tuple[int, ...] = (100, 999)
    scaled_timestep: int = 400
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
        self._alpha_bar = family.alpha_bar.detach().cpu().double()
        _check_settings(self.settings, self._alpha_bar, family.prediction_type)
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
        noised = len(self.settings.timesteps) * self.settings.examples * sets
        return (
            noised * (not {"sigma_1", "gain", "losses"}.isdisjoint(probes))
            + noised * ("gain" in probes)
            + len(self._training.t) * ("from_noise" in probes)
            + len(self.settings.blank_timesteps) * ("blank" in probes)
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
        count = len(settings.timesteps)
        t = torch.tensor(settings.timesteps).repeat_interleave(settings.examples)
        x0, eps, delta, patch = (part.repeat(count, 1, 1, 1) for part in (images[chosen], eps, delta, patch))
        noisy = add_noise(x0, eps, t, self._alpha_bar)
        noise_std = (1 - self._alpha_bar[t]).sqrt().float().view(-1, 1, 1, 1)
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

    def _denoised(self, xt: Tensor, t: Tensor, rows: list[int], cond: Any) -> Tensor:
        """x0_hat in double precision, on the CPU; latents are small."""
        device, answers = self.family.alpha_bar.device, []
        for start in range(0, len(xt), self.settings.batch_size):
            part = slice(start, start + self.settings.batch_size)
            asked = xt[part].to(device), t[part].to(device)
            answers.append(self.family.predict(*asked, cond[rows[part]]).detach().cpu().double())
        return to_x0(self.family.prediction_type, torch.cat(answers), xt.double(), t, self._alpha_bar)

    def _around(self, draws: _Draws, probes: Collection[Probe], cond: Any) -> dict[str, Any]:
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

    def _from_noise(self, draws: _Draws, cond: Any) -> Sigma1:
        """Around x*, the training image whose noised picture each draw of pure noise is nearest to."""
        alpha_bar = self._alpha_bar[draws.t].view(-1, 1, 1, 1)
        xt = ((1 - alpha_bar).sqrt() * draws.eps).float()
        noised = alpha_bar.sqrt()[:, None] * self.images  # (draws, images, channels, height, width)
        x_star = self.images[(xt[:, None] - noised).flatten(2).square().sum(2).argmin(1)]
        return self._regression(draws.t, self._denoised(xt, draws.t, draws.rows, cond), xt, x_star)

    def _regression(self, t: Tensor, answer: Tensor, xt: Tensor, x_star: Tensor) -> Sigma1:
        root = self._alpha_bar[t].sqrt().view(-1, 1, 1, 1)
        deviation = xt - root * x_star
        levels = tuple(float(a) for a in self._alpha_bar[list(self.settings.timesteps)])
        retention = self._ratios(root * (answer - x_star) * deviation, deviation**2)
        return Sigma1(self.settings.timesteps, levels, retention)

    def _losses(self, draws: _Draws, clean: Tensor) -> Losses:
        error = (clean - draws.x0) ** 2 / self._noise_to_signal(draws.t)
        return Losses(self.settings.timesteps, self._ratios(error, draws.eps**2))

    def _gain(self, draws: _Draws, change: Tensor) -> ResidualGain:
        alpha_bar = self._alpha_bar[draws.t].view(-1, 1, 1, 1)
        delta = (draws.disturbed - draws.noisy).double()
        return ResidualGain(
            self.settings.timesteps,
            relative=self._ratios(alpha_bar * change**2, delta**2),
            retention=self._ratios(alpha_bar.sqrt() * change * delta, delta**2),
            inside=self._ratios(change**2 * draws.patch, change**2),
        )

    def _blank(self, cond: Any) -> Blank:
        t = torch.tensor(self.settings.blank_timesteps)
        blank = torch.zeros(len(t), *self.images.shape[1:])
        answers = self._denoised(blank, t, [self._first] * len(t), cond)
        similarity = [[_correlation(answer, image) for image in self.images] for answer in answers]
        like = [self.images[row.index(max(row))] for row in similarity]
        return Blank(
            self.settings.blank_timesteps,
            tuple(tuple(row) for row in similarity),
            scale=tuple(_projection(answer, image) for answer, image in zip(answers, like, strict=True)),
            contrast=tuple(_contrast(answer, image) for answer, image in zip(answers, like, strict=True)),
        )

    def _scaled(self, cond: Any) -> Scaled:
        t, ks = self.settings.scaled_timestep, self.settings.ks
        image = self.images[0]
        asked = torch.stack([k * image for k in ks]), torch.full((len(ks),), t)
        answers = self._denoised(*asked, [self._first] * len(ks), cond)
        factor = tuple(_projection(answer, image) for answer in answers)
        similarity = tuple(_correlation(answer, image) for answer in answers)
        return Scaled(t, float(self._alpha_bar[t]), ks, factor, similarity)

    def _noise_to_signal(self, t: Tensor) -> Tensor:
        alpha_bar = self._alpha_bar[t].view(-1, 1, 1, 1)
        return (1 - alpha_bar) / alpha_bar

    def _ratios(self, over: Tensor, under: Tensor) -> tuple[float, ...]:
        """Sum over sum, by timestep; 0 where there is nothing under, as in the place of a change that is none."""
        shape = (len(self.settings.timesteps), -1)
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


def _check_settings(settings: ProbeSettings, alpha_bar: Tensor, prediction_type: str) -> None:
    noised = (*settings.timesteps, settings.scaled_timestep)
    for t in (*noised, *settings.blank_timesteps):
        if not 0 <= t < len(alpha_bar):
            raise UserError(f"timestep {t} is not of this model's schedule; give 0 to {len(alpha_bar) - 1}")
        if alpha_bar[t] == 0 and (t in noised or prediction_type == "epsilon"):
            raise UserError(f"timestep {t} is pure noise in this model's schedule; give a smaller one")
    if settings.examples < 1 or settings.batch_size < 1 or not settings.timesteps or not settings.blank_timesteps:
        raise UserError("the probes need one example, one timestep and a batch of one at least")
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
