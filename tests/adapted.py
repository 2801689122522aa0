"""What the tests of adapters share: a prediction of the small family, and weights moved as training would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fewbayes.methods import make_method

XT = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([100, 900])
PROMPTS = ["a photo of <v> dog", "a photo of"]


@contextmanager
def attaching(method: str, family, settings) -> Iterator[Callable]:
    """Gives attach(rank=2, ...), which puts adapters into the shared family; they are taken out at the end."""
    methods = []

    def attach(**changes):
        methods.append(make_method(settings(method=method, rare_token="<v>", **changes)))
        methods[-1].attach(family)
        return methods[-1]

    try:
        yield attach
    finally:
        for attached in methods:
            attached.detach(family)


@torch.no_grad()
def prediction(family):
    return family.predict(XT, T, family.encode_prompts(PROMPTS))


@torch.no_grad()
def trained(method, family, seed: int = 1, by: float = 0.1) -> None:
    """As if training had moved every weight."""
    random = torch.Generator().manual_seed(seed)
    for weight in method.trainable(family).values():
        weight += by * torch.randn(weight.shape, generator=random)
