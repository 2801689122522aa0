"""Where encoders come from: the embedded world, a folder, the caches of this machine and the hub.

An encoder is named after the published model only where each of its files is, by its SHA-256, the published one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from fewbayes.errors import UserError
from fewbayes.files.atomic import file_sha256
from fewbayes.metrics.encoders.base import ROLES, Encoder, Missing
from fewbayes.metrics.weights import FOLDER_VARIABLE, HubModel, WeightFile, is_published


class Place:
    """Loads each role once, at the latest when another asks for it.

    folder: as --fetch-weights fills it, or with `world` that of the evaluators of the embedded world, which play under
    their own names. hub: look into the caches of this machine and the hub too.
    """

    def __init__(
        self,
        folder: Path | None,
        device: str | None = None,
        *,
        world: bool = False,
        hub: bool = False,
        offline: bool = True,
    ):
        self.folder, self.world, self.hub, self.offline = folder, world, hub, offline
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        caches = (Path(torch.hub.get_dir()) / "checkpoints", Path.home() / ".cache" / "clip") if hub else ()
        self.folders = [place for place in (folder, *caches) if place]
        self._loaded: dict[str, Encoder | Missing] = {}

    def __getitem__(self, key: str) -> Encoder | Missing:
        """An encoder, or why there is none: files that are absent, damaged or of another model."""
        if key not in self._loaded:
            role = ROLES.all()[key]
            try:
                load = role.embedded if self.world else role.published
                if load is None:
                    raise UserError("the embedded world has no counterpart of it")
                self._loaded[key] = load(self)
            except Exception as error:  # torch, pickle, safetensors and the hub client have a dozen, none in common
                said = str(error).strip() or type(error).__name__
                name = role.embedded_name if self.world and role.embedded_name else role.name
                self._loaded[key] = Missing(name, said.splitlines()[0])
        return self._loaded[key]

    def need(self, key: str) -> Any:
        """An encoder that another one is made from."""
        found = self[key]
        if isinstance(found, Missing):
            raise UserError(found.reason)
        return found

    def inside(self, name: str) -> Path:
        """A model's folder in this one."""
        assert self.folder
        return there(self.folder / name)

    def model(self, model: HubModel) -> tuple[Path, str]:
        """Where a model lies, and what it is to be called."""
        if self.folder and (local := self.folder / model.folder).is_dir():
            return local, name_of(there(local), model)
        if not self.hub:
            raise UserError(f"there is no {model.folder} in {self.folder}")
        place = from_hub(model, self.offline)
        return place, name_of(place, model)

    def file(self, weight: WeightFile, name: str) -> tuple[Path, str]:
        """Where a file lies, and what its encoder is to be called: `name` if it is the published one."""
        path = next((folder / weight.file for folder in self.folders if (folder / weight.file).is_file()), None)
        if path is None:
            places = " or ".join(map(str, self.folders)) or "any folder"
            raise UserError(_not_found(f"there is no {weight.file} in {places}"))
        agrees = is_published(path, weight)
        own = f"{path.stem}@{file_sha256(path)[:12]}"
        return path, name if agrees else own if agrees is False else f"{own} (unverified)"


def with_other(name: str, named: str, published: str) -> str:
    """What an encoder of two files is to be called, by what each of them calls it."""
    return name if named == published else f"{name} with {named}"


def there(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise UserError(f"there is no model in {folder}")
    return folder


def weight_file(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds no model.safetensors")


def name_of(folder: Path, model: HubModel) -> str:
    """The published name where every listed file is known to be the published one; else what differs is said."""
    state: dict[str, bool | None] = {}
    for weight in model.listed():
        path = folder / Path(weight.file).name
        state[path.name] = is_published(path, weight) if path.is_file() else False
    if all(state.values()):
        return model.repository
    own = f"{model.folder}@{file_sha256(weight_file(folder))[:12]}"
    other = [file for file, agrees in state.items() if agrees is False and file != "model.safetensors"]
    if other:
        own += f" with another {', '.join(other)}"
    return own if False in state.values() else f"{own} (unverified)"


def from_hub(model: HubModel, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = {"repo_id": model.repository, "revision": model.revision, "allow_patterns": list(model.files)}
    try:
        return _whole(Path(snapshot_download(**wanted, local_files_only=True)), model)
    except Exception as error:  # not in the cache, or a download that was cut off
        if offline or os.environ.get("HF_HUB_OFFLINE") == "1":
            raise UserError(_not_found(f"{model.repository} is not in the cache of the hub")) from error
    try:
        return _whole(Path(snapshot_download(**wanted)), model)
    except Exception as error:
        raise UserError(_not_found(f"{model.repository} cannot be had from the hub")) from error


def _whole(folder: Path, model: HubModel) -> Path:
    absent = [file for file in model.files if not (folder / file).is_file()]
    if absent:
        raise UserError(f"{folder} lacks {', '.join(absent)}")
    return folder


def _not_found(what: str) -> str:
    return f"{what}; fetch it by `fewbayes evaluate --fetch-weights DIR` and give --encoders DIR or {FOLDER_VARIABLE}"
