"""Draws figN.png from a figure's folder: figN.json and the small pictures that it names.

On white, about a thousand pixels wide, ours beside what is known of the paper's. Reads files only: knows nothing of how
the numbers were made, and never imports torch.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from fewbayes.errors import UserError

INCHES, DOTS = 9.0, 120
LETTERS, SMALL_LETTERS = 105, 135
"""In a line, of the title's and of the notes' size."""
INK, FAINT, STAGE = "#222222", "#8a8a8a", "#f6e3df"
COLOURS = ("#c2452d", "#2b6ca3", "#3f8f5b", "#8a5fb0")
"""Told apart by readers who do not see red or green, too: their lightness differs, and their markers do."""
MARKERS = ("o", "s", "^", "D")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 8,
    "lines.markersize": 4,
}
Told = dict[str, Any]


def draw(folder: Path) -> Path:
    """The figure of a folder as figN.png in it."""
    files = [file for file in sorted(folder.glob("fig*.json")) if file.stem in DRAWN]
    if len(files) != 1:
        raise UserError(f"{folder} holds {len(files)} of fig1.json, fig2.json ...; it must hold one of them")
    told = json.loads(files[0].read_text("utf-8"))
    with matplotlib.rc_context(STYLE):
        figure = DRAWN[files[0].stem](told, folder)
        target = files[0].with_suffix(".png")
        figure.savefig(target, dpi=DOTS, facecolor="white", metadata={"Software": None})
    return target


# --- parts ------------------------------------------------------------------------------------------------------------


def _figure(told: Told, height: float) -> Figure:
    figure = Figure(figsize=(INCHES, height), layout="constrained")
    seen = textwrap.fill(f"Seen here: {SEEN[told['figure']](told)}", LETTERS)
    figure.suptitle(f"{_title(told)}\n{_made_with(told)}\n{seen}", x=0.01, ha="left", fontsize=10)
    if foot := "\n".join(textwrap.fill(line, SMALL_LETTERS) for line in _lines(told)):
        figure.supxlabel(foot, x=0.01, ha="left", fontsize=8, color=FAINT)
    return figure


def _title(told: Told) -> str:
    return f"{told['figure'].replace('fig', 'Fig. ')}: {told['title']}"


def _made_with(told: Told) -> str:
    """The fine-tunings behind the figure; fig10 has none."""
    asked = told["asked"]
    if told["figure"] == "fig10":
        return f"model {asked['model']}, no fine-tuning"
    method = f"{asked['method']} rank {asked['rank']}" if asked["rank"] else asked["method"]
    seeds = f"{asked['seeds']} seed{'s' * (asked['seeds'] > 1)}"
    said = [f"model {asked['model']}", method, f"rate {asked['learning_rate']:g}", *asked["subjects"], seeds]
    return textwrap.fill(
        ", ".join(said) + ("; only tried out, nothing follows from it" if asked["quick"] else ""), LETTERS
    )


def _lines(told: Told) -> list[str]:
    says = told["paper"].get("says")
    of = told.get("pictures_of")
    pictures = [f"Pictures of {of}, first seed; numbers are means over runs."] if of else []
    return ([f"Paper: {says}"] if says else []) + pictures + list(told.get("notes", []))


def _show(axes: Axes, file: Path, title: str = "", below: str = "") -> None:
    with Image.open(file) as image:
        axes.imshow(np.asarray(image.convert("RGB")), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=8, loc="center")
    axes.set_xlabel(below, fontsize=8)


def _parts(figure: Figure | SubFigure, heights: Sequence[float]) -> list[SubFigure]:
    """Figures within the figure, from top to bottom."""
    return list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])


def _strip(figure: Figure | SubFigure, folder: Path, pictures: Sequence[Told], label: str) -> None:
    panels = figure.subplots(1, len(pictures), squeeze=False)[0]
    for axes, picture in zip(panels, pictures, strict=True):
        _show(axes, folder / picture["file"], below=f"{picture['step']}")
    panels[0].set_ylabel(label, fontsize=8)


def _table(runs: Sequence[Told], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Every step that some run has, and runs x steps, NaN where a run has no number."""
    steps = sorted({step for run in runs for step in run["steps"]})
    known = [dict(zip(run["steps"], run[key], strict=False)) for run in runs]
    rows = [[np.nan if (v := of.get(step)) is None else v for step in steps] for of in known]
    return np.array(steps), np.array(rows, dtype=float)


