"""Folders of training images: every check that needs no model, then pixels of the asked size.

A folder is looked through whole before anything is loaded, and all that is wrong with it is said in one DataError.
What is odd but usable (transparency, copies, other files) is used or left out, and said in `DataReport.notes`. The
order is that of the file names, so that no machine's file system decides it.

It does not know models, prompts or tensors; numpy and pillow only.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewbayes.data.captions import Captions, few, is_caption
from fewbayes.data.decoding import decode
from fewbayes.errors import UserError

MINIMUM_SIDE = 16
"""Images with a shorter side are refused."""
MANY_IMAGES = 1000
LONG_SHAPE = 4
"""From this ratio of sides on it is said that most of the image falls outside a square."""
SQUARE = 1.1
"""Up to this ratio of sides an image counts as square."""
BORDER = 0.03
"""Share of a side that is a border worth speaking of where it has one colour."""
MASK_ENDINGS = ("_mask", "-masklabel", "-mask", ".mask")
"""What is added to the stem of a picture in the name of its mask (OneTrainer and others); white is the subject."""

FORMATS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
UNREADABLE_PICTURES = frozenset(
    {".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".psd", ".svg", ".jxl", ".pdf"}
    | {".mp4", ".mov", ".avi", ".mkv", ".webm", ".jp2", ".exr", ".hdr", ".xcf", ".eps", ".ai", ".ico", ".tga", ".jpf"}
)
"""Endings of what a person would count as a picture and this program cannot train on."""


class DataError(UserError):
    """A folder of images that cannot be trained on; one line per problem, each with the way out."""


@dataclass(frozen=True)
class CheckedImage:
    """An image that can be decoded. width, height: pixels as seen, after its EXIF rotation."""

    path: Path
    sha256: str
    width: int
    height: int
    caption: str | None
    mask: Path | None = None


@dataclass(frozen=True)
class DataReport:
    """The usable images of a folder in the order of their names, and what is to be said about it."""

    folder: Path
    images: tuple[CheckedImage, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TrainImage:
    """pixels: uint8 (height, width, 3), the shorter side of the asked resolution. sha256: of the file's bytes.

    mask: uint8 (height, width) of the same size, 255 on the subject; mask_sha256: of its file. None without one.
    """

    path: Path
    sha256: str
    pixels: NDArray[np.uint8]
    caption: str | None
    mask: NDArray[np.uint8] | None = None
    mask_sha256: str | None = None


def check_folder(folder: str | Path) -> DataReport:
    """Decodes every image of a folder; raises DataError with all that is wrong in it.

    Sub-folders are not entered. Hidden files, masks and files that are no pictures are left out; of identical files the
    first by name is kept. Captions: see `fewbayes.data.captions`.
    """
    folder = Path(folder)
    pictures, masks, notes, problems = _listed(folder)
    captions = Captions(folder, pictures)
    images: dict[str, CheckedImage] = {}
    for path in pictures:
        try:
            image = _checked(path, captions.of(path), masks.get(path.stem), notes)
        except DataError as error:
            problems.append(str(error))
            continue
        if image.sha256 in images:
            notes.append(f"{path.name} is a copy of {images[image.sha256].path.name}: used once")
        else:
            images[image.sha256] = image
    problems += captions.problems
    if problems:
        raise DataError("\n".join([f"{folder} cannot be used as it is:", *(f"  {problem}" for problem in problems)]))
    if not images:
        found = f" (found {'; '.join(notes)})" if notes else ""
        cure = _inside(folder) or f"put 1 to 1000 of {', '.join(sorted(FORMATS))} there"
        raise DataError(f"{folder} holds no images{found}; {cure}")
    notes += captions.notes([(image.path.name, image.caption) for image in images.values()])
    sides = [sorted((image.width, image.height)) for image in images.values()]
    if oblong := sum(longer > SQUARE * shorter for shorter, longer in sides):
        notes.append(
            f"{oblong} of {len(images)} images are not square: each step sees a square part, at random or, with "
            "--center_crop, in the middle"
        )
    if len(images) > MANY_IMAGES:
        notes.append(f"{len(images)} images: more than the {MANY_IMAGES} this is made for; all are used")
    return DataReport(folder, tuple(images.values()), tuple(notes))


def load_images(
    folder: str | Path, *, resolution: int, center_crop: bool, report: DataReport | None = None, masks: bool = False
) -> list[TrainImage]:
    """The images of a folder, scaled (Lanczos) so that the shorter side is `resolution`, in the order of their names.

    With center_crop they are cropped to a square; else the longer side stays, for `crop` to choose from. A `report` of
    the same folder saves checking it twice. masks: read those of the pictures that have one.
    """
    return [_loaded(image, resolution, center_crop, masks) for image in (report or check_folder(folder)).images]


def crop(image: NDArray[np.uint8], resolution: int, offset: tuple[float, float] = (0.5, 0.5)) -> NDArray[np.uint8]:
    """The resolution x resolution window at `offset` = (down, right), each in [0, 1] of the room there is.

    Uniform draws from [0, 1) give every whole position the same chance; (0.5, 0.5) is the centre.
    """
    room = [side - resolution for side in image.shape[:2]]
    if min(room) < 0:
        raise UserError(f"an image of {image.shape[1]} x {image.shape[0]} has no {resolution} x {resolution} window")
    top, left = (min(int(part * (free + 1)), free) for part, free in zip(offset, room, strict=True))
    return image[top : top + resolution, left : left + resolution]


def _loaded(image: CheckedImage, resolution: int, center_crop: bool, masks: bool) -> TrainImage:
    picture, _ = _decoded(image.path, image.path.read_bytes())
    scale = resolution / min(picture.size)
    width, height = (max(resolution, round(side * scale)) for side in picture.size)
    layers = [np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))]
    digest = None
    if masks and image.mask:
        mask, digest = _mask(image.mask, picture.size)
        layers.append(np.asarray(mask.resize((width, height), Image.Resampling.BOX)))
    pixels, *mask = [crop(layer, resolution) if center_crop else layer for layer in layers]
    return TrainImage(image.path, image.sha256, pixels, image.caption, mask[0] if mask else None, digest)


def _mask(path: Path, size: tuple[int, int]) -> tuple[Image.Image, str]:
    """A mask in grey, white on the subject, and the SHA-256 of its file. size: of its picture."""
    data = path.read_bytes()
    mask = _decoded(path, data)[0].convert("L")
    if abs(mask.width * size[1] - mask.height * size[0]) > 0.02 * mask.height * size[0]:
        raise DataError(
            f"{path.name} is {mask.width} x {mask.height} and its picture {size[0]} x {size[1]}; cut both alike"
        )
    if mask.getextrema()[1] == 0:
        raise DataError(f"{path.name} is black all over; a mask is white where the subject is")
    return mask, hashlib.sha256(data).hexdigest()


# --- what lies in a folder --------------------------------------------------------------------------------------------


def _listed(folder: Path) -> tuple[list[Path], dict[str, Path], list[str], list[str]]:
    """The picture files in the order of their names, masks by the stems of their pictures, notes, and problems."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except FileNotFoundError:
        raise DataError(f"there is no folder {folder}{_near(folder)}") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file; give the folder that holds the images, {folder.parent}") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    pictures, problems, left_out = [], [], []
    hidden = [path for path in entries if path.name.startswith(".")]
    stems = {path.stem for path in entries if path.suffix.lower() in FORMATS}
    names = {path.name for path in entries if path.suffix.lower() in FORMATS}
    masks = {path: _masked(path.stem) for path in entries if path.suffix.lower() in FORMATS}
    masks = {path: stem for path, stem in masks.items() if stem in stems}
    for path in (path for path in entries if path not in hidden):
        ending = path.suffix.lower()
        if path.is_dir():
            left_out.append(f"{path.name}/")
        elif path in masks:
            continue
        elif ending in FORMATS:
            pictures.append(path)
        elif ending in UNREADABLE_PICTURES:
            problems.append(f"{path.name}: {ending} files cannot be used; save it as PNG or JPEG, or move it away")
        elif not is_caption(path, stems, names):
            left_out.append(path.name)
    notes = [f"left out, no images: {few(left_out)}"] if left_out else []
    notes += [f"masks, not trained on as pictures: {few([path.name for path in masks])}"] if masks else []
    notes += [f"left out, hidden: {few([path.name for path in hidden])}"] if hidden else []
    return pictures, {stem: path for path, stem in masks.items() if stem}, notes, problems


