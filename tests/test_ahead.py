"""What is said before anybody trains: `info`, `train --dry_run`, and what a shell completes."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from fewbayes import progress
from fewbayes.cli import COMMANDS, main
from fewbayes.settings.completion import completion, flags_in
from fewbayes.settings.config import train_help, train_settings
from fewbayes.training.prepare import with_samples


def test_info_names_versions_devices_and_caches(capsys):
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    for word in (
        "fewbayes ",
        "torch ",
        "bitsandbytes",
        "cpu: ",
        "cores",
        "models from the hub: ",
        "embedded models: tiny",
    ):
        assert word in said


@pytest.fixture(scope="module")
def script() -> str:
    return completion("bash", {name: COMMANDS[name] for name in ("train", "sample", "export")})


def completed(script: str, line: str) -> set[str]:
    """What bash offers at the end of a line."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    ask = (
        f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _fewbayes; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    return set(subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_flags_and_their_words(script):
    assert completed(script, "fewbayes e") == {"export"}
    assert completed(script, "fewbayes train --meth") == {"--method"}
    assert {"full", "lora", "oft"} <= completed(script, "fewbayes train --method ")
    assert completed(script, "fewbayes export --format ko") == {"kohya"}
    assert completed(script, "fewbayes train --no-ba") == {"--no-bayes"}


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_completes_commands_flags_and_their_words(tmp_path):
    (tmp_path / "fewbayes.fish").write_text(completion("fish", {"train": COMMANDS["train"]}))
    for line, found in (
        ("fewbayes tr", "train"),
        ("fewbayes train --meth", "--method"),
        ("fewbayes train --method lo", "lora"),
    ):
        ask = f"source {tmp_path}/fewbayes.fish; complete -C '{line}'"
        said = subprocess.run(["fish", "-c", ask], capture_output=True, text=True, check=True).stdout
        assert said.split()[0] == found


def test_every_setting_is_completed():
    named = {flag.name for flag in flags_in(train_help())}
    assert train_settings().keys() <= named


def test_a_dry_run_says_memory_disk_and_time_and_leaves_nothing(settings, tmp_path, capsys):
    config = settings(max_train_steps=400, checkpointing_steps=None, validation_steps=100)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    assert main(["train", str(tmp_path / "run.yaml"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "memory: at least " in said
    assert ": 2 checkpoints of " in said
    assert "400 steps of " in said
    assert ", 10 pictures of " in said
    assert not Path(config.output_dir).exists()
    assert "max_train_steps: 400" in said


def test_samples_are_drawn_by_default_on_a_gpu_alone(settings):
    open_ = settings(max_train_steps=100)
    assert with_samples(open_, torch.device("cuda")).validation_steps == 13  # eight looks
    assert with_samples(open_, torch.device("cpu")).validation_steps == 0
    assert with_samples(settings(validation_steps=7), torch.device("cuda")).validation_steps == 7


def test_what_takes_long_says_so_again_and_the_count_has_an_honest_end(monkeypatch, capsys, caplog):
    monkeypatch.setattr(progress, "GAP", 0.02)
    with caplog.at_level("INFO", "fewbayes"), progress.doing("Working", quietly=True), progress.doing("Loading"):
        time.sleep(0.2)
    said = [record.getMessage() for record in caplog.records]
    assert said[:2] == ["Loading ...", "Loading ... 0 s"]
    assert 3 <= len(said) <= 12
    with progress.progress(3, 0, True, "picture") as advance:
        time.sleep(0.1)
        for done in (1, 2, 3):
            advance(done, 0.5)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("picture 1 of 3 ... 0 s", "picture 3 of 3, loss 0.5000")


def test_what_waits_for_people_and_all_processes_but_the_first_say_nothing(monkeypatch, caplog):
    monkeypatch.setattr(progress, "GAP", 0.02)
    with caplog.at_level("INFO", "fewbayes"):
        with progress.doing("Working", quietly=True), progress.waiting():
            time.sleep(0.1)
        monkeypatch.setenv("RANK", "1")
        with progress.doing("Working"):
            time.sleep(0.1)
    assert not caplog.records
