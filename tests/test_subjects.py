"""Subjects of studies: drawn, photographed or of a data set; a folder never holds the pictures of two."""

import shutil

import pytest
from PIL import Image

from fewbayes.studies.subjects import (
    GROUPS,
    dataset_subjects,
    drawn_subject,
    named_subjects,
    photographed_subject,
)
from fewbayes.world.scenes import SUBJECTS


def test_an_embedded_subject_is_drawn_whole_once_and_live_ones_get_the_live_prompts(tmp_path):
    fish = drawn_subject("swirl_fish", tmp_path, 64)
    assert len(fish.files) == len(SUBJECTS["swirl_fish"].settings)
    assert (fish.class_word, fish.prompt_set) == ("fish", "world-live")
    written = fish.files[0].stat().st_mtime_ns
    assert drawn_subject("swirl_fish", tmp_path, 64) == fish
    assert fish.files[0].stat().st_mtime_ns == written
    assert {group: len(names) for group, names in GROUPS.items()} == {"objects": 10, "creatures": 10}


def test_fewer_images_are_the_first_ones(tmp_path):
    subject = drawn_subject("swirl_fish", tmp_path, 64)
    two = subject.first(2)
    assert [path.name for path in two.files] == ["00.png", "01.png"]
    assert two.files[1].read_bytes() == (subject.photographs / "01.png").read_bytes()
    assert subject.first(None) == subject.first(4) == subject
    with pytest.raises(ValueError, match="has 4 images; 9 were asked for"):
        subject.first(9)


def test_photographs_are_kept_as_the_model_sees_them(photos, tmp_path):
    subject = photographed_subject(f"{photos}:stuffed animal", tmp_path / "study", 16, world=True)
    assert (subject.class_word, subject.prompt_set) == ("stuffed animal", "world-object")
    for path in subject.files:
        with Image.open(path) as picture:
            assert picture.size == (16, 16)


def test_a_picture_is_a_subject_of_its_own_whatever_lies_beside_it(photos, tmp_path):
    (tmp_path / "messy").mkdir()
    shutil.copy(photos / "1.png", tmp_path / "messy" / "mine.png")
    (tmp_path / "messy" / "broken.jpg").write_bytes(b"")  # a neighbour that is none of our business
    mine = photographed_subject(f"{tmp_path}/messy/mine.png:dog", tmp_path / "a", 16, world=False)
    whole = photographed_subject(f"{photos}:dog", tmp_path / "b", 16, world=False)
    assert mine.name == "mine"
    assert mine.files[0].read_bytes() == whole.files[1].read_bytes()
    assert whole.first(1).files[0].read_bytes() == whole.files[0].read_bytes()


def test_an_image_folder_never_holds_the_pictures_of_two_subjects(photos, tmp_path):
    drawn_subject("swirl_mug", tmp_path, 64)
    shutil.copytree(photos, tmp_path / "elsewhere" / "swirl_mug")
    with pytest.raises(ValueError, match="holds other pictures"):
        photographed_subject(f"{tmp_path}/elsewhere/swirl_mug:mug", tmp_path, 64, world=True)
    with pytest.raises(ValueError, match="holds other pictures"):
        drawn_subject("swirl_mug", tmp_path, 32)


@pytest.mark.parametrize(
    ("drawn", "photographed", "said"),
    [
        (["swirl_dragon"], [], "not an embedded subject"),
        ([], ["nowhere.png:cat"], r"nowhere\.png does not exist"),
        ([], ["no-colon"], "does not say what it shows"),
        ([], [], "name at least one"),
        (["swirl_fish"] * 2, [], "two subjects have one name"),
        (["swirl_fish"], ["photos/swirl_fish:fish"], "two subjects have one name"),
    ],
)
def test_what_is_no_subject_is_named_before_anything_is_drawn(drawn, photographed, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        named_subjects(drawn, photographed, tmp_path / "study", 64, world=True)
    assert not (tmp_path / "study").exists()


def test_a_data_set_gives_its_subjects_and_must_say_what_they_are(photos, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(photos, root / "rex")
    with pytest.raises(ValueError, match="does not say what rex shows"):
        dataset_subjects(root, tmp_path / "study", 16, world=True)
    (root / "prompts_and_classes.txt").write_text("subject_name,class\nrex,dog\n")
    (found,) = dataset_subjects(root, tmp_path / "study", 16, world=True)
    assert (found.name, found.class_word, found.prompt_set) == ("rex", "dog", "world-object")
    assert found.photographs == tmp_path / "study" / "rex" / "photographs"
    assert len(found.files) == len(list(photos.glob("*.png")))
