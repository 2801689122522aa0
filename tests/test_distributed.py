"""Two processes that talk over gloo end where one process with batches of double size ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import short_run
from fewbayes.runs.folder import read_metrics
from fewbayes.runs.layout import read_manifest
from fewbayes.training import processes
from fewbayes.training.train import train

# Adam with a large epsilon, where rounding is not blown up by the division.
SMALL = {"adam_epsilon": 1.0, "learning_rate": 1.0, "max_train_steps": 2}
ARMS = {
    "full": {},
    "full-bayes": {"bayes": True},
    "lora-bayes": {"method": "lora", "rank": 2, "bayes": True},
    "oft-average": {"method": "oft", "use_ema": True},
    "text-encoder": {"method": "lora", "rank": 2, "train_text_encoder": True},
}
TRAIN_ALL = """
import sys
from accelerate import PartialState
from fewbayes.models import load_family
from fewbayes.settings.config import load_config
from fewbayes.training.train import train
family = load_family(load_config(sys.argv[1], {}).model)
for path in sys.argv[1:]:
    train(load_config(path, {}), family=family, progress=False)
try:
    train(load_config(sys.argv[-1], {"seed": 1}), progress=False)  # which the main process alone finds out
except ValueError as error:
    print(f"refused: {error}", flush=True)
PartialState().destroy_process_group()
"""


@pytest.fixture(scope="module")
def trained_by_two(eps_model, photos, tmp_path_factory) -> Path:
    """All arms, one after the other, by one pair of processes."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "train_all.py"
    script.write_text(TRAIN_ALL)
    for name, arm in ARMS.items():
        (folder / f"{name}.yaml").write_text(short_run(eps_model, photos, folder / name, **SMALL | arm).to_yaml())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ended = subprocess.run(
        [*launcher, str(script), *(str(folder / f"{name}.yaml") for name in ARMS)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    (folder / "said").write_text(ended.stdout)
    return folder


def trained(folder: Path) -> dict:
    files = [path for path in (folder / "checkpoint-2").glob("*.safetensors") if path.name != "optimizer.safetensors"]
    return {f"{file.stem} {name}": value for file in files for name, value in load_file(file).items()}


def losses(folder: Path) -> list[float]:
    return [row["value"] for row in read_metrics(folder / "metrics.jsonl") if row["metric"] == "loss"]


@pytest.mark.parametrize("name", ARMS)
def test_two_processes_are_one_with_a_double_batch(settings, family, trained_by_two, name):
    arm = SMALL | ARMS[name]
    two, one = trained(trained_by_two / name), train(settings("one", train_batch_size=2, **arm), family=family,
                                                     progress=False).folder  # fmt: skip
    half = trained(train(settings("half", **arm), family=family, progress=False).folder)
    assert read_manifest(trained_by_two / name).fingerprint["processes"] == 2
    assert two.keys() == trained(one).keys()
    assert max(float((two[key] - value).abs().max()) for key, value in trained(one).items()) < 1e-5
    assert max(float((two[key] - value).abs().max()) for key, value in half.items()) > 1e-4
    assert losses(trained_by_two / name) == pytest.approx(losses(one), rel=1e-4)


def test_what_the_main_process_refuses_is_refused_by_all(trained_by_two):
    assert (trained_by_two / "said").read_text().count("holds another run (seed: 0 there, 1 now)") == 2


def test_random_weights_need_gpus_of_one_model(monkeypatch):
    """Each process draws the noise for itself."""
    monkeypatch.setattr(processes, "gather_object", lambda mine: ["L40S", *mine])
    monkeypatch.setattr(processes, "gpu_name", lambda accelerator: accelerator)
    processes.check_same_gpus("L40S")
    with pytest.raises(ValueError, match="H200, L40S, which draw different noise"):
        processes.check_same_gpus("H200")
