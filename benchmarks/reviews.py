"""The numbers of docs/results/reviews.md, from the folder of the sweeps that the page names.

    python benchmarks/reviews.py runs/paper docs/results/reviews.json

Shares at noise levels are of means over subjects: what an arm has of the gain, or the loss, of the first arm against
the base model.
"""

import json
import sys
from pathlib import Path
from typing import Any

from fewbayes.files.atomic import atomic_write
from fewbayes.metrics.statistics import compare, interval, subject_means
from fewbayes.page.evaluation import read_evaluation
from fewbayes.studies.memo import rounded

SWEEPS = ("batch_size", "caption_dropout", "adam", "relative_noise", "timesteps", "timesteps_fast")
METRICS = ("dino", "clip_iqa")


def main() -> None:
    folder, output = map(Path, sys.argv[1:])
    told: dict[str, Any] = {name: rows(folder / name) for name in SWEEPS}
    plain, small = (told["adam"][i]["arm"] for i in (0, 2))
    units = read_evaluation(folder / "adam").units["sound"]
    told["adam alone"] = {m: summary(compare(units[m][small], units[m][plain]).difference) for m in METRICS}
    atomic_write(output, json.dumps(rounded(told), indent=1) + "\n")


def rows(folder: Path) -> list[dict]:
    """One for each arm, with its difference from what it is compared with."""
    evaluation = read_evaluation(folder)
    units, arms = evaluation.units["sound"], evaluation.facts["arms"]
    found = []
    for arm in arms:
        row = {key: arm[key] for key in ("arm", "label", "value", "against") if key in arm} | {"arm": arm["name"]}
        for metric in METRICS:
            lines = units[metric]
            row[metric] = summary(interval(lines[arm["name"]]))
            if arm["against"]:
                row[f"{metric} less"] = summary(compare(lines[arm["name"]], lines[arm["against"]]).difference)
            mine, first, base = (mean(lines[name]) for name in (arm["name"], arms[0]["name"], "base"))
            if "within" in arm["name"] or arm is arms[0]:
                row[f"{metric} share"] = (mine - base) / (first - base)
        found.append(row)
    return found


def mean(units) -> float:
    means = list(subject_means(units).values())
    return sum(means) / len(means)


def summary(found) -> list[float | None]:
    return [found.mean, found.low, found.high]


if __name__ == "__main__":
    main()
