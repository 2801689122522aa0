"""What is to be scored: pictures with their prompts, seeds and subjects, and the references they are held against.

Reads a flat folder and the layout of DreamBooth evaluations (`<subject>-<k>/*.png`, one folder a
prompt). Nothing is left out in silence: what cannot be read or was not listed is said in `notes`. Knows no encoders.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from fewbayes.data import decoding
from fewbayes.data.images import FORMATS
from fewbayes.errors import UserError
from fewbayes.metrics.listing import LISTINGS, Kind, Listed, read_listing

PROMPT_FOLDER = re.compile(r"(?P<subject>.+)-(?P<number>\d+)")
SMALLEST_SIDE = 2
"""Of a picture, in pixels; noise is read off blocks of 2 x 2."""


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
    rows, notes = read_listing(folder), list[str]()
    if not rows and not _files(folder):
        return _prompt_folders(folder, prompt, subject, prompts or {}, weights)
    if rows:
        chosen = weights or "raw"
        kept = [row for row in rows if row.weights in (None, chosen)]
        if len(kept) < len(rows):
            notes.append(f"of raw and averaged weights, the {len(kept)} samples of the {chosen} ones are scored")
        rows = kept
        twice = sorted(file for file, count in Counter(row.file for row in rows).items() if count > 1)
        if twice:
            raise UserError(f"the listing of {folder} names {', '.join(twice)} more than once; leave one row of each")
        stray = {file.name for file in _files(folder)} - {row.file for row in rows}
        if stray:
            notes.append(f"left out, as the listing does not name them: {', '.join(sorted(stray))}")
    else:
        rows = [Listed(file.name) for file in _files(folder)]
    samples, unreadable = _read(folder, rows, subject, prompt)
    return _some(Pictures(folder, tuple(_numbered(samples)), unreadable, tuple(notes)))


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
    samples, unreadable = _read(folder, [Listed(file.name) for file in _files(folder)], subject)
    return _some(Pictures(folder, tuple(samples), unreadable), "reference_dir holds the photographs of the subject")


def _some(found: Pictures, cure: str = f"give a folder of {', '.join(sorted(FORMATS))} files") -> Pictures:
    if not found.samples and not found.unreadable:
        raise UserError(f"{found.folder} holds no pictures; {cure}")
    return found


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
    return _some(Pictures(folder, tuple(samples), unreadable, tuple(notes)))


def _files(folder: Path) -> list[Path]:
    """The picture files by name."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in FORMATS and not path.name.startswith("."))
    return sorted((path for path in found if path.is_file()), key=lambda path: path.name)


def _read(
    folder: Path, rows: Sequence[Listed], subject: str | None, prompt: str | None = None
) -> tuple[list[Sample], dict[str, Unreadable]]:
    """Those that can be read, and the others."""
    samples: list[Sample] = []
    broken: dict[str, Unreadable] = {}
    for row in rows:
        path = folder / row.file
        try:
            data = path.read_bytes()
            decode(data)
        except (OSError, UserError) as error:
            broken[row.file] = Unreadable(subject, getattr(error, "strerror", None) or str(error))
            continue
        digest, words = hashlib.sha256(data).hexdigest(), row.prompt or prompt
        samples.append(Sample(row.file, path, digest, subject, words, seed=row.seed, kind=row.kind))
    return samples, broken


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
