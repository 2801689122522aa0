"""Would weight noise of opposite sign in every second step make the deviations' gradient less noisy?

Batches, times and noise as training draws them, at fixed weights. For every pair of steps the sum of both gradients of
the deviations, with fresh noise, with minus the noise of the step before, and with both signs on one batch. The result
and the rule that it was held against are in docs/lab-log.md.

    python benchmarks/antithetic.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import environment, spread
from peers import PICTURES, PROMPT, photographs

from fewbayes.data.images import check_folder, load_images
from fewbayes.diffusion.objective import diffusion_loss
from fewbayes.models import load_family
from fewbayes.posterior.gaussian import GaussianPosterior
from fewbayes.posterior.where import Rule
from fewbayes.training.batches import Pictures

RESULT = Path(__file__).parent / "results/antithetic.json"
ARMS = ("fresh", "minus the step before", "both signs on one batch")


class Point:
    """The model at some weights, and the gradient of the deviations there."""

    def __init__(self, pictures: Pictures, weight_std: float):
        self._pictures, family = pictures, pictures.family
        self._posterior = GaussianPosterior(
            family.denoiser, where=Rule("linear", family.layer_groups), weight_std=weight_std, track_prior=False
        )

    def gradient(self, batch: int, noise: int, sign: int = 1) -> torch.Tensor:
        """Of the batch of one step under the noise of another."""
        (std,) = self._posterior.std_parameters()
        std.grad = None
        self._pictures.family.denoiser.zero_grad()
        with self._posterior.sample(noise, sign):
            draws = self._pictures.draw(0, batch, 1)
            diffusion_loss(self._pictures.family, self._pictures.batch(draws, slice(0, 1))).backward()
        assert std.grad is not None
        return std.grad.clone()

    def sums(self, pair: int) -> dict[str, torch.Tensor]:
        first, second = 2 * pair, 2 * pair + 1
        shared = self.gradient(first, first)
        return {
            "fresh": shared + self.gradient(second, second),
            "minus the step before": shared + self.gradient(second, first, -1),
            "both signs on one batch": shared + self.gradient(first, first, -1),
        }

    def compared(self, pairs: int) -> dict[str, Any]:
        total: dict[str, Any] = dict.fromkeys(ARMS, 0.0)
        squares: dict[str, list[float]] = {arm: [] for arm in ARMS}
        inner: dict[str, list[torch.Tensor]] = {arm: [] for arm in ARMS}
        for pair in range(pairs):
            for arm, value in self.sums(pair).items():
                total[arm] = total[arm] + value
                squares[arm].append(float(value.double().square().sum()))
                inner[arm].append(value)
        found: dict[str, Any] = {}
        left_out = {}
        for arm in ARMS:
            # sum over weights of the variance over pairs, with all pairs and with each of them left out
            crossed = [float((value.double() * total[arm]).sum()) for value in inner[arm]]
            whole = float(total[arm].double().square().sum())
            found[arm] = (sum(squares[arm]) - whole / pairs) / (pairs - 1)
            left_out[arm] = np.array(
                [
                    (sum(squares[arm]) - s - (whole - 2 * c + s) / (pairs - 1)) / (pairs - 2)
                    for s, c in zip(squares[arm], crossed, strict=True)
                ]
            )
        answer = {}
        for arm in ARMS[1:]:
            ratio, others = found[arm] / found["fresh"], left_out[arm] / left_out["fresh"]
            error = float(np.sqrt((pairs - 1) / pairs * np.square(others - others.mean()).sum()))
            answer[arm] = {"multiple": ratio, "low": ratio - 1.96 * error, "high": ratio + 1.96 * error}
        return answer


def times(pictures: Pictures, steps: int) -> dict[str, Any]:
    """Processor time of whole steps of learned deviations, alternating, with a draw a step and one for two."""
    family = pictures.family
    point = Point(pictures, 0.01)
    posterior = point._posterior
    noise = posterior._noise
    if noise._worker is not None:
        noise._worker.shutdown()
        noise._worker = None  # its time would be counted in another step
    parameters = [*family.denoiser.parameters(), *posterior.std_parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)

    def step(number: int, half: bool) -> float:
        began = time.process_time()
        with posterior.sample(number // 2 if half else number, -1 if half and number % 2 else 1):
            diffusion_loss(family, pictures.batch(pictures.draw(0, number, 1), slice(0, 1))).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - began

    pairs = [[sum(step(2 * n + i, half) for i in (0, 1)) / 2 for half in (False, True)] for n in range(steps)][2:]
    return {
        "every step, ms": spread([1e3 * a for a, _ in pairs]),
        "every second, ms": spread([1e3 * b for _, b in pairs]),
        "multiple": spread([b / a for a, b in pairs]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pairs", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    family = load_family(args.model)
    family.denoiser.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), family.card.resolution)
        report = check_folder(folder)
        images = load_images(report.folder, resolution=family.card.resolution, center_crop=True, report=report)
        pictures = Pictures(
            family, [image.pixels for image in images], [PROMPT] * PICTURES, side=family.card.resolution
        )
    found: dict[str, Any] = {"time": times(pictures, 20)}
    for place in ("pretrained", "after 100 steps"):
        if place != "pretrained":
            optimizer = torch.optim.AdamW(family.denoiser.parameters(), lr=3e-4, fused=True)
            for step in range(100):
                family.denoiser.zero_grad()
                diffusion_loss(family, pictures.batch(pictures.draw(1, step, 1), slice(0, 1))).backward()
                optimizer.step()
        for weight_std in (0.01, 0.1):
            found[f"{place}, {weight_std}"] = Point(pictures, weight_std).compared(args.pairs)
            print(place, weight_std, found[f"{place}, {weight_std}"], flush=True)
    result = {"settings": vars(args), **environment(), "results": found}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
