"""Any change of weights as a LoRA: the truncated singular value decomposition, and how much of the change it loses.

Only linear and convolutional layers have a place in a LoRA file. The share of the change that lies elsewhere (norms,
biases, embeddings) is measured like the rest and counted as lost. Knows nothing of runs or files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from fewbayes.export.trained import Layers, LowRank
from fewbayes.metrics.statistics import grouped

ELSEWHERE = "norms, biases, embeddings"


@dataclass(frozen=True)
class Loss:
    """One layer's (or one unplaceable weight's) change and what is lost of it, both squared Frobenius norms."""

    group: str
    change: float
    lost: float


def decompose(change: Tensor, rank: int) -> LowRank:
    """The best approximation of a weight's change of this rank (Eckart and Young), zeros beyond its own rank.

    change: (out, in) or (out, in, height, width). The singular values are shared evenly between up and down.
    """
    flat = change.double().flatten(1)
    if flat.shape[0] <= flat.shape[1]:
        left, right = _leading(flat, rank)
    else:
        right, left = (factor.T for factor in _leading(flat.T, rank))
    up = left.float().reshape(*left.shape, *(1 for _ in change.shape[2:]))
    return LowRank(right.float().reshape(-1, *change.shape[1:]), up).padded(rank)


def _leading(wide: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U sqrt(S) and sqrt(S) V^T of the leading singular values, by the eigenvectors of the small side's Gram matrix.

    In double precision this is as good as an SVD for the values that are kept, and ten times faster for layers of SD.
    """
    vectors = torch.linalg.eigh(wide @ wide.T).eigenvectors.flip(1)[:, :rank]
    projected = vectors.T @ wide
    root = projected.norm(dim=1).sqrt()
    return vectors * root, projected / root.clamp(min=torch.finfo(torch.float32).tiny)[:, None]


def product(layer: LowRank) -> Tensor:
    """The change that a loader will add: up @ down, in the shape of the weight."""
    up, down = layer.up.float(), layer.down.float()
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def as_lora(
    changes: Mapping[str, Mapping[str, Tensor]],
    parts: Mapping[str, nn.Module],
    rank: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Layers, list[Loss]]:
    """All changes of a model at one rank, and the losses; these include what `dtype` rounds away."""
    layers: Layers = {}
    losses: list[Loss] = []
    for part, weights in changes.items():
        places = dict(_places(part, parts[part]))
        for name, change in weights.items():
            total, layer = float(change.double().square().sum()), name.removesuffix(".weight")
            if name.endswith(".weight") and layer in places:
                found = decompose(change, rank).to(dtype)
                layers.setdefault(part, {})[layer] = found
                lost = float((change - product(found)).double().square().sum())
                losses.append(Loss(_group(part, layer), total, lost))
            else:
                losses.append(Loss(ELSEWHERE, total, total))
    return layers, losses


def _places(part: str, module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """The layers that LoRA loaders look for: in a text encoder only those of its attention and its MLPs."""
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and (not _is_text(part) or ".layers." in f".{name}"):
            yield name, layer


def _is_text(part: str) -> bool:
    return part.startswith("text_encoder")


def _group(part: str, layer: str) -> str:
    """Text encoders whole; a denoiser by its blocks, `part blocks.3`, and the rest."""
    if _is_text(part):
        return part
    block = re.match(r"\w*block\w*(\.\d+)?", layer)
    return f"{part} {block[0] if block else 'other'}"


def relative_residual(losses: Iterable[Loss]) -> float:
    """|change - what is kept| / |change|, Frobenius: 0 loses nothing, 1 keeps nothing."""
    losses = list(losses)
    total = sum(loss.change for loss in losses)
    return sqrt(sum(loss.lost for loss in losses) / total) if total else 0.0


def residual_rows(losses: list[Loss]) -> list[dict[str, float | str | int]]:
    """One row a group and one for all: weights in it, its share of the squared change, its relative residual."""
    total = sum(loss.change for loss in losses) or 1.0
    groups = grouped((loss.group, loss) for loss in losses)
    ordered = sorted(groups.items(), key=lambda item: (item[0] == ELSEWHERE, item[0]))
    return [
        {
            "group": group,
            "weights": len(members),
            "share": sum(loss.change for loss in members) / total,
            "residual": relative_residual(members),
        }
        for group, members in [*ordered, ("all", losses)]
    ]


def residual_table(rows: list[dict[str, float | str | int]], rank: int) -> str:
    """The rows as lines for a terminal."""
    head = f"{'group':<28}{'weights':>8}{'share of change':>17}{f'residual at rank {rank}':>24}"
    return "\n".join(
        [head, *(f"{r['group']:<28}{r['weights']:>8}{r['share']:>17.2%}{r['residual']:>24.4f}" for r in rows)]
    )
