"""Likeness to the subject: Clip-I, Dino and DINOv2 over all pairs and with the likest reference, and what leaks."""

from __future__ import annotations

from functools import partial

from fewbayes.metrics import paper, scores
from fewbayes.metrics.cases import NO_CLASS, Case, Pooled, Samples
from fewbayes.metrics.registry import Metric, register
from fewbayes.metrics.scores import Mean, Unavailable


def all_pairs(key: str, case: Case, samples: Samples) -> Mean:
    found = case.likeness(key, samples)
    return Mean(found.mean, found.pairs, each=found.per_sample)


def nearest(key: str, case: Case, samples: Samples) -> Mean:
    """With the likest reference of each picture."""
    found = case.likeness(key, samples)
    return Mean(found.nearest, len(samples), each=found.per_sample_nearest, nearest=found.nearest_reference)


def real_pairs(key: str, case: Case) -> Mean:
    found = scores.real_fidelity(case.of_references(key))
    return Mean(found.mean, found.pairs)


def real_nearest(key: str, case: Case) -> Mean:
    return Mean(scores.real_fidelity(case.of_references(key)).nearest, len(case.references))


def preservation(case: Case, samples: Samples) -> Mean:
    """Of pictures of the class prompt, which ask for no subject."""
    case.check_told()
    if not case.in_class:
        raise Unavailable(NO_CLASS)
    found = case.likeness("dino", case.in_class)
    return Mean(found.mean, found.pairs)


def _metric(name: str, title: str, says: str, key: str, **more) -> Metric:
    compute, real = partial(all_pairs, key), partial(real_pairs, key)
    return Metric(name, title, says, compute, real=real, encoder=key, better=1, ceiling=True, **more)


def _nearest(name: str, title: str, key: str, **more) -> Metric:
    says = f"{title.partition(',')[0]} with the likest training image alone"
    compute, real = partial(nearest, key), partial(real_nearest, key)
    return Metric(name, title, says, compute, real=real, encoder=key, ceiling=True, **more)


def _in_paper(key: str, column: int) -> dict:
    def pairs(pooled: Pooled) -> Mean:
        features = pooled.features(key)
        return paper.fidelity(features, pooled.of_references(key), pooled.folders, pooled.black(pooled.samples))

    def real(pooled: Pooled) -> Mean:
        return paper.real_fidelity(pooled.of_references(key))

    return {"place": ("paper", column), "paper": pairs, "paper_real": real}


register(
    _metric(
        "dino",
        "Dino",
        "cosine of sample and training image, all pairs, by a self-supervised encoder",
        "dino",
        **_in_paper("dino", 2),
    ),
    _metric("clip_i", "Clip-I", "as Dino, by the image half of Clip-T's model", "clip", **_in_paper("clip", 3)),
    _metric("dinov2", "DINOv2", "as Dino, by its successor", "dinov2", place=("beside", 2)),
    _nearest("dino_nearest", "Dino, nearest", "dino", place=("beside", 3)),
    _nearest("clip_i_nearest", "Clip-I, nearest", "clip"),
    _nearest("dinov2_nearest", "DINOv2, nearest", "dinov2"),
    Metric(
        "pres",
        "Leak",
        "Dino of pictures whose prompts lack the rare token: the subject where none was asked",
        preservation,
        better=-1,
        place=("beside", 10),
        encoder="dino",
        of_base=False,
    ),
)
