"""Features of pictures, computed once: kept by the content of the picture and the fingerprint of the encoder.

Pictures are decoded in batches and go through every encoder that has not seen them. The memory between runs is one
SQLite file, which several processes may use and which may be deleted at any time. Knows neither prompts nor scores.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import cache as once
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewbayes.data import decoding
from fewbayes.files.atomic import file_sha256
from fewbayes.metrics.folders import Sample, open_picture
from fewbayes.metrics.pixels import haar_noise
from fewbayes.progress import progress
from fewbayes.runs.provenance import version_of

Floats = NDArray[np.floating]

log = logging.getLogger("fewbayes")

THUMBNAIL_SIDE = 32


class OfPixels(Protocol):
    """Features of a picture's pixels, for which no model is asked. fingerprint: other where the numbers are."""

    fingerprint: str

    def images(self, pictures: Sequence[Image.Image]) -> Floats:
        """(n, width) of a batch of RGB pictures."""
        ...


class _Pixels:
    """Two numbers a picture, of its pixels: whether it is black (1 or 0), and its Haar noise in grey levels."""

    fingerprint = "pixels-1"

    def images(self, pictures: Sequence[Image.Image]) -> Floats:
        return np.array([[float(picture.getbbox() is None), haar_noise(np.asarray(picture))] for picture in pictures])


class _Thumbnails:
    """The picture at 32 x 32, less its mean and scaled to length 1: a cosine of two is their correlation."""

    fingerprint = f"thumbnail-{THUMBNAIL_SIDE}-1"

    def images(self, pictures: Sequence[Image.Image]) -> Floats:
        return np.stack([self._one(picture) for picture in pictures])

    def _one(self, picture: Image.Image) -> Floats:
        small = picture.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
        values = np.asarray(small, dtype=np.float64) / 255
        values = values - values.mean()
        return (values / max(float(np.linalg.norm(values)), 1e-9)).ravel()


