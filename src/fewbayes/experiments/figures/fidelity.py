"""Image fidelity along trainings, and what can be said of its fall: what Fig. 1 and 2 share.

Fidelity is the paper's Dino, the mean cosine of sampled and training images, read from the samples that a training
keeps; beside it a measure without weights, and the noise of the samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewbayes.experiments.figures.denoise import keep, opened
from fewbayes.experiments.figures.options import Ask
from fewbayes.experiments.figures.trained import settings
from fewbayes.experiments.methods import StudySubject
from fewbayes.experiments.runner import Arm, Experiment, run_experiment
from fewbayes.metrics.encoders import Missing, load_encoders
from fewbayes.metrics.pixels import haar_noise, image_similarity
from fewbayes.metrics.scores import fidelity
from fewbayes.statistics import Estimate, bootstrap

LOOKS = 20
SHOWN = 8
"""Samples of a strip along training."""


def curves(ask: Ask, arms: Mapping[str, Sequence[Arm]]) -> dict[str, Any]:
    """Trains every arm of every subject (by the subject's name) and reads its curves."""
    encoder = load_encoders(ask.encoders)["dino"]
    dino = None if isinstance(encoder, Missing) else encoder
    absent = f"Dino could not be had ({encoder.reason})" if isinstance(encoder, Missing) else None
    found = {"dino": dino.identity.name if dino else None, "absent": absent}
    by_name: dict[str, dict[str, Any]] = {}
    for subject in ask.subjects:
        folder = ask.folder / "runs" / subject.name
        run_experiment(_experiment(ask, subject, arms[subject.name]), folder, ask.workers)
        for arm in arms[subject.name]:
            told = by_name.setdefault(arm.name, {"name": arm.name, "label": arm.label, "note": arm.note, "runs": []})
            for seed in range(ask.seeds):
                run = folder / f"{arm.name}-seed{seed}"
                told["runs"].append({"subject": subject.name, "seed": seed} | _curve(run, dino))
            told.setdefault("strip", _strip(ask, arm.name, folder / f"{arm.name}-seed0"))
    for told in by_name.values():
        told["dips"] = dips(told["runs"], "fidelity" if dino else "similarity")
    return found | {"arms": list(by_name.values())}


def _experiment(ask: Ask, subject: StudySubject, arms: Sequence[Arm]) -> Experiment:
    every = max(1, ask.steps // LOOKS)
    return Experiment(
        title=f"{ask.name}: {subject.name}",
        subject=subject.class_word,
        question="How does image fidelity vary over iterations?",
        base=settings(ask, subject, 1, 0, validation_steps=every, checkpointing_steps=500, checkpoints_total_limit=1),
        arms=arms,
        seeds=range(ask.seeds),
        facts=ask.facts(),
    )


def _samples(run: Path) -> dict[int, list[Path]]:
    """Pictures of the raw weights by step."""
    folders = sorted((int(path.name.removeprefix("step-")), path) for path in run.glob("samples/step-*"))
    return {step: sorted((path / "raw").glob("*.png")) for step, path in folders}


def _curve(run: Path, dino: Any) -> dict[str, list[float]]:
    """dino: an encoder of pictures, or None where there is none."""
    references = [opened(path) for path in sorted((run / "reference").glob("*.png"))]
    curve: dict[str, list[float]] = {"steps": [], "fidelity": [], "similarity": [], "noise": []}
    for step, paths in _samples(run).items():
        pictures = [opened(path) for path in paths]
        curve["steps"].append(step)
        if dino is not None:
            features = [dino.images([Image.fromarray(one) for one in part]) for part in (pictures, references)]
            curve["fidelity"].append(fidelity(*features).mean)
        curve["similarity"].append(image_similarity(pictures, references))
        curve["noise"].append(float(np.mean([haar_noise(picture) for picture in pictures])))
    return curve


def _strip(ask: Ask, arm: str, run: Path) -> list[dict[str, Any]]:
    """The picture of one seed along training, as the paper shows it below each curve."""
    samples = _samples(run)
    chosen = sorted({list(samples)[i] for i in np.linspace(0, len(samples) - 1, SHOWN).round().astype(int)})
    return [{"step": s, "file": keep(ask.folder, f"{arm}-step-{s}", opened(samples[s][0]))} for s in chosen]


def dip(steps: Sequence[int], values: Sequence[float]) -> dict[str, float | None]:
    """The largest fall of a curve from an earlier peak, each value first the median of it and its neighbours.

    depth: the fall, 0 for a curve that never falls; onset: the first step at which half of it is lost; peak, trough:
    the steps that it lies between.
    """
    kept = np.array([np.median(values[max(0, i - 1) : i + 2]) for i in range(len(values))])
    highest = np.maximum.accumulate(kept)
    trough = int(np.argmax(highest - kept))
    depth = float(highest[trough] - kept[trough])
    if depth == 0:
        return {"depth": 0.0, "onset": None, "peak": None, "trough": None}
    peak = int(np.argmax(kept[: trough + 1]))
    onset = next(i for i in range(peak, trough + 1) if kept[i] <= kept[peak] - depth / 2)
    return {"depth": depth, "onset": steps[onset], "peak": steps[peak], "trough": steps[trough]}


def dips(runs: Sequence[Mapping[str, Any]], of: str) -> dict[str, Any]:
    """Depth, onset and last value over runs, with 95 % intervals over subjects and seeds."""
    each = [dip(run["steps"], run[of]) | {"last": run[of][-1]} for run in runs]
    return {"of": of} | {key: asdict(_estimate(runs, [one[key] for one in each])) for key in ("depth", "onset", "last")}


def _estimate(runs: Sequence[Mapping[str, Any]], values: Sequence[float | None]) -> Estimate:
    return bootstrap({(run["subject"], run["seed"]): value for run, value in zip(runs, values, strict=True)})
