"""Fig. 4: sigma_1 over iterations, from noise alone as the paper estimates it and from noised training images.

sigma_1 is read off a retention, and is 0 or infinite where that leaves (0, 1): a mean over timesteps would be infinite
as soon as one of them is, so its place is taken by the median, and the retention itself is told too.
"""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from fewbayes.models import Family
from fewbayes.stage.probes import Prober, ProbeSettings
from fewbayes.studies.paper import paper
from fewbayes.studies.paper.denoise import encoded
from fewbayes.studies.paper.options import Ask
from fewbayes.studies.paper.trained import Task, follow, on_one_photograph

SHARES = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Of the longest run: where it is looked at."""
EXAMPLES = 4
CONSTANTS = {"shares": SHARES, "examples": EXAMPLES, "timesteps": ProbeSettings().timesteps}


def run(ask: Ask) -> dict[str, Any]:
    steps = (0, *sorted({max(1, round(share * ask.steps)) for share in SHARES}))
    tasks = on_one_photograph(ask, steps, look)
    found, notes = follow(tasks, ask.workers)
    runs = [
        {"subject": task.subject.name, "seed": task.config.seed, "steps": list(looks), **_by_name(list(looks.values()))}
        for task, looks in found
    ]
    return {
        "timesteps": list(ProbeSettings().timesteps),
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
    return {name: [found[name] for found in looks] for name in looks[0]}
