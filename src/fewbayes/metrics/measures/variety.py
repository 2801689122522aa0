"""How different the pictures of one prompt are: Lpips and the Vendi score."""

from __future__ import annotations

from functools import partial

from fewbayes.metrics import paper, scores
from fewbayes.metrics.cases import Case, Pooled, Samples, by_prompt, check_prompts, part_note, some
from fewbayes.metrics.registry import Metric, register
from fewbayes.metrics.scores import Mean, Unavailable


def lpips(case: Case, samples: Samples) -> Mean:
    some(samples)
    check_prompts(samples)
    return scores.diversity(case.store.tables("lpips", [group for group in by_prompt(samples) if len(group) > 1]))


def real_lpips(case: Case) -> Mean:
    if len(case.references) < 2:
        raise Unavailable(f"{len(case.references)} reference; it takes two to be compared with each other")
    return scores.diversity(case.store.tables("lpips", [case.references]))


def vendi(key: str, case: Case, samples: Samples) -> Mean:
    some(samples)
    check_prompts(samples)
    return scores.group_vendi([case.store.matrix(key, group) for group in by_prompt(samples)])


def real_vendi(key: str, case: Case) -> Mean:
    return scores.group_vendi([case.of_references(key)])


def in_pairs(case: Case, samples: Samples) -> str | None:
    groups = by_prompt(samples)
    return part_note(sum(len(group) > 1 for group in groups), len(groups), "prompts have two pictures")


def paper_lpips(pooled: Pooled) -> Mean:
    samples = some(pooled.samples)
    return paper.lpips(
        lambda rows: pooled.store.distances("lpips", [samples[row] for row in rows]),
        list(pooled.references),
        pooled.folders,
        pooled.black(samples),
    )


def paper_real_lpips(pooled: Pooled) -> Mean:
    groups = [
        [picture for picture, dark in zip(pictures, pooled.black(pictures), strict=True) if not dark]
        for pictures in pooled.known().values()
    ]
    return paper.real_lpips(pooled.store.tables("lpips", groups))


register(
    Metric(
        "lpips",
        "Lpips",
        "perceptual distance among the pictures of one prompt: more is more diverse",
        lpips,
        better=1,
        place=("paper", 4),
        encoder="lpips",
        real=real_lpips,
        note=in_pairs,
        paper=paper_lpips,
        paper_real=paper_real_lpips,
    ),
    Metric(
        "vendi",
        "Vendi score",
        "effective number of different pictures among those of a prompt",
        partial(vendi, "dino"),
        digits=2,
        place=("beside", 7),
        encoder="dino",
        real=partial(real_vendi, "dino"),
        note=in_pairs,
    ),
    Metric(
        "vendi_dinov2",
        "Vendi score, DINOv2",
        "as Vendi score, by DINOv2",
        partial(vendi, "dinov2"),
        digits=2,
        encoder="dinov2",
        real=partial(real_vendi, "dinov2"),
        note=in_pairs,
    ),
)
