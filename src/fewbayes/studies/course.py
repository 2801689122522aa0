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

from fewbayes.stage.definition import CORRUPTED, longest

MEASURES = {
    "usable": ("usable checkpoints", "%", 1),
    "corrupted": ("corrupted checkpoints", "%", -1),
    "sustained": ("longest sustained stage", "% of the run", -1),
    "jitter": ("jitter of Dino", "", -1),
    "fall": ("deepest fall of Dino", "", -1),
    "best": ("best Dino, uncorrupted", "", 1),
    "fidelity": ("last Dino", "", 1),
    "quality": ("last quality", "", 1),
    "prompt": ("last Clip-T", "", 1),
    "diversity": ("last diversity", "", 1),
}
"""Name: (in words, unit, 1 where more is better and -1 where less is)."""
SHARES = ("usable", "corrupted", "sustained")
WEIGHTS = {"raw": "raw", "ema": "averaged"}
WEIGHED = {
    "losses": "last loss on the training images",
    "displacement": "last distance from the initial weights",
}
"""Of the means of the raw weights at the last checkpoint. The loss is relative to telling nothing, at fixed draws."""
Along = Literal["displacement", "losses"]
"""What measures how far a training has come: the weights' distance from their start, or the fall of the loss."""
PROMPT_FREE = ("fidelity", "quality", "prompt", "diversity")


def corrupted(cell: Mapping[str, Any], weights: str) -> np.ndarray:
    """By checkpoint, the base model left out."""
    return np.array([row["corruption"] >= CORRUPTED for row in cell[weights][1:]])


def half_way(cell: Mapping[str, Any]) -> float:
    """Between the base model's fidelity and that of the training images; a single image is as like itself as can be."""
    return (cell["raw"][0]["fidelity"] + cell["training"].get("fidelity", 1.0)) / 2


def measures(cell: Mapping[str, Any], weights: str) -> dict[str, float]:
    """MEASURES of one training, from its raw or its averaged weights."""
    rows = cell[weights][1:]
    base = cell["raw"][0]["fidelity"]
    bad = corrupted(cell, weights)
    fidelity = np.array([row["fidelity"] for row in rows])
    peaks = np.maximum.accumulate(np.array([base, *fidelity]))[1:]
    both = corrupted(cell, "raw") & corrupted(cell, "ema") if cell["ema"] else bad
    last = rows[-1]
    return {
        "usable": float((~bad & (fidelity >= half_way(cell))).mean()),
        "corrupted": float(bad.mean()),
        "sustained": (stage[1] - stage[0]) / len(bad) if (stage := longest(both)) else 0.0,
        "jitter": roughness([row["fidelity"] for row in rows]),
        "fall": float((peaks - fidelity).max()),
        "best": float(fidelity[~bad].max()) if not bad.all() else base,
    } | {name: last[name] for name in PROMPT_FREE}


def roughness(values: Sequence[float]) -> float:
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
