"""The verdict on a run in one sentence, how sure it is, and which of its steps to use.

The stage is the monitor's, by its rows or by its judgement of the pictures. Knows no pictures and no page.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from fewbayes.page.parts import Card, Verdict
from fewbayes.page.read import Look, Run

TITLES: dict[str | None, str] = {
    "underfit": "Not learned yet",
    "good": "Looks good",
    "unclear": "Unclear: look yourself",
    "corrupted": "Corrupted",
    "memorised": "Copies the training images",
    None: "Answers that are not finite",
}
"""Stages as headlines."""
MEANS = {
    "underfit": "The pictures do not show what the training images show.",
    "good": "No sign of noise or mottling, and no copies of the training images.",
    "unclear": "Shapes stand out less than in the base model's pictures, or nothing known is like these: no number "
    "here can judge them. If you see your subject whole, and neither noise nor mottling, keep it.",
    "corrupted": "They are noisier, or their colours more restless, than the base model's pictures and the training "
    "images account for.",
    "memorised": "The pictures are close to copies of the training images.",
}
RATED = {"good": (34, 21, 4), "unclear": (8, 25, 65), "corrupted": (0, 17, 115)}
"""Rated checkpoints that were called so: clean, in between, broken. The first two from earned_good.json (siblings), the
last from monitor_quality.json (held out), both in benchmarks/results; a test compares."""
MISSED = (4, 103)
"""Broken checkpoints that were called good, of how many, in the first of these."""
ELSEWHERE = (5, 16)
"""Broken ones of those called corrupted on tiny-sharp, by guided_monitor.json."""
SURE = {
    "good": "Confidence: fair. Of {n} rated checkpoints called good, {clean} were clean, {between} in between and "
    "{broken} broken: it misses {missed} of {of} broken ones.",
    "unclear": "Confidence: none. Of {n} rated checkpoints called unclear, {clean} were clean and {broken} broken.",
    "corrupted": "Confidence: high on tiny. Of {n} rated checkpoints called corrupted, {broken} were broken and "
    "{clean} clean; on tiny-sharp, for which no limit was chosen, {there} of {called} were broken.",
}
WHERE = " Rated by language models in the embedded world, never at the size of Stable Diffusion."
UNMEASURED = "Confidence: not measured for this verdict."
EXPORT = {"full": "diffusers", "lora": "kohya"}
TRIED = 2
FALLS = 0.02
"""Smaller falls of likeness are not told arm by arm."""


def confidence(stage: str | None) -> str:
    """How often a verdict is wrong, as far as it was measured; "" where there is none."""
    if stage not in SURE:
        return UNMEASURED if stage else ""
    clean, between, broken = RATED[stage]
    counts = {"n": clean + between + broken, "clean": clean, "between": between, "broken": broken}
    return SURE[stage].format(**counts, missed=MISSED[0], of=MISSED[1], there=ELSEWHERE[0], called=ELSEWHERE[1]) + WHERE


def exported(run: Run) -> str:
    """The weights that became the result."""
    return "ema" if run.config.get("export_weights") == "ema" else "raw"


def trained(run: Run) -> list[Look]:
    """The monitor's looks at the result's weights after step 0."""
    return [look for look in run.looks.get(exported(run), ()) if look.step > 0]


def chosen(run: Run) -> tuple[int, str] | None:
    """The step to use and where in the run folder its weights lie ("" for the result); None where none was good.

    What best/ holds, by its own word. Without best/ the last good look, if its weights were kept.
    """
    if run.best is not None:
        return run.best, "best"
    looks = [] if run.watched else trained(run)
    last = run.manifest.get("steps")
    for look in reversed(looks):
        if look.seen == "good" and (look.step == last or (run.path / f"checkpoint-{look.step}").is_dir()):
            return look.step, "" if look.step == last else f"checkpoint-{look.step}"
    return None


def verdict(run: Run) -> Verdict:
    looks = trained(run)
    if not looks:
        how = "Add --validation_steps 50 --monitor_steps 50 to the training to see pictures and a verdict."
        return Verdict("No pictures were judged", [how])
    last, use = looks[-1], chosen(run)
    since = looks[-1].step
    for look in reversed(looks):
        if look.stage != last.stage:
            break
        since = look.step
    title, colon, advice = TITLES[last.stage].partition(":")
    if last.stage == "good":
        headline = f"{title} at step {last.step}"
    elif since == looks[0].step:  # it never was anything else
        headline = TITLES[last.stage]
    else:
        headline = f"{title} from step {since} on{colon}{advice}"
    if last.stage != "good" and use and use[0] < since:
        headline = f"Good at step {use[0]}. {headline}"
    lines = [MEANS[last.stage]]
    if last.seen and last.seen != last.stage:
        lines.append(f"The last look alone says {last.seen}: the verdict changes after two looks that agree.")
    seen, unseen = (last.scores.get(name) for name in ("likeness", "unseen_likeness"))
    if seen is not None and unseen is not None:
        lines.append(f"Likeness: {seen:.2f} to the training images, {unseen:.2f} to the one held out.")
    if last.evidence and last.stage not in ("good", "unclear"):
        lines.append(f"Measured: {last.evidence[0]}.")
    options = [
        option
        for option in last.options
        if not option.startswith(("keep the last", "look at the pictures", "no look was good"))
    ]
    lines += [f"To try: {'; '.join(options[:TRIED])}."] if options else []
    return Verdict(headline, lines, last.stage, confidence(last.stage))


def card(run: Run) -> Card:
    """Which step to use, with commands for it."""
    use, steps = chosen(run), run.manifest.get("steps")
    prompt = str(run.config.get("instance_prompt") or "a photo of <v>")
    if use is None and trained(run):
        note = "No checkpoint was called good. This samples the last one, to look for yourself."
        why = ("Find out why", f"fewbayes diagnose {_path(run.path)} --output_dir diagnosis")
        return Card("No step to recommend", note, [_sample(run.path, prompt), why])
    if use is None:
        return Card("Use the result", commands=[_sample(run.path, prompt)])
    step, place = use
    folder = run.path / place if place else run.path
    note = f"{place}/ holds it." if place else "The run folder holds it."
    if trained(run) and trained(run)[-1].stage != "good" and step != steps:
        note += " It was the last that looked good."
    form = EXPORT.get(str(run.config.get("method", "full")), "merged")
    export = f"fewbayes export {_path(folder)} --format {form} --output_dir export"
    return Card(f"Use step {step}", note, [_sample(folder, prompt), ("Export it", export)])


def onward(made: dict[str, Any]) -> Card | None:
    """What comes after a demo; None after anything else. made: how an experiment was made, by its own word."""
    if not str(made.get("command", "")).startswith("fewbayes demo"):
        return None
    note = "Take three photographs or more: where there is one, every good picture is a copy of it."
    train = f"fewbayes train --model {shlex.quote(str(made.get('model', 'tiny')))} --instance_data_dir PHOTOS "
    train += "--instance_prompt 'a photo of a <v> dog' --output_dir run --validation_steps 50 --monitor_steps 50"
    return Card("Now with your photographs", note, [("Train; its page names the step to use", train)])


def _sample(folder: Path, prompt: str) -> tuple[str, str]:
    asked = shlex.quote(f"{prompt} in the snow")
    return "Make pictures", f"fewbayes sample {_path(folder)} --prompt {asked} --output_dir pictures"


def _path(folder: Path) -> str:
    return shlex.quote(str(folder))


def answer(summary: dict[str, Any]) -> Verdict:
    """On an experiment, in one line: in which arms pictures went bad, and where likeness falls most and least."""
    rows = [
        (arm["label"] + (", averaged weights" if weights == "ema" else ""), row)
        for arm in summary["arms"]
        for weights, row in arm["weights"].items()
        if row["n"]
    ]
    scored = [(label, row) for label, row in rows if row["scored"]]
    bad = [(label, row) for label, row in scored if row["runs_with_stage"]]
    falls = sorted(
        (row["deepest_fall"]["mean"], label) for label, row in rows if row["deepest_fall"]["mean"] is not None
    )
    if not scored:
        headline, tone = "No pictures were judged", ""
    elif not bad:
        count = max(row["scored"] for _, row in scored) * len(summary["arms"])
        headline, tone = f"No corruption stage in any of {count} trainings", "good"
    else:
        told = ", ".join(f"{label} ({row['runs_with_stage']} of {row['scored']})" for label, row in bad)
        clean = [label for label, row in scored if not row["runs_with_stage"]]
        but = f"; none in {', '.join(clean)}" if clean else ""
        headline, tone = f"A corruption stage in {told}{but}", "corrupted"
    lines = []
    if len(falls) > 1:
        (least, calm), (most, wild) = falls[0], falls[-1]
        worst, best = f"by {most:.2f} in the worst case ({wild})", f"by {least:.2f} in the best ({calm})"
        told = f"{worst}, {best}" if most >= FALLS else f"by {most:.2f} at most"
        lines.append(f"After its peak, likeness to the training images falls {told}.")
    ends = [stage for arm in summary["arms"] for stage in arm["weights"].get("raw", {}).get("ends", ())]
    if copies := ends.count("memorised"):
        lines.append(f"At the end {copies} of {len(ends)} trainings copy the training images.")
        tone = tone if bad else "memorised"
    return Verdict(headline + ".", lines, tone, confidence("corrupted") if bad else "")
