"""`fewbayes study rate`: single sets of pictures, called clean, between or broken by people and models alike.

A set stands beside what the same prompts gave before training, and the photographs. People answer on the page of
`serve`; a model, or a person with a pencil, answers the numbered rows of the sheets by {"0": 2, "1": 0, ...}. `read`
reads both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_folder, atomic_write
from fewbayes.metrics.folders import open_picture, read_samples
from fewbayes.page.table import Column, Table, markdown
from fewbayes.runs.layout import CONFIG, REFERENCE, sample_folders
from fewbayes.runs.provenance import now
from fewbayes.survey.answers import Answer
from fewbayes.survey.inference import krippendorff
from fewbayes.survey.make import REFERENCES, Pictures, freeze
from fewbayes.survey.plan import RATING, Item, Key, Origin, Plan, Study

PER_SHEET, SHOWN, GAP = 10, 128, 10
CONSENT = """You will see sets of pictures made by a computer program, and say whether each is clean or broken. We \
keep your answers, how long each took, and a random code; no name, no address and nothing about your browser. One \
cookie holds your code. You may stop at any time. By beginning you agree to this."""
QUESTION = """Each numbered row shows, left, what a text-to-image model drew before fine-tuning; in the middle, what the
same prompts and seeds give after some fine-tuning on photographs of one subject; on the right, some of these
photographs. A part that there is no picture for is left out.

For the middle pictures as a set: has fine-tuning broken them?

0: no. They are technically as clean as the left ones allow for. The subject may not be learned yet, or be a copy of a
photograph; softness, and texture that photographs or left pictures really have, are fine.
1: a little. Some mottling, blotches, noise or wash-out, but most pictures are still acceptable.
2: yes. Most are noisy, mottled, blotchy or washed out, or their object has dissolved where the left ones were clear.

Judge the typical picture, not the worst, by eye and without measuring anything; do not guess how long training was.
Write {"0": 2, "1": 0, ...} for all rows.
"""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Sheets of single sets of pictures, to be called clean, between or broken."""

    runs: tuple[str, ...] = setting(positional=True, value="RUN ...")
    """Runs, whose samples of every step are one set each, or folders of pictures, each picture a set."""
    output_dir: str
    """A new folder for the study; its sheets are in sheets/."""
    number: int | None = setting(None, above=0)
    """Sets drawn at random. None: all of them."""
    per_participant: int = setting(40, above=0)
    """Sets that one participant sees on the page."""
    title: str = "Clean or broken?"
    """What participants see first."""
    seed: int = setting(0, at_least=0)
    """Of the draw and the order."""


@dataclass(frozen=True)
class Shown:
    """One set of pictures. training: the run, or folder and file where there is none; step: of the run."""

    training: str
    step: int | None
    pictures: Sequence[Path]
    before: Sequence[Path] = ()
    references: Sequence[Path] = ()

    @property
    def parts(self) -> tuple[Sequence[Path], Sequence[Path], Sequence[Path]]:
        """From left to right."""
        return self.before, self.pictures, self.references


def run_rate(asked: Rate) -> Path:
    """Write the study and its sheets; returns its folder."""
    folders = [Path(given).expanduser() for given in asked.runs]
    shown = [each for folder, name in zip(folders, told_apart(folders), strict=True) for each in sets_of(folder, name)]
    order = np.random.default_rng(asked.seed).permutation(len(shown))[: asked.number]
    return write_rating(Path(asked.output_dir), [shown[i] for i in order], asked.title, asked.per_participant)


def told_apart(folders: Sequence[Path]) -> list[str]:
    """The end of each path, as short as it can be where no two are the same. UserError where one is given twice."""
    parts = [folder.resolve().parts for folder in folders]
    if twice := [str(folder) for i, folder in enumerate(folders) if parts[i] in parts[:i]]:
        raise UserError(f"{twice[0]} is given twice; a rater would see its pictures twice, so give it once")
    ends = [tuple(part[-n:] for part in parts) for n in range(1, max(map(len, parts), default=1) + 1)]
    return ["/".join(end) for end in next(end for end in ends if len(set(end)) == len(parts))]


