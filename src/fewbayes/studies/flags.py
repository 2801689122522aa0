"""What every study can be asked: subjects, model, seeds. A study adds what it alone has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fewbayes.fields import setting
from fewbayes.models import ModelCard, inspect_model
from fewbayes.models.registry import family_named
from fewbayes.settings.flags import parse_command
from fewbayes.settings.recipes import RECIPES
from fewbayes.studies.executors import executor_of
from fewbayes.studies.subjects import GROUPS, StudySubject, named_subjects
from fewbayes.world.pipelines import is_embedded
from fewbayes.world.scenes import ALL_SUBJECTS

T = TypeVar("T")


def _is_executor(workers: str) -> bool:
    return bool(executor_of(workers))


@dataclass(frozen=True, kw_only=True)
class SubjectFlags:
    model: str = "tiny"
    """tiny (or another embedded one), a pipeline folder or an id on the hub."""
    subjects: tuple[str, ...] = setting(
        (), several=True, value="NAME", more=f"There are {', '.join((*GROUPS, *ALL_SUBJECTS))}."
    )
    """Subjects that the embedded world draws."""
    photographs: tuple[str, ...] = setting((), several=True, value="PATH:CLASS")
    """Folders of photographs, or single ones, each with the word for what it shows."""
    workers: str | None = setting(None, value="N|slurm:...|ray:...", must=(_is_executor, "a number, slurm or ray"))
    """Where trainings run: so many at a time on this machine, or on a cluster (docs/studies.md). None: one per core."""

    @property
    def world(self) -> bool:
        """Whether the model is an embedded one, which knows the embedded world's words alone."""
        return is_embedded(self.model)


@dataclass(frozen=True, kw_only=True)
class ScoredFlags(SubjectFlags):
    """Of a study that asks encoders about pictures."""

    encoders: str | None = setting(None, value="embedded|paper|DIR")
    """Encoders of the scores. None: embedded for an embedded model, else paper."""

    @property
    def evaluators(self) -> str:
        return self.encoders or ("embedded" if self.world else "paper")


@dataclass(frozen=True, kw_only=True)
class StudyFlags(SubjectFlags):
    output_dir: Path
    """Folder of the study; the same command continues what is there."""
    seeds: int = setting(5, at_least=1)
    """Trainings of each arm and subject."""
    learning_rate: float = setting(1e-3, above=0)
    """Of the plain arm."""
    num_inference_steps: int = setting(25, at_least=1)
    """Steps of the sampler."""

    def study_subjects(self) -> list[StudySubject]:
        """The subjects with their images under `output_dir`. UserError without any."""
        resolution = inspect_model(self.model).resolution
        return named_subjects(self.subjects, self.photographs, self.output_dir, resolution, world=self.world)


def paper_sampler(card: ModelCard, asked: str | None = None) -> str:
    """The sampler that is asked for, else that of the paper's recipes, where the model has it, else its usual one."""
    theirs = asked or RECIPES["paper-dreambooth"].settings(False)["sampler"]
    return theirs if theirs in family_named(card.family).samplers else card.usual_sampler


def asked(flags: type[T], arguments: Sequence[str], name: str, about: str | None) -> T:
    """What a study is asked, as its dataclass of flags. about: its module's docstring, whose first part is the help."""
    return parse_command(flags, arguments, f"experiment {name}", (about or "").split("\n\n")[0].replace("\n", " "))
