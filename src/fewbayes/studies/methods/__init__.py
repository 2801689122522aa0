"""Methods, plain and Bayesian, on several subjects and seeds: trained, sampled and scored by the paper's protocol.

Every arm of a subject and seed sees the same pictures, timesteps, noise and weight noise streams, and is sampled with
the same prompts and seeds as the base model, so that what differs is the method. What is done is not done again: runs
resume, whole folders of samples are kept, and so are scores as long as all that they were made from is the same; else
they are made again. metrics.jsonl is gathered anew each time, and study.json written last.

    OUT/study.json, metrics.jsonl, images.jsonl   what is compared; all scores; scores of single pictures
    OUT/report.html, table.md, .tex, .csv, .json  what is read off them (`fewbayes.page.evaluation`)
    OUT/<subject>/photographs/                    the training images, as the model sees them
    OUT/<subject>/runs/<arm>-seed<k>/             the trainings
    OUT/<subject>/pictures/<arm>-seed<k>/, base/  the samples
    OUT/<subject>/scores/<arm>-seed<k>/, base/    their scores, and in scored_from.json what they were made from
    OUT/features.sqlite                           features of pictures, to be deleted at will
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.methods import registered
from fewbayes.models import inspect_model
from fewbayes.page import write_report
from fewbayes.runs.provenance import environment
from fewbayes.settings.agreement import RARE_TOKEN_MARK
from fewbayes.settings.config import TrainConfig
from fewbayes.studies import study
from fewbayes.studies.executors import in_parallel
from fewbayes.studies.flags import ScoredFlags, asked
from fewbayes.studies.grid import Arm, command, experiment, grid, is_done
from fewbayes.studies.methods.cells import (
    BASE,
    Cell,
    Mode,
    Protocol,
    check_pictures,
    encoders_of,
    gather,
    sample_cell,
    score_cell,
)
from fewbayes.studies.prompts import IMAGES_PER_PROMPT, PROMPT_SETS
from fewbayes.studies.subjects import StudySubject, dataset_subjects, named_subjects

LABELS = {name: entry.title for name, entry in registered().items()}
QUESTION = (
    "Does a Gaussian over the weights improve few-shot fine-tuning, method by method, in the five metrics of the paper?"
)


def study_arms(methods: Sequence[str], changes: Mapping[str, Any]) -> list[Arm]:
    """Each method plain and Bayesian; `changes` hold for all arms alike."""
    arms = []
    for method in methods:
        if method not in LABELS:
            raise UserError(f"{method!r} is not a method; there are {', '.join(LABELS)}")
        label = LABELS[method]
        arms.append(Arm(method, label, {"method": method, **changes}))
        note = "the same, its random weights with the standard deviation that the model recommends"
        settings = {"method": method, "bayes": True, **changes}
        arms.append(Arm(f"{method}-bayes", f"{label}, Bayesian", settings, note))
    return arms


def run_study(
    folder: Path,
    subjects: Sequence[StudySubject],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    model: str,
    protocol: Protocol,
    encoders: str,
    mode: Mode = "sound",
    workers: int | str | None = None,
) -> Path:
    """Train, sample and score whatever is not there yet, then gather all of it; the study's folder.

    What can be refused is refused first, and what the folder says of itself changes last.
    """
    places = {folder / subject.name / "runs": subject for subject in subjects}
    trainings = grid(places, lambda subject: _settings(subject, model), arms, seeds)
    rest = model, protocol, encoders, mode
    bases = [Cell(folder, subject, BASE, None, model, *rest) for subject in subjects]
    tuned = [Cell(folder, t.subject, t.arm.name, t.seed, str(t.folder), *rest) for t in trainings]
    encoders_of(encoders)
    for cell in (*bases, *tuned):
        check_pictures(cell)
    described = _described(folder, subjects, arms, seeds, model, protocol)
    described |= {"encoders_from": encoders, "mode": mode}
    for place, subject in places.items():
        experiment(
            place,
            [training for training in trainings if training.subject is subject],
            title=f"Methods on {subject.name}",
            question=QUESTION,
            facts={"model": model, "prompt": _prompt(subject)},
            workers=workers,
        )
    ended = [cell for cell in tuned if is_done(Path(cell.source))]
    cells = sorted([*bases, *ended], key=lambda cell: subjects.index(cell.subject))
    in_parallel(sample_cell, bases, workers)
    in_parallel(sample_cell, ended, workers)
    in_parallel(score_cell, cells, workers)
    missing = [f"{cell.subject.name}/{cell.name}" for cell in tuned if cell not in ended]
    gather(folder, cells, described | {"missing": missing})
    return folder


def _prompt(subject: StudySubject) -> str:
    return f"a photo of a {RARE_TOKEN_MARK} {subject.class_word}"


def _settings(subject: StudySubject, model: str) -> TrainConfig:
    return TrainConfig(
        model=model,
        instance_data_dir=str(subject.photographs),
        instance_prompt=_prompt(subject),
        output_dir="set by the grid",
        center_crop=True,
        checkpointing_steps=0,
    )


def _described(
    folder: Path,
    subjects: Sequence[StudySubject],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    model: str,
    protocol: Protocol,
) -> dict[str, Any]:
    """study.json: what is compared with what, and all that the pictures depend on."""
    names = {arm.name for arm in arms}
    texts = {s.prompt_set: PROMPT_SETS[s.prompt_set][: protocol.most_prompts] for s in subjects}
    return {
        "title": f"{', '.join(s.name for s in subjects)}: methods, plain and Bayesian",
        "question": QUESTION,
        "arms": [{"name": a.name, "label": a.label, "note": a.note, "against": _against(a.name, names)} for a in arms],
        "subjects": [
            {
                "name": s.name,
                "class_word": s.class_word,
                "prompt_set": s.prompt_set,
                "references": s.photographs.relative_to(folder).as_posix(),
            }
            for s in subjects
        ],
        "seeds": list(seeds),
        "model": model,
        "sampling": {**asdict(protocol), "safety_filter": "off: none is loaded", "prompts": texts},
        "provenance": {"command": command(), **environment(None)},
    }


def _against(arm: str, names: set[str]) -> str | None:
    """Bayesian against plain."""
    plain = arm.removesuffix("-bayes")
    return plain if plain != arm and plain in names else None


@dataclass(frozen=True, kw_only=True)
class MethodsFlags(ScoredFlags):
    """Methods, plain and Bayesian, on several subjects and seeds, scored by the five metrics of the paper."""

    output_dir: Path = Path("runs/methods")
    """Folder of the study; the same command continues what is there."""
    dataset: Path | None = setting(None, value="DIR")
    """All subjects of a data set, by its own layout."""
    identities: Path | None = setting(None, value="FILE")
    """Of a CelebA-HQ as --dataset: who is who."""
    people: int = setting(30, above=0)
    """People drawn from --identities, 5 pictures each."""
    methods: tuple[str, ...] = setting(("full", "lora", "oft"), several=True, value="METHOD", more=", ".join(LABELS))
    """Methods that are compared, of"""
    seeds: int = setting(3, above=0)
    """Trainings of each arm and subject."""
    steps: int | None = setting(None, above=0)
    """Steps of each training. None: the method's own, 200 or 400 per image."""
    images_per_prompt: int = setting(IMAGES_PER_PROMPT, above=0)
    """Pictures of each prompt."""
    prompts: int | None = setting(None, above=0)
    """Only the first so many of the 25."""
    sampler: str = "ddim"
    """Sampler of the pictures."""
    num_inference_steps: int = setting(25, above=0)
    """Steps of the sampler."""
    guidance_scale: float = setting(7.5, at_least=0)
    """Classifier-free guidance; 1 is none."""
    mode: Mode = "sound"
    """docs/metrics.md says what sound and paper mean."""
    quick: bool = False
    """A minute's look: 1 seed, 20 steps, 3 prompts, 2 images."""


