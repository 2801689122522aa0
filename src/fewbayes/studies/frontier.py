"""Likeness against cleanness, a frontier for each knob: does any reach what a lower learning rate does not?

More training gives more likeness and worse pictures, so that one setting beside another proves nothing. Each knob is
turned through several values, its best trade-offs are its frontier, and the area under it, up to the perfect (1, 1), is
its hypervolume (Zitzler and Thiele, 1999). Subjects are the units. Trainings are those of the sweeps, and shared.

Cleanness is what raters say of sets of pictures that name no training, 1 clean, 0 broken; the study writes the sheets.
Until they are rated it is Clip-IQA, by which nothing is decided.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import read_json
from fewbayes.metrics.statistics import Comparison, Units, compare, holm, interval
from fewbayes.page.evaluation import read_evaluation
from fewbayes.page.evaluation.reading import Evaluation
from fewbayes.page.evaluation.scores import ALPHA, probability
from fewbayes.page.look import colour, marker, save, style
from fewbayes.page.table import Column, Entry, Table, Value, markdown
from fewbayes.studies import study
from fewbayes.studies.flags import asked
from fewbayes.studies.grid import command
from fewbayes.studies.sweeps.cells import HELD_APART
from fewbayes.studies.sweeps.make import SweepFlags, run_sweep
from fewbayes.survey.rate import Shown, write_rating

NAME, FIRST, AVERAGED = "frontier", "rate", "rate, raw and averaged"


@dataclass(frozen=True)
class Knob:
    """parts: the sweeps that turn it, and whether their Bayesian arms are meant. against: the knob whose frontier it is
    compared with; None for one that only stands beside others, or holds another whole and so cannot lie inside it."""

    parts: Sequence[tuple[str, bool]]
    against: str | None = FIRST


KNOBS: Mapping[str, Knob] = {
    FIRST: Knob([("rate", False)], None),
    "rate, Bayesian": Knob([("rate", True)]),
    "weight_std": Knob([("fig9a", True)]),
    "weight_std at 3 x the rate": Knob([("noise_fast", True)]),
    "pull at 3 x the rate": Knob([("pull_fast", False)]),
    "averaged": Knob([("rate_averaged", False)]),
    AVERAGED: Knob([("rate", False), ("rate_averaged", False)], None),
    "rate, raw and averaged, Bayesian": Knob([("rate", True), ("rate_averaged", True)], AVERAGED),
}
LIKENESS, SHOWN, EQUAL = "dino", 4, 0.03
"""Metric of the likeness; pictures of a set that is rated; the share of the other's area that counts as nothing."""
Points = Mapping[str, Mapping[str, list[tuple[float, float]]]]
"""By knob and subject, (likeness, cleanness) of each value."""


@dataclass(frozen=True)
class Rated:
    """A set of pictures and what raters said: 0 clean, 1 between, 2 broken."""

    training: str
    ratings: list[int]


@dataclass(frozen=True)
class Ratings:
    """What is read of ratings.json, as `fewbayes study read` writes it."""

    rows: list[Rated]


@dataclass(frozen=True, kw_only=True)
class FrontierFlags(SweepFlags):
    knobs: tuple[str, ...] = setting(tuple(KNOBS), choices=tuple(KNOBS), several=True)
    """Which frontiers; one that is compared with another needs that one too."""


