"""Stable Diffusion XL encodes, is told sizes, samples and saves as in plain diffusers; only its base is taken."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from fewbayes.diffusion.objective import Batch, diffusion_loss
from fewbayes.models import inspect_model, load_family, parameter_counts
from fewbayes.sample import sample_images

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
PROMPTS = ["a photo of a <v> dog", "a photo"]
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def family(sdxl_model):
    return load_family(str(sdxl_model))


@pytest.fixture(scope="module")
def plain(sdxl_model):
    """Plain diffusers with the sampler that we take."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_model, add_watermarker=False)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def copy(sdxl_model, tmp_path):
    return shutil.copytree(sdxl_model, tmp_path / "model")


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_is_known_before_it_is_loaded(sdxl_model):
    card = inspect_model(str(sdxl_model))
    assert (card.family, card.resolution, card.prediction_type) == ("sdxl", 32, "epsilon")
    assert card.rare_token == "<v>"


def test_prompts_are_encoded_as_diffusers_encodes_them(family, plain):
    with torch.no_grad():
        ours = family.encode_prompts(PROMPTS)
        tokens, _, pooled, _ = plain.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    torch.testing.assert_close(ours["tokens"], tokens)
    torch.testing.assert_close(ours["pooled"], pooled)
    assert ours["tokens"].shape == (2, 16, 16 + 24)


@pytest.mark.parametrize("negative", ["", "a dog"])
@pytest.mark.parametrize("zeros", [True, False])
def test_no_negative_prompt_means_what_it_means_in_diffusers(copy, zeros, negative):
    change(copy / "model_index.json", force_zeros_for_empty_prompt=zeros)
    family = load_family(str(copy))
    with torch.no_grad():
        ours = family.encode_negative(negative)
        _, tokens, _, pooled = family.pipeline().encode_prompt("a photo", negative_prompt=negative or None)
    torch.testing.assert_close(ours["tokens"], tokens)
    torch.testing.assert_close(ours["pooled"], pooled)
    assert bool(ours["tokens"].any()) != (zeros and not negative)


@pytest.mark.parametrize("side", [32, 24])
def test_the_denoiser_is_told_the_sizes_that_the_pipeline_tells_it(family, side):
    told = []
    hook = family.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        sample_images(family, ["a photo"], [1], steps=1, resolution=side)
        family.predict(torch.ones(2, 4, side // 4, side // 4), torch.tensor([3, 4]), family.encode_prompts(PROMPTS))
    hook.remove()
    by_pipeline, by_predict = told
    assert torch.equal(by_pipeline, by_predict)
    assert by_predict[0].tolist() == [side, side, 0, 0, side, side]


@pytest.mark.parametrize("negative", ["", "a dog"])
def test_the_same_seed_gives_the_picture_of_plain_diffusers(family, plain, negative):
    ours = sample_images(family, ["a photo"], [7], steps=3, guidance=5.0, negative_prompt=negative)[0]
    picture = plain(
        "a photo",
        negative_prompt=negative or None,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
    )
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(picture.images[0]))


def test_a_picture_does_not_depend_on_its_batch(family):
    together = sample_images(family, ["a photo", "of", "a dog"], [1, 2, 3], steps=3)
    alone = sample_images(family, ["of"], [2], steps=3)
    difference = np.asarray(together[1]).astype(int) - np.asarray(alone[0]).astype(int)
    assert abs(difference).max() <= 1
    assert (np.asarray(together[0]) != np.asarray(together[1])).any()


def test_the_loss_of_an_example_does_not_depend_on_its_batch(family):
    draw = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 2, 4, 8, 8, generator=draw)
    with torch.no_grad():
        both = Batch(x0, eps, torch.tensor([10, 900]), family.encode_prompts(PROMPTS))
        one, other = (Batch(x0[i], eps[i], both.t[i], both.cond.rows(i)) for i in (slice(0, 1), slice(1, 2)))
        parts = torch.stack([diffusion_loss(family, one), diffusion_loss(family, other)])
        torch.testing.assert_close(diffusion_loss(family, both), parts.mean())
        torch.testing.assert_close(diffusion_loss(family, one.joined(other)), parts.mean())


def test_what_is_saved_loads_as_the_same_model_here_and_in_diffusers(family, tmp_path):
    family.save(tmp_path / "saved")
    again, theirs = load_family(str(tmp_path / "saved")), StableDiffusionXLPipeline.from_pretrained(tmp_path / "saved")
    for part in ("vae", "unet", "text_encoder", "text_encoder_2"):
        ours = family.modules[part].state_dict()
        for other in (again.modules[part].state_dict(), getattr(theirs, part).state_dict()):
            assert ours.keys() == other.keys()
            assert all(torch.equal(ours[name], other[name]) for name in ours)
    assert theirs.scheduler.config["_class_name"] == "EulerDiscreteScheduler"
    assert theirs.config.force_zeros_for_empty_prompt
    assert again.encode_prompts(PROMPTS)["tokens"].equal(family.encode_prompts(PROMPTS)["tokens"])


