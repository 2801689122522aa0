"""The page of a diagnosis: the verdict and what to do, the pictures side by side, evidence, numbers against the base.

Knows nothing of models or of how a verdict is reached: everything comes from the folder that `fewbayes diagnose` wrote.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from fewbayes.diagnose.layout import RESULT, Told
from fewbayes.files.decode import plain_json, typed
from fewbayes.page.parts import Block, Card, Column, Fold, Page, Panel, Row, Sheet, Shot, Tone, Verdict
from fewbayes.page.pictures import SIDES, embed, nearest
from fewbayes.page.render import counted, flat, seed_name
from fewbayes.page.table import Column as Heading
from fewbayes.page.table import Entry, Table
from fewbayes.page.verdict import TITLES, confidence

SHOWN = 8
"""Pictures of one model."""
BY_CAUSE = {
    (None, "weights"): "Broken weights",
    ("underfit", "diverged"): "Damaged",
    ("underfit", "lost"): "Lost again",
}
"""Titles of a stage that its cause puts in another light."""
PROBES = {
    "retention": "Noise left by one denoising (retention)",
    "retention_from_noise": "The same, from noise alone",
    "residual_gain": "A local disturbance that passes (residual gain)",
    "guided_gain": "The same with guidance, at its worst noise level",
    "guidance_gap": "Noise that the prompt lets pass beyond what no prompt does",
    "loss_training": "Loss on the training images",
    "excess_error": "Error that is no noise left over",
    "narrowing": "Likeness of the answer to nothing with a training image",
    "scaled_slope": "Response to a training image made brighter",
    "loss_others": "Loss on other images",
}
"""Numbers of a reading that the page shows, of those that were probed."""
SAMPLES = {
    "noise": "Noise of the pictures",
    "unrest": "Unrest of their colours",
    "contrast": "Contrast at large",
    "likeness": "Likeness to the nearest training image",
    "kept": "Correlation with the base model's picture",
    "diversity": "Diversity of the pictures",
}
AGAIN = "run fewbayes diagnose again"


def is_diagnosis(folder: Path) -> bool:
    return (folder / RESULT).is_file()


def diagnosis_page(folder: Path) -> Page:
    told = plain_json(folder / RESULT, cure=AGAIN)
    typed(told, Told, str(folder / RESULT), cure=AGAIN)  # as it is: the page also shows settings that no schema names
    settings, stage = told["settings"], told["stage"]
    title = BY_CAUSE.get((stage, told["cause"]), TITLES[stage])
    numbers = _against("The probes", _numbers(told))
    samples = _against("The pictures", _samples(told))
    about = "What one pass through the denoiser does with fixed inputs; docs/theory.md says what each means."
    return Page(
        title=f"Diagnosis of {Path(settings['source']).name}",
        verdict=Verdict(title, [_without_title(line) for line in told["verdict"]], stage or "", confidence(stage)),
        chips=[counted(len(settings["images"]), "training image"), settings["prompt"]],
        card=_card(told),
        sheet=_sheet(folder, told),
        folds=[
            Fold("Evidence", [("points", told["evidence"])]),
            Fold("Checkpoint by checkpoint", _timeline(told)),
            Fold("Against the base model", [*samples, *numbers, ("text", about)] if numbers else samples),
            Fold(
                "Settings, versions, hashes",
                [("facts", flat(settings)), ("facts", flat({"seconds": told["seconds"], **told["environment"]}))],
            ),
        ],
        notes=told["notes"],
    )


def _without_title(line: str) -> str:
    """What the headline says already."""
    head, colon, rest = line.partition(": ")
    return rest[:1].upper() + rest[1:] if colon and len(head) < 30 else line


def _card(told: dict[str, Any]) -> Card | None:
    keep = told.get("keep")
    commands = []
    if keep is not None:
        source = shlex.quote(f"{told['settings']['source']}/checkpoint-{keep}")
        asked = shlex.quote(f"{told['settings']['prompt']} in the snow")
        commands = [("Make pictures", f"fewbayes sample {source} --prompt {asked} --output_dir pictures")]
    title = f"Use step {keep}" if keep is not None else "What you can do"
    return Card(title, "", commands, told["options"]) if commands or told["options"] else None


def _sheet(folder: Path, told: dict[str, Any]) -> Sheet:
    """A column for each model and setting, a row for each seed."""
    groups = [group for group in told["pictures"] if group["name"] != "training" and group["files"]]
    names = next((group["files"] for group in told["pictures"] if group["name"] == "training"), [])
    training = [folder / "pictures" / "training" / name for name in names]
    files = [[folder / "pictures" / group["name"] / file for file in group["files"][:SHOWN]] for group in groups]
    seeds = told["settings"]["seeds"]
    rows = []
    for i in range(max(map(len, files), default=0)):
        seed = seeds[i] if i < len(seeds) else i
        shots = [
            _shot(its[i], training, group, seed) if i < len(its) else None
            for its, group in zip(files, groups, strict=True)
        ]
        rows.append(Row(seed_name(seed, i), shots))
    columns = [_column(group, told) for group in groups]
    small = [picture for file in training if (picture := embed(file, SIDES[-1]))]
    panels = [Panel((), columns, rows)] if any(shot for row in rows for shot in row.shots) else ()
    return Sheet(panels, along="model", training=small)


def _column(group: dict[str, Any], told: dict[str, Any]) -> Column:
    stages: dict[Any, Tone] = {row["step"]: row["seen"] for row in told["timeline"]}
    tone = (told["stage"] or "") if group["name"] == "source" else stages.get(group.get("step"), "")
    about = f"strength {group['strength']:g}" if "strength" in group else ""
    chosen = "step" in group and group["step"] == told.get("keep")
    return Column(_title(group), ", ".join(filter(None, (about, tone))), tone, chosen)


def _title(group: dict[str, Any]) -> str:
    return f"step {group['step']}" if "step" in group else str(group["title"])


def _shot(file: Path, training: list[Path], group: dict[str, Any], seed: object) -> Shot | None:
    picture, near = embed(file), nearest(file, training)
    if picture is None:
        return None
    how = f"{group['sampler']}, {group['steps']} steps, guidance {group['guidance']:g}" if "steps" in group else ""
    how += f", at noise-to-signal {group['guidance_interval']}" if "guidance_interval" in group else ""
    place, likeness = near or (None, None)
    return Shot(picture, f"{_title(group)}, seed {seed}", more=how, near=place, likeness=likeness)


def _timeline(told: dict[str, Any]) -> list[Block]:
    if not told["timeline"]:
        return []
    names = list(told["timeline"][0]["scores"])
    heads = [*map(Heading, ("step", "stage", "by itself")), *map(Heading, names), Heading("")]
    rows: list[list[Entry]] = [
        [
            str(row["step"]),
            TITLES[row["stage"]],
            TITLES[row["seen"]],
            *(row["scores"].get(name) for name in names),
            "keep this one" if row["step"] == told.get("keep") else "",
        ]
        for row in told["timeline"]
    ]
    return [("text", "The stage is what two looks in a row agree on."), ("table", Table(heads, rows))]


Numbers = list[tuple[str, float | None, float | None]]
"""(what, the base model's, yours)."""


def _against(title: str, numbers: Numbers) -> list[Block]:
    heads = [Heading(""), Heading("base model", 3), Heading("yours", 3), Heading("yours / base")]
    rows: list[list[Entry]] = [
        [title, base, mine, mine / base if base and mine is not None else None] for title, base, mine in numbers
    ]
    return [("heading", title), ("table", Table(heads, rows))] if rows else []


def _numbers(told: dict[str, Any]) -> Numbers:
    base, mine = (told["numbers"].get(name, {}) for name in ("base", "source"))
    found = [(title, base.get(key), mine.get(key)) for key, title in PROBES.items() if key in base or key in mine]
    losses = [told["readings"].get(name, {}).get("losses") for name in ("base", "source")]
    if all(losses):
        pairs = zip(losses[0]["t"], losses[0]["loss"], losses[1]["loss"], strict=False)
        found += [(f"Loss on the training images at t = {t}", *values) for t, *values in pairs]
    return found


def _samples(told: dict[str, Any]) -> Numbers:
    found = [(title, _mean(told, "base", what), _mean(told, "source", what)) for what, title in SAMPLES.items()]
    return [number for number in found if number[2] is not None]


def _mean(told: dict[str, Any], name: str, what: str) -> float | None:
    found = told["samples"].get(name, {}).get(what)
    values = [value for value in (found if isinstance(found, list) else [found]) if value is not None]
    return sum(values) / len(values) if values else None
