"""sigma_1 over iterations.

From noise alone, as the paper estimates it, and from noised training images. sigma_1 is read off a retention, and is 0
or infinite where that leaves (0, 1): a mean over timesteps would be infinite as soon as one of them is, so its place is
taken by the median, and the retention itself is told too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from fewbayes.models import Family
from fewbayes.page.look import FAINT, INK
from fewbayes.stage.probes import USUAL_STEPS, Prober, ProbeSettings
from fewbayes.studies.paper import paper
from fewbayes.studies.paper.denoise import encoded
from fewbayes.studies.paper.drawing import MARKED, Told, at_guidance, band, by_step, canvas
from fewbayes.studies.paper.options import Ask
from fewbayes.studies.paper.trained import Task, each_way, follow, on_one_photograph

SHARES = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Of the longest run: where it is looked at."""
EXAMPLES = 4
CONSTANTS = {"shares": SHARES, "examples": EXAMPLES, "timesteps": USUAL_STEPS}


def run(ask: Ask) -> dict[str, Any]:
    steps = (0, *sorted({max(1, round(share * ask.steps)) for share in SHARES}))
    tasks = on_one_photograph(ask, steps, look)
    found, notes = follow(tasks, ask.workers)
    runs = [
        {"subject": task.subject.name, "seed": task.config.seed, "steps": list(looks)}
        | each_way(list(looks.values()), _by_name)
        for task, looks in found
    ]
    return {
        "timesteps": list(USUAL_STEPS),
        "runs": runs,
        "paper": {"says": paper.FIG4, "value": paper.FIG4_VALUE},
        "notes": notes,
    }


def look(family: Family, task: Task, step: int) -> dict[str, Any]:
    latents, prompt = encoded(family, task.references), task.ask.prompt(task.subject)
    prober = Prober(family, latents, [prompt] * len(latents), settings=ProbeSettings(examples=EXAMPLES))
    reading = prober.read({"sigma_1", "from_noise", "gain", "losses"})
    assert reading.sigma_1 is not None
    assert reading.from_noise is not None
    assert reading.gain is not None
    assert reading.excess_error is not None
    return {
        "sigma_1": _finite(reading.sigma_1.typical),
        "sigma_1_from_noise": _finite(reading.from_noise.typical),
        "retention": median(reading.sigma_1.retention),
        "retention_from_noise": median(reading.from_noise.retention),
        "outside": sum(not 0 < r < 1 for r in reading.from_noise.retention) / len(reading.from_noise.retention),
        "residual_gain": reading.gain.typical,
        "excess_error": fmean(reading.excess_error),
    }


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def _by_name(looks: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [found[name] for found in looks] for name in looks[0] if name != "guided"}


SIGMA_1 = {"sigma_1_from_noise": "from noise alone, as in the paper", "sigma_1": "from noised training images"}
SHARES_OF_PASS_THROUGH = {
    "retention_from_noise": "retention, from noise",
    "retention": "retention, training images",
    "residual_gain": "residual gain of a disturbance",
    "excess_error": "excess error",
}


def draw(told: Told, folder: Path) -> Figure:
    outside = fmean(share for run in told["runs"] for share in run["outside"])
    said = f"sigma_1 is 0 or infinite, without a point, where retention leaves (0, 1): {outside:.0%} of it from noise."
    guided = [run["guided"] | {"steps": run["steps"]} for run in told["runs"] if "guided" in run]
    figure = canvas(told, seen(told), 4.8, [said])
    first, second, *third = figure.subplots(1, 3 if guided else 2)
    for i, (key, label) in enumerate(SIGMA_1.items()):
        band(first, _above_zero(told["runs"], key), key, label, i)
    step, value = told["paper"]["value"]
    first.axhline(value, color=INK, linewidth=1, linestyle="--", label=f"the paper's {value:g}, at its {step:,}")
    first.set_yscale("log", nonpositive="mask")
    first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    first.yaxis.set_major_formatter("{x:g}")
    first.yaxis.set_minor_locator(NullLocator())
    first.set_ylabel("sigma_1 (median over timesteps)")
    for axes, runs in zip((second, *third), (told["runs"], guided), strict=False):
        axes.axhline(1, color=FAINT, linewidth=0.8, linestyle=":")
        for i, (key, label) in enumerate(SHARES_OF_PASS_THROUGH.items()):
            band(axes, runs, key, label, i)
    second.set_ylabel("share of pass-through")
    for axes in third:
        axes.set_ylabel(f"the same at {at_guidance(told)}")
    for axes in (first, second, *third):
        _halved(axes, told["runs"][0]["steps"], 4 if third else 2)
    for axes in (first, second):  # above, where no line runs
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return figure


def _above_zero(runs: Sequence[Told], key: str) -> list[Told]:
    """0 has no place on a logarithmic axis."""
    return [run | {key: [value or None for value in run[key]]} for run in runs]


def _halved(axes: Axes, steps: Sequence[int], apart: int) -> None:
    """An axis of iterations from 0 that gives the early ones as much room as the late ones."""
    ticks = [0, *(step for step in (steps[-1] // apart**i for i in range(8)) if step >= steps[1])]
    axes.set_xscale("symlog", linthresh=steps[1], linscale=0.5)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(-steps[1] / 5, steps[-1] * 1.1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("iterations")


def seen(told: Told) -> str:
    steps, values = by_step(told["runs"], "sigma_1_from_noise")
    guided = [run["guided"] | {"steps": run["steps"]} for run in told["runs"] if "guided" in run]
    if not len(steps):
        return "from noise, sigma_1 is infinite throughout."
    mean = np.nanmean(values, axis=0)
    top = int(mean.argmax())
    said = (
        f"sigma_1 from noise is {mean[0]:.2f} at {steps[0]}, {mean[top]:.2f} at its highest ({steps[top]}) and "
        f"{mean[-1]:.2f} at {steps[-1]} iterations."
    )
    if guided:
        gain = np.nanmean(by_step(guided, "residual_gain")[1], axis=0)
        said += (
            f" With guidance a disturbance keeps {gain[0]:.2f}, at most {gain.max():.2f}, at the end {gain[-1]:.2f}."
        )
    rises, drops = mean[top] >= MARKED * mean[0], mean[top] >= MARKED * mean[-1]
    return said if rises and drops else f"no peak in between that is {MARKED:g} times both ends: {said}"
