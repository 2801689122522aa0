"""How often the monitor calls a broken checkpoint good: its verdicts beside the ratings of the same pictures.

RUNS holds trainings that the monitor watched, under the names that the ratings have; what is not there is left out. Of
each rated checkpoint: the scores, and what is seen in them by the rule of today and by the one before it (strangeness
below 0.6). Ratings are 0 clean, 1 between, 2 broken, the median of the askings counts, and each file is a set.

    python benchmarks/earned_good.py runs benchmarks/results/ratings_held_out.json \\
      benchmarks/results/ratings_siblings.json --output benchmarks/results/earned_good.json
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from statistics import median

from monitor_quality import pictures

from fewbayes.runs.layout import STAGES
from fewbayes.runs.provenance import environment
from fewbayes.stage.monitor import Look, Monitor, seen
from fewbayes.stage.samples import describe

RATED = ("clean", "between", "broken")
BEFORE = 0.6
"""Strangeness from which a checkpoint was unclear, whatever its outlines."""


def checkpoints(run: Path, ratings: dict[int, float]) -> list[dict]:
    """By rated step. What had been learned is the training's own word, as probes are no pictures."""
    references, twins = pictures(run / "reference"), pictures(run / "samples/step-000000/raw")
    monitor = Monitor(Look(0, None, describe(twins, references, twins)), describe(references, references))
    told = {row["step"]: row["scores"] for row in map(json.loads, (run / STAGES).read_text().splitlines())}
    rows = []
    for step in sorted(told.keys() & ratings):
        mine = describe(pictures(run / f"samples/step-{step:06d}/raw"), references, twins)
        scores = monitor.standards.scores(None, mine, None) | {"learning": told[step].get("learning", 0.0)}
        now = seen(scores, monitor.standards.several)
        before = "unclear" if now in ("good", "underfit", "unclear") and scores["strangeness"] >= BEFORE else now
        if before == "unclear" and scores["strangeness"] < BEFORE:
            before = "good"
        rows.append({"step": step, "rated": RATED[int(ratings[step])], "seen": now, "before": before, "scores": scores})
    return rows


def counts(rows: list[dict], rule: str) -> dict[str, list[int]]:
    """By verdict: clean, between and broken checkpoints."""
    found = Counter((row[rule], row["rated"]) for row in rows)
    return {stage: [found[stage, rated] for rated in RATED] for stage in sorted({row[rule] for row in rows})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("ratings", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    told: dict = {"sets": {}, "environment": environment()}
    for file in asked.ratings:
        rated: dict[str, dict[int, float]] = {}
        for row in json.loads(file.read_text())["rows"]:
            rated.setdefault(row["training"], {})[row["step"]] = median(row["ratings"])
        rows = [
            {"training": training, **row}
            for training, ratings in sorted(rated.items())
            if (asked.runs / training / STAGES).is_file()
            for row in checkpoints(asked.runs / training, ratings)
        ]
        found = {rule: counts(rows, rule) for rule in ("seen", "before")}
        told["sets"][file.stem] = found | {"checkpoints": len(rows), "rows": rows}
        print(file.stem, json.dumps(found, indent=1))
    asked.output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
