"""What is on while training and off for pictures: the method's own noise, and the network's dropout.

Knows a network as its dropout layers, and a method as something to be switched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fewbayes.methods import Method
from fewbayes.models import Family
from fewbayes.seeds import stream_seed


def dropout_layers(module: nn.Module) -> list[nn.Dropout]:
    """The network's own, where they are asked for before a method brings others."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Dropout)]


class Mode:
    """What is on while training and off for pictures: the method's own noise, and the network's dropout."""

    def __init__(self, method: Method, family: Family, layers: Sequence[nn.Dropout], dropout: float):
        self._method, self._family, self._layers, self._dropout = method, family, layers, dropout

    @contextmanager
    def training(self) -> Iterator[None]:
        """On inside; outside the layers are as they were before."""
        before = [(layer, layer.p, layer.training) for layer in self._layers]
        for layer in self._layers if self._dropout else ():
            layer.p = self._dropout
        try:
            self._switch(True)
            yield
        finally:
            self._switch(False)
            for layer, share, training in before:
                layer.p = share
                layer.train(training)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Off inside `training`, for pictures and exports."""
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    def _switch(self, on: bool) -> None:
        self._method.training(self._family, on)
        for layer in self._layers:
            layer.train(on and self._dropout > 0)


@contextmanager
def dropout_draws(seed: int, step: int, row: int, device: torch.device) -> Iterator[None]:
    """Whatever a forward pass draws from torch's own generators is a function of (seed, step, first row) inside."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, "dropout", step, row))
        yield
