"""Folders of images as people have them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewbayes.data import decoding
from fewbayes.data.images import MINIMUM_SIDE, DataError, check_folder, crop, load_images
from fewbayes.metrics.folders import open_picture


def picture(seed: int = 0, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture of (width, height) = size."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """A folder with one sound image, good.png."""
    inner = tmp_path / "photos"
    inner.mkdir()
    picture().save(inner / "good.png")
    return inner


def notes(folder) -> str:
    return "\n".join(check_folder(folder).notes)


def refusal(folder) -> str:
    with pytest.raises(DataError) as refused:
        check_folder(folder)
    return str(refused.value)


def jpeg(image: Image.Image, **keys) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **keys)
    return buffer.getvalue()


# folders


def test_a_missing_folder_names_its_neighbour(folder):
    assert f"did you mean {folder}?" in refusal(folder.with_name("photo"))


def test_a_file_is_no_folder(folder):
    assert f"give the folder that holds the images, {folder}" in refusal(folder / "good.png")


def test_an_empty_folder_is_refused(tmp_path):
    assert "holds no images" in refusal(tmp_path)


def test_a_folder_of_other_files_is_refused_and_says_what_it_found(tmp_path):
    (tmp_path / "readme.txt").write_text("hello")
    assert "holds no images (found left out, no images: readme.txt)" in refusal(tmp_path)


def test_text_and_hidden_files_and_sub_folders_are_left_out_and_said(folder):
    (folder / "readme.txt").write_text("hello")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "._good.png").write_bytes(b"x")
    (folder / "more").mkdir()
    assert [image.path.name for image in check_folder(folder).images] == ["good.png"]
    assert "no images: Thumbs.db, more/, readme.txt" in notes(folder)
    assert "hidden: .DS_Store, ._good.png" in notes(folder)


def test_images_come_in_the_order_of_their_names(folder):
    for i, name in enumerate(["b.png", "A.png", "10.png", "9.png"]):
        picture(i + 1).save(folder / name)
    assert [image.path.name for image in check_folder(folder).images] == [
        "10.png",
        "9.png",
        "A.png",
        "b.png",
        "good.png",
    ]


def test_all_problems_are_said_at_once(folder):
    (folder / "a.png").write_bytes(b"")
    (folder / "b.jpg").write_text("<html>")
    (folder / "c.psd").write_bytes(b"x")
    text = refusal(folder)
    assert all(name in text for name in ("a.png: an empty file", "b.jpg: not an image", "c.psd: .psd files cannot"))


def test_more_than_a_thousand_images_are_used_and_said(tmp_path):
    sound = picture(0, (16, 16))
    for i in range(1001):
        sound.putpixel((i % 16, i // 16 % 16), (i % 256, i // 256, 7))
        sound.save(tmp_path / f"{i:04d}.bmp")
    report = check_folder(tmp_path)
    assert len(report.images) == 1001
    assert "1001 images: more than the 1000" in report.notes[-1]


# single images


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_truncated_image_is_refused_wherever_it_is_cut(folder, kind):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    for part in (0.01, 0.3, 0.7, 0.95):
        (folder / f"cut.{kind.lower()}").write_bytes(buffer.getvalue()[: int(part * len(buffer.getvalue()))])
        assert f"cut.{kind.lower()}: " in refusal(folder)


def test_images_that_are_too_small_are_refused(folder):
    picture(1, (1, 1)).save(folder / "dot.png")
    picture(2, (400, MINIMUM_SIDE - 1)).save(folder / "strip.png")
    text = refusal(folder)
    assert "dot.png: 1 x 1 pixels; the shorter side must be 16 or more" in text
    assert "strip.png: 400 x 15 pixels" in text


def test_a_huge_image_is_refused_without_decoding_it(folder):
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    assert "huge.png: 20000 x 20000 pixels, more than 100 million" in refusal(folder)


def test_a_huge_jpeg_is_decoded_smaller(folder, monkeypatch):
    monkeypatch.setattr(decoding, "MAXIMUM_PIXELS", 10_000)
    (folder / "huge.jpg").write_bytes(jpeg(picture(1, (600, 400))))
    assert "huge.jpg: 600 x 400 pixels, decoded at 75 x 50" in notes(folder)
    assert load_images(folder, resolution=32, center_crop=True)[1].pixels.shape == (32, 32, 3)


def test_pillows_own_limit_is_restored(folder):
    before = Image.MAX_IMAGE_PIXELS
    check_folder(folder)
    (folder / "bad.png").write_bytes(b"x")
    refusal(folder)
    assert before == Image.MAX_IMAGE_PIXELS


def test_an_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 32, 32))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    (tmp_path / "turned.jpg").write_bytes(jpeg(image, exif=exif, quality=95))
    [checked] = check_folder(tmp_path).images
    assert (checked.width, checked.height) == (32, 64)
    [loaded] = load_images(tmp_path, resolution=32, center_crop=False)
    assert loaded.pixels.shape == (64, 32, 3)
    assert loaded.pixels[:24].min() > 240
    assert loaded.pixels[40:].max() < 15


def test_cmyk_is_converted_and_said(tmp_path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    assert "red.jpg: CMYK" in notes(tmp_path)
    [loaded] = load_images(tmp_path, resolution=32, center_crop=True)
    assert np.abs(loaded.pixels.astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff"])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path, name):
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (32, 1))
    Image.fromarray(ramp).save(tmp_path / name)
    assert "16 bits" in notes(tmp_path)
    [loaded] = load_images(tmp_path, resolution=32, center_crop=False)
    assert (loaded.pixels[0, :, 1] == np.arange(256)).all()


def test_transparency_is_laid_on_white_and_said(tmp_path):
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0), (0, 0, 16, 32))
    image.save(tmp_path / "glass.png")
    assert "glass.png: transparent in places, laid on white" in notes(tmp_path)
    [loaded] = load_images(tmp_path, resolution=32, center_crop=True)
    assert (loaded.pixels[:, :16] == 255).all()
    assert (loaded.pixels[:, 16:] == [255, 0, 0]).all()


def test_a_transparent_palette_is_laid_on_white_too(tmp_path):
    image = Image.new("P", (32, 32), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (16, 0, 32, 32))
    image.save(tmp_path / "palette.png", transparency=0)
    [loaded] = load_images(tmp_path, resolution=32, center_crop=True)
    assert (loaded.pixels[0, 0] == 255).all()
    assert (loaded.pixels[0, 31] == [200, 100, 50]).all()


def test_an_opaque_alpha_channel_is_nothing_to_speak_of(tmp_path):
    square = picture(size=(32, 32))
    square.convert("RGBA").save(tmp_path / "opaque.png")
    assert notes(tmp_path) == ""
    assert (load_images(tmp_path, resolution=32, center_crop=False)[0].pixels == np.asarray(square)).all()


@pytest.mark.parametrize("name", ["film.gif", "film.webp", "film.png", "film.tiff"])
def test_of_an_animation_the_first_frame_is_used_and_it_is_said(tmp_path, name):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert f"{name}: 3 frames, the first is used" in notes(tmp_path)
    [loaded] = load_images(tmp_path, resolution=32, center_crop=True)
    assert np.abs(loaded.pixels.astype(int) - [255, 0, 0]).max() <= 3


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.zeros((32, 32), dtype=np.float32)).save(tmp_path / "float.tiff")
    assert "float.tiff: floating-point pixels; save it as an 8-bit PNG" in refusal(tmp_path)


# as photographers mean them


def wide_profile() -> bytes:
    """A profile of the primaries of Display P3, which phones use, with sRGB's own curve; made here, byte by byte."""
    white, bradford = (0.9642, 1.0, 0.8249), {"rXYZ": (0.5151, 0.2412, -0.0011), "gXYZ": (0.2920, 0.6922, 0.0419)}
    bradford |= {"bXYZ": (0.1571, 0.0666, 0.7841), "wtpt": white}

    def fixed(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    curve = [2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045]
    tags = {name: b"XYZ \0\0\0\0" + b"".join(map(fixed, xyz)) for name, xyz in bradford.items()}
    tags |= dict.fromkeys(("rTRC", "gTRC", "bTRC"), b"para\0\0\0\0\0\x03\0\0" + b"".join(map(fixed, curve)))
    text = "Wide".encode("utf-16-be")
    tags["desc"] = b"mluc\0\0\0\0" + b"".join(n.to_bytes(4, "big") for n in (1, 12)) + b"enUS"
    tags["desc"] += len(text).to_bytes(4, "big") + (28).to_bytes(4, "big") + text
    body, table, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name.encode() + (offset + len(body)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        body += content
    size = offset + len(body)
    header = size.to_bytes(4, "big") + b"\0" * 4 + b"\x04\x30\0\0" + b"mntrRGB XYZ " + b"\0" * 12 + b"acsp" + b"\0" * 28
    header += b"".join(map(fixed, white)) + b"\0" * 48
    return header + len(tags).to_bytes(4, "big") + table + body


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg"])
def test_wide_colours_become_the_srgb_that_everybody_sees(tmp_path, name):
    """(200, 60, 40) of Display P3, by its matrix to sRGB's primaries, worked out by hand: (217.5, 41.7, 22.6)."""
    image = Image.new("RGB", (32, 32), (200, 60, 40))
    image.save(tmp_path / name, icc_profile=wide_profile())
    [loaded] = load_images(tmp_path, resolution=32, center_crop=True)
    assert np.abs(loaded.pixels[16, 16].astype(int) - (217, 42, 23)).max() <= 3
    assert f"{name}: colours of Wide, converted to sRGB" in notes(tmp_path)
    assert np.abs(np.asarray(open_picture(tmp_path / name))[16, 16].astype(int) - (217, 42, 23)).max() <= 3


def test_a_profile_that_is_broken_is_said_and_the_colours_are_kept(tmp_path):
    Image.new("RGB", (32, 32), (200, 60, 40)).save(tmp_path / "photo.png", icc_profile=b"no profile at all")
    assert "its colour profile cannot be used" in notes(tmp_path)
    assert tuple(load_images(tmp_path, resolution=32, center_crop=True)[0].pixels[0, 0]) == (200, 60, 40)


@pytest.mark.parametrize("name", ["IMG_0001.HEIC", "IMG_0001.jpg"])
def test_heic_is_named_as_heic_whatever_its_name(folder, name):
    (folder / name).write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 64)
    said = refusal(folder)
    assert f"{name}: HEIC, an iPhone's own format" in said or f"{name}: damaged" in said  # with pillow-heif


def test_masks_beside_photographs_are_no_photographs(folder):
    for ending in ("-masklabel", "_mask", "-mask", ".mask"):
        picture(1).save(folder / f"good{ending}.png")
    picture(2).save(folder / "a_mask.png")  # of no picture here: a picture of a mask
    assert [image.path.name for image in check_folder(folder).images] == ["a_mask.png", "good.png"]
    assert "masks, not trained on as pictures: good-mask.png" in notes(folder)


def test_the_folder_of_kohya_is_named_where_the_pictures_lie_one_deeper(tmp_path):
    inner = tmp_path / "10_sks dog"
    inner.mkdir()
    for i in range(5):
        picture(i).save(inner / f"{i}.png")
    assert f"its subfolder '10_sks dog' has 5: give {inner}" in refusal(tmp_path)


def test_a_border_of_one_colour_is_said(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels[:, :4] = pixels[:, -4:] = 0
    Image.fromarray(pixels).save(tmp_path / "film.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    assert "film.png: a border of one colour (left, right)" in notes(tmp_path)
    assert "white.png" not in notes(tmp_path)


@pytest.mark.parametrize(("size", "said"), [((32, 32), False), ((34, 32), False), ((48, 32), True)])
def test_that_only_a_square_of_an_oblong_image_is_seen_is_said(tmp_path, size, said):
    picture(size=size).save(tmp_path / "a.png")
    assert ("1 of 1 images are not square" in notes(tmp_path)) == said


def test_copies_are_used_once_and_said(folder):
    (folder / "copy.png").write_bytes((folder / "good.png").read_bytes())
    assert [image.path.name for image in check_folder(folder).images] == ["copy.png"]
    assert "good.png is a copy of copy.png: used once" in notes(folder)


def test_a_very_long_image_is_said(folder):
    picture(1, (200, 40)).save(folder / "panorama.png")
    assert "panorama.png: 200 x 40, so a square shows only a part of it" in notes(folder)


def test_links_are_followed_and_broken_ones_refused(folder, tmp_path):
    picture(1).save(tmp_path / "elsewhere.png")
    (folder / "link.png").symlink_to(tmp_path / "elsewhere.png")
    assert [image.path.name for image in check_folder(folder).images] == ["good.png", "link.png"]
    (tmp_path / "elsewhere.png").unlink()
    assert "link.png: a link to" in refusal(folder)


def test_a_pipe_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder / "pipe.png")
    assert "pipe.png: neither file nor folder" in refusal(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user, or the right to become one")
def test_an_unreadable_file_is_refused(folder):
    (folder / "locked.png").write_bytes((folder / "good.png").read_bytes())
    (folder / "locked.png").chmod(0)
    for parent in [folder, *folder.parents[:-1]]:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        assert "locked.png: cannot be read (Permission denied)" in refusal(folder)
    finally:
        os.seteuid(0)


def test_no_warning_of_pillow_escapes(folder):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    content = bytearray(jpeg(picture(1), exif=exif))
    at = content.index(b"Exif\0\0") + 14
    content[at : at + 2] = b"\xff\xff"  # more entries announced than there are
    (folder / "odd.jpg").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(check_folder(folder).images) == 2


# captions


def test_captions_come_from_metadata_and_from_text_files(folder):
    for i, name in enumerate(["00.jpg", "01.jpg"]):
        (folder / name).write_bytes(jpeg(picture(i + 1)))
    (folder / "00.txt").write_text("a <v> mug in the snow\n")
    (folder / "metadata.jsonl").write_text('{"file_name": "01.jpg", "text": "a <v> mug\u2028by the sea"}\n\n')
    loaded = load_images(folder, resolution=32, center_crop=True)
    assert [image.caption for image in loaded] == ["a <v> mug in the snow", "a <v> mug\u2028by the sea", None]
    assert "captions for 2 of 3 images" in notes(folder)
    assert "the instance prompt is used: good.png" in notes(folder)


@pytest.mark.parametrize("name", ["good.txt", "good.caption", "good.cap", "good.png.txt", "good.png.caption"])
def test_captions_lie_beside_their_images_under_every_common_name(folder, name):
    (folder / name).write_text("a photo of a dog\n")
    assert [image.caption for image in check_folder(folder).images] == ["a photo of a dog"]
    assert "left out" not in notes(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "file_name,text\ngood.png,a photo of a dog\n"),
        ("metadata.json", json.dumps({"good.png": {"caption": "a photo of a dog"}})),
        ("meta_cap.json", json.dumps({"/train/10_dog/good": {"caption": "a photo of a dog"}, "other": {"tags": "x"}})),
    ],
)
def test_captions_come_from_tables_of_other_trainers(folder, name, text):
    (folder / name).write_text(text)
    assert [image.caption for image in check_folder(folder).images] == ["a photo of a dog"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("metadata.csv", "a,b\n1,2\n"), ("metadata.json", "[1]"), ("metadata.json", "{"), ("metadata.csv", "file_name\n")],
)
def test_tables_that_say_nothing_are_refused_or_say_nothing(folder, name, text):
    (folder / name).write_text(text)
    if text == "file_name\n":
        assert check_folder(folder).images[0].caption is None
    else:
        assert f"{name}" in refusal(folder)