def _masked(stem: str) -> str | None:
    """The stem of the picture that a mask of this name belongs to."""
    return next((stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.lower().endswith(ending)), None)


def _inside(folder: Path) -> str | None:
    """kohya's layout has the pictures one folder deeper, in `10_sks dog`: that one is named."""
    found = [
        (inner.name, sum(path.suffix.lower() in FORMATS for path in inner.iterdir()))
        for inner in sorted(folder.iterdir())
        if inner.is_dir() and not inner.name.startswith(".")
    ]
    found = [(name, count) for name, count in found if count]
    if not found:
        return None
    listed = ", ".join(f"{name!r} has {count}" for name, count in found[:3])
    return f"its subfolder {listed}: give {folder / found[0][0]}" + (" or another of them" if len(found) > 1 else "")


def _near(folder: Path) -> str:
    try:
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        return f" (nor {folder.parent})"
    near = difflib.get_close_matches(folder.name, beside, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(folder.with_name(name)) for name in near)}?" if near else ""


# --- one image --------------------------------------------------------------------------------------------------------


def _checked(path: Path, caption: str | None, mask: Path | None, notes: list[str]) -> CheckedImage:
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path.name}: neither file nor folder; move it away")
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path.name}: a link to {path.resolve()}, which is missing; mend or remove it") from None
    except OSError as error:
        raise DataError(
            f"{path.name}: cannot be read ({error.strerror}); mend its permissions or move it away"
        ) from error
    if not data:
        raise DataError(f"{path.name}: an empty file of 0 bytes; copy it again or move it away")
    image, remarks = _decoded(path, data)
    if min(image.size) < MINIMUM_SIDE:
        raise DataError(
            f"{path.name}: {image.width} x {image.height} pixels; the shorter side must be {MINIMUM_SIDE} or more"
        )
    if max(image.size) >= LONG_SHAPE * min(image.size):
        remarks.append(f"{image.width} x {image.height}, so a square shows only a part of it")
    if border := _border(image):
        remarks.append(border)
    notes += [f"{path.name}: {remark}" for remark in remarks]
    return CheckedImage(path, hashlib.sha256(data).hexdigest(), image.width, image.height, caption, mask)


