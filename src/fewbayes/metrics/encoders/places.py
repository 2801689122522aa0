"""Where encoders come from: the embedded world, a folder, the caches of this machine and the hub.

An encoder is named after the published model only where each of its files is, by its SHA-256, the published one.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from fewbayes.errors import UserError
from fewbayes.files.atomic import file_sha256
from fewbayes.metrics.encoders.base import Encoder, Missing, Role, roles
from fewbayes.metrics.weights import FOLDER_VARIABLE, HubModel, WeightFile, is_published


class Place(ABC):
    """Loads each role once, at the latest when another asks for it."""

    def __init__(self, device: str | None):
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded: dict[str, Encoder | Missing] = {}

    def __getitem__(self, key: str) -> Encoder | Missing:
        """An encoder, or why there is none: files that are absent, damaged or of another model."""
        if key not in self._loaded:
            role = roles()[key]
            try:
                self._loaded[key] = self._load(role)
            except Exception as error:  # torch, pickle, safetensors and the hub client have a dozen, none in common
                said = str(error).strip() or type(error).__name__
                self._loaded[key] = Missing(self._name(role), said.splitlines()[0])
        return self._loaded[key]

    def need(self, key: str) -> Any:
        """An encoder that another one is made from."""
        found = self[key]
        if isinstance(found, Missing):
            raise UserError(found.reason)
        return found

    @abstractmethod
    def _load(self, role: Role) -> Encoder: ...

    @abstractmethod
    def _name(self, role: Role) -> str: ...


class Embedded(Place):
    """The evaluators of the embedded world in the roles of the published ones, under their own names."""

    def __init__(self, folder: Path, device: str | None = None):
        super().__init__(device)
        self.folder = folder

    def _load(self, role: Role) -> Encoder:
        if role.embedded is None:
            raise UserError("the embedded world has no counterpart of it")
        return role.embedded(self)

    def _name(self, role: Role) -> str:
        return role.embedded_name or role.name


class Published(Place):
    """A folder as --fetch-weights fills it; with `hub`, the caches of this machine and the hub too."""

    def __init__(self, folder: Path | None, device: str | None = None, *, hub: bool = False, offline: bool = True):
        super().__init__(device)
        self.folder, self.hub, self.offline = folder, hub, offline
        caches = (Path(torch.hub.get_dir()) / "checkpoints", Path.home() / ".cache" / "clip") if hub else ()
        self.folders = [place for place in (folder, *caches) if place]

    def _load(self, role: Role) -> Encoder:
        return role.published(self)

    def _name(self, role: Role) -> str:
        return role.name

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
