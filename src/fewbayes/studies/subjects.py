"""What a study trains on: subjects drawn by the embedded world, photographs of a folder, or a whole data set.

Each subject gets a folder of its training images as the model sees them, squares of its resolution, and a folder that
holds other pictures is refused. Knows neither arms nor trainings.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from fewbayes.data.images import load_images
from fewbayes.data.layouts import Subject, draw_identities, read_subjects
from fewbayes.errors import UserError
from fewbayes.files.atomic import atomic_folder
from fewbayes.studies.prompts import WORLD_LIVE, set_for
from fewbayes.world.scenes import ALL_SUBJECTS, subject_photograph

GROUPS = {
    "creatures": tuple(name for name, subject in ALL_SUBJECTS.items() if subject.class_word in WORLD_LIVE),
    "objects": tuple(name for name, subject in ALL_SUBJECTS.items() if subject.class_word not in WORLD_LIVE),
}
"""Several drawn subjects by one word: where the paper has people, the embedded world has creatures."""


@dataclass(frozen=True)
class StudySubject:
    """A subject with its training images; `prompt_set` names the prompts it is sampled with."""

    name: str
    class_word: str
    prompt_set: str
    photographs: Path

    @property
    def files(self) -> list[Path]:
        """The training images by name."""
        return sorted(self.photographs.glob("*.png"))

    def first(self, count: int | None) -> StudySubject:
        """The subject with its first `count` images, None for all. UserError where it has fewer."""
        if count is None or count == len(self.files):
            return self
        if count > len(self.files):
            raise UserError(f"{self.name} has {len(self.files)} images; {count} were asked for")
        folder = self.photographs.with_name(f"{self.photographs.name}-{count}")
        return replace(self, photographs=_kept(folder, [file.read_bytes() for file in self.files[:count]]))

    def rest(self, count: int | None) -> Path | None:
        """A folder with the images that are not among the first `count`; None where there are none."""
        if count is None or count >= len(self.files):
            return None
        folder = self.photographs.with_name(f"{self.photographs.name}-but-{count}")
        return _kept(folder, [file.read_bytes() for file in self.files[count:]])


def named_subjects(
    drawn: Sequence[str],
    photographed: Sequence[str],
    folder: Path,
    resolution: int,
    *,
    world: bool,
    others: Sequence[StudySubject] = (),
) -> list[StudySubject]:
    """The subjects of --subjects, --photographs and a data set, each of which has a folder of its own name."""
    if not drawn and not photographed and not others:
        raise UserError("name at least one of --subjects and --photographs")
    drawn = [name for given in drawn for name in GROUPS.get(given, (given,))]
    names = [*drawn, *(_name(given.rpartition(":")[0]) for given in photographed), *(it.name for it in others)]
    if len(set(names)) < len(names):
        raise UserError(f"two subjects have one name among {', '.join(names)}; leave one out, or rename a folder")
    return [
        *(drawn_subject(name, folder, resolution) for name in drawn),
        *(photographed_subject(given, folder, resolution, world=world) for given in photographed),
        *others,
    ]


def drawn_subject(name: str, folder: Path, resolution: int) -> StudySubject:
    """An embedded subject, all of its photographs drawn."""
    if name not in ALL_SUBJECTS:
        raise UserError(f"{name!r} is not an embedded subject; there are {', '.join(ALL_SUBJECTS)}")
    word = ALL_SUBJECTS[name].class_word
    drawn = [subject_photograph(name, i, resolution)[0] for i in range(len(ALL_SUBJECTS[name].settings))]
    pictures = [_png(np.round(pixels * 255).astype(np.uint8)) for pixels in drawn]
    return StudySubject(name, word, set_for(word, world=True), _kept(folder / name / "photographs", pictures))


def photographed_subject(given: str, folder: Path, resolution: int, *, world: bool) -> StudySubject:
    """`PATH:class word`: all images of a folder, or one picture, cut to squares of the model's resolution."""
    path, _, word = given.rpartition(":")
    if not path or not word.strip():
        raise UserError(f"--photographs {given!r} does not say what it shows; write it as DIR:class, as in cat3:cat")
    if not Path(path).exists():
        raise UserError(f"{path} does not exist; give a photograph or a folder of photographs")
    files = [Path(path)] if Path(path).is_file() else None
    pictures = _squares(files, resolution) if files else _cut(Path(path), resolution)
    into = _kept(folder / _name(path) / "photographs", pictures)
    return StudySubject(_name(path), word.strip(), set_for(word.strip(), world=world), into)


def dataset_subjects(
    root: Path, folder: Path, resolution: int, *, world: bool, identities: Path | None = None, people: int = 30
) -> list[StudySubject]:
    """Every subject of a data set, by whichever layout it has; with a file of identities, `people` drawn from it."""
    found = draw_identities(root, identities, identities=people) if identities else read_subjects(root)
    nameless = [subject.name for subject in found if not subject.class_word]
    if nameless:
        raise UserError(
            f"{root} does not say what {', '.join(nameless[:5])} shows; name its class in prompts_and_classes.txt or "
            "metadata.jsonl, or give the folder as --photographs DIR:CLASS"
        )
    return [_dataset_subject(subject, folder, resolution, world) for subject in found]


def _dataset_subject(subject: Subject, folder: Path, resolution: int, world: bool) -> StudySubject:
    word = subject.class_word
    assert word is not None
    into = _kept(folder / subject.name / "photographs", _squares(subject.pictures, resolution))
    return StudySubject(subject.name, word, set_for(word, world=world), into)


def _name(path: str) -> str:
    return Path(path).resolve().stem if Path(path).is_file() else Path(path).resolve().name


def _squares(files: Sequence[Path], resolution: int) -> list[bytes]:
    """These pictures and none of their neighbours, checked as any folder is."""
    with tempfile.TemporaryDirectory() as place:
        for number, path in enumerate(files):
            shutil.copyfile(path, Path(place) / f"{number:03d}{path.suffix}")
        return _cut(Path(place), resolution)


def _cut(folder: Path, resolution: int) -> list[bytes]:
    return [_png(image.pixels) for image in load_images(folder, resolution=resolution, center_crop=True)]


def _kept(folder: Path, pictures: Sequence[bytes]) -> Path:
    """The folder with these PNGs and no others; one that holds others belongs to another study."""
    named = {f"{i:02d}.png": data for i, data in enumerate(pictures)}
    if folder.is_dir():
        if {path.name: path.read_bytes() for path in folder.iterdir()} != named:
            raise UserError(f"{folder} holds other pictures; give another output_dir")
        return folder
    with atomic_folder(folder) as staging:
        for name, data in named.items():
            (staging / name).write_bytes(data)
    return folder


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()
