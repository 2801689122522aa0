"""Puts curves, pictures, numbers and provenance of an experiment on one self-contained page.

Knows nothing of training: everything comes from files that `read.py` read. The page makes no request, opens from
file://, and says all it says without JavaScript.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from fewbayes.files.atomic import atomic_write
from fewbayes.page import curves
from fewbayes.page.pictures import LARGEST, Strip, embed, film_strip
from fewbayes.page.read import CORRUPTION, NOISE, SIMILARITY, Experiment, read_experiment
from fewbayes.page.render import ABSENT, flat, page_of
from fewbayes.page.summary import (
    DIGITS,
    INTERVAL,
    QUANTITIES,
    WEIGHT_NAMES,
    monitored,
    stages_in_words,
    summarise_experiment,
    verdict,
)
from fewbayes.stage.definition import DIP, STAGE

SIGNALS = ("loss", "grad_norm", "kl", "weight_std_mean", "lr")
SHOWN_REFERENCES = 6
# Settings that differ between the runs of one arm by design.
OF_THE_RUN = {"seed", "output_dir"}
# Parts of the manifest that the settings already tell.
IN_SETTINGS = {"fingerprint", "config"}
SAMPLING = ("prompt", "negative_prompt", "sampler", "steps", "guidance", "seed")
LISTED = 8


def summarise(folder: Path) -> dict[str, Any]:
    """The numbers of the page: per arm and kind of weights, means, intervals and stages; see `summary.py`."""
    return summarise_experiment(read_experiment(Path(folder)))


def write_run_report(folder: Path, output: Path | None = None) -> Path:
    """Write `report.html` (default: into `folder`) and `summary.json` beside it; return the page's path."""
    experiment = read_experiment(Path(folder))
    output = Path(output) if output else Path(folder) / "report.html"
    summary = summarise_experiment(experiment)
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, render(experiment, summary))
    atomic_write(output.with_name("summary.json"), json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return output


def render(experiment: Experiment, summary: dict[str, Any]) -> str:
    strip = film_strip(experiment)
    shown = [cell.picture for panel in strip.panels for row in panel.rows for cell in row.cells if cell.picture]
    picture_width = max((picture.width for picture in shown), default=64)
    zooms = _zooms(picture_width)
    return page_of(
        "report.html.j2",
        _choice_rules(strip, zooms),
        arms=len(experiment.arms),
        experiment=experiment,
        summary=summary,
        verdict=experiment.summary or verdict(summary),
        references=[picture for path in experiment.references[:SHOWN_REFERENCES] if (picture := embed(path))],
        together=_together(experiment),
        by_itself=_by_itself(experiment),
        signals=_signals(experiment),
        position={arm.name: i for i, arm in enumerate(experiment.arms)},
        strip=strip,
        zooms=zooms,
        picture_width=picture_width,
        reduced=any(picture.reduced_from for picture in shown),
        largest=LARGEST,
        quantities=QUANTITIES,
        weight_names=WEIGHT_NAMES,
        interval=INTERVAL,
        stage=STAGE,
        dip=DIP,
        stages_in_words=stages_in_words,
        monitored=monitored,
        digits=DIGITS,
        differing=differing_settings(experiment),
        sampling=_sampling(experiment),
        provenance=_provenance(experiment),
        configs=[(arm.label, flat(arm.runs[0].config)) for arm in experiment.arms if arm.runs],
    )


def _together(experiment: Experiment) -> list[dict[str, Any]]:
    kinds = [kind for kind in experiment.weights if any(arm.has(kind) for arm in experiment.arms)]
    return [
        {"weights": kind, "svg": Markup(curves.together(experiment, metric, kind))}
        for metric in (CORRUPTION, SIMILARITY, NOISE)
        for kind in kinds
        if any(run.curve(metric, kind) for run in experiment.runs)
    ]


def _by_itself(experiment: Experiment) -> list[dict[str, Any]]:
    measured = [any(run.curve(SIMILARITY) or run.curve(NOISE) for run in arm.runs) for arm in experiment.arms]
    return [
        {"index": i, "arm": arm, "svg": Markup(curves.by_itself(experiment, i))}
        for i, arm in enumerate(experiment.arms)
        if measured[i]
    ]


def _signals(experiment: Experiment) -> list[Markup]:
    """Those signals of the training that were logged and moved, by a hundredth of their size at least."""

    def moved(metric: str) -> bool:
        logged = [curve.values for run in experiment.runs if (curve := run.curve(metric))]
        return any(np.ptp(values) > 0.01 * np.abs(values).max() for values in logged)

    return [Markup(curves.training_signal(experiment, metric)) for metric in SIGNALS if moved(metric)]


def _choice_rules(strip: Strip, zooms: list[tuple[float, str, bool]]) -> str:
    """Which film strip is shown and how large; without :has() all are shown, at the size chosen at first."""
    shown = [
        f"html:has(#seed-{panel.seed}:checked):has(#picture-{panel.picture}:checked) "
        f"#panel-{panel.seed}-{panel.picture}{{display:block}}"
        for panel in strip.panels
    ]
    sizes = [f":root:has(#zoom-{i}:checked){{--zoom:{factor:g}}}" for i, (factor, _, _) in enumerate(zooms)]
    first = next(f":root{{--zoom:{factor:g}}}" for factor, _, chosen in zooms if chosen)
    return "\n".join(["", first, "@supports selector(:has(a)){.panel{display:none}", *shown, *sizes, "}"])


def _zooms(width: int) -> list[tuple[float, str, bool]]:
    """(factor, label, chosen at first): small pictures are shown at twice their pixels, large ones at half."""
    first = 2.0 if width <= 80 else 1.0 if width <= 160 else 0.5
    return [(first * factor, f"{first * factor:g}\N{MULTIPLICATION SIGN}", factor == 1) for factor in (0.5, 1, 2)]


def differing_settings(experiment: Experiment) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all arms: (setting, its value in each arm)."""
    settings = [[flat(run.config) for run in arm.runs] for arm in experiment.arms]
    keys = sorted({key for arm in settings for config in arm for key in config} - OF_THE_RUN)
    rows = []
    for key in keys:
        values = [", ".join(sorted({config.get(key, ABSENT) for config in arm})) or ABSENT for arm in settings]
        if len(set(values)) > 1:
            rows.append((key, values))
    return rows


def _sampling(experiment: Experiment) -> list[tuple[str, str]]:
    """How the pictures were made: the values that any picture has, in order of appearance."""
    found: dict[str, dict[str, None]] = {key: {} for key in SAMPLING}
    for run in experiment.runs:
        for row in run.samples.values():
            for key in SAMPLING:
                if row.get(key) not in (None, ""):
                    found[key][str(row[key])] = None
    return [(key, _listed(list(values))) for key, values in found.items() if values]


def _listed(values: list[str]) -> str:
    more = f", and {len(values) - LISTED} more (in samples.json of each run)" if len(values) > LISTED else ""
    return ", ".join(values[:LISTED]) + more


def _provenance(experiment: Experiment) -> dict[str, Any]:
    """What all runs share, once; what differs, run by run."""
    told = [{key: value for key, value in run.manifest.items() if key not in IN_SETTINGS} for run in experiment.runs]
    settled = {run.name: flat(manifest) for run, manifest in zip(experiment.runs, told, strict=True)}
    keys = list(dict.fromkeys(key for manifest in settled.values() for key in manifest))
    values = {key: [manifest.get(key, ABSENT) for manifest in settled.values()] for key in keys}
    shared = {key: row[0] for key, row in values.items() if len(set(row)) == 1}
    own = [key for key in keys if key not in shared]
    seeds = {run.name: ABSENT if run.seed is None else str(run.seed) for run in experiment.runs}
    return {
        "shared": {**flat(experiment.provenance), **shared},
        "columns": own,
        "runs": [(name, seeds[name], [manifest.get(key, ABSENT) for key in own]) for name, manifest in settled.items()],
    }
