"""Is the corruption stage a gap between two branches that guidance multiplies? Both probed; samples with and without.

Along trainings of full weights, LoRA, prior preservation and caption dropout, on one and on several images, the probes
ask the conditional branch, the unconditional one and the guided answer; a few checkpoints are sampled at several
guidances and within an interval. A LoRA that is trained on noisy latents, whose gap is known, is the positive control.

    OUT/guided.json                                     all trainings; what table and picture are made of
    OUT/<subject>/<images>/<arm>-seed<k>/guided/        the pictures of a checkpoint in one strip each
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import plain_json, read_json
from fewbayes.models import inspect_model
from fewbayes.page.look import colours, save, style
from fewbayes.page.table import Column, Entry, Table, markdown
from fewbayes.runs.provenance import environment
from fewbayes.settings.config import TrainConfig, load_config
from fewbayes.stage.definition import CORRUPTED
from fewbayes.studies import study
from fewbayes.studies.flags import StudyFlags, asked
from fewbayes.studies.followed import settings_of
from fewbayes.studies.grid import Arm, Training, command, grid, run, train
from fewbayes.studies.memo import remember, rounded
from fewbayes.studies.subjects import StudySubject
from fewbayes.studies.trajectory import open_pictures

KEPT, SEEN = "guided.json", "guided"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("Full", {"method": "full"}),
    "lora": ("LoRA of rank 16", {"method": "lora", "rank": 16}),
    "prior": ("Full, prior preservation", {"method": "full", "with_prior_preservation": True, "num_class_images": 16}),
    "dropout": ("Full, caption dropout 0.1", {"method": "full", "caption_dropout": 0.1}),
    "lora-dropout": ("LoRA, caption dropout 0.1", {"method": "lora", "rank": 16, "caption_dropout": 0.1}),
}
NOISY = "LoRA of rank 16 on noisy latents"
NOISY_LONGER = 2.5
"""The positive control's steps, as a multiple: its stage begins at 300."""
PROBED_STEPS = (20, 50, 100, 200, 400, 600)
"""Where the branches are asked, as timesteps of Stable Diffusion's schedule."""
LOOKS = 4
"""Checkpoints that are sampled with guidance, evenly along a training; every second one in the other ways too."""
PICTURES, GUIDANCE, INTERVAL = 4, 7.5, "0.83:"
SAMPLED: dict[str, dict[str, Any]] = {
    "none": {"guidance": 1.0},
    "guided": {"guidance": GUIDANCE},
    "interval": {"guidance": GUIDANCE, "guidance_interval": INTERVAL},
}
"""How each sampled checkpoint is sampled; the base model likewise, which each is compared with."""
BROKEN = 2
"""Of ratings: 0 clean, 1 between, 2 broken (benchmarks/guided_sheets.py)."""


@dataclass(frozen=True, kw_only=True)
class GuidedFlags(StudyFlags):
    output_dir: Path = Path("runs/guided")
    seeds: int = setting(1, at_least=1)
    steps: int = setting(200, at_least=LOOKS)
    """Of each training."""
    probe_every: int = setting(50, at_least=1)
    """Steps between probes."""
    kinds: tuple[str, ...] = setting(tuple(KINDS), choices=tuple(KINDS), several=True)
    """Of trainings."""
    factors: tuple[float, ...] = setting((3.0, 10.0), several=True)
    """Rates, as multiples of what the model recommends for the method."""
    images: tuple[int, ...] = setting((1, 4), several=True)
    """Numbers of training images."""
    noisy: str | None = setting(None, value="MODEL")
    """A model with open latents (benchmarks/noisy_latents.py), for the positive control: LoRA at 5e-4."""
    ratings: Path | None = None
    """Ratings of the pictures; without them a checkpoint is broken where the monitor's score is 0.5 or more."""
    redraw: Path | None = None
    """A kept file of results, whose table and picture are made again; nothing is trained."""


@study("guided", "whether guidance makes the corruption stage: both branches probed, samples with and without it")
def run_guided(arguments: Sequence[str]) -> list[Path]:
    """The file of results, its table and its picture."""
    flags = asked(GuidedFlags, arguments, "guided", __doc__)
    file = flags.redraw or _train(flags)
    told = read_json(file, dict[str, Any])
    if flags.ratings:
        told["rated"] = plain_json(flags.ratings)
        atomic_write(file, json.dumps(told, separators=(",", ":")) + "\n")
    return [file, write_table(told, file.with_suffix(".md")), draw(told, file.with_suffix(".png"))]


