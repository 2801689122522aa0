"""What an encoder is, the reason where there is none, and the list of all.

A file beside this one ends in `register(Role(...))`; it may import torch and transformers, and is read when encoders
are loaded. An encoder takes a batch of pictures and gives numpy. What cannot be loaded becomes a `Missing` with its
reason, and nothing takes its place. Knows no folders of samples and no scores; never imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewbayes.errors import UserError
from fewbayes.registry import Registry

if TYPE_CHECKING:
    from fewbayes.metrics.encoders.places import Place

Floats = NDArray[np.floating]
Pictures = Sequence[Image.Image]
EMBEDDED = Path(__file__).parents[2] / "world" / "weights"


@dataclass(frozen=True)
class Identity:
    """Who an encoder is. sha256: of its weight file. preprocessing: in words, as results show it."""

    name: str
    sha256: str
    preprocessing: str
    details: tuple[tuple[str, Any], ...] = ()

    @property
    def fingerprint(self) -> str:
        """Equal for encoders that give the same features."""
        words = json.dumps([self.sha256, self.preprocessing, list(self.details)], sort_keys=True, default=str)
        return hashlib.sha256(words.encode()).hexdigest()


class Encoder(Protocol):
    """What an encoder is asked for beside its identity depends on its role. n: pictures of a batch, or prompts.

    images(pictures): (n, width) features, float32, not normalised.
    texts(prompts): (n, width) in the same space. cut_off(prompts): those that are longer than the model reads.
    distances(pictures): (n, n), symmetric, exactly 0 between equal pictures.
    anchors, scale: (2, width) features of the better and the worse of two antonyms, and the scale of cosines with them.
    """

    identity: Identity


@dataclass(frozen=True)
class Missing:
    """An encoder that is not there. name: what it would have been called."""

    name: str
    reason: str


Encoders = dict[str, Encoder | Missing]
"""By the key of a role."""


@dataclass(frozen=True)
class Role:
    """What metrics ask for by `key`, and who plays it. name, embedded_name: of a player that could not be loaded."""

    key: str
    name: str
    published: Callable[[Place], Encoder]
    embedded_name: str | None = None
    embedded: Callable[[Place], Encoder] | None = None
    """From the embedded world, where that has a counterpart."""


ROLES: Registry[Role] = Registry("fewbayes.metrics.encoders")
"""All roles by key; to ask for them imports torch."""


def register(*roles: Role) -> None:
    """Adds roles; a key can be taken once."""
    for role in roles:
        ROLES.add(role.key, role)


def encoder_keys() -> tuple[str, ...]:
    return tuple(ROLES.all())


def load_encoders(which: str = "paper", *, offline: bool = False, device: str | None = None) -> Encoders:
    """Encoders by key. which: "embedded", "paper" (local copies, else the hub), or a folder of them."""
    from fewbayes.metrics.encoders.places import Place
    from fewbayes.metrics.weights import FOLDER_VARIABLE

    if which == "embedded":
        return load_from(Place(EMBEDDED, device, world=True))
    if which == "paper":
        named = os.environ.get(FOLDER_VARIABLE)
        return load_from(Place(Path(named).expanduser() if named else None, device, hub=True, offline=offline))
    folder = Path(which).expanduser()
    if not folder.is_dir():
        raise UserError(f"encoders {which!r} is neither 'embedded', nor 'paper', nor a folder")
    return load_from(Place(folder, device))


def load_from(place: Place) -> Encoders:
    """Every encoder that is at a place, and why the others are not."""
    return {key: place[key] for key in encoder_keys()}
