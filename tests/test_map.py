"""The map of the corruption stage, from its grid to its table and picture."""

from __future__ import annotations

import json

import pytest

from fewbayes.studies import followed
from fewbayes.studies import map as report
from fewbayes.studies.map import CENTRE, axes, run_map


@pytest.mark.parametrize("method", ["full", "lora"])
def test_no_two_settings_of_the_map_are_one(method):
    arms = [arm for group in axes(5e-4, method).values() for arm in group]
    assert len({arm.name for arm in arms}) == len(arms)
    changes = [dict(arm.changes) for arm in arms]
    assert all(change and change != other for i, change in enumerate(changes) for other in changes[:i])


def cell(qualities, arm=CENTRE.name, images=4):
    rows = [{"step": 100 * i, "quality": q, "corruption": 1 - q} for i, q in enumerate([0.9, *qualities])]
    rows = [row | {"fidelity": 0.5, "prompt": 0.5, "diversity": 0.5} for row in rows]
    training = {"quality": 0.9, "fidelity": 0.9}
    return {"subject": "mug", "images": images, "arm": arm, "seed": 0, "training": training, "raw": rows, "ema": []}


def test_a_stage_has_an_onset_a_length_and_an_end():
    found = report.summary(cell([0.9, 0.1, 0.1, 0.9]))
    assert (found["onset"], found["longest"], found["recovered"]) == (200, 0.5, 1.0)
    assert report.summary(cell([0.9, 0.9, 0.1, 0.1]))["recovered"] == 0.0
    assert report.summary(cell([0.9, 0.1, 0.9, 0.1]))["onset"] is None


def test_onset_and_recovery_are_those_of_the_longest_stretch():
    found = report.summary(cell([0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.9, 0.1]))
    assert (found["onset"], found["longest"]) == (400, 3 / 8)
    assert found["recovered"] == 1.0  # at 700, although 800 is corrupted again


def test_an_onset_that_some_seeds_lack_says_so():
    seeds = [cell([0.9, 0.1, 0.1, 0.9]), *(cell([0.9] * 4) | {"seed": seed} for seed in (1, 2))]
    lost = {"subject": "mug", "images": 4, "arm": CENTRE.name, "seed": 3, "failed": "step 2: the loss is nan"}
    study = {"arms": [{"name": "centre", "label": "centre"}], "axes": {}, "cells": seeds, "failed": [lost]}
    text = report.tables(study)
    assert "|  | centre | 3 of 4 | 200 (1 of 3) |" in text
    assert "- mug, 4 images, centre, seed 3: step 2: the loss is nan" in text


def test_settings_come_axis_by_axis_and_fewer_images_apart():
    study = {
        "arms": [{"name": "centre", "label": "centre"}, {"name": "slow", "label": "slower"}],
        "axes": {"learning rate": ["slow"], "guidance": ["never run"]},
        "cells": [cell([0.9]), cell([0.9], images=1), cell([0.9], arm="slow")],
    }
    study["arms"].append({"name": "never run", "label": "-"})
    rows = [(axis, words) for axis, words, _ in report.rows_of(study)]
    assert rows == [("", "centre"), ("number of images", "1 image"), ("learning rate", "slower")]


def test_a_map_runs_from_its_command_to_its_picture(tmp_path, monkeypatch):
    for module in (followed, report):
        monkeypatch.setattr(module, "CHECKPOINTS", 4)
    wanted = ["--output_dir", str(tmp_path), "--subjects", "swirl_fish", "--quick", "--workers", "1"]
    wanted += ["--num_inference_steps", "2", "--axes", "number of images"]
    file, table, picture = run_map(wanted)
    assert "| number of images | 1 image |" in table.read_text()
    cells = json.loads(file.read_text())["cells"]
    next(tmp_path.rglob("cell.json")).unlink()  # killed when it was trained and not yet measured: it goes on
    assert json.loads(run_map(wanted)[0].read_text())["cells"] == cells
    assert picture.stat().st_size > 5000
    before = table.read_bytes(), picture.read_bytes()
    table.unlink()
    picture.unlink()
    run_map(["--redraw", str(file)])
    assert (table.read_bytes(), picture.read_bytes()) == before
