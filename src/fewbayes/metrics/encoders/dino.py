"""DINO and DINOv2, for likeness, variety and drift: the class token of a ViT that was trained without words."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from fewbayes.files.decode import read_json
from fewbayes.metrics.encoders.base import Floats, Pictures, Role, register
from fewbayes.metrics.encoders.checkpoint import identity_of_folder, load_checkpoint, to_numpy
from fewbayes.metrics.encoders.places import Place
from fewbayes.metrics.preprocess import read_preprocessing
from fewbayes.metrics.weights import HUB_MODELS

EMBEDDED_NAME = "fewbayes-dino"


class Vit:
    """DINO (ViTModel) or DINOv2 (Dinov2Model): the class token after the final normalisation."""

    def __init__(self, folder: Path, name: str, device: str = "cpu"):
        self.device = device
        self.prepare = read_preprocessing(folder)
        self.identity = identity_of_folder(folder, name, self.prepare)
        self.model = _vision_model(folder).to(device)

    @torch.inference_mode()
    def images(self, pictures: Pictures) -> Floats:
        pixels = torch.from_numpy(self.prepare(pictures)).to(self.device)
        return to_numpy(self.model(pixel_values=pixels).last_hidden_state[:, 0])


def _vision_model(folder: Path) -> Any:
    from transformers import AutoModel, ViTModel

    config = read_json(folder / "config.json", dict[str, Any])
    # A DINO checkpoint has no pooler; the feature is the class token, so none is made up.
    if config.get("model_type") == "vit":
        return load_checkpoint(ViTModel, folder, add_pooling_layer=False)
    return load_checkpoint(AutoModel, folder)


def _published(key: str, place: Place) -> Vit:
    return Vit(*place.model(HUB_MODELS[key]), place.device)


def _embedded(place: Place) -> Vit:
    return Vit(place.inside("dino"), EMBEDDED_NAME, place.device)


register(
    Role("dino", HUB_MODELS["dino"].repository, partial(_published, "dino"), EMBEDDED_NAME, _embedded),
    Role("dinov2", HUB_MODELS["dinov2"].repository, partial(_published, "dinov2")),
)
