"""What drawing the weights' noise costs, alone.

On a CPU: `normal` for the 1.87 million random weights of the tiny model. On CUDA, for the 198 million of Stable
Diffusion 1.5. Medians of whole draws. Writes one JSON.

    python benchmarks/weight_noise.py --output weight_noise.json
    python benchmarks/weight_noise.py --device cuda
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fewbayes.posterior.noise import WeightNoise, normal

TINY_WEIGHTS = 1_870_000
SD15_SIZES = {f"weight{i}": 2014 * 512 for i in range(192)}


def median_ms(draw: Callable[[int], object], device: torch.device, repeats: int) -> float:
    """Wall time of a draw with nothing else on the device; the first two are not counted."""
    times = []
    for step in range(repeats + 2):
        start = time.perf_counter()
        draw(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def on_cpu(device: torch.device, repeats: int) -> dict[str, object]:
    milliseconds = median_ms(lambda step: normal(0, step, "weight", (TINY_WEIGHTS,)), device, repeats)
    return {"num_random": TINY_WEIGHTS, "normal_ms": milliseconds}


def on_cuda(device: torch.device, repeats: int) -> dict[str, object]:
    noise = WeightNoise(0, list(SD15_SIZES), list(SD15_SIZES.values()), device)
    return {"num_random": noise.count, "weight_noise_ms": median_ms(noise.draw, device, repeats)}


def environment(device: torch.device) -> dict[str, object]:
    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return found.stdout.strip() if found.returncode == 0 else "unknown"

    return {
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": {name: installed(name) for name in ("torch", "numpy", "fewbayes")}
        | {"python": platform.python_version(), "cuda": torch.version.cuda},
        "commit": git("rev-parse", "HEAD"),
        "changed_files": len(git("status", "--porcelain").splitlines()),
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("weight_noise.json"))
    args = parser.parse_args()
    device = torch.device(args.device, torch.cuda.current_device() if args.device == "cuda" else None)
    with torch.inference_mode():
        row = (on_cuda if args.device == "cuda" else on_cpu)(device, args.repeats)
    report = json.dumps({"repeats": args.repeats, **environment(device), "results": row}, indent=2)
    print(report)
    args.output.write_text(report + "\n")


if __name__ == "__main__":
    main()
