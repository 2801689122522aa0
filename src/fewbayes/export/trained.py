"""A finished run in memory, and what can be made of it: plain weights, changes of weights, low-rank layers.

Adapters are read from the live PEFT modules, so it does not matter in which file a method keeps its result. Knows
nothing of file formats or of key layouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewbayes.errors import UserError
from fewbayes.methods import registered
from fewbayes.models import Family, ModelCard, load_family
from fewbayes.models.family import changeable, tokenizer_of
from fewbayes.models.lora_reading import Factors
from fewbayes.runs.layout import CONFIG, MANIFEST
from fewbayes.runs.opening import Found, find, open_model


def name_of(run: Found) -> str:
    """What files made of it are called: the run's name, with the checkpoint's or best's behind it."""
    name = run.run.resolve().name
    return name if run.kind == "run" else f"{name}-{run.path.name}"


def kind_of(run: Found) -> str:
    """See `methods.Registered`; LoRAs with DoRA are no sums of low-rank products any more."""
    kind = registered()[run.config.method].kind
    return "adapter" if kind == "lora" and run.config.use_dora else kind


@dataclass
class Trained:
    """A run's model. `family` holds its adapters, if it has any, until `merge` is called."""

    run: Found
    family: Family
    base: ModelCard
    rare_token: str | None
    weights: str

    @property
    def parts(self) -> dict[str, nn.Module]:
        return changeable(self.family)

    def merge(self) -> None:
        """The adapters become part of the weights, and the modules are of their plain classes again."""
        self._bake_rare_token()
        for module in self.parts.values():
            merge_adapters(module)

    @torch.no_grad()
    def rare_rows(self) -> dict[str, Tensor]:
        """Text encoder -> the embedding that was learned for the rare token, (tokens, width); {} where none was."""
        if not self.run.config.train_rare_token:
            return {}
        return {
            name: cast("Any", encoder)
            .get_input_embeddings()(self._rare_ids(name))
            .clone()  # as the encoder sees it, hooks and all
            for name, encoder in self.family.text_encoders.items()
        }

    def _bake_rare_token(self) -> None:
        for name, rows in self.rare_rows().items():
            embedding = cast("Any", self.family.text_encoders[name]).get_input_embeddings()
            embedding.weight.data[self._rare_ids(name)] = rows
            embedding._forward_hooks.clear()

    def _rare_ids(self, encoder: str) -> Tensor:
        tokenizer = self.family.tokenizers[tokenizer_of(encoder)]
        ids = dict.fromkeys(tokenizer(self.rare_token, add_special_tokens=False).input_ids)
        return torch.tensor(list(ids), device=self.family.device)


def find_run(folder: str | Path) -> Found:
    """A finished run, its best/ or a checkpoint; UserError for anything else."""
    found = find(folder)
    if found is None:
        raise UserError(f"{folder} is no run: it has no {CONFIG} and {MANIFEST}; give the output_dir of a training")
    if found.kind == "run" and found.manifest.status != "done":
        raise UserError(
            f"the run {folder} is not done (status {found.manifest.status}); give its training command again"
        )
    return found


def load_trained(run: Found, weights: str | None = None) -> Trained:
    """The run's model as it samples. weights: "raw" or "ema", None for what the run has exported."""
    base = run.base_card()
    family, rare_token = open_model(run.path, weights)
    return Trained(run, family, base, rare_token, weights or run.exported or "raw")


@torch.no_grad()
def merge_adapters(module: nn.Module) -> None:
    """Replaces every PEFT layer by its base layer with the adapter's change added to the weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, layer in layers.items():
        cast("Any", layer).merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())
    for mark in ("peft_config", "_hf_peft_config_loaded"):
        if mark in vars(module):
            delattr(module, mark)


def weight_changes(trained: Trained) -> dict[str, dict[str, Tensor]]:
    """Part -> weight -> what the run has added to the base model's, where it has; the adapters get merged.

    The learned embedding of the rare token is left out: `Trained.rare_rows` has it.
    """
    trained.merge()
    before = changeable(load_family(trained.base))
    changes: dict[str, dict[str, Tensor]] = {}
    for part, module in trained.parts.items():
        old = before[part].state_dict()
        new = module.state_dict()
        change = {name: new[name] - old[name].to(new[name].device) for name in old if new[name].is_floating_point()}
        if trained.run.config.train_rare_token:
            change = {name: delta for name, delta in change.items() if not name.endswith("token_embedding.weight")}
        changes[part] = {name: delta for name, delta in change.items() if bool(delta.any())}
    return {part: change for part, change in changes.items() if change}


@dataclass(frozen=True)
class LowRank(Factors):
    """Factors as they are written: their strength is inside the weights, so alpha equals the rank, by definition."""

    def to(self, dtype: torch.dtype) -> LowRank:
        magnitude = None if self.magnitude is None else self.magnitude.to(dtype)
        return LowRank(self.down.to(dtype).contiguous(), self.up.to(dtype).contiguous(), magnitude)

    def padded(self, rank: int) -> LowRank:
        """The same change with zeros up to a rank: readers without per-layer alphas want one rank for all."""
        more = rank - self.rank
        if not more:
            return self
        down = torch.cat([self.down, self.down.new_zeros(more, *self.down.shape[1:])])
        up = torch.cat([self.up, self.up.new_zeros(self.up.shape[0], more, *self.up.shape[2:])], dim=1)
        return LowRank(down, up, self.magnitude)


Layers = dict[str, dict[str, LowRank]]
"""Part of the pipeline -> name of the layer in it -> its change."""


def lora_layers(trained: Trained) -> Layers:
    """The LoRA of a run, one rank for all, alpha (and rsLoRA's root) multiplied into `up`."""
    layers = {part: _layers_of(module) for part, module in trained.parts.items()}
    rank = max(layer.rank for part in layers.values() for layer in part.values())
    return {
        part: {name: layer.padded(rank) for name, layer in named.items()} for part, named in layers.items() if named
    }


@torch.no_grad()
def _layers_of(module: nn.Module) -> dict[str, LowRank]:
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        (adapter,) = layer.active_adapters
        up, down = cast("Any", layer.lora_B[adapter]), cast("Any", layer.lora_A[adapter])
        assert up.bias is None, f"{name}: a LoRA with biases"
        dora = cast("Any", layer.lora_magnitude_vector)
        found[name] = LowRank(
            down.weight.detach().clone(),
            up.weight.detach() * layer.scaling[adapter],
            dora[adapter].weight.detach().clone() if adapter in dora else None,
        )
    return found
