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

from fewbayes.schedule import add_noise, loss_target


class Denoises(Protocol):
    """The part of a family that the objective speaks to."""

    @property
    def alpha_bar(self) -> Tensor: ...
    @property
    def prediction_type(self) -> str: ...
    def predict(self, xt: Tensor, t: Tensor, cond: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """One micro-batch, everything random already drawn.

    x0: (batch, channels, height, width) scaled latents; eps: the same shape; t: (batch,) integers;
    cond: (batch, tokens, width) prompt embeddings.
    """

    x0: Tensor
    eps: Tensor
    t: Tensor
    cond: Tensor

    def joined(self, other: Batch) -> Batch:
        return Batch(
            torch.cat([self.x0, other.x0]),
            torch.cat([self.eps, other.eps]),
            torch.cat([self.t, other.t]),
            torch.cat([self.cond, other.cond]),
        )


# Denoising error, the first term of Eq. 3: || eps_theta(x_t, t, c) - eps ||^2, the mean over the elements.
def denoising_errors(family: Denoises, batch: Batch) -> Tensor:
    """Mean squared error of each example, shape (batch,), in float32 whatever the network computes in."""
    xt = add_noise(batch.x0, batch.eps, batch.t, family.alpha_bar)
    target = loss_target(family.prediction_type, batch.x0, batch.eps, batch.t, family.alpha_bar)
    output = family.predict(xt, batch.t, batch.cond)
    return F.mse_loss(output.float(), target.float(), reduction="none").flatten(1).mean(1)


def diffusion_loss(family: Denoises, batch: Batch) -> Tensor:
    """The denoising error averaged over the batch; a scalar."""
    return denoising_errors(family, batch).mean()


# DreamBooth's objective: instance loss + prior_loss_weight x class loss, the two halves of one forward pass, so that
# both halves see the same draw of random weights.
def preserved_loss(family: Denoises, instance: Batch, prior: Batch, prior_loss_weight: float) -> Tensor:
    """The scalar loss with prior preservation; `prior` are class images under the class prompt."""
    errors = denoising_errors(family, instance.joined(prior))
    count = len(instance.t)
    return errors[:count].mean() + prior_loss_weight * errors[count:].mean()