def _band(axes: Axes, runs: Sequence[Told], key: str, label: str, i: int) -> None:
    """Mean line and the range of the runs; where a run has no number, the others speak."""
    steps, values = _table(runs, key)
    there = ~np.isnan(values).all(axis=0)
    kept = steps[there]
    low, middle, high = (np.asarray(of(values[:, there], axis=0)) for of in (np.nanmin, np.nanmean, np.nanmax))
    axes.plot(kept, middle, color=COLOURS[i], marker=MARKERS[i], linewidth=1.6, label=label)
    if len(runs) > 1:
        axes.fill_between(kept, low, high, color=COLOURS[i], alpha=0.18, linewidth=0)


def _interval(estimate: Told, digits: int) -> str:
    said = f"{estimate['mean']:.{digits}f}"
    return said if estimate["low"] is None else f"{said} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def _range(told: Told, digits: int = 2) -> str:
    said = f"{told['mean']:.{digits}f}"
    return said if told["low"] == told["high"] else f"{said} [{told['low']:.{digits}f}, {told['high']:.{digits}f}]"


def _state(step: int) -> str:
    return _iterations(step) if step else "pretrained"


def _iterations(step: int) -> str:
    return f"{step} iteration{'s' * (step > 1)}"


# --- curves of fidelity -----------------------------------------------------------------------------------------------


def _fidelity(axes: Axes, told: Told) -> None:
    key = "fidelity" if told["dino"] else "similarity"
    for i, arm in enumerate(told["arms"]):
        _band(axes, arm["runs"], key, arm["label"], i)
    axes.set_xlabel("iterations")
    axes.set_ylabel(f"Dino ({told['dino']})" if told["dino"] else "correlation of pixels")
    axes.legend()


def _noise(axes: Axes, told: Told) -> None:
    for i, arm in enumerate(told["arms"]):
        _band(axes, arm["runs"], "noise", arm["label"], i)
    axes.set_xlabel("iterations")
    axes.set_ylabel("noise (Haar), grey levels")


def _dips(told: Told) -> list[str]:
    """Depth and onset of the largest fall of each arm, with their intervals over runs."""
    return [f"{arm['label']}: {_fall(arm['dips'])}, last {_interval(arm['dips']['last'], 2)}" for arm in told["arms"]]


def _fall(dips: Told) -> str:
    if dips["onset"]["mean"] is None:
        return "never falls"
    return f"largest fall {_interval(dips['depth'], 2)}, onset at {_interval(dips['onset'], 0)}"


def _strips(figure: Figure | SubFigure, told: Told, folder: Path) -> None:
    for part, arm in zip(_parts(figure, [1] * len(told["arms"])), told["arms"], strict=True):
        of = f"\n{arm['strip_of']}" if "strip_of" in arm else ""
        _strip(part, folder, arm["strip"], arm["label"] + of)


def _fig1(told: Told, folder: Path) -> Figure:
    notes = [*_dips(told), f"Paper: {told['paper']['about']}", *told.get("notes", [])]
    figure = _figure({**told, "notes": notes}, 8.2)
    top, bottom = _parts(figure, (1, 0.85))
    ours, noise, theirs = top.subplots(1, 3)
    _fidelity(ours, told)
    ours.set_title("ours")
    _noise(noise, told)
    noise.set_title("ours: noise of the samples")
    for i, (label, points) in enumerate(zip(("Plain", "Bayesian"), told["paper"]["curves"].values(), strict=True)):
        theirs.plot(*zip(*points, strict=True), color=COLOURS[i], linewidth=1.6, label=label)
    theirs.axvspan(*told["paper"]["stage"], color=STAGE, zorder=0)
    theirs.set_title("the paper's (shaded: its stage)")
    theirs.set_xlabel("iterations")
    theirs.set_ylabel("Dino (dino-vits16)")
    theirs.legend(loc="lower right")
    _strips(bottom, told, folder)
    return figure


def _fig2(told: Told, folder: Path) -> Figure:
    figure = _figure({**told, "notes": [*_dips(told), *told.get("notes", [])]}, 9.0)
    top, bottom = _parts(figure, (1, 1.15))
    fidelity, noise = top.subplots(1, 2)
    _fidelity(fidelity, told)
    _noise(noise, told)
    _strips(bottom, told, folder)
    return figure


# --- pictures ---------------------------------------------------------------------------------------------------------


