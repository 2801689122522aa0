"""Where a run took place: versions, commit and hardware. Imports none of the packages that it names."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("fewbayes", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow")


def environment(gpu: str | None = None) -> dict[str, Any]:
    """Versions, commit and hardware for the manifest; the name of the GPU comes from whoever can ask for it."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu,
    }


def version_of(package: str) -> str | None:
    """The installed one; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this package runs from ("+changes" when edited); None when installed otherwise."""
    here = Path(__file__).resolve().parents[1]
    top = _git(here, "rev-parse", "--show-toplevel")
    if top is None or Path(top) / "src" / "fewbayes" != here:
        return None  # some other project's checkout around our installation
    head = _git(here, "rev-parse", "--verify", "HEAD")
    return head + "+changes" if head and _git(here, "status", "--porcelain", "--", ".") else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def now() -> str:
    """The time in UTC to the second, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")
