"""Every layout is read into the same subjects, and a draw of identities depends on its seed alone."""

import json

import pytest
from PIL import Image

from fewbayes.data.images import DataError
from fewbayes.data.layouts import draw_identities, read_subjects
from fewbayes.errors import UserError


def picture(path, value=100, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (24, 16), value if mode == "L" else (value,) * len(mode)).save(path)
    return path


def test_the_dreambooth_tree_knows_its_class_words(tmp_path):
    picture(tmp_path / "dog3" / "01.jpg")
    picture(tmp_path / "dog3" / "00.jpg")
    picture(tmp_path / "backpack_dog" / "00.jpg")
    (tmp_path / "backpack_dog" / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\nbackpack_dog,backpack\ndog3,dog\ngrey_sloth_plushie,stuffed animal\n\n"
        "Prompts\n\nprompt_list = [\n'a {0} {1} in the jungle'.format(unique_token, class_token),\n]\n"
    )
    backpack, dog = read_subjects(tmp_path)
    assert (backpack.name, backpack.class_word) == ("backpack_dog", "backpack")
    assert (dog.name, dog.class_word) == ("dog3", "dog")
    assert [path.name for path in dog.pictures] == ["00.jpg", "01.jpg"]
    (alone,) = read_subjects(tmp_path / "dog3")
    assert alone == dog


def test_kohyas_folder_names_say_the_class(tmp_path):
    picture(tmp_path / "10_sks stuffed animal" / "a.png")
    (subject,) = read_subjects(tmp_path)
    assert subject.class_word == "stuffed animal"


def test_rows_of_metadata_name_their_subjects(tmp_path):
    for name in ("1.png", "2.png", "3.png"):
        picture(tmp_path / "images" / name)
    rows = [
        {"file_name": "images/1.png", "text": "a <v> mug", "subject": "mine", "class": "mug"},
        {"file_name": "images/2.png", "text": "a <v> cat", "subject": "hers", "class": "cat"},
        {"file_name": "images/3.png", "text": "a <v> mug", "subject": "mine", "class": "mug"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hers, mine = read_subjects(tmp_path)
    assert (hers.class_word, [p.name for p in mine.pictures]) == ("cat", ["1.png", "3.png"])

    rows[2]["class"] = "cup"
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="several classes: cup, mug"):
        read_subjects(tmp_path)


def test_metadata_without_subjects_belongs_to_its_folder(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a mug"}\n')
    (subject,) = read_subjects(tmp_path)
    assert subject.name == tmp_path.name


@pytest.mark.parametrize(
    ("row", "problem"), [("{}", "file_name is missing"), ("{", "not JSON"), ('{"file_name": "no.png"}', "is not there")]
)
def test_rows_that_lead_nowhere_are_named_by_their_line(row, problem, tmp_path):
    (tmp_path / "metadata.jsonl").write_text(f"\n{row}\n")
    with pytest.raises(UserError, match=rf"line 2.*{problem}"):
        read_subjects(tmp_path)


@pytest.mark.parametrize("ending", ["_mask", "-masklabel"])
def test_a_mask_beside_a_picture_is_no_picture(ending, tmp_path):
    shown = picture(tmp_path / "dog" / "00.jpg")
    picture(tmp_path / "dog" / f"00{ending}.png", mode="L")
    (subject,) = read_subjects(tmp_path)
    assert subject.pictures == (shown,)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="neither pictures nor folders"):
        read_subjects(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        read_subjects(tmp_path / "nowhere")


@pytest.fixture
def faces(tmp_path):
    """Drawn squares for faces: 6 identities of 4 pictures, one of 2."""
    listed = {f"id{i}": [f"{i}_{k}.png" for k in range(4)] for i in range(6)} | {"few": ["x0.png", "x1.png"]}
    for files in listed.values():
        for file in files:
            picture(tmp_path / "faces" / file)
    (tmp_path / "identities.json").write_text(json.dumps(listed))
    return tmp_path


def test_the_draw_of_identities_depends_on_its_seed_alone(faces):
    drawn = draw_identities(faces / "faces", faces / "identities.json", identities=3, pictures=2, seed=1)
    rows = [
        f"{file} {name}"
        for name, files in reversed(json.loads((faces / "identities.json").read_text()).items())
        for file in reversed(files)
    ]
    (faces / "identities.txt").write_text("\n".join(rows) + "\n")
    assert draw_identities(faces / "faces", faces / "identities.txt", identities=3, pictures=2, seed=1) == drawn
    assert all(subject.class_word == "person" and len(subject.pictures) == 2 for subject in drawn)
    others = {
        tuple(
            s.name
            for s in draw_identities(faces / "faces", faces / "identities.json", identities=3, seed=k, pictures=2)
        )
        for k in range(8)
    }
    assert len(others) > 1


def test_identities_with_too_few_pictures_are_not_drawn(faces):
    drawn = draw_identities(faces / "faces", faces / "identities.json", identities=6, pictures=4)
    assert "few" not in {subject.name for subject in drawn}
    with pytest.raises(DataError, match="has 6 identities of 4 pictures or more; 7 were asked for"):
        draw_identities(faces / "faces", faces / "identities.json", identities=7, pictures=4)


def test_pictures_that_an_identity_file_names_and_nobody_has_are_said(faces):
    (faces / "faces" / "0_0.png").unlink()
    with pytest.raises(DataError, match=r"1 of the drawn pictures are not in .*, 0_0\.png"):
        draw_identities(faces / "faces", faces / "identities.json", identities=6, pictures=4)
