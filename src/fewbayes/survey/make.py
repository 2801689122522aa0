"""`fewbayes study make`: a blinded study of pairs from runs, frozen before the first answer.

Pictures are decoded and written anew under names drawn from a secret: no metadata, one size in bytes for one size in
pixels, an order that says nothing. Which arm they are of stands in key.json alone.
"""

from __future__ import annotations

import hmac
import io
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256 as hashed
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_folder, atomic_write
from fewbayes.metrics.folders import open_picture
from fewbayes.page.table import Column, Entry, Table, markdown
from fewbayes.runs.provenance import now
from fewbayes.survey import plan as layout
from fewbayes.survey.arms import Arm, Pair, pairs_of, read_arms
from fewbayes.survey.plan import QUESTIONS, Item, Key, Origin, Plan, Question, Secret, Study, picture_file, written
from fewbayes.survey.power import PAIRS_STD, PEOPLE_STD, power_table

CONSENT = """You will see pairs of pictures made by computer programs, and say which one you prefer. There are no \
right answers, and it takes about {minutes} minutes. You may stop at any time, and delete your answers at the end.

We keep your answers, how long each took, and a random code. We keep no name, no address of your device and nothing \
about your browser. One cookie holds your code, so that you can go on after a break. The answers, with the codes, may \
be published.

By beginning you agree to this, and say that you are old enough to agree to it yourself."""
SECONDS = 6
"""A participant takes for an answer, for the length that the consent tells."""
ANALYSIS = (
    "Per two arms, case and question: the share of answers that prefer the second arm, with a 95 % interval that is "
    "robust to participants and pairs; two-sided p values, adjusted by Holm over all of them. First answers count; a "
    "pair shown again measures consistency alone. Results are told for all participants, and without those who chose "
    "the noise in more than {failures} checks."
)
REFERENCES = 3
"""Photographs that stand beside a pair at most."""


@dataclass(frozen=True, kw_only=True)
class Make:
    """A blinded study of pairs of pictures from two or more runs, and its frozen plan."""

    runs: tuple[str, ...] = setting(positional=True, value="[NAME=]RUN ...")
    """Arms: each a run, a folder of runs, or a folder of pictures with prompts and seeds."""
    output_dir: str
    """A new folder for the study."""
    cases: tuple[Literal["best", "average", "worst", "random"], ...] = setting(("random",), several=True)
    """Which pictures meet. random: same prompt and seed. Others: each arm's own of a prompt, by the paper's rule."""
    questions: tuple[Literal["subject", "text", "quality"], ...] = setting(("subject", "text", "quality"), several=True)
    """What is asked of every pair."""
    pairs: int | None = setting(None, above=0)
    """Pairs for every two arms and case. None: as many as there are."""
    per_participant: int = setting(24, above=0)
    """Pairs that one participant sees, beside checks; as many of each two arms and case."""
    participants: int = setting(40, above=1)
    """As many as are asked for: the plan says what this number can find."""
    checks: int = setting(2, at_least=0)
    """Attention checks for each participant: a photograph against its noised copy."""
    repeats: int = setting(2, at_least=0)
    """Pairs that come a second time, sides exchanged."""
    failures: int = setting(0, at_least=0)
    """Failed checks of a participant above which results are told without them too."""
    ties: bool = False
    """Offer "no difference" as a third answer, which counts a half."""
    samples: str | None = setting(None, value="FOLDER")
    """Inside each run: the pictures. None: a run's last samples."""
    scores: tuple[str, ...] = setting((), several=True, value="EVALUATION")
    """What `fewbayes evaluate` wrote of the arms; needed for all cases but random."""
    reference_dir: Path | None = None
    """Photographs of the subject, or of each in a folder of its name. None: the runs' own."""
    title: str = "Which picture is better?"
    """What participants see first."""
    consent: Path | None = None
    """A text file that participants agree to. None: a text in English about what is kept."""
    seed: int = setting(0, at_least=0)
    """Of the choice of pairs. Names, order and sides are of no seed."""


