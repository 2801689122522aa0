"""export.json, in which an export says what it is and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fewbayes.errors import UserError
from fewbayes.files.decode import Positive, Sha256, read_json

RECORD = "export.json"
Format = Literal["diffusers", "peft", "kohya", "comfyui", "merged", "svd-lora", "original"]
Loader = Literal["pipeline", "lora", "peft", "original"]
Dtype = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Record:
    """loader: how others load it; file: the weight file, None for folders. run: its folder, seen from the export.

    trained: when the run ended; no other time is told, so that the same run makes the same files.
    residual: what an approximation by SVD lost, a row a layer and one for all; rank: that of the approximation.
    """

    format: Format
    loader: Loader
    run: str
    base_model: str
    base_sha256: Sha256
    family: str
    prediction_type: str
    instance_prompt: str
    resolution: Positive
    file: str | None = None
    method: str = "full"
    weights: Literal["raw", "ema"] = "raw"
    dtype: Dtype = "fp32"
    rare_token: str | None = None
    rank: Positive | None = None
    residual: list[dict[str, Any]] | None = None
    notes: list[str] = field(default_factory=list)
    trained: str | None = None
    fewbayes: str = ""


def read_record(export: str | Path) -> Record:
    """What an export says of itself; UserError where there is none."""
    path = Path(export) / RECORD
    if not path.is_file():
        raise UserError(f"{export} is no export: it has no {RECORD}; give a folder that fewbayes export wrote")
    record = read_json(path, Record, cure="export the run again into a new folder")
    if record.file is not None and Path(record.file).name != record.file:
        raise UserError(f"{path}: file is {record.file!r}; it must be the name of a file beside it")
    return record
