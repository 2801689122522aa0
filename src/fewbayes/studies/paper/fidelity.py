"""Image fidelity along trainings, and what can be said of its fall: what Fig. 1 and 2 share.

Fidelity is the paper's Dino, the mean cosine of sampled and training images, read from the samples that a training
keeps; beside it a measure without weights, and the noise of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fewbayes.metrics.encoders import Missing, load_encoders
from fewbayes.metrics.pixels import haar_noise, image_similarity
from fewbayes.metrics.scores import fidelity
from fewbayes.metrics.statistics import interval, reading
from fewbayes.runs.layout import REFERENCE, sample_folders
from fewbayes.stage.definition import fidelity_dip
from fewbayes.studies.grid import Arm, Training, experiment, grid, is_done
from fewbayes.studies.memo import remember
from fewbayes.studies.paper.denoise import keep
from fewbayes.studies.paper.drawing import Panel, Told, band, bounds, pictures
from fewbayes.studies.paper.options import Ask
from fewbayes.studies.paper.trained import left_out, settings
from fewbayes.studies.subjects import StudySubject
from fewbayes.studies.trajectory import open_pictures, pixels

LOOKS = 20
SHOWN = 8
"""Samples of a strip along training."""
SAMPLING = {"looks": LOOKS}
FALL = 0.25
"""Of fidelity: half of the paper's fall, which is 0.5. Less is not like it: curves of few samples waver as much."""


def curves(ask: Ask, arms: Mapping[str, Sequence[Arm]]) -> dict[str, Any]:
    """Trains every arm of every subject (by the subject's name) and reads its curves."""
    encoder = load_encoders(ask.encoders)["dino"]
    dino = None if isinstance(encoder, Missing) else encoder
    absent = f"Dino could not be had ({encoder.reason})" if isinstance(encoder, Missing) else None
    by_name: dict[str, dict[str, Any]] = {}
    trainings = [training for subject in ask.subjects for training in _train(ask, subject, arms[subject.name])]
    for training in trainings:
        if is_done(training.folder):
            subject, arm = training.subject.name, training.arm
            found = by_name.setdefault(arm.name, {"name": arm.name, "label": arm.label, "note": arm.note, "runs": []})
            found["runs"].append({"subject": subject, "seed": training.seed} | _scored(ask, training, dino))
            if "strip" not in found:  # that of the first run that there is
                strip = _strip(ask, arm.name, training.folder)
                found |= {"strip": strip, "strip_of": f"{subject}, seed {training.seed}"}
    for found in by_name.values():
        found["dips"] = dips(found["runs"], "fidelity" if dino else "similarity")
    failed = [f"{t.subject.name} {t.folder.name}" for t in trainings if not is_done(t.folder)]
    names = dict.fromkeys(arm.name for its in arms.values() for arm in its)
    return {
        "dino": dino.identity.name if dino else None,
        "absent": absent,
        "arms": [by_name[name] for name in names if name in by_name],
        "notes": left_out(failed, len(trainings)),
    }


def _train(ask: Ask, subject: StudySubject, arms: Sequence[Arm]) -> list[Training]:
    every = max(1, ask.steps // LOOKS)
    changes = {"validation_steps": every, "checkpointing_steps": 500, "checkpoints_total_limit": 1}
    folder = ask.folder / "runs" / subject.name
    trainings = grid({folder: subject}, lambda s: settings(ask, s, 1, 0, **changes), arms, range(ask.seeds))
    experiment(
        folder,
        trainings,
        title=f"{ask.name}: {subject.name}",
        question="How does image fidelity vary over iterations?",
        facts=ask.facts(),
        workers=ask.workers,
    )
    return trainings


def _scored(ask: Ask, training: Training, dino: Any) -> dict[str, list[float]]:
    made_of = {"dino": dino.identity.fingerprint if dino else None, "steps": list(sample_folders(training.folder))}
    file = ask.folder / "looks" / f"{training.subject.name}-{training.folder.name}" / "curve.json"
    return remember(file, made_of, lambda: _curve(training.folder, dino))


def _curve(run: Path, dino: Any) -> dict[str, list[float]]:
    """dino: an encoder of pictures, or None where there is none."""
    references = open_pictures(run / REFERENCE)
    curve: dict[str, list[float]] = {"steps": [], "fidelity": [], "similarity": [], "noise": []}
    for step, folder in sample_folders(run).items():
        drawn = open_pictures(folder / "raw")
        curve["steps"].append(step)
        if dino is not None:
            curve["fidelity"].append(fidelity(dino.images(drawn), dino.images(references)).mean)
        curve["similarity"].append(image_similarity(pixels(drawn), pixels(references)))
        curve["noise"].append(float(np.mean([haar_noise(picture) for picture in pixels(drawn)])))
    return curve


def _strip(ask: Ask, arm: str, run: Path) -> list[dict[str, Any]]:
    """The picture of one seed along training, as the paper shows it below each curve."""
    samples = list(sample_folders(run).items())
    chosen = sorted(set(np.linspace(0, len(samples) - 1, SHOWN).round().astype(int).tolist()))
    first = {step: np.asarray(open_pictures(path / "raw")[0]) for step, path in (samples[i] for i in chosen)}
    return [{"step": s, "file": keep(ask.folder, f"{arm}-step-{s}", picture)} for s, picture in first.items()]


def dips(runs: Sequence[Mapping[str, Any]], of: str) -> dict[str, Any]:
    """Depth and onset of the fidelity dip, and the last value, over runs, with their intervals."""
    each = [fidelity_dip(run["steps"], run[of]) | {"last": run[of][-1]} for run in runs]

    some, any_number = (0.0, math.inf), (-math.inf, math.inf)
    found: dict[str, Any] = {"of": of}
    for key, within in {"depth": some, "onset": some, "last": any_number}.items():
        units = {(run["subject"], run["seed"]): one[key] for run, one in zip(runs, each, strict=True)}
        found[key] = asdict(interval(units, within=within))
    return found


def fidelity_axes(axes: Axes, told: Told) -> None:
    key = "fidelity" if told["dino"] else "similarity"
    _curves(axes, told, key, f"Dino ({told['dino']})" if told["dino"] else "correlation of pixels")
    axes.legend()


def noise_axes(axes: Axes, told: Told) -> None:
    _curves(axes, told, "noise", "noise (Haar), grey levels")


def _curves(axes: Axes, told: Told, key: str, label: str) -> None:
    for i, arm in enumerate(told["arms"]):
        band(axes, arm["runs"], key, arm["label"], i)
    axes.set_xlabel("iterations")
    axes.set_ylabel(label)


def strips(figure: Panel, told: Told, folder: Path) -> None:
    """A row of pictures along training for each arm."""
    rows = []
    for arm in told["arms"]:
        of = f"\n{arm['strip_of']}" if "strip_of" in arm else ""
        rows.append((arm["label"] + of, [(folder / shown["file"], "", f"{shown['step']}") for shown in arm["strip"]]))
    pictures(figure, rows)


def falls(told: Told) -> list[str]:
    """Depth and onset of the largest fall of each arm, with their intervals over runs, and what these can say."""
    runs = told["arms"][0]["runs"]
    said = [reading(len({run["subject"] for run in runs}), len(runs))] if len(runs) > 1 else []
    return [f"{arm['label']}: {fall(arm['dips'])}, last {bounds(arm['dips']['last'])}" for arm in told["arms"]] + said


def fall(dips: Told) -> str:
    if dips["onset"]["mean"] is None:
        return "never falls"
    return f"largest fall {bounds(dips['depth'])}, onset at {bounds(dips['onset'], 0)}"