def test_metadata_goes_before_a_text_file_and_it_is_said(folder):
    (folder / "good.txt").write_text("one")
    (folder / "metadata.jsonl").write_text('{"file_name": "good.png", "text": "two"}')
    assert check_folder(folder).images[0].caption == "two"
    assert "good.txt differs from metadata.jsonl, which is used" in notes(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "gone.png", "text": "x"}', "names what is not there: gone.png"),
        ('{"file_name": "good.png"}', "line 2: it must be"),
        ("not json", "line 2: it must be"),
        ('{"file_name": "good.png", "text": ["x"]}', "line 2: it must be"),
        ('{"file_name": "good.png", "text": "again"}', "line 2: the file is named before"),
    ],
)
def test_wrong_metadata_is_refused(folder, line, message):
    first = "\n" if "again" not in line else json.dumps({"file_name": "good.png", "text": "once"}) + "\n"
    (folder / "metadata.jsonl").write_text(first + line + "\n")
    assert message in refusal(folder)


def test_an_empty_caption_file_is_no_caption(folder):
    (folder / "good.txt").write_text("\n")
    assert check_folder(folder).images[0].caption is None
    assert "good.txt is empty" in notes(folder)


# pixels


def test_the_shorter_side_becomes_the_resolution(folder):
    picture(1, (33, 100)).save(folder / "tall.png")
    good, tall = load_images(folder, resolution=64, center_crop=False)
    assert good.pixels.shape == (64, 96, 3)
    assert tall.pixels.shape == (194, 64, 3)
    assert good.pixels.dtype == np.uint8
    assert all(image.pixels.shape == (64, 64, 3) for image in load_images(folder, resolution=64, center_crop=True))


