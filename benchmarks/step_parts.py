"""Where a training step goes, part by part, and what a step takes when it is computed otherwise.

Processor time on the embedded model, full fine-tuning and LoRA: plain, and with learned and fixed deviations, whose
noise is drawn in the step itself here (a spare core draws it ahead in training). Then the same plain step in another
memory layout and in bfloat16, in turns with the usual one; neither has the same bits. And a million deviations of four
kinds: by weight, by weight in bfloat16, by row, fixed.

    python benchmarks/step_parts.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpu
import torch
from gpu import Bench
from machine import environment, spread

RESULT = Path(__file__).parent / "results/step_parts.json"


class Parts:
    """Processor time of functions by name, each without what is timed inside of it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._open: list[float] = []
        self._now: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            self._open.append(0.0)
            began = time.process_time()
            try:
                return function(*arguments, **more)
            finally:
                took, inside = time.process_time() - began, self._open.pop()
                self._now[name] += took - inside
                if self._open:
                    self._open[-1] += took

        return wrapped

    def end_step(self) -> None:
        self.steps.append(dict(self._now))
        self._now.clear()

    def medians(self) -> dict[str, float]:
        names = dict.fromkeys(name for step in self.steps for name in step)
        return {name: 1e3 * statistics.median(step.get(name, 0.0) for step in self.steps) for name in names}


@contextmanager
def watched(bench: Bench, parts: Parts) -> Iterator[None]:
    """The parts of a step of this bench are timed inside."""
    places: list[tuple[Any, str, str]] = [
        (bench.family, "predict", "forward"),
        (torch.Tensor, "backward", "backward"),
        (gpu, "clip_gradients", "clipping"),
        (bench.optimizer, "step", "AdamW"),
        (bench.optimizer, "zero_grad", "AdamW"),
    ]
    if bench.posterior is not None:
        places += [
            (bench.posterior._noise, "draw", "noise"),
            (bench.posterior, "_draw", "mu + weight_std * noise"),
            (bench.posterior, "_swap", "swapping"),
            (bench.posterior, "_add_std_gradient", "gradient of the deviations"),
        ]
    if bench.std_optimizer is not None:
        places += [(bench.std_optimizer, name, "AdamW of the deviations") for name in ("step", "zero_grad")]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, part in places:
        setattr(owner, name, parts.timed(part, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def parts_of(bench: Bench, steps: int) -> dict[str, float]:
    parts = Parts()
    if bench.posterior is not None and bench.posterior._noise._worker is not None:
        bench.posterior._noise._worker.shutdown()
        bench.posterior._noise._worker = None
    with watched(bench, parts):
        whole = parts.timed("the rest", bench.step)
        for number in range(steps + 2):
            whole(number, bench.posterior is not None)
            parts.end_step()
    del parts.steps[:2]
    found = parts.medians()
    return found | {"all": sum(found.values())}


def otherwise(bench: Bench, turns: int) -> dict[str, Any]:
    """Plain steps computed in other ways, as multiples of the usual step beside each."""

    @contextmanager
    def channels_last() -> Iterator[None]:
        inputs = bench.inputs
        bench.family.denoiser.to(memory_format=torch.channels_last)
        bench.inputs = inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:]
        yield
        bench.inputs = inputs
        bench.family.denoiser.to(memory_format=torch.contiguous_format)

    @contextmanager
    def bfloat16() -> Iterator[None]:
        bench.autocast = torch.bfloat16
        yield
        bench.autocast = None

    found = {}
    for way in (channels_last, bfloat16):
        ratios = []
        for turn in range(turns):
            usual = bench.seconds(False, turn)
            with way():
                ratios.append(bench.seconds(False, turn) / usual)
        found[way.__name__] = spread(ratios)
    return found


def deviations(turns: int = 15, rows: int = 1000, columns: int = 1000) -> dict[str, dict[str, float]]:
    """What deviations cost for a million random weights in one matrix, by their kind; its noise is there already."""
    shape = (rows, columns)
    mean, eps, gradient, theta = *(torch.randn(shape) for _ in range(3)), torch.empty(shape)
    kinds = {
        "learned": torch.full(shape, 0.01),
        "learned in bfloat16": torch.full(shape, 0.01, dtype=torch.bfloat16),
        "learned by rows": torch.full((rows, 1), 0.01),
        "fixed": None,
    }

    def ways(std: Any) -> dict[str, Callable[[], Any]]:
        if std is None:
            return {"a draw": lambda: torch.add(mean, eps, alpha=0.01, out=theta)}
        parameter = torch.nn.Parameter(std)
        optimizer = torch.optim.AdamW([parameter], lr=1e-6, fused=True)

        def add_gradient() -> None:
            parameter.grad = (gradient * eps).sum_to_size(std.shape).to(std.dtype)

        def draw() -> None:
            with torch.no_grad():
                torch.addcmul(mean, parameter, eps, out=theta)

        return {"a draw": draw, "its gradient": add_gradient, "AdamW": optimizer.step}

    made, found = {kind: ways(std) for kind, std in kinds.items()}, defaultdict(lambda: defaultdict(list))
    for _ in range(turns):
        for kind, parts in made.items():
            for part, call in parts.items():
                began = time.process_time()
                call()
                found[kind][part].append(1e3 * (time.process_time() - began))
    return {kind: {part: statistics.median(times) for part, times in parts.items()} for kind, parts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"settings": vars(args), **environment(), "deviations": deviations()}
    for method in ("full", "lora"):
        bench = Bench(Namespace(dry=True, device="cpu", resolution=64, batch_size=1, steps=4), method)
        result[method] = {}
        for learn in (None, "elementwise", "fixed"):
            bench.become(learn)
            result[method][learn or "plain"] = parts_of(bench, args.steps)
            print(method, learn, result[method][learn or "plain"], flush=True)
        if method == "full":
            bench.become(None)
            result["otherwise"] = otherwise(bench, args.turns)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(result["otherwise"])


if __name__ == "__main__":
    main()
