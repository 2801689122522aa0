"""The ways in which data for several subjects lie on disks, read into one: a subject, its class word, its images.

Four layouts are told apart by what is there: google/dreambooth (a folder per subject and prompts_and_classes.txt),
kohya's (folders named `10_sks dog`), rows of metadata.jsonl that name a subject, and plain folders, one per subject or
one alone. CelebA-HQ has its own reader, because its identities stand in a file of their own and some have to be drawn.

Nothing is decoded here, but for the alpha channel of a picture asked for its mask: `data.check_folder` looks at the
images of a folder that is trained on. It does not know models, and fetches nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fewbayes.data.captions import METADATA
from fewbayes.data.images import FORMATS, MASK_ENDINGS, DataError

CLASSES_FILE = "prompts_and_classes.txt"


@dataclass(frozen=True)
class Picture:
    """caption: what the data say of it, if they do. mask: the file of its mask, or itself where its alpha is one."""

    path: Path
    caption: str | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Subject:
    """class_word: None where the data do not say what it is. token: the rare word that the data give it, if any."""

    name: str
    pictures: tuple[Picture, ...]
    class_word: str | None = None
    token: str | None = None
    repeats: int | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(picture.path for picture in self.pictures)


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


def mask_of(picture: Picture) -> NDArray[np.bool_] | None:
    """True where the subject is, (height, width) as the picture is seen; None where no mask is given."""
    if picture.mask is None:
        return None
    with Image.open(picture.mask) as opened:
        image = ImageOps.exif_transpose(opened)
        level = image.convert("RGBA").getchannel("A") if picture.mask == picture.path else image.convert("L")
        return np.asarray(level) >= 128


def _from_folder(folder: Path, classes: Mapping[str, str]) -> Subject:
    """A folder of one subject; its name may follow kohya's `repeats_token class`."""
    pictures = tuple(Picture(path, _caption(path), _mask(path)) for path in _pictures(folder))
    if named := re.fullmatch(r"(\d+)_(\S+)(?: (.+))?", folder.name):
        repeats, token, word = named.groups()
        return Subject(folder.name, pictures, word, token, int(repeats))
    return Subject(folder.name, pictures, classes.get(folder.name))


def _pictures(folder: Path) -> list[Path]:
    """Picture files in the order of their names, masks and hidden files left out."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in FORMATS and not path.name.startswith(".") and not path.stem.endswith(MASK_ENDINGS)
    ]


def _caption(path: Path) -> str | None:
    beside = path.with_suffix(".txt")
    return beside.read_text("utf-8-sig").strip() or None if beside.is_file() else None


def _mask(path: Path) -> Path | None:
    beside = next((file for end in MASK_ENDINGS if (file := path.with_name(f"{path.stem}{end}.png")).is_file()), None)
    return beside or (path if _has_holes(path) else None)


def _has_holes(path: Path) -> bool:
    """Whether a picture has an alpha channel that hides some of it; unreadable files are for others to complain of."""
    if path.suffix.lower() not in (".png", ".webp", ".tif", ".tiff"):
        return False
    try:
        with Image.open(path) as image:
            if "A" not in image.getbands():
                return False
            alpha = np.asarray(image.getchannel("A"))
    except OSError:
        return False
    return bool(alpha.min() < 128 <= alpha.max())


# google/dreambooth


def _classes(root: Path) -> dict[str, str]:
    """Subject to class word, from the `subject_name,class` rows of DreamBooth's file; empty without it."""
    file = root / CLASSES_FILE
    if not file.is_file():
        return {}
    rows = re.findall(r"^([\w-]+),([\w -]+)$", file.read_text("utf-8-sig"), flags=re.MULTILINE)
    return {name: word.strip() for name, word in rows if name != "subject_name"}


# metadata.jsonl


def _from_metadata(root: Path) -> list[Subject]:
    """Rows of file_name and text, with `subject` and perhaps `class` and `mask`; none where no row names a subject."""
    rows = [_row(root, line, number) for number, line in _lines(root / METADATA)]
    grouped: dict[str, list[tuple[Picture, str | None]]] = {}
    for name, picture, word in rows:
        if name is not None:
            grouped.setdefault(name, []).append((picture, word))
    if grouped and len(rows) > sum(map(len, grouped.values())):
        raise DataError(f"{root / METADATA}: some rows name a subject and some do not; name it in all or in none")
    return [
        Subject(name, tuple(picture for picture, _ in found), _one_word(name, {word for _, word in found}))
        for name, found in sorted(grouped.items())
    ]


def _lines(file: Path) -> Iterable[tuple[int, str]]:
    return ((n, line) for n, line in enumerate(file.read_text("utf-8-sig").split("\n"), start=1) if line.strip())


def _row(root: Path, line: str, number: int) -> tuple[str | None, Picture, str | None]:
    try:
        row = json.loads(line)
        path, mask = root / row["file_name"], row.get("mask")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{root / METADATA}, line {number}: not a row with a file_name") from None
    for file in (path, *([root / mask] if mask else [])):
        if not file.is_file():
            raise DataError(f"{root / METADATA}, line {number}: {file} is not there")
    caption = row.get("text") or row.get("prompt")
    return row.get("subject"), Picture(path, caption, root / mask if mask else _mask(path)), row.get("class")


def _one_word(name: str, words: set[str | None]) -> str | None:
    if len(words) > 1:
        raise DataError(f"subject {name!r} has several classes: {', '.join(sorted(map(str, words)))}")
    return next(iter(words))


# CelebA-HQ


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
    missing = [path for subject in subjects for path in subject.paths if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of the drawn pictures are not in {images}, {missing[0].name} for one")
    return subjects


def _person(images: Path, name: str, files: list[str], pictures: int, seed: int) -> Subject:
    drawn = sorted(sorted(set(files)), key=lambda file: _rank(seed, f"{name}/{file}"))[:pictures]
    return Subject(name, tuple(Picture(images / file) for file in sorted(drawn)), "person")


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"fewbayes identities {seed} {name}".encode()).digest()


def _identities(file: Path) -> dict[str, list[str]]:
    """Identity to the names of its pictures."""
    if not file.is_file():
        raise DataError(f"there is no identity file {file}")
    if file.suffix == ".json":
        return {str(name): [str(one) for one in files] for name, files in json.loads(file.read_text()).items()}
    listed: dict[str, list[str]] = {}
    for number, line in _lines(file):
        parts = line.replace(",", " ").split()
        if len(parts) != 2:
            raise DataError(f"{file}, line {number}: not a file name and an identity")
        listed.setdefault(parts[1], []).append(parts[0])
    return listed
