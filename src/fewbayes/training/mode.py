"""What is on while training and off for pictures: the method's own noise, dropout, the compiled denoiser.

Knows a network as its dropout layers, and a method as something to be switched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fewbayes.methods import Method
from fewbayes.models import Family
from fewbayes.seeds import stream_seed


def dropout_layers(module: nn.Module) -> list[nn.Dropout]:
    """The network's own, where they are asked for before a method brings others."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Dropout)]


BACKEND = "inductor"


class Mode:
    """See the file's first line.

    A compiled denoiser has one graph for all steps: the posterior swaps what the graph reads, outside of it. Pictures
    are drawn in other batches and would need graphs of their own.
    """

    def __init__(
        self, method: Method, family: Family, layers: Sequence[nn.Dropout], dropout: float, compiled: bool = False
    ):
        self._method, self._family, self._layers, self._dropout = method, family, layers, dropout
        call: Any = family.denoiser._call_impl  # what `nn.Module.compile` compiles
        self._compiled = torch.compile(call, backend=BACKEND, dynamic=False) if compiled else None

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
        if self._compiled is not None:
            self._family.denoiser._compiled_call_impl = self._compiled if on else None
        for layer in self._layers:
            layer.train(on and self._dropout > 0)


@contextmanager
def dropout_draws(seed: int, step: int, row: int, device: torch.device) -> Iterator[None]:
    """Whatever a forward pass draws from torch's own generators is a function of (seed, step, first row) inside."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, "dropout", step, row))
        yield