def run_methods(arguments: Sequence[str]) -> Path:
    """`fewbayes experiment methods`: the study's folder, to be made into tables and a page."""
    flags = asked(MethodsFlags, arguments, "methods", MethodsFlags.__doc__)
    if flags.identities and not flags.dataset:
        raise UserError("--identities says who is in the pictures of --dataset; give the folder of the pictures too")
    if flags.quick:
        fewer = {"seeds": 1, "steps": flags.steps or 20, "prompts": flags.prompts or 3, "images_per_prompt": 2}
        flags = replace(flags, **fewer, num_inference_steps=5)
    card, folder, world = inspect_model(flags.model), flags.output_dir, flags.world
    arms = study_arms(list(dict.fromkeys(flags.methods)), {"max_train_steps": flags.steps} if flags.steps else {})
    people, others = {"identities": flags.identities, "people": flags.people}, []
    if flags.dataset:
        others = dataset_subjects(flags.dataset, folder, card.resolution, world=world, **people)
    subjects = named_subjects(flags.subjects, flags.photographs, folder, card.resolution, world=world, others=others)
    protocol = Protocol(
        images_per_prompt=flags.images_per_prompt,
        most_prompts=flags.prompts,
        sampler=flags.sampler,
        steps=flags.num_inference_steps,
        guidance=flags.guidance_scale,
        unrelated=flags.mode == "sound",  # the authors' averages are over every picture there is
    )
    return run_study(
        folder,
        subjects,
        arms,
        range(flags.seeds),
        model=flags.model,
        protocol=protocol,
        encoders=flags.evaluators,
        mode=flags.mode,
        workers=flags.workers,
    )


@study("methods", "full, LoRA and OFT, plain and Bayesian, scored by the five metrics of the paper")
def page_of_methods(arguments: Sequence[str]) -> list[Path]:
    return [write_report(run_methods(arguments))]
