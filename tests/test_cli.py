"""The command answers at once, and says what is wrong in one message."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from fewbayes.cli import COMMANDS, main
from fewbayes.studies import studies
from fewbayes.training.train import train


@pytest.fixture
def command(settings, tmp_path):
    """The arguments of a short training: command(key="value", ...)."""

    def make(**changes) -> list[str]:
        path = tmp_path / "run.yaml"
        path.write_text(settings(**changes).to_yaml())
        return ["train", str(path)]

    return make


def test_help_answers_within_half_a_second_and_without_torch():
    code = "import sys; from fewbayes.cli import main; main(['--help']); print(*sys.modules)"
    times = []
    for _ in range(5):  # the best of some: the machine may be busy with other things
        begun = time.perf_counter()
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.5
    help_text, _, modules = ended.stdout.rstrip().rpartition("\n")
    assert all(f"  {name} " in help_text for name in COMMANDS)
    assert not {"torch", "diffusers", "transformers", "accelerate", "numpy"} & set(modules.split())


HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft", "matplotlib", "scipy", "PIL", "numpy"}
READS_PICTURES = ("evaluate", "verify", "diagnose", "demo")
"""Whose modules open pictures, and so have numpy and PIL at the top."""


@pytest.mark.parametrize("command", [*COMMANDS, "experiment map", "experiment fig4", "experiment one_shot"])
def test_the_help_of_a_command_waits_for_nothing_heavy(command):
    code = "import sys; from fewbayes.cli import main\ntry: main(sys.argv[1:])\nfinally: print(*sys.modules)"
    asked = [sys.executable, "-c", code, *command.split(), "--help"]
    ended = subprocess.run(asked, capture_output=True, text=True, check=True)
    pictures = command in READS_PICTURES or command.startswith("experiment ")
    allowed = {"numpy", "PIL"} if pictures else set()
    assert not (HEAVY - allowed) & set(ended.stdout.rpartition("\n\n")[2].split())
    assert f"usage: fewbayes {command}" in ended.stdout


def test_a_reader_who_leaves_early_is_no_error():
    asked = f"set -o pipefail; {sys.executable} -m fewbayes train --help | head -n 1"
    ended = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
    assert (ended.returncode in (0, 141), ended.stderr) == (True, "")
    assert ended.stdout.startswith("usage: fewbayes train")


SPLIT = {"experiment": studies, "study": lambda: ("make", "serve", "rate", "read")}
ALONE = [name for name in COMMANDS if name not in ("train", "info", "completion", *SPLIT)]
EVERY = [[name] for name in ALONE] + [[s, n] for s in SPLIT for n in SPLIT[s]()]


@pytest.mark.parametrize("command", [["train"], *EVERY], ids=" ".join)
def test_every_flag_of_every_command_says_what_it_means(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: fewbayes {' '.join(command)}")
    flags = re.findall(r"^  (\S.*)\n(.*)", said, flags=re.MULTILINE)
    assert flags
    assert [flag for flag, meaning in flags if not meaning.startswith("      ")] == []


def test_training_ends_with_zero_and_says_where_the_pipeline_is(command, capsys, tmp_path):
    assert main(command(max_train_steps=2)) == 0
    assert str(tmp_path / "run") in capsys.readouterr().out
    assert (tmp_path / "run/model_index.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "trian"),
        (["train", "--learning_rat", "1"], "did you mean learning_rate"),
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["sample", "/nowhere", "--prompt", "a", "--output_dir", "/tmp/never-written"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, said, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_bad_images_are_refused_before_a_folder_is_made(command, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert main(command(instance_data_dir=str(tmp_path / "empty"))) == 2
    assert "no images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_part_of_the_model_is_refused_before_a_folder_is_made(command, capsys, tmp_path, photos):
    assert main(command(model=str(photos))) == 2
    assert "model_index.json" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ({"bayes": True, "where": "pattern:nothing_is_called_so"}, {"bayes": True}, "nothing_is_called_so"),
        ({"rare_token": "\u00df\u00df"}, {}, "unknown to the tokenizer"),
        (
            {"bayes": True, "where": "norm", "weight_std": 0.3, "weight_std_mode": "relative"},
            {"bayes": True},
            "without any spread",
        ),
    ],
    ids=["where", "rare_token", "relative"],
)
def test_what_only_the_loaded_model_can_refuse_leaves_the_folder_to_the_corrected_command(
    command, capsys, tmp_path, wrong, right, said
):
    assert main(command(**wrong)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(command(max_train_steps=1, **right)) == 0


def test_the_resolved_settings_are_said_before_the_first_step(command, caplog):
    assert main(command(bayes=True, max_train_steps=1)) == 0
    assert "3 images of 32 pixels: 1 step at rate 0.001" in caplog.text
    assert "(where linear), weight_std 0.01" in caplog.text


@pytest.mark.parametrize("ours", [ValueError("shapes (3,) and (4,) not aligned"), KeyError("x"), TypeError("x")])
def test_a_mistake_of_ours_keeps_its_traceback(ours, monkeypatch):
    """numpy and torch raise ValueError for wrong shapes: a bug must not read as something that the user can mend."""

    def broken(arguments):
        raise ours

    monkeypatch.setitem(COMMANDS, "report", broken)
    with pytest.raises(type(ours)):
        main(["report", "folder"])


def test_numbers_that_run_away_are_exit_code_1(command, capsys):
    assert main(command(learning_rate=1e30, max_train_steps=20)) == 1
    assert "step " in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["-h"], 0), ([], 2), (["two_shot"], 2)])
def test_experiment_names_what_there_is_whatever_it_is_asked(arguments, code, capsys):
    assert main(["experiment", *arguments]) == code
    said = capsys.readouterr()
    assert "one_shot" in (said.err if code else said.out)


def test_errors_of_our_own_keep_their_traceback(monkeypatch):
    monkeypatch.setitem(COMMANDS, "report", lambda arguments: {}["missing"])
    with pytest.raises(KeyError):
        main(["report"])


def test_pictures_come_from_a_run_a_checkpoint_and_a_pipeline(settings, family, eps_model, tmp_path, capsys):
    run = train(settings(max_train_steps=2, checkpointing_steps=2, use_ema=True), family=family, progress=False).folder
    pictures = {}
    sources = {"of_run": run, "of_checkpoint": run / "checkpoint-2", "of_pipeline": eps_model}
    for name, source in sources.items():
        arguments = ["sample", str(source), "--prompt", "a <v>", "--output_dir", str(tmp_path / name)]
        assert main([*arguments, "--num_images", "2", "--num_inference_steps", "2", "--seed", "5"]) == 0
        rows = json.loads((tmp_path / name / "samples.json").read_text())
        assert [row["seed"] for row in rows] == [5, 6]
        pictures[name] = [np.asarray(Image.open(tmp_path / name / row["file"])) for row in rows]
    np.testing.assert_array_equal(pictures["of_run"], pictures["of_checkpoint"])
    assert (np.array(pictures["of_run"]) != np.array(pictures["of_pipeline"])).any()
    assert main(arguments) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.fixture
def sample(tmp_path):
    """The one picture of a source as an array, or the exit code: sample(run, "ema")."""

    def go(source, weights: str | None = None) -> np.ndarray | int:
        output = tmp_path / f"pictures-{len(list(tmp_path.glob('pictures-*')))}"
        arguments = ["sample", str(source), "--prompt", "a <v>", "--output_dir", str(output)]
        chosen = ["--weights", weights] if weights else []
        code = main([*arguments, *chosen, "--num_images", "1", "--num_inference_steps", "2"])
        return code or np.asarray(Image.open(output / "00.png"))

    return go


@pytest.mark.parametrize("exported", ["raw", "ema"])
def test_a_finished_run_gives_raw_and_averaged_weights_whichever_it_exported(settings, family, sample, exported):
    config = settings(max_train_steps=6, use_ema=True, export_weights=exported, learning_rate=1e-2)
    run = train(config, family=family, progress=False).folder
    raw, ema = sample(run, "raw"), sample(run, "ema")
    assert (raw != ema).any()
    np.testing.assert_array_equal(sample(run), {"raw": raw, "ema": ema}[exported])
    np.testing.assert_array_equal(sample(run / "checkpoint-6", "ema"), ema)


def test_weights_that_were_not_kept_are_refused_by_name(settings, family, sample, eps_model, capsys):
    without = train(settings("a", use_ema=True, checkpointing_steps=0), family=family, progress=False).folder
    plain = train(settings("b"), family=family, progress=False).folder
    for source, said in ((without, "checkpointing_steps 0"), (plain, "without use_ema"), (eps_model, "no run")):
        assert isinstance(sample(source, "ema"), int)
        assert said in capsys.readouterr().err


def test_a_checkpoint_is_not_put_into_another_base_model(settings, sample, eps_model, v_model, tmp_path, capsys):
    model = shutil.copytree(eps_model, tmp_path / "model")
    run = train(settings(model=str(model), max_train_steps=1), progress=False).folder
    assert not isinstance(sample(run / "checkpoint-1"), int)
    shutil.rmtree(model)
    shutil.copytree(v_model, model)
    assert isinstance(sample(run / "checkpoint-1"), int)
    assert "is not the one that" in capsys.readouterr().err
