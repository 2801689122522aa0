"""What fine-tuning minimises: the denoising error, with or without prior preservation.

The Kullback-Leibler part of Eq. 3 is not here: it has a closed-form gradient and belongs to the posterior. Knows a
family only as something that predicts (`predict`, `alpha_bar`, `prediction_type`); knows nothing of optimizers, of
where noise and timesteps come from, or of random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.process import PREDICTIONS, add_noise, loss_target
from fewbayes.errors import UserError


class Denoises(Protocol):
    """The part of a family that the objective speaks to."""

    @property
    def alpha_bar(self) -> Tensor: ...
    @property
    def prediction_type(self) -> str: ...
    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """One micro-batch, everything random already drawn.

    x0: (batch, channels, height, width) scaled latents; eps: the same shape; t: (batch,) integers;
    cond: the prompts, one row each.
    """

    x0: Tensor
    eps: Tensor
    t: Tensor
    cond: Conditioning

    def joined(self, other: Batch) -> Batch:
        return Batch(
            torch.cat([self.x0, other.x0]),
            torch.cat([self.eps, other.eps]),
            torch.cat([self.t, other.t]),
            self.cond.joined(other.cond),
        )


# Denoising error, the first term of Eq. 3: || eps_theta(x_t, t, c) - eps ||^2, the mean over the elements.
def denoising_errors(family: Denoises, batch: Batch) -> Tensor:
    """Mean squared error of each example, shape (batch,), in float32 whatever the network computes in."""
    xt = add_noise(batch.x0, batch.eps, batch.t, family.alpha_bar)
    target = loss_target(family.prediction_type, batch.x0, batch.eps, batch.t, family.alpha_bar)
    output = family.predict(xt, batch.t, batch.cond)
    return F.mse_loss(output.float(), target.float(), reduction="none").flatten(1).mean(1)


def diffusion_loss(family: Denoises, batch: Batch, snr_gamma: float | None = None) -> Tensor:
    """The denoising error averaged over the batch; a scalar. snr_gamma: with min-SNR weights, None for none."""
    return _weighted_errors(family, batch, snr_gamma).mean()


# DreamBooth's objective: instance loss + prior_loss_weight x class loss, the two halves of one forward pass, so that
# both halves see the same draw of random weights.
def preserved_loss(
    family: Denoises, instance: Batch, prior: Batch, prior_loss_weight: float, snr_gamma: float | None = None
) -> Tensor:
    """The scalar loss with prior preservation; `prior` are class images under the class prompt.

    Every example is weighted by its own timestep. The public scripts weight the instance loss by the timesteps of both
    halves at once, which for a batch of one multiplies it by the mean of two weights.
    """
    errors = _weighted_errors(family, instance.joined(prior), snr_gamma)
    count = len(instance.t)
    return errors[:count].mean() + prior_loss_weight * errors[count:].mean()


def _weighted_errors(family: Denoises, batch: Batch, snr_gamma: float | None) -> Tensor:
    errors = denoising_errors(family, batch)
    if snr_gamma is None:
        return errors
    return errors * min_snr_weight(family.prediction_type, batch.t, family.alpha_bar, snr_gamma).to(errors.device)


# Min-SNR-gamma (arXiv 2303.09556, section 3.4): the error of x0 is weighted by min(SNR, gamma), so that of eps by
# min(SNR, gamma) / SNR and that of v by min(SNR, gamma) / (SNR + 1).
def min_snr_weight(prediction: str, t: Tensor, alpha_bar: Tensor, gamma: float) -> Tensor:
    """Weight of each example by its timestep, shape (batch,); SNR = alpha_bar_t / (1 - alpha_bar_t).

    prediction: "epsilon", "v_prediction" or "sample". Finite and not negative at SNR 0 too.
    """
    if not gamma > 0:
        raise UserError(f"snr_gamma is {gamma}; it must be greater than 0")
    left = alpha_bar.to(t.device)[t]
    snr = left / (1 - left)
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    if prediction == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    if prediction == "sample":
        return snr.clamp(max=gamma)
    raise UserError(f"prediction type {prediction!r} is not known here; known are {', '.join(PREDICTIONS)}")
