"""One table over several experiments that share their arms: every subject by itself, and all subjects together.

The unit is a run, that is a (subject, seed). Together means the paired differences of all units to the first arm at
the same subject and seed, with their t interval. Reads summaries, draws no page.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fewbayes.page.read import read_experiment
from fewbayes.page.summary import QUANTITIES, WEIGHT_NAMES, interval, summarise_experiment
from fewbayes.runs.folder import atomic_write

_DIGITS = {"highest_noise": 1}


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """Summaries of all folders, and the differences pooled over their subjects."""
    summaries = {folder.name: summarise_experiment(read_experiment(folder)) for folder in folders}
    pooled: dict[tuple[str, str], dict[str, Any]] = {}
    for summary in summaries.values():
        for row in summary["differences"]:
            key = (row["arm"], row["weights"])
            into = pooled.setdefault(key, {k: row[k] for k in ("arm", "label", "less", "weights")} | {"values": {}})
            for name in QUANTITIES:
                into["values"].setdefault(name, []).extend(row[name]["values"])
    together = [
        {**{k: v for k, v in row.items() if k != "values"}}
        | {name: asdict(interval([v for v in values if v is not None])) for name, values in row["values"].items()}
        for row in pooled.values()
    ]
    return {"subjects": summaries, "together": together}


def write_comparison(folders: Sequence[Path], output: Path, facts: dict[str, Any]) -> Path:
    """Write `<output>.json` (every number, with `facts` of its making) and `<output>.md` (the tables)."""
    comparison = compare(folders)
    atomic_write(output.with_suffix(".json"), json.dumps({"facts": facts, **comparison}, indent=1) + "\n")
    atomic_write(output.with_suffix(".md"), markdown(comparison))
    return output.with_suffix(".md")


def markdown(comparison: dict[str, Any]) -> str:
    """Tables in Markdown: mean and 95 % t interval of each quantity."""
    heads = ["arm", "weights", "runs with a stage", *QUANTITIES.values()]
    parts = []
    for name, summary in comparison["subjects"].items():
        base = ", ".join(
            f"{metric.replace('_', ' ')} {value:.2f}" for metric, value in summary["base"].items() if value
        )
        lines = [
            [arm["label"], WEIGHT_NAMES[w], f"{row['runs_with_stage']} of {row['n']}", *_cells(row)]
            for arm in summary["arms"]
            for w, row in arm["weights"].items()
        ]
        parts.append(f"### {name}\n\nBase model: {base}.\n\n" + _table(heads, lines))
    lines = [
        [
            f"{row['label']} less {row['less']}",
            WEIGHT_NAMES[row["weights"]],
            str(row["peak_similarity"]["n"]),
            *_cells(row, signed=True),
        ]
        for row in comparison["together"]
    ]
    heads = ["difference", "weights", "pairs", *QUANTITIES.values()]
    parts.append("### All subjects together, paired by subject and seed\n\n" + _table(heads, lines))
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any], *, signed: bool = False) -> list[str]:
    return [_cell(row[name], _DIGITS.get(name, 2), "+" if signed else "") for name in QUANTITIES]


def _cell(found: dict[str, Any], digits: int, sign: str) -> str:
    if found["mean"] is None:
        return "-"
    mean = f"{found['mean']:{sign}.{digits}f}"
    return mean if found["low"] is None else f"{mean} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
