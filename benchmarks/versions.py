"""What a training step takes in one version of this package and in another: whole trainings in turns, as a ratio.

The first path is the version that the others are multiples of. Each is a process of its own; they wait for each other
at the end of optimizer steps as the arms of peers.py do, in processor time of all threads.

    git worktree add ../before REVISION
    python benchmarks/versions.py before=../before/src now=src
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import environment, spread
from peers import PROMPT, Gate, photographs
from torch.optim.optimizer import register_optimizer_step_post_hook

RESULTS = Path(__file__).parent / "results"
ARMS = {
    "full, plain": [],
    "full, learned": ["--bayes"],
    "full, fixed": ["--bayes", "--weight_std_learn", "fixed"],
    "LoRA, plain": ["--method", "lora"],
    "LoRA, learned": ["--method", "lora", "--bayes"],
    "LoRA, fixed": ["--method", "lora", "--bayes", "--weight_std_learn", "fixed"],
}


def work(arguments: list[str]) -> None:
    """One version, from its imports on."""
    channel, began = os.fdopen(os.dup(1), "w"), time.time()
    os.dup2(2, 1)
    register_optimizer_step_post_hook(Gate(channel, began, 1))
    from fewbayes.cli import main

    sys.exit(main(["train", *arguments]))


class Version:
    """The process of a version as the parent sees it."""

    def __init__(self, source: Path, folder: Path, name: str, flags: list[str], total: int):
        words = {"model": "tiny", "instance_data_dir": folder / "pictures", "instance_prompt": PROMPT}
        words |= {"output_dir": folder / name, "max_train_steps": total, "checkpointing_steps": 0}
        words |= {"resolution": 64, "learning_rate": 1e-6, "seed": 0}
        told = [text for key, value in words.items() for text in (f"--{key}", str(value))]
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", json.dumps([*told, *flags])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{name}.log").open("w"),
            text=True,
            env=os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        self.first = self.answer()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def cpu(self, steps: int) -> float:
        """Processor seconds of one of the next steps, on average."""
        assert self.process.stdin
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()["cpu"] / steps


def compared(sources: dict[str, Path], flags: list[str], turns: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photographs(folder / "pictures", 64)
        total = 1 + (1 + turns) * steps + 1
        versions = {name: Version(source, folder, name, flags, total) for name, source in sources.items()}
        taken: list[dict[str, float]] = []
        for turn in range(1 + turns):
            order = list(versions)[:: 1 if turn % 2 else -1]
            taken.append({name: versions[name].cpu(steps) for name in order})
        for version in versions.values():
            version.process.kill()
            version.process.wait()
    first, counted = next(iter(sources)), taken[1:]
    return {
        name: {
            "cpu_ms": spread([1e3 * turn[name] for turn in counted]),
            "ratio": spread([turn[name] / turn[first] for turn in counted]),
            "first_step_cpu_s": version.first["first_cpu"],
        }
        for name, version in versions.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", help="name=folder of its source")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps a turn")
    parser.add_argument("--output", type=Path, default=RESULTS / "versions.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(json.loads(args.work))
    sources = {name: Path(path) for name, _, path in (text.partition("=") for text in args.versions)}
    results = json.loads(args.output.read_text())["results"] if args.output.exists() else {}
    for arm in args.arms:
        results[arm] = compared(sources, ARMS[arm], args.turns, args.steps)
        print(arm, json.dumps(results[arm]), flush=True)
        kept = {"settings": {"turns": args.turns, "steps": args.steps}, **environment(), "results": results}
        args.output.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
