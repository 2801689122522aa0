"""One table over several subjects: the pooled unit is the pair of runs at one subject and seed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from fewbayes.page.table import compare, markdown, write_comparison

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


def test_differences_are_pooled_over_pairs_and_not_over_means(folders):
    (row,) = compare(folders)["together"]
    pairs = [b - p for s in FINAL.values() for p, b in zip(s["plain"], s["bayes"], strict=True)]
    found = row["final_similarity"]
    assert found["n"] == 4
    assert found["mean"] == pytest.approx(np.mean(pairs))
    half = 3.182 * np.std(pairs, ddof=1) / math.sqrt(4)  # Student's t, 3 degrees of freedom
    assert found["high"] - found["mean"] == pytest.approx(half, rel=1e-3)


def test_the_table_names_every_arm_and_says_every_number_of_the_file(folders, tmp_path):
    page = write_comparison(folders, tmp_path / "result", {"command": "x"})
    kept = json.loads(page.with_suffix(".json").read_text())
    assert kept["facts"] == {"command": "x"}
    text = page.read_text()
    assert text == markdown(compare(folders))
    assert "| Bayes less Plain | raw weights | 4 |" in text
    assert "| Plain | raw weights | 0 of 2 | 0.55 " in text  # the mean of 0.50 and 0.60
