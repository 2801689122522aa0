"""An exponential moving average of chosen parameters, for runs of hundreds of steps.

The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that the average forgets the starting point
within a few dozen steps; the constant 0.9999 of the public helpers would hardly move in such a run. While it warms up,
for 440 updates at 0.98 and 890 at 0.99, this is the power average of Karras et al. (arXiv 2312.02696) with exponent 8:
its mean age is a tenth of the run, and `decay` plays no part. The averages are kept in float32. Knows nothing of
diffusion, of files, or of what the parameters belong to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fewbayes.errors import UserError


class WeightAverage:
    """Averages of `parameters` (name to parameter); `update()` after each optimizer step.

    decay: in [0, 1); 0 keeps a copy of the latest weights.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float = 0.99):
        if not 0 <= decay < 1:
            raise UserError(f"ema_decay is {decay}; it must be at least 0 and below 1 (0.99 suits a few hundred steps)")
        self.decay = decay
        self.updates = 0
        self._parameters = dict(parameters)
        self._averages = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        self._swapped = False

    def decay_now(self) -> float:
        """The decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self) -> None:
        """average <- decay * average + (1 - decay) * weight."""
        assert not self._swapped, "update() inside swapped(): the parameters are the averages themselves"
        weights = [p.detach().float() for p in self._parameters.values()]
        averages = list(self._averages.values())
        torch._foreach_lerp_(averages, weights, 1 - self.decay_now())  # pyright: ignore[reportPrivateImportUsage]
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the parameters hold the averages; outside, their own values again, bit for bit."""
        assert not self._swapped, "swapped() does not nest"
        own = {name: p.data for name, p in self._parameters.items()}
        self._swapped = True
        try:
            for name, parameter in self._parameters.items():
                parameter.data = self._averages[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = own[name]
            self._swapped = False

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name, and how many updates they have seen."""
        return {**self._averages, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        assert set(state) == {*self._averages, "updates"}, "these averages are of other parameters"
        self.updates = int(state["updates"])
        for name, average in self._averages.items():
            average.copy_(state[name])
