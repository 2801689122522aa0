"""What looks like the corruption stage and is not: experiments on a loaded model, each undone when it ends.

Too few sampler steps, an adapter's strength, a learning rate that damaged the weights, numbers that are not finite,
latents drawn with noise, an autoencoder in half precision. Every experiment gives a `Finding` with its numbers in
words; which of them explains the pictures is the verdict's. Knows no files, no run folders and no stages beyond
their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from fewbayes.diagnose.verdict import Finding
from fewbayes.models import Family
from fewbayes.models.adapters import scaled
from fewbayes.stage.readings import Guided, Losses
from fewbayes.stage.scores import CLEAN
from fewbayes.training.batches import OPEN, open_channels

SCALES = (0.25, 0.5, 1.0, 2.0)
"""Strengths that an adapter is tried at, as multiples of its own."""
LOWEST_SCALE = 1 / 64
CLEARLY = 0.95
"""A loss below this share of another is clearly lower: the draws are the same, so there is little noise in it."""
RISEN = 1.02
"""A loss on the training images above this multiple of the base model's has risen."""
MORE_STEPS = 4
WELL_BELOW = 0.5
"""Share of the source's corruption score that another sampler's may have at most: near the border both are chance."""
HALF_LIMIT = 8.0
"""Mean difference of a decoded picture in 8-bit levels, from which on half precision is a matter for the eye."""


# --- the weights themselves -------------------------------------------------------------------------------------------


def not_finite(modules: Mapping[str, nn.Module]) -> Finding | None:
    """None where every number of the weights is finite."""
    named = {f"{part}.{name}": w for part, module in modules.items() for name, w in module.named_parameters()}
    broken = [name for name, weight in named.items() if not weight.isfinite().all()]
    if not broken:
        return None
    return Finding(
        "weights",
        "weights",
        f"{len(broken)} of {len(named)} tensors hold numbers that are not finite, as {broken[0]}",
        ("take an earlier checkpoint: no setting of the sampler mends this", "train again at a lower learning rate"),
        {"tensors": len(named), "not_finite": len(broken)},
    )


def rate_too_high(mine: Losses, base: Losses) -> Finding:
    """Damaged weights have a higher loss on the training images than the base model's at every noise level.

    In the corruption stage itself it has risen where there is little noise and fallen where there is much.
    """
    ratios = mine.ratio(base)
    numbers = {"t": mine.t, "ratio": ratios, "mean_ratio": mine.mean / base.mean}
    listed = ", ".join(f"{ratio:.2f} at t = {t:g}" for t, ratio in zip(mine.t, ratios, strict=True))
    said = f"the loss on the training images over the base model's, from little noise to much: {listed}"
    if all(math.isfinite(ratio) for ratio in ratios) and min(ratios) <= RISEN:
        return Finding("rate", None, said, (), numbers)
    why = "above it at every noise level: the weights are damaged rather than narrowed to the subject"
    options = ("train again at a lower learning rate, a third of it first", "take an earlier checkpoint")
    return Finding("rate", "rate", f"{said}, {why}", options, numbers)


# --- the strength of an adapter ---------------------------------------------------------------------------------------


def losses_at_scales(layers: Sequence[Any], losses: Callable[[], Losses]) -> dict[float, Losses]:
    """Losses on the training images by strength; halved on where the lowest strength tried is the best."""
    found: dict[float, Losses] = {}

    def at(factor: float) -> None:
        with scaled(layers, factor):
            found[factor] = losses()

    for factor in SCALES:
        at(factor)
    while min(found) > LOWEST_SCALE and best_scale(found) == min(found):
        at(min(found) / 2)
    return dict(sorted(found.items()))


def best_scale(found: Mapping[float, Losses]) -> float:
    """The strength with the lowest mean loss; 1 where none is finite."""
    finite = {factor: losses.mean for factor, losses in found.items() if math.isfinite(losses.mean)}
    return min(finite, key=finite.__getitem__, default=1.0)


