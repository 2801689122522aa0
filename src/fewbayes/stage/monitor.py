"""The stage of a training run, from looks at the model: underfit, good, unclear, corrupted or memorised, and why.

*Good* has to be earned: pictures like nothing that is known, and those whose outlines stand out less than in the base
model's pictures, are unclear and for your own eyes to judge.

Everything is judged by scores against the base model and the training images (`scores.py`); what is said of it, and
what can be done, is in `words.py`. Knows nothing of how looks are taken, of evaluators and of files; without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from msgspec import Meta

from fewbayes.errors import UserError
from fewbayes.stage import words
from fewbayes.stage.definition import CORRUPTED, IN_A_ROW
from fewbayes.stage.readings import Reading
from fewbayes.stage.samples import SampleStats
from fewbayes.stage.scores import CLEAN, COPY, OUTLINES, STRANGE, Standards

Stage = Literal["underfit", "good", "unclear", "corrupted", "memorised"]
ALARMS = ("corrupted", "memorised")

COLLAPSED = 0.75
"""With one training image every good picture is like it; copies are told by a diversity below this share of the base
model's. Copies in changed colours still keep 0.4 to 0.65."""
LEARNED = 0.05
"""Share of the base model's loss on the training images that is gone, or of the way from the base model's likeness to
1, that tells of learning. The loss is of fixed noise and exact; the mean likeness of four seeds has a standard error of
about 0.09, so without probes `good` and `underfit` are told apart but loosely: a look too many counts as good."""
DIVERGED = 1.1
"""A loss on the training images of so many times the base model's is no lack of training: the model was damaged."""
UNLIKE = 0.3
"""So is, without probes, a mean likeness lower than the base model's by such a share of the way to 1."""


@dataclass(frozen=True)
class Look:
    """What was seen of a model at one step; None for what was not looked at.

    samples, averaged: of the trained weights and of their running average, the base model's prompts and seeds in the
    same order.
    """

    step: int
    reading: Reading | None = None
    samples: SampleStats | None = None
    averaged: SampleStats | None = None


@dataclass(frozen=True)
class Judgement:
    """stage: after hysteresis; seen: by this look alone, or, where it drew no samples, by the last one that did.

    scores: `corruption` in [0, 1]; `averaged_corruption`, of the averaged weights; `memorisation` in [0, 1], 1 for
    copies; `strangeness`, at most 1, from STRANGE on like nothing that is known; `contours` and `relief`, below
    OUTLINES for weaker outlines than the base model draws; `diversity` over the base model's; `learning`, at most 1,
    below LEARNED for underfit; `likeness` and `unseen_likeness`, mean correlations in [-1, 1] with the training images
    and with one held out, where there is one. Those that the look had no means for are not there. cause:
    "jitter" where averaging the weights cures the pictures; "diverged" where the model knows the training images worse
    than the base model does; "lost" where a good look was followed by one that shows no learning.
    """

    step: int
    stage: Stage
    seen: Stage
    scores: dict[str, float]
    cause: str | None
    evidence: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def line(self) -> str:
        """One line for the console, with the first two pieces of evidence."""
        looks = words.how_it_looks(self.stage, self.seen, IN_A_ROW)
        options = f". You can: {'; '.join(self.options)}" if self.options else ""
        return f"step {self.step}: {looks}: {'; '.join(self.evidence[:2])}{options}"


@dataclass(frozen=True)
class _State:
    """All that is remembered of earlier looks.

    streak: sampled looks in a row that saw an alarm, or that saw none, like the last; goods: that saw `good`. cured:
    corrupted looks, since the averaged weights last were corrupted too, at which these were clean.
    """

    step: int
    stage: Stage = "underfit"
    seen: Stage = "underfit"
    streak: int = 0
    goods: int = 0
    cured: int = 0
    best: int | None = None


@dataclass(frozen=True)
class Memory:
    """All that a monitor knows, to be kept as JSON."""

    base: Look
    training: SampleStats
    patience: Annotated[int, Meta(ge=1)]
    state: _State


