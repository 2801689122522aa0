"""x_t = k x' denoised in one step.

For several k, beside the line that the theory draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from fewbayes.diffusion.process import level_of_step
from fewbayes.models import Family
from fewbayes.page.look import FAINT, colour, marker
from fewbayes.stage.probes import Prober, ProbeSettings
from fewbayes.stage.theory import k_response, sigma_1_of
from fewbayes.studies.paper import paper
from fewbayes.studies.paper.denoise import encoded, keep, one_step
from fewbayes.studies.paper.drawing import (
    CHANGED,
    MARKER,
    Told,
    at_guidance,
    canvas,
    iterations,
    parts,
    pictures,
    state,
)
from fewbayes.studies.paper.options import Ask
from fewbayes.studies.paper.trained import Task, rows_along

T, KS, EXAMPLES = 400, (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0), 8
"""The paper says neither t nor ks."""
CONSTANTS = {"t": T, "k": KS, "examples": EXAMPLES}


def run(ask: Ask) -> dict[str, Any]:
    found = rows_along(ask, ask.course, look, _over_runs)
    return {"t": T, "k": KS, "alpha_bar": found["rows"][0]["alpha_bar"], **found, "paper": {"says": paper.FIG12}}


def look(family: Family, task: Task, step: int) -> dict[str, Any]:
    latents, prompt = encoded(family, task.references), task.ask.prompt(task.subject)
    at = level_of_step(T)
    asked = ProbeSettings(levels=(at,), examples=EXAMPLES, scaled_level=at, ks=KS)
    reading = Prober(family, latents, [prompt], settings=asked).read({"scaled", "sigma_1"})
    assert reading.scaled is not None
    assert reading.sigma_1 is not None
    alpha_bar, retention = reading.scaled.alpha_bar, reading.sigma_1.retention[0]
    answers = family.decode_latents(
        one_step(family, latents[:1] * torch.tensor(KS).view(-1, 1, 1, 1), reading.scaled.t, prompt)
    )
    return {
        "alpha_bar": alpha_bar,
        "factor": list(reading.scaled.factor),
        "similarity": list(reading.scaled.similarity),
        "slope": reading.scaled.slope,
        "at_zero": reading.scaled.at_zero,
        "retention": retention,
        "theory": k_response(np.array(KS), alpha_bar, sigma_1_of(retention, alpha_bar)).tolist(),
        "answers": [keep(task.ask.folder, task.picture(step, f"k{i}"), picture) for i, picture in enumerate(answers)],
    }


def _over_runs(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over runs; pictures are those of the first."""
    numbers = ("factor", "similarity", "slope", "at_zero", "retention", "theory")
    mean = {name: np.mean([one[name] for one in found], axis=0).tolist() for name in numbers}
    factors = [one["factor"] for one in found]
    spread = {"factor_low": np.min(factors, axis=0).tolist(), "factor_high": np.max(factors, axis=0).tolist()}
    return found[0] | mean | spread | {"runs": len(found)}


def draw(told: Told, folder: Path) -> Figure:
    guided = "guided" in told["rows"][0]
    figure = canvas(told, seen(told), 11.2 if guided else 8.2)
    top, bottom = parts(figure, (1, 1.7 if guided else 1))
    factor, similarity = top.subplots(1, 2)
    ks = told["k"]
    for i, row in enumerate(told["rows"]):
        factor.plot(ks, row["factor"], marker(i), color=colour(i), markersize=MARKER, label=state(row["step"]))
        factor.vlines(ks, row["factor_low"], row["factor_high"], color=colour(i), linewidth=1)
        factor.plot(ks, row["theory"], color=colour(i), linewidth=1.2)
        similarity.plot(ks, row["similarity"], marker=marker(i), color=colour(i), markersize=MARKER, linewidth=1.2)
        if guided:
            way = {"color": colour(i), "linestyle": ":", "linewidth": 1.2}
            factor.plot(ks, row["guided"]["factor"], **way)
            similarity.plot(ks, row["guided"]["similarity"], **way)
    if guided:
        similarity.plot([], [], color=FAINT, linestyle=":", label=at_guidance(told))
        similarity.legend()
    factor.plot([], [], color=FAINT, linewidth=1.2, label="1 + gain (k - sqrt(alpha_bar))")
    factor.set_ylabel("factor of x' in the answer")
    similarity.set_ylabel("correlation of the answer with x'")
    factor.legend()
    for axes in (factor, similarity):
        axes.set_xlabel(f"k of x_t = k x', t = {told['t']}")
    titles = [f"k = {k:g}" for k in ks]
    rows = []
    for row in told["rows"]:
        above = titles if row is told["rows"][0] else [""] * len(ks)
        rows.append((state(row["step"]), [(folder / f, t, "") for f, t in zip(row["answers"], above, strict=True)]))
        if guided:
            rows.append((at_guidance(told), [(folder / f, "", "") for f in row["guided"]["answers"]]))
    pictures(bottom, rows)
    return figure


def seen(told: Told) -> str:
    first, *tuned = told["rows"]
    top = max(tuned, key=lambda row: row["slope"])
    said = (
        f"slope of the factor over k {first['slope']:.2f} pretrained, at most {top['slope']:.2f} fine-tuned, after "
        f"{iterations(top['step'])}; correlation with x' at k = {told['k'][-1]:g}: {first['similarity'][-1]:.2f} "
        f"and {top['similarity'][-1]:.2f}."
    )
    if "guided" in first:
        slopes = [row["guided"]["slope"] for row in told["rows"]]
        said += (
            f" With guidance the slope is {slopes[0]:.2f}, then {', '.join(f'{slope:.2f}' for slope in slopes[1:])}."
        )
    if top["slope"] - first["slope"] >= CHANGED:
        return said
    return f"the pretrained model answers with a multiple of x' as much as the fine-tuned: {said}"
