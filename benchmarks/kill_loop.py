"""Trainings that are killed at chosen moments, again and again, and held against ones that nothing interrupted.

Six arms: full, LoRA and OFT, plain and Bayesian with averages, on the embedded model with class images, samples, the
monitor and checkpoints. Each kill picks a moment (drawing class images, samples, a look, best/, writing a checkpoint,
export, or a plain step), waits for it to begin and strikes at a random share of the time it takes: SIGKILL, or SIGINT
once, which is Ctrl-C. The same command goes on, is killed again, and in the end is let through. Counted:

- bytes lost: of files of the uninterrupted run, those that differ or are missing in the end (weights, deviations,
  averages, optimizer, result, samples, stages, best/, rows of metrics.jsonl by content), and of every checkpoint that
  was whole before a kill, those that are damaged after it;
- leftovers: staging names, and best-N/ that nobody needs;
- after Ctrl-C: steps that were done and have to be done again.

So that best/ is written, every look of these short trainings is taken for good. Trials are children of one process that
has torch imported already. The result is written after every training; the same command goes on. About an hour of one
core for all of it:

    OMP_NUM_THREADS=1 python benchmarks/kill_loop.py
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401  imported once, before any child is made
from PIL import Image
from safetensors.numpy import load_file

from fewbayes.cli import main as fewbayes
from fewbayes.runs.checkpoints import step_of, verify_checkpoint
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.provenance import environment
from fewbayes.stage.monitor import Monitor
from fewbayes.training import train as training
from fewbayes.training.stages import RunStages
from fewbayes.world.scenes import subject_photograph

RESULT = Path(__file__).parent / "results/kill_loop.json"
SHORT = {
    "model": "tiny",
    "instance_prompt": "a photo of a <v> fish",
    "resolution": 32,
    "learning_rate": 1e-3,
    "max_train_steps": 6,
    "checkpointing_steps": 2,
    "validation_steps": 3,
    "monitor_steps": 3,
    "num_inference_steps": 2,
    "num_validation_images": 2,
    "with_prior_preservation": True,
    "class_prompt": "a photo of a fish",
    "num_class_images": 4,
    "sample_batch_size": 2,
}
METHODS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"rank": 2}, "oft": {}}
BAYES = {"bayes": True, "weight_std": 0.01, "kl_weight": 1e-6, "use_ema": True}
ARMS = {
    f"{method}{', Bayesian' if bayes else ''}": SHORT | {"method": method} | own | (BAYES if bayes else {})
    for method, own in METHODS.items()
    for bayes in (False, True)
}
MOMENTS = {
    "class images": (training, "generated_class_images"),
    "samples": (training, "validate"),
    "look": (RunStages, "look"),
    "best/": (RunFolder, "write_best"),
    "checkpoint": (RunFolder, "write_checkpoint"),
    "export": (RunFolder, "write_pipeline"),
    "step": (training, "preserved_loss"),
}
KILLS_A_RUN = 8


# --- one start of a training ------------------------------------------------------------------------------------------


def child(arguments: list[str], marks: int, log: Path) -> None:
    """Never returns: a process of its own that tells the beginning and the end of each moment."""
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def told(owner: Any, name: str, moment: str) -> None:
        whole = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            os.write(marks, f"{moment}|begin|{time.monotonic()}\n".encode())
            made = whole(*args, **kwargs)
            os.write(marks, f"{moment}|end|{time.monotonic()}\n".encode())
            return made

        setattr(owner, name, call)

    for moment, (owner, name) in MOMENTS.items():
        told(owner, name, moment)
    Monitor._see = lambda self, scores: "good"
    code = 70
    try:
        code = fewbayes(arguments)
    finally:
        sys.stderr.flush()
        os._exit(code)


@dataclass
class Start:
    """One start: its exit code, the moments that ended, whether it was struck, and how long each moment took."""

    code: int
    struck: bool
    took: dict[str, list[float]] = field(default_factory=dict)


def start(arguments: list[str], log: Path, strike: tuple[str, int, float, int] | None) -> Start:
    """strike: (moment, which of it, seconds after its beginning, signal)."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        child(arguments, theirs, log)
    os.close(theirs)
    begun: dict[str, float] = {}
    took: dict[str, list[float]] = {}
    seen, struck = 0, False
    with os.fdopen(ours) as lines:
        for line in lines:
            moment, what, at = line.strip().split("|")
            if what == "begin":
                begun[moment] = float(at)
                if strike and moment == strike[0]:
                    seen += 1
                    if seen == strike[1] and not struck:
                        time.sleep(max(0.0, float(at) + strike[2] - time.monotonic()))
                        os.kill(pid, strike[3])
                        struck = True
            else:
                took.setdefault(moment, []).append(float(at) - begun[moment])
    _, status = os.waitpid(pid, 0)
    return Start(os.waitstatus_to_exitcode(status), struck, took)


