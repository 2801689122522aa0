"""The work of a study gives the same wherever it runs, and what is killed is done all the same."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import sys
from functools import partial
from importlib.util import find_spec
from inspect import isfunction
from pathlib import Path
from types import SimpleNamespace

import pytest

from fewbayes.errors import UserError
from fewbayes.studies.executors import (
    Guarded,
    WorkFailedError,
    executor_of,
    in_parallel,
    on_ray,
    on_slurm,
    on_this_machine,
)
from fewbayes.studies.status import list_trainings, progress, told

ITEMS = list(range(6))
WANTED = [0, 1, 4, 9, 16, 25]


def square(number: int) -> int:
    return number * number


def killed_once(folder: Path, number: int) -> int:
    """Number 2's process is killed at its first try."""
    mark = folder / str(number)
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def picky(number: int) -> int:
    if number % 2:
        raise UserError(f"{number} is odd")
    return number


def test_processes_give_what_one_process_gives_and_a_killed_one_ends_nothing(tmp_path):
    assert in_parallel(square, ITEMS, 1) == in_parallel(partial(killed_once, tmp_path), ITEMS, "2") == WANTED
    assert in_parallel(square, [], 2) == []


def test_failures_are_named_after_all_else_is_done():
    with pytest.raises(WorkFailedError, match=r"3 of 6 failed; the other 3 are kept.*\n  1: 1 is odd\n  3: 3 is odd"):
        in_parallel(picky, ITEMS, 1)
    with pytest.raises(RuntimeError, match=r"1 of 2 failed(?s:.*)TypeError(?s:.*)in square"):
        in_parallel(square, [1, None], 1)  # our own mistake keeps its traceback


def test_workers_are_a_number_or_a_cluster_with_settings():
    assert executor_of(None) == (on_this_machine, {"workers": None})
    assert executor_of("3") == executor_of(3) == (on_this_machine, {"workers": 3})
    settings = {"slurm_partition": "gpu", "gpus_per_node": 1}
    assert executor_of("slurm:slurm_partition=gpu,gpus_per_node=1") == (on_slurm, settings)
    if find_spec("ray"):
        assert executor_of("ray:num_gpus=0.5") == (on_ray, {"num_gpus": 0.5})
    else:
        with pytest.raises(UserError, match="needs the package ray"):
            executor_of("ray:num_gpus=0.5")
    for wrong, said in {"0": "at least 1", "cloud": "give a number", "slurm:gpu": "write key=value"}.items():
        with pytest.raises(UserError, match=said):
            executor_of(wrong)


class FewOfRay:
    """As much of Ray as an executor asks of it. Like Ray it makes tasks of functions and classes alone."""

    def is_initialized(self) -> bool:
        return True

    def remote(self, **settings: object):
        def decorated(function):
            assert isfunction(function), "The @ray.remote decorator must be applied to either a function or a class."
            return SimpleNamespace(remote=lambda *given: function(*pickle.loads(pickle.dumps(given))))

        return decorated

    get = staticmethod(lambda reference: reference)
    exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))


def test_ray_is_given_what_it_takes(monkeypatch):
    """With a cluster, killed workers and a lost node: benchmarks/cluster.py."""
    monkeypatch.setitem(sys.modules, "ray", FewOfRay())
    assert [outcome.result for outcome in on_ray(Guarded(square), ITEMS)] == WANTED


def test_submitit_gives_what_one_process_gives(tmp_path):
    pytest.importorskip("submitit")
    where = f"slurm:cluster=local,timeout_min=5,folder={tmp_path}"
    assert in_parallel(math.factorial, [3, 5], where) == [6, 120]
    with pytest.raises(WorkFailedError, match=r"1 of 1 failed(?s:.*)  3: job \d+ ended without a result; its log is"):
        in_parallel(os._exit, [3], where)


def test_status_counts_what_the_run_folders_say(tmp_path, settings):
    configs = [settings(output_dir=str(tmp_path / name), max_train_steps=2) for name in ("a", "b", "c", "d")]
    list_trainings(configs[:3])
    list_trainings(configs[2:])
    for config, status in zip(configs, ("done", "failed", "running"), strict=False):
        folder = Path(config.output_dir)
        folder.mkdir()
        more = {"done": {"ended": "2026-01-01T00:00:08"}, "failed": {"error": "loss is nan"}}.get(status, {})
        text = {"status": status, "started": "2026-01-01T00:00:00", "starts": [{"time": "2026-01-01T00:00:00"}], **more}
        (folder / "manifest.json").write_text(json.dumps(text))
    (tmp_path / "c" / "metrics.jsonl").write_text('{"step": 1, "metric": "loss", "value": 0.1}\n')
    lines = told(tmp_path, progress(tmp_path))
    assert lines[0] == "4 trainings: 1 done, 1 begun, 1 failed, 1 not begun"
    assert "  b: loss is nan" in lines
    assert any(line.startswith("  c: step 1 of 2, last sign of life 0 minutes ago") for line in lines)
    assert "left: 5 steps, 0 minutes of one worker at 4.00 s a step" in lines
    with pytest.raises(UserError, match="holds no study"):
        progress(tmp_path / "a")
