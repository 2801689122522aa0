"""One table over several subjects: runs of one subject are no independent trials, and its intervals know it."""

import json
from pathlib import Path

import numpy as np
import pytest

from fewbayes.page.read import read_experiment
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
    assert estimate.low < min(by_subject) + 0.02  # two subjects are what is resampled, not four pairs
    assert estimate.high > max(by_subject) - 0.02


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
    assert "0.55 (-0.09 to 1.19)" in text  # mean and t interval of 0.50 and 0.60
