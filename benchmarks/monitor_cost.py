"""What a look of the stage monitor costs beside a step of training, on the embedded model.

A run of one short training per method, batch 1, one thread, process time (a busy machine slows it less than wall time).
Looks are timed inside the run: the probes with their judgement, without samples and without best/; then samples, and
the export into best/ with its bytes, apart. Steps are those between looks. Writes one JSON, by default
results/monitor_cost.json beside this file.

    OMP_NUM_THREADS=1 python benchmarks/monitor_cost.py --photographs DIR
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from fewbayes.methods import make_method
from fewbayes.models import Family, load_family
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.provenance import environment
from fewbayes.settings.config import TrainConfig
from fewbayes.stage.watch import StageWatch
from fewbayes.training import train as training

RESULTS = Path(__file__).parent / "results"
METHODS: dict[str, dict[str, Any]] = {"lora": {"rank": 16, "learning_rate": 3e-4}, "full": {"learning_rate": 1e-5}}


@contextmanager
def timed(owner: Any, name: str, seconds: list[float]) -> Iterator[None]:
    """Inside, the process time of each call of owner.name is appended to `seconds`."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.process_time()
        try:
            return original(*args, **kwargs)
        finally:
            seconds.append(time.process_time() - begin)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, original)


def measure(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """One training: every `--every` steps a look, at every second one samples too."""
    family = load_family("tiny")
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            model="tiny",
            instance_data_dir=str(args.photographs),
            instance_prompt="a photo of a <v> object",
            output_dir=f"{folder}/run",
            method=method,  # pyright: ignore[reportArgumentType]
            train_batch_size=1,
            max_train_steps=args.steps,
            checkpointing_steps=0,
            monitor_steps=args.every,
            validation_steps=2 * args.every,
            **METHODS[method],
        )
        probing: list[float] = []
        sampling: list[float] = []
        begun: list[float] = []
        log = RunFolder.log

        def stamped(self: RunFolder, step: int, metric: str, *rest: Any, **keys: Any) -> None:
            if metric == "loss":
                begun.append(time.process_time())
            log(self, step, metric, *rest, **keys)

        RunFolder.log = stamped
        try:
            with timed(StageWatch, "look", probing), timed(training, "validate", sampling):
                run = training.train(config, family=family, progress=False).folder
        finally:
            RunFolder.log = log
        best = measure_export(run, config, family)
    steps = [b - a for i, (a, b) in enumerate(pairwise(begun), 1) if i % args.every]
    alone = probing[::2]  # looks without samples to describe
    return {
        "step_ms": 1e3 * statistics.median(steps),
        "look_ms": 1e3 * statistics.median(alone),
        "look_with_samples_ms": 1e3 * statistics.median(probing[1::2]),
        "look_over_step": statistics.median(alone) / statistics.median(steps),
        "samples_ms": 1e3 * statistics.median(sampling[1:]),
        "samples": config.num_validation_images,
        "sampler_steps": config.num_inference_steps,
        "looks": len(probing),
        "steps": len(steps),
    } | best


def measure_export(run: Path, config: TrainConfig, family: Family) -> dict[str, float]:
    """Process time and bytes of a best/ of this method."""
    method = make_method(config)
    method.attach(family)
    seconds: list[float] = []
    for _ in range(5):
        with timed(RunFolder, "write_best", seconds):
            RunFolder(run).write_best(lambda folder: method.export(family, folder), {"step": 0})
    kept = sum(path.stat().st_size for path in (run / "best").rglob("*") if path.is_file())
    return {"best_ms": 1e3 * statistics.median(seconds), "best_bytes": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="a folder of training images")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=5, help="steps between looks")
    parser.add_argument("--output", type=Path, default=RESULTS / "monitor_cost.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {method: measure(method, args) for method in METHODS}
    for method, row in results.items():
        print(method, {name: round(value, 2) for name, value in row.items()}, flush=True)
    settings = {"steps": args.steps, "every": args.every, "threads": 1, "load": os.getloadavg()[0]}
    settings["photographs"] = sum(path.is_file() for path in args.photographs.iterdir())
    told = {"settings": settings, "environment": environment(None), "results": results}
    args.output.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
