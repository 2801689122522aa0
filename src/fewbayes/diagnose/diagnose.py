"""`fewbayes diagnose`: the stage of a model that somebody has trained, and what explains it. Nothing is trained.

The source (a run of ours, a checkpoint, a pipeline folder, or an adapter of any trainer) and the model it came from are
read by the probes and sampled at the same seeds with the user's own sampler; the monitor judges; then the look-alikes
of corruption are tried (`lookalikes.py`). All that is found lies in one folder: diagnosis.json and pictures/. Knows
nothing of pages, of training, or of how the monitor decides; never holds two models at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewbayes.data.images import DataReport, check_folder, load_images
from fewbayes.errors import UserError
from fewbayes.models import Family, ModelCard, inspect_model
from fewbayes.models.adapters import is_adapter
from fewbayes.runs.folder import (
    BEST_STATE,
    CONFIG,
    MANIFEST,
    STATE,
    RunError,
    RunFolder,
    atomic_folder,
    environment,
    new_folder,
    read_manifest,
    verify_checkpoint,
)
from fewbayes.settings.config import RARE_TOKEN_MARK, TrainConfig, load_config
from fewbayes.stage.monitor import ALARMS, CLEAN, Judgement, Look, Monitor, corruption
from fewbayes.stage.readings import Losses, Reading
from fewbayes.stage.samples import SampleStats, describe

if TYPE_CHECKING:
    from torch import Tensor

    from fewbayes.diagnose.lookalikes import Finding

log = logging.getLogger(__name__)

RESULT = "diagnosis.json"
SAMPLERS: tuple[str, ...] = get_args(get_type_hints(TrainConfig)["sampler"])
BATCH = 4
NAMES = {
    "training": "training images",
    "base": "base model",
    "source": "yours",
    "averaged": "yours, averaged weights",
    "more_steps": "yours, more steps",
    "other_sampler": "yours, another sampler",
    "weaker": "yours, at a lower strength",
    "base_more_steps": "base model, more steps",
    "base_other_sampler": "base model, another sampler",
}
"""What a folder of pictures/ shows; those of checkpoints are called step-N."""
SAID = {
    "underfit": "Not learned yet: the pictures do not show what the training images show.",
    "good": "Healthy: no sign of the corruption stage, and no copies of the training images.",
    "corrupted": "Corrupted: on the same seeds the pictures have gone bad compared with the base model's.",
    "memorised": "Memorised: the pictures are close to copies of the training images.",
    None: "Answers that are not finite: the weights are numbers, but what they answer is none, so nothing was sampled.",
}
NOT_UNDERFIT = {
    "diverged": "Damaged: the pictures do not show what the training images show, and the loss on these is above the "
    "base model's.",
    "lost": "Lost again: the pictures do not show what the training images show, and an earlier checkpoint's did.",
}
"""Said of causes for which training longer would be no help, in place of "not learned yet"."""
BECAUSE = {
    "weights": "Broken weights: no setting makes pictures of numbers that are not finite.",
    "scale": "The cause is the strength of the adapter, not its training.",
    "rate": "The cause is damage, as of too high a learning rate, not narrowing to the subject.",
    "latents": "The likely cause is the autoencoder: latents drawn from it have noise that the pictures do not have.",
    "sampler": "The cause is the sampler, not the weights.",
    "jitter": "The cause is jitter: the averaged weights of the same run are clean.",
    "diverged": "The cause is damage: on the whole the training images are predicted worse than by the base model.",
    "lost": "None of the look-alikes explains it, and what an earlier checkpoint had learned is lost with it.",
    None: "None of the look-alikes explains it: this is what the corruption stage of few-shot training looks like.",
}
BUT = {
    "scale": "But the adapter acts too strongly: at a lower strength it fits the training images better.",
    "rate": "But the training images are predicted worse than by the base model: the weights are damaged.",
    "diverged": "But on the whole the training images are predicted worse than by the base model: training did damage.",
    "lost": "But what an earlier checkpoint had learned is not to be seen any more.",
}
"""Causes that are said whatever the pictures look like; the others explain bad pictures only."""


@dataclass(frozen=True)
class Asked:
    """The command as given; None is what the run says, else the usual."""

    source: str
    output_dir: str
    base: str | None = None
    instance_data_dir: str | None = None
    instance_prompt: str | None = None
    rare_token: str | None = None
    sampler: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    num_images: int = 4
    seed: int = 0
    weights: str | None = None
    checkpoints: bool = False


@dataclass(frozen=True)
class Case:
    """What is to be diagnosed, with everything settled and nothing loaded.

    switched: the base model is the source with its adapters off. weights: those of a run that are looked at. kept: the
    checkpoints of a timeline, by step.
    """

    asked: Asked
    card: ModelCard
    config: TrainConfig | None
    step: int
    switched: bool
    prompt: str
    rare_token: str | None
    images: DataReport
    resolution: int
    how: dict[str, Any]
    weights: str | None = None
    kept: dict[int, Path] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return [self.asked.seed + i for i in range(self.asked.num_images)]

    def worded(self, prompt: str) -> str:
        return prompt.replace(RARE_TOKEN_MARK, self.rare_token or RARE_TOKEN_MARK)


@dataclass(frozen=True)
class Seen:
    """A model as probed and sampled; no pictures where its answers are not finite numbers."""

    reading: Reading
    pictures: list[NDArray[np.uint8]]
    stats: SampleStats | None


@dataclass(frozen=True)
class Diagnosis:
    """stage: None where weights or answers are not finite: nothing to sample. timeline: of checkpoints, in order."""

    stage: str | None
    cause: str | None
    verdict: tuple[str, ...]
    evidence: tuple[str, ...]
    options: tuple[str, ...]
    notes: tuple[str, ...]
    scores: dict[str, float]
    keep: int | None = None
    timeline: tuple[Judgement, ...] = ()


# --- what is asked, before anything is loaded -------------------------------------------------------------------------


def settle(asked: Asked) -> Case:
    """Everything that can be refused, refused; ValueError says what to give."""
    new_folder(asked.output_dir)
    if not 0 <= asked.seed < 2**63:
        raise UserError(f"seed is {asked.seed}; it must be from 0 to 2**63 - 1")
    source = Path(asked.source)
    inside = any((source / name).is_file() for name in (STATE, BEST_STATE))
    run = source.resolve().parent if inside else source
    config = load_config(run / CONFIG, {}) if all((run / name).is_file() for name in (CONFIG, MANIFEST)) else None
    if config:
        _check_run(asked, source, run, config)
    elif inside:
        raise UserError(f"{run} has no {CONFIG}, which names the model that {source.name} belongs to")
    else:
        _check_foreign(asked, source)
    card = inspect_model(config.model if config else str(asked.base))
    if config and (recorded := read_manifest(run)["model"]["sha256"]) != card.fingerprint():
        raise UserError(
            f"the model {config.model} is not the one that {run} was trained from (its sha256 was {recorded[:12]}...); "
            "put that model back: without it nothing can be compared"
        )
    folder, prompt = _images_and_prompt(asked, config)
    images = check_folder(folder)
    rare_token = asked.rare_token or (config.rare_token if config else card.rare_token)
    if rare_token is None:
        _check_no_mark([prompt, *(image.caption or "" for image in images.images)], card)
    kept = _checkpoints(run) if asked.checkpoints else {}
    return Case(
        asked=asked,
        card=card,
        config=config,
        step=_step(source, run, config) if config else 1,
        switched=_switched(source, config),
        prompt=prompt,
        rare_token=rare_token,
        images=images,
        resolution=(config.resolution if config else None) or card.resolution,
        how=_how(asked, config),
        weights=_weights(asked, source, run) if config else None,
        kept=kept,
    )


def _check_run(asked: Asked, source: Path, run: Path, config: TrainConfig) -> None:
    from fewbayes.methods import make_method

    if asked.base:
        raise UserError(f"{source} belongs to a run, which knows the model under it; leave base out")
    if asked.checkpoints and source != run:
        raise UserError(f"--checkpoints looks at all checkpoints of a run; give the run, {run}")
    result = make_method(config).result
    if source == run and not asked.checkpoints and not asked.weights and not (run / result).is_file():
        raise UserError(
            f"{run} is a run without its result, {result}: give its training command again to finish it, or diagnose "
            "one of its checkpoint-N folders, or all of them by --checkpoints"
        )


def _check_foreign(asked: Asked, source: Path) -> None:
    if not source.exists():
        raise UserError(f"there is no {source}; give a run, a checkpoint, a pipeline folder or an adapter's file")
    for name in ("weights", "checkpoints"):
        if getattr(asked, name):
            raise UserError(f"{source} is no run of fewbayes, which alone has them; leave out --{name}")
    if not asked.base:
        raise UserError(
            f"{source} does not say which model it came from, and everything is judged against that one: give --base"
        )
    if not is_adapter(source):
        inspect_model(str(source))  # raises for what is no pipeline
    elif source.is_file():
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(source, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{source} cannot be read, it is damaged or no safetensors file: {error}") from error


def _images_and_prompt(asked: Asked, config: TrainConfig | None) -> tuple[str, str]:
    folder = asked.instance_data_dir or (config.instance_data_dir if config else None)
    prompt = asked.instance_prompt or (config.instance_prompt if config else None)
    if folder is None or prompt is None:
        raise UserError(
            f"{asked.source} is no run of fewbayes, which would name its images and prompt: give --instance_data_dir, "
            "the folder it was trained on, and --instance_prompt, the words it was trained with, as in "
            '"a photo of sks dog"'
        )
    return folder, prompt


def _check_no_mark(prompts: Sequence[str], card: ModelCard) -> None:
    """A mark that stands for no word would be sampled as it is written, which the model was never told of."""
    for prompt in prompts:
        if RARE_TOKEN_MARK in prompt:
            raise UserError(
                f"the prompt {prompt!r} has {RARE_TOKEN_MARK}, and the base model {card.model} names no word for it: "
                'write the word itself, as in "a photo of sks dog", or name it by --rare_token'
            )


def _how(asked: Asked, config: TrainConfig | None) -> dict[str, Any]:
    usual = {"sampler": "ddim", "num_inference_steps": 25, "guidance_scale": 7.5, "negative_prompt": ""}
    found = {
        name: next(v for v in (getattr(asked, name), getattr(config, name, None), value) if v is not None)
        for name, value in usual.items()
    }
    names = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
    return {names.get(name, name): value for name, value in found.items()}


def _switched(source: Path, config: TrainConfig | None) -> bool:
    """Whether the base model is what is left when the adapters are off; a learned word is no adapter."""
    if config is None:
        return is_adapter(source)
    return config.method in ("lora", "oft") and not config.train_rare_token


def _step(source: Path, run: Path, config: TrainConfig) -> int:
    if (source / STATE).is_file():
        return verify_checkpoint(source).step
    if (source / BEST_STATE).is_file():
        return json.loads((source / BEST_STATE).read_text())["step"]
    return read_manifest(run).get("steps") or RunFolder(run).newest_step() or 1


def _weights(asked: Asked, source: Path, run: Path) -> str:
    exported = read_manifest(run).get("exported") if source == run and not asked.checkpoints else None
    return asked.weights or exported or "raw"


def _checkpoints(run: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in RunFolder(run).checkpoints():
        try:
            found[verify_checkpoint(path).step] = path
        except (RunError, OSError) as error:
            log.warning("skipped a torn checkpoint, %s", error)
    if not found:
        raise UserError(f"{run} has no checkpoints; train with --checkpointing_steps, or leave out --checkpoints")
    return found


# --- looking at models ------------------------------------------------------------------------------------------------


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

    def probed(self, family: Family, *probes: Any) -> Reading:
        from fewbayes.stage.probes import PROBES, Prober, ProbeSettings

        settings = ProbeSettings(examples=min(4, max(2, len(self.references))), seed=self.case.asked.seed)
        return Prober(family, self.latents(family), self.captions, settings=settings).read(probes or PROBES)

    def pictures(self, family: Family, **changes: Any) -> list[NDArray[np.uint8]]:
        from fewbayes.sample import sample_images

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
        log.info("%s: probes, then %s", what, self._sampling())
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
    from fewbayes.sample import load_for_sampling

    family, _ = load_for_sampling(
        str(source or case.asked.source), weights, base=case.asked.base if _is_lora(case) else None
    )
    return _placed(family)


def load_base(case: Case) -> Family:
    from fewbayes.models import load_family

    return _placed(load_family(case.card))


def _is_lora(case: Case) -> bool:
    return case.config is None and case.switched


def _placed(family: Family) -> Family:
    import torch

    return family.to("cuda" if torch.cuda.is_available() else "cpu")


def _modules(family: Family) -> dict[str, Any]:
    return {"denoiser": family.denoiser, **family.text_encoders}


# --- the diagnosis ----------------------------------------------------------------------------------------------------


def diagnose(asked: Asked) -> Diagnosis:
    """Look at the source and its base model, judge, try the look-alikes; writes `output_dir`, which must be new."""
    case = settle(asked)
    for note in case.images.notes:
        log.info("%s: %s", case.images.folder, note)
    began = time.monotonic()
    with atomic_folder(asked.output_dir, new=True) as folder:
        book = Book(case, folder)
        diagnosis = _timeline(case, book) if case.kept else _single(case, book)
        book.write(diagnosis, time.monotonic() - began)
    return diagnosis


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
        self.add("training", self.scene.references, self.scene.training)

    def add(self, name: str, pictures: Sequence[NDArray[np.uint8]], stats: SampleStats | None, **facts: Any) -> None:
        into = self.folder / "pictures" / name
        into.mkdir(parents=True)
        digits = max(2, len(str(len(pictures) - 1)))
        files = [f"{i:0{digits}d}.png" for i in range(len(pictures))]
        for file, picture in zip(files, pictures, strict=True):
            Image.fromarray(picture).save(into / file)
        if stats is not None:
            self.stats[name] = stats
        self.groups.append({"name": name, "title": NAMES.get(name, name), "files": files, **facts})

    def see(self, name: str, seen: Seen, **facts: Any) -> None:
        self.readings[name] = seen.reading
        self.add(name, seen.pictures, seen.stats, **{**self.case.how, **facts})

    def write(self, diagnosis: Diagnosis, seconds: float) -> None:
        case = self.case
        base = self.readings.get("base")
        told = {
            "stage": diagnosis.stage,
            "cause": diagnosis.cause,
            "verdict": diagnosis.verdict,
            "evidence": diagnosis.evidence,
            "options": diagnosis.options,
            "notes": diagnosis.notes,
            "scores": diagnosis.scores,
            "keep": diagnosis.keep,
            "timeline": [judgement.to_dict() for judgement in diagnosis.timeline],
            "findings": [finding.to_dict() for finding in self.findings],
            "settings": _told(case),
            "pictures": self.groups,
            "numbers": {
                name: reading.numbers(None if name == "base" else base) for name, reading in self.readings.items()
            },
            "readings": {name: reading.to_dict() for name, reading in self.readings.items()},
            "samples": {name: stats.to_dict() for name, stats in self.stats.items()},
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


def _single(case: Case, book: Book) -> Diagnosis:
    notes: list[str] = []
    averaged = _averaged(case, book, notes)
    judgement = _source_judged(case, book, averaged)
    _settle_samplers(case, book, judgement)
    return concluded(judgement, book.findings, notes)


def _source_judged(case: Case, book: Book, averaged: SampleStats | None) -> Judgement | None:
    family, judgement = _source_after_base(case, book), None
    seen = _seen_whole(case, book, family, NAMES["source"])
    if seen and seen.stats:
        monitor = Monitor(_base_look(book), book.scene.training, patience=1)
        judgement = _alone(monitor.judge(Look(case.step, seen.reading, seen.stats, averaged)), case)
    if seen:
        _try_lookalikes(case, book, family, judgement)
    return judgement


def _alone(judgement: Judgement, case: Case) -> Judgement:
    """A single look knows no step to keep; a run has checkpoints to look at."""
    options = tuple(option for option in judgement.options if not option.startswith(("keep", "no look was good")))
    if len(options) == len(judgement.options) or case.config is None or not case.config.checkpointing_steps:
        return replace(judgement, options=options)
    return replace(judgement, options=("--checkpoints on the run tells which one to keep", *options))


def _seen_whole(case: Case, book: Book, family: Family, what: str, **facts: Any) -> Seen | None:
    """The source as seen; None, and a finding, where its weights are not finite and there is nothing to see."""
    from fewbayes.diagnose.lookalikes import not_finite

    if broken := not_finite(_modules(family)):
        log.warning("%s", broken.said)
        book.findings.append(broken)
        return None
    seen = book.scene.seen(family, what)
    book.see("source", seen, **facts)
    return seen


def _base_look(book: Book) -> Look:
    return Look(0, book.readings["base"], book.stats["base"])


def _source_after_base(case: Case, book: Book) -> Family:
    """The source, loaded, once the base model has been looked at."""
    from fewbayes.stage.probes import adapters_off

    if case.switched:
        family = load_source(case, weights=case.asked.weights)
        with adapters_off(*_modules(family).values()):
            _see_base(case, book, family)
        return family
    _see_base(case, book, load_base(case))
    return load_source(case, weights=case.asked.weights)


def _see_base(case: Case, book: Book, family: Family) -> None:
    seen = book.scene.seen(family, NAMES["base"], base=True)
    if seen.stats is None:
        raise UserError(
            f"the base model {case.card.model} itself answers with numbers that are not finite, and everything is "
            "judged against it: get a whole copy of it, or name another by --base"
        )
    book.see("base", seen)


def _averaged(case: Case, book: Book, notes: list[str], checkpoint: Path | None = None) -> SampleStats | None:
    """Of pictures of the averaged weights of the same run, where it has any and the raw ones are asked about."""
    if case.config is None or not case.config.use_ema or case.weights == "ema":
        return None
    try:
        family = load_source(case, checkpoint, "ema")
    except UserError as error:
        log.warning("%s", error)  # with paths, which the notes are free of
        notes.append(
            "the averaged weights of the run could not be looked at: it holds none of this step that are whole"
        )
        return None
    log.info("%s", NAMES["averaged"])
    pictures = book.scene.pictures(family)
    stats = book.scene.described(pictures)
    if checkpoint is None or checkpoint == [*case.kept.values()][-1]:
        book.add("averaged", pictures, stats, **case.how)
    return stats


def _try_lookalikes(case: Case, book: Book, family: Family, judgement: Judgement | None) -> None:
    from fewbayes.diagnose import lookalikes

    mine, base = book.readings["source"].losses, book.readings["base"].losses
    assert mine is not None
    assert base is not None
    corrupted = judgement is None or judgement.seen == "corrupted"
    alarm = judgement is None or judgement.seen in ALARMS
    book.findings.append(lookalikes.rate_too_high(mine, base))
    layers = lookalikes.lora_layers(*_modules(family).values())
    if layers:
        _try_scales(book, family, layers, base, corrupted, alarm)
    if corrupted and judgement is not None:
        _try_samplers(case, book, family)
    if judgement is not None and judgement.cause == "jitter":
        said = "the averaged weights of the same run give clean pictures on the same seeds"
        book.findings.append(lookalikes.Finding("average", "jitter", said, ("use the averaged weights",)))
    posterior = family.encode_images(np.stack(book.scene.references))
    book.findings.append(lookalikes.noisy_latents(*posterior, corrupted, ours=case.config is not None))
    log.info("the autoencoder in half precision")
    book.findings.append(lookalikes.half_precision_vae(family.vae, book.scene.latents(family)[:2]))


def _try_scales(book: Book, family: Family, layers: list[Any], base: Losses, corrupted: bool, alarm: bool) -> None:
    """Where a lower strength fits better, its pictures too: it may be a remedy even where it is not the cause."""
    from fewbayes.diagnose import lookalikes

    log.info("the adapter at strengths %s", ", ".join(f"{scale:g}" for scale in lookalikes.SCALES))

    def losses() -> Losses:
        found = book.scene.probed(family, "losses").losses
        assert found is not None
        return found

    finding = lookalikes.scale_too_high(lookalikes.losses_at_scales(layers, losses), base, alarm=alarm)
    best = finding.numbers["best"]
    if corrupted and best < 1:
        log.info("%s: %g", NAMES["weaker"], best)
        with lookalikes.scaled(layers, best):
            pictures = book.scene.pictures(family)
        book.add("weaker", pictures, book.scene.described(pictures), **book.case.how, strength=best)
        if not finding.cause and _corruption(book, "weaker", "base") <= CLEAN:
            finding = replace(finding, options=(f"at strength {best:g} the same seeds are clean", *finding.options))
    book.findings.append(finding)


def _try_samplers(case: Case, book: Book, family: Family) -> None:
    """The same seeds with other settings; the base model's too where it is at hand, as the source without adapters."""
    from fewbayes.stage.probes import adapters_off

    _sample_otherwise(case, book, family, "")
    if case.switched:
        with adapters_off(*_modules(family).values()):
            _sample_otherwise(case, book, family, "base_")


