"""How often the monitor calls a broken checkpoint good, with and without the limit on strangeness.

Ratings are those of benchmarks/rating.py, 0 clean, 1 between, 2 broken; the median of the askings counts. RUNS holds
trainings of `fewbayes experiment remedies --monitor_steps ...` under the names that the ratings have; what is not there
is left out. `--chosen_on` names the checkpoints that the limit was chosen on, so that the others stand apart.

    python benchmarks/earned_good.py runs benchmarks/results/ratings_held_out.json \\
      --chosen_on benchmarks/results/earned_good_chosen_on.json --output benchmarks/results/earned_good.json
"""

import argparse
import json
from pathlib import Path
from statistics import median

from monitor_quality import pictures

from fewbayes.runs.layout import STAGES
from fewbayes.runs.provenance import environment
from fewbayes.stage.definition import CORRUPTED
from fewbayes.stage.monitor import LEARNED
from fewbayes.stage.samples import describe
from fewbayes.stage.scores import UNCLEAR, Standards

RATED = {0: "clean", 1: "between", 2: "broken"}


def checkpoints(run: Path, steps: dict[int, int]) -> list[dict]:
    """What the monitor said in training, and the strangeness of the pictures, by rated step."""
    references, twins = pictures(run / "reference"), pictures(run / "samples/step-000000/raw")
    standards = Standards(describe(references, references), describe(twins, references, twins))
    said = {row["step"]: row for row in map(json.loads, (run / STAGES).read_text().splitlines())}
    found = []
    for step, rating in sorted(steps.items()):
        if step not in said:
            continue
        mine = describe(pictures(run / f"samples/step-{step:06d}/raw"), references, twins)
        scores = said[step]["scores"]
        row = {"step": step, "rated": RATED[rating], "strangeness": median(standards.strangeness(mine))}
        found.append(row | {"corruption": scores["corruption"], "learning": scores.get("learning", 0.0)})
    return found


def shares(rows: list[dict]) -> dict:
    """Numbers of checkpoints by rating: all, called good without the limit, with it, and called unclear."""
    told = {}
    for rated in RATED.values():
        mine = [row for row in rows if row["rated"] == rated]
        calm = [row for row in mine if row["corruption"] < CORRUPTED]
        good = [row for row in calm if row["learning"] >= LEARNED]
        told[rated] = {
            "checkpoints": len(mine),
            "good_without_limit": len(good),
            "good": sum(row["strangeness"] < UNCLEAR for row in good),
            "unclear": sum(row["strangeness"] >= UNCLEAR for row in calm),
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("ratings", nargs="+", type=Path)
    parser.add_argument("--chosen_on", type=Path, help="list of [training, step]")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    rated: dict[str, dict[int, int]] = {}
    for file in asked.ratings:
        for row in json.loads(file.read_text())["rows"]:
            rated.setdefault(row["training"], {})[row["step"]] = int(median(row["ratings"]))
    rows = [
        {"training": training, **row}
        for training, steps in sorted(rated.items())
        if (asked.runs / training / STAGES).is_file()
        for row in checkpoints(asked.runs / training, steps)
    ]
    chosen = {tuple(each) for each in json.loads(asked.chosen_on.read_text())} if asked.chosen_on else set()
    sets = {
        "chosen_on": [row for row in rows if (row["training"], row["step"]) in chosen],
        "others": [row for row in rows if (row["training"], row["step"]) not in chosen],
    }
    told = {"unclear_from": UNCLEAR, "sets": {name: shares(mine) for name, mine in sets.items()}, "rows": rows}
    asked.output.write_text(json.dumps(told | {"environment": environment()}, indent=1) + "\n")
    print(json.dumps(told["sets"], indent=1))


if __name__ == "__main__":
    main()
