"""How well the stage monitor tells broken pictures, against raters who saw neither arm nor step.

Ratings are those of benchmarks/rating.py, 0 clean, 1 between, 2 broken; the median of the raters counts. Trainings are
those of `fewbayes experiment remedies`, in RUNS under the names that the ratings have. The monitor sees pictures, and
probes where a run was trained with `--monitor_steps`: such runs are taken as they were judged in training. Beside it
stands P(good) of the embedded evaluator, over the lower of base model and training images. "Within": AUROC of every
subject, and their mean.

What needs a whole training (false alarms, onset, regret) is told of those whose every checkpoint was rated.

    python benchmarks/monitor_quality.py runs chosen_on.json held_out.json --output quality.json
"""

import argparse
import json
from itertools import combinations
from pathlib import Path
from statistics import fmean, median

import numpy as np
from PIL import Image
from scipy.stats import mannwhitneyu

from fewbayes.files.decode import typed
from fewbayes.runs.layout import BEST, BEST_STATE, STAGES
from fewbayes.runs.provenance import environment
from fewbayes.stage.definition import CORRUPTED, longest
from fewbayes.stage.monitor import Judgement, Look, Monitor
from fewbayes.stage.samples import describe

BETWEEN, BROKEN = 1, 2


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
        names = Judgement.__dataclass_fields__
        all_of_them = [typed({name: row[name] for name in names}, Judgement, "stages.jsonl") for row in rows]
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


def look_at(runs: Path, name: str, ratings: dict[int, list[int]]) -> dict:
    """One training: all of its steps are judged, for a stage has a history, and those that were rated are told."""
    run = runs / name
    scored = json.loads((run / "cell.json").read_text())["found"]
    rows = {row["step"]: row for row in scored["raw"]}
    steps = sorted(step for step in rows if step)
    found, kept = judgements(run, steps)
    floor = min(rows[0]["quality"], scored["training"]["quality"])
    rated = {step: median(ratings[step]) for step in steps if step in ratings}
    return {
        "training": name,
        "watched": (run / STAGES).is_file(),
        "whole": len(rated) == len(steps),
        "steps": list(rated),
        "ratings": list(rated.values()),
        "scores": [found[step].scores["corruption"] for step in rated],
        "p_good": [rows[step]["quality"] / floor for step in rated],
    } | (_whole(steps, rated, found, kept, rows) if len(rated) == len(steps) else {})


def _whole(
    steps: list[int], rated: dict[int, float], found: dict[int, Judgement], kept: int | None, rows: dict
) -> dict:
    """Worth: Dino, where a broken checkpoint counts as the base model."""
    bad = np.array([rated[step] >= BROKEN for step in steps])
    worth = {
        step: rows[0 if b else step]["fidelity"] for step, b in zip(steps, bad, strict=True)
    } | {0: rows[0]["fidelity"]}  # fmt: skip
    best = max(worth.values())
    return {
        "onset": next(s for i, s in enumerate(steps) if bad[i : i + 2].all()) if longest(bad) else None,
        "clean": not bad.any(),
        "seen": next((s for s in steps if found[s].seen == "corrupted"), None),
        "alarm": next((s for s in steps if found[s].stage == "corrupted"), None),
        "kept": kept,
        "regret": best - worth[kept or 0],
        "regret_of_the_last": best - worth[steps[-1]],
    }


def auroc(scores: list[float], broken: list[bool]) -> float | None:
    positive, negative = ([s for s, b in zip(scores, broken, strict=True) if b is wanted] for wanted in (True, False))
    if not positive or not negative:
        return None
    return float(mannwhitneyu(positive, negative).statistic) / (len(positive) * len(negative))


