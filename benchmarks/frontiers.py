"""What the frontiers of all twenty subjects say together: `python benchmarks/frontiers.py`, from docs/results.

It decides nothing, since the first eight raised the question (docs/results/frontier_averages.md).
"""

import json
from collections.abc import Mapping
from pathlib import Path

from fewbayes.files.atomic import atomic_write
from fewbayes.metrics.statistics import Units, compare
from fewbayes.studies.frontier import Points, hypervolume
from fewbayes.studies.memo import rounded

ROOT = Path(__file__).parents[1]
RATE, BAYES, AVERAGED = "rate", "rate, Bayesian", "averaged"
SECOND, THIRD = 1, 2  # of four rates: the recommended one and three times it; of four deviations: 0.01 and 0.03


def main() -> None:
    first, second, third = (points(name) for name in ("frontier", "frontier_averages", "frontier_weight_std"))
    rate, bayes = ({**area(first[name]), **area(second[name])} for name in (RATE, BAYES))
    wide, plain = (
        {**value(first[name], at), **value(third[name], at)} for name, at in (("weight_std", THIRD), (RATE, SECOND))
    )
    told = {
        "all twenty: area, rate with Bayesian weights less rate": row(bayes, rate),
        "all twenty: likeness, weight_std 0.03 less plain at 1e-4": row(wide, plain),
        "twelve: likeness, the same": row(value(third["weight_std"], THIRD), value(third[RATE], SECOND)),
        "twelve: likeness, 0.03 less 0.01": row(value(third["weight_std"], THIRD), value(third["weight_std"], SECOND)),
        "twelve: likeness, 0.03 less plain at 3e-4": row(value(third["weight_std"], THIRD), value(third[RATE], THIRD)),
        "twelve: clean, the same": row(value(third["weight_std"], THIRD, 1), value(third[RATE], THIRD, 1)),
        "twelve: area, averages less raw at the same three rates": row(
            area(second[AVERAGED]), area({subject: all_four[1:] for subject, all_four in second[RATE].items()})
        ),
    }
    atomic_write(ROOT / "benchmarks/results/frontiers.json", json.dumps(rounded(told), indent=1) + "\n")
    print(json.dumps(rounded(told), indent=1))


def points(name: str) -> Points:
    return json.loads((ROOT / f"docs/results/{name}.json").read_text())["points"]


def area(each: Mapping) -> Units:
    return {(subject, 0): hypervolume(values) for subject, values in each.items()}


def value(each: Mapping, at: int, axis: int = 0) -> Units:
    """Likeness, or with axis 1 cleanness, of one value of a knob."""
    return {(subject, 0): values[at][axis] for subject, values in each.items()}


def row(treated: Units, control: Units) -> dict:
    found = compare(treated, control)
    difference = found.difference
    keys = ("mean", "low", "high", "subjects", "wins", "p")
    return dict(zip(keys, (*(getattr(difference, k) for k in keys[:4]), found.win_rate, found.p), strict=True))


if __name__ == "__main__":
    main()
