"""What a Bayesian training step costs beside a plain one, for each method.

Two U-Nets of one shape and random weights with the same method, one plain, one with a posterior, take turns of a few
whole training steps (forward, backward, clipping, optimiser) in one process. Medians, and the ratio of neighbouring
turns, so that a busy machine slows both arms alike. Peak memory is measured in processes of their own. Writes one JSON,
by default results/bayes_step_<method>_<size>_<device>.json beside this file.

    python benchmarks/bayes_step.py --method lora
    python benchmarks/bayes_step.py --method full --size sd15 --device cuda --mixed-precision bf16
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from fewbayes.methods import make_method
from fewbayes.models.unet_clip import StableDiffusion
from fewbayes.posterior.gaussian import GaussianPosterior
from fewbayes.settings.config import TrainConfig

SIZES = {
    "tiny": {
        "sample_size": 16,
        "in_channels": 8,
        "out_channels": 8,
        "block_out_channels": (64, 96, 128),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 128,
        # the width of a head, not their number: the library's name for it is historical
        "attention_head_dim": 32,
    },
    "sd15": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
}
TOKENS = 77
RESULTS = Path(__file__).parent / "results"
METHODS = ("full", "lora", "oft")
ARMS = ("plain", "elementwise", "row", "fixed")
Step = Callable[[int], None]


def make_step(arm: str, args: argparse.Namespace) -> tuple[Step, int]:
    """One arm's training step as a function of the step number, and its count of random weights."""
    torch.manual_seed(0)
    config = SIZES[args.size]
    with torch.device(args.device):
        unet = UNet2DConditionModel(**config)
        shape = (args.batch_size, config["in_channels"], config["sample_size"], config["sample_size"])
        latents, target = torch.randn(shape), torch.randn(shape)
        prompt = torch.randn(args.batch_size, TOKENS, config["cross_attention_dim"])
        times = torch.randint(0, 1000, (args.batch_size,))
    kind = StableDiffusion  # as much of a family as methods ask for
    network = SimpleNamespace(
        denoiser=unet, text_encoders={}, layer_groups=kind.layer_groups, adapter_targets=kind.adapter_targets
    )
    paths = {"model": "-", "instance_data_dir": "-", "instance_prompt": "<v>", "output_dir": "-"}
    chosen = {"bayes": True, "where": args.where} if arm != "plain" and args.method == "full" else {}
    method = make_method(TrainConfig(**paths, method=args.method, **chosen))
    method.attach(network)
    method.training(network, True)
    posterior = None
    if arm != "plain":
        module, where = method.random(network)
        posterior = GaussianPosterior(module, where=where, learn=arm, track_prior=False)
    weights = list(method.trainable(network).values())
    parameters = [*weights, *(posterior.std_parameters() if posterior else [])]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.mixed_precision)

    def step(number: int) -> None:
        with posterior.sample(number) if posterior else contextlib.nullcontext():
            with torch.autocast(args.device, autocast, enabled=autocast is not None):
                prediction = unet(latents, times, prompt).sample
            nn.functional.mse_loss(prediction.float(), target).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if args.device == "cuda":
            torch.cuda.synchronize()

    return step, posterior.num_random if posterior else 0


def measure_time(arm: str, args: argparse.Namespace) -> dict[str, float]:
    """Medians over steps; the arms take turns of several steps, the first of which is not counted (cold caches)."""
    (plain, _), (bayes, num_random) = make_step("plain", args), make_step(arm, args)
    plain_turns, bayes_turns = [], []
    for turn in range(1 + args.turns):
        for step, turns in (plain, plain_turns), (bayes, bayes_turns):
            times = []
            for number in range(turn * args.steps, (turn + 1) * args.steps):
                start = time.perf_counter()
                step(number)
                times.append(time.perf_counter() - start)
            turns.append(times[1:])
    plain_turns, bayes_turns = plain_turns[1:], bayes_turns[1:]
    medians = [(statistics.median(p), statistics.median(b)) for p, b in zip(plain_turns, bayes_turns, strict=True)]
    return {
        "plain_ms": 1e3 * statistics.median(p for p, _ in medians),
        "bayes_ms": 1e3 * statistics.median(b for _, b in medians),
        "time_ratio": statistics.median(b / p for p, b in medians),
        "time_ratio_of_fastest": min(map(min, bayes_turns)) / min(map(min, plain_turns)),
        "num_random": num_random,
    }


def measure_memory(arm: str, args: argparse.Namespace) -> float:
    """Peak bytes of this process while it trains: on the device, or above what it held before the U-Net was made."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = resident_bytes()
    step, _ = make_step(arm, args)
    for number in range(5):
        step(number)
    return float(torch.cuda.max_memory_allocated()) if args.device == "cuda" else resident_bytes("VmHWM") - before


def resident_bytes(field: str = "VmRSS") -> float:
    """Of this process's own address space: the peak that getrusage tells begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def memory_elsewhere(arm: str) -> float:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", arm]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def environment(args: argparse.Namespace) -> dict[str, object]:
    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return found.stdout.strip() if found.returncode == 0 else "unknown"

    return {
        "hardware": torch.cuda.get_device_name() if args.device == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft", "numpy", "fewbayes")}
        | {"python": platform.python_version()},
        "commit": git("rev-parse", "HEAD"),
        "changed_files": len(git("status", "--porcelain").splitlines()),
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="full")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--where", default="linear", help="of method full")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=6, help="steps a turn")
    parser.add_argument("--output", type=Path, help="the JSON file")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(measure_memory(args.memory_of, args))
        return
    args.output = args.output or RESULTS / f"bayes_step_{args.method}_{args.size}_{args.device}.json"
    plain_bytes = memory_elsewhere("plain")
    rows = {}
    for arm in ARMS[1:]:
        peak = memory_elsewhere(arm)
        rows[arm] = measure_time(arm, args) | {
            "plain_bytes": plain_bytes,
            "bayes_bytes": peak,
            "memory_ratio": peak / plain_bytes,
        }
        print(arm, {key: round(value, 3) for key, value in rows[arm].items()}, flush=True)
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    args.output.write_text(json.dumps({"settings": settings, **environment(args), "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