def _sample_otherwise(case: Case, book: Book, family: Family, whose: str) -> None:
    from fewbayes.diagnose.lookalikes import other_samplers

    for other, changes in other_samplers(case.how["sampler"], case.how["steps"]).items():
        name, how = f"{whose}{other}", {**case.how, **changes}
        log.info("%s: %s, %d steps", NAMES[name], how["sampler"], how["steps"])
        book.otherwise[name] = book.scene.pictures(family, **changes)
        book.add(name, book.otherwise[name], None, **how)


def _settle_samplers(case: Case, book: Book, judgement: Judgement | None) -> None:
    """Each setting against the base model at the same one, by the pictures alone, as the source at its own is here.

    Called when the source is gone: another base model is loaded for it.
    """
    from fewbayes.diagnose import lookalikes

    if judgement is None or judgement.seen != "corrupted":
        return
    others = tuple(lookalikes.other_samplers(case.how["sampler"], case.how["steps"]))
    if not case.switched:
        _sample_otherwise(case, book, load_base(case), "base_")
    for name, pictures in book.otherwise.items():
        twins = book.otherwise[f"base_{name.removeprefix('base_')}"]
        book.stats[name] = book.scene.described(pictures, twins)
    scores = {"source": _corruption(book, "source", "base")}
    scores |= {name: _corruption(book, name, f"base_{name}") for name in others}
    noise = {name: book.stats[name].noise for name in ("base", "source", *others)}
    book.findings.append(lookalikes.sampler_too_short(scores, noise, case.how))


