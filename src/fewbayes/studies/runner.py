"""Runs every arm of an experiment for every seed, several at a time, and skips what is already done.

A run is a `TrainConfig`; an arm is a few changes to a common one; a run folder is its result. Nothing here reads a
result or draws a page.
"""

import json
import logging
import multiprocessing
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from fewbayes.runs.folder import RunFolder, atomic_write, environment
from fewbayes.settings.config import TrainConfig

log = logging.getLogger("fewbayes")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Arm:
    """`changes` are fields of TrainConfig that this arm sets differently from the others."""

    name: str
    label: str
    changes: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Experiment:
    """Every arm is run once per seed from `base`, whose seed and output_dir are replaced."""

    title: str
    subject: str
    question: str
    base: TrainConfig
    arms: Sequence[Arm]
    seeds: Sequence[int]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def configs(self, folder: Path) -> dict[str, TrainConfig]:
        """Run name to settings: all arms of a seed before the next seed, so that what is there can be compared."""
        return {
            f"{arm.name}-seed{seed}": replace(
                self.base, **arm.changes, seed=seed, output_dir=str(folder / f"{arm.name}-seed{seed}")
            )
            for seed in self.seeds
            for arm in self.arms
        }


def run_experiment(experiment: Experiment, folder: Path, workers: int | None = None) -> Path:
    """Bring every run of the experiment to its end under `folder`; the same call continues after an interruption.

    workers: runs at a time, which share the cores; None is one per core. A folder that holds runs of other settings
    is refused with a ValueError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    configs = experiment.configs(folder)
    with watching(configs):
        failed = [failure for failure in in_parallel(run_one, list(configs.values()), workers) if failure]
    _describe(experiment, folder)
    if failed:
        log.warning("%d of %d runs failed: %s", len(failed), len(configs), "; ".join(failed))
    return folder


def is_done(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() and RunFolder(folder).manifest.get("status") == "done"


def _describe(experiment: Experiment, folder: Path) -> None:
    arms = [
        {
            "name": arm.name,
            "label": arm.label,
            "note": arm.note,
            "runs": [f"{arm.name}-seed{seed}" for seed in experiment.seeds],
        }
        for arm in experiment.arms
    ]
    described = {
        "title": experiment.title,
        "subject": experiment.subject,
        "question": experiment.question,
        "arms": arms,
        "provenance": {**experiment.facts, "command": command(), **environment(None)},
    }
    atomic_write(folder / "experiment.json", json.dumps(described, indent=1, default=str) + "\n")


def command() -> str:
    """What was typed, as results keep it: they name no folders of the machine that they were made on."""
    return shlex.join(["fewbayes", *map(without_path, sys.argv[1:])])


def without_path(argument: str) -> str:
    """The last name of a path: photos/dog:dog is dog:dog, --output_dir=runs/a is --output_dir=a."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + (Path(value).name if "/" in value else value)


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None) -> list[Result]:
    """`function` of every item, in order, in `workers` processes that share the cores; None is one per core.

    One worker is this process itself. An error ends all of them and is raised.
    """
    if not items:
        return []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, len(items))
    if workers == 1:
        return [function(item) for item in items]
    context, threads = multiprocessing.get_context("spawn"), max(1, cores // workers)
    with ProcessPoolExecutor(workers, context, initializer=_prepare, initargs=(threads,)) as pool:
        try:
            return list(pool.map(function, items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_families: dict[str, Any] = {}  # loaded once per worker process


def _prepare(threads: int) -> None:
    import torch

    logging.getLogger("fewbayes").setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when its parent was killed: a run may stop at any moment, but must not go on unseen."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def run_one(config: TrainConfig) -> str | None:
    """Train; what is done already returns at once, and a folder that holds another run is refused.

    A run whose numbers ran away is said in a line and does not stop the others.
    """
    from fewbayes.models import load_family
    from fewbayes.training.train import NonFiniteError, train

    if config.model not in _families:
        _families[config.model] = load_family(config.model)
    try:
        train(config, family=_families[config.model], progress=False)
    except NonFiniteError as error:
        return f"{Path(config.output_dir).name}: {error}"
    return None


@contextmanager
def watching(configs: Mapping[str, TrainConfig]) -> Iterator[None]:
    """A progress bar over checkpoints sampled and runs done so far, read from the run folders by a thread."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    sampled = [c for c in configs.values() if c.validation_steps]
    total = len(configs) + sum(len(range(0, (c.max_train_steps or 0) + 1, c.validation_steps)) for c in sampled)
    stop = threading.Event()

    def seen() -> tuple[int, int]:
        folders = [Path(config.output_dir) for config in configs.values()]
        return sum(len(list(f.glob("samples/step-*"))) for f in folders), sum(is_done(f) for f in folders)

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), refresh_per_second=2) as shown:
        task = shown.add_task(f"{len(configs)} runs", total=total)

        def watch() -> None:
            while not stop.wait(1.0):
                pictures, done = seen()
                shown.update(task, completed=pictures + done, description=f"{done} of {len(configs)} runs done")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            pictures, done = seen()
            shown.update(task, completed=pictures + done, description=f"{done} of {len(configs)} runs done")
