"""What a checkpoint of training holds: weights by trainable name, deviations, the optimizer's memory, averages.

All of it is safetensors; nothing is pickled. The optimizer's memory is kept as it is found, tensors and numbers by
parameter name, so any optimizer of torch's form goes in and out. Knows nothing of models, and leaves to
`fewbayes.runs.folder` when a checkpoint is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewbayes.files.decode import parse_json, typed
from fewbayes.posterior.gaussian import GaussianPosterior
from fewbayes.training.ema import WeightAverage

WEIGHTS, OPTIMIZER, POSTERIOR, AVERAGES = (
    f"{name}.safetensors" for name in ("weights", "optimizer", "posterior", "ema")
)


@dataclass(frozen=True)
class TrainState:
    """All that training changes, apart from the number of the step.

    weights: the trained parameters by name; named: these and the deviations, which is all that the optimizer sees;
    scaler: of float16's loss scale, None elsewhere.
    """

    weights: Mapping[str, nn.Parameter]
    named: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    posterior: GaussianPosterior | None = None
    average: WeightAverage | None = None
    scaler: Any = None

    def write(self, folder: Path) -> None:
        """The files of a checkpoint, into an empty folder."""
        save_file({name: weight.detach().contiguous() for name, weight in self.weights.items()}, folder / WEIGHTS)
        write_optimizer(self.optimizer, self.named, folder / OPTIMIZER)
        if self.posterior:
            self.posterior.save(folder / POSTERIOR)
        if self.average:
            save_file(self.average.state_dict(), folder / AVERAGES)

    def numbers(self) -> dict[str, Any]:
        """What is kept beside the files."""
        return {"scaler": self.scaler.state_dict() if self.scaler else None}

    @torch.no_grad()
    def read(self, folder: Path, numbers: Mapping[str, Any]) -> None:
        """Take over what `write` and `numbers` told."""
        saved = load_file(folder / WEIGHTS)
        for name, weight in self.weights.items():
            weight.copy_(saved[name])
        if self.posterior:
            self.posterior.load(folder / POSTERIOR)
        read_optimizer(self.optimizer, self.named, folder / OPTIMIZER)
        if self.average:
            self.average.load_state_dict(load_file(folder / AVERAGES))
        if self.scaler and numbers["scaler"]:
            self.scaler.load_state_dict(numbers["scaler"])


def write_optimizer(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], path: Path) -> None:
    """The optimizer's memory by parameter name: exp_avg.<name>, exp_avg_sq.<name>, step.<name> for AdamW."""
    tensors, numbers = {}, []
    for name, parameter in named.items():
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                # A table that an 8-bit optimizer shares among parameters is written for each: a file shares nothing.
                tensors[f"{key}.{name}"] = value.detach().clone().contiguous()
            elif isinstance(value, (int, float)):
                tensors[f"{key}.{name}"] = torch.tensor(value)
                numbers.append(f"{key}.{name}")
            else:
                raise TypeError(f"the optimizer keeps {key} of {name} as a {type(value).__name__}")
    save_file(tensors, path, metadata={"numbers": json.dumps(numbers)} if numbers else None)


def read_optimizer(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], path: Path) -> None:
    """Give the optimizer the memory that `write_optimizer` wrote."""
    with safe_open(path, framework="pt") as file:
        told = parse_json((file.metadata() or {}).get("numbers", "[]"), str(path))
        numbers = set(typed(told, list[str], str(path)))
        for full in file.keys():  # noqa: SIM118
            key, _, name = full.partition(".")
            value = file.get_tensor(full)
            kept = value.item() if full in numbers else value.to(named[name].device)
            optimizer.state[named[name]][key] = kept
