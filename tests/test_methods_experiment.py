"""The study of methods: one protocol for all arms, nothing done twice, and every score in one place."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewbayes.page.evaluation import make_scores, read_evaluation
from fewbayes.studies.methods import run_methods, study_arms
from fewbayes.studies.methods.cells import BASE, Cell, Protocol, gather, listing, sample_cell, score_cell
from fewbayes.studies.subjects import StudySubject, dataset_subjects, drawn_subject, photographed_subject
from fewbayes.world.scenes import SUBJECTS

FEW = Protocol(images_per_prompt=2, most_prompts=2, steps=2)


def test_every_method_is_there_plain_and_bayesian_and_differs_in_nothing_else():
    arms = {arm.name: arm.changes for arm in study_arms(["full", "lora"], {"max_train_steps": 7})}
    assert list(arms) == ["full", "full-bayes", "lora", "lora-bayes"]
    assert arms["lora-bayes"] == {**arms["lora"], "bayes": True}
    assert all(changes["max_train_steps"] == 7 for changes in arms.values())
    with pytest.raises(ValueError, match="'dora' is not a method; there are full"):
        study_arms(["dora"], {})


def test_an_embedded_subject_is_drawn_whole_and_live_ones_get_the_live_prompts(tmp_path):
    fish = drawn_subject("swirl_fish", tmp_path, 64)
    assert len(list(fish.photographs.iterdir())) == len(SUBJECTS["swirl_fish"].settings)
    assert (fish.class_word, fish.prompt_set) == ("fish", "world-live")
    assert drawn_subject("swirl_fish", tmp_path, 64) == fish  # what is there stays
    with pytest.raises(ValueError, match="holds other pictures"):
        drawn_subject("swirl_fish", tmp_path, 32)
    with pytest.raises(ValueError, match="not an embedded subject"):
        drawn_subject("swirl_dragon", tmp_path, 64)


def test_photographs_are_kept_as_the_model_sees_them(photos, tmp_path):
    subject = photographed_subject(f"{photos}:stuffed animal", tmp_path / "study", 16, world=True)
    assert (subject.class_word, subject.prompt_set) == ("stuffed animal", "world-object")
    for path in subject.photographs.iterdir():
        with Image.open(path) as picture:
            assert picture.size == (16, 16)
    with pytest.raises(ValueError, match="does not say what it shows"):
        photographed_subject("no-colon", tmp_path / "study", 16, world=True)


@pytest.fixture
def cell(tmp_path, eps_model, photos):
    subject = StudySubject("things", "thing", "world-object", Path(photos))
    return Cell(tmp_path, subject, BASE, None, str(eps_model), str(eps_model), FEW, "embedded", "sound")


def test_all_models_are_sampled_with_the_same_prompts_and_seeds(cell):
    other = replace(cell, arm="lora", seed=3)
    keys = ("file", "prompt", "seed", "sampler", "steps", "guidance", "safety_filter")
    rows, others = listing(cell), listing(other)
    assert [[row[key] for key in keys] for row in rows] == [[row[key] for key in keys] for row in others]
    assert len({row["seed"] for row in rows}) == len(rows) == 8
    assert [row["prompt"] for row in rows[::2]] == [
        "a <v> thing in the jungle",
        "a <v> thing in the snow",
        "a photo of a thing",
        "a photo of a red mug in the snow",
    ]


def test_the_whole_protocol_is_25_prompts_of_4_and_the_unrelated_ones(cell):
    whole = replace(cell, arm="lora", seed=3, protocol=Protocol())
    rows = listing(whole)
    assert sum("<v>" in row["prompt"] for row in rows) == 100
    assert 0 < sum("<v>" not in row["prompt"] for row in rows) < 50


def test_samples_of_the_same_settings_are_kept_and_others_refused(cell):
    folder = sample_cell(cell)
    rows = json.loads((folder / "samples.json").read_text())
    assert {path.name for path in folder.glob("*.png")} == {row["file"] for row in rows}
    before = (folder / "00-0.png").stat().st_mtime_ns
    sample_cell(cell)
    assert (folder / "00-0.png").stat().st_mtime_ns == before
    changed = replace(cell, protocol=Protocol(steps=3))
    with pytest.raises(ValueError, match="samples of other settings"):
        sample_cell(changed)


def test_gathered_rows_name_their_arm_and_the_ceiling_is_taken_once(cell):
    tuned = replace(cell, arm="lora", seed=3)
    for one, value in ((cell, 0.3), (tuned, 0.6)):
        one.scores.mkdir(parents=True)
        (one.scores / "evaluation.json").write_text(json.dumps({"encoders": {"dino": {"name": "fewbayes-dino"}}}))
        common = {"metric": "dino", "mode": "sound", "encoder": "fewbayes-dino", "arm": one.arm, "seed": one.seed}
        common |= {"subject": "things"}
        kinds = {"samples": value, "real": 0.9, "base": 0.3}
        rows = [{**common, "row": kind, "value": v} for kind, v in kinds.items() if one is tuned or kind != "base"]
        (one.scores / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        image = {"file": "00-0.png", "metric": "dino", "value": value, "subject": "things", "arm": one.arm}
        (one.scores / "images.jsonl").write_text(json.dumps({**image, "seed": one.seed}) + "\n")
    arms = [{"name": "lora", "label": "LoRA"}]
    missing = ["things/lora-seed4"]
    gather(cell.folder, [cell, tuned], {"arms": arms, "subjects": [{"name": "things"}], "missing": missing})

    rows = [json.loads(line) for line in (cell.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["row"], row["arm"], row["value"]) for row in rows] == [
        ("base", "base", 0.3),
        ("real", None, 0.9),
        ("samples", "lora", 0.6),
    ]
    evaluation = read_evaluation(cell.folder)
    assert "trainings that did not come to their end: things/lora-seed4." in evaluation.notes
    found = {line.name: line.cells["dino"].mean for line in make_scores(evaluation, "sound").lines}
    assert found == {"base": 0.3, "lora": 0.6, "real": 0.9}
    assert evaluation.pictures[-1].file == tuned.pictures / "00-0.png"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--subjects", "swirl_fish", "--seeds", "0"], "seeds is 0; it must be greater than 0"),
        ([], "name at least one of --subjects"),
        (["--subjects", "swirl_dragon"], "not an embedded subject"),
        (["--subjects", "swirl_fish", "--methods", "dora"], "is not a method"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(wrong, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        run_methods(["--output_dir", str(tmp_path / "study"), *wrong])
    assert not (tmp_path / "study").exists()


def test_a_small_study_ends_in_a_table_and_repeats_nothing(eps_model, photos, tmp_path):
    arguments = ["--model", str(eps_model), "--photographs", f"{photos}:dog", "--methods", "full", "--quick"]
    arguments += ["--steps", "2", "--prompts", "1", "--workers", "1", "--output_dir", str(tmp_path / "study")]
    embedded = ["--encoders", "embedded"]
    folder = run_methods([*arguments, *embedded])
    evaluation = read_evaluation(folder)
    table = make_scores(evaluation, "sound")
    assert {"base", "full", "full-bayes", "real"} == {line.name for line in table.lines}
    cell = next(line for line in table.lines if line.name == "full-bayes").cells["clip_t"]
    assert cell.mean is not None
    assert np.isfinite(cell.mean)
    dear = ["*.png", "scores/*/evaluation.json"]
    written = {path: path.stat().st_mtime_ns for kind in dear for path in folder.rglob(kind)}
    run_methods([*arguments, *embedded])
    assert written == {path: path.stat().st_mtime_ns for kind in dear for path in folder.rglob(kind)}

    said = (folder / "study.json").read_bytes()
    for wrong in (["--guidance_scale", "2", *embedded], ["--encoders", str(tmp_path / "nowhere")]):
        with pytest.raises(ValueError, match=r"samples of other settings|neither 'embedded'"):
            run_methods([*arguments, *wrong])
    assert (folder / "study.json").read_bytes() == said  # a refused call changes nothing

    run_methods([*arguments, "--encoders", str(_encoders_of_their_own(tmp_path / "encoders"))])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "fewbayes-clip" not in {row["encoder"] for row in rows}
    assert written.keys() == {path for kind in dear for path in folder.rglob(kind)}


def _encoders_of_their_own(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_scores_are_made_again_when_what_they_were_made_from_has_changed(cell):
    sample_cell(cell)
    listed = json.loads((cell.pictures / "samples.json").read_text())
    assert {row["kind"] for row in listed} == {"subject", "class", "unrelated"}

    def modes() -> set[str]:
        return {json.loads(line)["mode"] for line in (cell.scores / "metrics.jsonl").read_text().splitlines()}

    def age() -> int:
        return (cell.scores / "metrics.jsonl").stat().st_mtime_ns

    score_cell(cell)
    first = age()
    score_cell(cell)
    assert (age(), modes()) == (first, {"sound"})
    score_cell(replace(cell, mode="both"))
    assert modes() == {"sound", "paper"}
    score_cell(cell)
    facts = json.loads((cell.scores / "scored_from.json").read_text())
    (cell.scores / "scored_from.json").write_text(json.dumps(facts | {"made_of": {"clip": "another"}}))
    second = age()
    score_cell(cell)
    assert age() != second
    assert (cell.folder / "features.sqlite").is_file()


def test_a_data_set_gives_its_subjects_and_must_say_what_they_are(photos, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(photos, root / "rex")
    with pytest.raises(ValueError, match="does not say what rex shows"):
        dataset_subjects(root, tmp_path / "study", 16, world=True)
    (root / "prompts_and_classes.txt").write_text("subject_name,class\nrex,dog\n")
    (found,) = dataset_subjects(root, tmp_path / "study", 16, world=True)
    assert (found.name, found.class_word, found.prompt_set) == ("rex", "dog", "world-object")
    assert found.photographs == tmp_path / "study" / "rex" / "photographs"
    assert len(list(found.photographs.iterdir())) == len(
        list(Path(photos).glob("*.png")) or list(Path(photos).iterdir())
    )