class Monitor:
    """Judges the looks at one run, fed in the order of their steps.

    base: the look at the base model. training: `describe(references, references)`. patience: looks with samples in a
    row before a change into or out of an alarm is believed.
    """

    def __init__(self, base: Look, training: SampleStats, *, patience: int = IN_A_ROW):
        if patience < 1:
            raise UserError(f"patience is {patience}; a stage takes one look at least, so give 1 or more")
        self.base, self.patience = base, patience
        self.standards = Standards(training, _drawn(base.samples), base.reading)
        self._state = _State(base.step)

    @property
    def best(self) -> int | None:
        """Step of the last look whose samples were good; None before any. In an alarm one good look replaces none."""
        return self._state.best

    def judge(self, look: Look) -> Judgement:
        """The stage with this look; it joins the history. samples of no pictures are none."""
        if look.step < self._state.step:
            raise UserError(f"a look at step {look.step} after one at {self._state.step}; looks come in order")
        pictures = self._checked(look.samples, "samples")
        averaged = self._checked(look.averaged, "samples of the averaged weights")
        scores = self.standards.scores(look.reading, pictures, averaged)
        if pictures is None:
            self._state = replace(self._state, step=look.step)  # no stage begins or ends
        else:
            self._state = self._with_samples(look, scores)
        state, cause = self._state, self._cause(look.reading, scores)
        return Judgement(
            look.step,
            state.stage,
            state.seen,
            scores,
            cause,
            self._evidence(look.reading, pictures, averaged, scores, cause),
            words.options({state.stage, state.seen} if state.streak else set(), cause, state.best),
        )

    @property
    def memory(self) -> Memory:
        """For a checkpoint; the monitor that remembers it judges on as this one would."""
        return Memory(self.base, self.standards.training, self.patience, self._state)

    @classmethod
    def remembering(cls, memory: Memory) -> Monitor:
        """The monitor that had this memory."""
        monitor = cls(memory.base, memory.training, patience=memory.patience)
        monitor._state = memory.state
        return monitor

    def _checked(self, samples: SampleStats | None, name: str) -> SampleStats | None:
        drawn, base = _drawn(samples), self.standards.base
        if drawn and base and base.count != drawn.count:
            raise UserError(
                f"{drawn.count} {name} and {base.count} of the base model; they are compared one by one, so draw as "
                "many, of the same prompts and seeds"
            )
        return drawn

    def _with_samples(self, look: Look, scores: dict[str, float]) -> _State:
        """Into and out of the alarms with `patience`; from one to the other, and among the rest, at once."""
        state, saw = self._state, seen(scores, self.standards.several)
        alarm, before = saw in ALARMS, state.stage in ALARMS
        streak = state.streak + 1 if alarm == (state.seen in ALARMS) else 1
        goods = state.goods + 1 if saw == "good" else 0
        kept = saw == "good" and (not before or state.best is None or goods >= self.patience)
        return _State(
            look.step,
            stage=saw if alarm == before or streak >= self.patience else state.stage,
            seen=saw,
            streak=streak,
            goods=goods,
            cured=self._cured(saw, scores),
            best=look.step if kept else state.best,
        )

    def _cured(self, seen: Stage, scores: dict[str, float]) -> int:
        averaged = scores.get("averaged_corruption")
        if averaged is None:
            return self._state.cured
        if averaged >= CORRUPTED:
            return 0
        return self._state.cured + (seen == "corrupted" and averaged <= CLEAN)

    def _cause(self, reading: Reading | None, scores: dict[str, float]) -> str | None:
        """Averages lag behind, so that one clean look of theirs at the onset is no cure yet."""
        clean = scores.get("averaged_corruption", 1.0) <= CLEAN
        if self._state.seen == "corrupted" and clean and self._state.cured >= self.patience:
            return "jitter"
        fall, unlearned = self.standards.loss_fall(reading), scores.get("learning", 1.0)
        if (fall is not None and fall <= 1 - DIVERGED) or (fall is None and unlearned <= -UNLIKE):
            return "diverged"
        return "lost" if self._state.best is not None and unlearned < LEARNED else None

    def _evidence(
        self,
        reading: Reading | None,
        pictures: SampleStats | None,
        averaged: SampleStats | None,
        scores: dict[str, float],
        cause: str | None,
    ) -> tuple[str, ...]:
        state, probed = self._state, words.probed(reading, self.base.reading)
        told = words.learned(cause, state.best)
        if pictures:
            return (*told, *words.pictured(self.standards, pictures, averaged, scores, state.seen), *probed)
        if not told and not state.streak and scores.get("learning", 0.0) >= LEARNED:
            told = ["the loss on the training images has fallen; whether the pictures are good, only samples tell"]
        since = "the stage is that of the last samples" if state.streak else "there have been none yet"
        return (*told, f"no samples at this step, so noise and copies cannot be seen ({since})", *probed)


def seen(scores: Mapping[str, float], several: bool) -> Stage:
    """The stage of one look with samples, by its scores alone. several: whether there are training images that differ.

    Noise comes first: a noisy picture is no copy that anybody wants to keep or fear.
    """
    if scores["corruption"] >= CORRUPTED:
        return "corrupted"
    if scores["memorisation"] >= COPY and (several or scores.get("diversity", 1.0) < COLLAPSED):
        return "memorised"
    if scores["strangeness"] >= STRANGE:
        return "unclear"
    if scores.get("learning", 0.0) < LEARNED:
        return "underfit"
    clear = all(scores.get(name, limit) >= limit for name, limit in OUTLINES.items())
    return "good" if clear else "unclear"


def _drawn(samples: SampleStats | None) -> SampleStats | None:
    return samples if samples and samples.count else None


def corruption(samples: SampleStats, base: SampleStats, training: SampleStats) -> float:
    """The corruption score of one set of pictures, as a judgement has it: corrupted from CORRUPTED on.

    base: of the base model's pictures of the same prompts and seeds. training: `describe(references, references)`.
    """
    return Standards(training, _drawn(base)).corruption(samples)
