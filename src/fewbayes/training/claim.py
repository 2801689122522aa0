"""The run folder of a training: what it holds already, whether that can be continued, and taking hold of it.

`inspected` touches nothing; `claimed` comes last of all preparations, so whatever is refused before has left the folder
as it was. Knows nothing of models.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from fewbayes.errors import UserError
from fewbayes.runs.checkpoints import Checkpoint
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.layout import MANIFEST, Manifest, read_manifest, sample_folders
from fewbayes.runs.provenance import environment
from fewbayes.settings.config import TrainConfig
from fewbayes.training.processes import gpu_name

log = logging.getLogger("fewbayes")


def inspected(run: RunFolder, config: TrainConfig, fingerprint: Mapping[str, Any]) -> Manifest:
    """The manifest of the run so far, an empty one for none; refuses what cannot be continued and touches nothing."""
    there = read_manifest(run.path) if (run.path / MANIFEST).is_file() else Manifest()
    found = there.fingerprint.get("method", config.method)
    if found != config.method:  # said first and alone: another method brings other settings and other defaults
        raise UserError(
            f"output_dir {run.path} holds a run of method {found}, and method is {config.method} now; give another "
            f"output_dir, or method {found} to continue that run"
        )
    manifest = run.inspect(fingerprint)
    done = (manifest.steps or 0) if manifest.status == "done" else 0
    reached = max(run.newest_step() or 0, done)
    assert config.max_train_steps is not None
    if reached > config.max_train_steps:
        raise UserError(
            f"max_train_steps is {config.max_train_steps}, but {run.path} is at step {reached} already; "
            "give more steps or another output_dir"
        )
    return manifest


def as_asked(manifest: Manifest, config: TrainConfig, result: str) -> bool:
    """Whether the final result that the manifest tells of is the one asked for, and there, told by its file."""
    stopped = manifest.stopped == config.stop_when  # where it was stopped then, it would be stopped now
    trained = stopped or manifest.steps == config.max_train_steps
    return trained and manifest.exported == config.export_weights and (Path(config.output_dir) / result).is_file()


def said_of_stop(manifest: Manifest, checkpoint: int | None) -> str:
    """checkpoint: the step of the newest one, from which training could go on."""
    if not manifest.stopped:
        return ""
    on = f"on from step {checkpoint}" if checkpoint else "again from step 0, as there is no checkpoint"
    return f", stopped at step {manifest.steps} as {manifest.stopped} (stop_when never would train {on})"


def claimed(
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
            environment=environment(gpu_name(accelerator)),
            **({"calibration": calibration} if calibration else {}),
        )
    except BaseException:
        run.close()
        raise
    return checkpoint


def _drop_after(run: RunFolder, step: int) -> None:
    """Rows and samples of later steps go, as these steps will be taken again; a later best/ is renamed."""
    run.resume_from(step)
    best = run.best()
    if best and best.step > step:
        aside = run.set_best_aside(best.step)
        log.info(
            "training goes on from step %d, so best/ (step %d) is kept as %s/", max(step, 0), best.step, aside.name
        )
    for drawn, folder in sample_folders(run.path).items():
        if drawn > step:
            shutil.rmtree(folder)


@contextmanager
def failure_recorded(run: RunFolder, accelerator: Accelerator) -> Iterator[None]:
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
