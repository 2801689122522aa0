"""The path from a picture to noise, x_t = a(t) x0 + b(t) eps, and what a network on that path answers.

| paper       | here              | diffusers                      | meaning                                         |
|-------------|-------------------|--------------------------------|-------------------------------------------------|
| x_0         | `x0`              | `pred_original_sample`         | clean latents, (batch, ...)                     |
| x_t         | `xt`              | `noisy_latents`, `sample`      | a(t) x0 + b(t) eps, the same shape              |
| epsilon     | `eps`             | `noise`, "epsilon"             | standard normal noise, the same shape           |
| t           | `t`               | `timesteps`                    | (batch,) times, in whatever unit a process has  |
| alpha-bar_t | `alpha_bar(t)`    | `alphas_cumprod`               | a^2 / (a^2 + b^2), the signal's share of power  |
| (none)      | `noise_to_signal` | `sigmas`                       | b / a, by which times of all processes compare  |

x_t / sqrt(a^2 + b^2) is variance preserving with that alpha_bar, so what the theory says of such paths holds for all.
An answer is linear too, c(t) x0 + d(t) eps: four numbers a time say all, and every conversion follows from them. Knows
nothing of networks, pictures or samplers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, Self

import torch
from torch import Tensor

from fewbayes.errors import UserError

Prediction = Literal["epsilon", "v_prediction", "sample"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")


class Process(ABC):
    """What is known of a diffusion process. t: (batch,) times; the four factors have its shape and the dtype asked."""

    @abstractmethod
    def a(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The factor of the picture in x_t."""

    @abstractmethod
    def b(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The factor of the noise in x_t."""

    @abstractmethod
    def answer(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """c and d: a perfect network answers c x0 + d eps."""

    @abstractmethod
    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) times of training examples, on the CPU."""

    @abstractmethod
    def times(self, values: Sequence[float]) -> Tensor:
        """These times as a tensor of the process's own type; UserError for one that it has not."""

    @abstractmethod
    def time_of(self, noise_to_signal: float) -> float:
        """The time whose b / a is nearest to this one; infinity asks for the noisiest that has any signal."""

    def to(self, device: torch.device | str) -> Self:
        """With its tables, if it has any, on a device."""
        return self

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t, the forward process (section 2.1)."""
        return _over(self.a(t, x0.dtype), x0) * x0 + _over(self.b(t, x0.dtype), x0) * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a network is trained to answer to x_t."""
        c, d = self.answer(t, x0.dtype)
        return _over(c, x0) * x0 + _over(d, x0) * eps

    def x0(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a network's output stands for, in the precision of x_t."""
        _, b, _, d, determinant = self._solved(xt, t)
        return (d * xt - b * output) / determinant

    def eps(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The noise that a network's output stands for, in the precision of x_t."""
        a, _, c, _, determinant = self._solved(xt, t)
        return (a * output - c * xt) / determinant

    def eps_of_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The noise in x_t around these clean latents."""
        return (xt - _over(self.a(t, xt.dtype), xt) * x0) / _over(self.b(t, xt.dtype), xt)

    def scale(self, t: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """sqrt(a^2 + b^2): x_t over it is variance preserving."""
        return (self.a(t, dtype) ** 2 + self.b(t, dtype) ** 2).sqrt()

    def alpha_bar(self, t: Tensor) -> Tensor:
        """a^2 / (a^2 + b^2), in double precision."""
        a, b = self.a(t, torch.float64), self.b(t, torch.float64)
        return a**2 / (a**2 + b**2)

    def noise_to_signal(self, t: Tensor) -> Tensor:
        """b / a, in double precision; infinite where no signal is left."""
        return self.b(t, torch.float64) / self.a(t, torch.float64)

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """Min-SNR weights of the loss by example, (batch,); UserError for a process that they are not meant for."""
        raise UserError(f"snr_gamma is {gamma}, and this model's process is not trained with min-SNR weights")

    def drawing(self, times: str | None, shift: float | None) -> Process:
        """The same with other training times, see `TrainingTimes.read`; None: as they are."""
        if times or shift:
            raise UserError(
                f"training_times is {times} and time_shift {shift}, but they are for flow models, and this one is "
                "trained on the steps of its noise schedule, each as often as any other; leave them out"
            )
        return self

    def _solved(self, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """a, b, c, d and the determinant a d - b c of (x_t, output) = (a x0 + b eps, c x0 + d eps)."""
        a, b = _over(self.a(t, xt.dtype), xt), _over(self.b(t, xt.dtype), xt)
        c, d = (_over(factor, xt) for factor in self.answer(t, xt.dtype))
        return a, b, c, d, a * d - b * c


class Ddpm(Process):
    """a = sqrt(alpha_bar), b = sqrt(1 - alpha_bar) at whole timesteps 0 (clean) to steps - 1, from a table.

    alpha_bars: (steps,), falling; prediction: what the network answers, see PREDICTIONS.
    """

    def __init__(self, alpha_bars: Tensor, prediction: str = "epsilon"):
        if prediction not in PREDICTIONS:
            known = ", ".join(PREDICTIONS)
            raise UserError(f"prediction type {prediction!r} is not known here; known are {known}")
        self.alpha_bars, self.prediction = alpha_bars, prediction

    @property
    def steps(self) -> int:
        return len(self.alpha_bars)

    def _at(self, t: Tensor) -> Tensor:
        return self.alpha_bars.to(t.device)[t]

    def a(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._at(t).to(dtype).sqrt()

    def b(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return (1 - self._at(t).to(dtype)).sqrt()

    def answer(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        if self.prediction == "v_prediction":
            return -self.b(t, dtype), self.a(t, dtype)
        none, whole = torch.zeros_like(t, dtype=dtype), torch.ones_like(t, dtype=dtype)
        return (none, whole) if self.prediction == "epsilon" else (whole, none)

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.steps, (count,), generator=generator)

    def times(self, values: Sequence[float]) -> Tensor:
        for t in values:
            if not (0 <= t < self.steps and t == int(t)):
                raise UserError(f"timestep {t:g} is not of this model's schedule; give 0 to {self.steps - 1}")
        return torch.tensor([int(t) for t in values])

    def time_of(self, noise_to_signal: float) -> int:
        _check_ratio(noise_to_signal)
        usable = torch.arange(self.steps)[self.alpha_bars.cpu() > 0]  # a schedule may end in pure noise
        away = (self.noise_to_signal(usable).log() - math.log(noise_to_signal)).abs()
        return int(usable[-1] if math.isinf(noise_to_signal) else usable[away.argmin()])

    def to(self, device: torch.device | str) -> Ddpm:
        return Ddpm(self.alpha_bars.to(device), self.prediction)

    def scale(self, t: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.ones_like(t, dtype=dtype)

    def alpha_bar(self, t: Tensor) -> Tensor:
        return self._at(t).double()

    # Min-SNR-gamma (arXiv 2303.09556, section 3.4): the error of x0 is weighted by min(SNR, gamma), so that of eps by
    # min(SNR, gamma) / SNR and that of v by min(SNR, gamma) / (SNR + 1).
    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """SNR = alpha_bar / (1 - alpha_bar), the inverse square of b / a. Finite and not negative at SNR 0 too."""
        if not gamma > 0:
            raise UserError(f"snr_gamma is {gamma}; it must be greater than 0")
        snr = self._at(t) / (1 - self._at(t))
        if self.prediction == "epsilon":
            return (gamma / snr).clamp(max=1.0)
        if self.prediction == "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1)
        return snr.clamp(max=gamma)


TIME_DENSITIES = ("uniform", "logit_normal", "mode")


@dataclass(frozen=True)
class TrainingTimes:
    """How a flow model's training draws its times s in (0, 1], in the order of diffusers' training scripts.

    density: of u in [0, 1): "uniform"; "logit_normal", the sigmoid of a normal number of this mean and std; "mode" with
    scale, heavy at its tails (arXiv 2403.03206, section 3.1; a scale below 0 draws the ends, "U-shaped", one above 0
    the middle). steps: k = 1 - floor(steps u) / steps, a row of the scheduler's table; None for k = 1 - u.
    shift: s = shift k / (1 + (shift - 1) k), towards noise above 1. low, high: s is drawn from this range alone, by
    stretching k over it.
    """

    density: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    scale: float = 1.29
    shift: float = 1.0
    steps: int | None = 1000
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.density not in TIME_DENSITIES:
            raise UserError(f"time density {self.density!r} is not known here; known are {', '.join(TIME_DENSITIES)}")
        if not (self.shift > 0 and self.std > 0):
            raise UserError(f"shift is {self.shift} and std {self.std}; both must be greater than 0")
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise UserError(f"the mode density has a scale of {self.scale}; it goes from -1 to {2 / (math.pi - 2):.4f}")
        if not 0 <= self.low < self.high <= 1:
            raise UserError(
                f"times are to be drawn from {self.low} to {self.high}; both lie from 0 to 1, in this order"
            )

    @classmethod
    def read(cls, text: str) -> TrainingTimes:
        """From "uniform", "logit_normal", "logit_normal:MEAN,STD", "mode" or "mode:SCALE"."""
        density, _, numbers = text.partition(":")
        names = {"logit_normal": ("mean", "std"), "mode": ("scale",)}.get(density, ())
        try:
            given = [float(number) for number in numbers.split(",") if number]
            return replace(cls(density), **dict(zip(names, given, strict=bool(given))))
        except (UserError, ValueError) as error:
            known = "uniform, logit_normal, logit_normal:MEAN,STD, mode or mode:SCALE"
            raise UserError(f"training_times is {text!r}; it must be {known} ({error})") from error

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) times on the CPU."""
        u = self._u(count, generator)
        k = (self.steps - (self.steps * u).floor().clamp(0, self.steps - 1)) / self.steps if self.steps else 1 - u
        low, high = (_shifted(s, 1 / self.shift) for s in (self.low, self.high))
        return _shifted(low + (high - low) * k, self.shift)

    def _u(self, count: int, generator: torch.Generator) -> Tensor:
        if self.density == "logit_normal":
            return torch.normal(self.mean, self.std, (count,), generator=generator).sigmoid()
        u = torch.rand(count, generator=generator)
        if self.density == "mode":
            return 1 - u - self.scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
        return u


class Flow(Process):
    """The straight path of rectified flow (arXiv 2209.03003): a = 1 - s, b = s, answered by the velocity eps - x0.

    Times are s in (0, 1): x_t is nearly clean at 0 and pure noise at 1, which has no ratio of noise to signal.
    training: how training draws its times.
    """

    LAST = 0.999
    """The noisiest time that probes ask for, as Stable Diffusion's last step some signal is left in it."""

    prediction = "flow"

    def __init__(self, training: TrainingTimes | None = None):
        self.training = training or TrainingTimes()

    def a(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return 1 - t.to(dtype)

    def b(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return t.to(dtype)

    def answer(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=dtype)
        return -one, one

    def drawing(self, times: str | None, shift: float | None) -> Flow:
        mine = self.training
        found = TrainingTimes.read(times) if times else mine
        return Flow(replace(found, shift=mine.shift if shift is None else shift, steps=mine.steps))

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        return self.training.draw(count, generator)

    def times(self, values: Sequence[float]) -> Tensor:
        for s in values:
            if not 0 < s < 1:
                raise UserError(f"time {s:g} does not lie between 0 (clean) and 1 (noise)")
        return torch.tensor(values, dtype=torch.float64)

    def time_of(self, noise_to_signal: float) -> float:
        _check_ratio(noise_to_signal)
        return min(1 / (1 + 1 / noise_to_signal), self.LAST)

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        raise UserError(
            f"snr_gamma is {gamma}, but min-SNR weights are made for eps and v of a schedule: a flow model's velocity "
            "weighs its times already, and its training script has no such weights; leave snr_gamma out"
        )


def _shifted(k: Any, shift: float) -> Any:
    """The time at a resolution whose noise is `shift` times as hard to see (arXiv 2403.03206, Eq. 23)."""
    return shift * k / (1 + (shift - 1) * k)


def _over(factor: Tensor, like: Tensor) -> Tensor:
    """One factor an example, shaped to broadcast over `like`."""
    return factor.view(-1, *[1] * (like.dim() - 1))


def _check_ratio(noise_to_signal: float) -> None:
    if not noise_to_signal > 0:
        raise UserError(f"a noise-to-signal ratio is {noise_to_signal}; it must be greater than 0")


def betas(schedule: str = "scaled_linear", start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> Tensor:
    """Variances added per step, shape (steps,); the defaults are Stable Diffusion's."""
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    if schedule == "squaredcos_cap_v2":
        at = torch.arange(steps + 1, dtype=torch.float64) / steps
        signal = torch.cos((at + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - signal[1:] / signal[:-1]).clamp(max=0.999).float()
    raise UserError(f"beta schedule {schedule!r} is not known here; known are {', '.join(BETA_SCHEDULES)}")


def alpha_bar_of(betas: Tensor, *, zero_terminal_snr: bool = False) -> Tensor:
    """Cumulative product of 1 - beta, shape (steps,), falling from nearly 1 towards 0.

    `zero_terminal_snr` shifts and scales its square root so that the last entry is exactly 0 (arXiv 2305.08891).
    """
    alpha_bar = torch.cumprod(1.0 - betas, dim=0)
    if not zero_terminal_snr:
        return alpha_bar
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@cache
def _stable_diffusion() -> Ddpm:
    return Ddpm(alpha_bar_of(betas()))


def level_of_step(step: int) -> float:
    """b / a at a timestep of Stable Diffusion's schedule, by which the paper names its times."""
    return float(_stable_diffusion().noise_to_signal(torch.tensor(step)))
