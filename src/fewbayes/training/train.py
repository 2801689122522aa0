"""Fine-tuning a family on a few images, plain or with Bayesian weights, as one run folder.

`train` is one long function to be read top to bottom; the short ones under it are its vocabulary. Both arms, plain and
Bayesian, share everything but the posterior: order, crops, timesteps, noise, latents and samples come from named
streams of one seed. A run killed at any moment and started again with the same config ends, on a CPU, with the very
weights of an uninterrupted run. Knows nothing of diffusers, of single methods, of flags or of pages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from fewbayes.data.images import DataReport, check_folder, load_images
from fewbayes.diffusion.objective import diffusion_loss, preserved_loss
from fewbayes.errors import UserError
from fewbayes.methods import make_method, registered
from fewbayes.models import Family, inspect_model, load_family
from fewbayes.models.family import text_parts
from fewbayes.models.registry import family_named
from fewbayes.posterior.gaussian import GaussianPosterior
from fewbayes.posterior.where import select
from fewbayes.progress import doing
from fewbayes.progress import progress as shown_progress
from fewbayes.runs.folder import RunFolder
from fewbayes.settings.config import TrainConfig, recommended_rate, resolved
from fewbayes.training import memory, prepare
from fewbayes.training.batches import CLASS, INSTANCE, Share
from fewbayes.training.bayes import calibrated, kl_weight, log_posterior, make_posterior, named_deviations
from fewbayes.training.checkpoints import TrainState
from fewbayes.training.claim import as_asked, claimed, failure_recorded, inspected, said_of_stop
from fewbayes.training.ema import WeightAverage
from fewbayes.training.mode import Mode, dropout_draws, dropout_layers
from fewbayes.training.optimize import Pull, clip_gradients, make_optimizer, new_rate, rate_now, set_rates
from fewbayes.training.processes import any_of, average_gradients, check_same_gpus, from_main, make_accelerator
from fewbayes.training.signals import Interrupted, Signals
from fewbayes.training.stages import RunStages
from fewbayes.training.trackers import check_tracker, tracked
from fewbayes.training.validation import draw, validate, write_held_out, write_reference
from fewbayes.training.watch import NonFiniteError, Watch

__all__ = ["NonFiniteError", "RunResult", "train"]

log = logging.getLogger("fewbayes")

LOOK_EVERY_ON_GPU = 20  # steps between looks at losses and norms: each look waits for the device
HINT = "On a CPU no pictures are drawn unless you ask. With a verdict: --validation_steps {0} --monitor_steps {0}"
POSTERIOR_EVERY = 25  # steps between rows of "kl" and "weight_std_mean", each a pass over all random weights


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `resumed_from` is None if it began at step 0, `seconds` are those of this start."""

    folder: Path
    steps: int
    resumed_from: int | None
    seconds: float