@study(
    "frontier", "likeness against cleanness over values of each knob: rate, averages, weight_std, pull; blind ratings"
)
def run_frontier(arguments: Sequence[str]) -> list[Path]:
    """The table, the picture and the numbers; beside them a rating study of all sets of pictures."""
    flags = asked(FrontierFlags, arguments, NAME, __doc__)
    for knob in flags.knobs:
        if KNOBS[knob].against not in (None, *flags.knobs):
            raise UserError(f"{knob!r} is compared with {KNOBS[knob].against!r}; give it to --knobs too")
    sweeps = dict.fromkeys(sweep for knob in flags.knobs for sweep, _ in KNOBS[knob].parts)
    found = {sweep: read_evaluation(run_sweep(sweep, flags)) for sweep in sweeps}
    folder = flags.output_dir / NAME
    folder.mkdir(exist_ok=True)
    if not (folder / "rating").exists():
        shown = list(sets(found).values())
        order = np.random.default_rng(0).permutation(len(shown))
        write_rating(folder / "rating", [shown[i] for i in order])
    file = folder / "ratings" / "ratings.json"
    rated = {row.training: row.ratings for row in read_json(file, Ratings).rows} if file.is_file() else None
    points = read_points({knob: KNOBS[knob] for knob in flags.knobs}, found, rated)
    return [write_table(folder, points, rated is not None), draw(folder, points), folder / "rating"]


