"""The pictures of an arm: what runs, folders of runs or folders of pictures hold, and what pairs of arms share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fewbayes.data.images import FORMATS
from fewbayes.errors import UserError
from fewbayes.files.decode import read_json_lines
from fewbayes.metrics.folders import read_samples
from fewbayes.metrics.layout import IMAGES
from fewbayes.metrics.sources import find_source
from fewbayes.page.evaluation.gallery import RANK, kept
from fewbayes.page.evaluation.reading import Picture
from fewbayes.runs.layout import CONFIG


@dataclass(frozen=True)
class Shot:
    """A picture of an arm. unit: which training of its subject, from 0. seed: of the picture."""

    path: Path
    subject: str
    unit: int
    prompt: str
    seed: int | None
    training_seed: int | None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def group(self) -> tuple[str, int, str]:
        return self.subject, self.unit, self.prompt


@dataclass(frozen=True)
class Arm:
    """name: as it was given, or of its folder. references: photographs by subject."""

    name: str
    shots: list[Shot]
    references: dict[str, list[Path]]


@dataclass(frozen=True)
class Pair:
    """Two pictures to be compared: of the first arm and of the second."""

    arms: tuple[str, str]
    case: str
    shots: tuple[Shot, Shot]


def read_arms(
    given: Sequence[str], references: Path | None, scores: Sequence[str], samples: str | None = None
) -> list[Arm]:
    """The arms of `[NAME=]FOLDER`s. samples: the folder inside each run that has its pictures.

    references: photographs of the subject, or of each in a folder of its name.
    """
    known = _scores(scores)
    named = [_named(each) for each in given]
    if len(named) < 2:
        raise UserError("a study compares two arms at least; give two folders or more")
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise UserError(f"two arms have one name among {', '.join(names)}; give NAME=FOLDER")
    return [_read(name, folder, references, known, samples) for name, folder in named]


def _named(given: str) -> tuple[str, Path]:
    name, equals, folder = given.partition("=")
    path = Path(folder if equals and "/" not in name else given).expanduser()
    return (name if equals and "/" not in name else path.resolve().name), path


def _read(
    name: str, folder: Path, references: Path | None, scores: Mapping[str, Mapping[str, float]], samples: str | None
) -> Arm:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give a run, a folder of runs, or a folder of pictures")
    runs = [folder] if (folder / CONFIG).is_file() else sorted(path.parent for path in folder.glob(f"**/{CONFIG}"))
    sources = [find_source(run, samples) for run in runs] or [find_source(folder, samples)]
    shots: list[Shot] = []
    photographs: dict[str, list[Path]] = {}
    units: dict[str, int] = {}
    for source in sorted(sources, key=lambda source: (source.subject or "", source.seed or 0)):
        found = read_samples(source.pictures, subject=source.subject, weights=source.weights)
        for owner in {sample.subject or "" for sample in found.samples}:
            units[owner] = units.get(owner, -1) + 1
            photographs.setdefault(owner, _photographs(source.reference, references, owner))
        shots += [
            Shot(
                sample.path,
                sample.subject or "",
                units[sample.subject or ""],
                _plain(sample.prompt or "", source.rare_token),
                sample.seed if sample.seed is not None else sample.sample,
                source.seed,
                scores.get(sample.sha256, {}),
            )
            for sample in found.samples
        ]
    return Arm(name, shots, photographs)


def _photographs(own: Path | None, given: Path | None, subject: str) -> list[Path]:
    if given is not None and not given.is_dir():
        raise UserError(f"there is no folder {given}; reference_dir holds the photographs of the subjects")
    folder = given / subject if given and subject and (given / subject).is_dir() else given or own
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS) if folder else []


def _plain(prompt: str, token: str | None) -> str:
    """The prompt in words that people know: without the rare token."""
    for word in ("<v>", token or ""):
        prompt = prompt.replace(word, "") if word else prompt
    return re.sub(r"\s+", " ", prompt).strip()


def _scores(folders: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores of pictures by the SHA-256 of their files, from evaluations."""
    found: dict[str, dict[str, float]] = {}
    for folder in folders:
        for row in read_json_lines(Path(folder) / IMAGES, dict[str, Any], cure="give what `fewbayes evaluate` wrote"):
            if isinstance(row.get("sha256"), str) and isinstance(row.get("value"), float):
                found.setdefault(row["sha256"], {})[str(row.get("metric"))] = row["value"]
    return found


