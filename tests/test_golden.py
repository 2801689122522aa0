"""Three short trainings of the embedded model and one diagnosis, held against the numbers kept in golden.json.

On the kind of processor and the versions that wrote the file they agree bit for bit. Elsewhere the last bits differ and
the losses agree to a per cent. A change that alters what training computes shows here first. When it is meant, write
the file again (`python tests/test_golden.py`) and say why in the changelog.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

KEPT = Path(__file__).with_name("golden.json")
PROMPT = "a photo of a <v> fish"
USUAL = {
    "model": "tiny",
    "instance_prompt": PROMPT,
    "center_crop": True,
    "num_inference_steps": 2,
    "num_validation_images": 2,
    "checkpointing_steps": 3,
}
RUNS = {
    "full": {"max_train_steps": 6, "learning_rate": 3e-4},
    "lora_bayes": {
        "method": "lora",
        "bayes": True,
        "weight_std": 0.1,
        "kl_weight": 1e-4,
        "use_ema": True,
        "max_train_steps": 8,
        "learning_rate": 1e-3,
        "lr_scheduler": "cosine",
        "validation_steps": 4,
        "monitor_steps": 4,
    },
    "resumed": {"bayes": True, "max_train_steps": 6, "learning_rate": 3e-4, "with_prior_preservation": False},
}


def photographs(folder: Path) -> Path:
    from fewbayes.world.scenes import subject_photograph

    folder.mkdir(parents=True)
    for i in range(2):
        pixels = (255 * subject_photograph("swirl_fish", i)[0]).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def digest(lines) -> str:
    found = hashlib.sha256()
    for line in lines:
        found.update(line if isinstance(line, bytes) else line.encode())
    return found.hexdigest()[:16]


def weights_of(folder: Path) -> str:
    """Of the last checkpoint: trained weights, deviations, averages and the optimizer's memory."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    tensors = {f"{file.name} {name}": t for file in last.glob("*.safetensors") for name, t in load_file(file).items()}
    return digest(part for name in sorted(tensors) for part in (name, tensors[name].numpy().tobytes()))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def this_machine() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"


def compute(folder: Path) -> dict:
    """The numbers, by run. One thread: sums over several are of another order."""
    from fewbayes.diagnose.ask import Asked
    from fewbayes.diagnose.command import diagnose
    from fewbayes.models import load_family
    from fewbayes.settings.config import TrainConfig
    from fewbayes.training.train import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        photos, family, found = photographs(folder / "photos"), load_family("tiny"), {}
        for name, changes in RUNS.items():
            where = {"instance_data_dir": str(photos), "output_dir": str(folder / name)}
            settings = USUAL | where | changes
            if name == "resumed":
                train(TrainConfig(**settings | {"max_train_steps": 3}), family=family, progress=False)
            train(TrainConfig(**settings), family=family, progress=False)
            rows = rows_of(folder / name)
            found[name] = {
                "weights": weights_of(folder / name),
                "rows": digest(json.dumps(row, sort_keys=True) for row in rows),
                "losses": [row["value"] for row in rows if row["metric"] == "loss"],
            }
        question = Asked(str(folder / "lora_bayes"), str(folder / "diagnosis"), num_images=2, num_inference_steps=2)
        told = diagnose(question)
        found["diagnosis"] = {"stage": told.stage, "cause": told.cause, "scores": told.scores}
        return found
    finally:
        torch.set_num_threads(threads)


# diffusers' DPM-Solver converts tensors as numpy 2 no longer likes (diffusers 0.42.1, November 2026).
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_three_trainings_and_a_diagnosis_are_as_they_were(tmp_path):
    kept, found = json.loads(KEPT.read_text()), compute(tmp_path)
    if kept["machine"] == this_machine():
        assert found == kept["found"]
    for name in RUNS:
        assert found[name]["losses"] == pytest.approx(kept["found"][name]["losses"], rel=1e-2)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as scratch:
        KEPT.write_text(json.dumps({"machine": this_machine(), "found": compute(Path(scratch))}, indent=2) + "\n")
