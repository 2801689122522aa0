"""One table over several subjects: runs of one subject are no independent trials, and its intervals know it."""

import json
from pathlib import Path

import numpy as np
import pytest

from fewbayes.metrics.statistics import interval
from fewbayes.page.read import read_experiment
from fewbayes.page.summary import QUANTITIES
from fewbayes.studies.one_shot import leads, read_numbers, tables, write_comparison

STEPS = (0, 100, 200)
FINAL = {  # subject -> arm -> seed -> similarity at the last step
    "cup": {"plain": (0.50, 0.60), "bayes": (0.70, 0.75)},
    "cat": {"plain": (0.80, 0.40), "bayes": (0.85, 0.60)},
}


def _write(folder: Path) -> Path:
    arms = [{"name": name, "label": name.title(), "runs": [f"{name}-seed{s}" for s in (0, 1)]} for name in FINAL["cup"]]
    for arm, values in FINAL[folder.name].items():
        for seed, final in enumerate(values):
            run = folder / f"{arm}-seed{seed}"
            run.mkdir(parents=True)
            (run / "config.yaml").write_text(f"seed: {seed}\n")
            (run / "manifest.json").write_text(json.dumps({"status": "done"}))
            rows = [
                {"step": step, "metric": metric, "value": value, "weights": "raw"}
                for metric, curve in (("image_similarity", (0.1, 0.3, final)), ("haar_noise", (2.0, 3.0, 4.0)))
                for step, value in zip(STEPS, curve, strict=True)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    described = {"title": folder.name, "subject": folder.name, "question": "", "arms": arms, "provenance": {}}
    (folder / "experiment.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def folders(tmp_path):
    return [_write(tmp_path / name) for name in FINAL]


def test_the_difference_is_a_macro_mean_over_subjects_of_paired_differences(folders):
    found = leads(read_numbers({folder.name: read_experiment(folder) for folder in folders}), "plain")
    estimate = found["bayes", "raw"]["final_similarity"]
    by_subject = [np.mean(np.subtract(runs["bayes"], runs["plain"])) for runs in FINAL.values()]
    assert (estimate.subjects, estimate.units) == (2, 4)
    assert estimate.mean == pytest.approx(np.mean(by_subject))
    half = 12.706 * abs(np.subtract(*by_subject)) / 2  # Student's t of two subjects, not of four pairs
    assert estimate.high - estimate.mean == pytest.approx(half, rel=1e-3)


def test_the_table_names_every_arm_and_the_file_has_every_number(folders, tmp_path):
    page = write_comparison(folders, tmp_path / "result")
    kept = json.loads(page.with_suffix(".json").read_text())
    finals = {
        (r["subject"], r["arm"], r["seed"]): r["value"] for r in kept["numbers"] if r["quantity"].startswith("final")
    }
    assert finals == {(s, arm, i): v for s, runs in FINAL.items() for arm, vs in runs.items() for i, v in enumerate(vs)}
    text = page.read_text()
    assert text == tables({folder.name: read_experiment(folder) for folder in folders})
    assert "| Bayes less Plain | raw weights | 4 |" in text
    assert "| Plain | raw weights | 0 of 2 |" in text
    half = 12.706 * 0.05  # Student's t of two seeds, 0.50 and 0.60
    assert f"0.55 ({0.55 - half:.2f} to 1.00)" in text  # no correlation is above 1


@pytest.mark.parametrize("subjects", [2, 3, 4])
def test_no_effect_is_seldom_taken_for_one(subjects):
    """Studies of arms that do nothing, whose subjects differ in how they answer: few intervals leave zero out.

    Pairs pooled as independent, as an earlier table had them, leave zero out in about half of such studies.
    """
    rng = np.random.default_rng(subjects)
    studies, seeds = 300, 5
    excluded = pooled = 0
    for _ in range(studies):
        effects = rng.normal(0, 1, (subjects, 1)) + rng.normal(0, 0.5, (subjects, seeds))
        units = {(str(subject), seed): effects[subject, seed] for subject in range(subjects) for seed in range(seeds)}
        zero = dict.fromkeys(units, 0.0)
        numbers = {("arm", "raw"): dict.fromkeys(QUANTITIES, units), ("plain", "raw"): dict.fromkeys(QUANTITIES, zero)}
        (row,) = leads(numbers, "plain").values()
        found = row["final_similarity"]
        excluded += not found.low <= 0 <= found.high
        pairs = interval({("", i): value for i, value in enumerate(units.values())})
        pooled += not pairs.low <= 0 <= pairs.high
    assert excluded / studies <= 0.10
    assert pooled / studies > 0.3
