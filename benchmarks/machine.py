"""What a benchmark says of the machine that it ran on, and small things that several of them measure with."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "fewbayes")


def environment(device: str = "cpu") -> dict[str, object]:
    """Hardware, versions and commit, for the JSON file of a result."""

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return found.stdout.strip() if found.returncode == 0 else "unknown"

    return {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "versions": {name: installed(name) for name in PACKAGES}
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


def resident_bytes(field: str = "VmRSS") -> int:
    """Of this process's own address space; "VmHWM": its peak. getrusage's begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def written_bytes() -> int:
    """What this process has passed to write() so far, in files that are gone again too."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and the quarters on both sides."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}
