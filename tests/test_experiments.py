"""Experiments: arms share everything but their changes, and what is done is not done again."""

import json
import shutil
from dataclasses import replace

import pytest

from fewbayes.studies.demo import run_demo
from fewbayes.studies.one_shot import arms, drawn_photograph, one_photograph, one_shot
from fewbayes.studies.runner import Arm, run_experiment


def _values(folder, metric, weights="raw"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["value"] for r in rows if r["metric"] == metric and r["weights"] == weights}


def test_arms_share_their_start_and_a_second_call_repeats_nothing(eps_model, photos, tmp_path):
    chosen = [
        Arm("plain", "Plain", {"learning_rate": 1e-3}),
        Arm(
            "still",
            "Bayesian without noise",
            {"learning_rate": 1e-3, "bayes": True, "weight_std": 0.0, "weight_std_learn": "fixed"},
        ),
        Arm(
            "bayes", "Bayesian", {"learning_rate": 1e-3, "bayes": True, "weight_std": 0.05, "weight_std_learn": "fixed"}
        ),
    ]
    images = one_photograph(photos, tmp_path / "one")
    experiment = one_shot(
        images,
        "a photo of <v> dog",
        "dog",
        model=str(eps_model),
        steps=4,
        sample_every=2,
        seeds=[0],
        chosen=chosen,
        num_images=1,
    )
    experiment = replace(experiment, base=replace(experiment.base, num_inference_steps=2))
    folder = run_experiment(experiment, tmp_path / "experiment", workers=1)

    assert [path.name for path in (folder / "plain-seed0" / "reference").iterdir()] == ["00.png"]
    losses = {arm.name: _values(folder / f"{arm.name}-seed0", "loss") for arm in chosen}
    assert losses["plain"] == losses["still"]  # no noise is plain training, draw for draw
    assert losses["plain"] != losses["bayes"]
    starts = {_values(folder / f"{arm.name}-seed0", "haar_noise")[0] for arm in chosen}
    assert len(starts) == 1
    listed = json.loads((folder / "experiment.json").read_text())
    assert [arm["runs"] for arm in listed["arms"]] == [["plain-seed0"], ["still-seed0"], ["bayes-seed0"]]

    before = (folder / "bayes-seed0" / "manifest.json").stat().st_mtime_ns
    run_experiment(experiment, folder, workers=1)
    assert (folder / "bayes-seed0" / "manifest.json").stat().st_mtime_ns == before


def test_the_control_differs_from_plain_in_its_rate_alone():
    plain, bayes, wide, slow = arms(rate=2e-4, weight_std=0.01).values()
    assert wide.changes == bayes.changes | {"weight_std": 0.03}
    assert plain.changes.keys() == slow.changes.keys() == {"learning_rate"}
    assert slow.changes["learning_rate"] == plain.changes["learning_rate"] / 4
    assert bayes.changes["learning_rate"] == plain.changes["learning_rate"]


def test_a_folder_of_other_settings_is_refused_rather_than_shown_under_a_new_title(eps_model, photos, tmp_path):
    def run(rate):
        experiment = one_shot(
            one_photograph(photos, tmp_path / "one"),
            "a photo of <v> dog",
            "dog",
            model=str(eps_model),
            steps=1,
            sample_every=1,
            seeds=[0],
            chosen=[Arm("plain", "Plain", {"learning_rate": rate})],
            num_images=1,
        )
        experiment = replace(experiment, base=replace(experiment.base, num_inference_steps=1))
        return run_experiment(experiment, tmp_path / "experiment", workers=1)

    described = (run(1e-3) / "experiment.json").read_text()
    with pytest.raises(ValueError, match="another run"):
        run(2e-3)
    assert (tmp_path / "experiment" / "experiment.json").read_text() == described


def test_an_image_folder_never_holds_two_photographs(tmp_path, photos):
    folder = drawn_photograph("swirl_mug", tmp_path / "photo")
    written = (folder / "00.png").stat().st_mtime_ns
    assert (drawn_photograph("swirl_mug", folder) / "00.png").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="another photograph"):
        drawn_photograph("swirl_fish", folder)
    with pytest.raises(ValueError, match="another photograph"):
        one_photograph(photos / "0.png", folder)
    assert [path.name for path in folder.iterdir()] == ["00.png"]


def test_sources_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match="not an embedded subject"):
        drawn_photograph("swirl_dragon", tmp_path / "other")
    with pytest.raises(ValueError, match=r"nowhere\.png does not exist"):
        one_photograph(tmp_path / "nowhere.png", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_one_photograph_of_a_folder_is_its_first_and_of_a_file_is_itself(photos, tmp_path):
    assert (one_photograph(photos, tmp_path / "a") / "00.png").read_bytes() == (photos / "0.png").read_bytes()
    (tmp_path / "messy").mkdir()
    shutil.copy(photos / "1.png", tmp_path / "messy" / "mine.png")
    (tmp_path / "messy" / "broken.jpg").write_bytes(b"")  # a neighbour that is none of our business
    one = one_photograph(tmp_path / "messy" / "mine.png", tmp_path / "b")
    assert (one / "00.png").read_bytes() == (photos / "1.png").read_bytes()


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--steps", "-3"], ["--image", "x.png"]])
def test_the_demo_refuses_what_it_cannot_do(wrong, tmp_path):
    with pytest.raises(ValueError, match=r"must be 1 or more|needs --class_word"):
        run_demo(["--output_dir", str(tmp_path / "demo"), *wrong])
    assert not (tmp_path / "demo").exists()
