"""One model of a sweep: how it is trained, which pictures it is asked for, how these are sampled, scored and gathered.

Samples are kept in whole folders, scores as long as all that they were made from is the same. Knows no sweep.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fewbayes.diffusion.guidance import Interval
from fewbayes.errors import UserError
from fewbayes.files.atomic import atomic_folder, atomic_write, file_sha256
from fewbayes.files.decode import plain_json, read_json, read_json_lines
from fewbayes.models import inspect_model, load_family
from fewbayes.runs.layout import HELD_OUT, REFERENCE
from fewbayes.settings.agreement import USUAL_RARE_TOKEN
from fewbayes.settings.config import TrainConfig, resolved
from fewbayes.studies.grid import train
from fewbayes.studies.memo import content, digest, recall, remember
from fewbayes.studies.prompts import IMAGES_PER_PROMPT, class_prompt, drift_prompts, prompts, samples
from fewbayes.studies.subjects import StudySubject
from fewbayes.studies.trajectory import encoders_of

BASE = "base"
HELD_APART = ", to images held out"
"""What the name of an arm ends in where its samples are compared with images that training did not see."""
Mode = Literal["sound", "paper", "both"]
STUDY, METRICS, IMAGES, LISTING = "study.json", "metrics.jsonl", "images.jsonl", "samples.json"
FACTS, MADE_FROM, FEATURES, COST = "evaluation.json", "scored_from.json", "features.sqlite", "cost.json"


@dataclass(frozen=True)
class Protocol:
    """How the pictures that are scored are made. Nothing filters them: no safety checker is ever loaded.

    unrelated: whether prompts without the rare token are sampled too, for what training does to everything else.
    tuned_within: LOW:HIGH, the noise-to-signal ratios at which a trained model answers; the base model does at others.
    """

    images_per_prompt: int = IMAGES_PER_PROMPT
    most_prompts: int | None = None
    sampler: str = "ddim"
    steps: int = 25
    guidance: float = 7.5
    seed: int = 0
    unrelated: bool = True
    tuned_within: str | None = None


@dataclass(frozen=True)
class Cell:
    """One model to be trained, sampled and scored. config, seed: of its training, None for the base model.

    root: the folder of all that comes of one base model. arm: its name in the table; kept: its name in `root`, which
    says how its settings differ from its recipe's and its samples from the usual ones, so that sweeps share what they
    both ask for. unseen: images of the
    subject that it is not trained on, beside one that the run itself may hold out.
    """

    root: Path
    subject: StudySubject
    arm: str
    kept: str
    seed: int | None
    config: TrainConfig | None
    model: str
    protocol: Protocol
    encoders: str
    mode: Mode
    unseen: Path | None = None

    @property
    def name(self) -> str:
        return self.kept if self.seed is None else f"{self.kept}-seed{self.seed}"

    @property
    def source(self) -> str:
        return self.config.output_dir if self.config else self.model

    @property
    def folder(self) -> Path:
        """The run folder, by which a failure is named."""
        return Path(self.source)

    @property
    def pictures(self) -> Path:
        return self.root / self.subject.name / "pictures" / self.name

    @property
    def scores(self) -> Path:
        return self.root / self.subject.name / "scores" / self.name

    @property
    def base(self) -> Path | None:
        """The pictures of the base model, beside which these are scored; its own have none."""
        return self.pictures.parent / BASE if self.config else None

    @property
    def apart(self) -> Path | None:
        """Images that training did not see."""
        held_out = self.folder / HELD_OUT
        return self.unseen or (held_out if self.config and held_out.is_dir() else None)

    @property
    def references(self) -> Path:
        """Images that training saw."""
        return self.folder / REFERENCE if self.apart and not self.unseen else self.subject.photographs

    @property
    def token(self) -> str:
        """The rare word of its prompts."""
        given = self.config.rare_token if self.config else None
        return given or inspect_model(self.model).rare_token or USUAL_RARE_TOKEN


def finish(cell: Cell) -> str | None:
    """Train, sample and score one model, in so far as it is not done; the reason where its numbers ran away."""
    if cell.config and (failure := train_cell(cell)):
        return failure
    sample_cell(cell)
    score_cell(cell)
    return None


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of one training: seconds of all its processors and by the clock, bytes at its peak, and whether a GPU told them
    or the estimate that stands before every training."""

    processor_seconds: float
    seconds: float
    bytes: int
    measured: bool


