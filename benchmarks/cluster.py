"""The same trainings here and on a Ray cluster that loses workers and a node: equal, bit for bit.

Eight short trainings of the embedded model run once by `Local`, once as Ray tasks on a cluster of two nodes of this
machine. While these run, workers are killed (SIGKILL), and one node is taken away. Writes how many were killed, the
seconds of both, and the digests of all results.

    python benchmarks/cluster.py --output benchmarks/results/cluster.json
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}

import ray
from ray.cluster_utils import Cluster

from fewbayes.settings.config import TrainConfig
from fewbayes.studies.executors import in_parallel
from fewbayes.studies.grid import Arm, Training, grid, train
from fewbayes.studies.subjects import named_subjects

ARMS = (
    Arm("full", "full", {}),
    Arm("lora-bayes", "LoRA, Bayesian", {"method": "lora", "bayes": True, "learning_rate": 1e-3}),
)
SEEDS = range(4)


def trainings(folder: Path, steps: int) -> list[Training]:
    [subject] = named_subjects(("swirl_fish",), (), folder, 64, world=True)

    def settings(_: object) -> TrainConfig:
        return TrainConfig(
            model="tiny",
            instance_data_dir=str(subject.photographs),
            instance_prompt="a photo of a <v> fish",
            output_dir="set by the grid",
            max_train_steps=steps,
            checkpointing_steps=10,
        )

    return grid({folder / "runs": subject}, settings, ARMS, SEEDS)


def digest(training: Training) -> str:
    files = sorted(training.folder.glob("*.safetensors")) + sorted(training.folder.glob("unet/*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def workers() -> list[int]:
    """Processes that run a task at this moment, by the name that Ray gives them. Its agents are called ray:: too."""
    shown = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in shown.splitlines() if line.split()[1].startswith("ray::_called")]


def kill_now_and_then(cluster: Cluster, node: object, stop: threading.Event, killed: list[str], count: int) -> None:
    draw = random.Random(0)
    while len(killed) < count and not stop.wait(draw.uniform(8, 16)):
        if len(killed) == count // 2:
            cluster.remove_node(node)
            killed.append("node")
        elif found := workers():
            os.kill(draw.choice(found), signal.SIGKILL)
            killed.append("worker")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        here, there = (trainings(Path(scratch) / name, options.steps) for name in ("local", "ray"))
        began = time.monotonic()
        in_parallel(train, here, 2)
        local = time.monotonic() - began

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        node = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, configure_logging=False)
        stop, killed = threading.Event(), []
        killer = threading.Thread(
            target=kill_now_and_then, args=(cluster, node, stop, killed, options.kills), daemon=True
        )
        began = time.monotonic()
        killer.start()
        in_parallel(train, there, "ray:max_retries=10")
        stop.set()
        killer.join()
        found = {
            "trainings": len(here),
            "killed": killed,
            "seconds": {"local": round(local, 1), "ray": round(time.monotonic() - began, 1)},
            "starts_on_ray": [len(json.loads((t.folder / "manifest.json").read_text())["starts"]) for t in there],
            "equal": [digest(a) == digest(b) for a, b in zip(here, there, strict=True)],
            "digests": [digest(a) for a in here],
            "ray": ray.__version__,
        }
        ray.shutdown()
        cluster.shutdown()
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "digests"}, indent=1))


if __name__ == "__main__":
    main()
