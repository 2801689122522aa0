"""`fewbayes info`: what this machine has for training, as lines: versions, devices, memory, caches, embedded models.

Knows nothing of runs.
"""

from __future__ import annotations

from pathlib import Path

import torch

from fewbayes.files.atomic import size_of
from fewbayes.files.cache import cache_folder
from fewbayes.runs.provenance import environment, version_of
from fewbayes.training.memory import free_memory, shown
from fewbayes.world.pipelines import shipped

OPTIONAL = {
    "bitsandbytes": "--use_8bit_adam",
    "pillow-heif": "photographs of an iPhone (HEIC)",
    "sqlalchemy": "fewbayes study",
    "submitit": "studies on Slurm",
    "ray": "studies on Ray",
}


def info() -> list[str]:
    """Lines for a terminal or a bug report."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = environment()
    versions = found["versions"]
    lines = [f"fewbayes {versions.pop('fewbayes')}, Python {found['python']}, {found['platform']}"]
    lines += [f"  {name} {version}" for name, version in versions.items()]
    lines += [f"  {name} {version_of(name) or 'not installed'}: {use}" for name, use in OPTIONAL.items()]
    lines += [f"cpu: {found['cpu']}, {found['cores']} cores, {_free(torch.device('cpu'))}"]
    for number in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(number).total_memory
        name, device = torch.cuda.get_device_name(number), torch.device("cuda", number)
        lines.append(f"cuda:{number}: {name}, {shown(total)}, {_free(device)}")
    if not torch.cuda.is_available():
        lines.append(
            "no GPU that torch can use" + ("" if torch.version.cuda else " (this torch was built without CUDA)")
        )
    for name, folder in (("models from the hub", Path(HF_HUB_CACHE)), ("class images and features", cache_folder())):
        lines.append(f"{name}: {folder}, {shown(size_of(folder))}")
    return [*lines, f"embedded models: {', '.join(shipped()) or 'none'}"]


def _free(device: torch.device) -> str:
    free = free_memory(device)
    return f"{shown(free)} of memory free" if free is not None else "free memory unknown"
