"""What fine-tuning minimises: the denoising error, with or without prior preservation.

The Kullback-Leibler part of Eq. 3 is not here: it has a closed-form gradient and belongs to the posterior. Knows a
family only as something that predicts along a process; knows nothing of optimizers, of where noise and times come
from, or of random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.process import Process


class Denoises(Protocol):
    """The part of a family that the objective speaks to."""

    @property
    def process(self) -> Process: ...
    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """One micro-batch, everything random already drawn.

    x0: (batch, channels, height, width) scaled latents; eps: the same shape; t: (batch,) times of the process;
    cond: the prompts, one row each. weights: (batch, 1, height, width), above 0, how much each place of the latents
    counts; None: all alike.
    """

    x0: Tensor
    eps: Tensor
    t: Tensor
    cond: Conditioning
    weights: Tensor | None = None

    def joined(self, other: Batch) -> Batch:
        weights = None
        if self.weights is not None or other.weights is not None:
            weights = torch.cat(
                [b.x0.new_ones(b.x0[:, :1].shape) if b.weights is None else b.weights for b in (self, other)]
            )
        return Batch(
            torch.cat([self.x0, other.x0]),
            torch.cat([self.eps, other.eps]),
            torch.cat([self.t, other.t]),
            self.cond.joined(other.cond),
            weights,
        )


# Denoising error, the first term of Eq. 3: || eps_theta(x_t, t, c) - eps ||^2, the mean over the elements, weighted
# where the batch has weights.
def denoising_errors(family: Denoises, batch: Batch) -> Tensor:
    """Mean squared error of each example, shape (batch,), in float32 whatever the network computes in."""
    xt = family.process.noised(batch.x0, batch.eps, batch.t)
    target = family.process.target(batch.x0, batch.eps, batch.t)
    output = family.predict(xt, batch.t, batch.cond)
    errors = F.mse_loss(output.float(), target.float(), reduction="none")
    if batch.weights is None:
        return errors.flatten(1).mean(1)
    return (batch.weights * errors).mean((1, 2, 3)) / batch.weights.mean((1, 2, 3))


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
    return errors * family.process.min_snr_weight(batch.t, snr_gamma).to(errors.device)
