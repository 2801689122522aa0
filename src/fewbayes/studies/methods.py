"""Methods, plain and Bayesian, on several subjects and seeds: trained, sampled and scored by the paper's protocol.

Every arm of a subject and seed sees the same pictures, timesteps, noise and weight noise streams, and is sampled with
the same prompts and seeds as the base model, so that what differs is the method. What is done is not done again: runs
resume, whole folders of samples are kept, and so are scores as long as all that they were made from is the same; else
they are made again. metrics.jsonl is gathered anew each time, and study.json written last.

    OUT/study.json, metrics.jsonl, images.jsonl   what is compared; all scores; scores of single pictures
    OUT/<subject>/photographs/                    the training images, as the model sees them
    OUT/<subject>/runs/<arm>-seed<k>/             the trainings
    OUT/<subject>/pictures/<arm>-seed<k>/, base/  the samples
    OUT/<subject>/scores/<arm>-seed<k>/, base/    their scores, and in scored_from.json what they were made from
    OUT/features.sqlite                           features of pictures, to be deleted at will
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fewbayes.errors import UserError
from fewbayes.models import inspect_model
from fewbayes.page import write_report
from fewbayes.runs.folder import atomic_folder, atomic_write, environment, file_sha256
from fewbayes.settings.config import RARE_TOKEN_MARK, USUAL_RARE_TOKEN, TrainConfig
from fewbayes.studies import study as register
from fewbayes.studies.grid import Arm, command, experiment, grid, in_parallel
from fewbayes.studies.prompts import (
    IMAGES_PER_PROMPT,
    PROMPT_SETS,
    class_prompt,
    drift_prompts,
    prompts,
    samples,
)
from fewbayes.studies.subjects import (
    StudySubject,
    apart,
    dataset_subjects,
    drawn_subject,
    photographed_subject,
)
from fewbayes.world.scenes import SUBJECTS

LABELS = {
    "full": "DreamBooth",
    "lora": "LoRA",
    "oft": "OFT",
    "monteclora": "MonteCLoRA",
    "pvera": "PVeRA",
    "tlora": "T-LoRA",
}
TAKES_BAYES = ("full", "lora", "oft")
BASE = "base"
Mode = Literal["sound", "paper", "both"]
STUDY, METRICS, IMAGES, LISTING = "study.json", "metrics.jsonl", "images.jsonl", "samples.json"
FACTS, MADE_FROM, FEATURES = "evaluation.json", "scored_from.json", "features.sqlite"
QUESTION = (
    "Does a Gaussian over the weights improve few-shot fine-tuning, method by method, in the five metrics of the paper?"
)


@dataclass(frozen=True)
class Protocol:
    """How the pictures that are scored are made. Nothing filters them: no safety checker is ever loaded.

    unrelated: whether prompts without the rare token are sampled too, for what training does to everything else.
    """

    images_per_prompt: int = IMAGES_PER_PROMPT
    most_prompts: int | None = None
    sampler: str = "ddim"
    steps: int = 25
    guidance: float = 7.5
    seed: int = 0
    unrelated: bool = True


@dataclass(frozen=True)
class Cell:
    """One model to be sampled and scored. seed: of its training, None for the base model."""

    folder: Path
    subject: StudySubject
    arm: str
    seed: int | None
    source: str
    model: str
    protocol: Protocol
    encoders: str
    mode: Mode

    @property
    def name(self) -> str:
        return self.arm if self.seed is None else f"{self.arm}-seed{self.seed}"

    @property
    def pictures(self) -> Path:
        return self.folder / self.subject.name / "pictures" / self.name

    @property
    def scores(self) -> Path:
        return self.folder / self.subject.name / "scores" / self.name


def study_arms(methods: Sequence[str], changes: Mapping[str, Any]) -> list[Arm]:
    """Each method plain and, where it takes Bayesian weights, Bayesian; `changes` hold for all arms alike."""
    arms = []
    for method in methods:
        if method not in LABELS:
            raise UserError(f"{method!r} is not a method; there are {', '.join(LABELS)}")
        arms.append(Arm(method, LABELS[method], {"method": method, **changes}))
        if method in TAKES_BAYES:
            note = "the same, its random weights with the standard deviation that the model recommends"
            settings = {"method": method, "bayes": True, **changes}
            arms.append(Arm(f"{method}-bayes", f"{LABELS[method]}, Bayesian", settings, note))
    return arms


def _token(model: str) -> str:
    """The rare word that every arm is trained with and every prompt has."""
    return inspect_model(model).rare_token or USUAL_RARE_TOKEN


# --- sampling ---------------------------------------------------------------------------------------------------------


def listing(cell: Cell, token: str) -> list[dict[str, Any]]:
    """The rows of samples.json: what each picture is made from, known before any is. kind: what its prompt asks for,
    the "subject", its "class" without the rare token, or what is "unrelated" to it."""
    p, word = cell.protocol, cell.subject.class_word
    texts = dict.fromkeys(prompts(cell.subject.prompt_set, token, word)[: p.most_prompts], "subject")
    if p.unrelated:
        others = drift_prompts(word, world=cell.subject.prompt_set.startswith("world"))
        kinds = {class_prompt(word): "class"} | dict.fromkeys(others, "unrelated")
        texts |= dict(list(kinds.items())[: p.most_prompts])
    how = {"sampler": p.sampler, "steps": p.steps, "guidance": p.guidance, "negative_prompt": ""}
    return [
        {
            "file": f"{sample.prompt_id:02d}-{sample.sample}.png",
            **asdict(sample),
            "kind": texts[sample.prompt],
            **how,
            "safety_filter": "off",
            "source": cell.name,
        }
        for sample in samples(texts, p.images_per_prompt, p.seed)
    ]


def check_pictures(cell: Cell) -> bool:
    """Whether the samples are there; those of other settings are refused."""
    if not cell.pictures.is_dir():
        return False

    def without_kind(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "kind"} for row in rows]

    found = json.loads((cell.pictures / LISTING).read_text())
    if without_kind(found) != without_kind(listing(cell, _token(cell.model))):
        raise UserError(f"{cell.pictures} holds samples of other settings; give another output_dir")
    return True


def sample_cell(cell: Cell) -> Path:
    """The pictures of one model; a whole folder of the same settings is kept, one of others is refused."""
    rows = listing(cell, _token(cell.model))
    if check_pictures(cell):
        if json.loads((cell.pictures / LISTING).read_text()) != rows:  # made before kinds were written
            atomic_write(cell.pictures / LISTING, json.dumps(rows, indent=1) + "\n")
        return cell.pictures
    import torch

    from fewbayes.sample import load_for_sampling, sample_images

    family, _ = load_for_sampling(cell.source)
    family.to("cuda" if torch.cuda.is_available() else "cpu")
    p, words, seeds = cell.protocol, [row["prompt"] for row in rows], [row["seed"] for row in rows]
    pictures = sample_images(family, words, seeds, sampler=p.sampler, steps=p.steps, guidance=p.guidance)
    with atomic_folder(cell.pictures) as staging:
        for row, picture in zip(rows, pictures, strict=True):
            picture.save(staging / row["file"])
        (staging / LISTING).write_text(json.dumps(rows, indent=1) + "\n")
    return cell.pictures


# --- scoring ----------------------------------------------------------------------------------------------------------


def score_cell(cell: Cell) -> Path:
    """The scores of one folder of samples, as `fewbayes evaluate` writes them; kept if made from the same things."""
    wanted = made_from(cell)
    if (cell.scores / FACTS).is_file() and _read(cell.scores / MADE_FROM) == wanted:
        return cell.scores
    from fewbayes.metrics.evaluate import evaluate_folder

    with atomic_folder(cell.scores) as staging:
        evaluate_folder(
            cell.pictures,
            reference_dir=cell.subject.photographs,
            mode=cell.mode,
            encoders=_encoders(cell.encoders),
            base_dir=None if cell.arm == BASE else _base(cell),
            rare_token=_token(cell.model),
            subject=cell.subject.name,
            arm=cell.arm,
            seed=cell.seed,
            output_dir=staging,
            cache=cell.folder / FEATURES,
        )
        atomic_write(staging / MADE_FROM, json.dumps(wanted, indent=1) + "\n")
    return cell.scores


def made_from(cell: Cell) -> dict[str, Any]:
    """All that the scores of a cell depend on: pictures of three kinds, encoders, settings and the metrics' code."""
    return {
        "mode": cell.mode,
        "rare_token": _token(cell.model),
        "encoders": {key: _identity(encoder) for key, encoder in sorted(_encoders(cell.encoders).items())},
        "metrics": _metrics_code(),
        "pictures": _content(cell.pictures),
        "references": _content(cell.subject.photographs),
        "base": None if cell.arm == BASE else _content(_base(cell)),
    }


