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

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.models import inspect_model
from fewbayes.page import write_report
from fewbayes.runs.provenance import environment
from fewbayes.settings.config import RARE_TOKEN_MARK, TrainConfig
from fewbayes.studies import study as register
from fewbayes.studies.grid import Arm, command, experiment, grid, in_parallel, is_done
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
from fewbayes.studies.subjects import StudySubject, apart, dataset_subjects, drawn_subject, photographed_subject
from fewbayes.world.scenes import SUBJECTS

TAKES_BAYES = ("full", "lora", "oft")
LABELS = {
    "full": "DreamBooth",
    "lora": "LoRA",
    "oft": "OFT",
    "monteclora": "MonteCLoRA",
    "pvera": "PVeRA",
    "tlora": "T-LoRA",
}
QUESTION = (
    "Does a Gaussian over the weights improve few-shot fine-tuning, method by method, in the five metrics of the paper?"
)


def study_arms(methods: Sequence[str], changes: Mapping[str, Any]) -> list[Arm]:
    """Each method plain and, where it takes Bayesian weights, Bayesian; `changes` hold for all arms alike."""
    arms = []
    for method in methods:
        if method not in LABELS:
            raise UserError(f"{method!r} is not a method; there are {', '.join(LABELS)}")
        label = LABELS[method]
        arms.append(Arm(method, label, {"method": method, **changes}))
        if method in TAKES_BAYES:
            note = "the same, its random weights with the standard deviation that the model recommends"
            settings = {"method": method, "bayes": True, **changes}
            arms.append(Arm(f"{method}-bayes", f"{label}, Bayesian", settings, note))
    return arms


def study(
    folder: Path,
    subjects: Sequence[StudySubject],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    model: str,
    protocol: Protocol,
    encoders: str,
    mode: Mode = "sound",
    workers: int | None = None,
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
    """Bayesian against plain; the kinds of LoRA against LoRA."""
    plain = arm.removesuffix("-bayes") if arm.endswith("-bayes") else "lora" if arm not in TAKES_BAYES else None
    return plain if plain in names else None


def run_methods(arguments: Sequence[str]) -> Path:
    """`fewbayes experiment methods`: the study's folder, to be made into tables and a page."""
    asked = _parser().parse_args(arguments)
    for name in ("seeds", "images_per_prompt", "num_inference_steps", "steps", "prompts", "people"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be 1 or more")
    if not asked.subjects and not asked.photographs and not asked.dataset:
        raise UserError("name at least one of --subjects, --photographs and --dataset")
    if asked.identities and not asked.dataset:
        raise UserError("--identities says who is in the pictures of --dataset; give the folder of the pictures too")
    if asked.quick:
        asked.seeds, asked.steps, asked.prompts = 1, asked.steps or 20, asked.prompts or 3
        asked.images_per_prompt, asked.num_inference_steps = 2, 5
    card, folder, world = inspect_model(asked.model), asked.output_dir, asked.model == "tiny"
    arms = study_arms(list(dict.fromkeys(asked.methods)), {"max_train_steps": asked.steps} if asked.steps else {})
    subjects = [drawn_subject(name, folder, card.resolution) for name in asked.subjects]
    subjects += [photographed_subject(given, folder, card.resolution, world=world) for given in asked.photographs]
    if asked.dataset:
        people = {"identities": asked.identities, "people": asked.people}
        subjects += dataset_subjects(asked.dataset, folder, card.resolution, world=world, **people)
    apart(subject.name for subject in subjects)
    protocol = Protocol(
        images_per_prompt=asked.images_per_prompt,
        most_prompts=asked.prompts,
        sampler=asked.sampler,
        steps=asked.num_inference_steps,
        guidance=asked.guidance_scale,
        unrelated=asked.mode == "sound",  # the authors' averages are over every picture there is
    )
    return study(
        folder,
        subjects,
        arms,
        range(asked.seeds),
        model=asked.model,
        protocol=protocol,
        encoders=asked.encoders or ("embedded" if world else "paper"),
        mode=asked.mode,
        workers=asked.workers,
    )


@register("methods", "full, LoRA and OFT, plain and Bayesian, scored by the five metrics of the paper")
def page_of_methods(arguments: Sequence[str]) -> list[Path]:
    return [write_report(run_methods(arguments))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fewbayes experiment methods", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output_dir", "--output-dir", type=Path, default=Path("runs/methods"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--subjects", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--photographs", nargs="*", default=[], metavar="DIR:CLASS", help="all images of a folder")
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="all subjects of a data set, by its own layout")
    parser.add_argument("--identities", type=Path, metavar="FILE", help="of a CelebA-HQ as --dataset: who is who")
    parser.add_argument("--people", type=int, default=30, help="drawn from --identities, 5 pictures each [30]")
    parser.add_argument(
        "--methods", nargs="+", default=["full", "lora", "oft"], metavar="METHOD", help=", ".join(LABELS)
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings per arm and subject [3]")
    parser.add_argument("--steps", type=int, help="of each training [the method's own: 200 or 400 per image]")
    parser.add_argument("--images_per_prompt", "--images-per-prompt", type=int, default=IMAGES_PER_PROMPT)
    parser.add_argument("--prompts", type=int, help="only the first so many of the 25")
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--num_inference_steps", "--num-inference-steps", type=int, default=25)
    parser.add_argument("--guidance_scale", "--guidance-scale", type=float, default=7.5)
    parser.add_argument("--encoders", metavar="embedded|paper|DIR", help="[embedded for the model tiny, else paper]")
    parser.add_argument("--mode", choices=("sound", "paper", "both"), default="sound", help="[sound]")
    parser.add_argument("--workers", type=int, help="models at a time [one per core]")
    parser.add_argument("--quick", action="store_true", help="a minute's look: 1 seed, 20 steps, 3 prompts, 2 images")
    return parser
