"""The header of a safetensors file: what tensors it says it holds, checked before any of them is read.

Also its writing in one order, so that equal tensors and words make equal bytes. Knows no tensor library's types.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewbayes.files.decode import Count, parse_json, refuse, typed

MOST_HEADER = 100_000_000
"""Bytes; the limit of the format's own reader."""


@dataclass(frozen=True)
class Tensor:
    """A tensor by its header. data_offsets: where its bytes begin and end, counted from the end of the header."""

    dtype: str
    shape: list[Count]
    data_offsets: tuple[Count, Count]


@dataclass(frozen=True)
class Header:
    """tensors: by name; metadata: what the writer says of the file; start: where the bytes of the tensors begin."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    start: int = 8


def read_header(path: str | Path, *, cure: str = "fetch or copy it again") -> Header:
    """The header of a file that is as long as it says; UserError for what is damaged, cut short or something else."""
    path = Path(path)
    if not path.is_file() or path.stat().st_size < 8:
        refuse(f"{path} is missing or empty", cure)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MOST_HEADER):
            refuse(f"{path} is damaged, cut short or no safetensors file", cure)
        data = file.read(length)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        refuse(f"{path} is damaged or no safetensors file: its header is no text", cure)
    content = typed(parse_json(text, f"the header of {path}", cure=cure), dict[str, Any], str(path), cure=cure)
    metadata = typed(content.pop("__metadata__", {}), dict[str, str], f"the metadata of {path}", cure=cure)
    tensors = typed(content, dict[str, Tensor], f"the header of {path}", cure=cure)
    end = 8 + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if size != end:
        refuse(f"{path} is cut short ({size} bytes of {end})", cure)
    return Header(tensors, metadata, 8 + length)


def sort_header(path: str | Path) -> None:
    """Rewrites a header in place with its words in the order of their names: the library writes them in any order."""
    with Path(path).open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # else the words have signs that the library spells otherwise: as it was
            file.seek(8)
            file.write(text.ljust(length))
