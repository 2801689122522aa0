"""Frozen weights in less memory: bfloat16, or whole numbers of 8 or 4 bits by bitsandbytes in the repeated blocks.

Scales, shifts and biases weigh nothing and stay in float32. Layers outside of blocks (embeddings, the time, the last
projection) stay in bfloat16, as every answer passes them. Knows no family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from fewbayes.errors import UserError

BLOCKS = re.compile(r"(block|layer|refiner)s?\.\d+\.")
BYTES: Mapping[str, float] = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Of a quantised weight: four bits share a float32 among 64, eight bits one in a row of the matrix."""


def check_precision(precision: str) -> None:
    """UserError where the package that it needs is missing."""
    if precision in BYTES and find_spec("bitsandbytes") is None:
        raise UserError(
            f"base_precision {precision} needs the package bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or give base_precision bf16"
        )


def reduced(module: nn.Module, precision: str) -> nn.Module:
    """The module, changed in place; precision: "bf16", "int8" or "nf4"."""
    layers = quantisable(module) if precision in BYTES else {}
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, _quantised(layer, precision))
    for weight in module.parameters():
        if weight.dim() > 1 and weight.is_floating_point():
            weight.data = weight.data.to(torch.bfloat16)
    for owner in module.modules():
        for name, table in owner.named_buffers(recurse=False):
            if table.dim() > 1 and table.is_floating_point():
                setattr(owner, name, table.to(torch.bfloat16))
    if layers:  # PEFT asks for these
        setattr(module, "is_loaded_in_4bit" if precision == "nf4" else "is_loaded_in_8bit", True)
    return module


def quantisable(module: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers of the repeated blocks, by their paths."""
    return {path: it for path, it in module.named_modules() if type(it) is nn.Linear and BLOCKS.search(f"{path}.")}


def _quantised(layer: nn.Linear, precision: str) -> nn.Module:
    from bitsandbytes import nn as bnb  # pyright: ignore[reportMissingImports]

    sizes = layer.in_features, layer.out_features, layer.bias is not None
    with torch.device("meta"):
        if precision == "nf4":
            new = bnb.Linear4bit(*sizes, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=False)
        else:
            new = bnb.Linear8bitLt(*sizes, has_fp16_weights=False)
    if precision == "nf4":
        new.support_avx512bf16_for_cpu = False  # which repacks weights in place, for sampling alone
        new.weight = bnb.Params4bit(layer.weight.data, False, quant_type="nf4", compress_statistics=False, module=new)
    else:
        new.weight = bnb.Int8Params(layer.weight.data, False, has_fp16_weights=False)
    new.bias = layer.bias
    return new.to(layer.weight.device)  # which quantises


def read_vectors(module: nn.Module, files: Sequence[Path]) -> None:
    """Scales, shifts and biases of a module that was loaded in half precision, in float32 as they are stored."""
    from safetensors import safe_open

    vectors = {name: weight for name, weight in module.named_parameters() if weight.dim() <= 1}
    for weight in vectors.values():
        weight.data = weight.data.float()
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in vectors.keys() & set(file.keys()):
                vectors[name].data = file.get_tensor(name).float()
