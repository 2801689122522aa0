"""The stage monitor with the guided gain: how it tells broken pictures, alarms, leads, and what it keeps.

Two sources of trainings that hold the gain beside ratings: kept results of `experiment guided`, each before its folder
of runs; and a file of ratings before the RUNS that it names (`fewbayes train --monitor_steps N --validation_steps N`),
as far as they are there and whole. Gain: as the monitor asks for it, the larger squared guided retention at t = 50 and
400. Ratings of the pictures at full guidance: 0 clean, 1 between, 2 broken, the better one at a half.

Four rules call a look: the monitor's score of 0.5, a gain above 1, either, and doubt (corrupted or unclear). A training
is called at its first such look, alarmed at the first two in a row. Lead: from the call to the first broken look, in
steps, negative is late; the gain is asked more often than pictures are drawn, which is where it can be ahead. Kept:
what `best/` holds at the end, by the score or by either; "or_last" the last look where it holds nothing. Regret: what
the best look is worth more, by Dino; a broken look, or none, is worth the base model. Intervals: 95 %, percentiles of
a bootstrap over trainings; of shares, Clopper-Pearson.

    python benchmarks/guided_monitor.py docs/results/guided.json RUNS docs/results/guided_noisy.json RUNS \\
      docs/results/guided_sharp.json RUNS benchmarks/results/ratings_siblings.json RUNS \\
      benchmarks/results/ratings_held_out.json RUNS \\
      --output benchmarks/results/guided_monitor.json --table docs/results/guided_monitor.md
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from monitor_quality import pictures
from PIL import Image
from scipy.stats import binomtest

from fewbayes.metrics.scores import fidelity
from fewbayes.runs.layout import METRICS, STAGES
from fewbayes.runs.provenance import environment
from fewbayes.stage.definition import CORRUPTED
from fewbayes.stage.monitor import Look, Monitor, seen
from fewbayes.stage.samples import describe
from fewbayes.stage.watch import GUIDED_STEPS
from fewbayes.studies.guided import BROKEN, PROBED_STEPS

Pictures = Sequence[np.ndarray]
WAY, RATED, DRAWS = "guided", ("clean", "between", "broken"), 2000
KEPT = ("score", "either", "or_last", "last")


@dataclass
class Training:
    """Sampled and rated looks in order; gains: of every probe by step, of which looks are some. worth: Dino, [0] the
    base model's."""

    name: str
    regime: str
    subject: str
    arm: str
    steps: list[int]
    grades: list[int]
    scores: list[float]
    seen: list[str]
    gains: dict[int, float]
    worth: list[float] = field(default_factory=list)

    @property
    def broken(self) -> list[bool]:
        return [grade >= BROKEN for grade in self.grades]

    def called(self, rule: str) -> list[bool]:
        return [RULES[rule](self, i) for i in range(len(self.steps))]

    def first(self, rule: str) -> int | None:
        """Step of the first call; of the gain's among all probes."""
        looks = [step for step, call in zip(self.steps, self.called(rule), strict=True) if call]
        asked = [step for step, gain in self.gains.items() if gain > 1] if rule in ("gain", "either") else []
        return min([*looks, *asked], default=None)

    def alarm(self, rule: str) -> int | None:
        calls = self.called(rule)
        return next((self.steps[i] for i in range(1, len(calls)) if calls[i - 1] and calls[i]), None)

    def kept(self, rule: str) -> int | None:
        """Index of the look in `best/`: the last good one that the rule does not call; see above for the others.

        As the monitor has it: after an alarm, one good look replaces none, two in a row do.
        """
        if rule == "last":
            return len(self.steps) - 1
        if rule == "or_last":
            kept = self.kept("score")
            return self.kept("last") if kept is None else kept
        best, goods, alarmed, calls = None, 0, False, self.called(rule)
        for i, saw in enumerate(self.seen):
            good = saw == "good" and not calls[i]
            goods = goods + 1 if good else 0
            if good and (not alarmed or best is None or goods > 1):
                best = i
            if i and calls[i] == calls[i - 1]:
                alarmed = calls[i]
        return best

    def regret(self, rule: str) -> float:
        bad = self.broken
        worth = [self.worth[0] if broken else value for value, broken in zip(self.worth[1:], bad, strict=True)]
        kept = self.kept(rule)
        return max(*worth, self.worth[0]) - (self.worth[0] if kept is None else worth[kept])