def _corruption(book: Book, name: str, base: str) -> float:
    """The monitor's score of one set of pictures beside the base model's of the same setting."""
    return corruption(book.stats[name], book.stats[base], book.scene.training)


# --- checkpoints in order ---------------------------------------------------------------------------------------------


def _timeline(case: Case, book: Book) -> Diagnosis:
    """All checkpoints through one monitor, then the look-alikes on the last one, which is the source."""
    _see_base(case, book, load_base(case))
    monitor = Monitor(_base_look(book), book.scene.training)
    notes: list[str] = []
    judged: list[Judgement] = []
    *earlier, last = case.kept.items()
    for number, (step, path) in enumerate(earlier, 1):
        averaged = _averaged(case, book, notes, path)
        what = f"checkpoint {number} of {len(case.kept)}, step {step}"
        seen = book.scene.seen(load_source(case, path, case.weights), what)
        book.see(f"step-{step}", seen, step=step)
        if seen.stats:
            judged.append(monitor.judge(Look(step, seen.reading, seen.stats, averaged)))
    averaged = _averaged(case, book, notes, last[1])
    final, itself = _last_judged(case, book, monitor, averaged)
    _settle_samplers(case, book, itself)
    diagnosis = concluded(itself, book.findings, notes)
    timeline = (*judged, *((final,) if final else ()))
    said = which_to_keep(monitor.best, itself)
    return replace(diagnosis, verdict=(*diagnosis.verdict, said), keep=monitor.best, timeline=timeline)


