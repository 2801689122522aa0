"""`fewbayes evaluate`: a run or a folder of pictures against references and prompts, as rows in files.

Reads the pictures, loads encoders, has features computed once, and writes metrics.jsonl (long form), images.jsonl
(scores of single pictures) and evaluation.json (settings, encoders, counts, versions), the last one last: until then
it says that the others are partial. Statistics over subjects and seeds, tables and pages are made elsewhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.files.cache import cache_folder
from fewbayes.metrics.cases import Material, visible
from fewbayes.metrics.encoders import Encoder, Encoders, Missing, encoder_keys, load_encoders
from fewbayes.metrics.features import FeatureStore
from fewbayes.metrics.folders import NO_PICTURES, Pictures, read_references, read_samples
from fewbayes.metrics.layout import FACTS, IMAGES, METRICS, PictureRow, Row
from fewbayes.metrics.listing import read_prompts
from fewbayes.metrics.registry import registered
from fewbayes.metrics.rows import about, macro_rows, paper_rows, picture_rows, sound_rows
from fewbayes.metrics.sources import Source, find_source
from fewbayes.metrics.statistics import grouped
from fewbayes.metrics.weights import fetch_weights, list_weights
from fewbayes.progress import doing
from fewbayes.runs.layout import CONFIG
from fewbayes.runs.provenance import environment
from fewbayes.settings.flags import parse_command
from fewbayes.world.pipelines import is_embedded

Modes = Literal["sound", "paper", "both"]
RARE_TOKEN = "<v>"
CACHE = cache_folder() / "features.sqlite"


@dataclass(frozen=True)
class Evaluation:
    """rows: of metrics.jsonl. images: of images.jsonl. facts: evaluation.json."""

    rows: list[Row]
    images: list[PictureRow]
    facts: dict[str, Any]

    def value(self, metric: str, *, mode: str = "sound", row: str = "samples", subject: Any = ...) -> float | None:
        """The value of one row; of several subjects, the average unless one is named."""
        found = [r for r in self.rows if (r.metric, r.mode, r.row) == (metric, mode, row)]
        if subject is not ...:
            found = [r for r in found if r.subject == subject]
        found = [r for r in found if r.average] or found
        if len(found) != 1:
            raise UserError(f"{len(found)} rows of {metric} ({mode}, {row}); name a subject")
        return found[0].value


def evaluate_folder(
    source: str | Path,
    *,
    reference_dir: str | Path | None = None,
    held_out_dir: str | Path | None = None,
    prompt: str | None = None,
    mode: Modes = "sound",
    encoders: str | Mapping[str, Any] | None = None,
    base_dir: str | Path | None = None,
    samples: str | None = None,
    metadata: str | Path | None = None,
    rare_token: str | None = None,
    subject: str | None = None,
    arm: str | None = None,
    seed: int | None = None,
    output_dir: str | Path | None = None,
    offline: bool = False,
    cache: str | Path | None = None,
    batch_size: int = 64,
) -> Evaluation:
    """Scores the pictures of a run or a folder, and writes the result where `output_dir` says.

    encoders: "embedded", "paper", a folder of them, or what `load_encoders` gave; None is "embedded" for pictures of
    the model `tiny` and "paper" otherwise. held_out_dir: images that training did not see. base_dir: the base model's
    pictures of the same prompts and seeds.
    subject, arm, seed: written into every row. cache: a file that remembers features; None remembers nothing.
    """
    began = time.monotonic()
    if mode not in ("sound", "paper", "both"):
        raise UserError(f"mode {mode!r} is none of sound, paper and both")
    output = _checked_output(output_dir)
    place = find_source(source, samples)
    for name, read in {"source": place.pictures, "reference_dir": reference_dir, "base_dir": base_dir}.items():
        if output and read and output.resolve() == Path(read).expanduser().resolve():
            raise UserError(f"output_dir {output} is the {name}; give a folder of its own")
    subject, seed = subject or place.subject, place.seed if seed is None else seed
    token = rare_token or place.rare_token or RARE_TOKEN
    prompts = read_prompts(Path(metadata)) if metadata else None
    words = {"subject": subject, "prompt": prompt and prompt.replace(RARE_TOKEN, token), "prompts": prompts}
    pictures = read_samples(place.pictures, weights=place.weights, **words)
    base = read_samples(Path(base_dir), **words) if base_dir else NO_PICTURES
    folder = Path(reference_dir) if reference_dir else place.reference
    references = read_references(folder, pictures.subjects) if folder else {}
    held_out = Path(held_out_dir) if held_out_dir else place.held_out
    apart = read_references(held_out, pictures.subjects) if held_out else {}
    unseen = next(iter(apart.values()), NO_PICTURES)
    with doing("Loading the networks that score pictures"):
        loaded, which = _encoders(encoders, place, offline)
    store = FeatureStore(loaded, cache=Path(cache) if cache else None, batch_size=batch_size)
    store.compute([sample for part in (pictures, base, unseen, *references.values()) for sample in part.samples])
    material = Material(pictures, base, references, store, unseen)
    rows, images = _score(material, loaded, mode, token, {"arm": arm, "seed": seed})
    twice = len(base.samples) - len({(sample.subject, sample.pair) for sample in base.samples})
    facts = {
        "source": str(source),
        "pictures": str(place.pictures),
        "reference_dir": str(folder) if folder else None,
        "base_dir": str(base_dir) if base_dir else None,
        "prompt": prompt,
        "rare_token": token,
        "mode": mode,
        "encoders_from": which,
        "encoders": {key: _about(encoder) for key, encoder in loaded.items()},
        "counts": _counts({"pictures": [pictures], "references": [*references.values()], "base": [base]}, store),
        "unreadable": _reasons(pictures),
        "unreadable_references": {
            (f"{owner}/{file}" if len(references) > 1 else file): reason
            for owner, part in references.items()
            for file, reason in _reasons(part).items()
        },
        "unreadable_base": _reasons(base),
        "notes": [
            *pictures.notes,
            *(f"base: {note}" for note in base.notes),
            *([f"base: {twice} pictures have prompt and seed of an earlier one, so no partner"] if twice else []),
            *_cut_off(loaded, pictures),
        ],
        "seconds": round(time.monotonic() - began, 2),
        "environment": environment(None),
    }
    result = Evaluation(rows, images, facts)
    if output:
        write_evaluation(result, output)
    return result


def write_evaluation(result: Evaluation, folder: Path) -> None:
    """evaluation.json says that they are partial until the others are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / FACTS, json.dumps({"partial": True}) + "\n")
    for name, rows in ((METRICS, result.rows), (IMAGES, result.images)):
        atomic_write(folder / name, "".join(json.dumps(row.plain()) + "\n" for row in rows))
    atomic_write(folder / FACTS, json.dumps(result.facts, indent=2) + "\n")


