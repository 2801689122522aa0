"""Checkpoints in the transformers layout and single torchscript files, read whole or refused; in float32."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewbayes.errors import UserError
from fewbayes.files.atomic import file_sha256
from fewbayes.metrics.encoders.base import Floats, Identity
from fewbayes.metrics.encoders.places import weight_file
from fewbayes.metrics.preprocess import Preprocessing


def load_checkpoint(kind: Any, folder: Path, **options: Any) -> Any:
    """A model in float32 with every weight from the folder: transformers would fill a gap with random numbers."""
    with _quiet():
        model, found = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    if found["missing_keys"]:
        gaps = sorted(found["missing_keys"])
        raise UserError(f"{folder} lacks {len(gaps)} weights of its model, {gaps[0]} among them")
    return model.float().eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading bars and advice of transformers say nothing to our users."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def load_torchscript(path: Path) -> Any:
    with warnings.catch_warnings():  # deprecated, and what these files were published in
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
        return torch.jit.load(path, map_location="cpu")


def identity_of_folder(folder: Path, name: str, prepare: Preprocessing) -> Identity:
    """Weights say little without the configuration that they are read by."""
    beside = [
        folder / f for f in ("config.json", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
    ]
    hashes = ((f"{file.name} sha256", file_sha256(file)) for file in beside if file.is_file())
    return identity_of_file(weight_file(folder), name, prepare, *hashes)


def identity_of_file(weights: Path, name: str, prepare: Preprocessing, *details: tuple[str, Any]) -> Identity:
    colours = (("mean", prepare.mean), ("std", prepare.std), ("backend", "pillow"))
    return Identity(name, file_sha256(weights), str(prepare), (*colours, *details))


def to_numpy(features: Tensor) -> Floats:
    return features.float().cpu().numpy()