def _blanks(told: Told, folder: Path) -> Figure:
    """A row per subject: the blank, the pretrained model's answer, then those along each fine-tuning and the image
    that the last one is nearest to."""
    subjects = list(dict.fromkeys(row["subject"] for row in told["rows"]))
    panels_of = [_blank_panels([row for row in told["rows"] if row["subject"] == name]) for name in subjects]
    figure = _figure(told, 1.7 + 1.6 * len(subjects))
    panels = figure.subplots(len(subjects), max(map(len, panels_of)), squeeze=False)
    for line, name, shown in zip(panels, subjects, panels_of, strict=True):
        for axes, (file, title, below) in zip(line, shown, strict=False):
            _show(axes, folder / file, title, below)
        for axes in line[len(shown) :]:
            axes.set_axis_off()
        line[0].set_ylabel(name, fontsize=8)
    return figure


def _blank_panels(rows: Sequence[Told]) -> list[tuple[str, str, str]]:
    """(file, title, line below) of one subject's pictures. r: correlation of latents with the nearest image."""
    first = rows[0]
    shown = [(first["blank"], "x_t = 0", ""), (first["answer"], "pretrained", f"r = {_range(first['similarity'])}")]
    for many in sorted({row["images"] for row in rows} - {0}):
        tuned = [row for row in rows if row["images"] == many]
        name = f"{many} image{'s' * (many > 1)}"
        shown += [
            (row["answer"], f"{name}\n{_state(row['step'])}", f"r = {_range(row['similarity'])}") for row in tuned
        ]
        shown.append((tuned[-1]["nearest"], "nearest of\n" + name, ""))
    return shown


def _fig4(told: Told, folder: Path) -> Figure:
    outside = fmean(share for run in told["runs"] for share in run["outside"])
    said = f"sigma_1 is 0 or infinite, without a point, where retention leaves (0, 1): {outside:.0%} of it from noise."
    figure = _figure({**told, "notes": [said, *told.get("notes", [])]}, 4.8)
    first, second = figure.subplots(1, 2)
    _band(first, told["runs"], "sigma_1_from_noise", "from noise alone, as in the paper", 0)
    _band(first, told["runs"], "sigma_1", "from noised training images", 1)
    step, value = told["paper"]["value"]
    first.axhline(value, color=INK, linewidth=1, linestyle="--", label=f"the paper's {value:g}, at its {step:,}")
    first.set_yscale("log", nonpositive="mask")
    first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    first.yaxis.set_major_formatter("{x:g}")
    first.yaxis.set_minor_locator(NullLocator())
    first.set_ylabel("sigma_1 (median over timesteps)")
    second.axhline(1, color=FAINT, linewidth=0.8, linestyle=":")
    for i, (key, label) in enumerate(
        (
            ("retention_from_noise", "retention, from noise"),
            ("retention", "retention, training images"),
            ("residual_gain", "residual gain of a disturbance"),
            ("excess_error", "excess error"),
        )
    ):
        _band(second, told["runs"], key, label, i)
    second.set_ylabel("share of pass-through")
    for axes in (first, second):
        _halved(axes, told["runs"][0]["steps"])
        axes.legend()
    return figure


