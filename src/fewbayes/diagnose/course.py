"""The course of a diagnosis: the base model, the source, its look-alikes; or all checkpoints of a run, one by one.

The monitor judges what is seen; then the look-alikes of corruption are tried (`lookalikes.py`). Never holds two models
at once. Knows nothing of how the monitor decides.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewbayes.diagnose import lookalikes
from fewbayes.diagnose.ask import Case, other_guidance
from fewbayes.diagnose.examine import NAMES, Book, Seen, load_base, load_source, modules
from fewbayes.diagnose.verdict import Diagnosis, Finding, concluded, which_to_keep
from fewbayes.errors import UserError
from fewbayes.models import Family
from fewbayes.models.adapters import lora_layers, scaled
from fewbayes.settings.config import recommended_rate
from fewbayes.stage.monitor import ALARMS, Judgement, Look, Monitor
from fewbayes.stage.probes import adapters_off
from fewbayes.stage.readings import Losses
from fewbayes.stage.samples import SampleStats
from fewbayes.stage.scores import CLEAN
from fewbayes.stage.words import fitted

log = logging.getLogger(__name__)

Pictures = list[NDArray[np.uint8]]


def single(book: Book) -> Diagnosis:
    """The source, whatever it is, beside its base model."""
    judgement = _source_judged(book, _averaged_pictures(book))
    _settle_samplers(book, judgement)
    return concluded(judgement, book.findings, book.notes)


def _source_judged(book: Book, averaged: Pictures | None) -> Judgement | None:
    """averaged: drawn before, so that two models never are in memory, and compared with the base model's now."""
    family, judgement = _source_after_base(book), None
    averages = _described_averages(book, averaged)
    seen = _seen_whole(book, family, NAMES["source"])
    if seen and seen.stats:
        monitor = Monitor(book.base_look(), book.scene.training, patience=1)
        judgement = _alone(monitor.judge(Look(book.case.step, seen.reading, seen.stats, averages)), book.case)
    if seen:
        _try_lookalikes(book, family, judgement)
    return judgement


def _alone(judgement: Judgement, case: Case) -> Judgement:
    """A single look knows no step to keep; a run has checkpoints to look at."""
    options = tuple(option for option in judgement.options if not option.startswith(("keep", "no look was good")))
    if case.config and case.config.learning_rate:
        options = fitted(options, case.config.learning_rate, recommended_rate(case.config.method, case.card))
    if len(options) == len(judgement.options) or case.config is None or not case.config.checkpointing_steps:
        return replace(judgement, options=options)
    return replace(judgement, options=("add --checkpoints: it says which checkpoint of this run to keep", *options))


def _seen_whole(book: Book, family: Family, what: str, **facts: Any) -> Seen | None:
    """The source as seen; None, and a finding, where its weights are not finite and there is nothing to see."""
    if broken := lookalikes.not_finite(modules(family)):
        log.warning("%s", broken.said)
        book.findings.append(broken)
        return None
    seen = book.scene.seen(family, what)
    book.see("source", seen, **facts)
    return seen


def _source_after_base(book: Book) -> Family:
    """The source, loaded, once the base model has been looked at."""
    case = book.case
    if case.switched:
        family = load_source(case, weights=case.asked.weights)
        with adapters_off(*modules(family).values()):
            _see_base(book, family)
        return family
    _see_base(book, load_base(case))
    return load_source(case, weights=case.asked.weights)


def _see_base(book: Book, family: Family) -> None:
    seen = book.scene.seen(family, NAMES["base"], base=True)
    if seen.stats is None:
        raise UserError(
            f"the base model {book.case.card.model} itself answers with numbers that are not finite, and everything is "
            "judged against it: get a whole copy of it, or name another by --base"
        )
    book.see("base", seen)


def _averaged(book: Book, checkpoint: Path) -> SampleStats | None:
    """Of a checkpoint of a timeline, whose base model has been seen."""
    last = checkpoint == [*book.case.kept.values()][-1]
    return _described_averages(book, _averaged_pictures(book, checkpoint), shown=last)


