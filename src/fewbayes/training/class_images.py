"""Class images for prior preservation: what the model itself draws for the class prompt, before it is fine-tuned.

They are content-addressed. A set lies in a folder named after all that decides it (model, prompt, sampler, steps,
guidance, size, precision, seed), so a change of any of these never meets stale pictures, and class_images.json in it
says the same in words and is read before a picture is used; each file carries the hash of its bytes in its name, so a
damaged or half-written one is noticed and drawn again. Image i is a function of (settings, i), to the last bit for one
batch size: a batch's rounding depends on its size, so a block of neighbours is drawn as a whole or not at all, also
where some of it are there already or more than are asked for. Knows nothing of training.
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
from fewbayes.files.decode import read_json
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
    """Draw the blocks of `batch_size` that lack any of `count` class images; the folder that holds them.

    With several processes each draws its own blocks, rank, rank + processes, ..., whatever the others have drawn by
    then; the caller lets all of them finish before the folder is read. UserError for a folder whose class_images.json
    tells of other settings.
    said(done, total) is called after each block, in blocks.
    """
    folder = root / settings.key()
    _check_manifest(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0 and not (folder / MANIFEST).exists():
        atomic_write(folder / MANIFEST, json.dumps(asdict(settings), indent=2) + "\n")
    there = present(folder, count)
    blocks = [range(start, start + batch_size) for start in range(0, count, batch_size)]
    missing = [block for block in blocks[rank::processes] if not all(i in there for i in block if i < count)]
    for number, block in enumerate(missing, start=len(blocks) - len(missing) + 1):
        _draw(family, folder, settings, block)
        said(number, len(blocks))
    return folder


def _check_manifest(folder: Path, settings: ClassImageSettings) -> None:
    path = folder / MANIFEST
    if not path.exists():
        return
    cure = f"it was changed or damaged: remove {folder}, or give another class_data_dir"
    found, asked = asdict(read_json(path, ClassImageSettings, cure=cure)), asdict(settings)
    if different := [key for key in asked if found[key] != asked[key]]:
        raise UserError(f"{path} differs from what its folder is named after in {', '.join(different)}; {cure}")


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
        content = _png(picture)
        target = folder / f"{index:05d}-{_digest(content)}.png"
        for stale in folder.glob(f"{index:05d}-*.png"):
            if stale != target or stale.read_bytes() != content:
                stale.unlink()
        if not target.exists():
            atomic_write(target, content)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
