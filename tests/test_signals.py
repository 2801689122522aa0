"""Ctrl-C and SIGTERM: the first ends training after its step with a checkpoint, the second at once."""

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fewbayes.cli import main
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.layout import read_manifest
from fewbayes.training import signals
from fewbayes.training.signals import Interrupted, Signals
from fewbayes.training.train import train
from fewbayes.training.watch import Watch

ARM = {"max_train_steps": 5, "bayes": True, "use_ema": True}


@pytest.fixture(autouse=True)
def usual_handlers():
    """A shell's background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def interrupted_at(monkeypatch):
    """Sends signals in the middle of a step."""

    def at(step: int, *numbers: int):
        look = Watch.look

        def interrupt(self):
            if self._pending[-1][0] == step:
                for number in numbers:
                    signal.raise_signal(number)
            look(self)

        monkeypatch.setattr(Watch, "look", interrupt)

    return at


def weights(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("checkpoint-5/*.safetensors"), *folder.glob("unet/*.safetensors")]
    return {f"{file.name} {name}": t.numpy().tobytes() for file in files for name, t in load_file(file).items()}


@pytest.mark.parametrize(("spacing", "number"), [(3, signal.SIGINT), (0, signal.SIGTERM)])
def test_the_first_signal_ends_after_the_step_and_the_same_command_ends_bit_for_bit(
    settings, family, tmp_path, capsys, interrupted_at, monkeypatch, spacing, number
):
    whole = train(settings("whole", **ARM, checkpointing_steps=spacing), family=family, progress=False).folder
    config = settings("run", **ARM, checkpointing_steps=spacing)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    interrupted_at(2, number, number)  # a launcher sends it again at once, which is the same
    assert main(["train", str(tmp_path / "run.yaml")]) == 128 + number
    monkeypatch.undo()
    run = tmp_path / "run"
    said = capsys.readouterr().err
    assert f"Stopped at step 2 of 5. Saved in {run}/checkpoint-2. Run the same command to continue" in said
    assert read_manifest(run).status == "running"
    again = train(config, family=family, progress=False)
    assert again.resumed_from == 2
    assert weights(run) == weights(whole)


def test_the_second_signal_ends_at_once(settings, family, interrupted_at, monkeypatch):
    monkeypatch.setattr(signals, "SAME", 0.0)
    interrupted_at(4, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(Interrupted, match=r"Stopped at once\. Saved in .*checkpoint-2\. Run the same") as raised:
        train(settings(**ARM, checkpointing_steps=2), family=family, progress=False)
    assert raised.value.signal == signal.SIGINT


def test_before_the_first_step_nothing_is_waited_for():
    with Signals(lambda: "Nothing is lost."), pytest.raises(Interrupted, match=r"Stopped at once\. Nothing is lost"):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_the_last_step_changes_nothing(settings, family, interrupted_at):
    interrupted_at(5, signal.SIGINT)
    assert train(settings(**ARM), family=family, progress=False).steps == 5


@pytest.mark.parametrize(
    ("method", "steps", "kept"), [("full", 10, [9, 10]), ("lora", 10, [3, 6, 9, 10]), ("lora", 3, [1, 2, 3])]
)
def test_checkpoints_are_spaced_by_the_length_of_the_run(settings, family, method, steps, kept):
    folder = train(
        settings(method=method, max_train_steps=steps, checkpointing_steps=None), family=family, progress=False
    ).folder
    assert [path.name for path in RunFolder(folder).checkpoints()] == [f"checkpoint-{step}" for step in kept]


def test_a_long_run_has_its_checkpoints_500_steps_apart(settings):
    resolved = settings(max_train_steps=8000, checkpointing_steps=None).resolve({}, 32, 3)
    assert (resolved.checkpointing_steps, resolved.checkpoints_total_limit) == (500, 2)
    assert settings(checkpointing_steps=7).resolve({}, 32, 3).checkpoints_total_limit is None