def _averaged_pictures(book: Book, checkpoint: Path | None = None) -> Pictures | None:
    """Of the averaged weights of the same run, where it has any and the raw ones are asked about."""
    case = book.case
    if case.config is None or not case.config.use_ema or case.weights == "ema":
        return None
    try:
        family = load_source(case, checkpoint, "ema")
    except UserError as error:
        log.warning("%s", error)  # with paths, which the notes are free of
        book.notes.append(
            "the averaged weights of the run could not be looked at: it holds none of this step that are whole"
        )
        return None
    log.info("%s", NAMES["averaged"])
    return book.scene.pictures(family)


def _described_averages(book: Book, pictures: Pictures | None, *, shown: bool = True) -> SampleStats | None:
    """Beside the base model's pictures, which must have been drawn: without them nothing is strange."""
    if pictures is None:
        return None
    stats = book.scene.described(pictures)
    if shown:
        book.add("averaged", pictures, stats, **book.case.how)
    return stats


# --- the look-alikes --------------------------------------------------------------------------------------------------


def _try_lookalikes(book: Book, family: Family, judgement: Judgement | None) -> None:
    mine, base = book.readings["source"].losses, book.readings["base"].losses
    assert mine is not None
    assert base is not None
    corrupted = judgement is None or judgement.seen == "corrupted"
    alarm = judgement is None or judgement.seen in ALARMS
    book.findings.append(lookalikes.rate_too_high(mine, base))
    layers = lora_layers(*modules(family).values())
    if layers:
        _try_scales(book, family, layers, base, corrupted, alarm)
    if corrupted and judgement is not None:
        _try_samplers(book, family)
    if judgement is not None and judgement.cause == "jitter":
        said = "the averaged weights of the same run give clean pictures on the same seeds"
        book.findings.append(Finding("average", "jitter", said, ("use the averaged weights",)))
    posterior = family.encode_images(np.stack(book.scene.references))
    book.findings.append(lookalikes.noisy_latents(*posterior, corrupted, book.case.latents))
    log.info("The autoencoder, in half precision and in full")
    book.findings.append(lookalikes.half_precision_vae(family, book.scene.latents(family)[:2]))


def _try_scales(book: Book, family: Family, layers: list[Any], base: Losses, corrupted: bool, alarm: bool) -> None:
    """Where a lower strength fits better, its pictures too: it may be a remedy even where it is not the cause."""
    log.info("the adapter at strengths %s", ", ".join(f"{scale:g}" for scale in lookalikes.SCALES))

    def losses() -> Losses:
        found = book.scene.probed(family, "losses").losses
        assert found is not None
        return found

    finding = lookalikes.scale_too_high(lookalikes.losses_at_scales(layers, losses), base, alarm=alarm)
    best = finding.numbers["best"]
    if corrupted and best < 1:
        log.info("%s: %g", NAMES["weaker"], best)
        with scaled(layers, best):
            pictures = book.scene.pictures(family)
        book.add("weaker", pictures, book.scene.described(pictures), **book.case.how, strength=best)
        if not finding.cause and book.corruption("weaker", "base") <= CLEAN:
            finding = replace(finding, options=(f"at strength {best:g} the same seeds are clean", *finding.options))
    book.findings.append(finding)


def _try_samplers(book: Book, family: Family) -> None:
    """The same seeds with other settings; the base model's too where it is at hand, as the source without adapters."""
    _sample_otherwise(book, family, "")
    if book.case.switched:
        with adapters_off(*modules(family).values()):
            _sample_otherwise(book, family, "base_")


def _sample_otherwise(book: Book, family: Family, whose: str) -> None:
    usual = book.case.how
    for other, changes in book.case.otherwise().items():
        name, how = f"{whose}{other}", {**usual, **changes}
        log.info("%s: %s, %d steps, guidance %g", NAMES[name], how["sampler"], how["steps"], how["guidance"])
        book.otherwise[name] = book.scene.pictures(family, **changes)
        book.add(name, book.otherwise[name], None, **how)


