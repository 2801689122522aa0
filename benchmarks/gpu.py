"""What only a GPU can tell, in ten minutes at most: one JSON, no network, no weights but random ones.

    sh benchmarks/gpu.sh                 # on a machine with a GPU
    sh benchmarks/gpu.sh --dry           # every part on this CPU with the embedded model: does it run to its end?

Parts, by what they are worth. One that fails is told and the others go on; what the time does not allow is left out.
    steps       Bayesian steps as multiples of plain ones, in time and in peak memory: full, LoRA, OFT; deviations
                learned elementwise, by row, fixed; the same network with and without its posterior, in turns
    estimate    the memory that `fewbayes train` would have refused by, against what a step took
    precision   a plain step in float32 and in bfloat16
    compile     the denoiser compiled: graphs, seconds to compile, a step with swapped weights
    noise       drawing the weights' noise alone, and whether it repeats
    trainings   the embedded model: two equal runs and a resumed one, bit for bit or not
    processes   two processes, where there are two GPUs: their losses are those of one with twice the batch
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from counts import MODELS, card_of
from machine import environment, resident_bytes, spread
from torch import nn

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.methods import make_method
from fewbayes.models import Family, inspect_model, meta_family
from fewbayes.posterior.gaussian import GaussianPosterior
from fewbayes.posterior.noise import WeightNoise
from fewbayes.settings.config import TrainConfig
from fewbayes.training import memory
from fewbayes.training.optimize import clip_gradients

METHODS = {"full": {}, "lora": {"rank": 4}, "oft": {"oft_blocks": 4}}
LEARN = ("elementwise", "row", "fixed")
PATHS = {"model": "-", "instance_data_dir": "-", "instance_prompt": "<v>", "output_dir": "-"}


class Bench:
    """A model of random weights on the device, a method in it, and training steps of it."""

    def __init__(self, args: argparse.Namespace, method: str, **settings: Any):
        self.device, self.args = args.device, args
        self.clock = time.perf_counter if self.device == "cuda" else time.process_time
        more = {"bayes": True, "weight_std": 0.01, "resolution": args.resolution, **METHODS[method], **settings}
        self.config = TrainConfig(**PATHS, method=method, **more)
        self.card = inspect_model("tiny") if args.dry else card_of(args.model)
        self.before = self.held()
        self.family: Family = random_family(self.card, self.device)
        self.method = make_method(self.config)
        self.method.attach(self.family)
        for weight in self.method.trainable(self.family).values():
            weight.data = weight.data.to(self.device)
        self.method.training(self.family, True)
        self.weights = list(self.method.trainable(self.family).values())
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-6, fused=True)
        self.posterior: GaussianPosterior | None = None
        self.std_optimizer: torch.optim.Optimizer | None = None
        with torch.no_grad():
            xt, t, cond = self.family.example_batch(args.batch_size, args.resolution, encode=False)
            self.inputs = (
                torch.randn(xt.shape, device=self.device),
                t.to(self.device),
                Conditioning(**{name: torch.randn(value.shape, device=self.device) for name, value in cond.items()}),
            )
        self.autocast: torch.dtype | None = torch.bfloat16 if args.device == "cuda" else None

    def become(self, learn: str | None) -> None:
        """Bayesian in this way, or plain."""
        self.posterior = self.std_optimizer = None
        if learn is not None:
            module, where = self.method.random(self.family)
            self.posterior = GaussianPosterior(module, where=where, learn=learn, track_prior=False)  # pyright: ignore
            if stds := self.posterior.std_parameters():
                self.std_optimizer = torch.optim.AdamW(stds, lr=1e-6, fused=True)

    def step(self, number: int, bayes: bool) -> None:
        posterior = self.posterior if bayes else None
        with posterior.sample(number) if posterior else contextlib.nullcontext():
            with torch.autocast(self.device, self.autocast, enabled=self.autocast is not None):
                answer = self.family.predict(*self.inputs)
            answer.float().square().mean().backward()
        stds = posterior.std_parameters() if posterior else []
        clip_gradients([*self.weights, *stds], 1.0)
        for optimizer in (self.optimizer, self.std_optimizer if bayes else None):
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def held(self) -> int:
        return torch.cuda.memory_allocated() if self.device == "cuda" else resident_bytes()

    def peak(self, bayes: bool, steps: int = 3) -> int:
        """Bytes that training steps take, the model among them; on a CPU the most since the process began."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for number in range(steps):
            self.step(number, bayes)
        return (torch.cuda.max_memory_allocated() if self.device == "cuda" else resident_bytes("VmHWM")) - self.before

    def seconds(self, bayes: bool, start: int) -> float:
        """The median of a turn, whose first step is not counted."""
        times = []
        for number in range(start, start + 1 + self.args.steps):
            began = self.clock()
            self.step(number, bayes)
            times.append(self.clock() - began)
        return statistics.median(times[1:])