def test_an_image_of_the_right_size_is_not_touched(folder):
    [loaded] = load_images(folder, resolution=32, center_crop=False)
    assert (loaded.pixels == np.asarray(picture())).all()


def test_a_given_report_saves_the_second_look(folder):
    report = check_folder(folder)
    (folder / "late.png").write_bytes(b"")
    assert len(load_images(folder, resolution=32, center_crop=True, report=report)) == 1


@settings(max_examples=100, deadline=None)
@given(st.integers(8, 20), st.integers(8, 20), st.floats(0, 1), st.floats(0, 1))
def test_every_crop_is_a_window_of_the_image(height, width, down, right):
    image = np.arange(height * width * 3, dtype=np.uint16).astype(np.uint8).reshape(height, width, 3)
    window = crop(image, 8, (down, right))
    assert window.shape == (8, 8, 3)
    places = [(t, s) for t in range(height - 7) for s in range(width - 7)]
    assert any((window == image[t : t + 8, s : s + 8]).all() for t, s in places)


def test_crops_reach_every_position_equally():
    image = np.zeros((8, 11, 3), dtype=np.uint8)
    image[:, :, 0] = np.arange(11)
    lefts = [int(crop(image, 8, (0, i / 400))[0, 0, 0]) for i in range(400)]
    assert np.bincount(lefts).tolist() == [100] * 4


def test_a_window_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="no 9 x 9 window"):
        crop(np.zeros((8, 20, 3), dtype=np.uint8), 9)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"]),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
    st.floats(0, 1),
)
def test_whatever_bytes_a_file_has_it_is_used_or_refused(kind, changes, length):
    buffer = io.BytesIO()
    picture(3, (24, 20)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for place, value in changes:
        content[int(place**3 * len(content))] = value  # mostly in the header
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image.{kind.lower()}"
        path.write_bytes(content[: max(1, int((1 - length**8) * len(content)))])
        with warnings.catch_warnings(), contextlib.suppress(DataError):
            warnings.simplefilter("error")
            [image] = check_folder(folder).images
            [loaded] = load_images(folder, resolution=16, center_crop=True)
            assert loaded.pixels.shape == (16, 16, 3)
            assert min(image.width, image.height) >= MINIMUM_SIDE
