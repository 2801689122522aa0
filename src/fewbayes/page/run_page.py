"""The page of a run, or of an experiment of several arms and seeds: verdict, contact sheet, curves, numbers, settings.

Knows nothing of training: everything comes from files that `read.py` read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewbayes.files.atomic import atomic_write
from fewbayes.metrics.statistics import Estimate
from fewbayes.page import curves
from fewbayes.page.parts import Block, Column, Fold, Page, Panel, Row, Sheet, Shot, Tone
from fewbayes.page.pictures import BUDGET, FEWEST, SIDES, embed, nearest, spread, weigh
from fewbayes.page.read import NOISE, SIMILARITY, Arm, Experiment, Run, read_experiment
from fewbayes.page.render import ABSENT, counted, flat, number, seed_name, write_page
from fewbayes.page.summary import DIGITS, QUANTITIES, WEIGHT_NAMES, summarise_experiment
from fewbayes.page.table import Column as Heading
from fewbayes.page.table import Entry, Table, Value
from fewbayes.page.verdict import answer, card, chosen, confidence, exported, onward, verdict
from fewbayes.runs.layout import SampleRow
from fewbayes.stage.definition import DIP, STAGE

SHOWN_REFERENCES = 60
OF_THE_RUN = {"seed", "output_dir"}
"""Settings that differ between the runs of one arm by design."""
IN_SETTINGS = {"fingerprint", "config"}
"""Parts of the manifest that the settings already tell."""
SAMPLING = ("negative_prompt", "sampler", "steps", "guidance")
UNTOLD = SampleRow("")
REDUCED = (
    "Pictures wider than {side} pixels are reduced to that, which hides fine noise: for that look at the files in the "
    "run folder."
)
OVER_SEEDS = "Heavy lines are means over seeds, bands reach from the least to the greatest seed."
UNDER = "Under a picture: its likeness to the nearest training image, where 1 is a copy."
ABOUT_CURVES = (
    "Likeness: correlation of a sample with the nearest training image, pixel by pixel; a copy scores 1. Noise: the "
    "finest diagonal detail, in grey levels of 0 to 255, which texture raises too. Corruption score: the stage "
    "monitor's; corrupted from the amber line on."
)


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
        said = replace(said, headline=experiment.summary[0], lines=experiment.summary[1:])
    return Page(
        title=experiment.title,
        verdict=said,
        chips=_chips(experiment),
        card=card(run) if run else onward(experiment.provenance),
        sheet=contact_sheet(experiment, budget),
        folds=[
            Fold("Curves", _curves(experiment)),
            Fold("Numbers", _numbers(experiment, summary)),
            Fold("How this verdict was reached", _method(experiment)),
            Fold("The training itself", [("drawings", curves.signals(experiment))]),
            Fold("Settings, versions, hashes", _provenance(experiment)),
        ],
        notes=experiment.notes,
        arms=len(experiment.arms),
        living=bool(run and run.manifest.get("status") == "running"),
    )


def _chips(experiment: Experiment) -> list[str]:
    run, references = experiment.runs[0], experiment.references
    known = [counted(len(references), "training image")] if references else []
    if not experiment.single:
        seeds = max(len(arm.runs) for arm in experiment.arms)
        return [*known, f"{len(experiment.arms)} ways to train", *([f"{seeds} seeds"] if seeds > 1 else [])]
    config, steps = run.config, run.manifest.get("steps") or run.config.get("max_train_steps")
    rate, base = config.get("learning_rate"), run.manifest.get("model")
    return [
        *known,
        "Bayesian" if config.get("bayes") else "plain",
        *([str(config["method"]).replace("full", "full weights")] if config.get("method") else []),
        *([f"{steps} steps"] if steps else []),
        *([f"rate {rate:g}"] if isinstance(rate, float) else []),
        *([str(base["name"])] if isinstance(base, dict) and base.get("name") else []),
    ]


# --- the contact sheet ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One row of a contact sheet: the sample number `n` of a run along its steps. arm: its colour, None of one run."""

    run: Run | None
    weights: str
    n: int
    title: str
    arm: int | None = None

    @property
    def note(self) -> str:
        return "averaged weights" if self.weights == "ema" and self.arm is not None else ""

    def file(self, step: int) -> Path | None:
        files = self.run.pictures.get((step, self.weights), []) if self.run else []
        return files[self.n] if self.n < len(files) else None

    def tone(self, step: int) -> Tone:
        """What the monitor saw of the step; nothing of the base model."""
        for look in self.run.looks.get(self.weights, ()) if self.run and step else ():
            if look.step == step:
                return look.seen or look.stage
        return ""

    def shot(self, step: int, training: Sequence[Path], side: int) -> Shot | None:
        file = self.file(step)
        picture = embed(file, side) if file else None
        if self.run is None or file is None or picture is None:
            return None
        told, (near, likeness) = self.run.samples.get(file, UNTOLD), nearest(file, training) or (None, None)
        if near is not None and told.image_similarity is not None:
            likeness = told.image_similarity  # as the curves have it
        averaged = "averaged weights" if self.weights == "ema" else ""
        where = [self.title, averaged, f"step {step}" if step else "base model", self.tone(step)]
        noise = None if told.haar_noise is None else f"noise {told.haar_noise:.1f}"
        more = [told.prompt, None if told.seed is None else f"seed {told.seed}", noise]
        return Shot(
            picture,
            label=", ".join(filter(None, where)),
            under="" if self.arm is None or likeness is None else number(likeness),
            more="; ".join(filter(None, more)),
            near=near,
            likeness=likeness,
            tone="" if self.arm is None else self.tone(step),
        )


