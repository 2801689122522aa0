"""Stable Diffusion pipelines load, sample and save as in plain diffusers, and bad folders are refused by name."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.models import inspect_model, load_family
from fewbayes.models.tokens import write_slow_tokenizer
from fewbayes.models.unet_clip import SAMPLERS
from fewbayes.sample import sample_images

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def copy(eps_model, tmp_path):
    return shutil.copytree(eps_model, tmp_path / "model")


def test_a_model_is_known_before_it_is_loaded(eps_model, v_model):
    card = inspect_model(str(eps_model))
    assert (card.resolution, card.prediction_type, card.rare_token) == (32, "epsilon", "<v>")
    assert inspect_model(str(v_model)).prediction_type == "v_prediction"


def test_a_fingerprint_is_of_the_contents(eps_model, v_model, copy):
    same = inspect_model(str(copy)).fingerprint()
    assert same == inspect_model(str(eps_model)).fingerprint()
    assert same != inspect_model(str(v_model)).fingerprint()
    file = copy / "scheduler/scheduler_config.json"
    file.write_text(file.read_text().replace("0.012", "0.013"))
    assert inspect_model(str(copy)).fingerprint() != same


def test_latents_are_those_of_the_autoencoder_scaled(family):
    mean, std = family.encode_images(PICTURES)
    with torch.no_grad():
        pixels = torch.from_numpy(PICTURES).permute(0, 3, 1, 2) / 127.5 - 1
        theirs = family.vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean, theirs.mean * 0.18215)
    torch.testing.assert_close(std, theirs.std * 0.18215)
    assert mean.shape == (2, 4, 8, 8)


def test_pictures_of_another_type_are_refused(family):
    with pytest.raises(ValueError, match="uint8"):
        family.encode_images(PICTURES / 255)


def test_alpha_bar_is_that_of_the_models_scheduler(family):
    assert torch.equal(family.process.alpha_bars, DDPMScheduler.from_config(family.scheduler_config).alphas_cumprod)


def test_the_same_seed_gives_the_picture_of_plain_diffusers(family, eps_model):
    ours = sample_images(family, ["a photo"], [7], steps=3, guidance=5.0)[0]
    theirs = StableDiffusionPipeline.from_pretrained(eps_model)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    theirs.set_progress_bar_config(disable=True)
    picture = theirs("a photo", num_inference_steps=3, guidance_scale=5.0, generator=torch.Generator().manual_seed(7))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(picture.images[0]))


# 2026-11: diffusers 0.42 turns tensors into arrays in a way that numpy 2 will forbid
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(family, sampler):
    words = ["a photo", "of", "a dog"]
    together = sample_images(family, words, [1, 2, 3], sampler=sampler, steps=3)
    alone = sample_images(family, words[1:2], [2], sampler=sampler, steps=3)
    difference = np.asarray(together[1]).astype(int) - np.asarray(alone[0]).astype(int)
    assert abs(difference).max() <= 1
    assert (np.asarray(together[0]) != np.asarray(together[1])).any()


def test_sampling_draws_nothing_from_the_global_generator(family):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sample_images(family, ["a photo"], [1], sampler="ddpm", steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_saved_loads_as_the_same_model(family, tmp_path):
    family.save(tmp_path / "saved")
    again = load_family(str(tmp_path / "saved"))
    for part in ("vae", "unet", "text_encoder"):
        ours, theirs = family.modules[part].state_dict(), again.modules[part].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.scheduler_config["_class_name"] == "PNDMScheduler"
    assert again.card.rare_token == "<v>"


def test_a_saved_tokenizer_holds_what_transformers_4_reads_and_means_the_same(family, tmp_path):
    """vocab.json, merges.txt and added_tokens.json alone are the whole tokenizer."""
    family.save(tmp_path / "saved")
    folder = tmp_path / "saved/tokenizer"
    whole = CLIPTokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    slow = CLIPTokenizer.from_pretrained(folder)
    prompts = ["a photo of a <v> dog", "phot of 12 of", "a<v>"]
    assert slow(prompts, padding=True).input_ids == whole(prompts, padding=True).input_ids
    (word,) = {slow("<v>", add_special_tokens=False).input_ids[0], *whole("<v>", add_special_tokens=False).input_ids}
    assert family.tokenizers["tokenizer"]("<v>", add_special_tokens=False).input_ids == [word]


def test_the_files_of_the_models_own_tokenizer_are_kept_as_they_are(family, tmp_path):
    for name in ("own", "saved"):
        (tmp_path / name).mkdir()
    (tmp_path / "own/vocab.json").write_text("{}")
    (tmp_path / "own/merges.txt").write_text("#version: 0.1\n")
    write_slow_tokenizer(family.tokenizers["tokenizer"], tmp_path / "saved", like=tmp_path / "own")
    assert {path.name: path.read_text() for path in (tmp_path / "saved").iterdir()} == {
        "vocab.json": "{}",
        "merges.txt": "#version: 0.1\n",
    }


def test_recomputing_activations_changes_no_gradient(family):
    gradients = []
    for on in (False, True):
        family.denoiser.requires_grad_(True)
        family.checkpoint_gradients(on)
        output = family.predict(torch.ones(1, 4, 8, 8), torch.tensor([3]), Conditioning(tokens=torch.ones(1, 16, 16)))
        output.square().sum().backward()
        gradients.append([p.grad.clone() for p in family.denoiser.parameters()])
        family.denoiser.zero_grad(set_to_none=True)
    family.checkpoint_gradients(False)
    family.denoiser.requires_grad_(False)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_prompt_that_is_too_long_is_said_once(family, caplog):
    with caplog.at_level(logging.WARNING, "fewbayes"):
        family.encode_prompts(["x" * 40])
        family.encode_prompts(["x" * 40])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "42 tokens" in caplog.text


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("model_index.json", "model_index.json"),
        ("unet", "unet"),
        ("unet/config.json", "config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
        ("vae/diffusion_pytorch_model.safetensors", "vae"),
        ("text_encoder/model.safetensors", "text_encoder"),
        ("tokenizer/tokenizer.json", "vocab.json and merges.txt"),
        ("scheduler/scheduler_config.json", "scheduler_config.json"),
    ],
)
def test_a_missing_part_is_named(copy, missing, named):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=named):
        inspect_model(str(copy))


def test_pickled_weights_are_refused(copy):
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"pickled.*refused"):
        inspect_model(str(copy))


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_weights_cut_short_are_refused(copy, length):
    weights = copy / "vae/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(ValueError, match="fetch"):
        inspect_model(str(copy))


def test_another_kind_of_pipeline_is_refused_by_its_name(copy):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="FluxPipeline"):
        inspect_model(str(copy))


def test_an_inpainting_model_is_refused(copy):
    config = json.loads((copy / "unet/config.json").read_text())
    (copy / "unet/config.json").write_text(json.dumps(config | {"in_channels": 9}))
    with pytest.raises(ValueError, match="inpainting"):
        inspect_model(str(copy))


@pytest.mark.parametrize("model", ["nowhere", "./nowhere", "/nowhere/at/all", "nobody/nothing"])
def test_a_model_that_is_nowhere_is_refused(model):
    with pytest.raises(ValueError, match="tiny"):
        inspect_model(model)


def test_dropping_the_safety_checker_is_said(copy, caplog, tmp_path):
    (copy / "safety_checker").mkdir()
    with caplog.at_level(logging.WARNING, "fewbayes"):
        load_family(str(copy)).save(tmp_path / "saved")
    assert "safety checker" in caplog.text
    assert not (tmp_path / "saved/safety_checker").exists()


def test_an_unknown_sampler_is_refused_with_the_known_ones(family):
    with pytest.raises(ValueError, match="ddim, pndm"):
        family.pipeline("heun")