def _last_judged(
    case: Case, book: Book, monitor: Monitor, averaged: SampleStats | None
) -> tuple[Judgement | None, Judgement | None]:
    """The last checkpoint in the timeline and by itself; None, twice, where there is nothing to sample."""
    step, path = [*case.kept.items()][-1]
    family = load_source(case, path, case.weights)
    seen = _seen_whole(case, book, family, f"the last checkpoint, step {step}", step=step)
    final = itself = None
    if seen and seen.stats:
        final, itself = judge_last(monitor, Look(step, seen.reading, seen.stats, averaged))
    if seen:
        _try_lookalikes(case, book, family, itself)
    return final, itself


def judge_last(monitor: Monitor, look: Look) -> tuple[Judgement, Judgement]:
    """As the timeline has it, after hysteresis, and by itself, as its own diagnosis would: that is the headline.

    An alarm that the timeline still holds gives a look that is good by itself no options.
    """
    alone = Monitor(monitor.base, monitor.training, patience=1).judge(look)
    final = monitor.judge(look)
    cause = final.cause or alone.cause
    options = alone.options if final.seen == "good" and cause is None else final.options
    return final, replace(final, stage=final.seen, cause=cause, options=options)


def which_to_keep(best: int | None, last: Judgement | None) -> str:
    """In words. A checkpoint that is good just after bad ones does not replace one that was good before them."""
    if best is None:
        return "No checkpoint is good."
    if last and last.seen == "good" and last.step != best:
        return f"Keep checkpoint-{best}: the last one is good by itself, but comes too soon after bad ones."
    return f"Keep checkpoint-{best}, the last good one."


