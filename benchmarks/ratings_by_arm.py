"""What raters called broken, by arm, and how much of that the stage monitor's score called corrupted.

The score's sensitivity differs between arms, so a share of checkpoints "called corrupted" does not compare two arms by
itself. Reads the ratings and scores that `monitor_quality.py` kept; writes the table as Markdown.

    python benchmarks/ratings_by_arm.py benchmarks/results/monitor_quality.json --output docs/results/ratings.md
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from fewbayes.stage.monitor import CORRUPTED

REGIMES = {
    "noisy": "training on noise",
    "remedies": "too high a rate",
    "held": "too high a rate",
    "watched": "too high a rate",
}
DRAWN = {"swirl_fish", "ringed_cat", "flame_car", "ringed_lamp", "mosaic_teapot", "patchwork_bird"}
"""Subjects that we draw; the others are photographs."""
CLEAN, BROKEN = 0, 2


def counted(quality: dict[str, Any]) -> dict[tuple[str, str, str], list[int]]:
    """(regime, subjects, arm): checkpoints rated, rated clean, rated broken, and of these called corrupted."""
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for found in quality["sets"].values():
        for training in found["trainings"]:
            study, subject, _, run = training["training"].split("/")
            key = (REGIMES[study], "drawn" if subject in DRAWN else "photographs", run.rpartition("-seed")[0])
            for rating, score in zip(training["ratings"], training["scores"], strict=True):
                row = counts[key]
                row[0] += 1
                row[1] += rating == CLEAN
                row[2] += rating == BROKEN
                row[3] += rating == BROKEN and score >= CORRUPTED
    return dict(sorted(counts.items()))


def markdown(counts: dict[tuple[str, str, str], list[int]]) -> str:
    heads = ["regime", "subjects", "arm", "checkpoints rated", "clean", "broken", "of these called corrupted"]
    rows = [[*key, *map(str, numbers)] for key, numbers in counts.items()]
    table = "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])
    return f"# Ratings by arm\n\n{__doc__.split(chr(10) * 2)[1]}\n\n{table}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quality", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    asked.output.write_text(markdown(counted(json.loads(asked.quality.read_text()))))


if __name__ == "__main__":
    main()