def sets(found: Mapping[str, Evaluation]) -> dict[str, Shown]:
    """The first pictures of every training, by its name, beside those of the base model; each training once."""
    made: dict[str, Shown] = {}
    for evaluation in found.values():
        by_cell: dict[tuple[str, str, int], list[Path]] = {}
        for picture in evaluation.pictures:
            by_cell.setdefault((picture.subject, picture.arm, picture.seed), []).append(picture.file)
        for (subject, arm, seed), files in by_cell.items():
            if arm in {each.name for each in evaluation.arms}:
                first = sorted(files)[:: max(1, len(files) // SHOWN)][:SHOWN]
                before = [file.parents[1] / "base" / file.name for file in first]
                references = evaluation.references.get(subject, ())[:2]
                made[cell_name(subject, arm, seed)] = Shown(
                    cell_name(subject, arm, seed), None, first, before, references
                )
    return made


def cell_name(subject: str, arm: str, seed: int) -> str:
    return f"{subject}/{arm}-seed{seed}"


def read_points(
    knobs: Mapping[str, Knob], found: Mapping[str, Evaluation], rated: Mapping[str, Sequence[int]] | None
) -> Points:
    """Of all values of a knob; a subject that lacks one, or its rating, is left out of it."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, knob in knobs.items():
        for subject in found[knob.parts[0][0]].subjects:
            values = []
            for sweep, bayes in knob.parts:
                units = found[sweep].units[found[sweep].modes[0]]
                arms = [arm["name"] for arm in found[sweep].facts["arms"] if arm["bayes"] == bayes]
                values += [_point(subject, arm, units, rated) for arm in arms]
            if (whole := [value for value in values if value]) and len(whole) == len(values):
                points.setdefault(name, {})[subject] = whole
    return points


def _point(
    subject: str, arm: str, units: Mapping[str, Mapping[str, Units]], rated: Mapping[str, Sequence[int]] | None
) -> tuple[float, float] | None:
    """Means over seeds; likeness to images that training did not see where there are any."""
    lines = units[LIKENESS]
    found = lines.get(arm + HELD_APART) or lines.get(arm, {})
    likeness = {unit: value for unit, value in found.items() if unit[0] == subject}
    clean: dict[tuple[str, int], float | None] = {}
    for unit in likeness:
        if rated is None:
            clean[unit] = units["clip_iqa"].get(arm, {}).get(unit)
        elif given := rated.get(cell_name(subject, arm, unit[1])):
            clean[unit] = 1 - sum(given) / len(given) / 2
    x, y = interval(likeness).mean, interval(clean).mean
    return None if x is None or y is None else (x, y)


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area of what is at most as good as one of the points in both, from (0, 0); both count from 0 to 1."""
    area, height = 0.0, 0.0
    for x, y in sorted(((min(max(x, 0), 1), min(max(y, 0), 1)) for x, y in points), reverse=True):
        area += x * max(y - height, 0)
        height = max(height, y)
    return area


@dataclass(frozen=True)
class Lead:
    """A knob's hypervolume less that of another. p: by Holm over all that are compared with the same one; equal: the
    90 % interval is within EQUAL of the other's."""

    against: str
    found: Comparison
    p: float | None
    equal: bool

    @property
    def verdict(self) -> str:
        told = self.found.difference.mean
        if told is not None and self.p is not None and self.p < ALPHA:
            return "outside" if told > 0 else "inside"
        return "equal" if self.equal else "open"


def leads(points: Points, against: Mapping[str, str]) -> dict[str, Lead]:
    """against: of each knob the one that it is compared with; those that are none's stand for themselves."""
    areas: dict[str, Units] = {
        knob: {(subject, 0): hypervolume(values) for subject, values in each.items()} for knob, each in points.items()
    }
    found = {knob: compare(areas[knob], areas[other]) for knob, other in against.items()}
    families = ({knob: found[knob].p for knob in found if against[knob] == other} for other in set(against.values()))
    adjusted = {knob: p for family in families for knob, p in holm(family).items()}

    def equal(knob: str) -> bool:
        other = areas[against[knob]]
        narrow, room = compare(areas[knob], other, level=0.9).difference, EQUAL * (interval(other).mean or 0)
        return narrow.low is not None and narrow.high is not None and -room <= narrow.low <= narrow.high <= room

    return {knob: Lead(against[knob], each, adjusted[knob], equal(knob)) for knob, each in found.items()}


def write_table(folder: Path, points: Points, rated: bool) -> Path:
    found = leads(points, {knob: other for knob in points if (other := KNOBS[knob].against)})
    rows: list[list[Entry]] = []
    for knob, each in points.items():
        area = interval({(subject, 0): hypervolume(values) for subject, values in each.items()})
        row: list[Entry] = [knob, Value(area)]
        if lead := found.get(knob):
            row += [
                lead.against,
                Value(lead.found.difference, sign=True),
                lead.found.win_rate,
                probability(lead.p),
                lead.verdict,
            ]
        rows.append(row + [""] * (7 - len(row)))
    heads = ("knob", "hypervolume", "compared with", "less that", "wins", "p, Holm", "frontier is")
    what = "what raters say, 1 clean to 0 broken" if rated else "Clip-IQA, until the sheets in rating/ are rated"
    text = [
        "# Likeness against cleanness: the frontier of each knob",
        f"    {command()}",
        f"Likeness: Dino. Cleanness: {what}. Equal: the 90 % interval of the difference lies within {EQUAL:.0%} of the "
        "other's hypervolume. Holm: over all that are compared with the same one.",
        markdown(Table([Column(head, 2 if head == "wins" else 3) for head in heads], rows)),
    ]
    atomic_write(folder / f"{NAME}.md", "\n\n".join(text) + "\n")
    numbers = {"points": points, "leads": {knob: asdict(lead.found) for knob, lead in found.items()}, "rated": rated}
    atomic_write(folder / f"{NAME}.json", json.dumps(numbers, indent=1) + "\n")
    return folder / f"{NAME}.md"


def draw(folder: Path, points: Points) -> Path:
    """Means over subjects: a mark for each value of a knob, and the edge of what they reach."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        axes = figure.subplots()
        for i, (knob, each) in enumerate(points.items()):
            means = np.mean(list(each.values()), axis=0)
            likeness, cleanness = means[means[:, 0].argsort()].T
            reached = np.maximum.accumulate(cleanness[::-1])[::-1]  # by any value that is as alike or more
            axes.step(likeness, reached, color=colour(i), linewidth=1)
            axes.plot(*means.T, color=colour(i), marker=marker(i), markersize=5, linestyle="none", label=knob)
        axes.set_xlabel("likeness (Dino), mean over subjects")
        axes.set_title("cleanness")
        axes.grid(axis="x")
        figure.legend(loc="outside lower left", ncols=2)
        return save(figure, folder / f"{NAME}.png")
