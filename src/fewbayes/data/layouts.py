"""The ways in which data for several subjects lie on disks, read into one: a subject, its class word, its images.

Four layouts are told apart by what is there: google/dreambooth (a folder per subject and prompts_and_classes.txt),
kohya's (folders named `10_sks dog`), rows of metadata.jsonl that name a subject, and plain folders, one per subject or
one alone. CelebA-HQ has its own reader, because its identities stand in a file of their own and some have to be drawn.

Nothing is decoded here: `data.images` looks at the images of a folder that is trained on. It does not know models, and
fetches nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from fewbayes.data.captions import METADATA
from fewbayes.data.images import FORMATS, MASK_ENDINGS, DataError
from fewbayes.files.decode import MOST_BYTES, parse_json, read_json, read_text, typed

CLASSES_FILE = "prompts_and_classes.txt"


@dataclass(frozen=True)
class Subject:
    """pictures: their files, by name. class_word: None where the data do not say what it is."""

    name: str
    pictures: tuple[Path, ...]
    class_word: str | None = None


def read_subjects(root: str | Path) -> list[Subject]:
    """The subjects under a folder, in the order of their names, by whichever layout it has."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    if (root / METADATA).is_file() and (found := _from_metadata(root)):
        return found
    classes = _classes(root)
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    subjects = [_from_folder(folder, classes) for folder in folders if _pictures(folder)]
    if subjects:
        return subjects
    if _pictures(root):
        return [_from_folder(root, classes | _classes(root.parent))]
    raise DataError(f"{root} holds neither pictures nor folders of pictures")


def _from_folder(folder: Path, classes: Mapping[str, str]) -> Subject:
    """A folder of one subject; its name may follow kohya's `repeats_token class`."""
    named = re.fullmatch(r"\d+_\S+(?: (.+))?", folder.name)
    return Subject(folder.name, tuple(_pictures(folder)), named[1] if named else classes.get(folder.name))


def _pictures(folder: Path) -> list[Path]:
    """Picture files in the order of their names, masks and hidden files left out."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in FORMATS and not path.name.startswith(".") and not path.stem.endswith(MASK_ENDINGS)
    ]


def _classes(root: Path) -> dict[str, str]:
    """Subject to class word, from the `subject_name,class` rows of DreamBooth's file; empty without it."""
    file = root / CLASSES_FILE
    if not file.is_file():
        return {}
    rows = re.findall(r"^([\w-]+),([\w -]+)$", read_text(file), flags=re.MULTILINE)
    return {name: word.strip() for name, word in rows if name != "subject_name"}


def _from_metadata(root: Path) -> list[Subject]:
    """Rows of file_name, with `subject` and perhaps `class`; none where no row names a subject."""
    rows = [_row(root, line, number) for number, line in _lines(root / METADATA)]
    grouped: dict[str, list[tuple[Path, str | None]]] = {}
    for name, path, word in rows:
        if name is not None:
            grouped.setdefault(name, []).append((path, word))
    if grouped and len(rows) > sum(map(len, grouped.values())):
        raise DataError(f"{root / METADATA}: some rows name a subject and some do not; name it in all or in none")
    return [
        Subject(name, tuple(path for path, _ in found), _one_word(name, {word for _, word in found}))
        for name, found in sorted(grouped.items())
    ]


def _lines(file: Path) -> Iterable[tuple[int, str]]:
    return ((n, line) for n, line in enumerate(read_text(file, MOST_BYTES).split("\n"), start=1) if line.strip())


MetadataRow = TypedDict(
    "MetadataRow",
    {
        "file_name": str,
        "subject": NotRequired[str | None],
        "class": NotRequired[str | None],
    },
)
"""A row of metadata.jsonl where it lists the pictures of several subjects."""


def _row(root: Path, line: str, number: int) -> tuple[str | None, Path, str | None]:
    where = f"{root / METADATA}, line {number}"
    row = typed(parse_json(line, where), MetadataRow, where, cure="a row has a file_name, and perhaps a subject")
    path = root / row["file_name"]
    if not path.is_file():
        raise DataError(f"{where}: {path} is not there")
    return row.get("subject"), path, row.get("class")


def _one_word(name: str, words: set[str | None]) -> str | None:
    if len(words) > 1:
        raise DataError(f"subject {name!r} has several classes: {', '.join(sorted(map(str, words)))}")
    return next(iter(words))


# --- CelebA-HQ --------------------------------------------------------------------------------------------------------


def draw_identities(
    images: str | Path, identity_file: str | Path, *, identities: int = 30, pictures: int = 5, seed: int = 0
) -> list[Subject]:
    """`identities` people with `pictures` pictures each, drawn by `seed` from those who have enough of them.

    identity_file: JSON of {identity: [file, ...]}, or rows of `file identity` as CelebA's lists have them. The draw
    ranks identities, and the pictures of each, by a hash of the seed and their own names: it depends neither on the
    order of the file nor on who else is in it. No face comes with this program; the paper's 30 are not published.
    """
    images = Path(images)
    listed = _identities(Path(identity_file))
    enough = [name for name, files in listed.items() if len(files) >= pictures]
    if len(enough) < identities:
        raise DataError(
            f"{identity_file} has {len(enough)} identities of {pictures} pictures or more; {identities} were asked for"
        )
    chosen = sorted(enough, key=lambda name: _rank(seed, name))[:identities]
    subjects = [_person(images, name, listed[name], pictures, seed) for name in sorted(chosen)]
    missing = [path for subject in subjects for path in subject.pictures if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of the drawn pictures are not in {images}, {missing[0].name} for one")
    return subjects


def _person(images: Path, name: str, files: list[str], pictures: int, seed: int) -> Subject:
    drawn = sorted(sorted(set(files)), key=lambda file: _rank(seed, f"{name}/{file}"))[:pictures]
    return Subject(name, tuple(images / file for file in sorted(drawn)), "person")


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"fewbayes identities {seed} {name}".encode()).digest()


def _identities(file: Path) -> dict[str, list[str]]:
    """Identity to the names of its pictures."""
    if not file.is_file():
        raise DataError(f"there is no identity file {file}")
    if file.suffix == ".json":
        return read_json(file, dict[str, list[str]], cure="it holds {identity: [file, ...]}")
    listed: dict[str, list[str]] = {}
    for number, line in _lines(file):
        parts = line.replace(",", " ").split()
        if len(parts) != 2:
            raise DataError(f"{file}, line {number}: not a file name and an identity")
        listed.setdefault(parts[1], []).append(parts[0])
    return listed
