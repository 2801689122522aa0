"""How long each command is silent: seconds to its first line, and the longest gap between two, into a log.

Each command of a small flow on the embedded model (train, sample, export, verify, evaluate, report, and a refusal) runs
as a process of its own whose output goes into a pipe, as under a scheduler. The seconds are of processor time, its own
and its children's, so that a busy machine changes nothing; those of the wall stand beside. `--source DIR` measures
another checkout, for before and after. Writes one JSON.

    python benchmarks/silence.py --photographs DIR --output benchmarks/results/silence.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results/silence.json"
FEW = "--num_inference_steps 5"
TRAIN = (
    "--model tiny --method lora --max_train_steps 6 --validation_steps 3 --monitor_steps 3 --num_validation_images 2"
)


def flow(photographs: Path, out: Path) -> dict[str, list[str]]:
    """The arguments of each command, in an order in which each finds what it needs."""
    prompt = ["--instance_prompt", "a photo of a <v> fish"]
    run = str(out / "run")
    return {
        "train": [
            "train",
            "--instance_data_dir",
            str(photographs),
            *prompt,
            "--output_dir",
            run,
            *TRAIN.split(),
            *FEW.split(),
        ],
        "sample": ["sample", run, "--prompt", "a <v> fish", "--output_dir", str(out / "pictures"), *FEW.split()],
        "export": ["export", run, "--format", "kohya", "--output_dir", str(out / "export")],
        "verify": ["verify", str(out / "export")],
        "evaluate": ["evaluate", run, "--output_dir", str(out / "scores"), "--cache", str(out / "cache.sqlite")],
        "report": ["report", run],
        "refusal": ["train", "--model", "tiny", "--instance_data_dir", str(out / "none"), *prompt, "--output_dir", "o"],
    }


def used(session: int) -> float:
    """Processor seconds of all processes of a session, those that have ended included."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15])) if int(fields[3]) == session else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def silences(arguments: list[str], source: Path) -> dict[str, Any]:
    """Of one command: seconds to the first line, the longest gap, all; lines are those of stdout and stderr."""
    environment = os.environ | {"PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    ours, theirs = os.pipe()
    began, before = time.monotonic(), os.times()
    process = subprocess.Popen(
        [sys.executable, "-m", "fewbayes", *arguments],
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    busy, wall = [0.0], [0.0]
    while os.read(ours, 65536):
        busy.append(used(process.pid))
        wall.append(time.monotonic() - began)
    code, after = process.wait(), os.times()
    busy.append(after.children_user + after.children_system - before.children_user - before.children_system)
    wall.append(time.monotonic() - began)
    return {
        "exit_code": code,
        **{f"first_line_{name}": round(times[1], 2) for name, times in (("s", busy), ("wall_s", wall))},
        **{
            f"longest_silence_{name}": round(max(b - a for a, b in pairwise(times)), 2)
            for name, times in (("s", busy), ("wall_s", wall))
        },
        "seconds": round(busy[-1], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of pictures to train on")
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1], help="checkout [this one]")
    parser.add_argument("--name", default="now", help="under which the numbers are kept [now]")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"file [{RESULT.name}]")
    args = parser.parse_args()
    told = json.loads(args.output.read_text()) if args.output.exists() else {"command": "benchmarks/silence.py"}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in flow(args.photographs, Path(folder)).items():
            found = silences(arguments, args.source)
            told.setdefault(args.name, {})[name] = found | {"load": round(os.getloadavg()[0], 1)}
            print(f"{name}: {found}", flush=True)
            args.output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
