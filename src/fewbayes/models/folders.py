"""Pipeline folders in the diffusers layout: what must lie in one, every check of it, what it is known by.

Everything is read from names, settings and headers, so a bad folder is refused in milliseconds, before anything heavy
is imported. Knows no family: what a folder has to hold is told by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fewbayes.errors import UserError
from fewbayes.files.decode import plain_json, typed
from fewbayes.files.safetensors import read_header
from fewbayes.models.configs import SCHEMAS, ModelIndex, Settings, WeightIndex
from fewbayes.models.family import Layout, Part, tokenizer_of
from fewbayes.world.pipelines import PIPELINES, is_embedded, shipped

if TYPE_CHECKING:
    from torch import nn

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SETTINGS = "fewbayes.json"
INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
AGAIN = "fetch or copy the model again"


def check_layout(folder: Path, family: type[Layout]) -> None:
    """Check every part of a pipeline by its files alone; UserError names the first thing that is wrong."""
    index = read_json(folder / INDEX, ModelIndex)
    parts, tokenizers = present(folder, family)
    for name in parts:
        _check_weights(folder, name, family, index)
    for tokenizer in tokenizers:
        _check_tokenizer(folder / tokenizer)
    read_json(folder / SCHEDULER)


def present(folder: Path, family: type[Layout]) -> tuple[dict[str, Part], list[str]]:
    """The parts and the tokenizers of a folder: all of the family's but the optional ones that it names as null."""
    absent = {
        name
        for name, part in family.parts.items()
        if part.optional and (folder / INDEX).is_file() and not any(read_json(folder / INDEX).get(name) or ())
    }
    parts = {name: part for name, part in family.parts.items() if name not in absent}
    without = {tokenizer_of(name) for name in absent}
    return parts, [name for name in family.tokenizer_parts if name not in without]


def left_out(folder: Path, family: type[Layout]) -> dict[str, None]:
    """What a folder names as null, as `from_pretrained` of its pipeline's class has to be told."""
    parts, tokenizers = present(folder, family)
    return dict.fromkeys(name for name in (*family.parts, *family.tokenizer_parts) if name not in (*parts, *tokenizers))


def settings_of(folder: Path) -> dict[str, Any]:
    """What a folder says to this program: `recommended` settings and the `rare_token`, where it says anything."""
    return read_json(folder / SETTINGS, Settings) if (folder / SETTINGS).is_file() else {}


def fingerprint(folder: Path, family: type[Layout]) -> str:
    """sha256 over the files of the parts that we load, names and contents, in the order of the layout."""
    parts, tokenizers = present(folder, family)
    # Files of other precisions or formats in the same folder are not what is loaded.
    files = [
        path
        for part in (*parts, *tokenizers, "scheduler")
        for path in sorted((folder / part).iterdir())
        if path.suffix in (".json", ".txt") or path in weight_files(folder, part, family.parts.get(part))
    ]
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def part_class(part: Part) -> Any:
    return getattr(import_module(part.library), part.kind)


def meta_part(folder: Path, name: str, part: Part) -> nn.Module:
    """A part without weights, on the meta device, from its config.json."""
    import torch

    with quiet(), torch.device("meta"):
        kind = part_class(part)
        config = read_json(folder / name / "config.json")
        made = kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class.from_dict(config))
        return made.to(getattr(torch, part.dtype))


def locate(model: str) -> Path:
    """The folder of an embedded pipeline, of a path or of a hub id, which is downloaded if it is not here yet."""
    if is_embedded(model):
        if not ((folder := PIPELINES[model]) / INDEX).is_file():
            raise UserError(
                f"the embedded model {model} is not in this installation ({folder} is missing); "
                f"here are {', '.join(shipped()) or 'none: install fewbayes anew'}"
            )
        return folder
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_symlink() and not path.exists():
        raise UserError(f"model {model!r} is a link to {path.resolve()}, which is missing; mend or remove it")
    if path.is_file() or path.suffix.lower() in (".safetensors", *PICKLES):
        raise UserError(f"model {model!r}: {_single_file(path)}")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise UserError(
            f"model {model!r}: there is no such folder; give {', '.join(shipped())}, a pipeline folder or a hub id "
            "(owner/name)"
        )
    return _from_hub(model)


