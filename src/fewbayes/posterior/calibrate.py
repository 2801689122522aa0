"""The weight_std that a loss can bear: the largest within a tolerance, found by bisection on fixed draws.

Knows a posterior and a function that tells a loss, nothing of what the loss is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fewbayes.errors import UserError
from fewbayes.posterior.gaussian import GaussianPosterior
from fewbayes.posterior.where import Predicate


@dataclass(frozen=True)
class Calibration:
    """The largest standard deviation within a tolerance of the loss, and what was tried on the way."""

    weight_std: float
    loss_at_mean: float
    loss: float
    trials: tuple[tuple[float, float], ...]  # (weight_std, mean loss)


def calibrate_weight_std(
    module: nn.Module,
    where: str | Predicate,
    loss_fn: Callable[[], Tensor | float],
    tolerance: float = 0.05,
    *,
    seed: int = 0,
    draws: int = 4,
    std_mode: Literal["absolute", "relative"] = "absolute",
    start: float = 0.01,
    precision: float = 0.02,
) -> Calibration:
    """Largest weight_std that raises the mean loss over `draws` draws by at most tolerance * |loss at the means|.

    loss_fn evaluates the module on a fixed probe batch with fixed noise; it is called without gradients. The draws are
    the same at every deviation, and the answer is within a factor 1 + precision of the boundary, on its lower side.
    """
    if not 0 < tolerance < math.inf or draws < 1:
        raise UserError(f"tolerance must be positive and finite and draws at least 1, but are {tolerance} and {draws}")
    if not 0 < start < math.inf:
        raise UserError(f"start must be positive and finite, but is {start}")
    with torch.no_grad():
        loss_at_mean = float(loss_fn())
    if not math.isfinite(loss_at_mean):
        raise UserError(f"the loss at the means is {loss_at_mean}: nothing to calibrate against")
    limit = loss_at_mean + tolerance * abs(loss_at_mean)
    trials: list[tuple[float, float]] = []
    posterior = GaussianPosterior(
        module, where=where, weight_std=1.0, seed=seed, learn="fixed", std_mode=std_mode, track_prior=False
    )
    units = {name: std.clone() for name, std in posterior.weight_std().items()}

    @torch.no_grad()
    def fits(weight_std: float) -> bool:
        for name, std in posterior.weight_std().items():
            std.copy_(units[name] * weight_std)
        losses = []
        for draw in range(draws):
            with posterior.sample(draw):
                losses.append(float(loss_fn()))
        trials.append((weight_std, sum(losses) / draws))
        return trials[-1][1] <= limit  # False for NaN

    low, high = _bracket(fits, start)
    while high / low > 1 + precision:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Calibration(low, loss_at_mean, dict(trials)[low], tuple(trials))


def _bracket(fits: Callable[[float], bool], start: float) -> tuple[float, float]:
    """A deviation that fits and one, a factor 4 above, that does not."""
    factor, std = (4.0, start) if fits(start) else (0.25, start)
    for _ in range(15):
        std *= factor
        if fits(std) != (factor > 1):
            return (std / 4, std) if factor > 1 else (std, std * 4)
    raise UserError(
        f"no deviation between {start:g} and {std:g} brackets the tolerance: does the loss see the weights?"
    )
