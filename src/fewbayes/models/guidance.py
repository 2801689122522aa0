"""A diffusers pipeline guided between two noise levels alone. Knows no family: any pipeline that multiplies what its
branches differ by with the guidance that it was given, as all of them do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fewbayes.diffusion.guidance import EVERYWHERE, Interval


def guiding(
    pipeline: Any, guidance: float, interval: Interval, levels: Callable[[Any], Any], less: float = 0.0
) -> dict[str, Any]:
    """What the pipeline has to be called with; levels: noise-to-signal ratios of its scheduler's timesteps.

    less: how far the guidance that the pipeline calls its own lies below ours.

    Both branches are computed at every step, guided or not, so that it takes as long as plain guidance.
    """
    if interval == EVERYWHERE or guidance <= 1:
        return {"guidance_scale": max(guidance, less) - less}
    at = 0

    class Scale(float):
        """The guidance, looked up for the step at hand whenever it multiplies."""

        def __mul__(self, difference: Any) -> Any:
            level = levels(pipeline.scheduler.timesteps[at : at + 1].cpu())
            return (interval.scales(level.tolist(), guidance)[0] - less) * difference

    def next_step(_: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal at
        at = min(step + 1, len(pipeline.scheduler.timesteps) - 1)
        return tensors

    return {"guidance_scale": Scale(guidance - less), "callback_on_step_end": next_step}