RULES: dict[str, Callable[[Training, int], bool]] = {
    "score": lambda one, i: one.scores[i] >= CORRUPTED,
    "gain": lambda one, i: one.gains[one.steps[i]] > 1,
    "either": lambda one, i: one.scores[i] >= CORRUPTED or one.gains[one.steps[i]] > 1,
    "doubt": lambda one, i: one.seen[i] in ("corrupted", "unclear"),
}
TOLD: dict[str, Callable[[Training, int], float]] = {
    "score": lambda one, i: one.scores[i],
    "gain": lambda one, i: one.gains[one.steps[i]],
    "either": lambda one, i: max(one.scores[i] / CORRUPTED, one.gains[one.steps[i]]),
}


def studied(file: Path, runs: Path) -> list[Training]:
    """Of `experiment guided`."""
    kept, found = json.loads(file.read_text()), []
    model = "tiny-sharp" if file.stem == "guided_sharp" else "tiny"
    ratings = kept["rated"]["ratings"]
    for cell in kept["cells"]:
        rows = {row["step"]: row["guided"] for row in cell["rows"]}
        steps = [row["step"] for row in cell["rows"] if row["step"] and WAY in row.get("corruption", {})]
        folder = runs / cell["folder"]
        drawn = {step: strip(folder / f"guided/step-{step:06d}-{WAY}.png") for step in (0, *steps)}
        losses = {step: fmean(rows[step]["conditional"]["loss"]) for step in rows}
        learned = {step: 1 - losses[step] / losses[0] for step in steps}
        noisy = cell["arm"] == "noisy" or file.stem == "guided_noisy"
        gains = {
            step: max(row["guided"]["retention"][PROBED_STEPS.index(t)] ** 2 for t in GUIDED_STEPS)
            for step, row in rows.items()
            if step
        }
        about = {
            "name": cell["folder"],
            "regime": "noisy latents, drawn" if noisy else f"clean latents, drawn, {model}",
            "subject": cell["subject"],
            "arm": "lora-x2.5" if cell["arm"] == "noisy" else cell["arm"],
        }
        grades = {step: ratings[f"{cell['folder']}/{step}/{WAY}"] for step in steps}
        found.append(judged(about, folder, drawn, grades, learned, gains))
    return found


def watched(file: Path, runs: Path) -> list[Training]:
    """Of `fewbayes train` with the monitor, whose metrics hold the gain."""
    rated: dict[str, dict[int, int]] = {}
    for row in json.loads(file.read_text())["rows"]:
        rated.setdefault(row["training"], {})[row["step"]] = int(median(row["ratings"]))
    found = []
    for name, grades in sorted(rated.items()):
        folder = runs / name
        if not (folder / METRICS).is_file():
            continue
        told = [row for row in map(json.loads, (folder / METRICS).read_text().splitlines()) if row["step"]]
        gains = {row["step"]: row["value"] for row in told if row["metric"] == "guided_gain"}
        stages = map(json.loads, (folder / STAGES).read_text().splitlines())
        learned = {row["step"]: row["scores"].get("learning", 0.0) for row in stages}
        if not grades.keys() <= gains.keys():
            continue
        drawn = {step: pictures(folder / f"samples/step-{step:06d}/raw") for step in (0, *sorted(grades))}
        study, subject, *_, last = name.split("/")
        about = {
            "name": name,
            "regime": "noisy latents, held out" if study == "noisy" else "clean latents, photographs",
            "subject": subject,
            "arm": last.rpartition("-seed")[0],
        }
        found.append(judged(about, folder, drawn, grades, learned, gains))
    return found


