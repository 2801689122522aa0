"""What the recipes share: pictures on disk, a rate schedule, an averaged copy, and checkpoints that resume.

A recipe is one deterministic loop over steps; batch `k` of a stage is a function of (seed, k) alone, so a run that was
interrupted continues from its last checkpoint as if nothing had happened.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from fewbayes.world.scenes import SIZE, draw_scene, render

HELD_OUT = 10_000_000  # scene seeds from here on are never trained on


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def scene_pictures(folder: Path, count: int, first_seed: int = 0) -> np.ndarray:
    """`count` rendered scenes as a uint8 memory map (count, SIZE, SIZE, 3), drawn once; about 1.3 ms each."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"scenes-{first_seed}-{count}.npy"
    if not path.exists():
        scratch = path.with_suffix(".tmp")
        pictures = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=(count, SIZE, SIZE, 3))
        for i in tqdm(range(count), desc="drawing scenes", mininterval=2):
            pictures[i] = np.round(render(draw_scene(first_seed + i)[0], first_seed + i) * 255)
        pictures.flush()
        os.replace(scratch, path)
    return np.load(path, mmap_mode="r")


def scene_captions(count: int, first_seed: int = 0) -> list[str]:
    return [draw_scene(first_seed + i)[1] for i in range(count)]


def batch_indices(step: int, batch: int, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, step)).integers(0, count, batch)


def to_unit(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def rate(step: int, total: int, peak: float, warm: int = 200) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Training:
    """Modules, their average, their optimizer and the place they are kept; `steps()` yields what is left to do."""

    def __init__(
        self,
        folder: Path,
        modules: dict[str, nn.Module],
        *,
        total: int,
        peak: float,
        ema: float,
        decay: float = 1e-2,
        warm: int = 200,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    ):
        """optimizer: makes one of (parameters, lr). None: AdamW with this decay."""
        self.folder, self.total, self.peak, self.ema_decay, self.warm = folder, total, peak, ema, warm
        self.modules = nn.ModuleDict(modules)
        adam = partial(torch.optim.AdamW, weight_decay=decay, betas=(0.9, 0.99), fused=True)
        self.optimizer = (optimizer or adam)(self.modules.parameters(), lr=peak)
        self.average = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}
        self.step, self.seconds, self.curve = 0, 0.0, []
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def steps(self, save_every: int = 250) -> Iterator[int]:
        started = time.monotonic()
        bar = tqdm(total=self.total, initial=self.step, desc=self.folder.name, mininterval=5)
        while self.step < self.total:
            for group in self.optimizer.param_groups:
                group["lr"] = rate(self.step, self.total, self.peak, self.warm)
            yield self.step
            self.step += 1
            bar.update()
            if self.step % save_every == 0 or self.step == self.total:
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                self._save()
        bar.close()

    def descend(self, loss: Tensor, **shown: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.modules.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        if self.step % 50 == 0:
            self.curve.append({"step": self.step, "loss": loss.item(), **shown})
            tqdm.write(f"{self.folder.name} {self.curve[-1]}")

    def use_average(self) -> None:
        self.modules.load_state_dict(self.average)

    def _save(self) -> None:
        tensors = {f"now.{k}": v for k, v in self.modules.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v for k, v in state.items()}
        scratch = self.folder / "state.safetensors.tmp"
        metadata = json.dumps({"step": self.step, "seconds": self.seconds, "curve": self.curve})
        save_file({k: v.contiguous() for k, v in tensors.items()}, scratch, metadata={"training": metadata})
        os.replace(scratch, self.folder / "state.safetensors")

    def _resume(self) -> None:
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            kept = json.loads(file.metadata()["training"])
        tensors = load_file(path, device=str(next(self.modules.parameters()).device))
        self.step, self.seconds, self.curve = kept["step"], kept["seconds"], kept["curve"]
        self.modules.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("now.")})
        self.average = {k[8:]: v for k, v in tensors.items() if k.startswith("average.")}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = value.cpu() if name == "step" else value
        if state:
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def run_training(training: Training, loss_of: Callable[[int], Tensor]) -> None:
    for step in training.steps():
        training.descend(loss_of(step))
    training.use_average()