def scale_too_high(found: Mapping[float, Losses], base: Losses, *, alarm: bool = False) -> Finding:
    """An adapter fits the training images best at the strength it was trained at: too strong, it fits at a lower one.

    That one has to be better at every noise level, and better than no adapter: in the corruption stage a lower strength
    undoes the harm where there is little noise, and what was learned where there is much. alarm: the pictures are bad,
    or copies; nothing stronger is advised then.
    """
    own, best = found[1.0], best_scale(found)
    listed = ", ".join(f"{losses.mean:.3f} at {factor:g}" for factor, losses in found.items())
    numbers = {"base_loss": base.mean, "losses": {f"{f:g}": v.mean for f, v in found.items()}, "best": best}
    by_strength = f"(mean loss by strength: {listed}; {base.mean:.3f} without it)"
    if best < 1 and found[best].mean < base.mean and _lower_everywhere(found[best], own):
        return Finding(
            "scale",
            "scale",
            f"at strength {best:g} the adapter fits the training images better at every noise level {by_strength}",
            (f"use it at strength {best:g}: the file's alpha, or the strength given, is too high for these weights",),
            numbers,
        )
    stronger = not alarm and best > 1 and _lower_everywhere(found[best], own)
    said = "no lower strength fits the training images better at every noise level"
    options = (f"strength {best:g} fits the training images better than 1",) if stronger else ()
    return Finding("scale", None, f"{said} {by_strength}", options, numbers)


def _lower_everywhere(losses: Losses, own: Losses) -> bool:
    """An own loss that is not finite is higher."""
    return all(not mine >= CLEARLY * its for mine, its in zip(losses.loss, own.loss, strict=True))


# --- the sampler ------------------------------------------------------------------------------------------------------


def other_samplers(sampler: str, steps: int, samplers: Sequence[str], most: int | None) -> dict[str, dict[str, Any]]:
    """Settings that the same seeds are sampled with again, by the name of their pictures; there may be none.

    samplers: those that suit the model, of which one of higher order comes first; most: steps that it can take.
    """
    others = [name for name in ("dpm++", *samplers) if name in samplers and name != sampler]
    second = {"other_sampler": {"sampler": others[0]}} if others else {}
    more = min(MORE_STEPS * steps, most or MORE_STEPS * steps)
    return ({"more_steps": {"steps": more}} if more > steps else {}) | second


def sampler_too_short(
    scores: Mapping[str, float],
    noise: Mapping[str, Sequence[float]],
    how: Mapping[str, Any],
    others: Mapping[str, Mapping[str, Any]],
) -> Finding:
    """The sampler is the cause where another one gives clean pictures, not merely some short of the border.

    others: as `other_samplers` told. scores: corruption, of the pictures under "source" and each of these, each beside
    the base model's of its own setting. noise: per picture, of these and "base".
    """
    tried = {name: {**how, **changes} for name, changes in others.items()}
    limit = min(CLEAN, WELL_BELOW * scores["source"])
    clean = [name for name in tried if scores[name] <= limit]
    listed = ", ".join(
        f"{noise_name(name, tried)} {fmean(noise[name]):.3g}" for name in ("source", *tried, "base") if noise.get(name)
    )
    numbers = {
        "corruption": dict(scores),
        "limit": limit,
        "noise": {name: fmean(values) for name, values in noise.items() if values},
    }
    if not clean:
        return Finding("sampler", None, f"no sampler tried gives clean pictures (noise: {listed})", (), numbers)
    asked = tried[min(clean, key=scores.__getitem__)]
    return Finding(
        "sampler",
        "sampler",
        f"the same seeds are clean with {asked['sampler']} and {asked['steps']} steps (noise: {listed})",
        (f"sample with {asked['sampler']} and {asked['steps']} steps: the weights are usable",),
        numbers,
    )


