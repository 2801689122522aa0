"""What can be asked of a figure, and what suits a model where nothing is said. Loads no model and imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fewbayes.fields import setting
from fewbayes.models import inspect_model
from fewbayes.settings.agreement import USUAL_RARE_TOKEN
from fewbayes.studies.flags import ScoredFlags, asked, paper_sampler
from fewbayes.studies.grid import without_path
from fewbayes.studies.subjects import StudySubject, named_subjects

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
    # the paper's; moments: its Fig. 1
    "other": Usual("full", 4, 5e-6, 0.01, 5000, (1 / 20, 1 / 5, 1), seeds=5, sampler_steps=50),
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
    usual: Usual
    guidance: float
    sampler: str
    quick: bool
    encoders: str
    workers: int | str | None
    command: str

    @property
    def steps(self) -> int:
        return self.usual.steps

    @property
    def seeds(self) -> int:
        return self.usual.seeds

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
        same = ("method", "learning_rate", "weight_std", "steps", "pictures", "sampler_steps")
        return {
            "figure": self.name,
            "model": Path(self.model).name if Path(self.model).is_dir() else self.model,
            "model_sha256": self.model_sha256,
            "subjects": [subject.name for subject in self.subjects],
            "words": [self.token, *(subject.class_word for subject in self.subjects)],
            **{name: getattr(usual, name) for name in same},
            "rank": usual.rank if usual.method == "lora" else None,
            "moments": list(self.moments),
            "guidance_scale": self.guidance,
            "sampler": self.sampler,
            "quick": self.quick,
        }


def _usual(name: str) -> str:
    return f"None: {getattr(USUAL['tiny'], name)} for tiny, else {getattr(USUAL['other'], name)}."


@dataclass(frozen=True, kw_only=True)
class FigureFlags(ScoredFlags):
    """The command of a figure; None is what suits the model."""

    output_dir: Path | None = None
    """Folder of results. None: runs/ and the figure's name."""
    seeds: int | None = setting(None, above=0, more=_usual("seeds"))
    """Runs of each kind."""
    steps: int | None = setting(None, above=0, more=_usual("steps"))
    """Iterations of the longest run."""
    method: Literal["full", "lora", "oft"] | None = setting(None, more=_usual("method"))
    """Method of the runs."""
    rank: int | None = setting(None, above=0, more=_usual("rank"))
    """Of lora."""
    learning_rate: float | None = setting(None, above=0, below=1, more=_usual("learning_rate"))
    """Rate of the runs."""
    weight_std: float | None = setting(None, above=0, below=1, more=_usual("weight_std"))
    """Standard deviation of Bayesian weights at the start."""
    sampler: str | None = None
    """Sampler of the pictures. None: the model's usual one if it is embedded, else the paper's, pndm."""
    sampler_steps: int | None = setting(None, above=0, more=_usual("sampler_steps"))
    """Its steps."""
    guidance_scale: float = setting(7.5, at_least=1)
    """Of samples, and of the guided answer that stands beside the model's own; 1: none. diffusers' and the paper's."""
    quick: bool = False
    """A few steps of one seed: to see that it works, not what it shows."""


def parse(name: str, title: str, arguments: Sequence[str]) -> Ask:
    """Everything is checked here, before anything is trained."""
    flags = asked(FigureFlags, arguments, name, f"{title}.")
    usual = USUAL["tiny" if flags.world else "other"]
    wanted = ("method", "rank", "learning_rate", "weight_std", "steps", "seeds", "sampler_steps")
    told = {key: value for key in wanted if (value := getattr(flags, key)) is not None}
    usual = replace(usual, **((QUICK if flags.quick else {}) | told))
    card = inspect_model(flags.model)
    folder: Path = flags.output_dir or Path("runs") / name
    drawn = flags.subjects or (() if flags.photographs else SEVERAL if name == "fig11" else SEVERAL[:1])
    return Ask(
        name=name,
        model=flags.model,
        model_sha256=card.fingerprint(),
        folder=folder,
        subjects=tuple(named_subjects(drawn, flags.photographs, folder, card.resolution, world=flags.world)),
        token=card.rare_token or USUAL_RARE_TOKEN,
        usual=usual,
        guidance=flags.guidance_scale,
        sampler=flags.sampler or (card.usual_sampler if flags.world else paper_sampler(card)),
        quick=flags.quick,
        encoders=flags.evaluators,
        workers=flags.workers,
        command=" ".join(["fewbayes experiment", name, *map(without_path, arguments)]),
    )