def train_cell(cell: Cell) -> str | None:
    """Bring the training to its end. What it costs is kept where it was made in one go."""
    import torch

    assert cell.config is not None
    fresh, gpu = not cell.folder.exists(), torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    started, used = time.perf_counter(), time.process_time()
    failure = train(cell)
    if fresh and not failure:
        taken = time.process_time() - used, time.perf_counter() - started
        need = torch.cuda.max_memory_allocated() if gpu else _estimate(cell.config, len(cell.subject.files))
        atomic_write(cell.folder / COST, json.dumps(asdict(Cost(*taken, need, gpu))) + "\n")
    return failure


def _estimate(config: TrainConfig, images: int) -> int:
    from fewbayes.training.memory import estimate

    card = inspect_model(config.model)
    return estimate(card, resolved(config, card, images)).peak


def cost_of(cell: Cell) -> Cost | None:
    file = cell.folder / COST
    return read_json(file, Cost) if cell.config and file.is_file() else None


# --- sampling ---------------------------------------------------------------------------------------------------------


def listing(cell: Cell) -> list[dict[str, Any]]:
    """The rows of samples.json: what each picture is made from, known before any is. kind: what its prompt asks for,
    the "subject", its "class" without the rare token, or what is "unrelated" to it."""
    p, word = cell.protocol, cell.subject.class_word
    texts = dict.fromkeys(prompts(cell.subject.prompt_set, cell.token, word)[: p.most_prompts], "subject")
    if p.unrelated:
        others = drift_prompts(word, world=cell.subject.prompt_set.startswith("world"))
        kinds = {class_prompt(word): "class"} | dict.fromkeys(others, "unrelated")
        texts |= dict(list(kinds.items())[: p.most_prompts])
    how = {"sampler": p.sampler, "steps": p.steps, "guidance": p.guidance, "negative_prompt": ""}
    how |= {"safety_filter": "off", "source": cell.name}
    return [
        {"file": f"{s.prompt_id:02d}-{s.sample}.png", **asdict(s), "kind": texts[s.prompt], **how}
        for s in samples(texts, p.images_per_prompt, p.seed)
    ]


def check_pictures(cell: Cell) -> bool:
    """Whether the samples are there; those of other settings are refused."""
    if not cell.pictures.is_dir():
        return False
    if plain_json(cell.pictures / LISTING) != listing(cell):
        raise UserError(f"{cell.pictures} holds samples of other settings; give another output_dir")
    return True


def sample_cell(cell: Cell) -> Path:
    """The pictures of one model; a whole folder of the same settings is kept, one of others is refused."""
    if check_pictures(cell):
        return cell.pictures
    import torch

    from fewbayes.models.switching import answering
    from fewbayes.runs.opening import open_model
    from fewbayes.sample import sample_images

    device = "cuda" if torch.cuda.is_available() else "cpu"
    family = open_model(cell.source)[0].to(device)
    p, rows = cell.protocol, listing(cell)
    words, seeds = [row["prompt"] for row in rows], [row["seed"] for row in rows]
    shared: AbstractContextManager[None] = nullcontext()
    if p.tuned_within and cell.config:
        shared = answering(Interval.read(p.tuned_within), family, load_family(cell.model).to(device))
    with shared:
        pictures = sample_images(family, words, seeds, sampler=p.sampler, steps=p.steps, guidance=p.guidance)
    with atomic_folder(cell.pictures) as staging:
        for row, picture in zip(rows, pictures, strict=True):
            picture.save(staging / row["file"])
        (staging / LISTING).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return cell.pictures


# --- scoring ----------------------------------------------------------------------------------------------------------


