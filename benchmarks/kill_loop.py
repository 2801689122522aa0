"""Trainings that are killed at chosen moments, again and again, and held against ones that nothing interrupted.

Six arms: full, LoRA and OFT, plain and Bayesian with averages, on the embedded model with class images, samples, the
monitor and checkpoints. Each kill picks a moment (drawing class images, samples, a look, best/, writing a checkpoint,
export, a plain step, or any change of a file), waits for it to begin and strikes at a random share of the time it
takes: SIGKILL, or SIGINT once, which is Ctrl-C. The same command goes on, is killed again, and in the end is let
through.
Counted:

- bytes lost: of files of the uninterrupted run, those that differ or are missing in the end (weights, deviations,
  averages, optimizer, result, samples, stages, best/, rows of metrics.jsonl by content), and of every checkpoint that
  was whole before a kill, those that are damaged after it;
- leftovers: staging names, and best-N/ that nobody needs;
- after Ctrl-C: steps that were done and have to be done again.

Tries are children of one process that has imported all that a training imports, so that a start costs no more than
its work; each runs the whole command on a folder of its own and dies by a true signal. So that best/ is written, every
look of these short trainings is taken for good. `--true` adds trainings in processes of their own, `python -m fewbayes
train` with nothing changed, struck at a random time or as soon as a temporary file is seen. The result is written after
every training; the same command goes on:

    OMP_NUM_THREADS=1 python benchmarks/kill_loop.py --true 3
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from fewbayes.cli import main as fewbayes
from fewbayes.runs.checkpoints import verify_checkpoint
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.provenance import environment
from fewbayes.stage import monitor
from fewbayes.training import prepare
from fewbayes.training import train as training
from fewbayes.training.stages import RunStages
from fewbayes.world.scenes import subject_photograph

RESULT = Path(__file__).parent / "results/kill_loop.json"
SHORT = {
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
    "class images": (prepare, "generated_class_images"),
    "samples": (training, "validate"),
    "look": (RunStages, "look"),
    "best/": (RunFolder, "write_best"),
    "checkpoint": (RunFolder, "write_checkpoint"),
    "export": (RunFolder, "write_pipeline"),
    "step": (training, "preserved_loss"),
}
FILES = "change of a file"
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
KILLS_A_RUN = 16
TRUE = ("time", "temporary file")


# --- one start of a training ------------------------------------------------------------------------------------------


def child(arguments: list[str], marks: int, log: Path) -> None:
    """Never returns: a process of its own that tells the beginning and the end of each moment."""
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def mark(moment: str, what: str) -> None:
        os.write(marks, f"{moment}|{what}|{time.monotonic()}\n".encode())

    def told(owner: Any, name: str, moment: str) -> None:
        whole = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            mark(moment, "begin")
            made = whole(*args, **kwargs)
            mark(moment, "end")
            return made

        setattr(owner, name, call)

    place = str(log.parent)

    def changed(event: str, args: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (opened or event in CHANGES) and str(args[0]).startswith(place):
            mark(FILES, "begin")
            mark(FILES, "end")

    for moment, (owner, name) in MOMENTS.items():
        told(owner, name, moment)
    monitor.seen = lambda scores, several: "good"
    sys.addaudithook(changed)
    code = 70
    try:
        code = fewbayes(arguments)
    finally:
        sys.stderr.flush()
        os.write(marks, f"{' '.join(sys.modules)}|modules|0\n".encode())
        os._exit(code)


@dataclass
class Start:
    """One start: its exit code, whether it was struck, and before its moment ended; how long each moment took."""

    code: int
    struck: bool = False
    inside: bool = False
    took: dict[str, list[float]] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)


def start(arguments: list[str], log: Path, strike: tuple[str, int, float, int] | None) -> Start:
    """strike: (moment, which of it, seconds after its beginning, signal)."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        child(arguments, theirs, log)
    os.close(theirs)
    begun: dict[str, float] = {}
    found, seen, hit = Start(0), 0, 0.0
    with os.fdopen(ours) as lines:
        for line in lines:
            if line.count("|") != 2:
                continue  # the list of modules is long, and a child can die while it writes
            moment, what, at = line.rstrip("\n").split("|")
            if what == "modules":
                found.modules = moment.split()
            elif what == "begin":
                begun[moment] = float(at)
                seen += bool(strike) and moment == strike[0]
                if strike and seen == strike[1] and not found.struck:
                    time.sleep(max(0.0, float(at) + strike[2] - time.monotonic()))
                    hit = time.monotonic()
                    os.kill(pid, strike[3])
                    found.struck = found.inside = True
            else:
                found.took.setdefault(moment, []).append(float(at) - begun[moment])
                late = strike and moment == strike[0] and begun[moment] < float(at) < hit
                found.inside = found.inside and (moment == FILES or not late)
    _, status = os.waitpid(pid, 0)
    found.code = os.waitstatus_to_exitcode(status)
    return found