def _decoded(path: Path, data: bytes) -> tuple[Image.Image, list[str]]:
    try:
        return decode(data)
    except UserError as error:
        raise DataError(f"{path.name}: {error}") from error


def _border(image: Image.Image) -> str | None:
    """Which sides have a border of one colour, of BORDER of the picture or more: training would learn it."""
    pixels = np.asarray(image.reduce(max(1, min(image.size) // 256))).astype(np.int16)
    found = []
    for side, lines in (("top", pixels), ("bottom", pixels[::-1]), ("left", pixels.swapaxes(0, 1))):
        found += [side] if _flat(lines) else []
    found += ["right"] if _flat(pixels.swapaxes(0, 1)[::-1]) else []
    return f"a border of one colour ({', '.join(found)}); crop it, or it is learned too" if found else None


def _flat(lines: NDArray[np.int16]) -> bool:
    first = lines[: max(2, round(BORDER * len(lines)))]
    return len(lines) > 2 * len(first) and bool((np.abs(first - first[0, 0]) <= 2).all()) and not _all_one(lines)


def _all_one(lines: NDArray[np.int16]) -> bool:
    return bool((np.abs(lines - lines[0, 0]) <= 2).all())


def numbered(i: int, count: int) -> str:
    """00.png, 01.png, ..., with as many digits as it takes for names to sort like numbers."""
    return f"{i:0{max(2, len(str(count - 1)))}d}.png"