def _halved(axes: Axes, steps: Sequence[int]) -> None:
    """An axis of iterations from 0 that gives the early ones as much room as the late ones."""
    ticks = [0, *(step for step in (steps[-1] // 2**i for i in range(8)) if step >= steps[1])]
    axes.set_xscale("symlog", linthresh=steps[1], linscale=0.5)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(-steps[1] / 5, steps[-1] * 1.1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("iterations")


def _fig5(told: Told, folder: Path) -> Figure:
    said = [f"gain: ||delta_t||^2 / ||delta'||^2; no model of one image exceeds 1 / alpha_bar = {told['ceiling']:.3f}"]
    said.append(f"The paper prints {told['paper']['gain']:g} for 1,000 iterations, which lies above that ceiling.")
    figure = _figure({**told, "notes": [*said, *told.get("notes", [])]}, 9.0)
    panels = figure.subplots(len(told["rows"]), 4, squeeze=False)
    titles = ("given: x_t + delta'", "answer without delta'", "answer with delta'", "difference, 3 times")
    for i, (line, row) in enumerate(zip(panels, told["rows"], strict=True)):
        for axes, key, title in zip(line, ("given", "without", "answer", "difference"), titles, strict=True):
            _show(axes, folder / row[key], title if i == 0 else "")
        line[0].set_ylabel(_state(row["step"]), fontsize=8)
        line[3].set_xlabel(f"gain {_range(row['gain'], 3)}, {row['inside']:.0%} of it inside", fontsize=8)
    return figure


def _fig10(told: Told, folder: Path) -> Figure:
    most = max(len(row["files"]) for row in told["rows"])
    figure = _figure(told, 1.5 + 1.75 * len(told["rows"]))
    for part, row in zip(_parts(figure, [1] * len(told["rows"])), told["rows"], strict=True):
        said = f"noise {_range(row['noise'], 1)}, standard deviation {_range(row['contrast'], 1)} grey levels"
        part.suptitle(f"{row['label']}: {said}", fontsize=9, x=0.01, ha="left")
        panels = part.subplots(1, most, squeeze=False)[0]
        for axes in panels[len(row["files"]) :]:
            axes.set_axis_off()
        for axes, file in zip(panels, row["files"], strict=False):
            _show(axes, folder / file)
    return figure


def _fig12(told: Told, folder: Path) -> Figure:
    figure = _figure(told, 8.2)
    top, bottom = _parts(figure, (1, 1))
    factor, similarity = top.subplots(1, 2)
    ks = told["k"]
    for i, row in enumerate(told["rows"]):
        factor.plot(ks, row["factor"], MARKERS[i], color=COLOURS[i], label=_state(row["step"]))
        factor.vlines(ks, row["factor_low"], row["factor_high"], color=COLOURS[i], linewidth=1)
        factor.plot(ks, row["theory"], color=COLOURS[i], linewidth=1.2)
        similarity.plot(ks, row["similarity"], marker=MARKERS[i], color=COLOURS[i], linewidth=1.2)
    factor.plot([], [], color=FAINT, linewidth=1.2, label="1 + gain (k - sqrt(alpha_bar))")
    factor.set_ylabel("factor of x' in the answer")
    similarity.set_ylabel("correlation of the answer with x'")
    factor.legend()
    for axes in (factor, similarity):
        axes.set_xlabel(f"k of x_t = k x', t = {told['t']}")
    for part, row in zip(_parts(bottom, [1] * len(told["rows"])), told["rows"], strict=True):
        panels = part.subplots(1, len(ks), squeeze=False)[0]
        for axes, file, k in zip(panels, row["answers"], ks, strict=True):
            _show(axes, folder / file, f"k = {k:g}" if row is told["rows"][0] else "")
        panels[0].set_ylabel(_state(row["step"]), fontsize=8)
    return figure


# --- what is seen -----------------------------------------------------------------------------------------------------
# One sentence with numbers; where the paper's effect is not there, it begins with that.

FALL = 0.25
"""Of fidelity: half of the paper's fall, which is 0.5. Less is not like it: curves of few samples waver as much."""
MARKED = 1.5
"""A value is marked where it is so many times another."""
CHANGED = 0.2
"""Of a correlation or a slope: less is no change."""


def _seen_fig1(told: Told) -> str:
    plain, *others = told["arms"]
    noise = _table(plain["runs"], "noise")[1]
    mean = noise[:, ~np.isnan(noise).all(axis=0)]
    said = "; ".join(f"{arm['label']}: {_fall(arm['dips'])}" for arm in told["arms"])
    said += (
        f". Noise of the {plain['label'].lower()} samples: {np.nanmean(mean, axis=0).max():.1f} grey levels at most, "
    )
    said += f"{np.nanmean(mean[:, 0]):.1f} at first."
    depth = plain["dips"]["depth"]
    if depth["mean"] < FALL:
        return f"no fall like the paper's 0.5: {said}"
    bands = [(arm["dips"]["depth"]["high"], arm["dips"]["depth"]["mean"]) for arm in others]
    apart = depth["low"] is not None and all(high is not None and high < depth["low"] for high, _ in bands)
    return said if apart or not others else f"no smaller fall with Bayesian weights, beyond the spread of runs: {said}"


def _seen_fig2(told: Told) -> str:
    dips = [arm["dips"] for arm in told["arms"]]
    depths, onsets = [one["depth"]["mean"] for one in dips], [one["onset"]["mean"] for one in dips]
    said = "; ".join(f"{arm['label']}: {_fall(arm['dips'])}" for arm in told["arms"]) + "."
    if depths[0] < FALL:
        return f"no fall like the paper's 0.5 that more images could delay: {said}"
    weaker = all(a > b for a, b in pairwise(depths))
    known = [onset for onset in onsets if onset is not None]
    later = all(a < b for a, b in pairwise(known))
    not_so = [word for word, so in (("weaker", weaker), ("later", later)) if not so]
    return f"not {' nor '.join(not_so)} with each further number of images: {said}" if not_so else said


def _seen_blanks(told: Told) -> str:
    rows = told["rows"]
    last = max(row["step"] for row in rows)
    before, after = (fmean(row["similarity"]["mean"] for row in rows if row["step"] == step) for step in (0, last))
    contrast, tuned = (fmean(row["contrast"] for row in rows if row["step"] == step) for step in (0, last))
    said = (
        f"correlation with the nearest training image {before:.2f} before and {after:.2f} after {last} iterations "
        f"(latents); contrast of the answer {contrast:.2f} and {tuned:.2f} of a training image's."
    )
    return said if after - before >= CHANGED else f"fine-tuning does not make x_t = 0 a training image: {said}"


def _seen_fig4(told: Told) -> str:
    steps, values = _table(told["runs"], "sigma_1_from_noise")
    there = ~np.isnan(values).all(axis=0)
    steps, mean = steps[there], np.nanmean(values[:, there], axis=0)
    if not len(steps):
        return "from noise, sigma_1 is infinite throughout."
    top = int(mean.argmax())
    said = (
        f"sigma_1 from noise is {mean[0]:.2f} at {steps[0]}, {mean[top]:.2f} at its highest ({steps[top]}) and "
        f"{mean[-1]:.2f} at {steps[-1]} iterations."
    )
    rises, drops = mean[top] >= MARKED * mean[0], mean[top] >= MARKED * mean[-1]
    return said if rises and drops else f"no peak in between that is {MARKED:g} times both ends: {said}"


def _seen_fig5(told: Told) -> str:
    first, *tuned = told["rows"]
    top = max(tuned, key=lambda row: row["gain"]["mean"])
    said = (
        f"gain {_range(first['gain'], 3)} pretrained, at most {_range(top['gain'], 3)} fine-tuned, "
        f"after {_iterations(top['step'])}."
    )
    kept = top["gain"]["mean"] >= MARKED * first["gain"]["mean"]
    return said if kept else f"fine-tuning does not keep the disturbance more than the pretrained model: {said}"


def _seen_fig10(told: Told) -> str:
    by = {row["kind"]: row for row in told["rows"]}
    noisy, left = (by[kind]["contrast"]["mean"] for kind in ("noisy", "denoised"))
    said = (
        f"denoising takes the blank's standard deviation from {noisy:.1f} to {left:.1f} grey levels; the picture asked "
        f"for has noise {by['asked']['noise']['mean']:.1f}, photographs {by['photographs']['noise']['mean']:.1f}."
    )
    return said if left <= noisy / 10 else f"the denoised blank keeps {left / noisy:.0%} of what was put on it: {said}"


def _seen_fig12(told: Told) -> str:
    first, *tuned = told["rows"]
    top = max(tuned, key=lambda row: row["slope"])
    said = (
        f"slope of the factor over k {first['slope']:.2f} pretrained, at most {top['slope']:.2f} fine-tuned, after "
        f"{_iterations(top['step'])}; correlation with x' at k = {told['k'][-1]:g} {first['similarity'][-1]:.2f} "
        f"and {top['similarity'][-1]:.2f}."
    )
    if top["slope"] - first["slope"] >= CHANGED:
        return said
    return f"the pretrained model answers with a multiple of x' as much as the fine-tuned: {said}"


SEEN: dict[str, Callable[[Told], str]] = {
    "fig1": _seen_fig1,
    "fig2": _seen_fig2,
    "fig3": _seen_blanks,
    "fig4": _seen_fig4,
    "fig5": _seen_fig5,
    "fig10": _seen_fig10,
    "fig11": _seen_blanks,
    "fig12": _seen_fig12,
}

DRAWN: dict[str, Callable[[Told, Path], Figure]] = {
    "fig1": _fig1,
    "fig2": _fig2,
    "fig3": _blanks,
    "fig4": _fig4,
    "fig5": _fig5,
    "fig10": _fig10,
    "fig11": _blanks,
    "fig12": _fig12,
}