def true_start(arguments: list[str], log: Path, strike: tuple[str, int, float, int] | None) -> Start:
    """The same in a process that nobody prepared. strike: (one of TRUE, which file, seconds, signal)."""
    with log.open("ab") as words:
        command = [sys.executable, "-m", "fewbayes", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=words)
    begin, known, found = time.monotonic(), set[Path](), Start(0)
    while process.poll() is None:
        if strike and not found.struck:
            known.update(log.parent.rglob(".tmp-*"))
            of_time = strike[0] == "time" and time.monotonic() - begin >= strike[2]
            if of_time or (strike[0] == "temporary file" and len(known) >= strike[1]):
                process.send_signal(strike[3])
                found.struck = found.inside = True
        time.sleep(0.002 if strike else 0.1)
    found.code, found.took = process.returncode, {"time": [time.monotonic() - begin], "temporary file": [0.0]}
    return found


@dataclass
class Whole:
    """A training that nothing interrupted: its folder, and how long each moment took each time."""

    place: Path
    took: dict[str, list[float]]


# --- what is held against what ----------------------------------------------------------------------------------------


def contents(run: Path) -> dict[str, bytes]:
    """What a run leaves, by name: tensors, pictures, rows and words."""
    kept = {str(p.relative_to(run)): p.read_bytes() for p in [*run.glob("samples/*/*/*.png"), run / "stages.jsonl"]}
    kept |= {str(p.relative_to(run)): p.read_bytes() for p in run.glob("best/best.json")}
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


def settings(arm: str, place: Path, photographs: Path, model: str) -> list[str]:
    place.mkdir(parents=True, exist_ok=True)
    config = ARMS[arm] | {
        "model": model,
        "instance_data_dir": str(photographs),
        "output_dir": str(place / "run"),
        "class_data_dir": str(place / "class"),
    }
    (place / "run.yaml").write_text(json.dumps(config))
    return ["train", str(place / "run.yaml")]


def possible(run: Path) -> list[str]:
    """The moments that are still to come."""
    if (run / f"checkpoint-{SHORT['max_train_steps']}").is_dir():
        return ["export", FILES]
    drawn = len(list((run.parent / "class").rglob("0*.png")))
    return [*(name for name in MOMENTS if name != "class images" or drawn < SHORT["num_class_images"]), FILES]


