"""Opening anything as a model: a run, its best/, its checkpoint-N, a pipeline folder, a hub id, `tiny`, an adapter.

`find` says what a name stands for, by looking at a few small files; `open_model` loads it, and torch waits until then.
Every command that takes a model takes it from here. Knows nothing of training beyond where a run keeps its config and
its weights.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewbayes.errors import UserError
from fewbayes.methods import make_method, registered
from fewbayes.models import Family, ModelCard, inspect_model, load_family
from fewbayes.models.adapters import is_adapter, load_adapter
from fewbayes.models.folders import PICKLES
from fewbayes.models.registry import family_of
from fewbayes.runs.checkpoints import Checkpoint, verify_checkpoint
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.layout import BEST_STATE, CONFIG, MANIFEST, STATE, Manifest, read_best, read_manifest
from fewbayes.settings.config import TrainConfig, load_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """Something of a run: the run itself, its best/ or one of its checkpoints. Nothing of it is loaded.

    path: what was named; run: the folder of the run that it belongs to.
    """

    kind: Literal["run", "best", "checkpoint"]
    path: Path
    run: Path
    config: TrainConfig

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.run)

    @property
    def exported(self) -> str | None:
        """Which weights lie in the result of a run or in its best/, "raw" or "ema"; None where nothing says it."""
        if self.kind == "run":
            return self.manifest.exported
        best = read_best(self.path) if self.kind == "best" else None
        return best.weights if best else None

    @property
    def step(self) -> int:
        """The training step of what was named, 1 where nothing says it."""
        if self.kind == "checkpoint":
            return verify_checkpoint(self.path).step
        run = RunFolder(self.run)
        if self.kind == "best":
            best = read_best(self.path)
            return best.step if best else 1
        return self.manifest.steps or run.newest_step() or 1

    @property
    def result(self) -> str:
        """The file of the run's result, whose presence says that the result is there."""
        entry = registered()[self.config.method]
        # only where the name depends on the model is that looked for: a run that is a pipeline opens without it
        return entry.result_in(family_of(self.config.model)) if "{" in entry.result else entry.result

    def base_card(self) -> ModelCard:
        """The model that the run began from; another one that has come to stand in its place is refused."""
        card = inspect_model(self.config.model)
        if not self.manifest.model:
            raise UserError(f"{self.run / MANIFEST}: model is missing, which says from what the run began")
        recorded = self.manifest.model.sha256
        if card.fingerprint() != recorded:
            raise UserError(
                f"the model {self.config.model} is not the one that {self.run} was trained from (its sha256 was "
                f"{recorded[:12]}...); put that model back, for what was trained is only a change of it"
            )
        return card


def find(source: str | Path) -> Found | None:
    """What of a run `source` names; None for what belongs to no run of ours."""
    path = Path(source)
    if config := _config_of(path):
        return Found("run", path, path, config)
    run = path.resolve().parent
    if (path / STATE).is_file():
        if config := _config_of(run):
            return Found("checkpoint", path, run, config)
        raise UserError(f"{run} has no {CONFIG}, which names the model that {path.name} belongs to")
    if (path / BEST_STATE).is_file() and (config := _config_of(run)):
        return Found("best", path, run, config)
    return None


def _config_of(folder: Path) -> TrainConfig | None:
    """The settings of a run; None for what is no run."""
    return load_config(folder / CONFIG, {}) if all((folder / name).is_file() for name in (CONFIG, MANIFEST)) else None


def card_of(source: str | Path, base: str | None = None) -> ModelCard:
    """What is known of the model that `open_model` would load, from its config files alone."""
    found = find(source)
    if found is None:
        return _foreign_card(str(source), base)
    whole = registered()[found.config.method].kind == "full" and (found.path / found.result).is_file()
    return inspect_model(str(found.path) if whole else found.config.model)


def open_model(
    source: str | Path,
    weights: str | None = None,
    *,
    base: str | None = None,
    lora_alpha: float | None = None,
    spoilt: bool = False,
    precision: str = "fp32",
) -> tuple[Family, str | None]:
    """The model that `source` names, on the CPU, and the word that stands for its rare token, None without one.

    weights: "raw" or "ema"; None is what a run has exported, and the raw ones of a checkpoint. What a run has not
    exported is taken from its last checkpoint.
    base: the model under `source`, where that is a LoRA file or a PEFT folder of any trainer; a run knows its own.
    lora_alpha: of a LoRA file that does not say it. spoilt: open it with numbers that are not finite too, to examine
    it. precision: "bf16", "int8" or "nf4" keeps what is no adapter so, see `Family.reduce`.
    Raises UserError for what is damaged, not there, or not what it claims to be.
    """
    found = find(source)
    if found is None:
        return _open_foreign(str(source), weights, base, lora_alpha, spoilt, precision)
    if base is not None or lora_alpha is not None:
        raise UserError(
            f"{source} belongs to a run, which knows the model under it and its alpha; leave base out, and lora_alpha"
        )
    if found.kind == "checkpoint":
        return _load_checkpoint(found, verify_checkpoint(found.path), weights or "raw", precision)
    if found.kind == "run":
        return _load_run(found, weights, precision)
    if weights:
        raise UserError(
            f"{source} holds one kind of weights, as exported; raw and averaged ones are in the run's checkpoints"
        )
    cure = f"it is not written from a checkpoint: sample from {found.run} itself or one of its checkpoint-N folders"
    return _load_result(found, cure, precision)


