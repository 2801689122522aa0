"""What is to be scored: pictures with their prompts, seeds and subjects, and the references they are held against.

Reads a run of ours, a flat folder, and the layout of DreamBooth evaluations (`<subject>-<k>/*.png`, one folder a
prompt). Nothing is left out in silence: what cannot be read or was not listed is said in `notes`. Knows no encoders.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import yaml
from PIL import Image

from fewbayes.data import decoding
from fewbayes.data.images import FORMATS
from fewbayes.errors import UserError
from fewbayes.runs.folder import CONFIG, MANIFEST, RunError, read_manifest

LISTINGS = ("samples.json", "samples.jsonl", "metadata.jsonl")
PROMPT_FOLDER = re.compile(r"(?P<subject>.+)-(?P<number>\d+)")
SMALLEST_SIDE = 2
"""Of a picture, in pixels; noise is read off blocks of 2 x 2."""
Kind = Literal["subject", "class", "unrelated"]
"""What a prompt asks for: the subject, another thing of its class, or something else."""


@dataclass(frozen=True)
class Sample:
    """A picture. file: its name in the folder that is scored. prompt_id, sample: which prompt, and which of it.

    kind: of its prompt, where the listing says it.
    """

    file: str
    path: Path
    sha256: str
    subject: str | None = None
    prompt: str | None = None
    prompt_id: int | None = None
    sample: int | None = None
    seed: int | None = None
    kind: Kind | None = None

    @property
    def folder(self) -> str:
        """The folder that it has, or would have, in the layout of DreamBooth evaluations."""
        above, _, _ = self.file.rpartition("/")
        match = PROMPT_FOLDER.fullmatch(above)
        if match and match["subject"] == self.subject:
            return above
        return f"{self.subject or 'subject'}-{(self.prompt_id or 0) + 1}"

    @property
    def pair(self) -> tuple[Any, ...]:
        """Equal for pictures of two models that belong together: same prompt and seed, else same file name."""
        return (self.file,) if self.seed is None else (self.prompt, self.seed)


@dataclass(frozen=True)
class Unreadable:
    """Why a picture cannot be scored, and whose it is."""

    subject: str | None
    reason: str


@dataclass(frozen=True)
class Pictures:
    """samples: readable ones, in order. unreadable: the others by file name."""

    folder: Path
    samples: tuple[Sample, ...]
    unreadable: dict[str, Unreadable] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of(self, subject: str | None) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.subject == subject)

    @property
    def subjects(self) -> list[str | None]:
        """Those of whom nothing can be read are among them."""
        return list(dict.fromkeys(picture.subject for picture in (*self.samples, *self.unreadable.values())))

    def lost(self, subject: str | None) -> int:
        """How many of a subject's pictures cannot be read."""
        return sum(picture.subject == subject for picture in self.unreadable.values())


NO_PICTURES = Pictures(Path(), ())


@dataclass(frozen=True)
class Source:
    """What a path given to `evaluate` stands for. subject: of a run, by the folder of its photographs."""

    pictures: Path
    reference: Path | None = None
    rare_token: str | None = None
    model: str | None = None
    weights: str | None = None
    subject: str | None = None
    seed: int | None = None


