"""Where the work of a study runs: processes of this machine, a Slurm cluster (submitit), or a Ray cluster.

An executor is a function that calls another, which stands at the top of a module, once for every item, and gives an
`Outcome` of each, in their order. What a training has reached lies in its run folder, on a disk that all machines see,
and continues there: so an executor may call again what was cut off, and where something runs changes no result. One
that fails never ends the others. Knows no training.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from fewbayes.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
TRIES = 3
"""Times that what was cut off is begun, with nothing finished in between."""


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What a call gave, or why it gave nothing. error: in a line; trace: where, if it is a mistake of this program."""

    result: Result | None = None
    error: str | None = None
    trace: str = ""


@dataclass(frozen=True)
class Guarded(Generic[Item, Result]):
    """A call whose error is an outcome. submitit asks it what to do when a job is cut off: the same again."""

    function: Callable[[Item], Result]

    def __call__(self, item: Item) -> Outcome[Result]:
        try:
            return Outcome(self.function(item))
        except UserError as error:
            return Outcome(error=str(error))
        except Exception as error:
            return Outcome(error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())

    def checkpoint(self, item: Item) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, item)


class WorkFailedError(UserError):
    """Some of the work has no result. What has one is kept."""


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | str | None = None
) -> list[Result]:
    """`function` of every item, in order; workers: see `executor_of`.

    WorkFailedError after all have ended, where some have failed: it names them, and the same command tries them again.
    RuntimeError instead where one of them is a mistake of this program.
    """
    if not items:
        return []
    executor, settings = executor_of(workers)
    outcomes: list[Outcome[Result]] = executor(Guarded(function), items, **settings)
    failed = [(item, outcome) for item, outcome in zip(items, outcomes, strict=True) if outcome.error is not None]
    if failed:
        kept = f"; the other {len(items) - len(failed)} are kept" if len(items) > len(failed) else ""
        opening = f"{len(failed)} of {len(items)} failed{kept}. The same command tries these again:"
        said = "\n".join([opening, *(f"  {_name(item)}: {outcome.error}" for item, outcome in failed)])
        traces = [outcome.trace for _, outcome in failed if outcome.trace]
        raise RuntimeError(f"{said}\n{traces[0]}") if traces else WorkFailedError(said)
    return [cast("Result", outcome.result) for outcome in outcomes]


def _name(item: Any) -> str:
    return str(next((found for name in ("folder", "name") if (found := getattr(item, name, None))), item))


def executor_of(workers: int | str | None) -> tuple[Callable[..., list[Outcome[Any]]], dict[str, Any]]:
    """Where work runs: a number of processes of this machine, or `slurm` or `ray` with settings after a colon.

    "slurm:slurm_partition=gpu,gpus_per_node=1,slurm_array_parallelism=50", "ray:address=auto,num_gpus=1".
    UserError for anything else, and where the package is not installed.
    """
    if workers is None or isinstance(workers, int) or workers.isdecimal():
        if workers is not None and int(workers) == 0:
            raise UserError("workers is 0; it must be at least 1")
        return on_this_machine, {"workers": workers if workers is None else int(workers)}
    name, _, given = workers.partition(":")
    if name not in CLUSTERS:
        raise UserError(f"workers is {workers!r}; give a number of processes, or slurm or ray with their settings")
    executor, package = CLUSTERS[name]
    if find_spec(package) is None:
        raise UserError(f"workers {name} needs the package {package}: pip install 'fewbayes[{name}]'")
    settings: dict[str, Any] = {}
    for pair in filter(None, given.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"workers {name}: {pair!r} is no setting; write key=value, several apart by commas")
        number = value.replace(".", "", 1).isdecimal()
        settings[key.strip()] = (float(value) if "." in value else int(value)) if number else value
    return executor, settings


# --- clusters ---------------------------------------------------------------------------------------------------------


def on_slurm(
    call: Guarded[Item, Result],
    items: Sequence[Item],
    cluster: str = "slurm",
    folder: str = "slurm-logs",
    **settings: Any,
) -> list[Outcome[Result]]:
    """One Slurm job an item, as an array, by submitit; a job that is preempted or out of time is queued again.

    cluster: "local" runs the same on this machine. folder: for its logs, on a disk that all machines see. settings: of
    submitit's AutoExecutor, such as timeout_min, gpus_per_node, slurm_partition, slurm_array_parallelism.
    """
    import submitit

    executor = submitit.AutoExecutor(folder=Path(folder) / "%j", cluster=cluster)
    executor.update_parameters(**({"timeout_min": 24 * 60, "cpus_per_task": 4} | settings))
    jobs = executor.map_array(call, items)

    def outcome(job: Any) -> Outcome[Result]:
        if job.exception() is None:
            return job.result()
        return Outcome(error=f"job {job.job_id} ended without a result; its log is {job.paths.stderr}")

    try:
        return [outcome(job) for job in jobs]
    except BaseException:
        for job in jobs:
            job.cancel(check=False)
        raise


def on_ray(
    call: Guarded[Item, Result], items: Sequence[Item], address: str | None = None, **settings: Any
) -> list[Outcome[Result]]:
    """One Ray task an item, begun again where its worker or its node is lost.

    address: of a cluster, None for one on this machine. settings: of a task, such as num_cpus, num_gpus, max_retries.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = import_module("ray")
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, include_dashboard=False, configure_logging=False)

    def outcome(reference: Any) -> Outcome[Result]:
        try:
            return ray.get(reference)
        except ray.exceptions.RayError as error:
            return Outcome(error=f"its worker was lost: {str(error).splitlines()[0]}")

    try:
        task = ray.remote(**({"num_cpus": 1, "max_retries": TRIES} | settings))(_called)
        return [outcome(reference) for reference in [task.remote(call, item) for item in items]]
    finally:
        if ours:
            ray.shutdown()


def _called(call: Guarded[Item, Result], item: Item) -> Outcome[Result]:
    """A function at the top of a module, since Ray takes nothing else."""
    return call(item)


CLUSTERS = {"slurm": (on_slurm, "submitit"), "ray": (on_ray, "ray")}
"""By name: the executor, and the package it needs."""


# --- processes of this machine ----------------------------------------------------------------------------------------


def on_this_machine(
    call: Guarded[Item, Result], items: Sequence[Item], workers: int | None = None
) -> list[Outcome[Result]]:
    """Processes that share the cores; workers None is one per core, one worker is this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, len(items))
    if workers == 1:
        return [call(item) for item in items]
    found: dict[int, Outcome[Result]] = {}
    tries = 0
    while left := [i for i in range(len(items)) if i not in found]:
        before = len(found)
        _round(call, items, left, workers, max(1, cores // workers), found)
        tries = 1 if len(found) > before else tries + 1
        if tries > TRIES:
            found |= {i: Outcome(error=f"its process was killed {TRIES} times") for i in left}
    return [found[i] for i in range(len(items))]


def _round(call: Guarded, items: Sequence[Any], left: list[int], workers: int, threads: int, found: dict) -> None:
    """Call what is left. Ends early where a worker was killed: that breaks the pool, and all that it had begun."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_prepare, initargs=(threads,)) as pool:
        futures = {i: pool.submit(call, items[i]) for i in left}
        try:
            for i, future in futures.items():
                found[i] = future.result()
        except BrokenProcessPool:
            found |= {i: f.result() for i, f in futures.items() if f.done() and f.exception() is None}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
