"""Pictures for an encoder, on pillow alone, so that the same picture gives the same numbers wherever it is scored.

The processors of transformers choose between two backends by what is installed, and these differ slightly; pillow
always averages when it makes smaller, interpolation on tensors often does not. Knows no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewbayes.errors import UserError
from fewbayes.files.decode import read_json

Crop = Literal["center", "squash", "native"]
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Names of pillow's filters by the numbers that preprocessor_config.json uses."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """crop "center": the shorter side to `resize`, then the middle `side` x `side`; "squash": both sides to `side`,
    whatever the shape; "native": as it is, but for pictures with a side under `side`, which are enlarged to it.
    """

    crop: Crop
    side: int
    resize: int
    resample: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        """(n, 3, height, width), normalised; natively sized pictures have to be of one size."""
        return np.stack([self._one(picture) for picture in pictures])

    def _one(self, picture: Image.Image) -> NDArray[np.float32]:
        pixels = np.asarray(self._sized(picture.convert("RGB")), dtype=np.float32) / np.float32(255)
        mean, std = np.asarray(self.mean, dtype=np.float32), np.asarray(self.std, dtype=np.float32)
        return ((pixels - mean) / std).transpose(2, 0, 1)

    def _sized(self, picture: Image.Image) -> Image.Image:
        method = Image.Resampling[self.resample.upper()]
        if self.crop == "squash":
            return picture.resize((self.side, self.side), method)
        shorter = min(picture.size)
        if self.crop == "native":
            return picture if shorter >= self.side else picture.resize(_scaled(picture.size, self.side), method)
        picture = picture.resize(_scaled(picture.size, self.resize), method)
        left, top = ((length - self.side) // 2 for length in picture.size)
        return picture.crop((left, top, left + self.side, top + self.side))

    def __str__(self) -> str:
        if self.crop == "native":
            return f"own size, {self.resample} to {self.side} where smaller" if self.side else "own size"
        if self.crop == "squash":
            return f"{self.resample} to {self.side} x {self.side}, shape not kept"
        return f"{self.resample}, shorter side to {self.resize}, centre {self.side} x {self.side}"


def _scaled(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Width and height with the shorter side as asked; the longer one is cut down to a whole number of pixels."""
    lowest = min(size)
    width, height = (shorter if length == lowest else int(shorter * length / lowest) for length in size)
    return width, height


def read_preprocessing(folder: Path) -> Preprocessing:
    """What preprocessor_config.json of a folder in the transformers layout asks for."""
    path = folder / "preprocessor_config.json"
    cure = "it says how pictures are prepared for this encoder; fetch it with the rest of the folder"
    config = read_json(path, dict[str, Any], cure=cure)
    mean, std = _colours(config["image_mean"]), _colours(config["image_std"])
    resample = RESAMPLING[config.get("resample", 3)]
    size, crops = config["size"], bool(config.get("do_center_crop"))
    # Older files give one number, which is the shorter side in CLIP's and a square in ViT's.
    shorter = size.get("shortest_edge") if isinstance(size, dict) else size if crops else None
    if shorter is None:
        side = _square(size, path)
        return Preprocessing("squash", side, side, resample, mean, std)
    if not crops:
        raise UserError(f"{path} keeps the shape of pictures without cropping them, which encoders here cannot take")
    return Preprocessing("center", _square(config.get("crop_size", shorter), path), int(shorter), resample, mean, std)


def _colours(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _square(size: Any, path: Path) -> int:
    height, width = (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
    if height != width:
        raise UserError(f"{path} asks for {width} x {height}; only square inputs are read")
    return int(height)
