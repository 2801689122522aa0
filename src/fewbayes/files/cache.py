"""The user's cache folder, and answers in it that are found again by what they follow from.

What an answer follows from is told by content, never by time or path. A file that cannot be read counts for nothing,
and where nothing can be written the answer is found anew each time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from fewbayes.errors import UserError
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import read_json

T = TypeVar("T")


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewbayes"


def remembered(name: str, about: object, kind: type[T], find: Callable[[], T]) -> T:
    """What `find` finds; it is called once for each `about`, whose repr is the key. name: of the folder of answers."""
    file = cache_folder() / name / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.json"
    with suppress(UserError):
        return read_json(file, kind)
    found = find()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, msgspec.json.encode(found))
    return found