def mirrored(thumbnails: Floats) -> Floats:
    """The thumbnails of the pictures as a mirror shows them."""
    shape = (-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
    return np.ascontiguousarray(thumbnails.reshape(shape)[:, :, ::-1]).reshape(len(thumbnails), -1)


OF_PIXELS: dict[str, OfPixels] = {"pixels": _Pixels(), "thumbnail": _Thumbnails()}
"""By the key that metrics ask for. A metric that needs others adds them where it registers itself."""


class FeatureStore:
    """Features by the name of an encoder and the picture. encoders: what has `images`; those of one fingerprint share.

    >>> store = FeatureStore({"clip": clip, "dino": dino})                                          # doctest: +SKIP
    >>> store.compute(samples)
    >>> store.matrix("clip", samples)
    """

    def __init__(self, encoders: Mapping[str, Any], *, cache: Path | None = None, batch_size: int = 64):
        self.encoders: dict[str, Any] = {**OF_PIXELS, **{k: e for k, e in encoders.items() if hasattr(e, "images")}}
        self.pairs = {key: encoder for key, encoder in encoders.items() if hasattr(encoder, "distances")}
        self.batch_size = batch_size
        self.encoded = 0
        """Pictures that went through an encoder, counted once for each encoder."""
        self._known: dict[tuple[str, str], Floats] = {}
        self._texts: dict[tuple[str, str], Floats] = {}
        self._memory = _Memory(cache) if cache else None

    def fingerprint(self, key: str) -> str:
        """Of the encoder, and of what decodes and prepares pictures for it."""
        encoder = self.encoders.get(key) or self.pairs[key]
        own = getattr(encoder, "fingerprint", None) or encoder.identity.fingerprint
        return f"{own} decoding {_decoding()} pillow {_library('pillow')} transformers {_library('transformers')}"

    def compute(self, samples: Sequence[Sample]) -> None:
        """Whatever features of these pictures are not there yet."""
        paths = {sample.sha256: sample.path for sample in samples}
        encoders = {self.fingerprint(key): self.encoders[key] for key in self.encoders}
        for fingerprint in encoders:
            self._recall(fingerprint, paths)
        lacking = [sha for sha in paths if any((mark, sha) not in self._known for mark in encoders)]
        with progress(len(lacking), 0, log.isEnabledFor(logging.INFO), "scoring: picture") as advance:
            for start in range(0, len(lacking), self.batch_size):
                batch = lacking[start : start + self.batch_size]
                pictures = {sha: open_picture(paths[sha]) for sha in batch}
                for fingerprint, encoder in encoders.items():
                    self._encode(fingerprint, encoder, pictures)
                advance(start + len(batch), None)

    def _encode(self, fingerprint: str, encoder: Any, pictures: Mapping[str, Image.Image]) -> None:
        unseen = [sha for sha in pictures if (fingerprint, sha) not in self._known]
        if not unseen:
            return
        rows = np.asarray(encoder.images([pictures[sha] for sha in unseen]))
        self.encoded += len(unseen)
        self._keep(fingerprint, dict(zip(unseen, rows, strict=True)))

    def matrix(self, key: str, samples: Sequence[Sample]) -> Floats:
        """(n, width), rows in the order of the samples, which `compute` has seen."""
        mark = self.fingerprint(key)
        names = [(mark, sample.sha256) for sample in samples]
        found = np.stack([self._known[name] for name in names])
        self._known |= zip(names, found, strict=True)  # views, so that no feature is held twice
        return found

    def texts(self, key: str, prompts: Sequence[str]) -> Floats:
        """(n, width), each prompt encoded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if (key, prompt) not in self._texts]
        if new:
            self._texts |= {(key, p): row for p, row in zip(new, self.encoders[key].texts(new), strict=True)}
        return np.stack([self._texts[key, prompt] for prompt in prompts])

    def distances(self, key: str, samples: Sequence[Sample]) -> Floats:
        """(n, n) table of distances; a group that was seen before is not decoded again."""
        mark, encoder = self.fingerprint(key), self.pairs[key]
        names = [sample.sha256 for sample in samples]
        pairs = {_pair(a, b) for i, a in enumerate(names) for b in names[:i] if a != b}
        self._recall(mark, pairs)
        if any((mark, pair) not in self._known for pair in pairs):
            table = encoder.distances([open_picture(sample.path) for sample in samples])
            self.encoded += len(samples)
            found = {_pair(a, b): table[i, j, None] for i, a in enumerate(names) for j, b in enumerate(names) if a != b}
            self._keep(mark, found)
        return np.array([[0.0 if a == b else self._known[mark, _pair(a, b)][0] for b in names] for a in names])

    def tables(self, key: str, groups: Sequence[Sequence[Sample]]) -> list[Floats]:
        """Distances within each of many groups."""
        tables = []
        with progress(len(groups), 0, log.isEnabledFor(logging.INFO), "comparing: prompt") as advance:
            for number, group in enumerate(groups, start=1):
                tables.append(self.distances(key, group))
                advance(number, None)
        return tables

    def _recall(self, fingerprint: str, names: Iterable[str]) -> None:
        if self._memory:
            unknown = [name for name in names if (fingerprint, name) not in self._known]
            self._known |= {(fingerprint, name): row for name, row in self._memory.read(fingerprint, unknown).items()}

    def _keep(self, fingerprint: str, rows: Mapping[str, Floats]) -> None:
        self._known |= {(fingerprint, name): row for name, row in rows.items()}
        if self._memory:
            self._memory.write(fingerprint, rows)


@once
def _library(package: str) -> str:
    return version_of(package) or "none"


@once
def _decoding() -> str:
    """Changes with every edit of what turns the bytes of a file into a picture."""
    return file_sha256(decoding.__file__)[:12]


def _pair(a: str, b: str) -> str:
    return "|".join(sorted((a, b)))


class _Memory:
    """features(encoder, name, type, row) in one file; a file that cannot be used is done without."""

    def __init__(self, path: Path):
        self.path = path
        self.usable = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as file, file:
                file.execute(
                    "create table if not exists features(encoder text, name text, type text, row blob, "
                    "primary key (encoder, name)) without rowid"
                )
        except (OSError, sqlite3.Error):
            self.usable = False

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)

    def read(self, encoder: str, names: Sequence[str]) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        if not names or not self.usable:
            return found
        try:
            with closing(self._open()) as file:
                for start in range(0, len(names), 500):
                    part = names[start : start + 500]
                    marks = ",".join("?" * len(part))
                    question = f"select name, type, row from features where encoder = ? and name in ({marks})"
                    for name, kind, row in file.execute(question, (encoder, *part)):
                        found[name] = np.frombuffer(row, dtype=np.dtype(kind))
        except sqlite3.Error:
            self.usable = False
        return found

    def write(self, encoder: str, rows: Mapping[str, Floats]) -> None:
        if not self.usable:
            return
        values = [(encoder, name, row.dtype.str, np.ascontiguousarray(row).tobytes()) for name, row in rows.items()]
        try:
            with closing(self._open()) as file, file:
                file.executemany("insert or replace into features values (?, ?, ?, ?)", values)
        except sqlite3.Error:
            self.usable = False
