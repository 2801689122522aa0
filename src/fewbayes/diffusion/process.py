"""The diffusion noise schedule and the conversions between its three ways of writing one prediction.

Legend (paper symbol, name here, name in diffusers):

| paper          | here        | diffusers                      | meaning                                            |
|----------------|-------------|--------------------------------|----------------------------------------------------|
| x_0            | `x0`        | `pred_original_sample`         | clean latents                                      |
| x_t            | `xt`        | `noisy_latents`, `sample`      | sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps   |
| epsilon        | `eps`       | `noise`, "epsilon"             | standard normal noise                              |
| t              | `t`         | `timesteps`                    | integer in 0 .. steps-1, 0 is the cleanest         |
| alpha-bar_t    | `alpha_bar` | `alphas_cumprod`               | share of the signal's variance that is left        |
| (none)         | `v`         | "v_prediction"                 | sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x0   |

`alpha_bar` is always the whole table of shape (steps,); `t` picks from it. Shapes: x0, eps, v, xt are (batch, ...),
t is (batch,). Knows nothing of networks, images or samplers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fewbayes.errors import UserError

Prediction = Literal["epsilon", "v_prediction", "sample"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")


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


def _signal_and_noise(alpha_bar: Tensor, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to broadcast over `like`."""
    at = alpha_bar.to(like.device)[t].to(like.dtype).view(-1, *[1] * (like.dim() - 1))
    return at.sqrt(), (1 - at).sqrt()


# The forward process (section 2.1): q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I).
def add_noise(x0: Tensor, eps: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t of the same shape as x0."""
    signal, noise = _signal_and_noise(alpha_bar, t, x0)
    return signal * x0 + noise * eps


def x0_from_eps(xt: Tensor, eps: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
    signal, noise = _signal_and_noise(alpha_bar, t, xt)
    return (xt - noise * eps) / signal


def eps_from_x0(xt: Tensor, x0: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
    signal, noise = _signal_and_noise(alpha_bar, t, xt)
    return (xt - signal * x0) / noise


def v_from_x0_eps(x0: Tensor, eps: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
    signal, noise = _signal_and_noise(alpha_bar, t, x0)
    return signal * eps - noise * x0


def x0_from_v(xt: Tensor, v: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
    signal, noise = _signal_and_noise(alpha_bar, t, xt)
    return signal * xt - noise * v


def eps_from_v(xt: Tensor, v: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
    signal, noise = _signal_and_noise(alpha_bar, t, xt)
    return noise * xt + signal * v


def loss_target(prediction: str, x0: Tensor, eps: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
    """What a network with this prediction type is trained to return for x_t."""
    if prediction == "epsilon":
        return eps
    if prediction == "v_prediction":
        return v_from_x0_eps(x0, eps, t, alpha_bar)
    if prediction == "sample":
        return x0
    raise UserError(f"prediction type {prediction!r} is not known here; known are {', '.join(PREDICTIONS)}")


def to_x0(prediction: str, output: Tensor, xt: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean latents that a network's raw output stands for."""
    if prediction == "epsilon":
        return x0_from_eps(xt, output, t, alpha_bar)
    if prediction == "v_prediction":
        return x0_from_v(xt, output, t, alpha_bar)
    if prediction == "sample":
        return output
    raise UserError(f"prediction type {prediction!r} is not known here; known are {', '.join(PREDICTIONS)}")


def to_eps(prediction: str, output: Tensor, xt: Tensor, t: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that a network's raw output stands for."""
    if prediction == "epsilon":
        return output
    if prediction == "v_prediction":
        return eps_from_v(xt, output, t, alpha_bar)
    if prediction == "sample":
        return eps_from_x0(xt, output, t, alpha_bar)
    raise UserError(f"prediction type {prediction!r} is not known here; known are {', '.join(PREDICTIONS)}")
