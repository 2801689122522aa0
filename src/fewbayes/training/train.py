"""Fine-tuning a family on a few images, plain or with Bayesian weights, as one run folder.

`train` is one long function to be read top to bottom; the short ones under it are its vocabulary. Both arms, plain and
Bayesian, share everything but the posterior: order, crops, timesteps, noise, latents and samples come from named
streams of one seed. A run killed at any moment and started again with the same config ends, on a CPU, with the very
weights of an uninterrupted run. Knows nothing of diffusers, of single methods, of flags or of pages.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list
from PIL import Image
from torch import Tensor, nn

from fewbayes.data.images import TrainImage, check_folder, load_images
from fewbayes.diffusion.objective import diffusion_loss, preserved_loss
from fewbayes.errors import UserError
from fewbayes.methods import Method, make_method
from fewbayes.models import Family, inspect_model, load_family
from fewbayes.posterior.calibrate import calibrate_weight_std
from fewbayes.posterior.gaussian import GaussianPosterior
from fewbayes.posterior.where import select
from fewbayes.progress import progress as shown_progress
from fewbayes.runs.folder import MANIFEST, Checkpoint, RunError, RunFolder, environment, read_manifest
from fewbayes.seeds import stream_seed
from fewbayes.settings.config import TrainConfig
from fewbayes.stage.watch import RunStages
from fewbayes.training import memory
from fewbayes.training.batches import CLASS, INSTANCE, Pictures, Share
from fewbayes.training.checkpoints import TrainState
from fewbayes.training.class_images import ClassImageSettings, ensure_class_images, present
from fewbayes.training.ema import WeightAverage
from fewbayes.training.validation import draw, validate, write_reference

log = logging.getLogger("fewbayes")

LOOK_EVERY_ON_GPU = 20  # steps between looks at losses and norms: each look waits for the device
POSTERIOR_EVERY = 25  # steps between rows of "kl" and "weight_std_mean", each a pass over all random weights
PROBE = 16  # draws of the training images on which weight_std is calibrated
PATIENCE = timedelta(hours=6)  # that processes wait while the main one draws samples or writes
SKIPPED_STEPS_ALLOWED = 25  # consecutive overflows that float16's loss scale may take to settle


class NonFiniteError(ArithmeticError):
    """A loss or gradient that is not a finite number; the message names the step and the images."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `resumed_from` is None if it began at step 0, `seconds` are those of this start."""

    folder: Path
    steps: int
    resumed_from: int | None
    seconds: float


