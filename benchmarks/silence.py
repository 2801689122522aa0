"""How long each command is silent: seconds to its first line, and the longest gap between two, into a log.

Each command of a small flow on the embedded model (train, sample, export, verify, evaluate, diagnose, report) runs as a
process of its own whose output goes into a pipe, as under a scheduler. Processor seconds stand beside wall time: on a
busy machine the gaps are longer. `--source DIR` measures another checkout, for before and after. Writes one JSON.

    python benchmarks/silence.py --photographs DIR --output benchmarks/results/silence.json
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results/silence.json"
TRAIN = "--model tiny --method lora --learning_rate 1e-4 --max_train_steps 20 --validation_steps 10 --monitor_steps 10"


def flow(photographs: Path, out: Path) -> dict[str, list[str]]:
    """The arguments of each command, in an order in which each finds what it needs."""
    prompt = ["--instance_prompt", "a photo of a <v> fish"]
    run = str(out / "run")
    return {
        "train": ["train", "--instance_data_dir", str(photographs), *prompt, "--output_dir", run, *TRAIN.split()],
        "sample": ["sample", run, "--prompt", "a <v> fish", "--output_dir", str(out / "pictures")],
        "export": ["export", run, "--format", "kohya", "--output_dir", str(out / "export")],
        "verify": ["verify", str(out / "export")],
        "evaluate": ["evaluate", run, "--output_dir", str(out / "scores"), "--cache", str(out / "cache.sqlite")],
        "diagnose": ["diagnose", run, "--output_dir", str(out / "diagnosis")],
        "report": ["report", run],
        "refusal": ["train", "--model", "tiny", "--instance_data_dir", str(out / "none"), *prompt, "--output_dir", "o"],
    }


def silences(arguments: list[str], source: Path) -> dict[str, Any]:
    """Of one command: seconds to the first line, the longest gap, all; lines are those of stdout and stderr."""
    environment = os.environ | {"PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "fewbayes", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    times: list[float] = []

    def listen(stream: Any) -> None:
        while os.read(stream.fileno(), 65536):
            times.append(time.monotonic() - began)

    threads = [threading.Thread(target=listen, args=(stream,)) for stream in (process.stdout, process.stderr)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    code, ended = process.wait(), time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    moments = [0.0, *sorted(times), ended]
    return {
        "exit_code": code,
        "first_line_s": round(min([*times, ended]), 2),
        "longest_silence_s": round(max(b - a for a, b in pairwise(moments)), 2),
        "seconds": round(ended, 2),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
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
