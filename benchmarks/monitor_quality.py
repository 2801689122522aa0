"""How well the stage monitor tells corrupted pictures, against evaluators that it does not use.

Reads the trainings of `fewbayes experiment remedies` and `map` with the pictures of their checkpoints. Labels come from
P(good) of the embedded evaluator, as in report/trajectories.py: a checkpoint is corrupted where it lies below two
thirds of the lower of base model and training images. The monitor sees pictures, and probes where a run was trained
with `--monitor_steps`; such runs are taken as they were judged in training.

    python benchmarks/monitor_quality.py runs/remedies/remedies.json runs/watched/remedies.json --output quality.json
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median

import numpy as np
from PIL import Image
from scipy.stats import mannwhitneyu

from fewbayes.corruption.monitor import Judgement, Look, Monitor
from fewbayes.corruption.samples import describe
from fewbayes.report.trajectories import LOW, corrupted, floor, longest
from fewbayes.runs import BEST, BEST_STATE, STAGES, environment

CLEARLY_CLEAN = 0.8
"""Where ambiguous checkpoints are left out: corrupted below LOW, clean from this share on."""


def pictures(folder: Path) -> list[np.ndarray]:
    found = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            found.append(np.asarray(image.convert("RGB")))
    return found


def judgements(run: Path, steps: list[int]) -> tuple[dict[int, Judgement], int | None]:
    """By sampled step, and the step that is kept; those of training where it watched, else from the pictures alone."""
    if (run / STAGES).is_file():
        rows = [json.loads(line) for line in (run / STAGES).read_text().splitlines()]
        told = [row.get("judgement", row) for row in rows]
        names = Judgement.__dataclass_fields__
        all_of_them = [Judgement.from_dict({name: row[name] for name in names}) for row in told]
        kept = run / BEST / BEST_STATE
        step = json.loads(kept.read_text())["step"] if kept.is_file() else None
        return {judgement.step: judgement for judgement in all_of_them if judgement.step in steps}, step
    references = pictures(run / "reference")
    drawn = {step: run / "samples" / f"step-{step:06d}" for step in (0, *steps)}
    twins = pictures(drawn[0] / "raw")
    base = Look(0, None, describe(twins, references, twins))
    monitor = Monitor(base, describe(references, references))
    found = {}
    for step in steps:
        raw, averaged = (
            describe(pictures(drawn[step] / weights), references, twins) if (drawn[step] / weights).is_dir() else None
            for weights in ("raw", "ema")
        )
        found[step] = monitor.judge(Look(step, None, raw, averaged))
    return found, monitor.best


def look_at(file: Path) -> Iterable[dict]:
    """One row per training."""
    for cell in json.loads(file.read_text())["cells"]:
        run = file.parent / cell["subject"] / str(cell["images"]) / f"{cell['arm']}-seed{cell['seed']}"
        steps = [row["step"] for row in cell["raw"][1:]]
        found, kept = judgements(run, steps)
        bad, share = corrupted(cell, "raw"), [row["quality"] / floor(cell) * LOW for row in cell["raw"][1:]]
        worth = [
            cell["raw"][0]["fidelity"] if b else row["fidelity"] for b, row in zip(bad, cell["raw"][1:], strict=True)
        ]
        alarm = next((s for s in steps if found[s].stage == "corrupted"), None)
        seen = next((s for s in steps if found[s].seen == "corrupted"), None)
        onset = next((s for i, s in enumerate(steps) if bad[i : i + 2].all()), None) if longest(bad) else None
        yield {
            "group": file.parent.name,
            "watched": (run / STAGES).is_file(),
            "subject": cell["subject"],
            "arm": cell["arm"],
            "seed": cell["seed"],
            "scores": [found[step].scores["corruption"] for step in steps],
            "bad": bad.tolist(),
            "share": share,
            "onset": onset,
            "seen": seen,
            "alarm": alarm,
            "regret": max(worth) - (worth[steps.index(kept)] if kept else worth[-1]),
            "regret_of_the_last": max(worth) - worth[-1],
            "kept": kept,
        }


def auroc(scores: list[float], labels: list[bool]) -> float | None:
    positive = [score for score, label in zip(scores, labels, strict=True) if label]
    negative = [score for score, label in zip(scores, labels, strict=True) if not label]
    if not positive or not negative:
        return None
    return float(mannwhitneyu(positive, negative).statistic) / (len(positive) * len(negative))


def quality(rows: list[dict]) -> dict:
    scores = [score for row in rows for score in row["scores"]]
    labels = [label for row in rows for label in row["bad"]]
    shares = [share for row in rows for share in row["share"]]
    clear = [i for i, share in enumerate(shares) if share < LOW or share > CLEARLY_CLEAN]
    of_subject = [
        auroc([s for row in rows if row["subject"] == name for s in row["scores"]],
              [b for row in rows if row["subject"] == name for b in row["bad"]])
        for name in sorted({row["subject"] for row in rows})
    ]  # fmt: skip
    known = [value for value in of_subject if value is not None]
    clean = [row for row in rows if not any(row["bad"])]
    staged = [row for row in rows if row["onset"] is not None]
    caught = [row for row in staged if row["alarm"] is not None]
    looks = [score >= 0.5 for score, label in zip(scores, labels, strict=True) if not label]
    return {
        "trainings": len(rows),
        "subjects": len(of_subject),
        "checkpoints": len(labels),
        "corrupted_checkpoints": sum(labels),
        "auroc": auroc(scores, labels),
        "auroc_ambiguous_left_out": auroc([scores[i] for i in clear], [labels[i] for i in clear]),
        "left_out": len(labels) - len(clear),
        "auroc_within_subjects": fmean(known) if known else None,
        "looks_called_corrupted_of_clean_ones": fmean(looks) if looks else None,
        "clean_trainings": len(clean),
        "false_alarms_on_clean_trainings": sum(row["alarm"] is not None for row in clean),
        "trainings_with_a_stage": len(staged),
        "caught": len(caught),
        "median_lead_of_first_sight": median(row["onset"] - row["seen"] for row in staged if row["seen"] is not None)
        if any(row["seen"] is not None for row in staged) else None,
        "median_lead_of_alarm": median(row["onset"] - row["alarm"] for row in caught) if caught else None,
        "regret": fmean(row["regret"] for row in rows),
        "regret_of_the_last_checkpoint": fmean(row["regret_of_the_last"] for row in rows),
        "trainings_without_a_kept_checkpoint": sum(row["kept"] is None for row in rows),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="remedies.json or map.json beside their trainings")
    parser.add_argument("--output", type=Path, default=Path("monitor_quality.json"))
    asked = parser.parse_args()
    rows = [row for file in asked.files for row in look_at(file)]
    groups = {"all": rows} | {name: [r for r in rows if r["group"] == name] for name in {r["group"] for r in rows}}
    groups["watched in training"] = [row for row in rows if row["watched"]]
    found = {name: quality(part) for name, part in groups.items() if part}
    result = {"quality": found, "trainings": rows, "environment": environment(None)}
    asked.output.write_text(json.dumps(result, indent=1) + "\n")
    for name, numbers in found.items():
        print(name)
        for key, value in numbers.items():
            print(f"  {key}: {value if not isinstance(value, float) else round(value, 3)}")


if __name__ == "__main__":
    main()
