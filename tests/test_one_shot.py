"""One photograph, several arms: arms share everything but their changes, and what is done is not done again."""

import json
from dataclasses import replace

import pytest

from fewbayes.studies.grid import Arm
from fewbayes.studies.one_shot import arms, one_shot, run_demo, settings
from fewbayes.studies.subjects import photographed_subject


def _values(folder, metric, weights="raw"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["value"] for r in rows if r["metric"] == metric and r["weights"] == weights}


def _run(photos, model, folder, chosen, steps):
    subject = photographed_subject(f"{photos}:dog", folder, 16, world=False).first(1)
    common = replace(settings(subject, str(model), steps, max(1, steps // 2), images=1), num_inference_steps=2)
    return one_shot(folder / "experiment", subject, common, chosen, [0], workers=1)


def test_arms_share_their_start_and_a_second_call_repeats_nothing(eps_model, photos, tmp_path):
    fixed = {"learning_rate": 1e-3, "bayes": True, "weight_std_learn": "fixed"}
    chosen = [
        Arm("plain", "Plain", {"learning_rate": 1e-3}),
        Arm("still", "Bayesian without noise", fixed | {"weight_std": 0.0}),
        Arm("bayes", "Bayesian", fixed | {"weight_std": 0.05}),
    ]
    folder = _run(photos, eps_model, tmp_path, chosen, 4)
    assert [path.name for path in (folder / "plain-seed0" / "reference").iterdir()] == ["00.png"]
    losses = {arm.name: _values(folder / f"{arm.name}-seed0", "loss") for arm in chosen}
    assert losses["plain"] == losses["still"]  # no noise is plain training, draw for draw
    assert losses["plain"] != losses["bayes"]
    starts = {_values(folder / f"{arm.name}-seed0", "haar_noise")[0] for arm in chosen}
    assert len(starts) == 1
    listed = json.loads((folder / "experiment.json").read_text())
    assert [arm["runs"] for arm in listed["arms"]] == [["plain-seed0"], ["still-seed0"], ["bayes-seed0"]]

    before = (folder / "bayes-seed0" / "manifest.json").stat().st_mtime_ns
    _run(photos, eps_model, tmp_path, chosen, 4)
    assert (folder / "bayes-seed0" / "manifest.json").stat().st_mtime_ns == before


def test_the_control_differs_from_plain_in_its_rate_alone():
    plain, bayes, wide, slow = arms(rate=2e-4, weight_std=0.01).values()
    assert wide.changes == bayes.changes | {"weight_std": 0.03}
    assert plain.changes.keys() == slow.changes.keys() == {"learning_rate"}
    assert slow.changes["learning_rate"] == plain.changes["learning_rate"] / 4
    assert bayes.changes["learning_rate"] == plain.changes["learning_rate"]


def test_a_folder_of_other_settings_is_refused_rather_than_shown_under_a_new_title(eps_model, photos, tmp_path):
    def run(rate):
        return _run(photos, eps_model, tmp_path, [Arm("plain", "Plain", {"learning_rate": rate})], 1)

    described = (run(1e-3) / "experiment.json").read_text()
    with pytest.raises(ValueError, match="another run"):
        run(2e-3)
    assert (tmp_path / "experiment" / "experiment.json").read_text() == described


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--steps", "-3"], ["--image", "x.png"]])
def test_the_demo_refuses_what_it_cannot_do(wrong, tmp_path):
    with pytest.raises(ValueError, match=r"must be 1 or more|needs --class_word"):
        run_demo(["--output_dir", str(tmp_path / "demo"), *wrong])
    assert not (tmp_path / "demo").exists()