def run_make(asked: Make) -> Path:
    """Write the study; returns its folder."""
    arms = read_arms(asked.runs, asked.reference_dir, asked.scores, asked.samples)
    pairs = pairs_of(arms, dict.fromkeys(asked.cases), asked.pairs, asked.seed)
    blocks = list(dict.fromkeys((pair.arms, pair.case) for pair in pairs))
    if asked.per_participant < len(blocks):
        raise UserError(
            f"per_participant is {asked.per_participant}; it must be {len(blocks)} or more, one pair for "
            "every two arms and case"
        )
    per_block = min(asked.per_participant // len(blocks), len(pairs) // len(blocks))
    photographs = {subject: files for arm in arms for subject, files in arm.references.items() if files}
    questions = [_question(name, asked.ties) for name in dict.fromkeys(asked.questions)]
    if any(question.shows == "references" for question in questions):
        lost = sorted({pair.shots[0].subject for pair in pairs} - photographs.keys())
        if lost:
            raise UserError(
                f"the question subject needs photographs, and there are none of {', '.join(lost) or 'the subject'}; "
                "give --reference_dir, or leave the question out with --questions text quality"
            )
    if asked.checks and not photographs:
        raise UserError("checks need photographs; give --reference_dir, or --checks 0")
    repeats = min(asked.repeats, per_block * len(blocks) // 2)
    answers = (per_block * len(blocks) + asked.checks + repeats) * len(questions)
    consent = asked.consent.read_text("utf-8") if asked.consent else CONSENT.format(minutes=-(-answers * SECONDS // 60))
    with atomic_folder(asked.output_dir, new=True) as folder:
        pictures = Pictures(folder)
        items, key_items = _items(pairs, blocks, photographs, pictures)
        checks, right = _checks(pairs, photographs, pictures, asked.checks)
        study = freeze(
            folder,
            pictures,
            Key({arm.name: arm.name for arm in arms}, key_items, right),
            kind="pairs",
            title=asked.title,
            consent=consent,
            questions=questions,
            items=items,
            checks=checks,
            per_block=per_block,
            checks_each=min(asked.checks, len(checks)),
            repeats=repeats,
            plan=Plan(
                asked.participants,
                asked.failures,
                power_table(len(pairs) // len(blocks), per_block, asked.participants),
                ANALYSIS.format(failures=asked.failures),
                now(),
            ),
        )
        atomic_write(folder / layout.PLAN, plan_in_words(study, arms, pairs))
    return Path(asked.output_dir)


def freeze(folder: Path, pictures: Pictures, key: Key, **told: Any) -> Study:
    """Write what every kind of study has: pictures, the key, study.json, and the secret, which no one else may read."""
    pictures.write()
    atomic_write(folder / layout.KEY, written(key))
    study = Study(**told, seed=secrets.randbits(48), key_sha256=layout.sha256(written(key)))
    atomic_write(folder / layout.STUDY, written(study))
    place = folder / layout.SECRET
    place.touch(mode=0o600)
    place.write_bytes(written(Secret(secrets.token_hex(32), secrets.token_urlsafe(18))))
    os.chmod(place, 0o600)
    return study


def _question(name: str, ties: bool) -> Question:
    asked = QUESTIONS[name]
    return Question(name, asked.words, ["Left", "Right", *(["No difference"] if ties else [])], asked.shows)


class Pictures:
    """The pictures of a study: given as pixels, named from a secret, written in the order of their names."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.secret, self.numbers = folder, secrets.token_bytes(32), count()
        self.held: dict[str, Callable[[], Image.Image]] = {}
        self.sources: dict[str, str] = {}

    def name(self) -> str:
        """A name that nothing can be read from."""
        return hmac.new(self.secret, str(next(self.numbers)).encode(), hashed).hexdigest()[:16]

    def add(self, pixels: Callable[[], Image.Image], source: str) -> str:
        """The name of a picture; one source has one name."""
        if source not in self.sources:
            self.sources[source] = self.name()
            self.held[self.sources[source]] = pixels
        return self.sources[source]

    def file(self, path: Path) -> str:
        return self.add(lambda: open_picture(path), str(path))

    def write(self) -> None:
        (self.folder / layout.IMAGES).mkdir()
        for name in sorted(self.held):
            picture_file(self.folder, name).write_bytes(bare_png(self.held[name]()))


def bare_png(picture: Image.Image) -> bytes:
    """Pixels alone, uncompressed: pictures of one size in pixels have one size in bytes, however noisy they are."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(picture.convert("RGB"))).save(buffer, "png", compress_level=0)
    return buffer.getvalue()


def _items(
    pairs: Sequence[Pair],
    blocks: list[tuple[tuple[str, str], str]],
    photographs: dict[str, list[Path]],
    pictures: Pictures,
) -> tuple[list[Item], dict[str, Origin]]:
    """Items in an order of chance, their sides too; blocks under numbers of chance."""
    chance = np.random.default_rng(secrets.randbits(128))  # of no seed: who knows the program must not know the sides
    number = dict(zip(blocks, chance.permutation(len(blocks)).tolist(), strict=True))
    items: list[Item] = []
    key: dict[str, Origin] = {}
    for i in chance.permutation(len(pairs)):
        pair, turn = pairs[i], int(chance.integers(2))
        order = (turn, 1 - turn)
        paths = [pair.shots[side].path for side in order]
        sizes = [open_picture(path).size for path in paths]
        if sizes[0] != sizes[1]:
            shown = " and ".join(f"{path} ({size[0]} x {size[1]})" for path, size in zip(paths, sizes, strict=True))
            raise UserError(f"{shown} differ in size, which would tell the arms apart; sample both at one resolution")
        first, second = pair.shots
        sides = [[pictures.file(path)] for path in paths]
        beside = _beside(photographs.get(first.subject, []), pictures)
        item = Item(pictures.name(), sides, number[pair.arms, pair.case], first.prompt, beside)
        items.append(item)
        key[item.id] = Origin(
            [pair.arms[side] for side in order],
            pair.case,
            first.subject,
            first.training_seed if first.training_seed == second.training_seed else None,
            [[str(path)] for path in paths],
            unit=first.unit,
        )
    return items, key


def _checks(
    pairs: Sequence[Pair], photographs: dict[str, list[Path]], pictures: Pictures, wanted: int
) -> tuple[list[Item], dict[str, int]]:
    """Photographs against their noised copies, at the size of the pairs; and the side that is right."""
    chance = np.random.default_rng(secrets.randbits(128))
    size = open_picture(pairs[0].shots[0].path).size
    items: list[Item] = []
    right: dict[str, int] = {}
    files = [(subject, path) for subject, found in sorted(photographs.items()) for path in found]
    for i in range(2 * wanted):
        subject, path = files[int(chance.integers(len(files)))]
        prompts = sorted({pair.shots[0].prompt for pair in pairs if pair.shots[0].subject == subject})
        whole = open_picture(path).resize(size, Image.Resampling.LANCZOS)
        noise = chance.uniform(0, 255, (size[1], size[0], 3))
        broken = Image.fromarray((0.2 * np.asarray(whole) + 0.8 * noise).astype(np.uint8))
        names = [pictures.add(lambda one=one: one, f"check {i} {j}") for j, one in enumerate((whole, broken))]
        turn = int(chance.integers(2))
        prompt = prompts[0] if prompts else pairs[0].shots[0].prompt
        sides = [[names[turn]], [names[1 - turn]]]
        item = Item(pictures.name(), sides, 0, prompt, _beside(photographs[subject], pictures))
        items.append(item)
        right[item.id] = turn
    return items, right


def _beside(photographs: Sequence[Path], pictures: Pictures) -> list[str]:
    return [pictures.file(path) for path in photographs[:REFERENCES]]


def plan_in_words(study: Study, arms: Sequence[Arm], pairs: Sequence[Pair]) -> str:
    """plan.md: what was decided before the first answer, to be published or registered."""
    plan = study.plan
    subjects = sorted({pair.shots[0].subject for pair in pairs})
    cases = list(dict.fromkeys(pair.case for pair in pairs))
    blocks = len(pairs) // (len(study.items) // len({item.block for item in study.items}))
    sizes = sorted({row.participants for row in plan.power})
    found = {(row.share, row.participants): row.power for row in plan.power}
    rows: list[list[Entry]] = []
    for share in sorted({row.share for row in plan.power}):
        powers = [found[share, size] for size in sizes]
        enough = next((str(size) for size in sizes if found[share, size] >= 0.8), f"more than {sizes[-1]}")
        rows.append([f"{100 * share:.0f} %", *(f"{100 * power:.0f} %" for power in powers), enough])
    heads = ["true preference", *map(str, sizes), "participants for 80 %"]
    table = markdown(Table([*map(Column, heads)], rows))
    return f"""# Plan of the study

Made {plan.made}. Frozen: the SHA-256 of study.json stands in every result, and the server refuses another plan.

- Arms: {", ".join(arm.name for arm in arms)}. Cases: {", ".join(cases)}. Subjects: {", ".join(subjects) or "one"}.
- {len(pairs)} pairs, {len(pairs) // blocks} for every two arms and case.
- Questions: {", ".join(question.name for question in study.questions)}.
- Each participant sees {study.per_block * blocks} pairs, {study.per_block} of every two arms and case.
- Beside them: {study.checks_each} attention checks, and {study.repeats} of the pairs a second time.
- Participants asked for: {plan.participants}.
- {plan.analysis}

## What this size can find

The share of 200 simulated studies with p < 0.05 for one question, two arms and case, by the true preference and the
number of participants. Assumed: people differ by {PEOPLE_STD} and pairs by {PAIRS_STD} in log odds.

{table}
"""
