"""Memory like a user's machine: text encoders read every prompt once and go, a frozen base is kept in few bits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from fewbayes.models import inspect_model, load_family, parts, pipelines
from fewbayes.runs.opening import open_model
from fewbayes.training import memory
from fewbayes.training.train import train

# 2026-11: diffusers 0.42 turns tensors into arrays in a way that numpy 2 will forbid
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
WATCHED = {
    "method": "lora",
    "rank": 2,
    "max_train_steps": 2,
    "validation_steps": 2,
    "monitor_steps": 1,
    "caption_dropout": 0.5,
    "with_prior_preservation": True,
    "class_prompt": "a photo of dog",
    "num_class_images": 2,
}


@pytest.fixture
def loaded(monkeypatch):
    """Names of the parts in the order in which they are loaded."""
    names, right = [], parts._loaded
    monkeypatch.setattr(parts, "_loaded", lambda *given: (names.append(given[1]), right(*given))[1])
    return names


def weights_of(run):
    return load_file(run / "pytorch_lora_weights.safetensors")


def test_text_encoders_are_loaded_once_before_the_denoiser_and_never_where_their_words_are_kept(
    z_image_model, settings, loaded, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pipelines, "LARGE", 0)
    usual = {"model": str(z_image_model), "class_data_dir": str(tmp_path / "class"), **WATCHED}
    first = train(settings("first", **usual), progress=False).folder
    assert loaded == ["text_encoder", "vae", "transformer"]
    second = train(settings("second", **usual), progress=False).folder
    assert loaded[3:] == ["vae", "transformer"]
    one, other = weights_of(first), weights_of(second)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_where_the_text_encoders_stay_the_run_is_the_same(eps_model, settings, tmp_path):
    usual = {"model": str(eps_model), "class_data_dir": str(tmp_path / "class"), **WATCHED}
    lean = train(settings("lean", **usual), progress=False).folder
    whole = train(settings("whole", **usual), family=load_family(str(eps_model)), progress=False).folder
    one, other = weights_of(lean), weights_of(whole)
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = [(run / "stages.jsonl").read_text() for run in (lean, whole)]
    assert rows[0] == rows[1]


def test_the_autoencoder_goes_where_nothing_is_drawn(eps_model, settings, loaded):
    train(settings(method="lora", rank=2, max_train_steps=1), progress=False)
    assert sorted(loaded) == ["text_encoder", "unet", "vae"]


def test_a_part_that_was_dropped_comes_back_as_it_was(eps_model):
    family = load_family(str(eps_model))
    before = family.encode_prompts(["a photo"])["tokens"]
    family.drop("text_encoder", "vae")
    assert {weight.is_meta for weight in family.modules["text_encoder"].parameters()} == {True}
    assert torch.equal(family.encode_prompts(["a photo"])["tokens"], before)
    assert family.vae.dtype == torch.float32


def test_text_encoders_may_read_beside_another_device(z_image_model, tmp_path):
    family = load_family(str(z_image_model), whole=False)
    family.keep_prompts(tmp_path, on="cpu")
    family.to("meta")
    assert family.encode_prompts(["a photo"])["tokens"].is_meta
    assert family.modules["text_encoder"].device.type == "cpu"
    family.fetch("transformer")
    assert family.device.type == "meta"


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("method", [{"method": "lora", "rank": 2}, {"method": "oft", "oft_blocks": 2}])
def test_a_quantised_base_trains_nearly_the_same(precision, method, sd3_model, settings):
    pytest.importorskip("bitsandbytes")
    usual = {"model": str(sd3_model), "max_train_steps": 2, "bayes": True, "weight_std": 0.01, **method}
    losses = {}
    for held in ("fp32", precision):
        run = train(settings(held, base_precision=held, **usual), progress=False).folder
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses[held] = [row["value"] for row in rows if row["metric"] == "loss"]
    assert losses[precision] != losses["fp32"]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.05)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_the_estimate_knows_what_a_reduced_base_holds(precision, z_image_model, settings):
    pytest.importorskip("bitsandbytes")
    config = settings(model=str(z_image_model), method="lora", rank=2, base_precision=precision)
    told = memory.estimate(inspect_model(str(z_image_model)), config.resolve({}, 32, 3))
    family = load_family(str(z_image_model), whole=False)
    family.reduce(precision)
    family.fetch()

    def held(*names):
        modules = [family.modules[name] for name in names]
        weights = [it for module in modules for it in (*module.parameters(), *module.buffers())]
        shared = [getattr(w, "quant_state", None) for w in weights]
        return sum(w.numel() * w.element_size() for w in weights) + sum(4 * q.absmax.numel() for q in shared if q)

    assert told.parts["model"] == pytest.approx(held("transformer", "vae"), rel=0.01)
    assert told.before == pytest.approx(held("text_encoder"), rel=0.01)


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_a_run_and_a_lora_of_anybody_open_on_a_reduced_base(precision, z_image_model, settings):
    if precision == "nf4":
        pytest.importorskip("bitsandbytes")
    usual = {"model": str(z_image_model), "method": "lora", "rank": 2, "max_train_steps": 1, "learning_rate": 0.03}
    run = train(settings(base_precision=precision, **usual), progress=False).folder
    file = str(run / "pytorch_lora_weights.safetensors")
    answers = {}
    for how in ("fp32", precision):
        for source, base in ((run, None), (file, str(z_image_model))):
            family, _ = open_model(source, base=base, lora_alpha=2.0 if base else None, precision=how)
            xt, t = torch.ones(1, 16, 8, 8), torch.tensor([0.5])
            with torch.no_grad():
                answers[how, base] = family.predict(xt, t, family.encode_prompts(["a photo of <v> dog"]))
        torch.testing.assert_close(answers[how, None], answers[how, str(z_image_model)], rtol=0.05, atol=0.02)
    assert not torch.equal(answers["fp32", None], answers[precision, None])
    torch.testing.assert_close(answers["fp32", None], answers[precision, None], rtol=0.2, atol=0.2)