def cells(flags: GuidedFlags) -> list[Training]:
    """Subject by subject, so that what is there can be compared whenever it stops."""
    recommended = inspect_model(flags.model).recommended
    found = []
    for subject in flags.study_subjects():
        of_class = {"class_prompt": f"a photo of a {subject.class_word}"}
        few = {flags.output_dir / subject.name / str(n): subject.first(n) for n in flags.images}
        arms = [
            Arm(f"{kind}-x{factor:g}", f"{label}, {factor:g} x", changes | {"learning_rate": factor * rate})
            for factor in flags.factors
            for kind, (label, changes) in KINDS.items()
            if kind in flags.kinds
            for changes in [changes | (of_class if "with_prior_preservation" in changes else {})]
            for rate in [(recommended | recommended.get(changes["method"], {}))["learning_rate"]]
        ]
        found += grid(few, lambda s: _settings(flags, s), arms, range(flags.seeds))
        if flags.noisy:
            many = max(few, key=lambda place: int(place.name))
            changes = {"learning_rate": 5e-4, "model": flags.noisy, "max_train_steps": int(NOISY_LONGER * flags.steps)}
            arm = Arm("noisy", NOISY, KINDS["lora"][1] | changes)
            found += grid({many: few[many]}, lambda s: _settings(flags, s), [arm], range(flags.seeds))
    return found


def _settings(flags: GuidedFlags, subject: StudySubject) -> TrainConfig:
    return TrainConfig(
        model=flags.model,
        instance_data_dir=str(subject.photographs),
        instance_prompt=f"a photo of a <v> {subject.class_word}",
        output_dir="set by the grid",
        center_crop=True,
        max_train_steps=flags.steps,
        checkpointing_steps=flags.probe_every,
        num_inference_steps=flags.num_inference_steps,
    )


def _train(flags: GuidedFlags) -> Path:
    found = run(cells(flags), looked_at, flags.workers)
    told = {
        "settings": {"steps": flags.steps, "sampled": SAMPLED, "sampler_steps": flags.num_inference_steps},
        "provenance": {"command": command(), **environment(None)},
        "cells": [cell for cell in found if "failed" not in cell],
        "failed": [cell for cell in found if "failed" in cell],
    }
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    atomic_write(flags.output_dir / KEPT, json.dumps(told, separators=(",", ":")) + "\n")
    return flags.output_dir / KEPT


def looked_at(cell: Training) -> dict[str, Any]:
    """Trained, probed and sampled; found again where nothing that it follows from has changed."""
    made_of = {
        "settings": settings_of(cell.config),
        "model": inspect_model(cell.config.model).fingerprint(),
        "looks": [PROBED_STEPS, LOOKS, PICTURES, SAMPLED],
    }
    named = {"subject": cell.subject.name, "images": len(cell.subject.files), "arm": cell.arm.name, "seed": cell.seed}
    named |= {"label": cell.arm.label, "folder": "/".join(cell.folder.parts[-3:])}
    found = remember(cell.folder / KEPT, made_of, lambda: named | _looks(cell))
    for checkpoint in cell.folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return found


