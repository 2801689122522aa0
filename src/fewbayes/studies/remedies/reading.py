"""The comparison of remedies as numbers: every arm, raw and averaged, and what each gives beyond plain training.

The unit is a training, a (subject, seed). Knows no words and no pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from fewbayes.metrics.statistics import Estimate, compare, finite, interval
from fewbayes.studies.course import (
    MEASURES,
    PROMPT_FREE,
    SHARES,
    WEIGHTS,
    Along,
    at_same,
    measures,
    share_compared,
    weighed,
)

Arm = tuple[str, str]
"""An arm's name and whose weights: raw, ema, or the mean of the last checkpoints, or with more sampler steps."""
Units = Mapping[tuple[str, int], Mapping[str, Any]]
"""What was measured of each training, a (subject, seed)."""
EXTRA = {"mean_of_last": "mean of the last 5 checkpoints", "more_steps": "raw, four times the sampler's steps"}
FAR = {"corruption": "corruption score", "fidelity": "Dino", "quality": "quality"}
"""What arms are compared in where they have come equally far."""
SHARE, ANY = (0.0, 1.0), (-inf, inf)
"""Where an interval must end: a share is between none and all."""


@dataclass(frozen=True)
class Lead:
    """wins: of `pairs` trainings, those on the better side of zero, ties as half."""

    difference: Estimate
    pairs: int
    wins: float


def by_arm(study: Mapping[str, Any]) -> dict[Arm, dict[tuple[str, int], dict[str, Any]]]:
    """Measures of every training, by arm and weights; WEIGHED stand beside those of raw weights."""
    table: dict[Arm, dict[tuple[str, int], dict[str, Any]]] = {}
    for cell in study["cells"]:
        unit = (cell["subject"], cell["seed"])
        for weights in WEIGHTS:
            also = weighed(cell) if weights == "raw" else {}
            table.setdefault((cell["arm"], weights), {})[unit] = measures(cell, weights) | also
        for kind in EXTRA:
            if kind in cell:
                table.setdefault((cell["arm"], kind), {})[unit] = {name: cell[kind][name] for name in PROMPT_FREE}
    return table


def levels(found: Units) -> dict[str, Estimate]:
    """Macro means with intervals of whatever was measured."""
    names = next(iter(found.values()))
    return {
        name: interval({unit: values[name] for unit, values in found.items()}, within=SHARE if name in SHARES else ANY)
        for name in names
    }


def leads(treated: Units, control: Units) -> dict[str, Lead]:
    """Treated less control, paired by subject and seed."""
    rows = {}
    for name in MEASURES:
        if not all(name in values for values in (*treated.values(), *control.values())):
            continue
        mine, its = ({unit: values[name] for unit, values in found.items()} for found in (treated, control))
        found = compare(mine, its, better=MEASURES[name][2])
        paired = [MEASURES[name][2] * (mine[unit] - its[unit]) for unit in finite(mine) if unit in its]
        wins = sum(value > 0 for value in paired) + sum(value == 0 for value in paired) / 2
        rows[name] = Lead(found.difference, len(paired), wins)
    return rows


def equally_far(along: Along, study: Mapping[str, Any], control: str = "plain") -> dict[str, dict[str, Estimate]]:
    """By arm, the lead in FAR over the control where that had come equally far.

    "compared": the share of checkpoints that had a counterpart. Only trainings whose way was measured.
    """
    plain = {(c["subject"], c["seed"]): c for c in study["cells"] if c["arm"] == control}
    found: dict[str, dict[str, dict[tuple[str, int], float | None]]] = {}
    for cell in study["cells"]:
        unit = (cell["subject"], cell["seed"])
        if cell["arm"] != control and unit in plain:
            for name in FAR:
                lead = at_same(along, cell, plain[unit], name)
                found.setdefault(cell["arm"], {}).setdefault(name, {})[unit] = lead
            found[cell["arm"]].setdefault("compared", {})[unit] = share_compared(along, cell, plain[unit])
    return {
        arm: {name: interval(units, within=SHARE if name == "compared" else ANY) for name, units in rows.items()}
        for arm, rows in found.items()
    }


def trainings(study: Mapping[str, Any]) -> dict[str, str]:
    """By arm, how many trainings its numbers are of; "n of N" where some of N failed."""
    counts = {}
    for arm in study["arms"]:
        done, lost = (sum(c["arm"] == arm["name"] for c in study.get(kind, ())) for kind in ("cells", "failed"))
        counts[arm["name"]] = f"{done} of {done + lost}" if lost else str(done)
    return counts
