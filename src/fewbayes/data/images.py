"""Folders of training images: every check that needs no model, then pixels of the asked size.

A folder is looked through whole before anything is loaded, and all that is wrong with it is said in one DataError.
What is odd but usable (transparency, copies, other files) is used or left out, and said in `DataReport.notes`. The
order is that of the file names, so that no machine's file system decides it.

It does not know models, prompts or tensors; numpy and pillow only.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

from fewbayes.errors import UserError

MINIMUM_SIDE = 16
"""Images with a shorter side are refused."""
MAXIMUM_PIXELS = 100_000_000
"""Larger images are refused, but for JPEG, which can be decoded at a half, a quarter or an eighth of its size."""
MANY_IMAGES = 1000
LONG_SHAPE = 4
"""From this ratio of sides on it is said that most of the image falls outside a square."""

FORMATS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
UNREADABLE_PICTURES = frozenset(
    {".heic", ".heif", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".psd", ".svg", ".jxl", ".pdf"}
    | {".mp4", ".mov", ".avi", ".mkv", ".webm", ".jp2", ".exr", ".hdr", ".xcf", ".eps", ".ai", ".ico", ".tga", ".jpf"}
)
"""Endings of what a person would count as a picture and this program cannot train on."""
METADATA = "metadata.jsonl"


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


@dataclass(frozen=True)
class DataReport:
    """The usable images of a folder in the order of their names, and what is to be said about it."""

    folder: Path
    images: tuple[CheckedImage, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TrainImage:
    """pixels: uint8 (height, width, 3), the shorter side of the asked resolution. sha256: of the file's bytes."""

    path: Path
    sha256: str
    pixels: NDArray[np.uint8]
    caption: str | None


def check_folder(folder: str | Path) -> DataReport:
    """Decodes every image of a folder; raises DataError with all that is wrong in it.

    Sub-folders are not entered. Hidden files and files that are no pictures are left out; of identical files the first
    by name is kept. Captions are read from metadata.jsonl (rows of file_name and text) and from 00.txt beside 00.jpg.
    """
    folder = Path(folder)
    pictures, notes, problems = _listed(folder)
    captions = _Captions(folder, pictures)
    images: dict[str, CheckedImage] = {}
    for path in pictures:
        try:
            image = _checked(path, captions.of(path), notes)
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
        raise DataError(f"{folder} holds no images{found}; put 1 to 1000 of {', '.join(sorted(FORMATS))} there")
    notes += captions.notes(list(images.values()))
    if len(images) > MANY_IMAGES:
        notes.append(f"{len(images)} images: more than the {MANY_IMAGES} this is made for; all are used")
    return DataReport(folder, tuple(images.values()), tuple(notes))


def load_images(
    folder: str | Path, *, resolution: int, center_crop: bool, report: DataReport | None = None
) -> list[TrainImage]:
    """The images of a folder, scaled (Lanczos) so that the shorter side is `resolution`, in the order of their names.

    With center_crop they are cropped to a square; else the longer side stays, for `crop` to choose from. A `report` of
    the same folder saves checking it twice.
    """
    images = (report or check_folder(folder)).images
    return [
        TrainImage(image.path, image.sha256, _pixels(image.path, resolution, center_crop), image.caption)
        for image in images
    ]


def crop(image: NDArray[np.uint8], resolution: int, offset: tuple[float, float] = (0.5, 0.5)) -> NDArray[np.uint8]:
    """The resolution x resolution window at `offset` = (down, right), each in [0, 1] of the room there is.

    Uniform draws from [0, 1) give every whole position the same chance; (0.5, 0.5) is the centre.
    """
    room = [side - resolution for side in image.shape[:2]]
    if min(room) < 0:
        raise UserError(f"an image of {image.shape[1]} x {image.shape[0]} has no {resolution} x {resolution} window")
    top, left = (min(int(part * (free + 1)), free) for part, free in zip(offset, room, strict=True))
    return image[top : top + resolution, left : left + resolution]


def _pixels(path: Path, resolution: int, center_crop: bool) -> NDArray[np.uint8]:
    image, _ = _decoded(path, path.read_bytes())
    scale = resolution / min(image.size)
    width, height = (max(resolution, round(side * scale)) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    return crop(pixels, resolution) if center_crop else pixels


# --- what lies in a folder --------------------------------------------------------------------------------------------


def _listed(folder: Path) -> tuple[list[Path], list[str], list[str]]:
    """The picture files in the order of their names, notes on what is left out, and problems."""
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
    for path in (path for path in entries if path not in hidden):
        ending = path.suffix.lower()
        if path.is_dir():
            left_out.append(f"{path.name}/")
        elif ending in FORMATS:
            pictures.append(path)
        elif ending in UNREADABLE_PICTURES:
            problems.append(f"{path.name}: {ending} files cannot be used; save it as PNG or JPEG, or move it away")
        elif path.name != METADATA and not (ending == ".txt" and path.stem in stems):
            left_out.append(path.name)
    notes = [f"left out, no images: {_few(left_out)}"] if left_out else []
    notes += [f"left out, hidden: {_few([path.name for path in hidden])}"] if hidden else []
    return pictures, notes, problems


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _near(folder: Path) -> str:
    try:
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        return f" (nor {folder.parent})"
    near = difflib.get_close_matches(folder.name, beside, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(folder.with_name(name)) for name in near)}?" if near else ""


# --- one image --------------------------------------------------------------------------------------------------------


