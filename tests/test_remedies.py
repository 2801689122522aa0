"""Measures of corruption along a training, and the comparison of remedies from training to table."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewbayes.metrics.encoders import load_encoders
from fewbayes.stage.definition import CORRUPTED, longest
from fewbayes.studies import followed, remedies
from fewbayes.studies.course import Along, at_same, measures, roughness, share_compared
from fewbayes.studies.followed import CELL
from fewbayes.studies.grid import without_path
from fewbayes.studies.remedies import arms, curves, run_remedies, tables
from fewbayes.studies.trajectory import FILE, score_run


def cell(qualities, fidelities, averaged=None, distances=None, **keys):
    """A training with a base of quality 0.8 and fidelity 0, of images of fidelity 0.8; corrupted up to quality 0.5."""

    def rows(values):
        found = zip([0.8, *values], [0.0, *fidelities], strict=True)
        return [
            {"step": 100 * i, "quality": q, "corruption": 1 - q, "fidelity": f, "prompt": 0.5, "diversity": 0.6}
            for i, (q, f) in enumerate(found)
        ]

    steps = [100 * (i + 1) for i in range(len(qualities))]
    return {
        "subject": "mug",
        "images": 4,
        "arm": "plain",
        "seed": 0,
        "training": {"quality": 0.9, "fidelity": 0.8},
        "raw": rows(qualities),
        "ema": rows(qualities if averaged is None else averaged),
        "displacement": [[step, d] for step, d in zip(steps, distances or [1.0 * s for s in steps], strict=True)],
    } | keys


def test_a_stage_in_raw_and_averaged_weights_is_sustained():
    found = measures(cell([0.8, 0.1, 0.1, 0.1, 0.8], [0.5, 0.2, 0.1, 0.3, 0.7]), "raw")
    assert found["corrupted"] == pytest.approx(0.6)
    assert found["sustained"] == pytest.approx(0.6)
    assert found["fall"] == pytest.approx(0.4)
    assert found["best"] == 0.7


def test_what_averaging_repairs_is_not_sustained():
    jittery = cell([0.8, 0.1, 0.1, 0.1, 0.8], [0.5] * 5, averaged=[0.8] * 5)
    assert measures(jittery, "raw")["sustained"] == 0
    assert measures(jittery, "raw")["corrupted"] == pytest.approx(0.6)
    assert measures(jittery, "ema")["corrupted"] == 0


def test_one_bad_checkpoint_between_good_ones_is_not_sustained():
    assert measures(cell([0.8, 0.1, 0.8, 0.1, 0.8], [0.5] * 5), "raw")["sustained"] == 0


def test_an_unlearned_checkpoint_is_not_usable_and_neither_is_a_corrupted_one():
    assert measures(cell([0.8, 0.8, 0.1], [0.1, 0.5, 0.7]), "raw")["usable"] == pytest.approx(1 / 3)


def test_the_best_of_a_run_that_is_corrupted_throughout_is_the_base_model():
    assert measures(cell([0.1, 0.1], [0.5, 0.7]), "raw")["best"] == 0.0


@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(3, 12))
def test_a_straight_line_has_no_jitter(start, slope, count):
    assert roughness([start + slope * i for i in range(count)]) == pytest.approx(0, abs=1e-9)


@given(st.lists(st.booleans(), max_size=20))
def test_the_longest_run_is_what_a_plain_loop_finds(inside):
    best = run = 0
    for value in inside:
        run = run + 1 if value else 0
        best = max(best, run)
    begin, end = longest(inside) or (0, 0)
    assert end - begin == (best if best >= 2 else 0)


def test_the_longest_stretch_is_all_true_between_edges_that_are_not():
    assert longest([True, True, False, True, True, True]) == (3, 6)
    assert longest([True, True, False, True, True]) == (0, 2)
    assert longest([True, False, True]) is None


def losses(*values):
    """Of a base model of loss 0.5 and checkpoints every 100 steps."""
    return [[100 * i, loss] for i, loss in enumerate([0.5, *values])]


def test_a_slower_clock_has_no_lead_where_it_has_come_as_far():
    plain = cell([0.7, 0.5, 0.3, 0.2], [0.2, 0.4, 0.6, 0.8], distances=[1.0, 2.0, 3.0, 4.0])
    plain["losses"] = losses(0.4, 0.3, 0.2, 0.1)
    slow = cell([0.75, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4], distances=[0.5, 1.0, 1.5, 2.0])
    slow["losses"] = losses(0.45, 0.4, 0.35, 0.3)
    for along in get_args(Along):
        assert at_same(along, slow, plain, "quality") == pytest.approx(0)
        assert at_same(along, slow, plain, "fidelity") == pytest.approx(0)
        assert share_compared(along, slow, plain) == 1.0


def test_a_better_path_leads_by_what_it_is_better():
    plain = cell([0.7, 0.5], [0.2, 0.4], distances=[1.0, 2.0], losses=losses(0.4, 0.3))
    better = cell([0.8, 0.6], [0.2, 0.4], distances=[1.0, 2.0], losses=losses(0.4, 0.3))
    for along in get_args(Along):
        assert at_same(along, better, plain, "quality") == pytest.approx(0.1)


def test_the_two_ways_of_having_come_far_differ():
    plain = cell([0.7, 0.5], [0.2, 0.4], distances=[1.0, 2.0], losses=losses(0.4, 0.3))
    near = cell([0.6, 0.5], [0.2, 0.4], distances=[0.5, 1.0], losses=losses(0.4, 0.3))
    assert at_same("displacement", near, plain, "quality") == pytest.approx((0.6 - 0.75 + 0.5 - 0.7) / 2)
    assert at_same("losses", near, plain, "quality") == pytest.approx((0.6 - 0.7 + 0.5 - 0.5) / 2)


def test_what_went_farther_than_the_control_ever_did_is_not_compared():
    plain = cell([0.7, 0.5], [0.2, 0.4], distances=[1.0, 2.0], losses=losses(0.4, 0.3))
    far = cell([0.8, 0.8], [0.2, 0.2], distances=[1.5, 5.0], losses=losses(0.35, 0.1))
    assert at_same("displacement", cell([0.8], [0.2], distances=[5.0]), plain, "quality") is None
    for along in get_args(Along):
        assert (share_compared(along, far, plain), share_compared(along, plain, far)) == (0.5, 1.0)


def test_a_loss_that_rose_is_compared_with_one_that_rose_as_far_and_no_farther():
    plain = cell([0.7, 0.5], [0.2, 0.4], losses=losses(0.6, 0.7))
    other = cell([0.8, 0.6], [0.2, 0.4], losses=losses(0.65, 0.8))
    assert at_same("losses", other, plain, "quality") == pytest.approx(0.8 - 0.6)
    assert share_compared("losses", other, plain) == 0.5


def test_trainings_whose_way_was_not_measured_are_left_out():
    known, unknown = cell([0.7], [0.2], losses=losses(0.4)), cell([0.7], [0.2])
    assert at_same("losses", known, unknown, "quality") is at_same("losses", unknown, known, "quality") is None
    assert share_compared("losses", unknown, known) is None


def test_every_arm_changes_something_and_the_first_is_plain():
    changes = [dict(arm.changes) for arm in arms(1e-3, "full").values()]
    assert next(iter(arms(1e-3, "full"))) == "plain"
    assert all(one != other for i, one in enumerate(changes) for other in changes[:i])


def study(cells, *, failed=()):
    known = arms(1e-3, "full")
    names = dict.fromkeys(c["arm"] for c in (*cells, *failed))
    listed = [{"name": name, "label": known[name].label, "note": known[name].note} for name in names]
    return {"settings": {"method": "full"}, "arms": listed, "cells": cells, "failed": list(failed)}


def test_what_failed_is_counted_and_named():
    lost = {"subject": "mug", "images": 4, "arm": "fixed", "seed": 1, "failed": "step 3: the loss is nan"}
    good = [cell([0.8, 0.7], [0.5, 0.6], arm=arm, losses=losses(0.3, 0.25)) for arm in ("plain", "fixed")]
    text = tables(study([*good, cell([0.8, 0.7], [0.5, 0.6], seed=1)], failed=[lost]))
    assert "| Fixed noise, 0.03 | raw | 1 of 2 |" in text
    assert "| Plain | raw | 2 |" in text
    assert "- Fixed noise, 0.03 on mug, seed 1: step 3: the loss is nan" in text
    assert "Begun with fewer" not in text


def test_an_arm_with_fewer_seeds_is_said_and_a_single_training_has_no_interval():
    cells = [cell([0.8, 0.7 - seed / 10], [0.5, 0.6], seed=seed) for seed in (0, 1)]
    text = tables(study([*cells, cell([0.8, 0.7], [0.5, 0.6], arm="dropout")]))
    assert "Begun with fewer than 2 trainings: Dropout 1." in text
    rows = {line.split(" | ")[0]: line for line in text.split("## Levels")[1].split("##")[0].splitlines()}
    assert "(" in rows["| Plain"]
    assert "(" not in rows["| Dropout"].removeprefix("| Dropout | averaged")


def test_fixed_noise_is_held_against_the_other_remedies():
    cells = [cell([0.8, 0.7], [0.5, 0.6], arm=arm) for arm in ("plain", "slow", "fixed")]
    assert "Fixed noise, 0.03, raw less Plain, quarter rate, raw" in tables(study(cells))


def test_results_name_no_folders():
    assert without_path("../../photos/dog:dog") == "dog:dog"
    assert without_path("--output_dir=/home/me/runs/a") == "--output_dir=a"
    assert without_path("5e-4") == "5e-4"


@pytest.fixture
def four_checkpoints(monkeypatch):
    """Of a training of 8 steps."""
    for module in (followed, remedies):
        monkeypatch.setattr(module, "CHECKPOINTS", 4)


def test_a_comparison_runs_resumes_and_ends_in_tables_and_pictures(tmp_path, four_checkpoints):
    wanted = ["--output_dir", str(tmp_path), "--subjects", "swirl_fish", "--seeds", "1", "--steps", "8"]
    wanted += ["--workers", "1", "--num_inference_steps", "2", "--arms", "plain", "bayes-0.03"]
    wanted += ["--fewer_seeds", "plain=1", "bayes-0.03=1"]
    file, table, drawn, strips = run_remedies(wanted)
    first = file.read_text()
    cells = json.loads(first)["cells"]
    assert [cell["arm"] for cell in cells] == ["plain", "bayes-0.03"]
    assert [row["step"] for row in cells[0]["raw"]] == [0, 2, 4, 6, 8]
    assert cells[0]["raw"][0] == cells[0]["ema"][0] == cells[1]["raw"][0]
    assert 0 < cells[0]["displacement"][0][1] < cells[0]["displacement"][-1][1]
    assert [step for step, _ in cells[0]["losses"]] == [0, 2, 4, 6, 8]
    assert cells[0]["losses"][0] == cells[1]["losses"][0] != cells[0]["losses"][-1]
    assert not list(tmp_path.glob("**/checkpoint-*"))
    stamp = (tmp_path / "swirl_fish/4/plain-seed0" / CELL).stat().st_mtime_ns
    assert json.loads(run_remedies(wanted)[0].read_text())["cells"] == cells
    assert (tmp_path / "swirl_fish/4/plain-seed0" / CELL).stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="measured otherwise; give another output_dir"):
        run_remedies([*wanted, "--learning_rate", "2e-3"])
    run = tmp_path / "swirl_fish/4/plain-seed0"
    kept = json.loads((run / CELL).read_text())
    (run / CELL).write_text(json.dumps(kept["found"]))
    with pytest.raises(ValueError, match="holds another training"):  # nothing says what it was made from
        run_remedies(wanted)
    (run / CELL).write_text(json.dumps(kept | {"made_of": kept["made_of"] | {"quantities": ["quality"]}}))
    with pytest.raises(ValueError, match="measured otherwise"):  # by a program that knew fewer of them
        run_remedies(wanted)
    (run / CELL).unlink()  # trained, not yet scored
    with pytest.raises(ValueError, match="holds another training"):
        run_remedies(["3" if value == "2" else value for value in wanted])  # other steps of the sampler
    assert str(tmp_path) not in first
    assert "Bayesian, 0.03, raw less Plain, raw" in table.read_text()
    assert strips == tmp_path / "remedies_swirl_fish.png"  # the kind of picture that README shows
    assert all(picture.stat().st_size > 5000 for picture in (drawn, strips))
    both = strips.read_bytes()
    run_remedies(["--redraw", str(file), "--shown", "bayes-0.03"])  # as docs/extending.md has README's picture made
    assert 5000 < strips.stat().st_size < len(both)
    with pytest.raises(ValueError, match=r"dropout is not among the arms plain, bayes-0\.03"):
        run_remedies(["--redraw", str(file), "--shown", "dropout"])


def test_every_arm_that_a_picture_is_asked_for_is_drawn_whatever_their_number():
    names = list(arms(1e-3, "full"))
    assert len(names) > 6
    told = study([cell([0.8, 0.7], [0.5, 0.6], arm=name) for name in names])
    axis = curves(told, names).axes[0]
    raw = [line for line in axis.get_lines() if line.get_label() in {arm["label"] for arm in told["arms"]}]
    assert [line.get_label() for line in raw] == [arm["label"] for arm in told["arms"]]
    assert len({line.get_color() for line in raw}) == len(names)


def test_a_run_is_scored_anew_where_its_pictures_changed(tmp_path, four_checkpoints):
    wanted = ["--output_dir", str(tmp_path), "--subjects", "swirl_fish", "--seeds", "1", "--steps", "8"]
    wanted += ["--method", "lora", "--rank", "2", "--arms", "token", "--num_inference_steps", "2"]
    (trained,) = json.loads(run_remedies([*wanted, "--workers", "1"])[0].read_text())["cells"]
    assert trained["mean_of_last"].keys() == trained["more_steps"].keys()  # the token's rows are averaged too
    run = tmp_path / "swirl_fish/4/token-seed0"
    encoders = load_encoders("embedded")
    before, stamp = score_run(run, encoders, "<v>"), (run / FILE).stat().st_mtime_ns
    assert score_run(run, encoders, "<v>") == before
    assert (run / FILE).stat().st_mtime_ns == stamp
    last = run / "samples/step-000008/raw/00.png"
    last.write_bytes(next(run.glob("reference/*.png")).read_bytes())
    after = score_run(run, encoders, "<v>")
    assert after["raw"][-1]["nearest"] > before["raw"][-1]["nearest"]
    assert after["raw"][:-1] == before["raw"][:-1]
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    for pixels, file in zip(noise, sorted((run / "samples/step-000004/raw").glob("*.png")), strict=True):
        Image.fromarray(pixels).save(file)
    ruined = score_run(run, encoders, "<v>")["raw"]
    assert ruined[2]["corruption"] > CORRUPTED > max(row["corruption"] for row in (ruined[0], ruined[1]))


def test_a_training_that_runs_away_is_kept_as_failed(tmp_path):
    wanted = ["--output_dir", str(tmp_path), "--subjects", "swirl_fish", "--seeds", "1", "--steps", "80", "--arms"]
    wanted += ["plain", "--num_inference_steps", "2", "--workers", "1"]
    with pytest.raises(ValueError, match="all 1 trainings failed"):
        run_remedies([*wanted, "--learning_rate", "1e30"])
    (failed,) = json.loads((tmp_path / "remedies.json").read_text())["failed"]
    assert (failed["arm"], failed["seed"]) == ("plain", 0)
    assert "the loss is nan" in failed["failed"] or "norm is" in failed["failed"]


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(ValueError, match="plane is not among the arms"):
        run_remedies(["--output_dir", str(tmp_path), "--subjects", "swirl_fish", "--fewer_seeds", "plane=2"])
    with pytest.raises(ValueError, match="num_images is 1; it must be 2 or more"):
        run_remedies(["--output_dir", str(tmp_path), "--subjects", "swirl_fish", "--num_images", "1"])
    with pytest.raises(ValueError, match="steps is 4; it must be 8 or more"):
        run_remedies(["--output_dir", str(tmp_path), "--subjects", "swirl_fish", "--steps", "4"])
