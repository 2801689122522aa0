"""What can be asked of a figure, and what suits a model where nothing is said. Loads no model and imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.models import inspect_model
from fewbayes.settings.config import USUAL_RARE_TOKEN
from fewbayes.studies.grid import without_path
from fewbayes.studies.subjects import StudySubject, apart, drawn_subject, photographed_subject
from fewbayes.world.scenes import SUBJECTS

TINY = "tiny"
SEVERAL = ("swirl_fish", "zigzag_backpack", "mosaic_teapot")
"""Drawn subjects of a figure that shows several."""


@dataclass(frozen=True)
class Usual:
    """Settings under which something is to be seen. moments: the shares of `steps` at which samples are likest the
    subject for the first time, are corrupted, and are copies; pictures: samples per look; sampler_steps: for each."""

    method: str
    rank: int
    learning_rate: float
    weight_std: float
    steps: int
    moments: tuple[float, float, float]
    seeds: int
    pictures: int = 4
    sampler_steps: int = 25


USUAL = {
    "tiny": Usual("full", 4, 1e-3, 0.01, 1000, (1 / 20, 3 / 10, 1), seeds=3),
    "other": Usual("full", 4, 5e-6, 0.01, 5000, (1 / 20, 1 / 5, 1), seeds=5),  # the paper's; moments: its Fig. 1
}
QUICK: dict[str, Any] = {"steps": 16, "seeds": 1, "pictures": 1, "sampler_steps": 4}
"""What is seen of a figure when it is only tried out; nothing can be concluded from it."""


@dataclass(frozen=True)
class Ask:
    """One figure with everything decided. model_sha256: the model's fingerprint; token: the rare word of the prompts;
    workers: runs at a time."""

    name: str
    model: str
    model_sha256: str
    folder: Path
    subjects: tuple[StudySubject, ...]
    token: str
    seeds: int
    usual: Usual
    quick: bool
    encoders: str
    workers: int | None
    command: str

    @property
    def steps(self) -> int:
        return self.usual.steps

    @property
    def moments(self) -> tuple[int, ...]:
        """In steps, in order, each once."""
        return tuple(sorted({max(1, round(share * self.steps)) for share in self.usual.moments}))

    @property
    def stage(self) -> int:
        """A step amid the corruption stage."""
        return max(1, round(self.usual.moments[1] * self.steps))

    @property
    def course(self) -> tuple[int, ...]:
        """Before, amid the corruption stage, and at the end."""
        return tuple(sorted({0, self.stage, self.steps}))

    def prompt(self, subject: StudySubject) -> str:
        return f"a photo of a {self.token} {subject.class_word}"

    def facts(self) -> dict[str, Any]:
        """What the results depend on, but for the number of seeds, of which there may be more later. No paths."""
        usual = self.usual
        return {
            "figure": self.name,
            "model": Path(self.model).name if Path(self.model).is_dir() else self.model,
            "model_sha256": self.model_sha256,
            "subjects": [subject.name for subject in self.subjects],
            "words": [self.token, *(subject.class_word for subject in self.subjects)],
            "method": usual.method,
            "rank": usual.rank if usual.method == "lora" else None,
            "learning_rate": usual.learning_rate,
            "weight_std": usual.weight_std,
            "steps": usual.steps,
            "moments": list(self.moments),
            "pictures": usual.pictures,
            "sampler_steps": usual.sampler_steps,
            "quick": self.quick,
        }


def parse(name: str, title: str, arguments: Sequence[str]) -> Ask:
    """Everything is checked here, before anything is trained."""
    asked = _parser(name, title).parse_args(arguments)
    usual = USUAL["tiny" if asked.model == TINY else "other"]
    changes: dict[str, Any] = QUICK if asked.quick else {}
    told = {
        key: value
        for key in ("method", "rank", "learning_rate", "weight_std", "steps")
        if (value := getattr(asked, key)) is not None
    }
    usual = replace(usual, **(changes | told))
    seeds = usual.seeds if asked.seeds is None else asked.seeds
    for option, value in (("seeds", seeds), ("steps", usual.steps), ("rank", usual.rank)):
        if value < 1:
            raise UserError(f"--{option} is {value}; it must be 1 or more")
    if not 0 < usual.learning_rate < 1:
        raise UserError(f"--learning_rate is {usual.learning_rate}; it must lie between 0 and 1, say 1e-4")
    if not 0 < usual.weight_std < 1:
        raise UserError(f"--weight_std is {usual.weight_std}; it must lie between 0 and 1, say 0.01")
    card = inspect_model(asked.model)
    folder: Path = asked.output_dir or Path("runs") / name
    return Ask(
        name=name,
        model=asked.model,
        model_sha256=card.fingerprint(),
        folder=folder,
        subjects=_subjects(asked, folder, card.resolution, several=name == "fig11"),
        token=card.rare_token or USUAL_RARE_TOKEN,
        seeds=seeds,
        usual=usual,
        quick=asked.quick,
        encoders=asked.encoders or ("embedded" if asked.model == TINY else "paper"),
        workers=asked.workers,
        command=" ".join(["fewbayes experiment", name, *map(without_path, arguments)]),
    )


def _parser(name: str, title: str) -> argparse.ArgumentParser:
    tiny, other = USUAL["tiny"], USUAL["other"]
    parser = argparse.ArgumentParser(f"fewbayes experiment {name}", description=f"{title}.", allow_abbrev=False)

    def add(option: str, **settings: Any) -> None:
        parser.add_argument(*dict.fromkeys((f"--{option}", f"--{option.replace('_', '-')}")), **settings)

    def usual(field: str) -> str:
        return f"[{getattr(tiny, field):g} for tiny, else {getattr(other, field):g}]"

    add("model", default=TINY, help="tiny, a pipeline folder or an id on the hub [tiny]")
    add("output_dir", type=Path, help=f"[runs/{name}]")
    add("subjects", nargs="+", default=[], metavar="NAME", help=f"drawn subjects: {', '.join(SUBJECTS)}")
    add("photographs", nargs="+", default=[], metavar="FOLDER:WORD", help="photographs of yours and what they show")
    add("seeds", type=int, help=f"runs of each kind {usual('seeds')}")
    add("steps", type=int, help=f"iterations of the longest run {usual('steps')}")
    add("method", choices=("full", "lora", "oft"), help=f"[{tiny.method} for tiny, else {other.method}]")
    add("rank", type=int, help=f"of lora {usual('rank')}")
    add("learning_rate", type=float, metavar="RATE", help=usual("learning_rate"))
    add("weight_std", type=float, metavar="STD", help=f"of Bayesian weights {usual('weight_std')}")
    add("encoders", help="embedded, paper or a folder of encoders [embedded for tiny, else paper]")
    add("workers", type=int, help="runs at a time [one per core; give 1 on a GPU]")
    add("quick", action="store_true", help="a few steps of one seed: to see that it works, not what it shows")
    return parser


def _subjects(asked: argparse.Namespace, folder: Path, resolution: int, *, several: bool) -> tuple[StudySubject, ...]:
    names = asked.subjects or ([] if asked.photographs else SEVERAL if several else SEVERAL[:1])
    found = [drawn_subject(name, folder, resolution) for name in names]
    found += [photographed_subject(given, folder, resolution, world=False) for given in asked.photographs]
    apart(subject.name for subject in found)
    return tuple(found)