# --- in words ---------------------------------------------------------------------------------------------------------


def concluded(judgement: Judgement | None, findings: Sequence[Finding], notes: Sequence[str]) -> Diagnosis:
    """judgement: None where weights or answers are not finite and there is nothing to sample."""
    from fewbayes.diagnose.lookalikes import explained

    stage = judgement.stage if judgement else None
    found = explained(findings)
    damage = found if stage in (None, "corrupted") or (found and found.cause in BUT) else None
    cause = damage.cause if damage else judgement.cause if judgement else None
    vae = [finding for finding in findings if finding.cause == "vae"]
    others = [option for finding in findings if finding not in (*vae, damage) for option in finding.options]
    options = (*(damage.options if damage else ()), *others, *(judgement.options if judgement else ()))
    tried = [finding.said for finding in findings if finding not in vae and finding is not damage]
    return Diagnosis(
        stage=stage,
        cause=cause,
        verdict=_verdict(stage, cause),
        evidence=(*((damage.said,) if damage else ()), *(judgement.evidence if judgement else ()), *tried),
        options=tuple(dict.fromkeys(options)),
        notes=(*notes, *(finding.said for finding in vae)),
        scores=judgement.scores if judgement else {},
    )


def _verdict(stage: str | None, cause: str | None) -> tuple[str, ...]:
    if stage is None and cause == "weights":
        return (BECAUSE[cause],)
    if stage == "underfit" and cause in NOT_UNDERFIT:
        return (NOT_UNDERFIT[cause],)
    if stage is None and cause is None:
        return (SAID[stage],)
    if stage in (None, "corrupted"):
        return SAID[stage], BECAUSE[cause]
    return (SAID[stage], BUT[cause]) if cause in BUT else (SAID[stage],)