def too_guided(
    scores: Mapping[str, float],
    how: Mapping[str, Any],
    others: Mapping[str, Mapping[str, Any]],
    found: Guided | None,
) -> Finding:
    """Guidance is the cause where the same seeds are clean without it, or with it where there is much noise alone.

    Then the model alone is well, and what its two branches differ by is multiplied. Arguments as `sampler_too_short`
    has them; found: what the probes say of both branches.
    """
    limit = min(CLEAN, WELL_BELOW * scores["source"])
    clean = [name for name in others if scores[name] <= limit]
    numbers = {"corruption": dict(scores), "limit": limit}
    said = f"guidance {how['guidance']:g}"
    if found:
        worst = max(range(len(found.t)), key=found.gain.__getitem__)
        alone, gap = found.conditional, found.gap[worst]
        numbers |= {"t": found.t[worst], "gain": found.gain[worst], "gap": gap}
        own = alone.gain[worst] if alone.gain else alone.retention[worst] ** 2
        said += f" (gain {found.gain[worst]:.2f} at t = {found.t[worst]:g}, {own:.2f} without; gap {gap:+.3f})"
    if not clean:
        return Finding("guidance", None, f"without {said} the pictures are no cleaner", (), numbers)
    ways = {"unguided": "without guidance", "within_interval": "with guidance where there is much noise alone"}
    advice = {"unguided": "lower --guidance_scale", "within_interval": "sample with --guidance_interval 0.83:"}
    return Finding(
        "guidance",
        "guidance",
        f"the same seeds are clean {' and '.join(ways[name] for name in clean)}; they are not at {said}",
        (*(advice[name] for name in reversed(clean)), "train again with --caption_dropout 0.1, which narrows the gap"),
        numbers,
    )


def noise_name(name: str, tried: Mapping[str, Mapping[str, Any]]) -> str:
    if name in tried:
        return f"{tried[name]['sampler']} with {tried[name]['steps']} steps"
    return {"source": "as sampled", "base": "base model"}[name]


# --- the autoencoder: what training drew from it, and half precision --------------------------------------------------


def noisy_latents(mean: Tensor, deviation: Tensor, corrupted: bool, drawn: str | None) -> Finding:
    """Whether latents of an autoencoder that leaves channels open were drawn. Both (count, channels, height, width).

    A trait of the autoencoder, and a cause only of pictures that are corrupted. drawn: what training took, "draw" or
    "mean"; None for a trainer that does not say.
    """
    found = open_channels(mean, deviation)
    numbers = {"channels": {str(channel): share for channel, share in found.items()}, "limit": OPEN}
    if not found:
        return Finding("latents", None, "the autoencoder adds no noise to the training images", (), numbers)
    listed = ", ".join(f"{share:.1f} in channel {channel}" for channel, share in found.items())
    if drawn == "mean":
        said = f"the autoencoder leaves channels open ({listed}), but training took the means of the latents"
        return Finding("latents", None, said, (), numbers)
    drew = "drew" if drawn else "may have drawn"
    said = (
        f"the autoencoder's deviations are large beside the spread of the latents ({listed}): training {drew} that "
        "noise"
    )
    options = ("train with --latents mean, or with the autoencoder of the pretraining",)
    return Finding("latents", "latents" if corrupted else None, said, options if corrupted else (), numbers)


@torch.no_grad()
def half_precision_vae(family: Family, latents: Tensor) -> Finding:
    """Whether pictures decoded in float16 are those of float32. latents: (count, channels, height, width), scaled."""
    whole = family.decoded(latents, torch.float32)
    half, dtype = _half_decoded(family, latents)
    finite = bool(half.isfinite().all())
    # as pictures are made of it: values beyond black and white are cut off
    difference = float((half.clamp(-1, 1) - whole.clamp(-1, 1)).abs().mean()) * 127.5 if finite else None
    numbers = {"dtype": str(dtype).removeprefix("torch."), "finite": finite, "mean_difference": difference}
    if difference is not None and difference < HALF_LIMIT:
        said = f"in {numbers['dtype']} the autoencoder differs by {difference:.2f} levels of 255 on average: harmless"
        return Finding("vae", None, said, (), numbers)
    what = "gives numbers that are not finite" if difference is None else f"is off by {difference:.0f} levels of 255"
    return Finding(
        "vae",
        "vae",
        f"in {numbers['dtype']} the autoencoder {what} on the training images: pictures made elsewhere in half "
        "precision will be black or noisy whatever the weights are",
        ("keep the autoencoder in float32, as is done here, or take one that was made for half precision",),
        numbers,
    )


def _half_decoded(family: Family, latents: Tensor) -> tuple[Tensor, torch.dtype]:
    """bfloat16 where this machine has no float16 convolutions; it has the range of float32, and overflows nowhere."""
    try:
        return family.decoded(latents, torch.float16), torch.float16
    except RuntimeError as error:
        if "not implemented" not in str(error) and "not supported" not in str(error):
            raise
        return family.decoded(latents, torch.bfloat16), torch.bfloat16