def _base(cell: Cell) -> Path:
    return cell.pictures.parent / BASE


@cache
def _encoders(which: str) -> dict[str, Any]:
    """Loaded once a process."""
    from fewbayes.metrics.encoders import load_encoders

    return load_encoders(which)


def _identity(encoder: Any) -> str:
    """Its name and fingerprint; of one that is missing, its name."""
    identity = getattr(encoder, "identity", None)
    return f"{identity.name} {identity.fingerprint}" if identity else f"{encoder.name} is missing"


@cache
def _metrics_code() -> str:
    """Changes with every edit of a metric: scores of two versions never meet in one table."""
    import fewbayes.metrics

    return _digest(file.parent for place in fewbayes.metrics.__path__ for file in Path(place).rglob("__init__.py"))


def _content(folder: Path) -> str:
    """Changes with any file of the folder."""
    return _digest([folder])


def _digest(folders: Iterable[Path]) -> str:
    files = sorted(path for folder in folders for path in folder.iterdir() if path.is_file())
    return hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in files).encode()).hexdigest()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def gather(folder: Path, cells: Sequence[Cell], missing: Sequence[str], described: Mapping[str, Any]) -> None:
    """metrics.jsonl and images.jsonl of the study from those of its cells, in their order; study.json last, with what
    was used and which trainings did not come to their end."""
    encoders = {json.dumps(_read(cell.scores / FACTS)["encoders"], sort_keys=True) for cell in cells}
    if len(encoders) > 1:
        raise UserError(f"{folder} was scored by encoders that changed meanwhile; give the same command again")
    metrics = [row for cell in cells for row in _metric_rows(cell)]
    images = [row for cell in cells for row in _image_rows(folder, cell)]
    for name, rows in ((METRICS, metrics), (IMAGES, images)):
        atomic_write(folder / name, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    counted = {"encoders": json.loads(encoders.pop()), "evaluated": len(cells), "missing": list(missing)}
    atomic_write(folder / STUDY, json.dumps({**described, **counted}, indent=1, default=str) + "\n")


def _metric_rows(cell: Cell) -> Iterable[dict[str, Any]]:
    """Rows of the samples, those of the base model as a row of their own in the table; the ceiling, which is the
    subject's whoever's samples it is measured beside, is taken once."""
    for row in _rows(cell.scores / METRICS):
        if row["row"] == "samples":
            yield {**row, "row": BASE if cell.arm == BASE else "samples"}
        elif cell.arm == BASE and row["row"] != BASE:
            yield {**row, "arm": None}


def _image_rows(folder: Path, cell: Cell) -> Iterable[dict[str, Any]]:
    """Rows of single samples, their files as seen from the study's folder."""
    for row in _rows(cell.scores / IMAGES):
        file = (cell.pictures / row["file"]).relative_to(folder).as_posix()
        yield {**row, "row": BASE if cell.arm == BASE else "samples", "file": file}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.is_file() else []


# --- the study --------------------------------------------------------------------------------------------------------


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

    def cells_of(ended_alone: bool) -> list[Cell]:
        return [
            Cell(folder, subject, arm, seed, source, model, protocol, encoders, mode)
            for subject in subjects
            for arm, seed, source in _models(_runs(folder, subject), arms, seeds, model, ended_alone)
        ]

    _encoders(encoders)
    for cell in cells_of(ended_alone=False):
        check_pictures(cell)
    described = _described(folder, subjects, arms, seeds, model, protocol)
    described |= {"encoders_from": encoders, "mode": mode}
    for subject in subjects:
        runs = _runs(folder, subject)
        facts = {"model": model, "prompt": _prompt(subject)}
        trainings = grid({runs: subject}, lambda s: _settings(s, model), arms, seeds)
        experiment(runs, trainings, title=f"Methods on {subject.name}", question=QUESTION, facts=facts, workers=workers)
    cells = cells_of(ended_alone=True)
    bases = [cell for cell in cells if cell.arm == BASE]
    in_parallel(sample_cell, bases, workers)
    in_parallel(sample_cell, cells, workers)
    in_parallel(score_cell, cells, workers)
    found = {(cell.subject.name, cell.name) for cell in cells}
    wanted = [(s.name, f"{arm.name}-seed{seed}") for s in subjects for arm in arms for seed in seeds]
    gather(folder, cells, ["/".join(run) for run in wanted if run not in found], described)
    return folder


def _runs(folder: Path, subject: StudySubject) -> Path:
    return folder / subject.name / "runs"


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


def _models(
    runs: Path, arms: Sequence[Arm], seeds: Sequence[int], model: str, ended_alone: bool
) -> Iterable[tuple[str, int | None, str]]:
    """(arm, seed, where it lies): the base model, then every run, or every one that came to its end."""
    yield BASE, None, model
    for arm in arms:
        for seed in seeds:
            run = runs / f"{arm.name}-seed{seed}"
            if _ended(run) or not ended_alone:
                yield arm.name, seed, str(run)


def _ended(run: Path) -> bool:
    manifest = run / "manifest.json"
    return manifest.is_file() and json.loads(manifest.read_text()).get("status") == "done"


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
        _make_quick(asked)
    card = inspect_model(asked.model)
    changes = {"max_train_steps": asked.steps} if asked.steps else {}
    arms = study_arms(list(dict.fromkeys(asked.methods)), changes)
    folder: Path = asked.output_dir
    subjects = [drawn_subject(name, folder, card.resolution) for name in asked.subjects]
    world = asked.model == "tiny"
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


def _make_quick(asked: argparse.Namespace) -> None:
    asked.seeds, asked.steps, asked.prompts = min(asked.seeds, 1), asked.steps or 20, asked.prompts or 3
    asked.images_per_prompt, asked.num_inference_steps = 2, 5
