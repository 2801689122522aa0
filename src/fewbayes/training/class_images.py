"""Class images for prior preservation: what the model itself draws for the class prompt, before it is fine-tuned.

They are content-addressed. A set lies in a folder named after all that decides it (model, prompt, sampler, steps,
guidance, size, precision, seed), so a change of any of these never meets stale pictures, and class_images.json in it
says the same in words and is read before a picture is used; each file carries the hash of its bytes in its name, so a
damaged or half-written one is noticed and drawn again. Image i is a function of (settings, i) alone.
Knows nothing of training.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from fewbayes.errors import UserError
from fewbayes.files.atomic import atomic_write
from fewbayes.models import Family
from fewbayes.models.sampling import sample_images
from fewbayes.seeds import stream_seed

MANIFEST = "class_images.json"


@dataclass(frozen=True)
class ClassImageSettings:
    """All that decides what a class image looks like."""

    model: str  # the fingerprint, not the path
    prompt: str
    negative_prompt: str
    resolution: int
    sampler: str
    steps: int
    guidance: float
    precision: str
    seed: int

    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def present(folder: Path, count: int) -> dict[int, Path]:
    """The whole class images among the first `count`, by index; files that disagree with their name do not count."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*.png")):
        index, _, digest = path.stem.partition("-")
        if index.isdigit() and int(index) < count and _digest(path.read_bytes()) == digest:
            found[int(index)] = path
    return found


def ensure_class_images(
    family: Family,
    root: Path,
    settings: ClassImageSettings,
    count: int,
    *,
    batch_size: int = 4,
    rank: int = 0,
    processes: int = 1,
    said: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Draw what is missing of `count` class images; the folder that holds them.

    With several processes each draws the missing ones among its own indices, rank, rank + processes, ..., whatever the
    others have drawn by then; the caller lets all of them finish before the folder is read. ValueError for a folder
    whose class_images.json tells of other settings.
    said(done, total) is called after each batch.
    """
    folder = root / settings.key()
    _check_manifest(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0 and not (folder / MANIFEST).exists():
        atomic_write(folder / MANIFEST, json.dumps(asdict(settings), indent=2) + "\n")
    there = present(folder, count)
    missing = [index for index in range(rank, count, processes) if index not in there]
    for start in range(0, len(missing), batch_size):
        _draw(family, folder, settings, missing[start : start + batch_size])
        said(count - len(missing) + min(start + batch_size, len(missing)), count)
    return folder


def _check_manifest(folder: Path, settings: ClassImageSettings) -> None:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        found = None
    asked = asdict(settings)
    if found != asked:
        keys = [key for key in asked if not isinstance(found, dict) or found.get(key) != asked[key]]
        raise UserError(
            f"{path} was changed or damaged: it differs from what its folder is named after in "
            f"{', '.join(keys) or 'the keys it has'}; remove {folder}, or give another class_data_dir"
        )


def _draw(family: Family, folder: Path, settings: ClassImageSettings, indices: Sequence[int]) -> None:
    pictures = sample_images(
        family,
        [settings.prompt] * len(indices),
        [stream_seed(settings.seed, "class", index) for index in indices],
        sampler=settings.sampler,
        steps=settings.steps,
        guidance=settings.guidance,
        negative_prompt=settings.negative_prompt,
        resolution=settings.resolution,
        batch_size=len(indices),
    )
    for index, picture in zip(indices, pictures, strict=True):
        for stale in folder.glob(f"{index:05d}-*.png"):
            stale.unlink()
        content = _png(picture)
        atomic_write(folder / f"{index:05d}-{_digest(content)}.png", content)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