def _settle_samplers(book: Book, judgement: Judgement | None) -> None:
    """Each setting against the base model at the same one, by the pictures alone, as the source at its own is here.

    Called when the source is gone: another base model is loaded for it.
    """
    if judgement is None or judgement.seen != "corrupted":
        return
    case = book.case
    others, guidance = case.other_samplers(), other_guidance(case.how)
    if not case.switched:
        _sample_otherwise(book, load_base(case), "base_")
    for name, pictures in book.otherwise.items():
        twins = book.otherwise[f"base_{name.removeprefix('base_')}"]
        book.stats[name] = book.scene.described(pictures, twins)
    scores = {"source": book.corruption("source", "base")}
    scores |= {name: book.corruption(name, f"base_{name}") for name in (*others, *guidance)}
    noise = {name: book.stats[name].noise for name in ("base", "source", *others)}
    of_samplers = {name: score for name, score in scores.items() if name not in guidance}
    book.findings.append(lookalikes.sampler_too_short(of_samplers, noise, case.how, others))
    if guidance:
        of_guidance = {name: scores[name] for name in ("source", *guidance)}
        book.findings.append(lookalikes.too_guided(of_guidance, case.how, guidance, book.readings["source"].guided))


# --- checkpoints in order ---------------------------------------------------------------------------------------------


def timeline(book: Book) -> Diagnosis:
    """All checkpoints through one monitor, then the look-alikes on the last one, which is the source."""
    case = book.case
    _see_base(book, load_base(case))
    monitor = Monitor(book.base_look(), book.scene.training)
    judged: list[Judgement] = []
    *earlier, last = case.kept.items()
    for number, (step, path) in enumerate(earlier, 1):
        averaged = _averaged(book, path)
        what = f"checkpoint {number} of {len(case.kept)}, step {step}"
        seen = book.scene.seen(load_source(case, path, case.weights), what)
        book.see(f"step-{step}", seen, step=step)
        if seen.stats:
            judged.append(monitor.judge(Look(step, seen.reading, seen.stats, averaged)))
    averaged = _averaged(book, last[1])
    final, itself = _last_judged(book, monitor, averaged)
    _settle_samplers(book, itself)
    diagnosis = concluded(itself, book.findings, book.notes)
    timeline = (*judged, *((final,) if final else ()))
    said = which_to_keep(monitor.best, itself)
    return replace(diagnosis, verdict=(*diagnosis.verdict, said), keep=monitor.best, timeline=timeline)


def _last_judged(
    book: Book, monitor: Monitor, averaged: SampleStats | None
) -> tuple[Judgement | None, Judgement | None]:
    """The last checkpoint in the timeline and by itself; None, twice, where there is nothing to sample."""
    step, path = [*book.case.kept.items()][-1]
    family = load_source(book.case, path, book.case.weights)
    seen = _seen_whole(book, family, f"the last checkpoint, step {step}", step=step)
    final = itself = None
    if seen and seen.stats:
        final, itself = judge_last(monitor, Look(step, seen.reading, seen.stats, averaged))
    if seen:
        _try_lookalikes(book, family, itself)
    return final, itself


def judge_last(monitor: Monitor, look: Look) -> tuple[Judgement, Judgement]:
    """As the timeline has it, after hysteresis, and by itself, as its own diagnosis would: that is the headline.

    An alarm that the timeline still holds gives a look that is good by itself no options.
    """
    alone = Monitor(monitor.base, monitor.standards.training, patience=1).judge(look)
    final = monitor.judge(look)
    cause = final.cause or alone.cause
    options = alone.options if final.seen == "good" and cause is None else final.options
    return final, replace(final, stage=final.seen, cause=cause, options=options)
