"""A transformer on a straight path goes through all that Stable Diffusion goes through, by the same code."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewbayes.cli import main
from fewbayes.diagnose.ask import Asked, settle
from fewbayes.diagnose.command import diagnose
from fewbayes.export import write_export
from fewbayes.models import load_family
from fewbayes.models.adapters import load_adapter
from fewbayes.runs.opening import open_model
from fewbayes.sample import write_samples
from fewbayes.training.prepare import check_drawn
from fewbayes.training.train import train
from test_family_contract import a_prediction, is_as_it_was, kept
from toy_family import build_toy


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_toy(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="module")
def family(model):
    return load_family(str(model))


@pytest.fixture
def of_toy(settings, model):
    def make(output: str = "run", **changes):
        usual = {"model": str(model), "num_inference_steps": 2, "checkpointing_steps": 2}
        return settings(output, **usual | changes)

    return make


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


LOOKS = {"validation_steps": 2, "monitor_steps": 2}
RUNS = {
    "full-bayes": {"bayes": True, "weight_std": 0.01, "use_ema": True, **LOOKS},
    "lora": {"method": "lora", "rank": 2, "train_text_encoder": True, "sampler": "straight", **LOOKS},
    "oft-bayes": {"method": "oft", "oft_blocks": 2, "bayes": True, "weight_std": 0.01},
    "prior": {"with_prior_preservation": True, "class_prompt": "a photo of dog", "num_class_images": 2},
}


@pytest.mark.parametrize("kind", RUNS)
def test_it_trains_is_watched_and_opens_again(kind, family, of_toy, tmp_path):
    """The model is given back bit for bit, and what the run wrote predicts otherwise and the same each time."""
    before, base = kept(family), a_prediction(family)
    changes = RUNS[kind] | ({"class_data_dir": str(tmp_path / "class")} if kind == "prior" else {})
    result = train(of_toy(max_train_steps=4, **changes), family=family, progress=False)
    is_as_it_was(family, before)
    losses = [row["value"] for row in rows(result.folder) if row["metric"] == "loss"]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    opened = open_model(str(result.folder))[0]
    assert type(opened) is type(family)
    tuned = a_prediction(opened)
    assert not torch.equal(tuned, base)
    assert torch.equal(a_prediction(open_model(str(result.folder))[0]), tuned)
    if "monitor_steps" in changes:
        stages = [json.loads(line) for line in (result.folder / "stages.jsonl").read_text().splitlines()]
        assert [row["step"] for row in stages] == [2, 4]
        assert any(row["metric"] == "retention" for row in rows(result.folder))


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(family, of_toy):
    half = {"method": "lora", "rank": 2, "bayes": True, "weight_std": 0.01}
    whole = train(of_toy("whole", max_train_steps=4, **half), family=family, progress=False).folder
    train(of_toy("resumed", max_train_steps=2, **half), family=family, progress=False)
    resumed = train(of_toy("resumed", max_train_steps=4, **half), family=family, progress=False)
    assert resumed.resumed_from == 2
    one, other = (a_prediction(open_model(str(folder))[0]) for folder in (whole, resumed.folder))
    assert torch.equal(one, other)


@pytest.mark.parametrize("settings_of_run", [{"method": "lora", "rank": 2}, {"bayes": True, "weight_std": 0.01}])
def test_it_is_diagnosed(settings_of_run, family, of_toy, tmp_path):
    run = train(of_toy(max_train_steps=2, **settings_of_run), family=family, progress=False).folder
    asked = Asked(str(run), str(tmp_path / "diagnosis"), sampler="straight", num_images=2, num_inference_steps=2)
    found = diagnose(asked)
    with pytest.raises(ValueError, match="choose one of straight"):
        settle(replace(asked, sampler="euler", output_dir=str(tmp_path / "other")))
    assert found.stage is not None
    assert (tmp_path / "diagnosis/diagnosis.json").is_file()


def test_pictures_are_drawn_from_a_run(family, of_toy, tmp_path):
    run = train(of_toy(max_train_steps=2), family=family, progress=False).folder
    folder = write_samples(str(run), ["a photo of <v> dog"], tmp_path / "out", num_images=2, steps=2)
    assert len(list(folder.glob("*.png"))) == 2


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_its_lora_loads_into_the_base_model_as_a_stranger_would(format, family, of_toy, model, tmp_path):
    run = train(of_toy(method="lora", rank=2, max_train_steps=2), family=family, progress=False).folder
    exported = write_export(run, format, tmp_path / "export")
    plain = load_family(str(model))
    load_adapter(plain, exported)
    torch.testing.assert_close(a_prediction(plain), a_prediction(open_model(str(run))[0]), atol=1e-6, rtol=1e-5)
    assert not torch.equal(a_prediction(plain), a_prediction(family))


@pytest.mark.parametrize("settings_of_run", [{"method": "lora", "rank": 2}, {"method": "oft", "oft_blocks": 2}, {}])
def test_merged_it_is_a_model_of_its_own(settings_of_run, family, of_toy, tmp_path):
    run = train(of_toy(max_train_steps=2, **settings_of_run), family=family, progress=False).folder
    merged = load_family(str(write_export(run, "merged", tmp_path / "export")))
    torch.testing.assert_close(a_prediction(merged), a_prediction(open_model(str(run))[0]), atol=1e-6, rtol=1e-5)


def test_full_fine_tuning_becomes_a_lora_by_svd_of_its_blocks(family, of_toy, tmp_path):
    run = train(of_toy(max_train_steps=2), family=family, progress=False).folder
    told = json.loads((write_export(run, "svd-lora", tmp_path / "export", rank=4) / "export.json").read_text())
    groups = {row["group"] for row in told["residual"]}
    assert {"transformer blocks.0", "transformer blocks.1", "transformer other"} <= groups


@pytest.mark.parametrize("format", ["kohya", "comfyui", "original"])
def test_a_format_without_names_for_its_layers_is_refused_before_anything_is_loaded(format, family, of_toy, tmp_path):
    run = train(of_toy(method="lora", rank=2, max_train_steps=2), family=family, progress=False).folder
    with pytest.raises(ValueError, match=f"{format} is not written of the toy .*take diffusers, peft, merged"):
        write_export(run, format, tmp_path / "export")


def test_what_its_process_or_layers_have_not_is_refused_with_a_reason_and_no_folder(family, of_toy, tmp_path):
    with pytest.raises(ValueError, match="min-SNR"):
        train(of_toy(snr_gamma=5.0), family=family, progress=False)
    with pytest.raises(ValueError, match=r"linear-up.*which this model has not"):
        train(of_toy("places", bayes=True, where="linear-up"), family=family, progress=False)
    with pytest.raises(ValueError, match="sampler 'ddim' is not known; choose one of straight"):
        train(of_toy("sampled", sampler="ddim", validation_steps=1), progress=False)
    coarse = replace(family.card, side_unit=16)
    with pytest.raises(ValueError, match="resolution is 40; it must be a multiple of 16"):
        check_drawn(coarse, of_toy(sampler="straight", resolution=40))
    assert not [name for name in ("run", "places", "sampled") if (tmp_path / name).exists()]


def test_its_sampler_is_named_on_the_command_line(model, tmp_path, capsys):
    """Its name is none of Stable Diffusion's, so no list of those stands between the user and the family."""
    asked = ["sample", str(model), "--prompt", "a <v> dog", "--num_images", "1", "--num_inference_steps", "2"]
    assert main([*asked, "--sampler", "straight", "--output_dir", str(tmp_path / "drawn")]) == 0
    assert main([*asked, "--sampler", "euler", "--output_dir", str(tmp_path / "refused")]) == 2
    assert "choose one of straight" in capsys.readouterr().err
