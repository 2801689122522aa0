"""What people type: flags by the names of other trainers, files of other kinds, and settings that would do nothing."""

import re
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import save_file

from fewbayes.cli import main
from fewbayes.errors import UserError
from fewbayes.models.folders import locate
from fewbayes.runs.opening import open_model
from fewbayes.settings.config import parse_train_args
from fewbayes.settings.foreign import ALIASES, INSTEAD
from fewbayes.training.train import train

NEEDED = ["--model", "tiny", "--instance_data_dir", "P", "--instance_prompt", "a photo of a <v> dog"]
LINE = [*NEEDED, "--output_dir", "O"]


def test_names_of_kohyas_trainer_are_accepted():
    line = "--pretrained_model_name_or_path tiny --train_data_dir P --output O --prompt x --trigger_word x --lr 1e-4"
    line += " --network_dim 8 --network_alpha=4 --steps 7 --batch_size 2 --flip_aug --method lora --min_snr_gamma 5"
    found = parse_train_args(line.split())
    assert (found.model, found.instance_data_dir, found.rare_token, found.learning_rate) == ("tiny", "P", "x", 1e-4)
    assert (found.rank, found.lora_alpha, found.max_train_steps, found.train_batch_size) == (8, 4, 7, 2)
    assert (found.random_flip, found.snr_gamma, found.output_dir) == (True, 5, "O")


def test_all_unknown_flags_are_refused_at_once_each_with_what_was_meant():
    with pytest.raises(UserError) as refused:
        parse_train_args([*LINE, "--optimizer_type", "adafactor", "--lerning_rate", "1", "--clip_skip=2", "--zzz"])
    said = str(refused.value).splitlines()
    assert len(said) == 4
    assert "--use_8bit_adam" in said[0]
    assert said[1].endswith("did you mean learning_rate?")
    assert "the last layer is used" in said[2]


def test_no_name_of_others_hides_one_of_ours():
    from fewbayes.settings.config import train_settings

    assert not train_settings().keys() & (ALIASES.keys() | INSTEAD.keys())
    assert set(ALIASES.values()) <= train_settings().keys()
    assert not ALIASES.keys() & INSTEAD.keys()


@pytest.mark.parametrize(("typed", "meant"), [("trian", "train"), ("exprot", "export"), ("samples", "sample")])
def test_a_command_that_is_misspelt_is_named(typed, meant, capsys):
    assert main([typed]) == 2
    assert f"{typed!r} is not a command; did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--validation_prompt", "a <v> dog in the snow"],
            "validation_steps is 0 and nothing is drawn; add validation",
        ),
        (["--class_prompt", "a photo of a <v> dog"], 'not its class; write "a photo of a dog"'),
        (["--class_prompt", "a photo of a sks dog", "--rare_token", "sks"], 'write "a photo of a dog"'),
    ],
)
def test_what_would_do_nothing_is_refused_before_torch_is_imported(flags, said):
    preserved = ["--with_prior_preservation"] if flags[0] == "--class_prompt" else []
    with pytest.raises(UserError, match=re.escape(said)):
        parse_train_args([*LINE, *preserved, *flags])


def test_own_class_images_are_said(settings, family, tmp_path, photos, caplog):
    prior = {"with_prior_preservation": True, "class_prompt": "a photo of dog", "class_data_dir": str(photos)}
    with caplog.at_level("INFO", "fewbayes"):
        train(settings(**prior, num_class_images=20, max_train_steps=1), family=family, progress=False)
    assert (
        f"class images: your own 3 in {photos}; none are drawn beside them, though num_class_images is 20"
        in caplog.text
    )


@pytest.fixture
def files(tmp_path) -> Path:
    import numpy as np

    save_file({"first_stage_model.x": np.zeros(1)}, tmp_path / "model.safetensors")
    save_file({"unet.x.lora_A.weight": np.zeros((1, 1))}, tmp_path / "lora.safetensors")
    (tmp_path / "old.ckpt").write_bytes(b"x")
    (tmp_path / "lora.pt").write_bytes(b"x")
    (tmp_path / "dead.safetensors").symlink_to(tmp_path / "gone.safetensors")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "from_single_file"),
        ("old.ckpt", "from_single_file"),
        ("lora.safetensors", "it is a LoRA, which changes a model: name the model under it"),
        ("none.safetensors", "there is no such file"),
        ("dead.safetensors", "a link to .*gone.safetensors, which is missing"),
    ],
)
def test_a_file_is_no_model_and_the_way_out_is_said(files, name, said):
    with pytest.raises(UserError, match=said):
        locate(str(files / name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.safetensors", "there is no file or folder"),
        ("none.SAFETENSORS", "there is no file or folder"),
        ("dead.safetensors", "a link to .*gone.safetensors, which is missing"),
        ("lora.pt", "is a pickle, which can run any code"),
        ("cat.png", "is no adapter for tiny"),
    ],
)
def test_a_path_that_is_no_lora_is_named_for_what_it_is(files, name, said):
    with pytest.raises(UserError, match=said):
        open_model(str(files / name), base="tiny")
