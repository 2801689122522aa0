"""Sweeps: every table and figure of settings runs, by one protocol for all arms, and nothing is done twice."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewbayes.page.evaluation import make_scores, read_evaluation
from fewbayes.posterior.gaussian import GaussianPosterior
from fewbayes.settings.config import TrainConfig
from fewbayes.settings.recipes import RECIPES
from fewbayes.studies.subjects import StudySubject
from fewbayes.studies.sweeps.catalogue import SWEEPS, VIEWS, Sweep, titles
from fewbayes.studies.sweeps.cells import BASE, Cell, Protocol, gather, listing, sample_cell, score_cell
from fewbayes.studies.sweeps.make import SweepFlags, arms_of, make, run_sweep, sweep_flags, values_of
from fewbayes.studies.sweeps.reading import judged, spread_table, unseen_table
from fewbayes.training.bayes import kl_weight

FEW = Protocol(images_per_prompt=2, most_prompts=2, steps=2)


def arms(name, *values, **flags):
    sweep = SWEEPS[name]
    return arms_of(sweep, values or sweep.values, SweepFlags(**flags))


def test_arms_have_the_recipes_settings_and_differ_in_what_they_say_alone():
    found = {arm.name: arm for arm in arms("table1", model="sd")}
    assert list(found) == [f"paper-{m}{b}" for m in ("dreambooth", "lora", "oft") for b in ("", "-bayes")]
    for arm in found.values():
        recipe = RECIPES[arm.name.removesuffix("-bayes")].settings(arm.bayes)
        assert arm.settings.items() >= recipe.items()
    assert found["paper-lora-bayes"].against == "paper-lora"
    assert "learning_rate" not in arms("table1", model="tiny")[0].settings  # an embedded model has its own


def test_noise_levels_are_read_and_all_of_them_are_the_usual_samples():
    asked = SweepFlags(values=(":", "0.83:"))
    assert values_of(SWEEPS["timesteps"], asked) == [None, "0.83:"]
    with pytest.raises(ValueError, match="tuned_within is 'low'"):
        values_of(SWEEPS["timesteps"], SweepFlags(values=("low",)))


def test_a_share_of_the_steps_keeps_the_recipes_apart_and_goes_behind_what_is_given():
    steps = {arm.value: arm.settings["steps_per_image"] for arm in arms("table1", share_of_steps=0.25)}
    assert steps == {"paper-dreambooth": 50, "paper-lora": 100, "paper-oft": 50}
    assert arms("fig7", 100, share_of_steps=0.25)[0].settings["steps_per_image"] == 100


def test_dreambooth_is_what_has_prior_preservation_and_nothing_else_is():
    assert arms("fig7", 200)[0].label == "DreamBooth, steps_per_image 200"
    without = arms("fig7", 200, settings=("with_prior_preservation=false",))[0]
    assert without.label == "Full fine-tuning, steps_per_image 200"
    assert "num_class_images" not in without.settings


def test_a_setting_of_bayesian_weights_leaves_one_plain_arm_which_all_sweeps_share():
    names = [arm.name for arm in arms("fig9a", 0.01, 0.03)]
    assert names == ["paper-dreambooth", "paper-dreambooth-bayes", "paper-dreambooth-bayes-weight_std-0.03"]
    shared = (("fig7", 200), ("table4", "linear"), ("rate", 1e-4))  # the last: what `tiny` recommends
    assert {arms(name, value, model="tiny")[1].name for name, value in shared} == {names[1]}
    against = {arm.value: arm.against for arm in arms("fig9b") if arm.bayes}
    assert against[0.0] is None
    assert {against[1.0], against[100.0]} == {"paper-dreambooth-bayes"}


def test_models_have_what_the_paper_gives_them_alone():
    found = {(a.model.rpartition("/")[2], a.bayes): a for a in arms("table2", "x/stable-diffusion-v1-4", "tiny")}
    assert found["stable-diffusion-v1-4", True].settings["kl_weight"] == 0.1
    assert found["tiny", True].settings["kl_weight"] == 0.0
    assert found["tiny", True].kept == found["stable-diffusion-v1-4", True].kept  # in folders of their models
    assert SWEEPS["table2"].expected("x/stable-diffusion-v1-4")["dino"] == 0.026


def test_the_mean_of_the_divergence_is_its_sum_by_the_number_of_random_weights():
    posterior = GaussianPosterior(torch.nn.Linear(3, 2), where="all", weight_std=0.01, seed=0)
    told = {"model": "tiny", "instance_data_dir": "x", "instance_prompt": "a <v> dog", "output_dir": "run"}
    whole, mean = (
        TrainConfig(**told, bayes=True, kl_weight=4.0, kl_reduction=reduction) for reduction in ("sum", "mean")
    )
    assert (kl_weight(whole, posterior), kl_weight(mean, posterior)) == (4.0, 4.0 / 8)


def test_every_claim_of_the_paper_is_about_a_value_of_its_sweep():
    for name, sweep in SWEEPS.items():
        assert set(sweep.gains) <= set(sweep.values) or sweep.axis == "model", name
    assert {view.of for view in VIEWS.values()} <= set(SWEEPS)
    assert not SWEEPS["fig9a"].expected(0.3)  # of which the paper says nothing
    assert SWEEPS["fig7"].expected(100)["dino"] < 0 < SWEEPS["fig7"].expected(200)["dino"]


def _scored(folder: Path, subjects: int, gain: float) -> Path:
    """A study of two arms with a Bayesian gain in Dino, and seeds that differ by 0.01."""
    arms = [{"name": name, "label": name, "value": 1, "bayes": b} for b, name in enumerate(("plain", "bayes"))]
    arms[1]["against"] = "plain"
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps({"arms": arms, "subjects": []}))
    rows = [
        {
            "metric": "dino",
            "arm": arm,
            "subject": f"s{i}",
            "seed": seed,
            "value": 0.5 + 0.01 * seed + more * (1 + i / 9),
        }
        for i in range(subjects)
        for seed in (0, 1)
        for arm, more in (("plain", 0.0), ("bayes", gain))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row | {"mode": "sound"}) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("subjects", "gain", "verdict"), [(8, 0.1, "confirmed"), (8, -0.1, "refuted"), (5, 0.1, "open"), (1, 0.1, "open")]
)
def test_a_claim_is_open_until_a_test_over_subjects_says_otherwise(subjects, gain, verdict, tmp_path):
    evaluation = read_evaluation(_scored(tmp_path / "study", subjects, gain))
    (claim,) = judged(evaluation, Sweep("", "x", (1,), signs={"dino": 1}))
    assert claim.verdict == verdict
    assert not unseen_table(evaluation).rows
    spread = spread_table(evaluation).rows
    assert spread[0][2] == pytest.approx(0.01 / 2**0.5)  # of two seeds, 0.01 apart
    assert spread[2][2] == pytest.approx(claim.found.difference.mean / (0.01 / 2**0.5))


@pytest.fixture(scope="module")
def quick(eps_model, photos, tmp_path_factory):
    place = tmp_path_factory.mktemp("sweeps")
    given = ["--model", str(eps_model), "--photographs", f"{photos}:dog", "--encoders", "embedded", "--quick"]
    return [*given, "--workers", "1", "--output_dir", str(place)]


@pytest.mark.parametrize("name", titles())
def test_every_sweep_and_view_ends_in_its_table_or_picture(name, quick, eps_model, v_model):
    if name == "adam":
        pytest.importorskip("bitsandbytes")
    values = {"fig8": ["1", "2"], "table2": [str(eps_model), str(v_model)]}.get(name, [])
    files = make(name, [*quick, *["--values", *values] * bool(values)])
    assert all(file.is_file() for file in files)
    own = next(file for file in files if file.stem == name)
    if own.suffix == ".png":
        with Image.open(own) as image:
            assert np.asarray(image.convert("L")).std() > 10
    else:
        assert "nothing follows from it" in own.read_text()
        assert name != "fig8" or "-images-1, to images held out" in own.read_text()
        assert ("Likeness to images that training did not see" in own.read_text()) == (name == "fig8")
        assert name != "table2" or own.read_text().count(": base |") == 4  # two models in two tables
        assert str(own.parent.parent) not in own.read_text()


@pytest.fixture
def cell(tmp_path, eps_model, photos):
    subject = StudySubject("things", "thing", "world-object", Path(photos))
    return Cell(tmp_path, subject, BASE, BASE, None, None, str(eps_model), FEW, "embedded", "sound")


def tuned_of(cell):
    config = TrainConfig(
        model=cell.model, instance_data_dir="photographs", instance_prompt="a photo of a <v> thing", output_dir="run"
    )
    return replace(cell, arm="lora", kept="lora", seed=3, config=config)


def test_all_models_are_sampled_with_the_same_prompts_and_seeds(cell):
    other = tuned_of(cell)
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
    whole = replace(tuned_of(cell), protocol=Protocol())
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
    tuned = tuned_of(cell)
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
    gather(cell.root, [cell, tuned], {"arms": arms, "subjects": [{"name": "things"}], "missing": missing})

    rows = [json.loads(line) for line in (cell.root / "metrics.jsonl").read_text().splitlines()]
    assert [(row["row"], row["arm"], row["value"]) for row in rows] == [
        ("base", "base", 0.3),
        ("real", None, 0.9),
        ("samples", "lora", 0.6),
    ]
    evaluation = read_evaluation(cell.root)
    assert "trainings that did not come to their end: things/lora-seed4." in evaluation.notes
    found = {line.name: line.cells["dino"].mean for line in make_scores(evaluation, "sound").lines}
    assert found == {"base": 0.3, "lora": 0.6, "real": 0.9}
    assert evaluation.pictures[-1].file.resolve() == tuned.pictures / "00-0.png"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--seeds", "0"], "seeds is 0; it must be greater than 0"),
        (["--model", "somewhere"], "somewhere"),
        (["--subjects", "swirl_dragon"], "not an embedded subject"),
        (["--values", "dora"], "'dora' is not a recipe"),
        (["--sampler", "lcm"], "'lcm' is not known"),
        (["--settings", "steps"], "write it as"),
        (["--settings", "stepz=1"], "stepz is not a setting"),
        pytest.param(
            ["--settings", "use_8bit_adam=true", "--subjects", "swirl_mug"],
            "needs the package bitsandbytes",
            marks=pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="it is installed"),
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(wrong, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        run_sweep("table1", sweep_flags("table1", ["--output_dir", str(tmp_path / "study"), *wrong]))
    assert not (tmp_path / "study").exists()


def test_the_same_command_again_makes_nothing_anew_and_a_refused_one_changes_nothing(quick, tmp_path):
    folder = run_sweep("table1", sweep_flags("table1", [*quick, "--values", "paper-lora"]))
    table = make_scores(read_evaluation(folder), "sound")
    assert {"base", "paper-lora", "paper-lora-bayes", "real"} == {line.name for line in table.lines}
    cell = next(line for line in table.lines if line.name == "paper-lora-bayes").cells["clip_t"]
    assert cell.mean is not None
    assert np.isfinite(cell.mean)
    dear = ["*.png", "scores/*/evaluation.json", "manifest.json"]
    written = {path: path.stat().st_mtime_ns for kind in dear for path in folder.parent.rglob(kind)}
    run_sweep("table1", sweep_flags("table1", [*quick, "--values", "paper-lora"]))
    assert written == {path: path.stat().st_mtime_ns for path in written}

    said = (folder / "study.json").read_bytes()
    with pytest.raises(ValueError, match=r"neither 'embedded'"):
        run_sweep("table1", sweep_flags("table1", [*_scored_by(tmp_path / "nowhere", quick), "--values", "paper-lora"]))
    assert (folder / "study.json").read_bytes() == said
    (tmp_path / "encoders").mkdir()
    run_sweep("table1", sweep_flags("table1", [*_scored_by(tmp_path / "encoders", quick), "--values", "paper-lora"]))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "fewbayes-clip" not in {row["encoder"] for row in rows}


def _scored_by(encoders: Path, arguments: list[str]) -> list[str]:
    return [str(encoders) if each == "embedded" else each for each in arguments]


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
    assert (cell.root / "features.sqlite").is_file()