def train(
    config: TrainConfig, *, family: Family | None = None, progress: bool = True, report: DataReport | None = None
) -> RunResult:
    """Fine-tune as `config` says; the same config on the same output_dir continues what was interrupted.

    family: an already loaded model, to save loading in a series of runs; its weights are as before when this returns,
    bit for bit, whatever happens. progress: a bar on a terminal, a line now and then elsewhere. report: of
    instance_data_dir, where the caller has checked it already.
    Raises UserError for what the user can mend, NonFiniteError when the numbers run away.
    """
    began = time.monotonic()

    # What can be refused is refused before a model is loaded.
    accelerator = make_accelerator(config.mixed_precision)
    prepare.check_packages(config.use_8bit_adam, config.base_precision)
    check_tracker(config)
    if config.bayes:
        check_same_gpus(accelerator)
    card = inspect_model(config.model) if family is None else family.card
    report = report or check_folder(config.instance_data_dir)
    for note in report.notes if accelerator.is_main_process else ():
        log.warning("%s: %s", report.folder, note)
    open_ = config.validation_steps is None
    config = prepare.with_samples(resolved(config, card, len(report.images)), accelerator.device)
    assert config.resolution is not None
    assert config.learning_rate is not None
    assert config.max_train_steps is not None
    prepare.check_drawn(card, config)
    prepare.check_trained(card, config)
    remarks = prepare.check_photographs(config, report)
    for note in remarks if accelerator.is_main_process else ():
        log.warning("%s: %s", report.folder, note)
    masked = config.mask_weight is not None
    size = {"resolution": config.resolution, "center_crop": config.center_crop}
    images = load_images(report.folder, **size, report=report, masks=masked)
    images, unseen = prepare.held_apart(config, images)
    given = prepare.own_class_images(config)
    model_hash = card.fingerprint()
    drawn = prepare.class_settings(config, model_hash) if config.with_prior_preservation and not given else None
    fingerprint = config.fingerprint(
        model=model_hash,
        instance_data_dir=[image.sha256 for image in images],
        mask_weight=[config.mask_weight, *(image.mask_sha256 for image in images)] if masked else None,
        class_data_dir=drawn.key() if drawn else [image.sha256 for image in given],
    ) | {"processes": accelerator.num_processes}

    run = RunFolder(config.output_dir)
    method, result = make_method(config), registered()[config.method].result_in(family_named(card.family))
    manifest = from_main(accelerator, lambda: inspected(run, config, fingerprint))
    if manifest.status == "done" and as_asked(manifest, config, result):
        log.warning("%s is already done%s; nothing to do", run.path, said_of_stop(manifest, run.newest_step()))
        return RunResult(run.path, manifest.steps or 0, manifest.steps, time.monotonic() - began)
    there = family is not None and family.device.type == accelerator.device.type
    with doing("Estimating the memory that this takes"):
        need = memory.check(card, config, accelerator.device, loaded=there)

    with ExitStack() as stack:
        signals = stack.enter_context(Signals(run.on_disk))
        # The model, what of it is trained, and what of that is random.
        lent, family = family, family or load_family(card, whole=False)
        prepare.check_rare_token(family, config.rare_token)
        process = prepare.training_process(family, config)
        if lent is None:
            family.reduce(config.base_precision)
        elif lent.precision != config.base_precision:
            raise UserError(f"base_precision is {config.base_precision}, but the given model is in {lent.precision}")
        family.to(accelerator.device)
        lean = lent is None and memory.encodes_once(config)
        if lean:
            with doing("Encoding the prompts"):
                prepare.encode_prompts(config, family, images, model_hash, accelerator, need)
        with doing(f"Loading {card.model}") if lent is None else nullcontext():
            family.fetch(*([] if not lean else [name for name in family.parts if name not in text_parts(family)]))
        own_dropout = dropout_layers(family.denoiser)  # before a method brings more
        stack.enter_context(prepare.attached(method, family, config, restore=lent is not None))
        weights = method.trainable(family)
        prepare.check_masters(weights)
        if config.bayes:
            select(*method.random(family))  # refuses what selects nothing before minutes of work

        # Class images are drawn by the model as it came, so before a checkpoint is loaded into it.
        with doing(f"Encoding {len(images)} images"):
            instance = prepare.pictures_of(config, family, images, INSTANCE, process)
        sources = [instance]
        if config.with_prior_preservation:
            shown = prepare.generated_class_images(config, family, drawn, accelerator) if drawn else given
            sources.append(prepare.pictures_of(config, family, shown, CLASS, process))
        calibration = calibrated(config, manifest, method, family, instance, accelerator)
        posterior = make_posterior(config, calibration, *method.random(family)) if config.bayes else None

        # The folder is claimed last: whatever was refused until here has left it as it was.
        checkpoint = from_main(accelerator, lambda: claimed(run, config, fingerprint, calibration, accelerator))
        stack.enter_context(failure_recorded(run, accelerator))
        start = checkpoint.step if checkpoint else 0
        if accelerator.is_main_process:
            _say_what_runs(config, start, len(images), weights, posterior, method.chosen, calibration, need)
            if open_ and not config.validation_steps:
                log.info(HINT.format(config.max_train_steps // 4 or 1))
            prepare.warn_of_open_channels(instance.open_channels())
            write_reference(run, instance)
            write_held_out(run, unseen)

        # Means and deviations form one group, decayed alike, as in the authors' code.
        named = weights | named_deviations(posterior)
        adamw = make_optimizer(config, named)
        optimizer = accelerator.prepare_optimizer(adamw)
        average = WeightAverage(weights, config.ema_decay) if config.use_ema else None
        pull = Pull(weights) if config.l2_init_weight > 0 else None
        state = TrainState(weights, named, adamw, posterior, average, accelerator.scaler)

        # The last looks at the untouched model.
        first = start == 0 and config.validation_steps
        looked_at = (config, run, family, average, instance, accelerator, unseen)
        seen = validate(0, *looked_at) if first else {}
        stages = (
            RunStages(config, run, family, sources, average, recommended_rate(config.method, card), unseen)
            if config.monitor_steps
            else None
        )
        if stages and not (checkpoint and stages.resume(checkpoint.state)):
            late = start and config.validation_steps  # a run that turns to being watched
            untouched = draw(config, family, accelerator) if late else seen.get("raw")
            from_main(accelerator, lambda: stages.begin(start, untouched))
        if checkpoint:
            state.read(checkpoint.path, checkpoint.state)
        if lean and not config.validation_steps and all(source.kept_latents is not None for source in sources):
            family.drop("vae")
        family.checkpoint_gradients(config.gradient_checkpointing)
        mode = Mode(method, family, own_dropout, config.dropout, config.compile)

        share = Share(
            config.train_batch_size,
            accelerator.num_processes,
            accelerator.process_index,
            config.gradient_accumulation_steps,
        )
        tracker = stack.enter_context(tracked(config, run, accelerator.is_main_process))
        watch = Watch(run, accelerator, [image.path.name for image in images])
        bar = stack.enter_context(
            shown_progress(config.max_train_steps, start, progress and accelerator.is_main_process)
        )
        stack.enter_context(mode.training())
        if stages and checkpoint:
            with mode.resting():
                from_main(accelerator, lambda: stages.restore_best(start, method))

        done, stopped = start, stages is not None and stages.stop
        signals.patient = True
        for step in range(start, start if stopped else config.max_train_steps):
            done = step + 1
            due = _due(done, config)
            set_rates(adamw, rate_now(config, step))
            draws = [source.draw(config.seed, step, share.total) for source in sources]
            loss = torch.zeros((), device=accelerator.device)

            # One draw of the weights per optimizer step, whatever the number of micro-batches.
            with posterior.sample(step) if posterior else nullcontext():
                for micro_batch in range(share.micro_batches):
                    rows = share.rows(micro_batch)
                    with dropout_draws(config.seed, step, rows.start, accelerator.device), accelerator.autocast():
                        batches = [source.batch(drawn, rows) for source, drawn in zip(sources, draws, strict=True)]
                        if config.with_prior_preservation:
                            weight, gamma = config.prior_loss_weight, config.snr_gamma
                            part = preserved_loss(family, batches[0], batches[1], weight, snr_gamma=gamma)
                        else:
                            part = diffusion_loss(family, batches[0], snr_gamma=config.snr_gamma)
                    accelerator.backward(part / share.micro_batches)
                    loss += part.detach() / share.micro_batches
                average_gradients(accelerator, weights.values())

            accelerator.unscale_gradients(optimizer)
            if posterior:
                posterior.add_kl_gradient(kl_weight(config, posterior))
            norm = clip_gradients(named.values(), config.max_grad_norm)
            watch.add(done, loss, norm, new_rate(config, step), draws[0].indices)
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
                log_posterior(done, run, posterior, config, accelerator)
            if due.sample or due.stage:
                with mode.resting():
                    seen = validate(done, *looked_at) if due.sample else {}
                    tracker.pictures(done, seen)
                    if stages:
                        with doing(f"The stage monitor looks at step {done}", quietly=True):
                            stopped = from_main(accelerator, partial(stages.look, done, seen, method))
            interrupted = (
                signals.asked if accelerator.num_processes == 1 else due.look and any_of(accelerator, signals.asked)
            )
            if due.checkpoint or interrupted or (stopped and config.checkpointing_steps):
                # last: what belongs to a step is on disk before its checkpoint is
                with doing(f"Writing checkpoint-{done}", quietly=True):
                    _write_checkpoint(done, config, run, accelerator, state, stages)
            if stopped:
                break
            if interrupted and done < config.max_train_steps:
                raise Interrupted(
                    f"Stopped at step {done} of {config.max_train_steps}. {run.on_disk()}", signals.number
                )
        signals.patient = False

        if accelerator.is_main_process:
            if posterior:
                layers = [{**layer, "weights": "raw"} for layer in posterior.diagnostics()]
                run.write_json("posterior.json", layers)
            swapped = average.swapped() if average and config.export_weights == "ema" else nullcontext()
            with doing("Saving the result"), swapped, mode.resting():
                run.write_pipeline(lambda folder: method.export(family, folder), result)
            stop = config.stop_when if stopped else None
            run.finish("done", steps=done, exported=config.export_weights, stopped=stop)
            if stages:
                stages.say_end(done)
        accelerator.wait_for_everyone()
    return RunResult(run.path, done, start or None, time.monotonic() - began)


def _say_what_runs(
    config: TrainConfig,
    start: int,
    images: int,
    weights: Mapping[str, nn.Parameter],
    posterior: GaussianPosterior | None,
    chosen: str,
    calibration: Mapping[str, float] | None,
    need: memory.MemoryEstimate,
) -> None:
    """The settings that matter most, as they were resolved."""
    trained = sum(weight.numel() for weight in weights.values())
    log.info(
        "Training %s, method %s, on %d image%s of %d pixels: %d step%s at rate %g (%s). %s weights change, and the "
        "word for your subject is %s. It takes at least %s of memory.",
        config.model,
        config.method,
        images,
        "s" * (images > 1),
        config.resolution,
        config.max_train_steps,
        "s" * (config.max_train_steps != 1),
        config.learning_rate,
        config.lr_scheduler,
        f"{trained:,}",
        config.rare_token,
        memory.shown(need.peak) if need.parts else "an unknown amount",
    )
    every = f"every {config.checkpointing_steps} steps" if config.checkpointing_steps else "only where you stop it"
    log.info("Checkpoints: %s. Ctrl-C stops after a step and saves one.", every)
    if posterior:
        weight_std = config.weight_std if calibration is None else calibration["weight_std"]
        log.info(
            "Bayesian: %s of them random (%s), weight_std %.3g (%s, %s), kl_weight %g",
            f"{posterior.num_random:,}",
            chosen,
            weight_std,
            config.weight_std_mode,
            config.weight_std_learn,
            config.kl_weight,
        )
    if start:
        log.info("Continuing %s from step %d.", config.output_dir, start)


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
