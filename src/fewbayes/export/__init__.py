"""Exports: what a run has learned, in the formats that other programs load.

A run's result is one of four kinds (see `trained.kind_of`) and there are seven formats; ROUTES says which pairs
are written and why the others are not. Everything written is the mean of the weights: a Bayesian run exports exactly
what a plain one does. This file picks the way and refuses early; it imports torch only once it is sure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from fewbayes.errors import UserError
from fewbayes.export.record import Dtype, Format, read_record
from fewbayes.fields import setting
from fewbayes.files.atomic import new_folder
from fewbayes.models.registry import family_of
from fewbayes.progress import doing
from fewbayes.settings.flags import parse_command

if TYPE_CHECKING:
    from fewbayes.settings.config import TrainConfig

FORMATS: tuple[str, ...] = get_args(Format)
OF_OTHERS = ("kohya", "comfyui", "original")
"""Formats with layers under other programs' names, which a family has or has not (`Family.formats`)."""
DTYPES: tuple[str, ...] = get_args(Dtype)
DEFAULT_RANK = 16

# (kind, format): how it is written ("lora": as it is, "svd": by truncated SVD, ...), or why it is not
ROUTES = {
    ("lora", "diffusers"): "lora",
    ("lora", "peft"): "peft",
    ("lora", "kohya"): "lora",
    ("lora", "comfyui"): "lora",
    ("lora", "merged"): "pipeline",
    ("lora", "original"): "original",
    ("lora", "svd-lora"): "!a LoRA is of low rank as it is; choose diffusers, peft, kohya or comfyui",
    ("full", "diffusers"): "pipeline",
    ("full", "merged"): "pipeline",
    ("full", "original"): "original",
    ("full", "svd-lora"): "svd",
    ("full", "kohya"): "svd",
    ("full", "comfyui"): "svd",
    ("full", "peft"): "!full fine-tuning has no adapter for PEFT to load; choose diffusers for the whole pipeline, or "
    "svd-lora for a LoRA that comes near it",
    ("adapter", "diffusers"): "!diffusers loads LoRA and LoKr adapters only (an OFT file is written without complaint "
    "and fails when it is loaded); choose merged for a whole pipeline, peft for the adapter, or svd-lora",
    ("adapter", "peft"): "peft",
    ("adapter", "merged"): "pipeline",
    ("adapter", "original"): "original",
    ("adapter", "svd-lora"): "svd",
    ("adapter", "kohya"): "svd",
    ("adapter", "comfyui"): "svd",
}


def write_export(
    run: str | Path,
    format: str,
    output_dir: str | Path,
    *,
    rank: int | None = None,
    weights: str | None = None,
    dtype: str = "fp32",
) -> Path:
    """Write the model of a finished run in one of FORMATS; the folder, which must be new or empty.

    rank: of a LoRA made by SVD, 16 if not said. weights: "raw" or "ema", None for those that the run has exported.
    dtype: what the weights are stored in, one of DTYPES.
    """
    output = Path(output_dir)
    new_folder(output)
    if rank is not None and rank < 1:
        raise UserError(f"rank is {rank}; it must be at least 1")
    from fewbayes.export.trained import find_run, kind_of

    found = find_run(run)
    route = route_of(found.config, kind_of(found), format)
    family = family_of(found.config.model)
    if format in OF_OTHERS and format not in family.formats:
        able = [name for name in FORMATS if name not in OF_OTHERS or name in family.formats]
        raise UserError(
            f"{format} is not written of {family.described}, whose layers have no names there; take {', '.join(able)}"
        )
    if rank is not None and route != "svd":
        raise UserError(f"rank means nothing for {format} of this run: it is of LoRAs that are made by SVD")
    from fewbayes.export.trained import load_trained
    from fewbayes.export.write import write

    return write(load_trained(found, weights), format, route, output, rank=rank or DEFAULT_RANK, dtype=dtype)


def route_of(config: TrainConfig, kind: str, format: str) -> str:
    """How a run of this kind is written in this format; ValueError says why it is not, and what is instead."""
    if format not in FORMATS:
        raise UserError(f"format {format!r} is not known; choose one of {', '.join(FORMATS)}")
    route = ROUTES[kind, format]
    if (kind, format) == ("adapter", "diffusers") and config.use_dora:
        return "lora"
    if route.startswith("!"):
        raise UserError(f"{config.method} as {format}: {route[1:]}")
    return route


@dataclass(frozen=True, kw_only=True)
class Export:
    """The model of a run in the format that another program loads."""

    run: str = setting(positional=True)
    """The output_dir of a finished training, its best or its checkpoint-N."""
    format: str = setting(choices=FORMATS)
    """docs/exports.md says who reads which."""
    output_dir: str
    """A new or empty folder."""
    rank: int | None = setting(None, above=0)
    """Of a LoRA made by SVD. None: 16."""
    weights: Literal["raw", "ema"] | None = None
    """None: what the run exported."""
    dtype: str = setting("fp32", choices=DTYPES)
    """What the weights are stored in."""


def run_export(arguments: list[str]) -> int:
    """The command `fewbayes export`; the exit code."""
    asked = parse_command(Export, arguments, "export")
    with doing(f"Loading {asked.run} and writing it as {asked.format}"):
        folder = write_export(
            asked.run, asked.format, asked.output_dir, rank=asked.rank, weights=asked.weights, dtype=asked.dtype
        )
    record = read_record(folder)
    if record.residual and record.rank:
        from fewbayes.export.svd import residual_table

        print(residual_table(record.residual, record.rank))
    print("".join(f"{note}\n" for note in record.notes), end="")
    print(f"done: {folder}\nTo see that it loads and gives the same pictures: fewbayes verify {folder}")
    return 0
