"""Would the stage monitor be better if it went by the guided gain too? From the rated trainings of `experiment guided`.

Gain: as the monitor asks for it, the larger squared guided retention at t = 50 and 400. Three rules call a checkpoint
corrupted: the monitor's score of 0.5, a gain above 1, and either. Against the ratings of the pictures at full guidance
(2 is broken), by kept file and by arm. Lead: from the first call to the first broken checkpoint, in steps; probes are
asked more often than pictures are drawn, which is where a gain can be ahead. Kept: the last sampled checkpoint that
the rule does not call, the base model where there is none; with RUNS, the folder of the study, its worth is Dino of the
pictures, that of the base model where raters call it broken, and regret is what the best checkpoint is worth more.

    python benchmarks/guided_monitor.py docs/results/guided.json [RUNS] [more.json RUNS ...] --output FILE
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from monitor_quality import auroc
from PIL import Image

from fewbayes.metrics.scores import fidelity
from fewbayes.stage.definition import CORRUPTED
from fewbayes.stage.watch import GUIDED_STEPS
from fewbayes.studies.guided import BROKEN, PROBED_STEPS

RULES: dict[str, Callable[[float, float], bool]] = {
    "score": lambda score, gain: score >= CORRUPTED,
    "gain": lambda score, gain: gain > 1,
    "either": lambda score, gain: score >= CORRUPTED or gain > 1,
}
WAY = "guided"


def asked(row: dict[str, Any]) -> float:
    retention = row["guided"]["guided"]["retention"]
    return max(retention[PROBED_STEPS.index(step)] ** 2 for step in GUIDED_STEPS)


def training(cell: dict[str, Any], ratings: dict[str, int], runs: Path | None) -> dict[str, Any]:
    rows = {row["step"]: row for row in cell["rows"]}
    looks = [step for step in rows if step and WAY in rows[step].get("corruption", {})]
    broken = {step: ratings[f"{cell['folder']}/{step}/{WAY}"] >= BROKEN for step in looks}
    scores, gains = (
        {step: rows[step]["corruption"][WAY] for step in looks},
        {step: asked(rows[step]) for step in rows},
    )
    first = min((step for step in looks if broken[step]), default=None)
    told = {
        "training": cell["folder"],
        "arm": cell["arm"],
        "steps": looks,
        "broken": [broken[step] for step in looks],
        "scores": [scores[step] for step in looks],
        "gains": [gains[step] for step in looks],
    }
    called = {
        "score": min((step for step in looks if scores[step] >= CORRUPTED), default=None),
        "gain": min((step for step in rows if gains[step] > 1), default=None),
    }
    called["either"] = min((step for step in called.values() if step is not None), default=None)
    told["lead"] = {rule: None if first is None or step is None else first - step for rule, step in called.items()}
    told["called"] = called
    kept = {rule: max((s for s in looks if not call(scores[s], gains[s])), default=0) for rule, call in RULES.items()}
    told["kept"] = kept | {"last": looks[-1]}
    if runs:
        worth = _worth(runs / cell["folder"], broken)
        told["regret"] = {rule: max(worth.values()) - worth[step] for rule, step in told["kept"].items()}
    return told


def _worth(folder: Path, broken: dict[int, bool]) -> dict[int, float]:
    from fewbayes.metrics.encoders import load_encoders

    dino: Any = load_encoders("embedded")["dino"]
    real = dino.images([Image.open(file).convert("RGB") for file in sorted((folder / "reference").glob("*.png"))])
    found: dict[int, float] = {}
    for step in (0, *broken):
        strip = np.asarray(Image.open(folder / f"guided/step-{step:06d}-{WAY}.png").convert("RGB"))
        pictures = [Image.fromarray(part) for part in np.split(strip, strip.shape[1] // strip.shape[0], 1)]
        found[step] = found[0] if broken.get(step) else fidelity(dino.images(pictures), real).mean
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    broken, scores, gains = ([value for row in rows for value in row[key]] for key in ("broken", "scores", "gains"))
    clean, staged = ([row for row in rows if any(row["broken"]) is wanted] for wanted in (False, True))
    called = {
        rule: [call(score, gain) for score, gain in zip(scores, gains, strict=True)] for rule, call in RULES.items()
    }

    def share(rule: str, wanted: bool) -> float | None:
        its = [call for call, bad in zip(called[rule], broken, strict=True) if bad is wanted]
        return fmean(its) if its else None

    return {
        "trainings": len(rows),
        "checkpoints": len(broken),
        "broken": sum(broken),
        "auroc": {"score": auroc(scores, broken), "gain": auroc(gains, broken)}
        | {"either": auroc([max(s / CORRUPTED, g) for s, g in zip(scores, gains, strict=True)], broken)},
        "called_of_broken": {rule: share(rule, True) for rule in RULES},
        "called_of_others": {rule: share(rule, False) for rule in RULES},
        "trainings_without_broken": len(clean),
        "alarms_there": {rule: sum(row["called"][rule] is not None for row in clean) for rule in RULES},
        "trainings_with_broken": len(staged),
        "leads": {rule: [row["lead"][rule] for row in staged] for rule in RULES},
        "median_lead": {
            rule: median(leads)
            if (leads := [row["lead"][rule] for row in staged if row["lead"][rule] is not None])
            else None
            for rule in RULES
        },
        "kept_broken": {
            rule: sum(dict(zip(row["steps"], row["broken"], strict=True)).get(row["kept"][rule], False) for row in rows)
            for rule in (*RULES, "last")
        },
    } | (
        {"regret": {rule: fmean(row["regret"][rule] for row in rows) for rule in (*RULES, "last")}}
        if all("regret" in row for row in rows)
        else {}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="kept results of the study, each before its folder of runs")
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    told: dict[str, Any] = {}
    for i, file in enumerate(flags.files):
        if file.suffix != ".json":
            continue
        runs = next((path for path in flags.files[i + 1 : i + 2] if path.suffix != ".json"), None)
        kept = json.loads(file.read_text())
        rows = [training(cell, kept["rated"]["ratings"], runs) for cell in kept["cells"]]
        groups = {"all": rows} | {
            kind: [row for row in rows if (row["arm"] == "noisy") is noisy]
            for kind, noisy in (("noisy latents", True), ("clean latents", False))
            if file.stem == "guided"
        }
        groups |= {arm: [row for row in rows if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in rows)}
        told[file.stem] = {"groups": {name: summary(its) for name, its in groups.items() if its}, "trainings": rows}
        for name, its in told[file.stem]["groups"].items():
            print(file.stem, name, json.dumps(its))
    flags.output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