def score_cell(cell: Cell) -> Path:
    """The scores of one folder of samples, as `fewbayes evaluate` writes them; kept if made from the same things."""
    wanted = made_from(cell)
    if recall(cell.scores / MADE_FROM, wanted):
        return cell.scores
    from fewbayes.metrics.evaluate import evaluate_folder

    with atomic_folder(cell.scores) as staging:
        evaluate_folder(
            cell.pictures,
            reference_dir=cell.references,
            held_out_dir=cell.apart,
            mode=cell.mode,
            encoders=encoders_of(cell.encoders),
            base_dir=cell.base,
            rare_token=cell.token,
            subject=cell.subject.name,
            arm=cell.arm,
            seed=cell.seed,
            output_dir=staging,
            cache=cell.root / FEATURES,
        )
        remember(staging / MADE_FROM, wanted, lambda: True)
    return cell.scores


def made_from(cell: Cell) -> dict[str, Any]:
    """All that the scores of a cell depend on: pictures of three kinds, encoders, settings and the metrics' code."""
    return {
        "mode": cell.mode,
        "rare_token": cell.token,
        "encoders": {key: _identity(encoder) for key, encoder in sorted(encoders_of(cell.encoders).items())},
        "metrics": _metrics_code(),
        "pictures": content(cell.pictures),
        "references": content(cell.references),
        "apart": content(cell.apart) if cell.apart else None,
        "base": content(cell.base) if cell.base else None,
    }


def _identity(encoder: Any) -> str:
    """Its name and fingerprint; of one that is missing, its name."""
    identity = getattr(encoder, "identity", None)
    return f"{identity.name} {identity.fingerprint}" if identity else f"{encoder.name} is missing"


@cache
def _metrics_code() -> str:
    """Changes with every edit of a metric: scores of two versions never meet in one table."""
    import fewbayes.metrics

    (place,) = map(Path, fewbayes.metrics.__path__)
    return digest(f"{file.relative_to(place).as_posix()} {file_sha256(file)}" for file in sorted(place.rglob("*.py")))


# --- the study's own files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What is read of evaluation.json."""

    encoders: dict[str, Any]


def gather(folder: Path, cells: Sequence[Cell], described: Mapping[str, Any]) -> None:
    """metrics.jsonl and images.jsonl of the study from those of its cells, in their order; study.json last, with what
    was used."""
    folder.mkdir(parents=True, exist_ok=True)
    encoders = [read_json(cell.scores / FACTS, Facts).encoders for cell in cells]
    if any(other != encoders[0] for other in encoders):
        raise UserError(f"{folder} was scored by encoders that changed meanwhile; give the same command again")
    metrics = [row for cell in cells for row in _metric_rows(cell)]
    images = [row for cell in cells for row in _image_rows(folder, cell)]
    for name, rows in ((METRICS, metrics), (IMAGES, images)):
        atomic_write(folder / name, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    counted = {"encoders": dict(sorted(encoders[0].items())), "evaluated": len(cells)}
    atomic_write(folder / STUDY, json.dumps({**described, **counted}, indent=1, default=str) + "\n")


def _metric_rows(cell: Cell) -> Iterable[dict[str, Any]]:
    """Rows of the samples, those of the base model as a row of their own in the table; the ceiling, which is the
    subject's whoever's samples it is measured beside, is taken once."""
    for row in _rows(cell.scores / METRICS):
        if row["row"] == "samples":
            yield {**row, **_place_in(cell)}
        elif row["row"] == "unseen":
            yield {**row, "row": "samples", "arm": cell.arm + HELD_APART}
        elif cell.config is None and row["row"] != BASE:
            yield {**row, "arm": None}


def _place_in(cell: Cell) -> dict[str, str]:
    return {"row": BASE if cell.arm == BASE else "samples", "arm": cell.arm}


def _image_rows(folder: Path, cell: Cell) -> Iterable[dict[str, Any]]:
    """Rows of single samples, their files as seen from the study's folder."""
    for row in _rows(cell.scores / IMAGES):
        yield {**row, **_place_in(cell), "file": relative(cell.pictures / row["file"], folder)}


def relative(path: Path, folder: Path) -> str:
    """As seen from a folder, which need not lie above it."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path, dict[str, Any]) if path.is_file() else []
