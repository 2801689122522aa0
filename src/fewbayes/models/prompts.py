"""Encoded prompts, kept so that no text encoder reads one twice: in memory, and on the disk where it is large.

They are found by content: a hash of the tokens and of all that decides what an encoder makes of them. The folder is
one model's. A file that cannot be read counts for nothing. Knows no encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.files.atomic import atomic_write


class KeptPrompts:
    """folder: None keeps them in memory alone, on the CPU."""

    def __init__(self, folder: Path | None):
        self._folder, self._held = folder, dict[str, Conditioning]()

    def find(self, key: str) -> Conditioning | None:
        if key not in self._held and self._folder and (file := self._folder / f"{key}.safetensors").is_file():
            try:
                self._held[key] = Conditioning(**load(file.read_bytes()))
            except (OSError, SafetensorError, ValueError):
                return None
        return self._held.get(key)

    def keep(self, key: str, cond: Conditioning) -> None:
        self._held[key] = cond.detach().to("cpu")
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.contiguous() for name, tensor in self._held[key].items()}
            atomic_write(self._folder / f"{key}.safetensors", save(tensors))


def key_of(ids: Sequence[Tensor], *about: object) -> str:
    """Of prompts as tokens for each encoder; about: whatever else their encoding depends on."""
    digest = hashlib.sha256(repr([about, *((its.dtype, tuple(its.shape)) for its in ids)]).encode())
    for its in ids:
        digest.update(its.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