def train(config: TrainConfig, *, family: Family | None = None, progress: bool = True) -> RunResult:
    """Fine-tune as `config` says; the same config on the same output_dir continues what was interrupted.

    family: an already loaded model, to save loading in a series of runs; its weights are as before when this returns,
    bit for bit, whatever happens. progress: a bar on a terminal, a line now and then elsewhere.
    Raises UserError for what the user can mend, NonFiniteError when the numbers run away.
    """
    began = time.monotonic()

    # What can be refused is refused before a model is loaded.
    accelerator = _accelerator(config.mixed_precision)
    _check_packages(config)
    card = inspect_model(config.model) if family is None else family.card
    report = check_folder(config.instance_data_dir)
    for note in report.notes if accelerator.is_main_process else ():
        log.warning("%s: %s", report.folder, note)
    recommended = card.recommended | ({"rare_token": card.rare_token} if card.rare_token else {})
    config = config.resolve(recommended, card.resolution, len(report.images))
    assert config.resolution is not None
    assert config.learning_rate is not None
    assert config.max_train_steps is not None
    images = load_images(report.folder, resolution=config.resolution, center_crop=config.center_crop, report=report)
    own_class_images = _own_class_images(config)
    model_hash = card.fingerprint()
    drawn = None if own_class_images or not config.with_prior_preservation else _class_settings(config, model_hash)
    fingerprint = config.fingerprint(
        model=model_hash,
        instance_data_dir=[image.sha256 for image in images],
        class_data_dir=drawn.key() if drawn else [image.sha256 for image in own_class_images],
    ) | {"processes": accelerator.num_processes}

    run = RunFolder(config.output_dir)
    method = make_method(config)
    manifest = _from_main(accelerator, lambda: _look(run, config, fingerprint))
    if manifest.get("status") == "done" and _as_asked(manifest, config, method):
        log.warning("%s is already done%s; nothing to do", run.path, _said_of_stop(manifest, run.newest_step()))
        return RunResult(run.path, manifest["steps"], manifest["steps"], time.monotonic() - began)
    there = family is not None and family.device.type == accelerator.device.type
    need = memory.check(card, config, accelerator.device, loaded=there)

    with ExitStack() as stack:
        # The model, what of it is trained, and what of that is random.
        given, family = family, family or load_family(card)
        _check_rare_token(family, config.rare_token)
        family.to(accelerator.device)
        own_dropout = _dropout_layers(family.denoiser)  # before a method brings more
        stack.enter_context(_attached(method, family, restore=given is not None))
        weights = method.trainable(family)
        _check_masters(weights)
        if config.bayes:
            select(*method.random(family, config.where))  # refuses what selects nothing before minutes of work

        # Class images are drawn by the model as it came, so before a checkpoint is loaded into it.
        instance = _pictures(config, family, images, INSTANCE)
        sources = [instance]
        if config.with_prior_preservation:
            class_images = _generated_class_images(config, family, drawn, accelerator) if drawn else own_class_images
            sources.append(_pictures(config, family, class_images, CLASS))
        calibration = _calibration(config, manifest, method, family, instance, accelerator)
        posterior = _posterior(config, calibration, *method.random(family, config.where)) if config.bayes else None

        # The folder is claimed last: whatever was refused until here has left it as it was.
        checkpoint = _from_main(accelerator, lambda: _begin(run, config, fingerprint, calibration, accelerator))
        stack.enter_context(_failure_recorded(run, accelerator))
        start = checkpoint.step if checkpoint else 0
        if accelerator.is_main_process:
            _say_what_runs(config, start, len(images), weights, posterior, calibration, need)
            _warn_of_open_channels(instance.open_channels())
            write_reference(run, instance)

        # Means and deviations form one group, decayed alike, as in the authors' code.
        named = weights | _named_deviations(posterior)
        adamw = _optimizer(config, named)
        optimizer = accelerator.prepare_optimizer(adamw)
        average = WeightAverage(weights, config.ema_decay) if config.use_ema else None
        pull = _Pull(weights) if config.l2_init_weight > 0 else None
        state = TrainState(weights, named, adamw, posterior, average, accelerator.scaler)

        # The last looks at the untouched model.
        first = start == 0 and config.validation_steps
        seen = validate(0, config, run, family, average, instance, accelerator) if first else {}
        stages = RunStages(config, run, family, sources, average) if config.monitor_steps else None
        if stages and not (checkpoint and stages.resume(checkpoint.state)):
            late = start and config.validation_steps  # a run that turns to being watched
            untouched = draw(config, family, accelerator) if late else seen.get("raw")
            _from_main(accelerator, lambda: stages.begin(start, untouched))
        if checkpoint:
            state.read(checkpoint.path, checkpoint.state)
        family.checkpoint_gradients(config.gradient_checkpointing)
        mode = _Mode(method, family, own_dropout, config.dropout)

        share = Share(
            config.train_batch_size,
            accelerator.num_processes,
            accelerator.process_index,
            config.gradient_accumulation_steps,
        )
        watch = _Watch(run, accelerator, [image.path.name for image in images])
        bar = stack.enter_context(
            shown_progress(config.max_train_steps, start, progress and accelerator.is_main_process)
        )
        stack.enter_context(mode.training())
        if stages and checkpoint:
            with mode.resting():
                _from_main(accelerator, lambda: stages.restore_best(start, method))

        done, stopped = start, stages is not None and stages.stop
        for step in range(start, start if stopped else config.max_train_steps):
            done = step + 1
            due = _due(done, config)
            _set_rates(adamw, _factor(config, step))
            draws = [source.draw(config.seed, step, share.total) for source in sources]
            loss = torch.zeros((), device=accelerator.device)

            # One draw of the weights per optimizer step, whatever the number of micro-batches.
            with posterior.sample(step) if posterior else nullcontext():
                for micro_batch in range(share.micro_batches):
                    rows = share.rows(micro_batch)
                    method.begin_step(family, step, rows.start)
                    with _dropout_draws(config.seed, step, rows.start, accelerator.device), accelerator.autocast():
                        batches = [source.batch(drawn, rows) for source, drawn in zip(sources, draws, strict=True)]
                        if config.with_prior_preservation:
                            weight, gamma = config.prior_loss_weight, config.snr_gamma
                            part = preserved_loss(family, batches[0], batches[1], weight, snr_gamma=gamma)
                        else:
                            part = diffusion_loss(family, batches[0], snr_gamma=config.snr_gamma)
                    penalty = method.penalty(family)
                    objective = part if penalty is None else part + penalty
                    accelerator.backward(objective / share.micro_batches)
                    loss += part.detach() / share.micro_batches
                _average_gradients(accelerator, weights.values())

            accelerator.unscale_gradients(optimizer)
            if posterior:
                posterior.add_kl_gradient(config.kl_weight)
            norm = nn.utils.clip_grad_norm_(named.values(), config.max_grad_norm)
            watch.add(done, loss, norm, _new_rate(config, step), draws[0].indices)
            if due.look or accelerator.device.type == "cpu":
                watch.look()  # raises before a number that is not finite reaches a checkpoint
            taken = accelerator.scaler is None or bool(norm.isfinite())  # float16 skips the step after an overflow
            if pull and taken:
                pull.towards_start(adamw, config.l2_init_weight)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average and taken:
                average.update()
            bar(done, watch.smooth_loss)

            if posterior and due.posterior:
                _log_posterior(done, run, posterior, config, accelerator)
            if due.sample or due.stage:
                with mode.resting():
                    seen = validate(done, config, run, family, average, instance, accelerator) if due.sample else {}
                    if stages:
                        stopped = _from_main(accelerator, partial(stages.look, done, seen, method))
            if due.checkpoint or (stopped and config.checkpointing_steps):
                # last: what belongs to a step is on disk before its checkpoint is
                _write_checkpoint(done, config, run, accelerator, state, stages)
            if stopped:
                break

        if accelerator.is_main_process:
            if posterior:
                layers = [{**layer, "weights": "raw"} for layer in posterior.diagnostics()]
                run.write_json("posterior.json", layers)
            with average.swapped() if average and config.export_weights == "ema" else nullcontext(), mode.resting():
                run.write_pipeline(lambda folder: method.export(family, folder), method.result)
            stop = config.stop_when if stopped else None
            run.finish("done", steps=done, exported=config.export_weights, stopped=stop)
            if stages:
                stages.say_end(done)
        accelerator.wait_for_everyone()
    return RunResult(run.path, done, start or None, time.monotonic() - began)