def random_family(card: Any, device: str) -> Family:
    family = meta_family(card)
    torch.manual_seed(0)
    for module in family.modules.values():
        module.to_empty(device=device)
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = torch.randn(tensor.shape, device=device).mul_(0.02) if tensor.is_floating_point() else tensor
    for module in family.denoiser.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
            nn.init.ones_(module.weight)
    family.process = family.process.to(device)
    return family


def steps(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method in METHODS:
        bench = Bench(args, method)
        plain = bench.peak(False)
        rows: dict[str, Any] = {"plain_bytes": plain}
        if method == "full":
            found["estimate"] = estimated(bench, plain)
        for learn in LEARN:
            bench.become(learn)
            assert bench.posterior is not None
            peak = bench.peak(True)
            turns = []
            for turn in range(args.turns):
                order = (False, True) if turn % 2 else (True, False)
                turns.append({bayes: bench.seconds(bayes, turn * args.steps) for bayes in order})
            rows[learn] = {
                "num_random": bench.posterior.num_random,
                "plain_ms": spread([1e3 * turn[False] for turn in turns]),
                "ms": spread([1e3 * turn[True] for turn in turns]),
                "time_ratio": spread([turn[True] / turn[False] for turn in turns]),
                "memory_ratio": peak / plain if args.device == "cuda" else None,  # a CPU's peak cannot be reset
            }
        found[method] = rows
        del bench
        if args.device == "cuda":
            torch.cuda.empty_cache()
    return found


def estimated(bench: Bench, took: int) -> dict[str, float]:
    settings = {name: getattr(bench.config, name) for name in ("method", "resolution")}
    precision = "bf16" if bench.autocast else "no"
    need = memory.estimate(bench.card, TrainConfig(**PATHS, **settings, mixed_precision=precision))  # pyright: ignore
    return {"estimated_bytes": need.peak, "took_bytes": took, "share": need.peak / took}


def precision(args: argparse.Namespace) -> dict[str, Any]:
    bench, found = Bench(args, "full"), {}
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        bench.autocast = dtype
        found[name] = {"ms": 1e3 * bench.seconds(False, 0), "bytes": bench.peak(False)}
    return found


def compiled(args: argparse.Namespace) -> dict[str, Any]:
    """In the order of a training: plain steps of eager, then the first compiled one, then more with other weights."""
    from torch._dynamo.utils import counters

    bench = Bench(args, "full")
    bench.become("fixed")
    eager = bench.seconds(True, 0)
    call: Any = bench.family.denoiser._call_impl
    torch._dynamo.reset()
    counters.clear()
    bench.family.denoiser._compiled_call_impl = torch.compile(call, backend=args.backend, dynamic=False)
    began = time.perf_counter()
    bench.step(100, True)
    first, graphs = time.perf_counter() - began, counters["stats"]["unique_graphs"]
    later = bench.seconds(True, 101)
    return {
        "eager_ms": 1e3 * eager,
        "compiled_ms": 1e3 * later,
        "first_step_s": first,
        "graphs": graphs,
        "graphs_after_more_draws": counters["stats"]["unique_graphs"],
    }


def noise(args: argparse.Namespace) -> dict[str, Any]:
    """Of the 198 million weights that the paper's code draws in SD 1.5; on a CPU a hundredth of them."""
    sizes = [2014 * 512] * (192 if args.device == "cuda" else 2)
    made = WeightNoise(0, [f"weight{i}" for i in range(len(sizes))], sizes, torch.device(args.device))
    times = []
    for number in range(12):
        began = time.perf_counter()
        made.draw(number)
        if args.device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    first = made.draw(3).clone()
    made.draw(4)
    return {"count": made.count, "ms": statistics.median(times[2:]), "repeats": torch.equal(made.draw(3), first)}


def trained(folder: Path, name: str, step_count: int, launcher: tuple[str, ...] = (), **settings: Any) -> list[float]:
    """Losses of a training of the embedded model in a process of its own, as users start it."""
    words = {"model": "tiny", "instance_data_dir": folder / "pictures", "instance_prompt": "a photo of a <v> fish"}
    words |= {"output_dir": folder / name, "max_train_steps": step_count, "learning_rate": 1e-4} | settings
    flags = [text for key, value in words.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, *launcher, "-m", "fewbayes", "train", "--bayes", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if ended.returncode:
        raise RuntimeError(ended.stderr[-1500:])
    rows = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    return [row["value"] for row in rows if row["metric"] == "loss"]


def trainings(args: argparse.Namespace) -> dict[str, Any]:
    count = 4 if args.dry else 20
    with tempfile.TemporaryDirectory() as temporary:
        folder = _with_pictures(temporary)
        first, second = trained(folder, "first", count), trained(folder, "second", count)
        trained(folder, "resumed", count // 2)
        resumed = trained(folder, "resumed", count)
    return {"steps": count, "equal": first == second, "resumed_equal": resumed == first}


def processes(args: argparse.Namespace) -> dict[str, Any]:
    if args.device == "cuda" and torch.cuda.device_count() < 2:
        return {"left_out": "one GPU"}
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    count = 2 if args.dry else 20
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    with tempfile.TemporaryDirectory() as temporary:
        folder = _with_pictures(temporary)
        two = trained(folder, "two", count, launcher)
        one = trained(folder, "one", count, train_batch_size=2)
    return {"steps": count, "largest_difference": max(abs(a - b) / abs(b) for a, b in zip(two, one, strict=True))}


def _with_pictures(folder: str) -> Path:
    from peers import photographs

    photographs(Path(folder) / "pictures", 64)
    return Path(folder)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "steps": steps,
    "noise": noise,
    "compile": compiled,
    "precision": precision,
    "trainings": trainings,
    "processes": processes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="on this CPU, with the embedded model and few steps")
    parser.add_argument("--model", choices=MODELS, default="sd15")
    parser.add_argument("--resolution", type=int, help="usually the model's own")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="steps a turn")
    parser.add_argument("--minutes", type=float, default=10, help="no part begins in the last quarter of them")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    args = parser.parse_args()
    args.device, args.backend = ("cpu", "aot_eager") if args.dry else ("cuda", "inductor")
    if args.dry:
        args.turns = args.steps = 2
    elif not torch.cuda.is_available():
        parser.error("no GPU is here; --dry runs every part on the CPU")
    args.resolution = args.resolution or (64 if args.dry else MODELS[args.model][2])
    began, found = time.monotonic(), {}
    for name in args.parts:
        if time.monotonic() - began > 45 * args.minutes:
            found[name] = {"left_out": "no time"}
            continue
        start = time.monotonic()
        try:
            found[name] = PARTS[name](args)
        except Exception:
            found[name] = {"failed": traceback.format_exc()}
        found[name]["seconds"] = round(time.monotonic() - start, 1)
        print(json.dumps({name: found[name]}, indent=2), flush=True)
        settings = {key: value for key, value in vars(args).items() if key != "output"}
        result = {"settings": settings, **environment(args.device), "results": found}
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    failed = [name for name, part in found.items() if "failed" in part]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; the rest is in {args.output}")


if __name__ == "__main__":
    main()