Strips = list[tuple[tuple[int, ...], list[Line]]]
"""(place in the choosers, lines) of each panel."""
Choosers = list[tuple[str, list[str]]]


def contact_sheet(experiment: Experiment, budget: int = BUDGET) -> Sheet:
    """Of a run: its seeds along the steps, a panel for each prompt and kind of weights.

    Of an experiment: its arms along the steps, a panel for each training seed and sample. Kept to the budget; `notes`
    say what was left out.
    """
    steps = sorted({step for run in experiment.runs for step, _ in run.pictures})
    strips, choosers = _of_run(experiment.runs[0]) if experiment.single else _of_arms(experiment)
    found = chosen(experiment.runs[0]) if experiment.single else None
    use = found[0] if found else None
    kept, count = steps, len(steps)

    def fitting(side: int) -> int:
        """How many panels, from the first on, fit with the steps that are kept; no picture after them is opened."""
        left = budget
        for fits, (_, lines) in enumerate(strips):
            left -= weigh((line.file(step) for line in lines for step in kept), side)
            if left < 0:
                return fits
        return len(strips)

    side = next((side for side in SIDES if fitting(side) == len(strips)), SIDES[-1])
    while (fits := fitting(side)) < len(strips) and count > (FEWEST if fits else 2):
        count -= 1
        kept = spread(steps, count, use)
    shown = strips[: max(fits, 1)]
    training = experiment.references[:SHOWN_REFERENCES]
    panels = [_panel(at, lines, kept, use, training, side) for at, lines in shown]
    pictures = [shot.picture for panel in panels for row in panel.rows for shot in row.shots if shot]
    told = ((kept, steps, "steps"), (shown, strips, "sets of pictures"))
    notes = [
        f"{len(a)} of {len(b)} {what} are shown, to keep the page small." for a, b, what in told if len(a) < len(b)
    ]
    if len(experiment.references) > len(training):
        notes.append(
            f"Pictures are compared with the first {len(training)} of {len(experiment.references)} training images."
        )
    notes += [REDUCED.format(side=side)] if any(picture.reduced_from for picture in pictures) else []
    if not experiment.single:
        notes.insert(0, UNDER)
    last = [max((at[i] for at, _ in shown), default=0) for i in range(len(choosers))]
    return Sheet(
        panels=panels if pictures else (),
        choosers=[(name, values[: end + 1]) for (name, values), end in zip(choosers, last, strict=True)],
        along="step",
        training=[picture for path in training if (picture := embed(path, SIDES[-1]))],
        notes=notes,
    )


def _panel(
    at: tuple[int, ...], lines: list[Line], steps: Sequence[int], use: int | None, training: Sequence[Path], side: int
) -> Panel:
    """The step to use is marked on the weights that were chosen to be the result, and on no others."""
    first, columns = lines[0], []
    for step in steps:
        tone: Tone = first.tone(step) if first.arm is None else ""
        mine = step == use and first.run is not None and first.weights == exported(first.run)
        columns.append(Column(str(step), tone if step else "base model", tone, chosen=mine))
    rows = [Row(line.title, [line.shot(step, training, side) for step in steps], line.note, line.arm) for line in lines]
    return Panel(at, columns, rows)


def _of_run(run: Run) -> tuple[Strips, Choosers]:
    """Where each prompt has one picture, prompts are the lines."""
    weights = [kind for kind in WEIGHT_NAMES if any(key[1] == kind for key in run.pictures)]
    weights.sort(key=lambda kind: kind != exported(run))
    told = [_recorded(run, n) for n in range(max(map(len, run.pictures.values()), default=0))]
    prompts = list(dict.fromkeys(row.prompt or "" for row in told))
    if len(prompts) == len(told) > 1:
        lines = [[Line(run, kind, n, prompt) for n, prompt in enumerate(prompts)] for kind in weights]
        strips: Strips = [((w,), its) for w, its in enumerate(lines)]
    else:
        mine = [[n for n, row in enumerate(told) if (row.prompt or "") == prompt] for prompt in prompts]
        strips = [
            ((w, p), [Line(run, kind, n, seed_name(told[n].seed, i)) for i, n in enumerate(mine[p])])
            for w, kind in enumerate(weights)
            for p in range(len(prompts))
        ]
    choosers = [("weights", [WEIGHT_NAMES[kind] for kind in weights]), ("prompt", prompts)]
    return strips, choosers[: len(strips[0][0]) if strips else 0]


