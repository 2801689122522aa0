"""One photograph, several arms: plain and Bayesian training at one rate, wider weight noise, and a lower rate. The demo
is its smallest form.

All arms of a seed share the order of everything random; they differ in what `arms` says and in nothing else. Averaged
weights of every arm are sampled beside the raw ones of the same run. Each subject has its own page; one table speaks of
all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.metrics.statistics import Estimate, differences, interval, reading
from fewbayes.models import inspect_model
from fewbayes.page import write_report
from fewbayes.page.read import Experiment, read_experiment
from fewbayes.page.summary import BOUNDS, DIGITS, QUANTITIES, WEIGHT_NAMES, run_numbers, run_stages
from fewbayes.page.table import Column, Entry, Table, Value, markdown
from fewbayes.runs.provenance import environment
from fewbayes.settings.config import TrainConfig
from fewbayes.settings.flags import parse_command
from fewbayes.studies import study
from fewbayes.studies.flags import StudyFlags, asked
from fewbayes.studies.grid import Arm, command, experiment, grid, taught
from fewbayes.studies.subjects import StudySubject, drawn_subject, photographed_subject
from fewbayes.world.pipelines import shipped
from fewbayes.world.scenes import SUBJECTS

QUESTION = (
    "Does fine-tuning on one photograph pass through a corruption stage here (similarity rises, falls amid noise, "
    "recovers into copies), and what removes it: Bayesian weights, averaged weights, or a lower rate?"
)
SUBJECT = "swirl_fish"
RATE, WEIGHT_STD, STEPS, SAMPLE_EVERY = 1e-3, 0.01, 1000, 100
IMAGES = 4
"""Samples of a checkpoint."""


def arms(rate: float, weight_std: float) -> dict[str, Arm]:
    """Plain and Bayesian at one rate, wider weight noise, and the control to beat: plain at a quarter of the rate."""

    def bayesian(name: str, label: str, std: float) -> Arm:
        note = f"the same, linear layers without cross-attention random with standard deviation {std:g}"
        return Arm(name, label, {"learning_rate": rate, "bayes": True, "weight_std": std}, note)

    chosen = (
        Arm("plain", "Plain", {"learning_rate": rate}, f"AdamW at {rate:g}"),
        bayesian("bayes", "Bayesian", weight_std),
        bayesian("wide", "Bayesian, three times the noise", 3 * weight_std),
        Arm("slow", "Plain, quarter rate", {"learning_rate": rate / 4}, f"AdamW at {rate / 4:g}"),
    )
    return {arm.name: arm for arm in chosen}


def settings(
    subject: StudySubject, model: str, steps: int, every: int, sampler: str | None = None, images: int = IMAGES
) -> TrainConfig:
    """What all arms share; one prompt trains and samples."""
    return taught(
        subject,
        model=model,
        use_ema=True,
        max_train_steps=steps,
        validation_steps=every,
        checkpointing_steps=0,  # a minute's run is repeated rather than resumed
        num_validation_images=images,
        sampler=sampler,
    )


def one_shot(
    folder: Path,
    subject: StudySubject,
    common: TrainConfig,
    chosen: Sequence[Arm],
    seeds: Sequence[int],
    workers: int | str | None = None,
) -> Path:
    """All arms and seeds on one subject's first photograph, under `folder`."""
    trainings = grid({folder: subject}, lambda _: common, chosen, seeds)
    title = f"One photograph of a {subject.class_word}"
    facts = {"model": Path(common.model).name, "prompt": common.instance_prompt}
    return experiment(folder, trainings, title=title, question=QUESTION, facts=facts, workers=workers)


@dataclass(frozen=True, kw_only=True)
class ArmFlags:
    steps: int = setting(STEPS, at_least=1)
    """Of each training."""
    learning_rate: float = setting(RATE, above=0)
    """Of the plain arm."""
    weight_std: float = setting(WEIGHT_STD, at_least=0)
    """Of the Bayesian arm."""


@dataclass(frozen=True, kw_only=True)
class DemoFlags(ArmFlags):
    output_dir: Path = Path("runs/demo")
    """Folder of the runs and the page."""
    model: str = setting("tiny", choices=shipped())
    """The embedded model."""
    image: Path | None = None
    """A photograph of yours instead of a drawn one; it needs class_word."""
    class_word: str = ""
    """What it shows, one of the objects of the embedded world."""
    subject: str = setting(SUBJECT, choices=tuple(SUBJECTS), value="NAME", more=f"There are {', '.join(SUBJECTS)}.")
    """The drawn subject."""
    seeds: int = setting(1, at_least=1)
    """Trainings of each arm. Three show how far seeds differ, in three times the time."""


def run_demo(arguments: Sequence[str]) -> Path:
    """`fewbayes demo`: the experiment folder, to be made into a page."""
    about = "One photograph, plain and Bayesian fine-tuning and a lower rate, in minutes on two cores."
    flags = parse_command(DemoFlags, arguments, "demo", about)
    if flags.image and not flags.class_word:
        raise UserError("--image needs --class_word, the word for what it shows, for instance --class_word backpack")
    resolution, folder = inspect_model(flags.model).resolution, flags.output_dir
    if flags.image:
        subject = photographed_subject(f"{flags.image}:{flags.class_word}", folder, resolution, world=True)
    else:
        subject = drawn_subject(flags.subject, folder, resolution)
    known, first = arms(flags.learning_rate, flags.weight_std), subject.first(1)
    common = settings(first, flags.model, flags.steps, min(SAMPLE_EVERY, flags.steps))
    return one_shot(folder, first, common, [known[name] for name in ("plain", "bayes", "slow")], range(flags.seeds))


