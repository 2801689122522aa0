"""What a diagnosis concludes and says: the likeliest cause, the verdict, the evidence and the options, in words.

Knows findings and judgements, nothing of how they came about; without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fewbayes.stage.monitor import Judgement

LIKELIEST = ("weights", "scale", "rate", "latents", "sampler", "guidance", "jitter")
"""Causes in the order in which they are believed: the earlier ones bring about the later ones' signs."""

SAID = {
    "underfit": "Not learned yet: the pictures do not show what the training images show.",
    "good": "Healthy: no sign of the corruption stage, and no copies of the training images.",
    "unclear": "Unclear, look yourself: shapes stand out less than in the base model's pictures, or nothing known is "
    "like these, so no number here can call them good or bad.",
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
    "guidance": "The cause is guidance: the model alone is well, and what its two branches differ by is multiplied.",
    "jitter": "The cause is jitter: the averaged weights of the same run are clean.",
    "diverged": "The cause is damage: on the whole the training images are predicted worse than by the base model.",
    "lost": "None of the look-alikes explains it, and what an earlier checkpoint had learned is lost with it.",
    None: "None of the look-alikes explains it: this is what the corruption stage of few-shot training looks like.",
}
BUT = {
    "scale": "But the adapter acts too strongly: at a lower strength it fits the training images better.",
    "rate": "But the training images are predicted worse than by the base model: the weights are damaged.",
    "diverged": "But on the whole the training images are predicted worse than by the base model: training did damage.",
    "lost": "But what an earlier checkpoint had learned is gone.",
}
"""Causes to report whatever the pictures look like; the others explain bad pictures only."""


@dataclass(frozen=True)
class Finding:
    """One experiment. cause: what it shows to be wrong, None if nothing; said: in words, with the numbers."""

    experiment: str
    cause: str | None
    said: str
    options: tuple[str, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)


def explained(findings: Sequence[Finding]) -> Finding | None:
    """The likeliest cause among those shown."""
    shown = [finding for finding in findings if finding.cause in LIKELIEST]
    return min(shown, key=lambda finding: LIKELIEST.index(finding.cause or ""), default=None)


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


def concluded(judgement: Judgement | None, findings: Sequence[Finding], notes: Sequence[str]) -> Diagnosis:
    """judgement: None where weights or answers are not finite and there is nothing to sample."""
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


def which_to_keep(best: int | None, last: Judgement | None) -> str:
    """In words. A checkpoint that is good just after bad ones does not replace one that was good before them."""
    if best is None:
        return "No checkpoint is good."
    if last and last.seen == "good" and last.step != best:
        return f"Keep checkpoint-{best}: the last one is good by itself, but comes too soon after bad ones."
    return f"Keep checkpoint-{best}, the last good one."


def spoken(diagnosis: Diagnosis) -> list[str]:
    """Lines for the terminal, the verdict first."""
    lines = ["", " ".join(diagnosis.verdict)]
    lines += [f"  {judgement.line}" for judgement in diagnosis.timeline]
    lines += [f"  {said}" for said in diagnosis.evidence]
    lines += ["What you can do:", *(f"  {said}" for said in diagnosis.options)] if diagnosis.options else []
    return lines + [f"Note: {said}" for said in diagnosis.notes]