def _single_file(path: Path) -> str:
    """Why a file is no pipeline, and what to do with it."""
    if not path.is_file():
        return "there is no such file, and a model is a folder: give a pipeline folder, a hub id or tiny"
    if path.suffix.lower() == ".safetensors" and any("lora" in name for name in read_header(path).tensors):
        return "it is a LoRA, which changes a model: name the model under it (--base, where a LoRA is taken)"
    return (
        'it is a single file, and a pipeline folder is needed. Make one: python -c "from diffusers import '
        f"StableDiffusionPipeline as P; P.from_single_file('{path}').save_pretrained('FOLDER')\" "
        "(StableDiffusionXLPipeline for SDXL), and give FOLDER"
    )


def _from_hub(model: str) -> Path:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        without = dict.fromkeys(("safety_checker", "feature_extractor"))
        return Path(DiffusionPipeline.download(model, use_safetensors=True, **cast("Any", without)))
    except Exception as error:  # the hub client has a dozen classes of errors and no common one
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {model!r} is neither a folder here nor to be had from the hub ({reason}); without a network, "
            "give the path of a pipeline folder or 'tiny'"
        ) from error


def read_json(path: Path, schema: Any = dict[str, Any]) -> dict[str, Any]:
    """All that a JSON file of a model holds, held to be as `schema` says; UserError names what is not."""
    if not path.is_file():
        raise UserError(f"{path} is missing; a pipeline folder in the diffusers layout has it")
    value = plain_json(path, cure=AGAIN)
    typed(value, schema, str(path), cure=AGAIN)
    return value


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """What the libraries say of files that do not fit each other, as one line that names their folder."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # they raise nearly anything
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{folder} does not load: its files do not fit each other ({said}); {AGAIN}") from error


def what_it_is(kind: str) -> str:
    """What is known of a pipeline that is not for us, in words."""
    if kind == "StableDiffusionXLImg2ImgPipeline":
        return ", as SDXL's refiner is, which only reworks what the base model draws: give the base model"
    if "Inpaint" in kind:
        return ", an inpainting model: choose the text-to-image one"
    return ""


def weight_files(folder: Path, name: str, part: Part | None) -> list[Path]:
    """The safetensors files that loading will read: one file, or the shards of an index; none without a part."""
    stem = part.stem if part else ""
    for variant in ("", ".fp16") if part else ():
        whole = folder / name / f"{stem}{variant}.safetensors"
        if whole.is_file():
            return [whole]
        index = folder / name / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return [folder / name / file for file in sorted(set(read_json(index, WeightIndex)["weight_map"].values()))]
    return []


def _check_weights(folder: Path, name: str, family: type[Layout], index: dict[str, Any]) -> None:
    part = family.parts[name]
    if not (folder / name).is_dir():
        raise UserError(f"the model folder {folder} has no {name}/; a {index['_class_name']} needs it")
    entry = index.get(name)
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if found != part.kind:
        raise UserError(f"the {name} of {folder} is a {found}; this program knows {part.kind}")
    config = read_json(folder / name / "config.json", SCHEMAS.get(part.kind, dict[str, Any]))
    if config.get("quantization_config"):
        raise UserError(f"the {name} of {folder} is stored quantised, which is not read here; take the full weights")
    weights = weight_files(folder, name, part)
    if not weights:
        pickles = sorted(path.name for path in (folder / name).iterdir() if path.suffix in PICKLES)
        if pickles:
            raise UserError(
                f"{folder / name} holds only pickled weights ({pickles[0]}), which can run any code when they are read "
                "and are refused; save the pipeline once with safe_serialization=True"
            )
        raise UserError(f"{folder / name} holds no weights; {part.stem}.safetensors is missing")
    for path in weights:
        read_header(path, cure=AGAIN)  # a file cut short in a download is found without reading the weights


def _check_tokenizer(tokenizer: Path) -> None:
    if (tokenizer / "tokenizer.json").is_file():
        return
    missing = [name for name in ("vocab.json", "merges.txt") if not (tokenizer / name).is_file()]
    if missing:
        raise UserError(
            f"the {tokenizer.name} of {tokenizer.parent} lacks {' and '.join(missing)}; fetch or copy the model again"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Loading bars and advice of the libraries say nothing to our users."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bar in zip((diffusers_logging, transformers_logging), before, bars, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