def _recorded(run: Run, n: int) -> SampleRow:
    files = (files[n] for files in run.pictures.values() if n < len(files))
    return next((run.samples[file] for file in files if file in run.samples), UNTOLD)


def _of_arms(experiment: Experiment) -> tuple[Strips, Choosers]:
    """Training seeds pair the arms; where runs do not tell their seeds apart, their places do."""
    seeds = [[run.seed for run in arm.runs] for arm in experiment.arms]
    if any(None in row or len(set(row)) < len(row) for row in seeds):
        seeds = [list(range(len(row))) for row in seeds]
    known = sorted({seed for row in seeds for seed in row if seed is not None})
    most = max((len(files) for run in experiment.runs for files in run.pictures.values()), default=0)
    kinds = [(i, arm, kind) for i, arm in enumerate(experiment.arms) for kind in WEIGHT_NAMES if arm.has(kind)]

    def line(i: int, arm: Arm, kind: str, seed: int, n: int) -> Line:
        run = arm.runs[seeds[i].index(seed)] if seed in seeds[i] else None
        return Line(run, kind, n, arm.label, i)

    strips: Strips = [
        ((s, n), [line(*kind, seed, n) for kind in kinds]) for n in range(most) for s, seed in enumerate(known)
    ]
    return strips, [("training seed", [str(seed) for seed in known]), ("picture", [str(n + 1) for n in range(most)])]


# --- the folds --------------------------------------------------------------------------------------------------------


def _curves(experiment: Experiment) -> list[Block]:
    arms = [] if experiment.single else [(i, arm.label, arm.note) for i, arm in enumerate(experiment.arms)]
    about = [ABOUT_CURVES, OVER_SEEDS * experiment.several, "Dashed: averaged weights." * ("ema" in experiment.weights)]
    drawn = curves.over_steps(experiment)
    return [("legend", arms), ("text", " ".join(filter(None, about))), ("drawings", drawn)] if drawn else []


def _numbers(experiment: Experiment, summary: dict[str, Any]) -> list[Block]:
    """Means over seeds, below them the least and the greatest seed; of a single run its numbers alone."""
    rows: list[list[Entry]] = []
    several, base = experiment.several, summary["base"]
    for arm in summary["arms"]:
        for weights, row in arm["weights"].items():
            named = len(arm["weights"]) > 1 or not experiment.single
            label = arm["label"] + f", {WEIGHT_NAMES[weights]}" * named
            stages = [f"{row['runs_with_stage']} of {row['scored']}"] if several else []
            rows += [[label, *(_over(row[name]) for name in QUANTITIES), *stages]] if row["n"] else []
    if not rows:
        return []
    about = ["Over the checkpoints after step 0.", "Small: least and greatest seed." * several, DIP]
    if base[SIMILARITY] is not None:
        about.append(f"The base model has likeness {number(base[SIMILARITY])} and noise {number(base[NOISE], 1)}.")
    heads = [Heading(""), *(Heading(words, DIGITS[name]) for name, words in QUANTITIES.items())]
    stage = [Heading("runs with a corruption stage")] if several else []
    blocks: list[Block] = [("text", " ".join(filter(None, about))), ("table", Table([*heads, *stage], rows))]
    if summary["differences"]:
        less = summary["differences"][0]["less"]
        rows = [
            [f"{row['label']}, {WEIGHT_NAMES[row['weights']]}", *(_over(row[name], sign=True) for name in QUANTITIES)]
            for row in summary["differences"]
        ]
        blocks += [("heading", f"Difference to {less}, at the same seed"), ("table", Table(heads, rows))]
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
            blocks.append(("table", Table(heads, rows)))
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
        blocks += [("heading", "What differs between the arms"), ("table", Table(heads, rows))]
    told = [row for run in experiment.runs for row in run.samples.values()]
    sampling = {
        key: ", ".join(list(dict.fromkeys(str(v) for row in told if (v := getattr(row, key)) not in (None, "")))[:8])
        for key in ("prompt", *SAMPLING)
    }
    if any(sampling.values()):
        kept = {key: value for key, value in sampling.items() if value}
        blocks += [("heading", "How the pictures were sampled"), ("facts", kept)]
    manifests = [
        flat({key: value for key, value in run.manifest.items() if key not in IN_SETTINGS}) for run in experiment.runs
    ]
    shared = {key: value for key, value in manifests[0].items() if all(one.get(key) == value for one in manifests)}
    if found := flat(experiment.provenance) | shared:
        blocks += [("heading", "Code, hardware, data"), ("facts", found)]
    if config := flat(experiment.runs[0].config):
        of = f" of {experiment.runs[0].name}" if not experiment.single else ""
        blocks += [("heading", f"All settings{of}"), ("facts", config)]
    return blocks