def _checked(path: Path, caption: str | None, notes: list[str]) -> CheckedImage:
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
    notes += [f"{path.name}: {remark}" for remark in remarks]
    return CheckedImage(path, hashlib.sha256(data).hexdigest(), image.width, image.height, caption)


def _decoded(path: Path, data: bytes) -> tuple[Image.Image, list[str]]:
    """The image as RGB, turned as its EXIF says, and remarks on what was done to it."""
    try:
        with (
            _own_size_limit(),
            warnings.catch_warnings(record=True, action="always") as said,
            Image.open(io.BytesIO(data)) as image,
        ):
            remarks = _shrink_huge(path, image)
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a phone's photo with its preview
                remarks.append(f"{getattr(image, 'n_frames', 1)} frames, the first is used")
                image.seek(0)
            image.load()
            # transposed before the conversion, which may lose the EXIF
            rgb = _as_rgb(path, ImageOps.exif_transpose(image), remarks)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path.name}: not an image, whatever its name says; move it away") from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise DataError(f"{path.name}: damaged ({error}); copy it again or move it away") from error
    return rgb, remarks + sorted({f"{warning.message}" for warning in said})


@contextmanager
def _own_size_limit() -> Iterator[None]:
    """Sets pillow's limit, a warning and then an error, aside for MAXIMUM_PIXELS, checked before decoding."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _shrink_huge(path: Path, image: Image.Image) -> list[str]:
    """Has a JPEG beyond the limit decoded at a fraction of its size; raises for others."""
    width, height = image.size
    if width * height <= MAXIMUM_PIXELS:
        return []
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        scale = (MAXIMUM_PIXELS / (width * height)) ** 0.5
        for divisor in (2, 4, 8):
            if 1 / divisor <= scale:
                image.draft(None, (width // divisor, height // divisor))
                break
    if image.width * image.height > MAXIMUM_PIXELS:
        raise DataError(
            f"{path.name}: {width} x {height} pixels, more than {MAXIMUM_PIXELS // 10**6} million; scale it down, "
            "2000 pixels a side are plenty"
        )
    return [f"{width} x {height} pixels, decoded at {image.width} x {image.height}"]


def _as_rgb(path: Path, image: Image.Image, remarks: list[str]) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"{path.name}: floating-point pixels; save it as an 8-bit PNG or JPEG")
    if image.mode.startswith("I"):
        remarks.append("16 bits a channel, reduced to 8")
        return _from_16_bits(image).convert("RGB")
    if image.mode == "CMYK":
        remarks.append("CMYK, converted to RGB; colours may shift")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        return _on_white(image.convert("RGBA"), remarks)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """0 to 65535 onto 0 to 255; pillow's own conversion would cut everything above 255 off."""
    values = np.clip(np.asarray(image).astype(np.float64), 0, 65535)
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _on_white(image: Image.Image, remarks: list[str]) -> Image.Image:
    lowest, _ = image.getchannel("A").getextrema()
    if lowest == 255:
        return image.convert("RGB")
    remarks.append("transparent in places, laid on white")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


# --- captions ---------------------------------------------------------------------------------------------------------


class _Captions:
    """Captions by file name, from metadata.jsonl and from text files beside the images; the former goes before."""

    def __init__(self, folder: Path, pictures: Sequence[Path]):
        self.problems: list[str] = []
        self.remarks: list[str] = []
        self._by_name = self._from_metadata(folder / METADATA)
        missing = sorted(self._by_name.keys() - {path.name for path in pictures})
        if missing:
            self.problems.append(f"{METADATA} names what is not there: {_few(missing)}; mend or remove these rows")
        for path in pictures:
            self._add_text_file(path)

    def of(self, path: Path) -> str | None:
        return self._by_name.get(path.name)

    def notes(self, images: Sequence[CheckedImage]) -> list[str]:
        without = [image.path.name for image in images if image.caption is None]
        if 0 < len(without) < len(images):
            self.remarks.append(f"no caption, so the instance prompt is used: {_few(without)}")
        if len(without) < len(images):
            self.remarks.append(f"captions for {len(images) - len(without)} of {len(images)} images")
        return self.remarks

    def _add_text_file(self, path: Path) -> None:
        beside = path.with_suffix(".txt")
        if not beside.is_file():
            return
        try:
            text = beside.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{beside.name}: cannot be read as UTF-8 text ({error})")
            return
        if not text:
            self.remarks.append(f"{beside.name} is empty and no caption")
        elif self._by_name.setdefault(path.name, text) != text:
            self.remarks.append(f"{beside.name} differs from {METADATA}, which is used")

    def _from_metadata(self, path: Path) -> dict[str, str]:
        captions: dict[str, str] = {}
        if not path.is_file():
            return captions
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{METADATA}: cannot be read as UTF-8 text ({error})")
            return captions
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = _row(line)
            if row is None or row[0] in captions:
                wrong = (
                    "the file is named before"
                    if row
                    else 'it must be {"file_name": "00.jpg", "text": "a photo of ..."}'
                )
                self.problems.append(f"{METADATA}, line {number}: {wrong}")
            else:
                captions[row[0]] = row[1]
        return captions


def _row(line: str) -> tuple[str, str] | None:
    try:
        row: Any = json.loads(line)
        name, text = row["file_name"], row["text"]
    except (ValueError, KeyError, TypeError):
        return None
    return (name, text) if isinstance(name, str) and isinstance(text, str) and text.strip() else None