def strip(file: Path) -> list[np.ndarray]:
    whole = np.asarray(Image.open(file).convert("RGB"))
    return np.split(whole, whole.shape[1] // whole.shape[0], 1)


def judged(
    about: Mapping[str, str],
    folder: Path,
    drawn: Mapping[int, Pictures],
    grades: Mapping[int, int],
    learned: Mapping[int, float],
    gains: dict[int, float],
) -> Training:
    """By the rules of today, from the pictures. learned: the share of the base model's loss that is gone, by step."""
    references, twins = pictures(folder / "reference"), drawn[0]
    monitor = Monitor(Look(0, None, describe(twins, references, twins)), describe(references, references))
    scores, verdicts = [], []
    for step in list(drawn)[1:]:
        told = monitor.standards.scores(None, describe(drawn[step], references, twins), None)
        scores.append(told["corruption"])
        told["learning"] = max(told.get("learning", 0.0), learned[step])
        verdicts.append(seen(told, monitor.standards.several))
    steps = list(drawn)[1:]
    dino = _dino()
    real = dino.images([Image.fromarray(picture) for picture in references])
    worth = [fidelity(dino.images([Image.fromarray(p) for p in drawn[step]]), real).mean for step in drawn]
    return Training(
        **about,
        steps=steps,
        grades=[grades[step] for step in steps],
        scores=scores,
        seen=verdicts,
        gains=gains,
        worth=worth,
    )


@cache
def _dino() -> Any:
    from fewbayes.metrics.encoders import load_encoders

    return load_encoders("embedded")["dino"]


def told_by(rows: Sequence[Training], name: str) -> float | None:
    """AUROC for broken looks, ties being half; None without either kind. As that of monitor_quality.py, and quicker."""
    values = np.array([TOLD[name](row, i) for row in rows for i in range(len(row.steps))])
    broken = np.array([bad for row in rows for bad in row.broken])
    ahead = np.sign(values[broken][:, None] - values[~broken][None])
    return float(ahead.mean() + 1) / 2 if ahead.size else None


def added(rows: Sequence[Training]) -> float | None:
    alone, both = told_by(rows, "score"), told_by(rows, "either")
    return None if alone is None or both is None else both - alone


def over_trainings(rows: Sequence[Training], value: Callable[[Sequence[Training]], float | None]) -> list[float] | None:
    """The value and its interval; draws in which it does not exist are left out."""
    if (found := value(rows)) is None:
        return None
    rng = np.random.default_rng(0)
    drawn = [value([rows[i] for i in rng.integers(len(rows), size=len(rows))]) for _ in range(DRAWS)]
    return [found, *np.quantile([one for one in drawn if one is not None], (0.025, 0.975)).tolist()]


def share(count: int, of: int) -> list[float] | None:
    """[count, of, low, high]."""
    if not of:
        return None
    limits = binomtest(count, of).proportion_ci(method="exact")
    return [count, of, float(limits.low), float(limits.high)]


def summary(rows: list[Training]) -> dict[str, Any]:
    whole, staged = ([row for row in rows if any(row.broken) is wanted] for wanted in (False, True))
    pairs = {
        rule: [(call, grade) for row in rows for call, grade in zip(row.called(rule), row.grades, strict=True)]
        for rule in RULES
    }
    can_lead = [row for row in staged if not row.broken[0]]
    late = {rule: [_lead(row, row.first(rule)) for row in staged] for rule in RULES}
    return {
        "trainings": len(rows),
        "subjects": len({row.subject for row in rows}),
        "looks": [sum(row.grades.count(grade) for row in rows) for grade in range(3)],
        "auroc": {name: over_trainings(rows, lambda some, name=name: told_by(some, name)) for name in TOLD}
        | {"either_less_score": over_trainings(rows, added)},
        "called": {
            rule: {
                word: [sum(c for c, g in its if g == i), sum(g == i for _, g in its)] for i, word in enumerate(RATED)
            }
            for rule, its in pairs.items()
        },
        "trainings_without_broken": {
            which: {rule: share(sum(find(row, rule) is not None for row in whole), len(whole)) for rule in RULES}
            for which, find in (("called", Training.first), ("alarm", Training.alarm))
        },
        "trainings_with_broken": {
            "number": len(staged),
            "first_look_broken": len(staged) - len(can_lead),
            "leads": late,
            "leads_of_alarm": {rule: [_lead(row, row.alarm(rule)) for row in staged] for rule in RULES},
        },
        "kept": {
            rule: [sum(_grade(row, rule) == word for row in rows) for word in (*RATED, "nothing")] for rule in KEPT
        },
        "regret": {
            rule: over_trainings(rows, lambda some, rule=rule: fmean(row.regret(rule) for row in some)) for rule in KEPT
        }
        | {
            f"{rule}_less_last": over_trainings(
                rows, lambda some, rule=rule: fmean(row.regret(rule) - row.regret("last") for row in some)
            )
            for rule in ("score", "or_last")
        },
    }


def _lead(row: Training, step: int | None) -> int | None:
    return None if step is None else row.steps[row.broken.index(True)] - step


def _grade(row: Training, rule: str) -> str:
    kept = row.kept(rule)
    return "nothing" if kept is None else RATED[row.grades[kept]]


def table(told: Mapping[str, Any]) -> str:
    titles = ["trainings", "number, subjects", "looks: clean, between, broken", *(f"AUROC: {name}" for name in TOLD)]
    titles += [
        "called of the broken: score, gain, doubt",
        "of the others",
        "unbroken trainings: called, alarmed by score",
    ]
    titles += ["with a broken look: score is before, at, after it, never", "gain", "doubt"]
    titles += [
        "best/ holds clean, between, broken, nothing",
        "the last look is",
        "regret of best/, of best/ or last, of the last",
    ]
    rows = []
    for name, its in told.items():
        unbroken, broken = its["trainings_without_broken"], its["trainings_with_broken"]
        rules = ("score", "gain", "doubt")

        def calls(words: Sequence[str], its: Mapping[str, Any] = its, rules: Sequence[str] = rules) -> str:
            counts = [[its["called"][rule][word] for word in words] for rule in rules]
            return ", ".join(f"{sum(c for c, _ in each)} of {sum(of for _, of in each)}" for each in counts)

        leads = [broken["leads"][rule] for rule in rules]
        rows.append(
            [
                name,
                f"{its['trainings']}, {its['subjects']}",
                ", ".join(map(str, its["looks"])),
                *(_words(its["auroc"][name]) for name in TOLD),
                calls(["broken"]),
                calls(["clean", "between"]),
                ", ".join(f"{s[0]} of {s[1]}" if (s := unbroken[w]["score"]) else "-" for w in ("called", "alarm")),
                *(", ".join(map(str, _when(each))) if each else "-" for each in leads),
                *(", ".join(map(str, its["kept"][rule][:n])) for rule, n in (("score", 4), ("last", 3))),
                ", ".join(f"{its['regret'][rule][0]:.2f}" for rule in ("score", "or_last", "last")),
            ]
        )
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _words(found: Sequence[float] | None) -> str:
    return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})" if found else "-"