# --- which pictures meet ----------------------------------------------------------------------------------------------


def pairs_of(arms: Sequence[Arm], cases: Iterable[str], count: int | None, seed: int) -> list[Pair]:
    """As many pairs of each case for every two arms, spread over subjects; count: how many, None for all there are."""
    chance = np.random.default_rng([seed, 0])
    cells = [(a, b, case, _candidates(a, b, case)) for a, b in combinations(arms, 2) for case in cases]
    fewest = min(len(found) for *_, found in cells)
    if not fewest:
        a, b, case, _ = next(cell for cell in cells if not cell[3])
        raise UserError(
            f"{a.name} and {b.name} share no subject, prompt and seed for the case {case}; sample both with the same "
            f"prompts and seeds (subjects: {_listed(a)}; {_listed(b)})"
        )
    if count is not None and count > fewest:
        raise UserError(f"pairs is {count}; there are {fewest} for each case and two arms: give {fewest} or fewer")
    return [
        Pair((a.name, b.name), case, shots)
        for a, b, case, found in cells
        for shots in _spread(found, min(count or fewest, fewest), chance)
    ]


def _listed(arm: Arm) -> str:
    return f"{arm.name} has {', '.join(sorted({shot.subject or 'no name' for shot in arm.shots}))}"


def _candidates(a: Arm, b: Arm, case: str) -> list[tuple[Shot, Shot]]:
    """Random: the same prompt and seed. Other cases: each arm's own best (average, worst) picture of a prompt."""
    if case == "random":
        first, second = ({(*shot.group, shot.seed): shot for shot in arm.shots} for arm in (a, b))
    else:
        first, second = _ranked(a, case), _ranked(b, case)
    return [(first[key], second[key]) for key in sorted(first.keys() & second.keys(), key=str)]


def _ranked(arm: Arm, case: str) -> dict[tuple[Any, ...], Shot]:
    """By subject, training and prompt. As the paper's appendix I, within a prompt: of the top 90 % by Clip-T and Dino
    the highest Clip-IQA or the middle one; worst: the lowest of all."""
    if not any(RANK in shot.scores for shot in arm.shots):
        raise UserError(
            f"the case {case} needs scores of {arm.name}, and there are none; give --scores with what `fewbayes "
            "evaluate` wrote of it, or leave --cases at random"
        )
    groups: dict[tuple[str, int, str], dict[str, Shot]] = {}
    for shot in arm.shots:
        if RANK in shot.scores:
            groups.setdefault(shot.group, {})[str(shot.path)] = shot
    found: dict[tuple[Any, ...], Shot] = {}
    for subject in {group[0] for group in groups}:
        mine = {path: shot for group, each in groups.items() if group[0] == subject for path, shot in each.items()}
        good = {str(picture.file) for picture in kept([_scored(shot, arm.name) for shot in mine.values()])}
        for group, each in groups.items():
            allowed = [shot for path, shot in each.items() if path in good or case == "worst"]
            ranked = sorted(allowed, key=lambda shot: (shot.scores[RANK], str(shot.path)))
            if group[0] == subject and ranked:
                found[group] = ranked[{"best": -1, "average": len(ranked) // 2, "worst": 0}[case]]
    return found


def _scored(shot: Shot, arm: str) -> Picture:
    return Picture(shot.path, shot.subject, arm, shot.training_seed or 0, shot.prompt, shot.scores)


def _spread(found: list[tuple[Shot, Shot]], count: int, chance: np.random.Generator) -> list[tuple[Shot, Shot]]:
    """`count` by chance, a subject as often as every other while it has pairs left."""
    shuffled = [found[i] for i in chance.permutation(len(found))]
    turns: dict[str, int] = {}
    ranked = []
    for shots in shuffled:
        turn = turns[shots[0].subject] = turns.get(shots[0].subject, -1) + 1
        ranked.append((turn, len(ranked), shots))
    return [shots for *_, shots in sorted(ranked, key=lambda each: each[:2])[:count]]
