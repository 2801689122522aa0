"""What a model does with fixed inputs: seven probes of the corruption stage that need no sampling and no other model.

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
| `guided`     | those of `sigma_1`, and of `gain` if asked,   | r_u + guidance (r_c - r_u)              | -          |
|              | without a prompt too                          |                                         |            |

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
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor, nn

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.guidance import EVERYWHERE, Interval, guided
from fewbayes.diffusion.process import Process, level_of_step
from fewbayes.errors import UserError
from fewbayes.seeds import generator
from fewbayes.stage.readings import Answer, Blank, Guided, Losses, Reading, ResidualGain, Scaled, Sigma1

Probe = Literal["sigma_1", "from_noise", "gain", "losses", "blank", "scaled", "guided"]
PROBES: tuple[Probe, ...] = get_args(Probe)


class Probed(Protocol):
    """The part of a family that the probes speak to; encoded prompts are passed on unseen, by row."""

    @property
    def process(self) -> Process: ...
    @property
    def device(self) -> torch.device: ...
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning: ...
    def encode_negative(self, prompt: str) -> Conditioning: ...
    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor: ...


USUAL_STEPS, BLANK_STEP, SCALED_STEP = (50, 100, 200, 400, 600), 100, 400
"""Where models are asked, as timesteps of Stable Diffusion's schedule."""


@dataclass(frozen=True)
class ProbeSettings:
    """What is fed to the model. Levels are noise-to-signal ratios b/a; a model is asked at its nearest times.

    levels: of all probes but `blank` and `scaled`; examples: noised pictures per level, spread over the images;
    disturbance: standard deviation of the local noise in units of the noise's; patch: its side as a share of the
    picture's; blank_levels: of `blank`, infinity for the noisiest that has any signal; scaled_level, ks: of `scaled`;
    guidance, interval, negative_prompt: of the sampler whose answers `guided` looks at; guided_levels: those of
    `levels` that it asks, None for all; guided_examples: so many of `examples`; batch_size: forwards at once;
    prompts_change: whether text encoders are trained between readings, so that prompts are encoded for each anew.
    """

    levels: tuple[float, ...] = field(default_factory=lambda: tuple(map(level_of_step, USUAL_STEPS)))
    examples: int = 2
    disturbance: float = 1.0
    patch: float = 0.25
    blank_levels: tuple[float, ...] = field(default_factory=lambda: (level_of_step(BLANK_STEP), math.inf))
    scaled_level: float = field(default_factory=lambda: level_of_step(SCALED_STEP))
    ks: tuple[float, ...] = (0.5, 1.0, 1.5)
    guidance: float = 7.5
    interval: Interval = EVERYWHERE
    negative_prompt: str = ""
    guided_levels: tuple[float, ...] | None = None
    guided_examples: int | None = None
    batch_size: int = 8
    prompts_change: bool = True
    seed: int = 0


@contextmanager
def adapters_off(*modules: nn.Module) -> Iterator[None]:
    """Inside, the modules compute what the base model computes; for adapters in PEFT's layers, of any library."""
    layers: list[Any] = [
        layer
        for module in modules
        for layer in module.modules()
        if hasattr(layer, "base_layer") and callable(getattr(layer, "enable_adapters", None))
    ]
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


class _Question(NamedTuple):
    """Inputs on the variance-preserving path, their times, and the rows of the conditioning that they go with."""

    xt: Tensor
    t: Tensor
    rows: list[int]