def _looks(cell: Training) -> dict[str, Any]:
    if failure := train(cell):
        return {"failed": failure}
    import torch
    from safetensors.torch import load_file

    from fewbayes.diffusion.process import level_of_step
    from fewbayes.methods import make_method
    from fewbayes.models import load_family
    from fewbayes.stage.probes import Prober, ProbeSettings

    config = load_config(cell.folder / "config.yaml", {})
    family, method = load_family(cell.config.model), make_method(config)
    references = [np.asarray(picture) for picture in open_pictures(cell.folder / "reference")]
    prompt, latents = config.with_rare_token(config.instance_prompt), family.encode_images(np.stack(references))[0]
    settings = ProbeSettings(levels=tuple(map(level_of_step, PROBED_STEPS)), examples=2, guidance=GUIDANCE)
    prober = Prober(family, latents, [prompt] * len(latents), settings=settings)
    method.attach(family)
    base = _base_pictures(cell.config.model, prompt, config.num_inference_steps)
    total, rows = cell.config.max_train_steps or 0, []
    for step in [0, *sorted(int(path.name.removeprefix("checkpoint-")) for path in cell.folder.glob("checkpoint-*"))]:
        if step:
            saved = load_file(cell.folder / f"checkpoint-{step}/weights.safetensors")
            with torch.no_grad():
                for name, weight in method.trainable(family).items():
                    weight.copy_(saved[name])
        reading = prober.read(("sigma_1", "losses", "gain", "guided"))
        assert reading.guided is not None
        row: dict[str, Any] = {"step": step, "guided": asdict(reading.guided)}
        if looks := [look for look in range(LOOKS + 1) if step == total * look // LOOKS]:
            ways = SAMPLED if looks[-1] % 2 == 0 else ("guided",)
            row["corruption"] = {}
            for way in ways:
                strip = _pictures(family, prompt, config.num_inference_steps, way) if step else base[way]
                _keep(strip, cell.folder / SEEN / f"step-{step:06d}-{way}.png")
                row["corruption"][way] = _corruption(strip, base[way], references)
        rows.append(row)
    return {"rows": rounded(rows)}


@cache
def _base_pictures(model: str, prompt: str, steps: int) -> dict[str, list[np.ndarray]]:
    from fewbayes.models import load_family

    family = load_family(model)
    return {way: _pictures(family, prompt, steps, way) for way in SAMPLED}


def _pictures(family: Any, prompt: str, steps: int, way: str) -> list[np.ndarray]:
    from fewbayes.models.sampling import sample_images

    made = sample_images(family, [prompt] * PICTURES, list(range(PICTURES)), steps=steps, **SAMPLED[way])
    return [np.asarray(picture) for picture in made]


def _keep(pictures: Sequence[np.ndarray], file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(pictures, 1)).save(file)


def _corruption(pictures: Sequence[np.ndarray], base: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> float:
    from fewbayes.stage.monitor import corruption
    from fewbayes.stage.samples import describe

    return corruption(describe(pictures, real, base), describe(base, real, base), describe(real, real))


# --- what it says -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """One that was sampled. unguided, guided: the largest gain over noise levels; driven: the guided loss over the
    model's own, at the level where it is most; grade, broken: by way of sampling."""

    cell: Mapping[str, Any]
    step: int
    unguided: float
    guided: float
    driven: float
    grade: dict[str, float]
    broken: dict[str, bool]


def checkpoints(told: Mapping[str, Any]) -> Iterator[Checkpoint]:
    """All sampled ones but the base models. Graded by raters where there are ratings, else by the monitor's score."""
    ratings = told.get("rated", {}).get("ratings")
    for cell in told["cells"]:
        for row in cell["rows"][1:]:
            if "corruption" not in row:
                continue
            found, key = row["guided"], f"{cell['folder']}/{row['step']}"
            if ratings:
                grade = {name: ratings[f"{key}/{name}"] for name in SAMPLED if f"{key}/{name}" in ratings}
            else:
                grade = row["corruption"]
            limit = BROKEN if ratings else CORRUPTED
            losses = zip(found["guided"]["loss"], found["conditional"]["loss"], strict=True)
            yield Checkpoint(
                cell,
                row["step"],
                max(found["conditional"]["gain"]),
                max(found["guided"]["gain"]),
                max(guided / own for guided, own in losses),
                grade,
                {name: value >= limit for name, value in grade.items()},
            )


def verdict(told: Mapping[str, Any]) -> dict[str, Any]:
    """The registered numbers: how well each gain tells broken checkpoints, and what taking guidance away mends.

    staged: trainings with a broken checkpoint at full guidance, without any guidance, within the interval; restored:
    those of the first whose grades the interval halves, over their broken checkpoints; caused: by subject, how many
    checkpoints that are broken at full guidance are not without any, and of how many that were sampled both ways.
    """
    found = [one for one in checkpoints(told) if "guided" in one.broken]
    labels = np.array([one.broken["guided"] for one in found])
    by = ("guided", "unguided", "driven")
    areas = {name: _auroc(np.array([getattr(one, name) for one in found]), labels) for name in by}
    runs: dict[str, list[Checkpoint]] = {}
    for one in found:
        runs.setdefault(one.cell["folder"], []).append(one)
    staged = {name: [run for run, its in runs.items() if any(one.broken.get(name) for one in its)] for name in SAMPLED}
    both = [one for one in found if one.broken["guided"] and "none" in one.broken]
    caused = {
        name: (sum(not one.broken["none"] for one in its), len(its))
        for name in dict.fromkeys(one.cell["subject"] for one in both)
        for its in [[one for one in both if one.cell["subject"] == name]]
    }
    restored = [run for run in staged["guided"] if _restored(runs[run])]
    return {
        "trainings": len(runs),
        "checkpoints": len(found),
        "broken": int(labels.sum()),
        "auroc": areas,
        "staged": {name: len(its) for name, its in staged.items()},
        "caused": caused,
        "restored": len(restored),
        "late": _late(told, runs),
    }


def _auroc(scores: np.ndarray, broken: np.ndarray) -> float:
    """The chance that a broken checkpoint has the higher score, ties being half; nan without either kind."""
    ahead = np.sign(scores[broken][:, None] - scores[~broken][None])
    return float((ahead.mean() + 1) / 2) if ahead.size else float("nan")


def _restored(its: Sequence[Checkpoint]) -> bool:
    bad = [one for one in its if one.broken["guided"] and "interval" in one.grade]
    return bool(bad) and sum(one.grade["interval"] for one in bad) <= sum(one.grade["guided"] for one in bad) / 2


def _late(told: Mapping[str, Any], runs: Mapping[str, Sequence[Checkpoint]]) -> list[int]:
    """Steps from the first probe with a guided gain above 1 to the first broken checkpoint, of runs that have both."""
    found = []
    for cell in told["cells"]:
        broken = [one.step for one in runs.get(cell["folder"], ()) if one.broken["guided"]]
        above = [row["step"] for row in cell["rows"] if max(row["guided"]["guided"]["gain"]) > 1]
        found += [min(broken) - min(above)] if broken and above else []
    return found


def write_table(told: Mapping[str, Any], file: Path) -> Path:
    """By arm and number of images, at the last checkpoint; then what was registered."""
    columns = [
        *(Column(name) for name in ("training", "images", "subjects")),
        *(Column(name, 3) for name in ("r_c, r_u at t = 20", "at t = 400", "gain unguided, guided")),
        *(Column(f"broken, {name}") for name in ("no guidance", "7.5", f"7.5 within {INTERVAL}")),
    ]
    rows: list[list[Entry]] = []
    for label, images in dict.fromkeys((cell["label"], cell["images"]) for cell in told["cells"]):
        its = [cell for cell in told["cells"] if (cell["label"], cell["images"]) == (label, images)]
        seen = [one for one in checkpoints(told) if one.cell in its]
        ends = [cell["rows"][-1]["guided"] for cell in its]
        low, high = (
            ", ".join(
                f"{np.mean([end[b]['retention'][at] for end in ends]):.2f}" for b in ("conditional", "unconditional")
            )
            for at in (0, PROBED_STEPS.index(400))
        )
        gains = ", ".join(f"{np.mean([max(end[b]['gain']) for end in ends]):.2f}" for b in ("conditional", "guided"))
        shares = [_share([one.broken.get(name) for one in seen]) for name in SAMPLED]
        rows.append([label, str(images), str(len(its)), low, high, gains, *shares])
    said = verdict(told)
    who = told.get("rated", {})
    by = f"Broken: rated so by {who['rater']}, {who['date']}." if who else "Broken: the monitor's score is 0.5 or more."
    numbers = [
        f"{said['broken']} of {said['checkpoints']} sampled checkpoints of {said['trainings']} trainings are broken at "
        f"guidance {GUIDANCE:g}.",
        f"AUROC for these: guided gain {said['auroc']['guided']:.2f}, unguided gain {said['auroc']['unguided']:.2f}.",
        f"Not registered: the guided loss over the model's own, AUROC {said['auroc']['driven']:.2f}.",
        f"Trainings with a broken checkpoint: {said['staged']['none']} without guidance, {said['staged']['guided']} at "
        f"{GUIDANCE:g}, {said['staged']['interval']} within the interval.",
        "Broken at full guidance and not without: "
        + (", ".join(f"{n} of {of} ({name})" for name, (n, of) in said["caused"].items()) or "none")
        + ".",
        f"The interval halves the grade in {said['restored']} of {said['staged']['guided']}.",
        f"Steps from a guided gain above 1 to the first broken checkpoint: {said['late'] or 'no training has both'}.",
    ]
    lines = [
        f"`{told['provenance']['command']}`",
        by,
        markdown(Table(columns, rows)),
        "\n".join(f"- {n}" for n in numbers),
    ]
    atomic_write(file, "\n\n".join(lines) + "\n")
    return file


def _share(found: Sequence[bool | None]) -> str:
    known = [value for value in found if value is not None]
    return f"{sum(known)} of {len(known)}" if known else "-"


def draw(told: Mapping[str, Any], file: Path) -> Path:
    """Every sampled checkpoint: its guided gain over its unguided one, by whether its guided samples are broken."""
    found = [one for one in checkpoints(told) if "guided" in one.broken]
    with style():
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for colour, (broken, words) in zip(colours(2), ((False, "not broken"), (True, "broken")), strict=True):
            its = [one for one in found if one.broken["guided"] == broken]
            marker = "x" if broken else "o"
            axes.plot([o.unguided for o in its], [o.guided for o in its], marker, color=colour, label=words, alpha=0.8)
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="gain of the model alone", ylabel=f"gain at guidance {GUIDANCE:g}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.axline((0.1, 0.1), (1, 1), color="grey", linewidth=0.8, linestyle=":")
        axes.legend(title=f"samples at guidance {GUIDANCE:g}")
        return save(figure, file)
