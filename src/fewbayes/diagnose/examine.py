"""Models as they are examined: loaded, probed, sampled at the same seeds, and the book in which all of it is kept.

Every model is shown the same images, prompts and seeds, so what is found of two of them can be compared one by one.
Knows nothing of the order in which models are looked at, and nothing of what is concluded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fewbayes.data.images import load_images, numbered
from fewbayes.diagnose.ask import Case
from fewbayes.diagnose.layout import RESULT
from fewbayes.diagnose.verdict import Diagnosis, Finding
from fewbayes.diffusion.guidance import Interval
from fewbayes.models import Family, load_family
from fewbayes.models.sampling import sample_images
from fewbayes.runs.opening import open_model
from fewbayes.runs.provenance import environment
from fewbayes.stage.monitor import Look, corruption
from fewbayes.stage.probes import PROBES, Probe, Prober, ProbeSettings
from fewbayes.stage.readings import Reading
from fewbayes.stage.samples import SampleStats, describe

log = logging.getLogger(__name__)

BATCH = 4
NAMES = {
    "training": "training images",
    "base": "base model",
    "source": "yours",
    "averaged": "yours, averaged weights",
    "more_steps": "yours, more steps",
    "other_sampler": "yours, another sampler",
    "unguided": "yours, without guidance",
    "within_interval": "yours, guided where there is much noise alone",
    "weaker": "yours, at a lower strength",
    "base_more_steps": "base model, more steps",
    "base_other_sampler": "base model, another sampler",
    "base_unguided": "base model, without guidance",
    "base_within_interval": "base model, guided where there is much noise alone",
}
"""What a folder of pictures/ shows; those of checkpoints are called step-N."""


@dataclass(frozen=True)
class Seen:
    """A model as probed and sampled; no pictures where its answers are not finite numbers."""

    reading: Reading
    pictures: list[NDArray[np.uint8]]
    stats: SampleStats | None


class Scene:
    """What every model is shown: the training images, the prompts, the seeds. Draws depend on the seed alone."""

    def __init__(self, case: Case):
        self.case = case
        loaded = load_images(case.images.folder, resolution=case.resolution, center_crop=True, report=case.images)
        self.references = [image.pixels for image in loaded]
        self.captions = [case.worded(image.caption or case.prompt) for image in loaded]
        self.training = describe(self.references, self.references)
        self._twins: list[NDArray[np.uint8]] = []
        self._latents: Tensor | None = None

    def latents(self, family: Family) -> Tensor:
        """Of the training images; encoded once, for what is compared has one autoencoder."""
        if self._latents is None:
            self._latents = family.encode_images(np.stack(self.references))[0].cpu()
        return self._latents

    def probed(self, family: Family, *probes: Probe) -> Reading:
        """All probes, or those that are named."""
        how = self.case.how
        settings = ProbeSettings(
            examples=min(4, max(2, len(self.references))),
            seed=self.case.asked.seed,
            guidance=how["guidance"],
            interval=Interval.read(how.get("guidance_interval")),
            negative_prompt=how["negative_prompt"],
        )
        asked = probes or tuple(probe for probe in PROBES if probe != "guided" or how["guidance"] > 1)
        return Prober(family, self.latents(family), self.captions, settings=settings).read(asked)

    def pictures(self, family: Family, **changes: Any) -> list[NDArray[np.uint8]]:
        """One for each seed; changes: of the sampler's settings."""
        case = self.case
        prompts = [case.worded(case.prompt)] * len(case.seeds)
        made = sample_images(
            family, prompts, case.seeds, **{**case.how, **changes}, resolution=case.resolution, batch_size=BATCH
        )
        return [np.asarray(picture) for picture in made]

    def described(self, pictures: list[NDArray[np.uint8]], twins: list[NDArray[np.uint8]] | None = None) -> SampleStats:
        """twins: the base model's pictures at the same setting; those at the user's own where they are not given."""
        return describe(pictures, self.references, self._twins if twins is None else twins)

    def seen(self, family: Family, what: str, *, base: bool = False) -> Seen:
        """The base model comes first: the pictures of the others are compared with its own, one by one."""
        log.info("%s: measuring it, then drawing %s", what, self._sampling())
        reading = self.probed(family)
        if not reading.losses or not np.isfinite(reading.losses.mean):
            return Seen(reading, [], None)
        pictures = self.pictures(family)
        self._twins = pictures if base else self._twins
        return Seen(reading, pictures, self.described(pictures))

    def _sampling(self) -> str:
        how, count = self.case.how, len(self.case.seeds)
        return f"{count} pictures by {how['sampler']}, {how['steps']} steps, guidance {how['guidance']:g}"


