"""Losses and norms of a training: logged when someone looks, refused where they are not finite.

They stay on the device until then, because each look waits for it. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from fewbayes.runs.folder import RunFolder
from fewbayes.training.processes import mean_over_processes

SKIPPED_STEPS_ALLOWED = 25  # consecutive overflows that float16's loss scale may take to settle


class NonFiniteError(ArithmeticError):
    """A loss or gradient that is not a finite number; the message names the step and the images."""


class Watch:
    """Holds losses and norms on the device until someone looks, then logs them and refuses what is not finite."""

    def __init__(self, run: RunFolder, accelerator: Accelerator, names: Sequence[str]):
        self._run, self._accelerator, self._names = run, accelerator, names
        self._pending: list[tuple[int, Tensor, Tensor, float | None, list[int]]] = []
        self._overflows = 0
        self._sum = self._share = 0.0

    @property
    def smooth_loss(self) -> float | None:
        """The losses so far, weighted by 0.95 to the power of their age; the first counts no more than others."""
        return self._sum / self._share if self._share else None

    def add(self, done: int, loss: Tensor, norm: Tensor, rate: float | None, indices: list[int]) -> None:
        self._pending.append((done, loss, norm, rate, indices))

    def look(self) -> None:
        pending, self._pending = self._pending, []
        losses = mean_over_processes(self._accelerator, torch.stack([loss for _, loss, *_ in pending])).tolist()
        norms = torch.stack([norm for _, _, norm, *_ in pending]).tolist()
        for (done, _, _, rate, indices), loss, norm in zip(pending, losses, norms, strict=True):
            if self._accelerator.is_main_process:
                self._log(done, loss, norm, rate)
            self._check(done, loss, norm, indices)
            self._sum, self._share = 0.95 * self._sum + 0.05 * loss, 0.95 * self._share + 0.05

    def _log(self, done: int, loss: float, norm: float, rate: float | None) -> None:
        self._run.log(done, "loss", loss, weights="raw")
        self._run.log(done, "grad_norm", norm, weights="raw")
        if rate is not None:
            self._run.log(done, "lr", rate, weights="raw")

    def _check(self, done: int, loss: float, norm: float, indices: list[int]) -> None:
        overflowed = not math.isfinite(norm)
        if math.isfinite(loss) and overflowed and self._accelerator.scaler is not None:
            self._overflows += 1  # float16: the step is skipped and the scale lowered
            if self._overflows <= SKIPPED_STEPS_ALLOWED:
                return
        elif math.isfinite(loss) and not overflowed:
            self._overflows = 0
            return
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        names = ", ".join(self._names[i] for i in indices)
        raise NonFiniteError(
            f"step {done}: {what} (images: {names}); the run has stopped and its checkpoints are as they were. "
            "A lower learning_rate, or mixed_precision no, is the usual cure"
        )