# --- the command ------------------------------------------------------------------------------------------------------


def run_diagnose(arguments: Sequence[str], page: Callable[[Path], Path] | None = None) -> int:
    """The command `fewbayes diagnose`; 0 whatever the verdict. page: writes the page of the folder, its path."""
    asked = Asked(**vars(_parser().parse_args(list(arguments))))
    diagnosis = diagnose(asked)
    print("\n".join(spoken(diagnosis)))
    written = page(Path(asked.output_dir)) if page else asked.output_dir
    print(f"\ndone: {written}")
    return 0


def spoken(diagnosis: Diagnosis) -> list[str]:
    """Lines for the terminal, the verdict first."""
    lines = ["", " ".join(diagnosis.verdict)]
    lines += [f"  {judgement.line}" for judgement in diagnosis.timeline]
    lines += [f"  {said}" for said in diagnosis.evidence]
    lines += ["What you can do:", *(f"  {said}" for said in diagnosis.options)] if diagnosis.options else []
    return lines + [f"Note: {said}" for said in diagnosis.notes]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fewbayes diagnose",
        description="The stage of a trained model (underfit, good, corrupted, memorised) and what explains it.",
    )
    add = parser.add_argument
    add("source", help="run folder, its checkpoint-N, pipeline folder, LoRA file or PEFT folder of any trainer")
    add("--output_dir", "--output-dir", required=True, help="a new or empty folder")
    add("--base", metavar="MODEL", help="the model that a pipeline or adapter came from; runs know theirs")
    add("--instance_data_dir", "--instance-data-dir", metavar="DIR", help="the training images [the run's]")
    add(
        "--instance_prompt", "--instance-prompt", metavar="P", help="as trained with; <v> is the rare token [the run's]"
    )
    add("--rare_token", "--rare-token", metavar="W", help="the word that <v> stands for [the run's or the model's]")
    add("--sampler", choices=SAMPLERS, help="the one you use [the run's, or ddim]")
    add("--num_inference_steps", "--num-inference-steps", type=_positive, metavar="N", help="[the run's, or 25]")
    add("--guidance_scale", "--guidance-scale", type=float, metavar="X", help="1 is none [the run's, or 7.5]")
    add("--negative_prompt", "--negative-prompt", metavar="TEXT", help="[the run's, or none]")
    add("--num_images", "--num-images", type=_positive, default=4, metavar="N", help="[4]")
    add("--seed", type=int, default=0, help="of the first image; image i has seed + i [0]")
    add("--weights", choices=("raw", "ema"), help="of a run or checkpoint [what a run exported]")
    add("--checkpoints", action="store_true", help="all checkpoints of a run in order, and which one to keep")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value