def load_source(case: Case, source: Path | None = None, weights: str | None = None) -> Family:
    """The source that was asked about, or a checkpoint of its run, on the device."""
    base = case.asked.base if case.config is None and case.switched else None
    alpha, name = case.asked.lora_alpha, str(source or case.asked.source)
    family, _ = open_model(name, weights, base=base, lora_alpha=alpha, spoilt=True)
    return _placed(family)


def load_base(case: Case) -> Family:
    """The model that everything is judged against, on the device."""
    return _placed(load_family(case.card))


def _placed(family: Family) -> Family:
    return family.to("cuda" if torch.cuda.is_available() else "cpu")


def modules(family: Family) -> dict[str, nn.Module]:
    """What training may have changed, by name."""
    return {"denoiser": family.denoiser, **family.text_encoders}


class Book:
    """What was found, kept as it comes."""

    def __init__(self, case: Case, folder: Path):
        self.case, self.folder = case, folder
        self.scene = Scene(case)
        self.groups: list[dict[str, Any]] = []
        self.readings: dict[str, Reading] = {}
        self.stats: dict[str, SampleStats] = {}
        self.otherwise: dict[str, list[NDArray[np.uint8]]] = {}
        """Pictures of other samplers, which are described once the base model's are there too."""
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.add("training", self.scene.references, self.scene.training)

    def add(self, name: str, pictures: Sequence[NDArray[np.uint8]], stats: SampleStats | None, **facts: Any) -> None:
        """One folder of pictures; facts: what its entry tells beside its name."""
        into = self.folder / "pictures" / name
        into.mkdir(parents=True)
        files = [numbered(i, len(pictures)) for i in range(len(pictures))]
        for file, picture in zip(files, pictures, strict=True):
            Image.fromarray(picture).save(into / file)
        if stats is not None:
            self.stats[name] = stats
        self.groups.append({"name": name, "title": NAMES.get(name, name), "files": files, **facts})

    def see(self, name: str, seen: Seen, **facts: Any) -> None:
        """A model, its reading and its pictures."""
        self.readings[name] = seen.reading
        self.add(name, seen.pictures, seen.stats, **{**self.case.how, **facts})

    def base_look(self) -> Look:
        """What the monitor judges the others against."""
        return Look(0, self.readings["base"], self.stats["base"])

    def corruption(self, name: str, base: str) -> float:
        """The monitor's score of one set of pictures beside the base model's of the same setting."""
        return corruption(self.stats[name], self.stats[base], self.scene.training)

    def write(self, diagnosis: Diagnosis, seconds: float) -> None:
        """diagnosis.json, beside pictures/."""
        case = self.case
        base = self.readings.get("base")
        told = {
            **asdict(diagnosis),
            "findings": [asdict(finding) for finding in self.findings],
            "settings": _told(case),
            "pictures": self.groups,
            "numbers": {
                name: reading.numbers(None if name == "base" else base) for name, reading in self.readings.items()
            },
            "readings": {name: asdict(reading) for name, reading in self.readings.items()},
            "samples": {name: asdict(stats) for name, stats in self.stats.items()},
            "seconds": round(seconds, 1),
            "environment": environment(None),
        }
        (self.folder / RESULT).write_text(json.dumps(_finite(told), indent=1, allow_nan=False) + "\n")


def _told(case: Case) -> dict[str, Any]:
    """The settings in use; files and folders by their names alone, wherever they lie."""
    return {
        "source": Path(case.asked.source).resolve().name,
        "base": Path(case.card.model).resolve().name,
        "weights": case.weights,
        "prompt": case.worded(case.prompt),
        "images": [image.path.name for image in case.images.images],
        **case.how,
        "resolution": case.resolution,
        "seeds": case.seeds,
    }


def _finite(value: Any) -> Any:
    """For JSON, which has no numbers that are not finite: None in their place."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
