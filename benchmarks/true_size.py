"""One real step of a Bayesian LoRA at a published size, with random weights, against the estimate of its memory.

The folder with weights (5 GB for SD 3.5 medium without T5) is written, trained on in a process of its own whose
resident memory is read ten times a second, and removed. Refuses where less than 1.3 times the estimate is free. Appends
a row to true_size.json. A minute or two of one core.

    python benchmarks/true_size.py --output benchmarks/results [--model "FLUX.2 klein 4B"] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory_table import CLIP_G, CLIP_L, MODELS, SD35_MEDIUM, VAE, write_shapes
from PIL import Image
from safetensors.torch import save_file

from fewbayes.models import ModelCard, meta_family
from fewbayes.settings.config import TrainConfig
from fewbayes.training.memory import estimate, free_memory

CLIPS = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}
MODELS["SD 3.5 medium"] = ("sd3", {"transformer": SD35_MEDIUM, "vae": VAE, **CLIPS})  # T5 takes no part in a step
FIXTURES = Path(__file__).parents[1] / "tests"
SIDE = 256


def write_model(model: str, folder: Path) -> ModelCard:
    """A pipeline folder of this shape with random weights in bf16 and the tests' tokenizers of single letters."""
    card = write_shapes(model, folder)
    family = meta_family(card)
    for name, module in family.modules.items():
        _write(module, folder / name, family.parts[name].stem)
    sys.path.insert(0, str(FIXTURES))
    import conftest

    for name, kind in family.tokenizer_parts.items():
        if name.replace("tokenizer", "text_encoder") in family.modules:
            if kind == "CLIPTokenizer":
                conftest._tokenizer(folder / name)
            else:
                conftest._chat_tokenizer(folder / name)
    return card


def _write(module: torch.nn.Module, folder: Path, stem: str) -> None:
    """In files of about a gigabyte, as published models lie."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    for key, weight in module.state_dict().items():
        if sum(it.numel() for it in shards[-1].values()) > 5e8:
            shards.append({})
        shards[-1][key] = weight
    where = {}
    for i, shard in enumerate(shards, start=1):
        file = f"{stem}-{i:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else f"{stem}.safetensors"
        save_file({key: _random(key, it) for key, it in shard.items()}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _random(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Matrices of deviation 0.02 from one block of numbers, biases of 0, scales of 1."""
    if weight.dim() < 2:
        value = 0 if name.endswith("bias") else 1
        return torch.full(weight.shape, value, dtype=torch.bfloat16 if weight.is_floating_point() else weight.dtype)
    block = 0.02 * torch.randn(min(weight.numel(), 2**20), generator=torch.Generator().manual_seed(0))
    return block.bfloat16().repeat(-(-weight.numel() // len(block)))[: weight.numel()].view(weight.shape)


def settings(model: Path, photos: Path, output: Path) -> TrainConfig:
    return TrainConfig(
        model=str(model),
        instance_data_dir=str(photos),
        instance_prompt="a photo of a <v> dog",
        output_dir=str(output),
        method="lora",
        rank=16,
        bayes=True,
        weight_std=1e-3,
        base_precision="bf16",
        gradient_checkpointing=True,
        resolution=SIDE,
        max_train_steps=1,
        checkpointing_steps=0,
    )


def step(folder: Path) -> dict[str, Any]:
    """In a process of its own: the most that was resident beyond what the libraries take, and the time."""
    from fewbayes.training.train import train

    base, held, going = _resident(), [0], True

    def watch() -> None:
        while going:
            held.append(_resident() - base)
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.process_time()
    try:
        train(settings(folder / "model", folder / "photos", folder / "run"), progress=False)
    finally:
        going = False
        watcher.join()
    return {"peak": max(held), "cpu_seconds": time.process_time() - begun}


def _resident() -> int:
    """Bytes of this process's own memory and of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--model", choices=list(MODELS), default="SD 3.5 medium")
    parser.add_argument("--folder", type=Path, help="for the weights")
    parser.add_argument("--step", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        print(json.dumps(step(asked.step)))
        return
    folder = Path(tempfile.mkdtemp(dir=asked.folder))
    try:
        card = write_model(asked.model, folder / "model")
        (folder / "photos").mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos/0.png")
        config = settings(folder / "model", folder / "photos", folder / "run")
        need = estimate(card, config.resolve({}, card.resolution, 1))
        free = free_memory(torch.device("cpu")) or 0
        if free < 1.3 * need.peak:
            raise SystemExit(f"{need.peak / 1e9:.1f} GB are needed and {free / 1e9:.1f} free: not tried")
        command = [sys.executable, __file__, "--step", str(folder)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder)
    row = {"model": asked.model, "side": SIDE, "estimate": need.peak, "parts": dict(need.parts), "before": need.before}
    row |= found | {"measured_over_estimate": found["peak"] / need.peak, "torch": torch.__version__}
    print(json.dumps(row, indent=1))
    if asked.output:
        kept = asked.output / "true_size.json"
        rows = json.loads(kept.read_text()) if kept.is_file() else []
        kept.write_text(json.dumps([*rows, row], indent=1) + "\n")


if __name__ == "__main__":
    main()