def _when(leads: Sequence[int | None]) -> list[int]:
    known = [lead for lead in leads if lead is not None]
    return [sum(one > 0 for one in known), known.count(0), sum(one < 0 for one in known), leads.count(None)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        help="results or ratings, each before its folder of runs; one of these files before any folder",
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    flags = parser.parse_args()
    rows: list[Training] = []
    for file, runs in zip(flags.files[::2], flags.files[1::2], strict=True):
        known = json.loads(file.read_text())
        if "groups" in known:
            gains = [{int(step): gain for step, gain in one["gains"].items()} for one in known["trainings"]]
            rows += [Training(**one | {"gains": its}) for one, its in zip(known["trainings"], gains, strict=True)]
        else:
            rows += studied(file, runs) if "cells" in known else watched(file, runs)
    groups = {"all": rows}
    for regime in dict.fromkeys(row.regime for row in rows):
        its = [row for row in rows if row.regime == regime]
        groups[regime] = its
        groups |= {f"{regime}: {arm}": [r for r in its if r.arm == arm] for arm in sorted({row.arm for row in its})}
    told = {name: summary(its) for name, its in groups.items()}
    for name, its in told.items():
        print(name, json.dumps(its))
    kept = {"groups": told, "trainings": [asdict(row) for row in rows], "environment": environment()}
    flags.output.write_text(json.dumps(kept) + "\n")
    about = "\n\n".join((__doc__ or "").split("\n\n")[1:])
    flags.table.write_text(f"# The monitor with the guided gain\n\n{about}\n{table(told)}\n")


if __name__ == "__main__":
    main()
