"""CLIP, for Clip-T and Clip-I: pictures and prompts in one space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbayes.metrics.encoders.base import Floats, Pictures, Role, register
from fewbayes.metrics.encoders.checkpoint import identity_of_folder, load_checkpoint, to_numpy
from fewbayes.metrics.encoders.places import Place
from fewbayes.metrics.preprocess import read_preprocessing
from fewbayes.metrics.weights import HUB_MODELS

EMBEDDED_NAME = "fewbayes-clip"


class Clip:
    """CLIPModel and CLIPTokenizer from a folder in the transformers layout."""

    def __init__(self, folder: Path, name: str, device: str = "cpu"):
        from transformers import CLIPModel, CLIPTokenizer

        self.device = device
        self.prepare = read_preprocessing(folder)
        self.identity = identity_of_folder(folder, name, self.prepare)
        self.model = load_checkpoint(CLIPModel, folder).to(device)
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.longest = int(self.model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def images(self, pictures: Pictures) -> Floats:
        pixels = torch.from_numpy(self.prepare(pictures)).to(self.device)
        return to_numpy(projected(self.model.get_image_features(pixel_values=pixels)))

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Floats:
        """One at a time, unpadded, as the authors do it; different prompts are few."""
        features = []
        for prompt in prompts:
            words = self.tokenizer([prompt], truncation=True, max_length=self.longest, return_tensors="pt")
            ids, mask = (words[key].to(self.device) for key in ("input_ids", "attention_mask"))
            features.append(to_numpy(projected(self.model.get_text_features(input_ids=ids, attention_mask=mask))))
        return np.concatenate(features)

    def cut_off(self, prompts: Sequence[str]) -> list[str]:
        return [prompt for prompt in prompts if len(self.tokenizer(prompt)["input_ids"]) > self.longest]


def projected(output: Any) -> Tensor:
    """The features in the common space: transformers 4 gives them as they are, transformers 5 inside an output."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _published(place: Place) -> Clip:
    return Clip(*place.model(HUB_MODELS["clip"]), place.device)


def _embedded(place: Place) -> Clip:
    return Clip(place.inside("clip"), EMBEDDED_NAME, place.device)


register(Role("clip", HUB_MODELS["clip"].repository, _published, EMBEDDED_NAME, _embedded))