# --- what is held against what ----------------------------------------------------------------------------------------


def contents(run: Path) -> dict[str, bytes]:
    """What a run leaves, by name: tensors, pictures, rows and words."""
    kept = {str(p.relative_to(run)): p.read_bytes() for p in [*run.glob("samples/*/*/*.png"), run / "stages.jsonl"]}
    kept["best.json"] = (run / "best/best.json").read_bytes()
    last = f"checkpoint-{SHORT['max_train_steps']}"
    parts = (last, "best", "best/unet", "unet", "oft", ".")
    for file in {file for part in parts for file in (run / part).glob("*.safetensors")}:
        for name, tensor in load_file(file).items():
            kept[f"{file.relative_to(run)} {name}"] = tensor.tobytes()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept["metrics.jsonl"] = json.dumps(rows).encode()
    kept["class images"] = b"".join(p.read_bytes() for p in sorted((run.parent / "class").rglob("0*.png")))
    return kept


def differing(ours: dict[str, bytes], theirs: dict[str, bytes]) -> dict[str, int]:
    """Bytes of `ours` that `theirs` has not, by name."""
    return {name: len(value) for name, value in ours.items() if theirs.get(name) != value}


def whole_checkpoints(run: Path) -> set[Path]:
    found = set()
    for path in run.glob("checkpoint-*"):
        with suppress(ValueError):
            found.add(verify_checkpoint(path).path)
    return found


def settings(arm: str, place: Path, photographs: Path) -> list[str]:
    place.mkdir(parents=True, exist_ok=True)
    config = ARMS[arm] | {
        "instance_data_dir": str(photographs),
        "output_dir": str(place / "run"),
        "class_data_dir": str(place / "class"),
    }
    (place / "run.yaml").write_text(json.dumps(config))
    return ["train", str(place / "run.yaml")]


