"""Adapters in linear layers: which layers, put in reproducibly, switched, and taken out without a trace.

What methods that train adapters have in common; the layers themselves are PEFT's, and which ones attention is made of
is told by the model's family. Knows no single method and no loss.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.decode import read_json
from fewbayes.files.safetensors import sort_header
from fewbayes.methods.registry import Method, MethodSettings
from fewbayes.seeds import stream_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewbayes.models import Family

ADAPTER = "default"  # PEFT's own name for an only adapter
PEFT_FOLDERS = "{denoiser}/adapter_config.json"  # the result of methods that PEFT saves itself


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(MethodSettings):
    adapter_targets: str = setting("attention", patterns=("attention", "attention+ff"))
    """Layers that get an adapter: attention, attention+ff, or pattern:<regex> over the names of linear layers."""


def trained_parts(family: Family, config: MethodSettings) -> dict[str, nn.Module]:
    """The modules with trained weights by the name that begins their parameters' names."""
    return {"denoiser": family.denoiser, **(family.text_encoders if config.train_text_encoder else {})}


def folder_of(family: Family, part: str) -> str:
    """What a pipeline calls one of `trained_parts`: its folder there, and the prefix of its layers in files."""
    return family.denoiser_part if part == "denoiser" else part


def target_layers(family: Family, part: str, module: nn.Module, targets: str) -> list[str]:
    """What PEFT is to find: endings of layer names, or whole names where `targets` is a pattern.

    Text encoders are adapted in their attention layers whatever the denoiser's targets are.
    """
    if part != "denoiser":
        return list(family.text_targets)
    named = targets.split("+")
    if all(name in family.adapter_targets for name in named):
        return [end for name in named for end in family.adapter_targets[name]]
    if not targets.startswith("pattern:"):
        raise UserError(
            f"adapter_targets is {targets!r}; take attention, attention+ff or pattern:<regular expression of names>"
        )
    try:
        pattern = re.compile(targets.removeprefix("pattern:"))
    except re.error as error:
        raise UserError(f"adapter_targets {targets!r} is not a regular expression: {error}") from error
    linear = linear_layers(module)
    names = [name for name in linear if pattern.search(name)]
    if not names:
        few = ", ".join(list(linear)[:3])
        raise UserError(f"adapter_targets {targets!r} matches none of the {len(linear)} linear layers, as {few}")
    return names


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    from torch import nn

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def targeted(module: nn.Module, targets: list[str]) -> dict[str, nn.Linear]:
    """The linear layers with one of these names or endings of names."""
    return {
        name: layer
        for name, layer in linear_layers(module).items()
        if any(name == end or name.endswith(f".{end}") for end in targets)
    }


@contextmanager
def seeded(seed: int, stream: str, *index: int) -> Iterator[None]:
    """Inside, what draws from torch's global CPU generator draws from a stream of ours; afterwards it is as before."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, stream, *index))
        yield


def adapter_layers(module: nn.Module) -> dict[str, Any]:
    """The layers that PEFT has put in, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


def replace_layer(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)


def copy_state(target: Mapping[str, Tensor], source: Mapping[str, Tensor], file: Path) -> None:
    """Copy a file's tensors over the live ones; names and shapes must agree."""
    import torch

    different = sorted(target.keys() ^ source.keys())
    if different:
        raise UserError(
            f"{file} holds an adapter of other layers or of another kind ({len(different)} names differ, as "
            f"{different[0]}); give it to a run of the settings it was trained with"
        )
    for name, tensor in target.items():
        if tensor.shape != source[name].shape:
            raise UserError(
                f"{name} has shape {tuple(source[name].shape)} in {file} and {tuple(tensor.shape)} here: "
                "the rank, the blocks or the model differ"
            )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def save_tensors(file: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """A safetensors file of live tensors; the same ones make the same bytes."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: it.detach().cpu().clone().contiguous() for name, it in tensors.items()}, file, metadata=header)
    sort_header(file)


class PeftMethod(Method):
    """The verbs that all methods of PEFT share; a subclass says which layers it wants and how they are saved."""

    def tuner(self) -> Callable[..., Any]:
        """PEFT's class that replaces layers."""
        raise NotImplementedError

    def peft_config(self, part: str, module: nn.Module, targets: list[str]) -> Any:
        """PEFT's settings for one module; UserError where they do not fit its layers. targets: names or their ends."""
        raise NotImplementedError

    def attach(self, family: Family) -> None:
        parts = trained_parts(family, self.config)
        targets = {name: target_layers(family, name, it, self.config.adapter_targets) for name, it in parts.items()}
        configs = {name: self.peft_config(name, it, targets[name]) for name, it in parts.items()}  # refusals come first
        for name, part in parts.items():
            with seeded(self.config.seed, f"adapter {name}"):
                self.tuner()(part, configs[name], ADAPTER)
        for weight in PeftMethod.trainable(self, family).values():  # whatever the precision of the base
            weight.data = weight.data.float()
        self.training(family, False)

    def trainable(self, family: Family) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{key}": parameter
            for name, part in trained_parts(family, self.config).items()
            for key, parameter in part.named_parameters()
            if parameter.requires_grad
        }

    def training(self, family: Family, on: bool) -> None:
        for part in trained_parts(family, self.config).values():
            for layer in adapter_layers(part).values():
                layer.train(on)
                layer.get_base_layer().train(False)

    def state(self, module: nn.Module) -> dict[str, Tensor]:
        """The adapter's live tensors by the names that PEFT gives them in files."""
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(module, adapter_name=ADAPTER, save_embedding_layers=False)

    def detach(self, family: Family) -> None:
        for part in trained_parts(family, self.config).values():
            for name, layer in adapter_layers(part).items():
                replace_layer(part, name, layer.get_base_layer())
            if hasattr(part, "peft_config"):
                del part.peft_config
            part.requires_grad_(False)


class PeftFolders(PeftMethod):
    """Methods whose result is PEFT's own folder for each module: adapter_config.json, adapter_model.safetensors."""

    def export(self, family: Family, folder: Path) -> None:
        for name, part in trained_parts(family, self.config).items():
            into = folder / folder_of(family, name)
            save_tensors(into / "adapter_model.safetensors", self.file_state(part), {"format": "pt"})
            cast("Any", part).peft_config[ADAPTER].save_pretrained(str(into))
            told = read_json(into / "adapter_config.json", dict[str, Any])  # PEFT writes sets in any order
            told = {key: sorted(value) if isinstance(value, list) else value for key, value in told.items()}
            (into / "adapter_config.json").write_text(json.dumps(told, indent=2, sort_keys=True))

    def load(self, family: Family, folder: Path) -> None:
        from safetensors.torch import load_file

        for name, part in trained_parts(family, self.config).items():
            file = folder / folder_of(family, name) / "adapter_model.safetensors"
            copy_state(self.file_state(part), load_file(file), file)

    def file_state(self, part: nn.Module) -> dict[str, Tensor]:
        return {f"base_model.model.{key}": tensor for key, tensor in self.state(part).items()}
