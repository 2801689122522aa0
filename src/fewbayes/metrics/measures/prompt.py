"""Clip-T: how well a picture suits its prompt, with the rare token and without."""

from __future__ import annotations

from collections.abc import Callable

from fewbayes.metrics import paper, scores
from fewbayes.metrics.cases import Case, Pooled, Samples, no_token, prompts_of
from fewbayes.metrics.registry import Metric, register
from fewbayes.metrics.scores import Mean, Unavailable


def _against(case: Case, samples: Samples, words: Callable[[str], str]) -> Mean:
    features = case.features("clip", samples)
    texts = case.store.texts("clip", [words(prompt) for prompt in prompts_of(samples)])
    return Mean.over(scores.prompt_scores(features, texts))


def clip_t(case: Case, samples: Samples) -> Mean:
    return _against(case, samples, str)


def clip_t_class(case: Case, samples: Samples) -> Mean:
    token = case.rare_token
    known = [sample.prompt for sample in samples if sample.prompt]
    if known and not any(scores.has_token(prompt, token) for prompt in known):
        raise Unavailable(no_token(token))
    return _against(case, samples, lambda prompt: scores.without_token(prompt, token))


def paper_clip_t(pooled: Pooled) -> Mean:
    prompts = prompts_of(pooled.samples)
    features = pooled.features("clip")
    return paper.clip_t(features, pooled.store.texts("clip", prompts), pooled.folders, pooled.black(pooled.samples))


register(
    Metric(
        "clip_t",
        "Clip-T",
        "cosine of the picture and its prompt",
        clip_t,
        better=1,
        place=("paper", 1),
        encoder="clip",
        paper=paper_clip_t,
    ),
    Metric(
        "clip_t_class",
        "Clip-T, no token",
        "Clip-T with the rare token left out of the prompt",
        clip_t_class,
        better=1,
        place=("beside", 1),
        encoder="clip",
    ),
)
