"""What the curves of a training say: how much of it is corrupted, how long in one piece, how much is only jitter, how
much could be used, and how it compares with another that has come equally far.

Reads the cells that `followed.py` keeps. *Corrupted* and *stage*: see `stage/definition.py`. A stage is *sustained* in
raw and averaged weights alike; what averaging removes or the next checkpoint undoes is *jitter*. *Usable*: not
corrupted, and at least half of the way from the base model's fidelity to that of the training images among themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fewbayes.page.table import Column
from fewbayes.stage.definition import CORRUPTED, longest

MEASURES = {
    "usable": (Column("usable checkpoints, %", 0, percent=True), 1),
    "corrupted": (Column("corrupted checkpoints, %", 0, percent=True), -1),
    "sustained": (Column("longest sustained stage, % of the run", 0, percent=True), -1),
    "jitter": (Column("jitter of Dino"), -1),
    "fall": (Column("deepest fall of Dino"), -1),
    "best": (Column("best Dino, uncorrupted"), 1),
    "fidelity": (Column("last Dino"), 1),
    "quality": (Column("last quality"), 1),
    "prompt": (Column("last Clip-T"), 1),
    "diversity": (Column("last diversity"), 1),
}
"""By name: its column, and 1 where more is better, -1 where less is."""
WEIGHTS = {"raw": "raw", "ema": "averaged"}
WEIGHED = {
    "losses": Column("last loss on the training images"),
    "displacement": Column("last distance from the initial weights"),
}
"""Of the means of the raw weights at the last checkpoint. The loss is relative to telling nothing, at fixed draws."""
Along = Literal["displacement", "losses"]
"""What measures how far a training has come: the weights' distance from their start, or the fall of the loss."""
PROMPT_FREE = ("fidelity", "quality", "prompt", "diversity")


def subjects_of(told: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(cell["subject"] for cell in told["cells"]))


def corrupted(cell: Mapping[str, Any], weights: str) -> np.ndarray:
    """By checkpoint, the base model left out."""
    return np.array([row["corruption"] >= CORRUPTED for row in cell[weights][1:]])


def measures(cell: Mapping[str, Any], weights: str) -> dict[str, float]:
    """MEASURES of one training, from its raw or its averaged weights."""
    base, bad = cell["raw"][0]["fidelity"], corrupted(cell, weights)
    # A single training image is as like itself as can be.
    half_way = (base + cell["training"].get("fidelity", 1.0)) / 2
    fidelity = np.array([row["fidelity"] for row in cell[weights][1:]])
    peaks = np.maximum.accumulate([base, *fidelity])[1:]
    stage = longest(corrupted(cell, "raw") & corrupted(cell, "ema") if cell["ema"] else bad)
    return {
        "usable": float((~bad & (fidelity >= half_way)).mean()),
        "corrupted": float(bad.mean()),
        "sustained": (stage[1] - stage[0]) / len(bad) if stage else 0.0,
        "jitter": roughness(fidelity),
        "fall": float((peaks - fidelity).max()),
        "best": float(fidelity[~bad].max()) if not bad.all() else base,
    } | {name: cell[weights][-1][name] for name in PROMPT_FREE}


def counted(told: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], *same: str) -> str:
    """How many trainings `cells` are; "n of N" where others that agree with them in `same` failed."""
    lost = sum(all(cell[key] == cells[0][key] for key in same) for cell in told.get("failed", ()))
    return f"{len(cells)} of {len(cells) + lost}" if lost else str(len(cells))


def roughness(values: Sequence[float] | np.ndarray) -> float:
    """Mean distance of a value from the middle of its two neighbours: 0 for a straight line."""
    curve = np.asarray(values, dtype=float)
    return float(np.abs(curve[1:-1] - (curve[:-2] + curve[2:]) / 2).mean()) if len(curve) > 2 else 0.0


def weighed(cell: Mapping[str, Any]) -> dict[str, float | None]:
    """WEIGHED of one training; None for what was not measured."""
    return {name: (cell.get(name) or [[0, None]])[-1][1] for name in WEIGHED}


def at_same(along: Along, cell: Mapping[str, Any], control: Mapping[str, Any], name: str) -> float | None:
    """Mean lead of a quantity over the control's where that had come equally far, raw weights.

    The control is interpolated between its checkpoints, the base model included, in the order of how far they are: it
    may have gone back now and then. None where no checkpoint is compared, or how far they are was not measured.
    """
    its = _way(along, control)
    rows = sorted((its[row["step"]], row[name]) for row in control["raw"]) if its else []
    far, level = [at for at, _ in rows], [value for _, value in rows]
    there = _compared(along, cell, control)
    leads = [row[name] - float(np.interp(at, far, level)) for at, row in there]
    return float(np.mean(leads)) if leads else None


def share_compared(along: Along, cell: Mapping[str, Any], control: Mapping[str, Any]) -> float | None:
    """The share of the checkpoints that `at_same` has a counterpart for."""
    if not _way(along, cell) or not _way(along, control):
        return None
    return len(_compared(along, cell, control)) / len(cell["raw"][1:])


def _compared(along: Along, cell: Mapping[str, Any], control: Mapping[str, Any]) -> list[tuple[float, Any]]:
    """The checkpoints, after how far they are, that are within what the control went through."""
    mine, its = _way(along, cell), _way(along, control)
    if not mine or not its:
        return []
    least, most = min(its.values()), max(its.values())
    ways = [(mine[row["step"]], row) for row in cell["raw"][1:]]
    return [(at, row) for at, row in ways if least <= at <= most]


def _way(along: Along, cell: Mapping[str, Any]) -> dict[int, float]:
    """By step, how far a training has come from the base model, which is at 0; empty where it was not measured."""
    path = dict(cell.get(along) or ())
    if not path or None in path.values():
        return {}
    if along == "displacement":
        return {0: 0.0} | path
    return {step: path[0] - loss for step, loss in path.items()}