@dataclass(frozen=True, kw_only=True)
class OneShotFlags(ArmFlags, StudyFlags):
    sample_every: int = setting(SAMPLE_EVERY, at_least=1)
    """Steps from one checkpoint with samples to the next."""
    arms: tuple[str, ...] = setting(tuple(arms(1, 1)), choices=tuple(arms(1, 1)), several=True)
    """The first is what the others are compared with."""
    sampler: str | None = None
    """Of the samples. None: the model's usual one."""


@study("one_shot", "plain, Bayesian and a lower rate on one photograph each of several subjects")
def run_one_shot(arguments: Sequence[str]) -> list[Path]:
    """A page for each subject, and the table of all."""
    flags = asked(OneShotFlags, arguments, "one_shot", __doc__)
    known, folders = arms(flags.learning_rate, flags.weight_std), []
    chosen, seeds = [known[name] for name in flags.arms], range(flags.seeds)
    for subject in (subject.first(1) for subject in flags.study_subjects()):
        common = settings(subject, flags.model, flags.steps, flags.sample_every, flags.sampler)
        common = replace(common, num_inference_steps=flags.num_inference_steps)
        folders.append(one_shot(flags.output_dir / subject.name, subject, common, chosen, seeds, flags.workers))
    return [*map(write_report, folders), write_comparison(folders, flags.output_dir / "one_shot")]


# --- the table of all subjects ----------------------------------------------------------------------------------------

COLUMNS = [Column(words, DIGITS[name]) for name, words in QUANTITIES.items()]
Numbers = dict[str, dict[tuple[str, int], float | None]]
"""By quantity, one number for each (subject, seed)."""


def read_numbers(experiments: Mapping[str, Experiment]) -> dict[tuple[str, str], Numbers]:
    """QUANTITIES of every training, by (arm, weights); a run whose seed is not known is left out."""
    found: dict[tuple[str, str], Numbers] = {}
    for subject, one in experiments.items():
        for arm in one.arms:
            for weights in WEIGHT_NAMES:
                for run in arm.runs if arm.has(weights) else ():
                    if run.seed is not None:
                        mine = found.setdefault((arm.name, weights), {name: {} for name in QUANTITIES})
                        for name, value in run_numbers(run, weights).items():
                            mine[name][subject, run.seed] = value if math.isfinite(value) else None
    return found


def leads(numbers: Mapping[tuple[str, str], Numbers], first: str) -> dict[tuple[str, str], dict[str, Estimate]]:
    """Each arm less the first one at the same subject, seed and weights, over all subjects."""
    return {
        (arm, weights): {name: interval(differences(found[name], numbers[first, weights][name])) for name in QUANTITIES}
        for (arm, weights), found in numbers.items()
        if arm != first and (first, weights) in numbers
    }


def tables(experiments: Mapping[str, Experiment]) -> str:
    """Every subject by itself, and the differences to the first arm over all of them, in Markdown."""
    numbers = read_numbers(experiments)
    parts = [f"### {name}\n\n{markdown(_levels(name, one, numbers))}" for name, one in experiments.items()]
    first, *others = next(iter(experiments.values())).arms
    labels = {arm.name: f"{arm.label} less {first.label}" for arm in others}
    rows: list[list[Entry]] = []
    for (arm, weights), row in leads(numbers, first.name).items():
        pairs = str(max(estimate.units for estimate in row.values()))
        rows.append([labels[arm], WEIGHT_NAMES[weights], pairs, *(Value(e, sign=True) for e in row.values())])
    units = {unit for found in numbers.values() for values in found.values() for unit in values}
    told = reading(len(experiments), len(units))
    heads = [Column("difference"), Column("weights"), Column("pairs"), *COLUMNS]
    return "\n\n".join([*parts, f"### All subjects together\n\n{told}", markdown(Table(heads, rows))]) + "\n"


def _levels(subject: str, one: Experiment, numbers: Mapping[tuple[str, str], Numbers]) -> Table:
    rows: list[list[Entry]] = []
    for arm in one.arms:
        for weights, words in WEIGHT_NAMES.items():
            if arm.has(weights) and (arm.name, weights) in numbers:
                staged = sum(bool(run_stages(run, weights)) for run in arm.runs)
                row: list[Entry] = [arm.label, words, f"{staged} of {len(arm.runs)}"]
                for name, units in numbers[arm.name, weights].items():
                    its = {unit: value for unit, value in units.items() if unit[0] == subject}
                    row.append(interval(its, within=BOUNDS.get(name, (-1, 1))))
                rows.append(row)
    return Table([*map(Column, ("arm", "weights", "runs with a corruption stage")), *COLUMNS], rows)


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """`<output>.md`, and `<output>.json` with every number and what it was made with; the path of the first."""
    experiments = {folder.name: read_experiment(folder) for folder in folders}
    rows = [
        {"arm": arm, "weights": weights, "quantity": name, "subject": subject, "seed": seed, "value": value}
        for (arm, weights), found in read_numbers(experiments).items()
        for name, units in found.items()
        for (subject, seed), value in units.items()
    ]
    facts = {"command": command(), **environment(None)}
    atomic_write(output.with_suffix(".json"), json.dumps({"facts": facts, "numbers": rows}, indent=1) + "\n")
    atomic_write(output.with_suffix(".md"), tables(experiments))
    return output.with_suffix(".md")