def test_the_fingerprint_sees_the_second_text_encoder(sdxl_model, copy):
    same = inspect_model(str(sdxl_model)).fingerprint()
    assert inspect_model(str(copy)).fingerprint() == same
    change(copy / "text_encoder_2/config.json", hidden_act="gelu")
    assert inspect_model(str(copy)).fingerprint() != same


def test_gradients_reach_both_text_encoders(family):
    draw = torch.Generator().manual_seed(0)
    for encoder in family.text_encoders.values():
        encoder.requires_grad_(True)
    batch = Batch(*torch.randn(2, 1, 4, 8, 8, generator=draw), torch.tensor([500]), family.encode_prompts(["a dog"]))
    diffusion_loss(family, batch).backward()
    reached = {
        name: any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
        for name, encoder in family.text_encoders.items()
    }
    for encoder in family.text_encoders.values():
        encoder.requires_grad_(False).zero_grad(set_to_none=True)
    assert reached == {"text_encoder": True, "text_encoder_2": True}


def _overflowing(copy):
    """An autoencoder like SDXL's own: in half precision its activations leave the range of numbers."""
    weights = load_file(copy / VAE_WEIGHTS)
    for part in ("encoder", "decoder"):
        weights[f"{part}.conv_in.weight"] = weights[f"{part}.conv_in.weight"] * 1e5
        weights[f"{part}.conv_in.bias"] = weights[f"{part}.conv_in.bias"] * 1e5
    save_file({name: weight.half() for name, weight in weights.items()}, copy / VAE_WEIGHTS, {"format": "pt"})
    return load_family(str(copy))


def test_an_autoencoder_stored_in_half_precision_computes_in_float32_under_autocast_too(copy):
    family = _overflowing(copy)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = family.encode_images(PICTURES)[0], family.decode_latents(latents)
    with torch.autocast("cpu", torch.float16):
        overflown = family.vae.encode(torch.rand(1, 3, 32, 32)).latent_dist.mean
        cast = family.encode_images(PICTURES)[0], family.decode_latents(latents)
        picture = np.asarray(sample_images(family, ["a photo"], [1], steps=2)[0])
    assert not overflown.isfinite().all()
    assert plain[0].equal(cast[0])
    np.testing.assert_array_equal(plain[1], cast[1])
    assert picture.std() > 0


def test_an_autoencoder_with_numbers_that_are_not_finite_is_refused(copy):
    weights = load_file(copy / VAE_WEIGHTS)
    weights["decoder.conv_in.bias"][0] = float("nan")
    save_file(weights, copy / VAE_WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"decoder.conv_in.bias.*float32"):
        load_family(str(copy))


def test_counts_are_of_the_parts_that_are_loaded(family):
    modules = family.modules | {"denoiser": family.denoiser}
    modules.pop("unet")
    assert parameter_counts(family.card) == {
        name: sum(parameter.numel() for parameter in module.parameters()) for name, module in modules.items()
    }


def test_the_refiner_is_refused_by_name(copy):
    change(copy / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")
    with pytest.raises(ValueError, match="refiner"):
        inspect_model(str(copy))


def test_a_refiner_in_the_base_models_clothes_is_refused(copy):
    change(copy / "unet/config.json", projection_class_embeddings_input_dim=24 + 5 * 8)
    with pytest.raises(ValueError, match="refiner"):
        inspect_model(str(copy))


@pytest.mark.parametrize("kind", ["StableDiffusionXLInpaintPipeline", "StableDiffusionInpaintPipeline"])
def test_an_inpainting_pipeline_is_refused_by_name(copy, kind):
    change(copy / "model_index.json", _class_name=kind)
    with pytest.raises(ValueError, match=rf"{kind}.*inpainting"):
        inspect_model(str(copy))


def test_an_autoencoder_that_shifts_its_latents_is_refused(copy):
    change(copy / "vae/config.json", latents_mean=[0.1] * 4, latents_std=[2.0] * 4)
    with pytest.raises(ValueError, match="latents_mean"):
        inspect_model(str(copy))


@pytest.mark.parametrize(
    "missing", ["text_encoder_2", "text_encoder_2/model.safetensors", "tokenizer_2/tokenizer.json"]
)
def test_a_missing_second_part_is_named(copy, missing):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=missing.split("/")[0]):
        inspect_model(str(copy))
