"""SSCD, the detector of copies of Pizzi et al. (2022), as the torchscript file that its authors publish."""

from __future__ import annotations

from pathlib import Path

import torch

from fewbayes.metrics.encoders.base import Floats, Pictures, Role, register
from fewbayes.metrics.encoders.checkpoint import identity_of_file, load_torchscript, to_numpy
from fewbayes.metrics.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from fewbayes.metrics.weights import SSCD

NAME = "sscd_disc_mixup"


class Sscd:
    prepare = Preprocessing("squash", 320, 320, "bilinear", IMAGENET_MEAN, IMAGENET_STD)

    def __init__(self, weights: Path, name: str, device: str = "cpu"):
        self.device = device
        self.model = load_torchscript(weights).to(device).eval()
        self.identity = identity_of_file(weights, name, self.prepare)

    @torch.inference_mode()
    def images(self, pictures: Pictures) -> Floats:
        return to_numpy(self.model(torch.from_numpy(self.prepare(pictures)).to(self.device)))


register(Role("sscd", NAME, lambda place: Sscd(*place.file(SSCD, NAME), place.device)))
