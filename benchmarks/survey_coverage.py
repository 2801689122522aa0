"""Whether the intervals of a user study cover, and whether its power is what the plan said: simulated studies.

    python benchmarks/survey_coverage.py --output benchmarks/results/survey_coverage.json

Participants have a known preference; people and pairs differ by known amounts. About three minutes on one core.
"""

import argparse
import json
from itertools import product
from pathlib import Path

from fewbayes.survey.power import ALPHA, PAIRS_STD, PEOPLE_STD, power_table, studies

STUDIES = 500
SIZES = ((20, 24, 12), (40, 24, 12), (100, 60, 8))
"""Participants, pairs, and pairs that each participant answers."""
SPREADS = ((PEOPLE_STD, PAIRS_STD), (1.0, 0.3))
SEED = 20261129


def coverage() -> list[dict]:
    rows = []
    for (people, pairs, each), preference, (people_std, pairs_std) in product(SIZES, (0.5, 0.7), SPREADS):
        found = studies(SEED, STUDIES, preference, people, pairs, each, people_std=people_std, pairs_std=pairs_std)
        covered = sum(one.low <= preference <= one.high for one in found)
        rows.append(
            {
                "participants": people,
                "pairs": pairs,
                "each": each,
                "preference": preference,
                "people_std": people_std,
                "pairs_std": pairs_std,
                "coverage": covered / STUDIES,
                "width": round(sum(one.high - one.low for one in found) / STUDIES, 4),
                "rejected": sum(one.p < ALPHA for one in found) / STUDIES,
            }
        )
        print(rows[-1], flush=True)
    return rows


def power() -> list[dict]:
    rows = []
    for people, pairs, each in SIZES:
        planned = {(row.share, row.participants): row.power for row in power_table(pairs, each, people)}
        for preference in (0.6, 0.7):
            found = studies(SEED, STUDIES, preference, people, pairs, each)
            seen = sum(one.p < ALPHA for one in found) / STUDIES
            row = {"participants": people, "pairs": pairs, "each": each, "preference": preference}
            rows.append(row | {"planned": planned[preference, people], "seen": seen})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    found = {"studies": STUDIES, "seed": SEED, "coverage": coverage(), "power": power()}
    asked.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
