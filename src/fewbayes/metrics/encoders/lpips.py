"""Perceptual distances between pictures: LPIPS, and what stands for it in the embedded world."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbayes.errors import UserError
from fewbayes.files.atomic import file_sha256
from fewbayes.metrics.encoders.base import Floats, Identity, Pictures, Role, register
from fewbayes.metrics.encoders.checkpoint import identity_of_file
from fewbayes.metrics.encoders.dino import EMBEDDED_NAME, Vit
from fewbayes.metrics.encoders.places import Place, with_other
from fewbayes.metrics.preprocess import Preprocessing
from fewbayes.metrics.weights import ALEXNET, HEADS, is_published

NAME = "lpips alex"
BLOCK = 64
"""Pictures whose features are held at a time where pictures are compared with each other; batches divide it."""


class LpipsAlex:
    """LPIPS 0.1 on AlexNet (Zhang et al., The Unreasonable Effectiveness of Deep Features, 2018).

    d(a, b) = sum over the five ReLU layers of the mean over places of sum_c w_c (a_c - b_c)^2, the activations of each
    place scaled to length 1, w the heads that were fitted to human judgements.
    """

    prepare = Preprocessing("squash", 512, 512, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
    """What turns [-1, 1] into the range that AlexNet was trained on."""

    def __init__(self, backbone: Path, heads: Path, name: str, device: str = "cpu"):
        self.device = device
        self.shift, self.scale = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (self.SHIFT, self.SCALE))
        saved = torch.load(backbone, map_location="cpu", weights_only=True)
        self.net = alexnet()
        convolutions = {key: f"features.{key}" for key in self.net.state_dict()}
        absent = sorted(set(convolutions.values()) - saved.keys())
        if absent:
            raise UserError(f"{backbone} is not the AlexNet of torchvision: it lacks {absent[0]}")
        self.net.load_state_dict({key: saved[source] for key, source in convolutions.items()})
        self.net.to(device).eval().requires_grad_(False)
        fitted = torch.load(heads, map_location=device, weights_only=True)
        self.heads = [fitted[f"lin{layer}.model.1.weight"].view(1, -1, 1, 1) for layer in range(5)]
        self.identity = identity_of_file(backbone, name, self.prepare, ("heads", file_sha256(heads)))

    @torch.inference_mode()
    def features(self, pictures: Pictures) -> Tensor:
        """(n, everything): the squared Euclidean distance is d, as no head has a negative weight."""
        x = (torch.from_numpy(self.prepare(pictures)).to(self.device) - self.shift) / self.scale
        parts = []
        for module in self.net:
            x = module(x)
            if isinstance(module, nn.ReLU):
                direction = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                weight = (self.heads[len(parts)] / (x.shape[2] * x.shape[3])).sqrt()
                parts.append((direction * weight).flatten(1))
        return torch.cat(parts, 1).cpu()

    def distances(self, pictures: Pictures) -> Floats:
        return squared_distances(pictures, self.features)


def alexnet() -> nn.Sequential:
    """The convolutions of torchvision's AlexNet, numbered as there: `features.0` is module 0."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


class PatchDistance:
    """A perceptual distance from a ViT, in the manner of LPIPS but without its learned weights and its network.

    d(a, b) = mean over three depths (a third, two thirds, all of the blocks) and over patches of |a' - b'|^2, where a'
    and b' are the patch tokens behind those blocks, before the final normalisation, each scaled to length 1. In [0, 4];
    0 for equal pictures. Its numbers cannot be compared with those of LPIPS.
    """

    def __init__(self, vit: Vit):
        self.vit = vit
        depth = vit.model.config.num_hidden_layers
        self.depths = tuple(sorted({max(1, round(depth * part / 3)) for part in (1, 2, 3)}))
        identity = vit.identity
        details = (*identity.details, ("patch tokens behind blocks", self.depths))
        self.identity = Identity(f"{identity.name} patches", identity.sha256, identity.preprocessing, details)

    @torch.inference_mode()
    def features(self, pictures: Pictures) -> Tensor:
        """(n, depths * patches * width), scaled so that the squared Euclidean distance is d."""
        pixels = torch.from_numpy(self.vit.prepare(pictures)).to(self.vit.device)
        hidden = self.vit.model(pixel_values=pixels, output_hidden_states=True).hidden_states
        tokens = torch.stack([F.normalize(hidden[depth][:, 1:], dim=-1) for depth in self.depths], 1)
        return (tokens / (tokens.shape[1] * tokens.shape[2]) ** 0.5).flatten(1).float().cpu()

    def distances(self, pictures: Pictures) -> Floats:
        return squared_distances(pictures, self.features)


def squared_distances(pictures: Pictures, features: Callable[[Pictures], Tensor], batch_size: int = 16) -> Floats:
    """Equal pictures count as one, so that their distance is 0 whatever a batch does to rounding.

    Features of two blocks are in memory at a time, as those of LPIPS take 10 MB a picture; of more pictures than a
    block holds they are computed again for each pair of blocks.
    """
    first: dict[tuple[tuple[int, int], bytes], int] = {}
    keys = [first.setdefault((picture.size, picture.convert("RGB").tobytes()), len(first)) for picture in pictures]
    different = [pictures[keys.index(number)] for number in range(len(first))]

    def block(start: int) -> Tensor:
        stop = min(start + BLOCK, len(different))
        return torch.cat([features(different[i : min(i + batch_size, stop)]) for i in range(start, stop, batch_size)])

    table = np.zeros((len(different), len(different)))
    for top in range(0, len(different), BLOCK):
        rows = block(top)
        for left in range(top, len(different), BLOCK):
            columns = rows if left == top else block(left)
            for i, row in enumerate(rows):
                start = i + 1 if left == top else 0
                values = (columns[start:] - row).square().sum(1, dtype=torch.float64)
                table[top + i, left + start : left + len(columns)] = values
    return (table + table.T)[np.ix_(keys, keys)]


def _published(place: Place) -> LpipsAlex:
    """The heads come with the lpips package too, which need not be imported for them."""
    backbone, name = place.file(ALEXNET, NAME)
    package = importlib.util.find_spec("lpips")
    inside = Path(package.origin).parent / "weights" / "v0.1" / "alex.pth" if package and package.origin else None
    if inside and inside.is_file() and is_published(inside, HEADS):
        return LpipsAlex(backbone, inside, name, place.device)
    heads, named = place.file(HEADS, NAME)
    return LpipsAlex(backbone, heads, with_other(name, named, NAME), place.device)


register(Role("lpips", NAME, _published, f"{EMBEDDED_NAME} patches", lambda place: PatchDistance(place.need("dino"))))
