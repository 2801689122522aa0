"""The page of a run, or of an experiment of several arms and seeds: verdict, contact sheet, curves, numbers, settings.

Knows nothing of training: everything comes from files that `read.py` read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewbayes.files.atomic import atomic_write
from fewbayes.metrics.statistics import Estimate
from fewbayes.page import curves
from fewbayes.page.parts import Block, Column, Fold, Page, Panel, Row, Sheet, Shot, Tone, drawings, facts, table
from fewbayes.page.pictures import BUDGET, FEWEST, SIDES, embed, fit, nearest, spread, weigh
from fewbayes.page.read import NOISE, SIMILARITY, Arm, Experiment, Look, Run, read_experiment
from fewbayes.page.render import ABSENT, flat, number, write_page
from fewbayes.page.summary import DIGITS, QUANTITIES, WEIGHT_NAMES, summarise_experiment
from fewbayes.page.table import Column as Heading
from fewbayes.page.table import Entry, Table, Value
from fewbayes.page.verdict import answer, card, chosen, confidence, exported, verdict
from fewbayes.stage.definition import DIP, STAGE

SHOWN_REFERENCES = 12
OF_THE_RUN = {"seed", "output_dir"}
"""Settings that differ between the runs of one arm by design."""
IN_SETTINGS = {"fingerprint", "config"}
"""Parts of the manifest that the settings already tell."""
SAMPLING = ("negative_prompt", "sampler", "steps", "guidance")
LARGE_SEED = 10**6
"""Seeds from here on are numbers that nobody reads; their pictures are counted instead."""
ABOUT_CURVES = (
    "Likeness: correlation of a sample with the nearest training image, pixel by pixel; a copy scores 1. Noise: the "
    "finest diagonal detail, in grey levels of 0 to 255, which texture raises too. Corruption score: the stage "
    "monitor's; corrupted from the amber line on."
)


def summarise(folder: Path) -> dict[str, Any]:
    """The numbers of the page: per arm and kind of weights, means, intervals and stages; see `summary.py`."""
    return summarise_experiment(read_experiment(Path(folder)))


def write_run_report(folder: Path, output: Path | None = None) -> Path:
    """Write `report.html` (default: into `folder`) and `summary.json` beside it; return the page's path."""
    experiment = read_experiment(Path(folder))
    summary = summarise_experiment(experiment)
    written = write_page(run_page(experiment, summary), Path(folder), output)
    atomic_write(written.with_name("summary.json"), json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return written


def run_page(experiment: Experiment, summary: dict[str, Any] | None = None, budget: int = BUDGET) -> Page:
    summary = summary or summarise_experiment(experiment)
    run = experiment.runs[0] if experiment.single else None
    said = verdict(run) if run else answer(summary)
    if experiment.summary:
        said = type(said)(experiment.summary[0], experiment.summary[1:], said.tone, said.confidence)
    return Page(
        title=experiment.title,
        verdict=said,
        chips=_chips(experiment),
        card=card(run) if run else None,
        sheet=contact_sheet(experiment, budget),
        folds=[
            Fold("Curves", _curves(experiment)),
            Fold("Numbers", _numbers(experiment, summary)),
            Fold("How this verdict was reached", _method(experiment)),
            Fold("The training itself", [drawings(svgs)] if (svgs := curves.signals(experiment)) else []),
            Fold("Settings, versions, hashes", _provenance(experiment)),
        ],
        notes=experiment.notes,
        arms=len(experiment.arms),
        living=bool(run and run.manifest.get("status") == "running"),
    )


def _chips(experiment: Experiment) -> list[str]:
    run, references = experiment.runs[0], experiment.references
    known = [f"{len(references)} training image{'s' * (len(references) != 1)}"] if references else []
    if not experiment.single:
        seeds = max(len(arm.runs) for arm in experiment.arms)
        return [*known, f"{len(experiment.arms)} ways to train", *([f"{seeds} seeds"] if seeds > 1 else [])]
    config, steps = run.config, run.manifest.get("steps") or run.config.get("max_train_steps")
    rate, base = config.get("learning_rate"), run.manifest.get("model")
    return [
        *known,
        "Bayesian" if config.get("bayes") else "plain",
        *([{"full": "full weights"}.get(config["method"], config["method"])] if config.get("method") else []),
        *([f"{steps} steps"] if steps else []),
        *([f"rate {rate:g}"] if isinstance(rate, float) else []),
        *([str(base["name"])] if isinstance(base, dict) and base.get("name") else []),
    ]


# --- the contact sheet ------------------------------------------------------------------------------------------------


def contact_sheet(experiment: Experiment, budget: int = BUDGET) -> Sheet:
    """Of a run: its seeds along the steps, a panel for each prompt and kind of weights.

    Of an experiment: its arms along the steps, a panel for each training seed and sample. Kept to the budget; `notes`
    say what was left out.
    """
    steps = sorted({step for run in experiment.runs for step, _ in run.pictures})
    panels = _of_run(experiment) if experiment.single else _of_arms(experiment)
    notes, shown, names = [], panels["cells"], panels["choosers"]

    def weight(side: int, steps: Sequence[int] = steps) -> int:
        return sum(weigh((_file(*cell, step) for step in steps), side) for _, rows in shown for cell, _ in rows)

    side, keep = fit(weight, budget), _use(experiment)
    kept = steps
    while weight(side, kept) > budget and (len(kept) > FEWEST or (len(shown) == 1 and len(kept) > 2)):
        kept = spread(steps, len(kept) - 1, keep)
    while weight(side, kept) > budget and len(shown) > 1:
        shown = shown[:-1]
    while weight(side, kept) > budget and len(kept) > 2:
        kept = spread(steps, len(kept) - 1, keep)
    if len(kept) < len(steps):
        notes.append(f"{len(kept)} of {len(steps)} steps are shown, to keep the page small.")
    if len(shown) < len(panels["cells"]):
        notes.append(f"{len(shown)} of {len(panels['cells'])} sets of pictures are shown, to keep the page small.")
        names = [(name, values[: 1 + max(at[i] for at, _ in shown)]) for i, (name, values) in enumerate(names)]
    made = [_panel(experiment, at, rows, kept, side) for at, rows in shown]
    pictures = [shot.picture for panel in made for row in panel.rows for shot in row.shots if shot]
    if any(picture.reduced_from for picture in pictures):
        notes.append(
            f"Pictures wider than {side} pixels are reduced to that, which hides fine noise: for that look at "
            "the files in the run folder."
        )
    return Sheet(
        panels=made if pictures else (),
        choosers=names,
        along="step",
        training=[picture for path in experiment.references[:SHOWN_REFERENCES] if (picture := embed(path, SIDES[-1]))],
        notes=notes,
    )


def _use(experiment: Experiment) -> int | None:
    found = chosen(experiment.runs[0]) if experiment.single else None
    return found[0] if found else None


def _of_run(experiment: Experiment) -> dict[str, Any]:
    """cells: (place in the choosers, rows of ((run, weights, number of the sample), row without pictures))."""
    run = experiment.runs[0]
    weights = [kind for kind in WEIGHT_NAMES if any(key[1] == kind for key in run.pictures)]
    weights.sort(key=lambda kind: kind != exported(run))
    most = max((len(files) for files in run.pictures.values()), default=0)
    told = [_recorded(run, n) for n in range(most)]
    prompts = list(dict.fromkeys(str(row.get("prompt") or "") for row in told))
    cells = []
    for p, prompt in enumerate(prompts):
        mine = [n for n in range(most) if str(told[n].get("prompt") or "") == prompt]
        for w, kind in enumerate(weights):
            rows = [((run, kind, n), Row(_seed(told[n].get("seed"), i), ())) for i, n in enumerate(mine)]
            cells.append(((p, w), rows))
    cells.sort(key=lambda cell: cell[0][::-1])
    kinds = [WEIGHT_NAMES[kind] for kind in weights]
    return {"cells": cells, "choosers": [("prompt", prompts), ("weights", kinds)]}


def _seed(seed: object, place: int) -> str:
    return f"seed {seed}" if isinstance(seed, int) and abs(seed) < LARGE_SEED else f"picture {place + 1}"


def _of_arms(experiment: Experiment) -> dict[str, Any]:
    seeds, cells = _seed_keys(experiment), []
    most = max((len(files) for run in experiment.runs for files in run.pictures.values()), default=0)
    for n in range(most):
        for s, seed in enumerate(seeds):
            rows = [
                ((_run_of(arm, seed), kind, n), Row(arm.label, (), "averaged weights" if kind == "ema" else "", index))
                for index, arm in enumerate(experiment.arms)
                for kind in WEIGHT_NAMES
                if arm.has(kind)
            ]
            cells.append(((s, n), rows))
    named = [f"{seed}" if not isinstance(seed, tuple) else f"run {seed[0] + 1}" for seed in seeds]
    return {"cells": cells, "choosers": [("training seed", named), ("picture", [str(n + 1) for n in range(most)])]}


def _panel(experiment: Experiment, at: tuple[int, ...], rows: Sequence[Any], steps: Sequence[int], side: int) -> Panel:
    use, single = _use(experiment), experiment.single
    looks = _by_step(rows[0][0][0], rows[0][0][1]) if single and rows else {}
    columns = [
        Column(
            str(step),
            "base model" if not step else _tone(looks.get(step)),
            _tone(looks.get(step)) if step else "",
            chosen=step == use,
        )
        for step in steps
    ]
    made = [
        Row(row.title, [_shot(experiment, *cell, step, row.title, side) for step in steps], row.note, row.arm)
        for cell, row in rows
    ]
    return Panel(at, columns, made)


def _shot(
    experiment: Experiment, run: Run | None, weights: str, n: int, step: int, name: str, side: int
) -> Shot | None:
    file = _file(run, weights, n, step)
    picture = embed(file, side) if file else None
    if run is None or file is None or picture is None:
        return None
    told, near = run.samples.get(file, {}), nearest(file, experiment.references[:SHOWN_REFERENCES])
    stage = _tone(_by_step(run, weights).get(step)) if step else ""
    noise = told.get(NOISE)
    seed = f"seed {told['seed']}" if isinstance(told.get("seed"), int) else ""
    more = [str(told.get("prompt") or ""), seed, f"noise {noise:.1f}" if isinstance(noise, int | float) else ""]
    averaged = ", averaged weights" if weights == "ema" else ""
    return Shot(
        picture,
        label=f"{name}{averaged}, {f'step {step}' if step else 'base model'}" + (f", {stage}" if stage else ""),
        under="" if experiment.single or not near else f"{near[1]:.2f}",
        more="; ".join(part for part in more if part),
        near=near[0] if near else None,
        likeness=near[1] if near else None,
        tone="" if experiment.single else stage,
    )


def _by_step(run: Run | None, weights: str) -> dict[int, Look]:
    return {look.step: look for look in run.looks.get(weights, ())} if run else {}


def _tone(look: Look | None) -> Tone:
    return (look.seen or look.stage) if look else ""


def _file(run: Run | None, weights: str, n: int, step: int) -> Path | None:
    files = run.pictures.get((step, weights), []) if run else []
    return files[n] if n < len(files) else None


def _recorded(run: Run, n: int) -> dict[str, Any]:
    files = (files[n] for files in run.pictures.values() if n < len(files))
    return next((run.samples[file] for file in files if file in run.samples), {})


def _seed_keys(experiment: Experiment) -> list:
    """Seeds that pair the arms; positions instead, as (position,), where runs do not tell their seeds apart."""
    seeds = [[run.seed for run in arm.runs] for arm in experiment.arms]
    if any(None in row or len(set(row)) < len(row) for row in seeds):
        return [(i,) for i in range(max(len(row) for row in seeds))]
    return sorted({seed for row in seeds for seed in row if seed is not None})


def _run_of(arm: Arm, key: object) -> Run | None:
    if isinstance(key, tuple):
        return arm.runs[key[0]] if key[0] < len(arm.runs) else None
    return next((run for run in arm.runs if run.seed == key), None)


# --- the folds --------------------------------------------------------------------------------------------------------


def _curves(experiment: Experiment) -> list[Block]:
    drawn = curves.over_steps(experiment)
    legend: list[Block] = [("legend", [(i, arm.label, arm.note) for i, arm in enumerate(experiment.arms)])]
    lines = (
        "Heavy lines are means over seeds, bands reach from the least to the greatest seed."
        if _seeds(experiment)
        else ""
    )
    dashed = "Dashed: averaged weights." if "ema" in experiment.weights else ""
    about = " ".join(part for part in (ABOUT_CURVES, lines, dashed) if part)
    return [*(legend if not experiment.single else []), ("text", about), drawings(drawn)] if drawn else []


def _seeds(experiment: Experiment) -> bool:
    return any(len(arm.runs) > 1 for arm in experiment.arms)


def _numbers(experiment: Experiment, summary: dict[str, Any]) -> list[Block]:
    """Means over seeds, below them the least and the greatest seed; of a single run its numbers alone."""
    rows = [
        (
            f"{arm['label']}, {WEIGHT_NAMES[weights]}"
            if len(arm["weights"]) > 1 or not experiment.single
            else arm["label"],
            row,
        )
        for arm in summary["arms"]
        for weights, row in arm["weights"].items()
        if row["n"]
    ]
    if not rows:
        return []
    several = _seeds(experiment)
    base = summary["base"][SIMILARITY], summary["base"][NOISE]
    about = ["Over the checkpoints after step 0.", "Small: least and greatest seed." if several else "", DIP]
    about.append(
        f"The base model has likeness {number(base[0])} and noise {number(base[1], 1)}." if base[0] is not None else ""
    )
    heads = [Heading(words, DIGITS[name]) for name, words in QUANTITIES.items()]
    stage = [Heading("runs with a corruption stage")] if several else []
    made: list[list[Entry]] = [
        [
            label,
            *(_over(row[name]) for name in QUANTITIES),
            *([f"{row['runs_with_stage']} of {row['scored']}"] if several else []),
        ]
        for label, row in rows
    ]
    blocks: list[Block] = [("text", " ".join(filter(None, about))), table(Table([Heading(""), *heads, *stage], made))]
    if summary["differences"]:
        less = summary["differences"][0]["less"]
        blocks.append(("heading", f"Difference to {less}, at the same seed"))
        made = [
            [f"{row['label']}, {WEIGHT_NAMES[row['weights']]}", *(_over(row[name], sign=True) for name in QUANTITIES)]
            for row in summary["differences"]
        ]
        blocks.append(table(Table([Heading(""), *heads], made)))
    return blocks


def _over(row: dict[str, Any], sign: bool = False) -> Entry:
    values = [value for value in row["values"] if value is not None]
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Value(Estimate(row["mean"], low, high, 1, len(values), 0), sign=sign)


def _method(experiment: Experiment) -> list[Block]:
    """What was looked at, look by look, and how far such a verdict can be trusted."""
    told = "The stage monitor compares each step's pictures with the base model's, at the same seeds, and with the "
    blocks: list[Block] = [("text", f"{told}training images. {STAGE}")]
    for run in experiment.runs if experiment.single else ():
        looks = [look for look in run.looks.get(exported(run), ()) if look.step]
        names = list(dict.fromkeys(name for look in looks for name in look.scores))
        rows: list[list[Entry]] = [
            [str(look.step), look.stage, look.seen, *(look.scores.get(name) for name in names)] for look in looks
        ]
        if rows:
            heads = [Heading("step"), Heading("stage"), Heading("this look alone"), *map(Heading, names)]
            blocks.append(table(Table(heads, rows)))
            who = "It looked while training." if run.watched else "It looked at the kept pictures, without probes."
            blocks += [("text", who), ("heading", "The last look"), ("points", list(looks[-1].evidence))]
    sure = [confidence(stage) for stage in ("good", "unclear", "corrupted")]
    return [*blocks, ("heading", "How often it is wrong"), ("points", sure)]


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


def _provenance(experiment: Experiment) -> list[Block]:
    """What differs between arms, how pictures were sampled, what all runs share, and each arm's settings."""
    blocks: list[Block] = []
    if differing := differing_settings(experiment):
        heads = [Heading("setting"), *(Heading(arm.label) for arm in experiment.arms)]
        rows = [[key, *values] for key, values in differing]
        blocks += [("heading", "What differs between the arms"), table(Table(heads, rows))]
    told = [row for run in experiment.runs for row in run.samples.values()]
    sampling = {
        key: ", ".join(list(dict.fromkeys(str(row[key]) for row in told if row.get(key) not in (None, "")))[:8])
        for key in ("prompt", *SAMPLING)
    }
    if any(sampling.values()):
        kept = {key: value for key, value in sampling.items() if value}
        blocks += [("heading", "How the pictures were sampled"), facts(kept)]
    manifests = [
        flat({key: value for key, value in run.manifest.items() if key not in IN_SETTINGS}) for run in experiment.runs
    ]
    shared = {key: value for key, value in manifests[0].items() if all(one.get(key) == value for one in manifests)}
    if found := flat(experiment.provenance) | shared:
        blocks += [("heading", "Code, hardware, data"), facts(found)]
    for arm in experiment.arms:
        if arm.runs and (config := flat(arm.runs[0].config)):
            of = f": {arm.label}" if not experiment.single else ""
            blocks += [("heading", f"All settings{of}"), facts(config)]
    return blocks
