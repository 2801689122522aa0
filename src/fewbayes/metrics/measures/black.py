"""The share of black pictures: a safety filter's, or a model that makes no numbers any more."""

from __future__ import annotations

from fewbayes.metrics.cases import Case, Samples, some
from fewbayes.metrics.registry import Metric, register
from fewbayes.metrics.scores import Mean


def black(case: Case, samples: Samples) -> Mean:
    dark = case.counts["samples"].black
    everything = case.visible + dark
    some(range(everything), "readable")
    return Mean(dark / everything, everything)


register(
    Metric(
        "black",
        "Black",
        "share of pictures that are black; they are counted, and not scored",
        black,
        better=-1,
        place=("beside", 11),
        of_base=False,
    )
)