@dataclass(frozen=True)
class _Draws:
    """Examples of one set of images, by time and example: noised, disturbed, and the patch of the disturbance."""

    times: tuple[float, ...]
    t: Tensor
    x0: Tensor
    eps: Tensor
    noisy: Tensor
    disturbed: Tensor
    patch: Tensor
    rows: list[int]

    def chosen(self, times: Collection[float], examples: int) -> tuple[list[int], _Draws]:
        """The first `examples` of each of these times, and which they are."""
        each = len(self.rows) // len(self.times)
        at = [i for i in range(len(self.rows)) if self.times[i // each] in times and i % each < examples]
        kept = tuple(time for time in self.times if time in times)
        x0, eps, noisy, disturbed = self.x0[at], self.eps[at], self.noisy[at], self.disturbed[at]
        return at, _Draws(kept, self.t[at], x0, eps, noisy, disturbed, self.patch[at], [self.rows[i] for i in at])


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
        self._encoded: dict[bool, Conditioning] = {}
        self._training = self._draw(self.images, prompts, "probe")
        levels, most = self.settings.guided_levels or self.settings.levels, self.settings.guided_examples
        asked = [self._process.time_of(level) for level in levels]
        self._chosen, self._guided = self._training.chosen(asked, most or self.settings.examples)
        self._others = None
        if others is not None:
            _check_images("others", others, other_prompts)
            self._others = self._draw(others.detach().cpu().float(), other_prompts, "probe others")

    def forwards(self, probes: Collection[Probe] = PROBES) -> int:
        """What `read(probes)` costs, in examples through the denoiser."""
        return sum(len(question.rows) for question in self._questions(probes).values())

    @torch.no_grad()
    def read(self, probes: Collection[Probe] = PROBES) -> Reading:
        """The model as it is now. Probes of the same inputs share their forwards."""
        unknown = set(probes) - set(PROBES)
        if unknown:
            raise UserError(f"there is no probe {', '.join(sorted(unknown))}; there are {', '.join(PROBES)}")
        answers = self._answers(self._questions(probes), self._conditioning("guided" in probes))
        found = self._around(self._training, "training", probes, answers)
        if self._others is not None:
            others = self._around(self._others, "others", probes, answers)
            found |= {f"others_{name}": value for name, value in others.items()}
        if "guided" in probes:
            found["guided"] = self._guidance(answers)
        if "from_noise" in probes:
            found["from_noise"] = self._from_noise(self._training, answers["from_noise"])
        if "blank" in probes:
            found["blank"] = self._blank(answers["blank"])
        if "scaled" in probes:
            found["scaled"] = self._scaled(answers["scaled"])
        return Reading(forwards=self.forwards(probes), **found)

    def _conditioning(self, guided: bool) -> Conditioning:
        """Every prompt, and what guidance leads away from as the last row if it is asked for."""
        if self.settings.prompts_change or guided not in self._encoded:
            cond = self.family.encode_prompts(self._prompts)
            none = self.family.encode_negative(self.settings.negative_prompt) if guided else None
            self._encoded[guided] = cond.joined(none) if none is not None else cond
        return self._encoded[guided]

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
        return _Draws(self.times, t, x0, eps, noisy, noisy + settings.disturbance * noise_std * delta, patch, rows)

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

    def _questions(self, probes: Collection[Probe]) -> dict[str, _Question]:
        """Everything that is put to the model, by name; "guided" is put to the unconditional branch."""
        asked: dict[str, _Question] = {}
        disturbed = "gain" in probes
        for name, draws in (("training", self._training), ("others", self._others)):
            around = not {"sigma_1", "gain", "losses"}.isdisjoint(probes)
            if draws is not None and (around or (name == "training" and "guided" in probes)):
                asked[name] = _Question(draws.noisy, draws.t, draws.rows)
            if draws is not None and disturbed:
                asked[f"{name} disturbed"] = _Question(draws.disturbed, draws.t, draws.rows)
        if "guided" in probes:
            its, none = self._guided, [len(self._prompts)] * len(self._chosen)
            asked["guided"] = _Question(its.noisy, its.t, none)
            if disturbed:
                asked["guided disturbed"] = _Question(its.disturbed, its.t, none)
        if "from_noise" in probes:
            asked["from_noise"] = _Question(self._only_noise(), self._training.t, self._training.rows)
        blank, ks, first = self._process.times(self._blank_times), self.settings.ks, self._first
        if "blank" in probes:
            asked["blank"] = _Question(torch.zeros(len(blank), *self.images.shape[1:]), blank, [first] * len(blank))
        if "scaled" in probes:
            scaled = torch.stack([k * self.images[0] for k in ks])
            asked["scaled"] = _Question(scaled, self._process.times([self._scaled_time] * len(ks)), [first] * len(ks))
        return asked

    def _answers(self, asked: dict[str, _Question], cond: Conditioning) -> dict[str, Tensor]:
        """x0_hat of each question, in double precision, on the CPU; latents are small. Batches know no borders."""
        if not asked:
            return {}
        device, found = self.family.device, []
        preserving, t = (torch.cat(parts) for parts in zip(*((q.xt, q.t) for q in asked.values()), strict=True))
        rows = [row for question in asked.values() for row in question.rows]
        xt = preserving * self._of(self._process.scale(t, preserving.dtype))
        for start in range(0, len(xt), self.settings.batch_size):
            part = slice(start, start + self.settings.batch_size)
            put = xt[part].to(device), t[part].to(device)
            found.append(self.family.predict(*put, cond.rows(rows[part])).detach().cpu().double())
        answers = self._process.x0(torch.cat(found), xt.double(), t)
        return dict(zip(asked, answers.split([len(question.rows) for question in asked.values()]), strict=True))

    def _around(
        self, draws: _Draws, name: str, probes: Collection[Probe], answers: dict[str, Tensor]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "sigma_1" in probes:
            found["sigma_1"] = self._regression(draws, answers[name], draws.noisy, draws.x0)
        if "losses" in probes:
            found["losses"] = Losses(draws.times, self._losses(draws, answers[name]))
        if "gain" in probes:
            found["gain"] = self._gain(draws, answers[f"{name} disturbed"] - answers[name])
        return found

    def _only_noise(self) -> Tensor:
        return ((1 - self._alpha_bar(self._training.t)).sqrt() * self._training.eps).float()

    def _from_noise(self, draws: _Draws, answer: Tensor) -> Sigma1:
        """Around x*, the training image whose noised picture each draw of pure noise is nearest to."""
        xt = self._only_noise()
        noised = self._alpha_bar(draws.t).sqrt()[:, None] * self.images  # (draws, images, channels, height, width)
        x_star = self.images[(xt[:, None] - noised).flatten(2).square().sum(2).argmin(1)]
        return self._regression(draws, answer, xt, x_star)

    def _regression(self, draws: _Draws, answer: Tensor, xt: Tensor, x_star: Tensor) -> Sigma1:
        root = self._alpha_bar(draws.t).sqrt()
        deviation = xt - root * x_star
        alpha_bar = tuple(self._process.alpha_bar(self._process.times(draws.times)).tolist())
        retention = _ratios(root * (answer - x_star) * deviation, deviation**2, draws.times)
        return Sigma1(draws.times, alpha_bar, retention)

    def _losses(self, draws: _Draws, clean: Tensor) -> tuple[float, ...]:
        alpha_bar = self._alpha_bar(draws.t)
        error = (clean - draws.x0) ** 2 / ((1 - alpha_bar) / alpha_bar)
        return _ratios(error, draws.eps**2, draws.times)

    def _gain(self, draws: _Draws, change: Tensor) -> ResidualGain:
        alpha_bar = self._alpha_bar(draws.t)
        delta = (draws.disturbed - draws.noisy).double()
        return ResidualGain(
            draws.times,
            relative=_ratios(alpha_bar * change**2, delta**2, draws.times),
            retention=_ratios(alpha_bar.sqrt() * change * delta, delta**2, draws.times),
            inside=_ratios(change**2 * draws.patch, change**2, draws.times),
        )

    def _guidance(self, answers: dict[str, Tensor]) -> Guided:
        """Both branches at the same inputs, and what the sampler makes of them."""
        draws, at = self._guided, self._chosen
        used = self.settings.interval.scales(self._process.noise_to_signal(draws.t).tolist(), self.settings.guidance)
        scale = self._of(torch.tensor(used, dtype=torch.float64))

        def told(conditional: Tensor, unconditional: Tensor) -> list[Tensor]:
            return [conditional, unconditional, guided(conditional, unconditional, scale)]

        clean = told(answers["training"][at], answers["guided"])
        changes = [None] * 3
        if "guided disturbed" in answers:
            disturbed = told(answers["training disturbed"][at], answers["guided disturbed"])
            changes = [there - here for there, here in zip(disturbed, clean, strict=True)]
        branches = [
            Answer(
                self._regression(draws, answer, draws.noisy, draws.x0).retention,
                self._losses(draws, answer),
                None if change is None else self._gain(draws, change).relative,
            )
            for answer, change in zip(clean, changes, strict=True)
        ]
        return Guided(draws.times, tuple(used[:: len(used) // len(draws.times)]), *branches)

    def _blank(self, answers: Tensor) -> Blank:
        similarity = [[_correlation(answer, image) for image in self.images] for answer in answers]
        like = [self.images[row.index(max(row))] for row in similarity]
        return Blank(
            self._blank_times,
            tuple(tuple(row) for row in similarity),
            scale=tuple(_projection(answer, image) for answer, image in zip(answers, like, strict=True)),
            contrast=tuple(
                float((_centred(answer) ** 2).sum().sqrt() / (_centred(image) ** 2).sum().sqrt())
                for answer, image in zip(answers, like, strict=True)
            ),
        )

    def _scaled(self, answers: Tensor) -> Scaled:
        factor = tuple(_projection(answer, self.images[0]) for answer in answers)
        similarity = tuple(_correlation(answer, self.images[0]) for answer in answers)
        alpha_bar = float(self._process.alpha_bar(self._process.times([self._scaled_time])))
        return Scaled(self._scaled_time, alpha_bar, self.settings.ks, factor, similarity)

    def _alpha_bar(self, t: Tensor) -> Tensor:
        """In double precision, to broadcast over latents."""
        return self._of(self._process.alpha_bar(t))

    def _of(self, factors: Tensor) -> Tensor:
        return factors.view(-1, 1, 1, 1)


def _ratios(over: Tensor, under: Tensor, times: Sequence[float]) -> tuple[float, ...]:
    """Sum over sum, by time; 0 where there is nothing under, as in the place of a change that is none."""
    shape = (len(times), -1)
    top, bottom = over.double().reshape(shape).sum(1), under.double().reshape(shape).sum(1)
    return tuple(torch.where(bottom > 0, top / bottom, 0).tolist())


def _spread(images: int, examples: int) -> list[int]:
    """Which image each example shows: all of them in turn, or evenly chosen ones where there are too many."""
    return [i * images // examples if images > examples else i % images for i in range(examples)]


def _correlation(answer: Tensor, image: Tensor) -> float:
    """In [-1, 1], the mean of every channel taken out: colour plates are not likeness. 0 if either is flat."""
    a, b = _centred(answer), _centred(image)
    size = float((a**2).sum().sqrt() * (b**2).sum().sqrt())
    return float((a * b).sum()) / size if size > 0 else 0.0


def _projection(answer: Tensor, image: Tensor) -> float:
    image = image.double()
    return float((answer * image).sum() / (image**2).sum())


def _centred(part: Tensor) -> Tensor:
    return part.double() - part.double().mean((1, 2), keepdim=True)


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