def interrupted_run(
    arm: str, number: int, kind: int, reference: Path, took: dict[str, list[float]], photographs: Path, work: Path
) -> dict[str, Any]:
    """One training, struck KILLS_A_RUN times at most, then let through; a row of the result."""
    draw = random.Random(f"{arm} {number} {kind}")
    place = work / "killed"
    shutil.rmtree(place, ignore_errors=True)
    arguments = settings(arm, place, photographs)
    run, log = place / "run", place / "log"
    struck: list[str] = []
    lost, done_again, problems = 0, 0, []
    for _ in range(KILLS_A_RUN):
        moment = draw.choice(list(MOMENTS))
        often = len(took[moment])
        strike = (moment, draw.randint(1, max(1, often // 2)), draw.random() * max(took[moment]), kind)
        before = whole_checkpoints(run)
        ended = start(arguments, log, strike)
        if ended.struck:
            struck.append(moment)
        after = whole_checkpoints(run)
        gone = before - after
        lost += sum(f.stat().st_size for path in gone for f in path.glob("*"))
        if kind == signal.SIGINT and ended.struck and ended.code == 130:
            at = [int(w) for w in log.read_text().rpartition("Stopped at step ")[2].split(" ", 1)[:1] if w.isdigit()]
            newest = max((step_of(path) or 0 for path in after), default=0)
            done_again += max(0, at[0] - newest) if at and "Stopped at step" in log.read_text() else 0
        if ended.code == 0:
            break
        if ended.code not in (-signal.SIGKILL, 130):
            problems.append(f"exit code {ended.code}: {log.read_text()[-500:]}")
            break
    last = start(arguments, log, None)
    if last.code != 0:
        problems.append(f"exit code {last.code}: {log.read_text()[-500:]}")
    different = differing(contents(reference / "run"), contents(run)) if last.code == 0 else {"all": -1}
    litter = [p.name for p in run.iterdir() if p.name.startswith((".tmp-", "best-"))]
    return {
        "arm": arm,
        "number": number,
        "signal": signal.Signals(kind).name,
        "struck": struck,
        "bytes_lost": lost + sum(different.values()),
        "different": sorted(different)[:10],
        "steps_done_again": done_again,
        "leftovers": litter,
        "problems": problems,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigkill", type=int, default=200, help="SIGKILLs [200]")
    parser.add_argument("--sigint", type=int, default=50, help="Ctrl-Cs [50]")
    parser.add_argument("--minutes", type=float, default=25, help="of processor time, then it ends [25]")
    parser.add_argument("--work", type=Path, help="folder for the trainings [a temporary one]")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"file [{RESULT.name}]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        loop(args, args.work or Path(temporary))


def loop(args: argparse.Namespace, work: Path) -> None:
    found = json.loads(args.output.read_text())["runs"] if args.output.exists() else []
    photographs = work / "photographs"
    photographs.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        pixels = (255 * subject_photograph("swirl_fish", i)[0]).round().astype(np.uint8)
        Image.fromarray(pixels).save(photographs / f"{i}.png")
    took: dict[str, dict[str, list[float]]] = {}
    for number in count():
        kind = signal.SIGINT if number % 5 == 4 else signal.SIGKILL
        arm = list(ARMS)[number % len(ARMS)]
        struck = {name: sum(len(r["struck"]) for r in found if r["signal"] == name) for name in ("SIGKILL", "SIGINT")}
        if struck["SIGKILL"] >= args.sigkill and struck["SIGINT"] >= args.sigint:
            return
        asked = args.sigint if kind == signal.SIGINT else args.sigkill
        if struck[kind.name] >= asked or any(r["number"] == number for r in found):
            continue
        if sum(os.times()[:4]) > 60 * args.minutes:
            return
        reference = work / f"whole-{list(ARMS).index(arm)}"
        if arm not in took:
            shutil.rmtree(reference, ignore_errors=True)
            whole = start(settings(arm, reference, photographs), work / "log", None)
            assert whole.code == 0, (work / "log").read_text()
            took[arm] = whole.took
        found.append(interrupted_run(arm, number, kind, reference, took[arm], photographs, work))
        write(args.output, found)
        row = found[-1]
        print(f"{arm}, {kind.name}: {len(row['struck'])} struck, {row['bytes_lost']} bytes lost", flush=True)


def write(output: Path, runs: list[dict[str, Any]]) -> None:
    """Counts by signal, by moment and by arm, then every training."""
    counts = {}
    for name in ("SIGKILL", "SIGINT"):
        rows = [row for row in runs if row["signal"] == name]
        struck = [moment for row in rows for moment in row["struck"]]
        counts[name] = {
            "signals": len(struck),
            "by_moment": {moment: struck.count(moment) for moment in MOMENTS},
            "by_arm": {arm: sum(len(row["struck"]) for row in rows if row["arm"] == arm) for arm in ARMS},
            "trainings": len(rows),
            "trainings_not_bit_equal": sum(bool(row["different"]) for row in rows),
            "bytes_lost": sum(row["bytes_lost"] for row in rows),
            "steps_done_again": sum(row["steps_done_again"] for row in rows),
            "trainings_with_leftovers": sum(bool(row["leftovers"]) for row in rows),
            "problems": sum(bool(row["problems"]) for row in rows),
        }
    told = {"command": "benchmarks/kill_loop.py", "environment": environment(), "counts": counts, "runs": runs}
    output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
