"""The study of the guided gap: its registered numbers on constructed trainings, and one from command to picture."""

from __future__ import annotations

import json
import math
import os

import pytest

from fewbayes.studies.guided import GuidedFlags, cells, checkpoints, draw, run_guided, verdict, write_table

STEPS = (100, 200)


def training(name, *, unguided, guided, corruption):
    """Gains by checkpoint; corruption: of the samples without guidance, with it and within the interval."""

    def answer(gains):
        return {"retention": [0.5] * 6, "loss": [0.2] * 6, "gain": [*gains, 0, 0, 0, 0, 0][:6]}

    def row(step, u, g):
        found = {"conditional": answer([u]), "unconditional": answer([u]), "guided": answer([g])}
        return {"step": step, "guided": {"t": list(range(6)), "guidance": [7.5] * 6, **found}}

    rows = [row(step, u, g) for step, u, g in zip((0, *STEPS), (0.3, *unguided), (0.3, *guided), strict=True)]
    for look, scores in zip(rows[1:], corruption, strict=True):
        look["corruption"] = dict(zip(("none", "guided", "interval"), scores, strict=True))
    common = {"subject": "fish", "images": 1, "arm": name, "label": name, "seed": 0, "folder": f"fish/1/{name}-seed0"}
    return common | {"rows": rows}


TOLD = {
    "provenance": {"command": "fewbayes experiment guided"},
    "cells": [
        training("gap", unguided=(0.4, 0.5), guided=(2.0, 9.0), corruption=[(0.1, 0.4, 0.1), (0.1, 0.9, 0.2)]),
        training("clean", unguided=(0.6, 0.7), guided=(0.4, 0.3), corruption=[(0.1, 0.1, 0.1)] * 2),
    ],
}


def test_a_gap_that_guidance_multiplies_is_told_from_a_model_that_amplifies_by_itself():
    found = verdict(TOLD)
    assert found["auroc"] == {"guided": 1.0, "unguided": pytest.approx(1 / 3), "driven": 0.5}
    assert (found["broken"], found["checkpoints"], found["trainings"]) == (1, 4, 2)
    assert found["staged"] == {"none": 0, "guided": 1, "interval": 0}
    assert found["restored"] == 1
    assert found["caused"] == {"fish": (1, 1)}
    assert found["late"] == [100]  # broken at 200, above 1 at 100


def test_raters_go_before_the_monitors_score():
    ratings = {
        f"{cell['folder']}/{step}/{way}": 0 for cell in TOLD["cells"] for step in STEPS for way in ("guided", "none")
    }
    ratings["fish/1/clean-seed0/200/guided"] = 2
    told = TOLD | {"rated": {"rater": "somebody", "date": "today", "ratings": ratings}}
    assert [one.cell["arm"] for one in checkpoints(told) if one.broken["guided"]] == ["clean"]
    assert verdict(told)["staged"] == {"none": 0, "guided": 1, "interval": 0}
    assert verdict(told)["restored"] == 0  # the interval was not rated
    assert math.isnan(
        verdict(told | {"rated": told["rated"] | {"ratings": dict.fromkeys(ratings, 0)}})["auroc"]["guided"]
    )


def test_table_and_picture_follow_from_the_kept_numbers(tmp_path):
    text = write_table(TOLD, tmp_path / "guided.md").read_text()
    assert "| gap | 1 | 1 | 0.50, 0.50 | 0.50, 0.50 | 0.50, 9.00 | 0 of 2 | 1 of 2 | 0 of 2 |" in text
    assert "AUROC for these: guided gain 1.00, unguided gain 0.33." in text
    assert draw(TOLD, tmp_path / "guided.png").stat().st_size > 5000


def test_every_kind_of_training_has_its_own_rate_and_the_control_its_own_model(tmp_path):
    flags = GuidedFlags(output_dir=tmp_path, subjects=("swirl_fish",), images=(1, 4), factors=(3.0,), noisy="noisy")
    found = cells(flags)
    assert len({cell.folder for cell in found}) == len(found) == 2 * 5 + 1
    rates = {cell.arm.name: cell.config.learning_rate for cell in found}
    assert rates["full-x3"] == pytest.approx(3e-4)
    assert rates["lora-x3"] == pytest.approx(6e-4)
    assert [cell.config.model for cell in found if cell.arm.name == "noisy"] == ["noisy"]
    assert {cell.config.class_prompt for cell in found} == {None, "a photo of a fish"}


@pytest.mark.skipif("FEWBAYES_SLOW" not in os.environ, reason="half a minute; set FEWBAYES_SLOW=1")
def test_a_training_is_probed_and_sampled_from_command_to_picture(tmp_path):
    asked = ["--output_dir", str(tmp_path), "--subjects", "swirl_fish", "--steps", "4", "--probe_every", "2"]
    more = ["--images", "1", "--factors", "10", "--kinds", "lora", "--num_inference_steps", "2", "--workers", "1"]
    file, table, picture = run_guided([*asked, *more])
    (cell,) = json.loads(file.read_text())["cells"]
    assert [row["step"] for row in cell["rows"]] == [0, 2, 4]
    assert all(row["corruption"].keys() == {"none", "guided", "interval"} for row in cell["rows"])
    assert len(list(tmp_path.glob("swirl_fish/1/*/guided/*.png"))) == 9
    assert not list(tmp_path.rglob("checkpoint-*"))
    assert table.is_file()
    assert picture.is_file()
    kept = file.read_text()
    assert run_guided(["--redraw", str(file)])[0].read_text() == kept