def quality(rows: list[dict]) -> dict:
    ratings, scores, p_good = ([value for row in rows for value in row[key]] for key in ("ratings", "scores", "p_good"))
    broken = [rating >= BROKEN for rating in ratings]
    clear = [i for i, rating in enumerate(ratings) if rating in (0, BROKEN)]
    called = {
        words: [score >= CORRUPTED for score, rating in zip(scores, ratings, strict=True) if low <= rating < high]
        for words, low, high in (("clean", 0, BETWEEN), ("between", BETWEEN, BROKEN), ("broken", BROKEN, 3))
    }
    found = {
        "trainings": len(rows),
        "subjects": len({row["training"].split("/")[1] for row in rows}),
        "checkpoints": len(ratings),
        "broken": sum(broken),
        "auroc": auroc(scores, broken),
        "auroc_between_left_out": auroc([scores[i] for i in clear], [broken[i] for i in clear]),
        "auroc_p_good": auroc([-value for value in p_good], broken),
        "within": _within(rows, "scores", 1),
        "within_p_good": _within(rows, "p_good", -1),
        "called_corrupted": {words: fmean(values) if values else None for words, values in called.items()},
    }
    return found | _of_whole([row for row in rows if row["whole"]])


def _within(rows: list[dict], key: str, sign: int) -> dict:
    found = {}
    for subject in sorted({row["training"].split("/")[1] for row in rows}):
        its = [row for row in rows if row["training"].split("/")[1] == subject]
        broken = [rating >= BROKEN for row in its for rating in row["ratings"]]
        found[subject] = auroc([sign * value for row in its for value in row[key]], broken)
    known = [value for value in found.values() if value is not None]
    return {"mean": fmean(known) if known else None, **found}


def _of_whole(rows: list[dict]) -> dict:
    if not rows:
        return {}
    clean = [row for row in rows if row["clean"]]
    staged = [row for row in rows if row["onset"] is not None]
    seen, caught = ([row for row in staged if row[key] is not None] for key in ("seen", "alarm"))
    return {
        "whole_trainings": len(rows),
        "clean_trainings": len(clean),
        "false_alarms": sum(row["alarm"] is not None for row in clean),
        "trainings_with_a_stage": len(staged),
        "caught": len(caught),
        "median_lead_of_first_sight": median(row["onset"] - row["seen"] for row in seen) if seen else None,
        "median_lead_of_alarm": median(row["onset"] - row["alarm"] for row in caught) if caught else None,
        "regret": fmean(row["regret"] for row in rows),
        "regret_of_the_last": fmean(row["regret_of_the_last"] for row in rows),
        "nothing_kept": sum(row["kept"] is None for row in rows),
    }


def agreement(rows: list[dict]) -> dict:
    """Share of checkpoints that two raters call alike broken or not, mean and least over pairs."""
    given = np.array([row["ratings"] for row in rows]) >= BROKEN
    pairs = [float((given[:, a] == given[:, b]).mean()) for a, b in combinations(range(given.shape[1]), 2)]
    return {"raters": given.shape[1], "mean": fmean(pairs), "least": min(pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder with the folders of results")
    parser.add_argument("ratings", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("monitor_quality.json"))
    asked = parser.parse_args()
    result: dict = {"sets": {}, "environment": environment(None)}
    for file in asked.ratings:
        rows = json.loads(file.read_text())["rows"]
        by_training: dict[str, dict[int, list[int]]] = {}
        for row in rows:
            by_training.setdefault(row["training"], {})[row["step"]] = row["ratings"]
        seen = [look_at(asked.runs, name, ratings) for name, ratings in by_training.items()]
        groups = {"all": seen}
        for name in sorted({row["training"].split("/")[0] for row in seen}):
            groups[name] = [row for row in seen if row["training"].startswith(f"{name}/")]
        found = {name: quality(part) for name, part in groups.items()}
        result["sets"][file.stem] = {"agreement": agreement(rows), "quality": found, "trainings": seen}
        for name, numbers in found.items():
            print(file.stem, name, json.dumps(numbers, indent=1))
    asked.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
