"""Bayesian weights of a run: the weight_std that a tolerance asks for, the posterior, and the rows about it.

Knows nothing of optimizers, and of families only what a loss needs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from fewbayes.diffusion.objective import diffusion_loss
from fewbayes.errors import UserError
from fewbayes.methods import Method
from fewbayes.models import Family
from fewbayes.posterior.calibrate import calibrate_weight_std
from fewbayes.posterior.gaussian import GaussianPosterior
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.layout import Manifest
from fewbayes.seeds import stream_seed
from fewbayes.settings.config import TrainConfig
from fewbayes.training.batches import Pictures
from fewbayes.training.processes import from_main

log = logging.getLogger("fewbayes")

PROBE = 16  # draws of the training images on which weight_std is calibrated


def calibrated(
    config: TrainConfig,
    manifest: Manifest,
    method: Method,
    family: Family,
    pictures: Pictures,
    accelerator: Accelerator,
) -> dict[str, float] | None:
    """The weight_std within weight_std_tolerance, found once per run: later starts read it from the manifest."""
    tolerance = config.weight_std_tolerance
    if tolerance is None:
        return None
    if manifest.calibration:
        return manifest.calibration
    draws = pictures.draw(config.seed, 0, PROBE)
    start = 0.01 if config.weight_std_mode == "absolute" else 0.3
    batches = [pictures.batch(draws, slice(i, i + 4)) for i in range(0, PROBE, 4)]

    def probe_loss() -> float:
        with accelerator.autocast():
            return float(torch.stack([diffusion_loss(family, batch) for batch in batches]).mean())

    def find() -> dict[str, float]:
        log.info("looking for the weight_std that raises the loss by at most %g %%", 100 * tolerance)
        found = calibrate_weight_std(
            *method.random(family),
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

    return from_main(accelerator, find)


def make_posterior(
    config: TrainConfig, calibration: Mapping[str, float] | None, module: nn.Module, where: Any
) -> GaussianPosterior:
    """The posterior that the settings ask for; module, where: as the method names them."""
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


def kl_weight(config: TrainConfig, posterior: GaussianPosterior) -> float:
    """What the divergence, summed over the random weights, is multiplied by."""
    return config.kl_weight / (posterior.num_random if config.kl_reduction == "mean" else 1)


def named_deviations(posterior: GaussianPosterior | None) -> dict[str, nn.Parameter]:
    """What the optimizer trains beside the weights, by the name that a checkpoint gives it."""
    deviations = posterior.std_parameters() if posterior else []
    return {f"weight_std.{i}": parameter for i, parameter in enumerate(deviations)}


def log_posterior(
    done: int, run: RunFolder, posterior: GaussianPosterior, config: TrainConfig, accelerator: Accelerator
) -> None:
    """Rows of the mean deviation and, where it has a weight, of the KL divergence."""
    if not accelerator.is_main_process:
        return
    deviations = posterior.weight_std().values()
    count = sum(std.numel() for std in deviations)
    run.log(done, "weight_std_mean", float(sum(std.abs().sum() for std in deviations)) / count, weights="raw")
    if config.kl_weight > 0:
        run.log(done, "kl", float(posterior.kl()), weights="raw")