def open_picture(path: Path) -> Image.Image:
    """The picture as RGB, upright, transparency laid on white; raises UserError for what is none."""
    try:
        return decode(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def decode(data: bytes) -> Image.Image:
    """The picture in the bytes of a file; the reason of a UserError names no file."""
    picture, _ = decoding.decode(data)
    if min(picture.size) < SMALLEST_SIDE:
        raise UserError(f"{picture.width} x {picture.height} pixels; {SMALLEST_SIDE} x {SMALLEST_SIDE} at least")
    return picture


# --- which folder -----------------------------------------------------------------------------------------------------


def find_source(source: str | Path, samples: str | None = None) -> Source:
    """A run's last samples (or those of `samples` inside it) and its references; any other folder is itself."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give a run or a folder of pictures")
    config = folder / CONFIG
    if not config.is_file():
        return Source(_inside(folder, samples), model=_model_behind(_inside(folder, samples)))
    settings: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    reference = folder / "reference"
    return Source(
        _inside(folder, samples) if samples else _last_samples(folder),
        reference if reference.is_dir() else None,
        settings.get("rare_token"),
        settings.get("model"),
        _exported(folder),
        Path(settings["instance_data_dir"]).name if settings.get("instance_data_dir") else None,
        settings.get("seed"),
    )


def _inside(folder: Path, samples: str | None) -> Path:
    inner = folder / samples if samples else folder
    if not inner.is_dir():
        raise UserError(f"there is no folder {inner}; --samples names one inside {folder}")
    return inner


def _last_samples(run: Path) -> Path:
    steps = sorted((run / "samples").glob("step-*"))
    if not steps:
        raise UserError(
            f"the run {run} holds no samples; make some by `fewbayes sample {run} --prompt ... --output_dir DIR` and "
            "evaluate DIR, or name a folder inside the run with --samples"
        )
    return steps[-1]


def _exported(run: Path) -> str | None:
    try:
        return read_manifest(run).exported if (run / MANIFEST).is_file() else None
    except RunError:
        return None


def _model_behind(folder: Path) -> str | None:
    """The model that made the pictures of a folder, as far as its listing says."""
    named = next((row.get("source") for row in _listing(folder)[0] or () if row.get("source")), None)
    if not named or not (Path(named) / CONFIG).is_file():
        return named
    return (yaml.safe_load((Path(named) / CONFIG).read_text(encoding="utf-8")) or {}).get("model")


# --- what lies in it --------------------------------------------------------------------------------------------------


def read_samples(
    folder: Path,
    *,
    prompt: str | None = None,
    subject: str | None = None,
    weights: str | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Pictures:
    """The pictures of a folder in the order of its listing, else of their names.

    prompt: for all pictures that no listing names. prompts: by sub-folder, for the layout of DreamBooth evaluations.
    weights: which of a run's samples, "raw" or "ema", where a listing holds both.
    """
    rows, notes = _listing(folder)
    if rows is None and not _files(folder):
        return _prompt_folders(folder, prompt, subject, prompts or {}, weights)
    if rows is None:
        rows = [{"file": file.name} for file in _files(folder)]
    else:
        chosen = weights or "raw"
        kept = [row for row in rows if row.get("weights") in (None, chosen)]
        if len(kept) < len(rows):
            notes.append(f"of raw and averaged weights, the {len(kept)} samples of the {chosen} ones are scored")
        rows = kept
        _each_once(folder, [row["file"] for row in rows])
        stray = {file.name for file in _files(folder)} - {row["file"] for row in rows}
        if stray:
            notes.append(f"left out, as the listing does not name them: {', '.join(sorted(stray))}")
    found, unreadable = _hashed(folder, [row["file"] for row in rows], subject)
    samples = [_sample(row, folder, found, subject, prompt) for row in rows if row["file"] in found]
    if not samples and not unreadable:
        raise UserError(f"{folder} holds no pictures; give a folder of {', '.join(sorted(FORMATS))} files")
    return Pictures(folder, tuple(_numbered(samples)), unreadable, tuple(notes))


def read_references(folder: Path, subjects: Sequence[str | None]) -> dict[str | None, Pictures]:
    """References by subject: of the sub-folders that bear the subjects' names, else one folder for the one subject."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; reference_dir holds the photographs of the subject")
    named = [subject for subject in subjects if subject and (folder / subject).is_dir()]
    if named and not _files(folder):
        lost = [subject for subject in subjects if subject not in named]
        if lost:
            raise UserError(f"{folder} has no folder for {', '.join(str(subject) for subject in lost)}")
        return {subject: _plain(folder / str(subject), subject) for subject in subjects}
    if len(subjects) > 1:
        raise UserError(f"{folder} holds pictures of one subject, and there are {len(subjects)}: give a folder each")
    return {subject: _plain(folder, subject) for subject in subjects}


def _plain(folder: Path, subject: str | None) -> Pictures:
    files = [file.name for file in _files(folder)]
    if not files:
        raise UserError(f"{folder} holds no pictures; reference_dir holds the photographs of the subject")
    found, unreadable = _hashed(folder, files, subject)
    samples = [Sample(file, folder / file, found[file], subject) for file in files if file in found]
    return Pictures(folder, tuple(samples), unreadable)


def _prompt_folders(
    folder: Path, prompt: str | None, subject: str | None, prompts: Mapping[str, str], weights: str | None
) -> Pictures:
    """`<subject>-<k>/` is prompt k of a subject; any other sub-folder with pictures is a subject of its own."""
    samples: list[Sample] = []
    unreadable: dict[str, Unreadable] = {}
    notes: list[str] = []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if not _files(inner) and not any((inner / name).is_file() for name in LISTINGS):
            notes.append(f"left out, no pictures: {inner.name}/")
            continue
        match = PROMPT_FOLDER.fullmatch(inner.name)
        owner = subject or (match["subject"] if match else inner.name)
        part = read_samples(inner, prompt=prompts.get(inner.name, prompt), subject=owner, weights=weights)
        unreadable |= {f"{inner.name}/{file}": lost for file, lost in part.unreadable.items()}
        notes += [f"{inner.name}: {note}" for note in part.notes]
        for sample in part.samples:
            number = int(match["number"]) - 1 if match else sample.prompt_id
            samples.append(replace(sample, file=f"{inner.name}/{sample.file}", prompt_id=number))
    if not samples and not unreadable:
        raise UserError(f"{folder} holds no pictures; give a folder of {', '.join(sorted(FORMATS))} files")
    return Pictures(folder, tuple(samples), unreadable, tuple(notes))


def _files(folder: Path) -> list[Path]:
    """The picture files by name."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in FORMATS and not path.name.startswith("."))
    return sorted((path for path in found if path.is_file()), key=lambda path: path.name)


def _each_once(folder: Path, files: Sequence[str]) -> None:
    twice = sorted(file for file, count in Counter(files).items() if count > 1)
    if twice:
        raise UserError(f"the listing of {folder} names {', '.join(twice)} more than once; leave one row of each")


def _hashed(folder: Path, files: Iterable[str], subject: str | None) -> tuple[dict[str, str], dict[str, Unreadable]]:
    """SHA-256 by file, and the files that cannot be read."""
    hashes: dict[str, str] = {}
    broken: dict[str, Unreadable] = {}
    for file in files:
        try:
            data = (folder / file).read_bytes()
            decode(data)
            hashes[file] = hashlib.sha256(data).hexdigest()
        except OSError as error:
            broken[file] = Unreadable(subject, error.strerror or str(error))
        except UserError as error:
            broken[file] = Unreadable(subject, str(error))
    return hashes, broken


def _listing(folder: Path) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """Rows of file, prompt, seed; for the folder of one kind of weights they lie in the folder above."""
    for place, below in ((folder, ""), (folder.parent, folder.name + "/")):
        for name in LISTINGS:
            path = place / name
            if path.is_file():
                rows = [_row(row, f"{path}, row {number}") for number, row in enumerate(_parsed(path), start=1)]
                rows = [
                    row | {"file": row["file"].removeprefix(below)} for row in rows if row["file"].startswith(below)
                ]
                if below:
                    rows = [{**row, "weights": None} for row in rows]
                if rows:
                    return rows, []
    return None, []


def _parsed(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); mend it or move it away") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} holds no list of rows but {rows!r}"[:200] + "; mend it or move it away")
    return rows


def _row(row: Any, place: str) -> dict[str, Any]:
    """A row of a listing; what other programs put beside our keys is left alone."""
    if not isinstance(row, dict):
        raise UserError(f"{place} is {row!r}"[:200] + '; a row is {"file": ..., "prompt": ..., "seed": ...}')
    found = {**row, "file": row.get("file") or row.get("file_name"), "prompt": row.get("prompt") or row.get("text")}
    for key in ("file", "prompt", "weights", "source"):
        value = found.get(key)
        if not isinstance(value, str) and (value is not None or key == "file"):
            raise UserError(f"{place} has the {key} {value!r}"[:200] + "; it must be a text")
    if not isinstance(found.get("seed"), int | None):
        raise UserError(f"{place} has the seed {found['seed']!r}"[:200] + "; it must be a whole number")
    if found.get("kind") not in (None, *get_args(Kind)):
        raise UserError(f"{place} has the kind {found['kind']!r}"[:200] + f"; it is one of {', '.join(get_args(Kind))}")
    return found | {"file": PurePosixPath(found["file"]).as_posix()}


def _sample(
    row: dict[str, Any], folder: Path, hashes: Mapping[str, str], subject: str | None, prompt: str | None
) -> Sample:
    file = row["file"]
    words = row.get("prompt") or prompt
    return Sample(file, folder / file, hashes[file], subject, words, seed=row.get("seed"), kind=row.get("kind"))


def _numbered(samples: Sequence[Sample]) -> list[Sample]:
    """Prompts numbered in the order of their first picture, and the pictures of each."""
    numbers: dict[str | None, int] = {}
    counts: dict[str | None, int] = {}
    numbered = []
    for sample in samples:
        prompt = sample.prompt
        counts[prompt] = counts.get(prompt, -1) + 1
        number = numbers.setdefault(prompt, len(numbers))
        numbered.append(replace(sample, prompt_id=number, sample=counts[prompt]))
    return numbered


def read_prompts(path: Path) -> dict[str, str]:
    """Prompts by folder from the authors' metadata: {key: {"data_dir": "dog-1", "instance_prompt": "a qwe dog"}}."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {entry["data_dir"]: entry["instance_prompt"] for entry in entries.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path} cannot be read as prompts ({error!r}); it holds {{"1": {{"data_dir": "dog-1", "instance_prompt": '
            '"a qwe dog in the snow"}}, ...}'
        ) from error