def _checked_output(output_dir: str | Path | None) -> Path | None:
    if output_dir is None:
        return None
    folder = Path(output_dir).expanduser()
    if folder.is_file():
        raise UserError(f"output_dir {folder} is a file; give a folder")
    if (folder / CONFIG).is_file():
        raise UserError(f"output_dir {folder} is a run, whose metrics would be overwritten; give another folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FACTS).is_file():
        raise UserError(f"output_dir {folder} holds other things than a whole evaluation; give a new or empty folder")
    return folder


def _encoders(asked: str | Mapping[str, Any] | None, place: Source, offline: bool) -> tuple[Encoders, str]:
    if asked is not None and not isinstance(asked, str):
        absent = {key: Missing(key, "no encoder was given for it") for key in encoder_keys()}
        return {**absent, **asked}, "given"
    which = asked or ("embedded" if is_embedded(place.model or "") else "paper")
    return load_encoders(which, offline=offline), which


def _about(encoder: Encoder | Missing) -> dict[str, Any]:
    if isinstance(encoder, Missing):
        return {"missing": encoder.name, "reason": encoder.reason}
    return about(encoder) | dict(encoder.identity.details)


# --- what is scored ---------------------------------------------------------------------------------------------------


def _score(
    material: Material, encoders: Encoders, mode: Modes, rare_token: str, keys: Mapping[str, Any]
) -> tuple[list[Row], list[PictureRow]]:
    cases = [material.case(subject, rare_token) for subject in material.pictures.subjects]
    sound = [sound_rows(case, encoders, keys) for case in cases]
    rows = [row for of_case, _ in sound for row in of_case] if mode != "paper" else []
    if len(cases) > 1:
        rows += macro_rows(rows)
    if mode != "sound":
        rows += paper_rows(material.pooled(), encoders, keys)
    pictures = material.pictures
    black = set(pictures.samples) - set(visible(pictures.samples, material.store))
    return rows, picture_rows(pictures, black, (row for _, of_each in sound for row in of_each), keys)


def _reasons(pictures: Pictures) -> dict[str, str]:
    return {file: lost.reason for file, lost in pictures.unreadable.items()}


def _counts(parts: Mapping[str, Sequence[Pictures]], store: FeatureStore) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, group in parts.items():
        samples = [sample for part in group for sample in part.samples]
        counts |= {name: len(samples), f"black {name}": len(samples) - len(visible(samples, store))}
    return counts | {f"unreadable {name}": sum(len(part.unreadable) for part in group) for name, group in parts.items()}


def _cut_off(encoders: Mapping[str, Any], pictures: Pictures) -> list[str]:
    clip = encoders.get("clip")
    if clip is None or not hasattr(clip, "cut_off"):
        return []
    longer = clip.cut_off(list(dict.fromkeys(sample.prompt for sample in pictures.samples if sample.prompt)))
    return [f"longer than {clip.identity.name} reads, cut off: {prompt!r}" for prompt in longer]


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the command can be asked; all but the weights goes to `evaluate_folder`."""

    source: str | None = setting(None, positional=True, value="FOLDER")
    """Run folder, or any folder of pictures."""
    output_dir: str | None = setting(None, value="OUT")
    """Where metrics.jsonl, images.jsonl and evaluation.json go."""
    reference_dir: str | None = setting(None, value="REF")
    """Real pictures [those of the run]."""
    prompt: str | None = setting(None, value="P")
    """Of pictures that no samples.json gives one."""
    metadata: str | None = setting(None, value="FILE")
    """Prompts by folder, in the JSON of the authors' evaluator."""
    mode: Modes = "sound"
    """All pairs, nothing dropped; or as the authors average."""
    encoders: str | None = setting(None, value="embedded|paper|DIR")
    """[embedded for the model tiny, else paper]"""
    base_dir: str | None = setting(None, value="DIR")
    """The base model's pictures, same prompts and seeds."""
    samples: str | None = setting(None, value="SUB")
    """Folder of pictures inside the source [a run's last samples]."""
    rare_token: str | None = setting(None, value="TOKEN")
    """[the run's, else <v>]"""
    subject: str | None = setting(None, value="NAME")
    """Written into the rows."""
    arm: str | None = setting(None, value="A")
    """Written into the rows."""
    seed: int | None = setting(None, value="S")
    """Written into the rows [the run's]."""
    offline: bool = False
    """Never touch the network."""
    cache: str = setting(str(CACHE), value="FILE")
    """Features of pictures; '' none."""
    batch_size: int = setting(64, above=0, value="N")
    """Pictures at a time."""
    list_weights: bool = False
    """Print the files of the encoders."""
    fetch_weights: str | None = setting(None, value="DIR")
    """Download them into this folder."""


def run_evaluate(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    asked = parse_command(Ask, arguments, "evaluate", "Scores generated pictures against references and prompts.")
    if asked.list_weights:
        print(list_weights())
        return 0
    if asked.fetch_weights:
        if asked.offline:
            raise UserError("--fetch-weights downloads, and --offline forbids it; leave one of them out")
        fetch_weights(asked.fetch_weights)
        return 0
    if not asked.source or not asked.output_dir:
        raise UserError("give the folder to score and --output_dir (fewbayes evaluate --help says more)")
    settings: dict[str, Any] = vars(asked) | {"cache": asked.cache or None}
    del settings["fetch_weights"], settings["list_weights"]
    result = evaluate_folder(**settings)
    print("\n".join(summary(result)))
    print(f"done: {asked.output_dir}\nAs a page: fewbayes report {asked.output_dir}")
    return 0


def summary(result: Evaluation) -> list[str]:
    """Lines for the terminal: the averages with their words, the ceiling beside them, what is missing and why."""
    known = {metric.name: metric for metric in registered()}
    ceiling = {(r.metric, r.mode, r.subject): r.value for r in result.rows if r.row == "real"}
    unseen = {(r.metric, r.subject): r.value for r in result.rows if r.row == "unseen"}
    averaged = any(row.average for row in result.rows)
    lines = [f"{note}" for note in result.facts["notes"]]
    shown = [r for r in result.rows if r.row == "samples" and (r.average or not averaged)]
    for row in (row for row in shown if row.value is not None):
        real = ceiling.get((row.metric, row.mode, row.subject))
        beside = "" if real is None else f"; real against real {real:.4f}"
        apart = unseen.get((row.metric, row.subject))
        beside += "" if apart is None or row.mode != "sound" else f"; to the image held out {apart:.4f}"
        by = f"   {row.encoder}" if row.encoder else ""
        metric, mode = known[row.metric], "" if row.mode == "sound" else f", {row.mode} mode"
        lines.append(
            f"{row.metric:18} {row.value:9.4f} {metric.arrow or ' '}  {metric.says}{mode} (n {row.n}){beside}{by}"
        )
    reasons = grouped((row.reason, row.metric) for row in shown if row.reason)
    notes = grouped((row.note, row.metric) for row in shown if row.note and not row.reason)
    lines += [f"no {', '.join(dict.fromkeys(metrics))}: {reason}" for reason, metrics in reasons.items()]
    black = result.facts["counts"]["black pictures"] + result.facts["counts"]["black references"]
    if black:
        lines.append(f"{black} black pictures were counted and not scored")
    lines += [f"{', '.join(metrics)}: {note}" for note, metrics in notes.items()]
    for what in ("unreadable", "unreadable_references", "unreadable_base"):
        lines += [f"{what.replace('_', ' ')}: {file}: {reason}" for file, reason in result.facts[what].items()]
    return lines
