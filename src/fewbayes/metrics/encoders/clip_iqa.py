"""CLIP-IQA: CLIP RN50 on pictures of their own size as piq has it, and any CLIP that is loaded already."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from fewbayes.files.atomic import file_sha256
from fewbayes.metrics.encoders.base import Floats, Pictures, Role, register
from fewbayes.metrics.encoders.checkpoint import identity_of_file, load_torchscript, to_numpy
from fewbayes.metrics.encoders.clip import EMBEDDED_NAME, Clip
from fewbayes.metrics.encoders.clip_resnet import ClipResnet
from fewbayes.metrics.encoders.places import Place, with_other
from fewbayes.metrics.preprocess import CLIP_MEAN, CLIP_STD, Preprocessing
from fewbayes.metrics.weights import RN50, TOKENS

NAME = "piq CLIP RN50"
QUALITY_PROMPTS = ("Good photo.", "Bad photo.")
"""The antonyms of Clip-IQA, better one first."""
NATIVE_SIDE = 224
"""In sound mode smaller pictures are enlarged to this side, as the network has seen none smaller."""


class ClipRn50Quality:
    """CLIP RN50 without positional embedding on pictures of their own size."""

    def __init__(self, weights: Path, tokens: Path, name: str, device: str = "cpu", *, smallest: int = 0):
        self.device = device
        self.prepare = Preprocessing("native", smallest, smallest, "bicubic", CLIP_MEAN, CLIP_STD)
        self.model = ClipResnet(load_torchscript(weights).state_dict()).to(device)
        ids = torch.load(tokens, map_location=device, weights_only=True)
        with torch.inference_mode():
            self.anchors = to_numpy(self.model.encode_text(ids))
        self.scale = float(self.model.logit_scale.exp())
        self.identity = identity_of_file(weights, name, self.prepare, ("tokens", file_sha256(tokens)))

    @torch.inference_mode()
    def images(self, pictures: Pictures) -> Floats:
        """One at a time, as sizes differ."""
        pixels = (torch.from_numpy(self.prepare([picture])).to(self.device) for picture in pictures)
        return np.concatenate([to_numpy(self.model.encode_image(one)) for one in pixels])


class ClipQuality:
    """Clip-IQA from a CLIP that is loaded already; its features are shared."""

    def __init__(self, clip: Clip):
        self.identity = clip.identity
        self.images = clip.images
        self.anchors = clip.texts(QUALITY_PROMPTS)
        self.scale = float(clip.model.logit_scale.detach().exp())


def _published(place: Place, smallest: int = NATIVE_SIDE) -> ClipRn50Quality:
    weights, name = place.file(RN50, NAME)
    tokens, named = place.file(TOKENS, NAME)
    return ClipRn50Quality(weights, tokens, with_other(name, named, NAME), place.device, smallest=smallest)


register(
    Role("clip_iqa", NAME, _published, EMBEDDED_NAME, lambda place: ClipQuality(place.need("clip"))),
    Role("clip_iqa_native", NAME, partial(_published, smallest=0), EMBEDDED_NAME, lambda place: place.need("clip_iqa")),
)
