"""One picture as its photographer means it: upright, in sRGB, eight bits, on white where it is transparent.

Phones write their colours in a wide space (Display P3) and say so in an ICC profile. A program that passes over the
profile trains on duller colours than anybody sees. Used wherever a picture of a person's comes in: training, class
images, references. Knows no folder and no caption; numpy and pillow only.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin, UnidentifiedImageError

from fewbayes.errors import UserError

MAXIMUM_PIXELS = 100_000_000
"""Larger images are refused, but for JPEG, which can be decoded at a half, a quarter or an eighth of its size."""
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
"""What bytes 8 to 12 of the pictures of an iPhone say."""


def decode(data: bytes) -> tuple[Image.Image, list[str]]:
    """The picture in a file's bytes as RGB, and remarks on what was done to it. UserError without the file's name."""
    heic = is_heic(data)
    if heic:
        _read_heic_too()
    try:
        with (
            _own_size_limit(),
            warnings.catch_warnings(record=True, action="always") as said,
            Image.open(io.BytesIO(data)) as image,
        ):
            remarks = _shrink_huge(image)
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a phone's photo with its preview
                remarks.append(f"{getattr(image, 'n_frames', 1)} frames, the first is used")
                image.seek(0)
            image.load()
            # transposed before the conversion, which may lose the EXIF
            rgb = _as_srgb(ImageOps.exif_transpose(image), remarks)
    except UserError:
        raise
    except UnidentifiedImageError:
        if heic:
            raise UserError(
                "HEIC, an iPhone's own format: pip install pillow-heif, or save it as JPEG (the phone's setting "
                "'Most compatible' does)"
            ) from None
        raise UserError("not an image, whatever its name says; move it away") from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise UserError(f"damaged ({error}); copy it again or move it away") from error
    return rgb, remarks + sorted({f"{warning.message}" for warning in said})


def is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS


def _read_heic_too() -> None:
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]

        register_heif_opener()


@contextmanager
def _own_size_limit() -> Iterator[None]:
    """Sets pillow's limit, a warning and then an error, aside for MAXIMUM_PIXELS, checked before decoding."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _shrink_huge(image: Image.Image) -> list[str]:
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
        raise UserError(
            f"{width} x {height} pixels, more than {MAXIMUM_PIXELS // 10**6} million; scale it down, 2000 pixels a "
            "side are plenty"
        )
    return [f"{width} x {height} pixels, decoded at {image.width} x {image.height}"]


def _as_srgb(image: Image.Image, remarks: list[str]) -> Image.Image:
    if image.mode == "F":
        raise UserError("floating-point pixels; save it as an 8-bit PNG or JPEG")
    if image.mode.startswith("I"):
        remarks.append("16 bits a channel, reduced to 8")
        return _from_16_bits(image).convert("RGB")
    profile = image.info.get("icc_profile")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = _on_white(image.convert("RGBA"), remarks)
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    if profile and (converted := _converted(image, profile, remarks)):
        return converted
    if image.mode == "CMYK":
        remarks.append("CMYK, converted to RGB; colours may shift")
    return image.convert("RGB")


def _converted(image: Image.Image, profile: bytes, remarks: list[str]) -> Image.Image | None:
    """The picture in sRGB by its profile; None where the profile is of other colours than the picture, or broken."""
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(theirs).strip()
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, theirs, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        remarks.append("its colour profile cannot be used, so its colours are taken for sRGB")
        return None
    if "srgb" not in name.lower():
        remarks.append(f"colours of {name or 'an unnamed profile'}, converted to sRGB")
    return converted


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