def sets_of(folder: Path, name: str) -> list[Shown]:
    """The sets of a run: the samples of each step but the first; of any other folder: each picture."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give runs or folders of pictures")
    if not (folder / CONFIG).is_file():
        return [Shown(f"{name}/{sample.file}", None, [sample.path]) for sample in read_samples(folder).samples]
    steps = sample_folders(folder).items()
    drawn = {step: [sample.path for sample in read_samples(path).samples] for step, path in steps}
    references = sorted((folder / REFERENCE).glob("*.png"))[:REFERENCES]
    return [Shown(name, step, drawn[step], drawn.get(0, []), references) for step in drawn if step]


def write_rating(
    folder: Path, shown: Sequence[Shown], title: str = "Clean or broken?", per_participant: int = 40
) -> Path:
    """A study of sets, in the order given, with sheets for those who answer without the page."""
    if not shown:
        raise UserError("there are no pictures to rate; give runs with samples after their first step")
    with atomic_folder(folder, new=True) as staging:
        pictures = Pictures(staging)
        items, origins = [], {}
        for each in shown:
            before, part, references = ([pictures.file(path) for path in paths] for paths in each.parts)
            items.append(Item(pictures.name(), [part], before=before, references=references))
            files = [[str(path) for path in each.pictures]]
            origins[items[-1].id] = Origin([], subject=each.training, step=each.step, files=files)
        freeze(
            staging,
            pictures,
            Key({}, origins, {}),
            kind="rating",
            title=title,
            consent=CONSENT,
            questions=[RATING],
            items=items,
            checks=[],
            per_block=min(per_participant, len(items)),
            checks_each=0,
            repeats=0,
            plan=Plan(1, 0, [], "Agreement of raters, by Krippendorff's alpha.", now()),
        )
        (staging / "sheets").mkdir()
        atomic_write(staging / "sheets" / "question.md", QUESTION)
        for first in range(0, len(shown), PER_SHEET):
            sheet = draw(shown[first : first + PER_SHEET], first)
            sheet.save(staging / "sheets" / f"{first // PER_SHEET:02d}.png")
    return folder


def draw(rows: Sequence[Shown], first: int) -> Image.Image:
    """A sheet: a numbered row for each set."""
    width = 40 + max(sum(len(part) * (SHOWN + 2) + GAP for part in row.parts) for row in rows)
    sheet = Image.new("RGB", (width, len(rows) * (SHOWN + 6)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        x, y = 40, i * (SHOWN + 6) + 3
        pen.text((4, y + SHOWN // 2), str(first + i), fill="black")
        for part in row.parts:
            for path in part:
                sheet.paste(open_picture(path).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC), (x, y))
                x += SHOWN + 2
            x += GAP * bool(part)
    return sheet


# --- reading ----------------------------------------------------------------------------------------------------------


def ratings(study: Study, key: Key, answers: Sequence[Answer]) -> dict[str, Any]:
    """rows: of each set, training, step and the ratings of all raters in their order. alpha: agreement."""
    raters = sorted({answer.participant for answer in answers})
    given = {(answer.item, answer.participant): answer.choice for answer in answers}
    rows = [
        {
            "training": key.items[item.id].subject,
            "step": key.items[item.id].step,
            "ratings": [given[item.id, rater] for rater in raters if (item.id, rater) in given],
        }
        for item in study.items
    ]
    rows = sorted((row for row in rows if row["ratings"]), key=lambda row: (row["training"], row["step"] or 0))
    units, values = [answer.item for answer in answers], [answer.choice for answer in answers]
    return {
        "rows": rows,
        "raters": raters,
        "alpha": {"ordinal": krippendorff(units, values, "ordinal"), "nominal": krippendorff(units, values)},
        "pairs": [_agreement(a, b, given) for a, b in combinations(raters, 2)],
    }


def _agreement(a: str, b: str, given: dict[tuple[str, str], int]) -> dict[str, Any]:
    """How two raters agree on the sets that both rated."""
    both = [(choice, given[item, b]) for (item, rater), choice in given.items() if rater == a and (item, b) in given]
    units, values = [i for i in range(len(both)) for _ in (a, b)], [choice for pair in both for choice in pair]
    alike = sum(x == y for x, y in both) / len(both) if both else None
    return {"raters": [a, b], "sets": len(both), "alike": alike, "alpha": krippendorff(units, values, "ordinal")}


def write_ratings(folder: Path, study: Study, key: Key, answers: Sequence[Answer]) -> None:
    """ratings.json with a row for each set, and the agreement in words."""
    found = ratings(study, key, answers)
    text = ",\n".join(json.dumps(row) for row in found["rows"])
    rest = {name: value for name, value in found.items() if name != "rows"}
    atomic_write(folder / "ratings.json", f'{{"rows": [\n{text}\n],\n{json.dumps(rest)[1:]}\n')
    counts = [sum(answer.choice == i for answer in answers) for i in range(len(RATING.options))]
    columns = [Column("raters"), Column("sets", 0), Column("% alike", 1, percent=True), Column("alpha (ordinal)", 2)]
    pairs = [[" and ".join(p["raters"]), float(p["sets"]), p["alike"], p["alpha"]] for p in found["pairs"]]
    alpha = found["alpha"]["ordinal"]
    shown = ", ".join(f"{count} {word}" for count, word in zip(counts, RATING.options, strict=True))
    lines = [
        f"# {study.title}",
        f"{len(found['rows'])} sets, {len(found['raters'])} raters: {shown}.",
        f"Krippendorff's alpha (ordinal): {'not to be had' if alpha is None else f'{alpha:.2f}'}.",
        markdown(Table(columns, pairs)),
    ]
    atomic_write(folder / "results.md", "\n\n".join(lines) + "\n")