def _loaded(model: str | ModelCard, precision: str) -> Family:
    family = load_family(model, whole=precision == "fp32")
    if precision != "fp32":
        family.reduce(precision)
        family.fetch()
    return family


def _open_foreign(
    source: str, weights: str | None, base: str | None, lora_alpha: float | None, spoilt: bool, precision: str
) -> tuple[Family, str | None]:
    if weights:
        raise UserError(f"{source} is no run and no checkpoint of one, which alone hold raw and averaged weights")
    path = Path(source)
    if lora_alpha is not None and (base is None or lora_alpha <= 0):
        raise UserError(
            f"lora_alpha is {lora_alpha:g}; it is the alpha of a LoRA file that does not say its own, is above 0 and "
            "needs base"
        )
    card = _foreign_card(source, base)
    if base is None:
        return _loaded(card, precision), card.rare_token
    if not is_adapter(path):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{source} is a link to {path.resolve()}, which is missing; mend or remove it")
        if not path.exists():
            raise UserError(f"there is no file or folder {source}; give the LoRA's own path")
        if path.suffix.lower() in PICKLES:
            raise UserError(
                f"{source} is a pickle, which can run any code when it is opened, and is not read; ask for a "
                '.safetensors file, or convert it where you trust it: python -c "import torch, safetensors.torch as s; '
                f"s.save_file(torch.load('{path}', weights_only=True), '{path.with_suffix('.safetensors')}')\""
            )
        raise UserError(
            f"{source} is no adapter for {base}: give a LoRA in a .safetensors file, or a folder that holds "
            "pytorch_lora_weights.safetensors or a PEFT adapter_config.json"
        )
    family = _loaded(card, precision)
    load_adapter(family, path, alpha=lora_alpha, spoilt=spoilt)
    return family, card.rare_token


def _foreign_card(source: str, base: str | None) -> ModelCard:
    if base is None and is_adapter(Path(source)):
        raise UserError(f"{source} holds what was added to a model, not the model: say which with base")
    return inspect_model(base or source)


def _load_run(found: Found, weights: str | None, precision: str) -> tuple[Family, str | None]:
    run, result = found.run, found.result
    there = (run / result).is_file()
    if weights and not (there and weights == found.exported):
        return _load_checkpoint(found, _last_checkpoint(found, weights), weights, precision)
    if not there:
        raise UserError(
            f"{run} is a run without its result, {result}: give its training command again to finish it, or "
            "sample from one of its checkpoint-N folders"
        )
    _warn_if_older(found)
    cure = f"remove {result} and give the training command again, which writes it from the last checkpoint"
    return _load_result(found, cure, precision)


def _load_result(found: Found, cure: str, precision: str) -> tuple[Family, str | None]:
    """What the method of a run has exported; cure: what helps where that is damaged."""
    from safetensors import SafetensorError

    method = make_method(found.config)
    whole = registered()[found.config.method].kind == "full"
    family = None if whole else _loaded(found.base_card(), precision)
    if family is not None:
        method.attach(family)
    try:
        if family is None:
            return _loaded(str(found.path), precision), found.config.rare_token
        method.load(family, found.path)
    except (SafetensorError, OSError, UserError) as error:
        damaged = found.path if whole else found.path / found.result
        raise UserError(f"{damaged} is damaged ({error}); {cure}") from error
    return family, found.config.rare_token


def _warn_if_older(found: Found) -> None:
    """A finished run that was being trained further when it was stopped still holds its first result."""
    steps, newest = found.manifest.steps, RunFolder(found.run).newest_step()
    if found.manifest.status != "done" and steps is not None and newest is not None and newest > steps:
        log.warning(
            "the result in %s is that of %d steps; training went on and was not finished: give its command again, or "
            "sample from %s",
            found.run,
            steps,
            found.run / f"checkpoint-{newest}",
        )


def _last_checkpoint(found: Found, weights: str) -> Checkpoint:
    """The newest whole checkpoint, which in a finished run has to be that of its last step."""
    checkpoint, manifest = RunFolder(found.run).newest_checkpoint(), found.manifest
    last = manifest.steps if manifest.status == "done" else None
    if checkpoint is None or (last and checkpoint.step != last):
        raise UserError(
            f"{found.run} holds no checkpoint of its last step, where its {weights} weights would be: it was trained "
            "with checkpointing_steps 0, or the checkpoint was removed or damaged"
        )
    return checkpoint


def _load_checkpoint(found: Found, checkpoint: Checkpoint, which: str, precision: str) -> tuple[Family, str | None]:
    """The base model of the run, with the weights of a checkpoint in it."""
    import torch
    from safetensors.torch import load_file

    file = checkpoint.path / ("ema.safetensors" if which == "ema" else "weights.safetensors")
    if not file.is_file():
        raise UserError(f"{checkpoint.path} holds no averaged weights; its run was made without use_ema")
    if precision != "fp32" and registered()[found.config.method].kind == "full":
        raise UserError(f"{checkpoint.path} is of method {found.config.method}, whose weights are float32; take fp32")
    family, method = _loaded(found.base_card(), precision), make_method(found.config)
    method.attach(family)
    saved = load_file(file)
    with torch.no_grad():
        for name, weight in method.trainable(family).items():
            weight.copy_(saved[name])
    return family, found.config.rare_token