# --- before the loop --------------------------------------------------------------------------------------------------


def _accelerator(mixed_precision: str) -> Accelerator:
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("mixed_precision is fp16, which needs a GPU; use bf16 or no")
    # accelerate keeps its precision for the life of the process; a second run may want another.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[patience])
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UserError(
            f"accelerate is set up for {accelerator.distributed_type.value}; whole models on each device are trained "
            "here, with accelerate launch --multi_gpu"
        )
    return accelerator


def _check_packages(config: TrainConfig) -> None:
    if config.use_8bit_adam and find_spec("bitsandbytes") is None:
        raise UserError(
            "use_8bit_adam needs the package bitsandbytes, which is not installed: pip install bitsandbytes, or leave "
            "it out and save memory by gradient_checkpointing"
        )


def _from_main(accelerator: Accelerator, compute: Callable[[], Any]) -> Any:
    """What the main process computes, in all of them; where it raises, all of them raise and none is left waiting."""
    if accelerator.num_processes == 1:
        return compute()
    value = raised = None
    if accelerator.is_main_process:
        try:
            value = compute()
        except Exception as error:
            raised = error
    told = [value, raised and (isinstance(raised, UserError), f"{raised}")]
    broadcast_object_list(told)
    if raised:
        raise raised
    value, error = told
    if error:
        theirs, text = error
        raise UserError(text) if theirs else RuntimeError(f"the main process failed: {text}")
    return value


