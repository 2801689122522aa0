"""Killed at any moment and started again, a run on a CPU ends where an uninterrupted one ends, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewbayes.runs.folder import RunFolder, read_metrics
from fewbayes.runs.layout import read_manifest
from fewbayes.training.checkpoints import read_optimizer, write_optimizer
from fewbayes.training.train import train

PLAIN = {"max_train_steps": 60, "checkpointing_steps": 5, "checkpoints_total_limit": 2, "validation_steps": 30}
BAYES = {"bayes": True, "use_ema": True, "export_weights": "ema", "kl_weight": 1e-4, "lr_scheduler": "cosine"}
WATCHED = {"monitor_steps": 10, "learning_rate": 3e-3}


def files(folder: Path) -> dict[str, bytes]:
    """Weights, averages, deviations and optimizer state that a run ended with, samples, stages, best/, bit for bit."""
    bytewise = [*folder.glob("samples/*/*/*.png"), *folder.glob("stages.jsonl"), *folder.glob("best/best.json")]
    kept = {str(path.relative_to(folder)): path.read_bytes() for path in bytewise}
    for path in [*folder.glob("*/*.safetensors"), *folder.glob("best/*/*.safetensors")]:
        tensors = load_file(path)
        kept |= {f"{path.relative_to(folder)} {name}": value.numpy().tobytes() for name, value in tensors.items()}
    return kept


def assert_same(a: Path, b: Path) -> None:
    """Names what differs, rather than the bytes of it."""
    ours, theirs = files(a), files(b)
    assert ours
    assert not {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    assert read_metrics(a / "metrics.jsonl") == read_metrics(b / "metrics.jsonl")


def losses(folder: Path) -> list[dict]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if row["metric"] == "loss"]


def start_and_kill(config, path: Path, after: str) -> None:
    """A process of its own, killed as soon as `after` stands in its run folder."""
    path.write_text(config.to_yaml())
    command = [sys.executable, "-m", "fewbayes", "train", str(path)]
    process = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        limit = time.monotonic() + 600  # generous: the machine may be busy with other things
        while not (Path(config.output_dir) / after).exists():
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < limit
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("arm", [PLAIN, PLAIN | BAYES | WATCHED], ids=["plain", "bayes-watched"])
def test_killed_and_started_again_ends_bit_for_bit_the_same(settings, tmp_path, arm, family):
    whole = train(settings("whole", **arm), family=family, progress=False)
    config = settings("killed", **arm)
    start_and_kill(config, tmp_path / "run.yaml", "checkpoint-10")
    killed = Path(config.output_dir)
    assert not (killed / "model_index.json").exists()
    assert read_manifest(killed).status == "running"
    again = train(config, progress=False)
    assert again.resumed_from >= 10
    assert (killed / "best").is_dir() == (whole.folder / "best").is_dir()
    assert_same(whole.folder, killed)
    assert not list(killed.glob(".tmp-*"))


def test_without_a_checkpoint_it_begins_again(settings, tmp_path, family):
    arm = PLAIN | {"checkpointing_steps": 0}
    whole = train(settings("whole", **arm), family=family, progress=False)
    config = settings("killed", **arm)
    start_and_kill(config, tmp_path / "run.yaml", "samples/step-000000")
    assert train(config, family=family, progress=False).resumed_from is None
    assert_same(whole.folder, Path(config.output_dir))
    assert not list(whole.folder.glob("checkpoint-*"))


def test_the_last_step_leaves_a_checkpoint_whatever_the_interval(settings, family):
    folder = train(settings("run", checkpointing_steps=3), family=family, progress=False).folder
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_killed_between_the_last_step_and_the_pipeline_it_only_exports(settings, family):
    config = settings("run", bayes=True, use_ema=True)
    folder = train(config, family=family, progress=False).folder
    before = files(folder)
    (folder / "model_index.json").unlink()
    (folder / "posterior.json").unlink()
    RunFolder(folder).manifest_update(status="running")
    assert train(config, family=family, progress=False).resumed_from == 4
    assert files(folder) == before
    assert (folder / "posterior.json").is_file()


def test_other_weights_are_exported_without_training_again(settings, family):
    raw = train(settings("run", use_ema=True), family=family, progress=False).folder
    rows, pipeline = read_metrics(raw / "metrics.jsonl"), files(raw)
    again = train(settings("run", use_ema=True, export_weights="ema"), family=family, progress=False)
    assert again.resumed_from == again.steps == 4
    assert read_metrics(raw / "metrics.jsonl") == rows
    averages = load_file(raw / "checkpoint-4/ema.safetensors")
    exported = load_file(raw / "unet/diffusion_pytorch_model.safetensors")
    assert all(bool((exported[name] == averages[f"denoiser.{name}"]).all()) for name in exported)
    train(settings("run", use_ema=True), family=family, progress=False)
    assert files(raw) == pipeline


def test_a_finished_run_is_made_longer_without_retraining(settings, family):
    arm = {"bayes": True, "use_ema": True, "kl_weight": 1e-4}
    whole = train(settings("whole", **arm, max_train_steps=6), family=family, progress=False).folder
    train(settings("grown", **arm), family=family, progress=False)
    grown = train(settings("grown", **arm, max_train_steps=6), family=family, progress=False)
    assert grown.resumed_from == 4
    shutil.rmtree(grown.folder / "checkpoint-4")
    assert files(whole) == files(grown.folder)
    assert losses(whole) == losses(grown.folder)


@pytest.mark.parametrize(
    "arm",
    [
        {"dropout": 0.3, "l2_init_weight": 1.0, "noise_offset": 0.1},
        {"method": "lora", "lora_dropout": 0.3, "rank": 2, "bayes": True, "kl_weight": 1e-4, "use_ema": True},
        {"method": "oft", "bayes": True, "l2_init_weight": 1.0},
        {"method": "lora", "train_rare_token": True},
    ],
    ids=lambda arm: arm.get("method", "full"),
)
def test_whatever_is_random_in_a_method_goes_on_where_it_was(settings, family, arm):
    """The start, which the pull and the prior go back to, is that of step 0 and not that of the restart."""
    steps = {"max_train_steps": 4, "checkpointing_steps": 2}
    whole = train(settings("whole", **arm, **steps), family=family, progress=False).folder
    train(settings("grown", **arm, **steps | {"max_train_steps": 2}), family=family, progress=False)
    grown = train(settings("grown", **arm, **steps), family=family, progress=False)
    assert grown.resumed_from == 2
    assert files(whole) == files(grown.folder)
    assert losses(whole) == losses(grown.folder)


def test_an_optimizer_that_counts_in_plain_numbers_goes_on_where_it_was(tmp_path):
    """SparseAdam, like the 8-bit optimizers, keeps its step as an int."""

    def made():
        weight = torch.nn.Parameter(torch.ones(4, 2))
        return {"rows.weight": weight}, torch.optim.SparseAdam([weight], lr=0.1)

    def step(named, optimizer, row):
        with torch.sparse.check_sparse_tensor_invariants():
            named["rows.weight"].grad = torch.sparse_coo_tensor([[row]], torch.ones(1, 2), (4, 2))
            optimizer.step()

    (named, optimizer), (again, other) = made(), made()
    step(named, optimizer, 0)
    write_optimizer(optimizer, named, tmp_path / "optimizer.safetensors")
    again["rows.weight"].data.copy_(named["rows.weight"].data)
    read_optimizer(other, again, tmp_path / "optimizer.safetensors")
    assert other.state[again["rows.weight"]]["step"] == 1
    for row in (0, 1):
        step(named, optimizer, row)
        step(again, other, row)
    assert torch.equal(named["rows.weight"], again["rows.weight"])


def test_a_weight_std_found_by_tolerance_is_kept_when_the_run_continues(settings, family, caplog):
    arm = {"bayes": True, "weight_std_tolerance": 0.05, "where": r"pattern:conv_(in|out)\.weight"}
    whole = train(settings("whole", **arm, max_train_steps=6), family=family, progress=False).folder
    train(settings("grown", **arm), family=family, progress=False)
    found = read_manifest(whole).calibration
    assert read_manifest(whole.parent / "grown").calibration == found
    caplog.clear()
    with caplog.at_level("INFO", "fewbayes"):
        grown = train(settings("grown", **arm, max_train_steps=6), family=family, progress=False).folder
    assert "looking for" not in caplog.text
    assert f"weight_std {found['weight_std']:.3g}" in caplog.text
    assert read_manifest(grown).calibration == found
    shutil.rmtree(grown / "checkpoint-4")
    assert files(whole) == files(grown)


def test_a_torn_checkpoint_is_passed_over(settings, family, capsys):
    steps = {"max_train_steps": 4, "checkpointing_steps": 2, "bayes": True}
    whole = train(settings("whole", **steps), family=family, progress=False).folder
    torn = train(settings("torn", **steps | {"max_train_steps": 5}), family=family, progress=False).folder
    for step in (4, 5):
        weights = torn / f"checkpoint-{step}/weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    RunFolder(torn).manifest_update(status="running")
    again = train(settings("torn", **steps), family=family, progress=False)
    assert again.resumed_from == 2
    assert "torn checkpoint" in capsys.readouterr().err
    shutil.rmtree(torn / "checkpoint-5")
    assert_same(whole, torn)


def test_a_checkpoint_holds_safetensors_by_parameter_name_and_nothing_pickled(settings, family):
    arm = {"bayes": True, "use_ema": True, "checkpointing_steps": 2}
    folder = train(settings("run", **arm), family=family, progress=False).folder / "checkpoint-2"
    assert sorted(path.name for path in folder.iterdir()) == [
        "ema.safetensors",
        "optimizer.safetensors",
        "posterior.safetensors",
        "trainer_state.json",
        "weights.safetensors",
    ]
    names = {f"denoiser.{name}" for name, _ in family.denoiser.named_parameters()}
    assert set(load_file(folder / "weights.safetensors")) == names
    remembered = load_file(folder / "optimizer.safetensors")
    assert set(remembered) == {
        f"{key}.{name}" for key in ("exp_avg", "exp_avg_sq", "step") for name in names | {"weight_std.0"}
    }
    assert all(value == 2 for key, value in remembered.items() if key.startswith("step."))
