"""One photograph, several arms: plain and Bayesian training at one rate, wider weight noise, and a lower rate. The demo
is its smallest form.

All arms of a seed share the order of everything random; they differ in what `arms` says and in nothing else. Averaged
weights of every arm are sampled beside the raw ones of the same run. Each subject has its own page; one table speaks of
all of them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fewbayes.errors import UserError
from fewbayes.files.atomic import atomic_write
from fewbayes.metrics.statistics import Estimate, Units, differences, interval, reading
from fewbayes.models import inspect_model
from fewbayes.page import write_report
from fewbayes.page.read import Experiment, read_experiment
from fewbayes.page.summary import BOUNDS, DIGITS, QUANTITIES, WEIGHT_NAMES, run_numbers, run_stages
from fewbayes.page.table import Column, Entry, Table, Value, markdown
from fewbayes.runs.provenance import environment
from fewbayes.settings.config import TrainConfig
from fewbayes.studies import study
from fewbayes.studies.grid import Arm, command, experiment, grid
from fewbayes.studies.subjects import StudySubject, drawn_subject, named_subjects, photographed_subject
from fewbayes.world.scenes import RARE_TOKEN, SUBJECTS

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
    subject: StudySubject, model: str, steps: int, every: int, sampler: str = "ddim", images: int = IMAGES
) -> TrainConfig:
    """What all arms share; one prompt trains and samples."""
    return TrainConfig(
        model=model,
        instance_data_dir=str(subject.photographs),
        instance_prompt=f"a photo of a {RARE_TOKEN} {subject.class_word}",
        output_dir="set by the grid",
        use_ema=True,
        center_crop=True,
        max_train_steps=steps,
        validation_steps=every,
        checkpointing_steps=0,  # a minute's run is repeated rather than resumed
        num_validation_images=images,
        sampler=sampler,  # pyright: ignore[reportArgumentType]
    )


def one_shot(
    folder: Path,
    subject: StudySubject,
    common: TrainConfig,
    chosen: Sequence[Arm],
    seeds: Sequence[int],
    workers: int | None = None,
) -> Path:
    """All arms and seeds on one subject's first photograph, under `folder`."""
    trainings = grid({folder: subject}, lambda _: common, chosen, seeds)
    title = f"One photograph of a {subject.class_word}"
    facts = {"model": Path(common.model).name, "prompt": common.instance_prompt}
    return experiment(folder, trainings, title=title, question=QUESTION, facts=facts, workers=workers)


def run_demo(arguments: Sequence[str]) -> Path:
    """`fewbayes demo`: the experiment folder, to be made into a page."""
    asked = _demo_parser().parse_args(arguments)
    for name in ("seeds", "steps"):
        if getattr(asked, name) < 1:
            raise UserError(f"--{name} is {getattr(asked, name)}; it must be 1 or more")
    if asked.image and not asked.class_word:
        raise UserError("--image needs --class_word, the word for what it shows, for instance --class_word backpack")
    resolution, folder = inspect_model("tiny").resolution, asked.output_dir
    if asked.image:
        subject = photographed_subject(f"{asked.image}:{asked.class_word}", folder, resolution, world=True)
    else:
        subject = drawn_subject(asked.subject, folder, resolution)
    known, first = arms(asked.learning_rate, asked.weight_std), subject.first(1)
    common = settings(first, "tiny", asked.steps, min(SAMPLE_EVERY, asked.steps))
    return one_shot(folder, first, common, [known[name] for name in ("plain", "bayes", "slow")], range(asked.seeds))


@study("one_shot", "plain, Bayesian and a lower rate on one photograph each of several subjects")
def run_one_shot(arguments: Sequence[str]) -> list[Path]:
    """A page for each subject, and the table of all."""
    asked = _parser().parse_args(arguments)
    card, out = inspect_model(asked.model), asked.output_dir
    world = asked.model == "tiny"
    subjects = named_subjects(asked.subjects, asked.photographs, out, card.resolution, world=world)
    known = arms(asked.learning_rate, asked.weight_std)
    folders = []
    for subject in (subject.first(1) for subject in subjects):
        common = settings(subject, asked.model, asked.steps, asked.sample_every, asked.sampler)
        chosen = [known[name] for name in asked.arms]
        folders.append(one_shot(out / subject.name, subject, common, chosen, range(asked.seeds)))
    return [*map(write_report, folders), write_comparison(folders, out / "one_shot")]


def _demo_parser() -> argparse.ArgumentParser:
    about = "One photograph, plain and Bayesian fine-tuning and a lower rate, a few seeds, in minutes on two cores."
    parser = argparse.ArgumentParser("fewbayes demo", description=about)
    parser.add_argument("--output_dir", "--output-dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--image", type=Path, help="a photograph of yours instead of a drawn one")
    parser.add_argument("--class_word", "--class-word", help="what it shows, one of the objects of the embedded world")
    parser.add_argument("--subject", default=SUBJECT, choices=list(SUBJECTS), metavar="NAME", help=", ".join(SUBJECTS))
    parser.add_argument("--seeds", type=int, default=3, help="runs per arm [3]")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps per run [{STEPS}]")
    parser.add_argument("--learning_rate", "--learning-rate", type=float, default=RATE, help=f"[{RATE:g}]")
    parser.add_argument("--weight_std", "--weight-std", type=float, default=WEIGHT_STD, help=f"[{WEIGHT_STD:g}]")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fewbayes experiment one_shot", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output_dir", "--output-dir", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--subjects", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--photographs", nargs="*", default=[], metavar="PATH:CLASS", help="first image of a folder")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--sample_every", "--sample-every", type=int, default=SAMPLE_EVERY)
    parser.add_argument("--learning_rate", "--learning-rate", type=float, default=RATE, metavar="RATE")
    parser.add_argument("--weight_std", "--weight-std", type=float, default=WEIGHT_STD)
    parser.add_argument("--arms", nargs="+", default=list(arms(1, 1)), choices=list(arms(1, 1)))
    parser.add_argument("--sampler", default="ddim")
    return parser


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
    found, labels = leads(numbers, first.name), {arm.name: arm.label for arm in others}
    rows: list[list[Entry]] = [
        [
            f"{labels[arm]} less {first.label}",
            WEIGHT_NAMES[weights],
            str(max(estimate.units for estimate in row.values())),
            *(Value(estimate, sign=True) for estimate in row.values()),
        ]
        for (arm, weights), row in found.items()
    ]
    units = {unit for found in numbers.values() for values in found.values() for unit in values}
    told = reading(len(experiments), len(units))
    heads = [Column("difference"), Column("weights"), Column("pairs"), *COLUMNS]
    return "\n\n".join([*parts, f"### All subjects together\n\n{told}", markdown(Table(heads, rows))]) + "\n"


def _levels(subject: str, one: Experiment, numbers: Mapping[tuple[str, str], Numbers]) -> Table:
    rows: list[list[Entry]] = []
    for arm in one.arms:
        for weights, words in WEIGHT_NAMES.items():
            if arm.has(weights) and (arm.name, weights) in numbers:
                mine = [
                    interval(_of(subject, units), within=BOUNDS.get(name, (-1, 1)))
                    for name, units in numbers[arm.name, weights].items()
                ]
                count = sum(bool(run_stages(run, weights)) for run in arm.runs)
                rows.append([arm.label, words, f"{count} of {len(arm.runs)}", *mine])
    heads = ("arm", "weights", "runs with a corruption stage")
    return Table([*map(Column, heads), *COLUMNS], rows)


def _of(subject: str, units: Units) -> Units:
    return {unit: value for unit, value in units.items() if unit[0] == subject}


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