def _look(run: RunFolder, config: TrainConfig, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the run so far, {} for none; refuses what cannot be continued and touches nothing."""
    _check_same_method(run, config)
    manifest = run.inspect(fingerprint)
    done = manifest.get("steps", 0) if manifest.get("status") == "done" else 0
    reached = max(run.newest_step() or 0, done)
    assert config.max_train_steps is not None
    if reached > config.max_train_steps:
        raise UserError(
            f"max_train_steps is {config.max_train_steps}, but {run.path} is at step {reached} already; "
            "give more steps or another output_dir"
        )
    return manifest


def _check_same_method(run: RunFolder, config: TrainConfig) -> None:
    """Said first and alone: another method brings other settings and other defaults with it."""
    manifest = read_manifest(run.path) if (run.path / MANIFEST).is_file() else {}
    found = manifest.get("fingerprint", {}).get("method", config.method)
    if found != config.method:
        raise RunError(
            f"output_dir {run.path} holds a run of method {found}, and method is {config.method} now; give another "
            f"output_dir, or method {found} to continue that run"
        )


def _as_asked(manifest: Mapping[str, Any], config: TrainConfig, method: Method) -> bool:
    """Whether the final result that the manifest tells of is the one asked for, and there."""
    asked = {"steps": config.max_train_steps, "exported": config.export_weights}
    if manifest.get("stopped") == config.stop_when:
        asked["steps"] = manifest["steps"]  # where it was stopped then, it would be stopped now
    result = Path(config.output_dir) / method.result
    return all(manifest.get(key) == value for key, value in asked.items()) and result.is_file()


def _said_of_stop(manifest: Mapping[str, Any], checkpoint: int | None) -> str:
    """checkpoint: the step of the newest one, from which training could go on."""
    if not manifest.get("stopped"):
        return ""
    on = f"on from step {checkpoint}" if checkpoint else "again from step 0, as there is no checkpoint"
    return f", stopped at step {manifest['steps']} as {manifest['stopped']} (stop_when never would train {on})"


def _begin(
    run: RunFolder,
    config: TrainConfig,
    fingerprint: Mapping[str, Any],
    calibration: Mapping[str, float] | None,
    accelerator: Accelerator,
) -> Checkpoint | None:
    """Open the run folder; the checkpoint to continue from."""
    run.open(config.to_dict(), fingerprint, config_text=config.to_yaml())
    try:
        checkpoint = run.newest_checkpoint()
        if run.resumed and not checkpoint:
            log.warning("%s holds no whole checkpoint: it begins again at step 0", run.path)
        _drop_after(run, checkpoint.step if checkpoint else -1)
        run.manifest_update(
            model={"name": config.model, "sha256": fingerprint["model"]},
            images=fingerprint["instance_data_dir"],
            seed=config.seed,
            environment=environment(_gpu_name(accelerator)),
            **({"calibration": calibration} if calibration else {}),
        )
    except BaseException:
        run.close()
        raise
    return checkpoint


def _drop_after(run: RunFolder, step: int) -> None:
    """Rows, samples and the best model of later steps go; these steps will be taken again."""
    run.resume_from(step)
    best = run.best()
    if best and best["step"] > step:
        log.warning("best/ holds step %d, and training goes on from step %d: it is removed", best["step"], max(step, 0))
        run.drop_best()
    for folder in (run.path / "samples").glob("step-*"):
        number = folder.name.removeprefix("step-")
        if number.isdecimal() and int(number) > step:
            shutil.rmtree(folder)


def _gpu_name(accelerator: Accelerator) -> str | None:
    return torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else None


@contextmanager
def _failure_recorded(run: RunFolder, accelerator: Accelerator) -> Iterator[None]:
    """An error is noted in the manifest; an interruption leaves the run as a kill would, to be continued."""
    try:
        yield
    except Exception as error:
        if accelerator.is_main_process:
            with suppress(OSError):  # a full disk may be what failed
                run.finish("failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        run.close()


@contextmanager
def _attached(method: Method, family: Family, *, restore: bool) -> Iterator[None]:
    """The method attached inside; outside all is frozen again and, with `restore`, has its old values bit for bit."""
    method.attach(family)
    weights = method.trainable(family)
    before = {name: weight.detach().clone() for name, weight in weights.items()} if restore else {}
    try:
        yield
    finally:
        for name, weight in weights.items():
            weight.grad = None
            if restore:
                weight.data.copy_(before[name])
        family.checkpoint_gradients(False)
        method.detach(family)


def _check_masters(weights: Mapping[str, nn.Parameter]) -> None:
    """Updates of 1e-6 vanish in half precision, and float16's loss scale cannot be taken off such gradients."""
    low = [f"{name} ({weight.dtype})" for name, weight in weights.items() if weight.dtype != torch.float32]
    if low:
        raise UserError(
            f"trained weights have to be float32, but {low[0]} and {len(low) - 1} others are not; give the model as "
            "load_family gives it, and choose the precision of the forward pass by mixed_precision"
        )


def _check_rare_token(family: Family, word: str | None) -> None:
    count = family.count_tokens(word) if word else 1
    if count == 0:
        raise UserError(f"rare_token {word!r} is unknown to the tokenizer of {family.card.model}; choose another word")
    if count > 1:
        log.warning("rare_token %r is %d tokens; a word that is one token is learned better", word, count)


def _calibration(
    config: TrainConfig,
    manifest: Mapping[str, Any],
    method: Method,
    family: Family,
    pictures: Pictures,
    accelerator: Accelerator,
) -> dict[str, float] | None:
    """The weight_std within weight_std_tolerance, found once per run: later starts read it from the manifest."""
    tolerance = config.weight_std_tolerance
    if tolerance is None:
        return None
    if "calibration" in manifest:
        return manifest["calibration"]
    draws = pictures.draw(config.seed, 0, PROBE)
    start = 0.01 if config.weight_std_mode == "absolute" else 0.3
    batches = [pictures.batch(draws, slice(i, i + 4)) for i in range(0, PROBE, 4)]

    def probe_loss() -> float:
        with accelerator.autocast():
            return float(torch.stack([diffusion_loss(family, batch) for batch in batches]).mean())

    def find() -> dict[str, float]:
        log.info("looking for the weight_std that raises the loss by at most %g %%", 100 * tolerance)
        found = calibrate_weight_std(
            *method.random(family, config.where),
            probe_loss,
            tolerance,
            seed=stream_seed(config.seed, "weights"),
            std_mode=config.weight_std_mode,
            start=start,
        )
        if found.weight_std > 100 * start:  # far above the weights themselves: training would not survive it
            raise UserError(
                f"weight_std_tolerance is {tolerance:g}, but only a weight_std of {found.weight_std:.3g} would raise "
                f"the loss so much: it hardly depends on the weights that where {config.where} selects; give weight_std"
            )
        said = "weight_std %.3g found: the loss on %d draws of the training images rises from %.4f to %.4f"
        log.info(said, found.weight_std, PROBE, found.loss_at_mean, found.loss)
        scores = {"loss_at_mean": found.loss_at_mean, "loss": found.loss}
        return {"weight_std": found.weight_std, "tolerance": tolerance} | scores

    return _from_main(accelerator, find)


def _posterior(
    config: TrainConfig, calibration: Mapping[str, float] | None, module: nn.Module, where: Any
) -> GaussianPosterior:
    weight_std = calibration["weight_std"] if calibration else config.weight_std
    assert weight_std is not None
    return GaussianPosterior(
        module,
        where=where,
        weight_std=weight_std,
        prior_std=config.prior_std,
        seed=stream_seed(config.seed, "weights"),
        learn=config.weight_std_learn,
        kl=config.kl_direction,
        std_mode=config.weight_std_mode,
        track_prior=config.kl_weight > 0,  # a copy of the initial weights is memory that only the KL needs
    )


def _optimizer(config: TrainConfig, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over one group of parameters, or two where the text encoders have a rate of their own."""
    assert config.learning_rate is not None
    rates = dict.fromkeys(named, config.learning_rate)
    if config.text_encoder_lr is not None:
        rates |= {name: config.text_encoder_lr for name in named if name.startswith(("text_encoder", "rare_token"))}
    groups: list[dict[str, Any]] = [
        {"params": [named[name] for name in named if rates[name] == rate], "lr": rate, "full_rate": rate}
        for rate in dict.fromkeys(rates.values())
    ]
    settings = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.adam_weight_decay,
    }
    if config.use_8bit_adam:
        import bitsandbytes  # pyright: ignore[reportMissingImports]

        return bitsandbytes.optim.AdamW8bit(groups, **settings)
    return torch.optim.AdamW(groups, **settings, fused=True)


def _named_deviations(posterior: GaussianPosterior | None) -> dict[str, nn.Parameter]:
    deviations = posterior.std_parameters() if posterior else []
    return {f"weight_std.{i}": parameter for i, parameter in enumerate(deviations)}


def _pictures(config: TrainConfig, family: Family, images: Sequence[TrainImage], half: int) -> Pictures:
    assert config.resolution is not None
    usual = (config.class_prompt or "") if half == CLASS else config.instance_prompt
    captions = [usual if half == CLASS else (image.caption or usual) for image in images]
    return Pictures(
        family,
        [image.pixels for image in images],
        [config.with_rare_token(caption) for caption in captions],
        side=config.resolution,
        random_flip=config.random_flip,
        keep_latents=config.cache_latents,
        keep_prompts=config.cache_latents and not (config.train_text_encoder or config.train_rare_token),
        noise_offset=config.noise_offset,
        half=half,
    )


def _own_class_images(config: TrainConfig) -> list[TrainImage]:
    """The user's own class images, where class_data_dir holds any."""
    if not config.with_prior_preservation or config.class_data_dir is None:
        return []
    folder = Path(config.class_data_dir)
    if not folder.is_dir() or not any(path.is_file() and not path.name.startswith(".") for path in folder.iterdir()):
        return []
    assert config.resolution is not None
    return load_images(folder, resolution=config.resolution, center_crop=config.center_crop)


def _class_settings(config: TrainConfig, model_hash: str) -> ClassImageSettings:
    assert config.resolution is not None
    assert config.class_prompt is not None
    return ClassImageSettings(
        model=model_hash,
        prompt=config.with_rare_token(config.class_prompt),
        negative_prompt=config.negative_prompt,
        resolution=config.resolution,
        sampler=config.sampler,
        steps=config.num_inference_steps,
        guidance=config.guidance_scale,
        precision=config.mixed_precision,
        seed=config.seed,
    )


def _generated_class_images(
    config: TrainConfig, family: Family, settings: ClassImageSettings, accelerator: Accelerator
) -> list[TrainImage]:
    """Class images drawn by the untrained model, drawn now or found whole from before."""
    assert config.num_class_images is not None
    with accelerator.autocast():
        folder = ensure_class_images(
            family,
            Path(config.class_data_dir) if config.class_data_dir else _cache() / "class_images",
            settings,
            config.num_class_images,
            batch_size=config.sample_batch_size,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            said=lambda done, total: log.info("class images: %d of %d", done, total),
        )
    accelerator.wait_for_everyone()
    found = present(folder, config.num_class_images)
    assert len(found) == config.num_class_images, f"{folder} was changed while it was being filled"
    return [_class_image(found[i]) for i in range(config.num_class_images)]


def _class_image(path: Path) -> TrainImage:
    with Image.open(path) as picture:
        return TrainImage(path, path.stem, np.asarray(picture.convert("RGB")), None)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewbayes"


def _say_what_runs(
    config: TrainConfig,
    start: int,
    images: int,
    weights: Mapping[str, nn.Parameter],
    posterior: GaussianPosterior | None,
    calibration: Mapping[str, float] | None,
    need: memory.MemoryEstimate,
) -> None:
    """The settings that matter most, as they were resolved."""
    trained = sum(weight.numel() for weight in weights.values())
    log.info(
        "%s, method %s, on %d image%s of %d pixels, %d steps at rate %g (%s), %s weights, rare token %s; at least "
        "%s of memory",
        config.model,
        config.method,
        images,
        "s" if images > 1 else "",
        config.resolution,
        config.max_train_steps,
        config.learning_rate,
        config.lr_scheduler,
        f"{trained:,}",
        config.rare_token,
        memory.shown(need.peak) if need.parts else "an unknown amount",
    )
    if posterior:
        weight_std = config.weight_std if calibration is None else calibration["weight_std"]
        log.info(
            "Bayesian: %s of them random (%s), weight_std %.3g (%s, %s), kl_weight %g",
            f"{posterior.num_random:,}",
            f"where {config.where}" if config.method == "full" else "those that the method names",
            weight_std,
            config.weight_std_mode,
            config.weight_std_learn,
            config.kl_weight,
        )
    if start:
        log.info("continuing %s from step %d", config.output_dir, start)


def _warn_of_open_channels(found: Mapping[int, float]) -> None:
    if found:
        shares = ", ".join(f"{channel} ({share:.1f} of its spread)" for channel, share in found.items())
        log.warning(
            "the autoencoder leaves channels of the latents open, %s, and every step trains on noise there; unless the "
            "model was pretrained on such draws too, samples will fill with noise. Take the autoencoder that the model "
            "was pretrained with, or one whose encoder answers its mean",
            shares,
        )


# --- in the loop ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Due:
    sample: bool
    checkpoint: bool
    posterior: bool
    stage: bool
    look: bool


def _due(done: int, config: TrainConfig) -> _Due:
    """What happens after `done` steps."""
    last = done == config.max_train_steps
    sample = bool(config.validation_steps) and (last or done % config.validation_steps == 0)
    checkpoint = bool(config.checkpointing_steps) and (last or done % config.checkpointing_steps == 0)
    posterior = last or done % POSTERIOR_EVERY == 0
    stage = bool(config.monitor_steps) and (last or sample or done % config.monitor_steps == 0)
    look = last or sample or checkpoint or stage or done % LOOK_EVERY_ON_GPU == 0
    return _Due(sample, checkpoint, posterior, stage, look)


def rate_factor(scheduler: str, step: int, warmup: int, total: int) -> float:
    """The learning rate of update `step` (from 0) as a share of the full one, the curves of diffusers' schedulers."""
    if scheduler == "constant":
        return 1.0
    if step < warmup:
        return step / max(1, warmup)
    if scheduler == "constant_with_warmup":
        return 1.0
    passed = (step - warmup) / max(1, total - warmup)
    if scheduler == "linear":
        return max(0.0, 1 - passed)
    if scheduler == "cosine":
        return max(0.0, 0.5 * (1 + math.cos(math.pi * passed)))
    raise UserError(f"lr_scheduler {scheduler!r} is not known")


def _factor(config: TrainConfig, step: int) -> float:
    assert config.max_train_steps is not None
    return rate_factor(config.lr_scheduler, step, config.lr_warmup_steps, config.max_train_steps)


def _new_rate(config: TrainConfig, step: int) -> float | None:
    """The rate where it differs from that of the step before, which is all that needs a row."""
    assert config.learning_rate is not None
    factor = _factor(config, step)
    return config.learning_rate * factor if step == 0 or factor != _factor(config, step - 1) else None


def _set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * factor


class _Pull:
    """The way back to the weights of the start: theta <- theta - rate * weight * (theta - theta_0) at each step.

    Apart from the gradient, as AdamW has its decay: Adam's division by past gradients would change its strength from
    weight to weight.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        self._start = {weight: weight.detach().clone() for weight in weights.values()}

    @torch.no_grad()
    def towards_start(self, optimizer: torch.optim.Optimizer, weight: float) -> None:
        for group in optimizer.param_groups:
            pulled = [parameter for parameter in group["params"] if parameter in self._start]
            start = [self._start[parameter] for parameter in pulled]
            if pulled:
                torch._foreach_lerp_(pulled, start, group["lr"] * weight)  # pyright: ignore[reportPrivateImportUsage]


def _dropout_layers(module: nn.Module) -> list[nn.Dropout]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Dropout)]


class _Mode:
    """What is on while training and off for pictures: the method's own noise, and the network's dropout."""

    def __init__(self, method: Method, family: Family, layers: Sequence[nn.Dropout], dropout: float):
        self._method, self._family, self._layers, self._dropout = method, family, layers, dropout

    @contextmanager
    def training(self) -> Iterator[None]:
        before = [(layer, layer.p, layer.training) for layer in self._layers]
        for layer in self._layers if self._dropout else ():
            layer.p = self._dropout
        try:
            self._switch(True)
            yield
        finally:
            self._switch(False)
            for layer, share, training in before:
                layer.p = share
                layer.train(training)

    @contextmanager
    def resting(self) -> Iterator[None]:
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    def _switch(self, on: bool) -> None:
        self._method.training(self._family, on)
        for layer in self._layers:
            layer.train(on and self._dropout > 0)


@contextmanager
def _dropout_draws(seed: int, step: int, row: int, device: torch.device) -> Iterator[None]:
    """Whatever a forward pass draws from torch's own generators is a function of (seed, step, first row) inside."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, "dropout", step, row))
        yield


def _average_gradients(accelerator: Accelerator, weights: Iterable[nn.Parameter], bucket: int = 2**24) -> None:
    """Mean over the processes, inside the draw of the weights: gradients of deviations follow from these.

    Done here and not by a wrapper around the model, so that the model stays what it is for sampling and saving.
    """
    if accelerator.num_processes == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    while gradients:
        taken, size = 0, 0
        while taken < len(gradients) and (size == 0 or size + gradients[taken].numel() <= bucket):
            size += gradients[taken].numel()
            taken += 1
        flat = _mean_over_processes(accelerator, torch.cat([gradient.reshape(-1) for gradient in gradients[:taken]]))
        for gradient, mean in zip(
            gradients[:taken], flat.split([gradient.numel() for gradient in gradients[:taken]]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))
        del gradients[:taken]


def _mean_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    return cast("Tensor", accelerator.reduce(values, "mean"))


class _Watch:
    """Holds losses and norms on the device until someone looks, then logs them and refuses what is not finite."""

    def __init__(self, run: RunFolder, accelerator: Accelerator, names: Sequence[str]):
        self._run, self._accelerator, self._names = run, accelerator, names
        self._pending: list[tuple[int, Tensor, Tensor, float | None, list[int]]] = []
        self._overflows = 0
        self.smooth_loss: float | None = None

    def add(self, done: int, loss: Tensor, norm: Tensor, rate: float | None, indices: list[int]) -> None:
        self._pending.append((done, loss, norm, rate, indices))

    def look(self) -> None:
        pending, self._pending = self._pending, []
        losses = _mean_over_processes(self._accelerator, torch.stack([loss for _, loss, *_ in pending])).tolist()
        norms = torch.stack([norm for _, _, norm, *_ in pending]).tolist()
        for (done, _, _, rate, indices), loss, norm in zip(pending, losses, norms, strict=True):
            if self._accelerator.is_main_process:
                self._log(done, loss, norm, rate)
            self._check(done, loss, norm, indices)
            self.smooth_loss = loss if self.smooth_loss is None else 0.95 * self.smooth_loss + 0.05 * loss

    def _log(self, done: int, loss: float, norm: float, rate: float | None) -> None:
        self._run.log(done, "loss", loss, weights="raw")
        self._run.log(done, "grad_norm", norm, weights="raw")
        if rate is not None:
            self._run.log(done, "lr", rate, weights="raw")

    def _check(self, done: int, loss: float, norm: float, indices: list[int]) -> None:
        overflowed = not math.isfinite(norm)
        if math.isfinite(loss) and overflowed and self._accelerator.scaler is not None:
            self._overflows += 1  # float16: the step is skipped and the scale lowered
            if self._overflows <= SKIPPED_STEPS_ALLOWED:
                return
        elif math.isfinite(loss) and not overflowed:
            self._overflows = 0
            return
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        names = ", ".join(self._names[i] for i in indices)
        raise NonFiniteError(
            f"step {done}: {what} (images: {names}); the run has stopped and its checkpoints are as they were. "
            "A lower learning_rate, or mixed_precision no, is the usual cure"
        )


def _write_checkpoint(
    done: int,
    config: TrainConfig,
    run: RunFolder,
    accelerator: Accelerator,
    state: TrainState,
    stages: RunStages | None,
) -> None:
    if accelerator.is_main_process:
        kept = state.numbers() | (stages.to_dict() if stages else {})
        run.write_checkpoint(done, state.write, state=kept, total_limit=config.checkpoints_total_limit)
    accelerator.wait_for_everyone()


def _log_posterior(
    done: int, run: RunFolder, posterior: GaussianPosterior, config: TrainConfig, accelerator: Accelerator
) -> None:
    if not accelerator.is_main_process:
        return
    deviations = posterior.weight_std().values()
    count = sum(std.numel() for std in deviations)
    run.log(done, "weight_std_mean", float(sum(std.abs().sum() for std in deviations)) / count, weights="raw")
    if config.kl_weight > 0:
        run.log(done, "kl", float(posterior.kl()), weights="raw")