def interrupted_run(
    arm: str,
    number: int,
    kind: int,
    whole: Whole,
    photographs: Path,
    model: str,
    work: Path,
    often: Counter[str],
    true: bool,
) -> dict[str, Any]:
    """One training, struck KILLS_A_RUN times at most, then let through; a row of the result. often: strikes so far."""
    draw = random.Random(f"{arm} {number} {kind} {true}")
    begin = sum(os.times()[:4])
    place = work / "killed"
    shutil.rmtree(place, ignore_errors=True)
    arguments = settings(arm, place, photographs, model)
    run, log = place / "run", place / "log"
    struck: list[str] = []
    inside, lost, done_again, problems = 0, 0, 0, []
    code = None
    for _ in range(KILLS_A_RUN):
        moments = list(TRUE) if true else possible(run)
        moment = min(moments, key=lambda name: (often[name], draw.random()))
        which = draw.randint(1, max(1, len(whole.took[moment]) // 8)) if moment == FILES else 1
        strike = (moment, which, draw.random() * max(whole.took[moment]), kind)
        before = whole_checkpoints(run)
        ended = (true_start if true else start)(arguments, log, strike)
        code = ended.code
        if ended.struck:
            struck.append(moment)
            often[moment] += 1
            inside += ended.inside
        after = whole_checkpoints(run)
        gone = before - after
        lost += sum(f.stat().st_size for path in gone for f in path.glob("*"))
        if kind == signal.SIGINT and ended.struck and code == 130:
            at = [int(w) for w in log.read_text().rpartition("Stopped at step ")[2].split(" ", 1)[:1] if w.isdigit()]
            newest = max((int(path.name.removeprefix("checkpoint-")) for path in after), default=0)
            done_again += max(0, at[0] - newest) if at and "Stopped at step" in log.read_text() else 0
        if code not in (-signal.SIGKILL, 130):
            break
    if code in (-signal.SIGKILL, 130):
        code = (true_start if true else start)(arguments, log, None).code
    if code != 0:
        problems.append(f"exit code {code}: {log.read_text()[-500:]}")
    different = differing(contents(whole.place / "run"), contents(run)) if code == 0 else {"all": -1}
    litter = [p.name for p in run.iterdir() if p.name.startswith((".tmp-", "best-"))]
    return {
        "arm": arm,
        "number": number,
        "signal": signal.Signals(kind).name,
        "process": "own" if true else "child",
        "model": "tiny" if model == "tiny" else "small",
        "struck": struck,
        "before_the_moment_ended": inside,
        "bytes_lost": lost + sum(different.values()),
        "different": sorted(different)[:10],
        "steps_done_again": done_again,
        "leftovers": litter,
        "problems": problems,
        "cpu_seconds": round(sum(os.times()[:4]) - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigkill", type=int, default=200, help="SIGKILLs [200]")
    parser.add_argument("--sigint", type=int, default=50, help="Ctrl-Cs [50]")
    parser.add_argument("--small", action="store_true", help="a model of 60,000 random weights in place of tiny")
    parser.add_argument("--true", type=int, default=0, help="trainings in processes of their own, beside these [0]")
    parser.add_argument("--first", type=int, default=0, help="number of the first training, which draws its kills [0]")
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
    model = small_model(work / "model") if args.small else "tiny"
    named = "small" if args.small else "tiny"
    wholes: dict[str, Whole] = {}
    for number, true in [
        *((i, True) for i in range(args.true)),
        *((i, False) for i in range(args.first, args.first + 300)),
    ]:
        kind = signal.SIGINT if number % 5 == (2 if true else 4) else signal.SIGKILL
        arm = list(ARMS)[number % len(ARMS)]
        rows = [r for r in found if r["signal"] == kind.name]
        often = Counter(moment for r in rows for moment in r["struck"])
        enough = not true and sum(often.values()) >= (args.sigint if kind == signal.SIGINT else args.sigkill)
        here = [r for r in found if r["model"] == named and (r["process"] == "own") == true]
        if enough or any(r["number"] == number for r in here):
            continue
        if sum(os.times()[:4]) > 60 * args.minutes:
            return
        key = f"{list(ARMS).index(arm)}-{'own' if true else 'child'}"
        if key not in wholes:
            wholes[key] = uninterrupted(arm, work / f"whole-{key}", photographs, model, true)
        found.append(interrupted_run(arm, number, kind, wholes[key], photographs, model, work, often, true))
        write(args.output, found)
        row = found[-1]
        print(
            f"{arm}, {kind.name}: {len(row['struck'])} struck, {row['bytes_lost']} bytes lost, {row['cpu_seconds']} s",
            flush=True,
        )


def small_model(folder: Path) -> str:
    """The tests' pipeline of random weights: its trainings have every part of others, and take half a second."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import conftest

    return str(conftest.build_pipeline(folder))


def uninterrupted(arm: str, place: Path, photographs: Path, model: str, true: bool) -> Whole:
    """What the tries of an arm are held against; what it imported is there for every child from now on."""
    shutil.rmtree(place, ignore_errors=True)
    whole = (true_start if true else start)(settings(arm, place, photographs, model), place / "log", None)
    assert whole.code == 0, (place / "log").read_text()
    for name in whole.modules:
        with suppress(Exception):
            importlib.import_module(name)
    return Whole(place, whole.took)


def write(output: Path, runs: list[dict[str, Any]]) -> None:
    """Counts by signal, by moment and by arm, then every training."""
    counts = {}
    for name in ("SIGKILL", "SIGINT"):
        rows = [row for row in runs if row["signal"] == name]
        struck = [moment for row in rows for moment in row["struck"]]
        counts[name] = {
            "signals": len(struck),
            "before_the_moment_ended": sum(row["before_the_moment_ended"] or 0 for row in rows),
            "on_tiny": sum(len(row["struck"]) for row in rows if row["model"] == "tiny"),
            "in_processes_of_their_own": sum(len(row["struck"]) for row in rows if row["process"] == "own"),
            "by_moment": {moment: struck.count(moment) for moment in [*MOMENTS, FILES, *TRUE]},
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
