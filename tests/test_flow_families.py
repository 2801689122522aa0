"""Flow models beside diffusers: a batch's loss is its script's and no other, samples are its pipeline's bit for bit."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from safetensors.torch import load_file

from fewbayes.diffusion.objective import Batch, diffusion_loss
from fewbayes.diffusion.process import Flow
from fewbayes.export import write_export
from fewbayes.export.verify import verify
from fewbayes.models import flux2, inspect_model, load_family
from fewbayes.models.adapters import load_adapter, lora_layers
from fewbayes.models.sampling import sample_images
from fewbayes.training.train import train

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
PIXELS = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 127.5 - 1
PROMPTS = ["a photo of a <v> dog that sits on the roof of a house", "a photo"]  # of 3 and 1 times 32 tokens
PLACES = [100, 700]
"""Of the batch's times, in the scheduler's table."""
# 2026-11: diffusers 0.42 turns tensors into arrays in a way that numpy 2 will forbid
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
slow = pytest.mark.skipif("FEWBAYES_SLOW" not in os.environ, reason="minutes; set FEWBAYES_SLOW=1")


class Backwards(Flow):
    def answer(self, t, dtype=torch.float32):
        c, d = super().answer(t, dtype)
        return -c, -d


# --- examples/dreambooth of diffusers, from the pictures to what is predicted, given the noised latents ---------------


def sd3_script(pipeline, noisy, timesteps):
    tokens, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    return pipeline.transformer(
        hidden_states=noisy, timestep=timesteps, encoder_hidden_states=tokens, pooled_projections=pooled
    ).sample


def flux2_script(pipeline, noisy, timesteps):
    ids = Flux2KleinPipeline._prepare_latent_ids(noisy)
    tokens, text_ids = pipeline.encode_prompt(PROMPTS)
    predicted = pipeline.transformer(
        hidden_states=Flux2KleinPipeline._pack_latents(noisy),
        timestep=timesteps / 1000,
        guidance=None,
        encoder_hidden_states=tokens,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0]
    return Flux2KleinPipeline._unpack_latents_with_ids(predicted, ids)


def z_image_script(pipeline, noisy, timesteps):
    words, _ = pipeline.encode_prompt([*PROMPTS], do_classifier_free_guidance=False)
    pictures = list(noisy.unsqueeze(2).unbind(dim=0))
    predicted = pipeline.transformer(pictures, (1000 - timesteps) / 1000, words, return_dict=False)[0]
    return -torch.stack(predicted, dim=0).squeeze(2)


def scaled(vae, latents):
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def whitened(vae, latents):
    bn_std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return (Flux2KleinPipeline._patchify_latents(latents) - vae.bn.running_mean.view(1, -1, 1, 1)) / bn_std


# --- what each may be mistaken for ------------------------------------------------------------------------------------


def sd3_mistakes(family):
    right = family.encode_prompts
    return {
        "words": (family, "encode_prompts", lambda prompts: right(prompts[::-1])),
        "shift": (type(family), "_latent_shift", 1.0),
        "scale": (type(family), "_latent_scale", 1.0),
    }


def flux2_mistakes(family):
    def columns_first(x):
        return x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)

    return {
        "whitening": (flux2.Flux2Klein, "_whitening", lambda self: (0.0, 1.0)),
        "places": (flux2, "_places", lambda height, width, words: torch.zeros(height * width * words, 4)),
        "patches": (flux2, "_patched", columns_first),
    }


def z_image_mistakes(family):
    right, words = family.predict, family.encode_prompts

    def padded(prompts):
        cond = words(prompts)
        return type(cond)(tokens=cond["tokens"], mask=torch.ones_like(cond["mask"]))

    return {
        "direction of time": (family, "predict", lambda xt, t, cond: right(xt, 1 - t, cond)),
        "padding": (family, "encode_prompts", padded),
        "layer": ("fewbayes.models.z_image.LAYER", -1),
        "shift": (type(family), "_latent_shift", 0.0),
        "scale": (type(family), "_latent_scale", 1.0),
    }


@dataclass(frozen=True)
class Their:
    """latents: what it makes of the autoencoder's; table: of its scheduler; median: of the training times.

    guidances: ours and the pipeline's, of samples.
    """

    pipeline: str
    script: Callable[..., torch.Tensor]
    latents: Callable[..., torch.Tensor]
    mistakes: Callable[..., dict[str, tuple[Any, ...]]]
    table: dict[str, Any]
    median: float
    guidances: tuple[tuple[float, float], ...]


SD3 = ("StableDiffusion3Pipeline", sd3_script, scaled, sd3_mistakes, {"shift": 3.0}, 0.75)
THEIRS = {
    "sd3": Their(*SD3, ((1.0, 1.0), (5.0, 5.0))),
    "sd3_without_t5": Their(*SD3, ()),  # samples to 1e-4, see test_sd3_family.py
    "flux2": Their(
        *("Flux2KleinPipeline", flux2_script, whitened, flux2_mistakes),
        *({"use_dynamic_shifting": True}, 0.5, ((4.0, 4.0),)),
    ),
    "z_image": Their(
        *("ZImagePipeline", z_image_script, scaled, z_image_mistakes),
        *({"shift": 6.0}, 6 / 7, ((5.0, 4.0), (1.0, 0.0))),
    ),
}


@pytest.fixture(scope="module", params=THEIRS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def family(name, request):
    return load_family(str(request.getfixturevalue(f"{name}_model")))


@pytest.fixture(scope="module")
def plain(name, family):
    absent = {} if name != "sd3_without_t5" else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = getattr(diffusers, THEIRS[name].pipeline).from_pretrained(family.card.folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def batch(name, family):
    """At times of the scheduler's own table."""
    mean, _ = family.encode_images(PICTURES)
    t = FlowMatchEulerDiscreteScheduler(**THEIRS[name].table).sigmas[PLACES]
    eps = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    return Batch(mean, eps, t, family.encode_prompts(PROMPTS))


@torch.no_grad()
def test_the_loss_of_a_batch_is_that_of_the_diffusers_script_and_no_other(name, family, plain, monkeypatch):
    b = batch(name, family)
    x0 = THEIRS[name].latents(plain.vae, plain.vae.encode(PIXELS).latent_dist.mode())
    timesteps = plain.scheduler.timesteps[PLACES]
    sigmas = torch.stack([plain.scheduler.sigmas[plain.scheduler.timesteps == t] for t in timesteps]).view(-1, 1, 1, 1)
    predicted = THEIRS[name].script(plain, (1.0 - sigmas) * x0 + sigmas * b.eps, timesteps)
    theirs = ((predicted - (b.eps - x0)) ** 2).reshape(2, -1).mean(1).mean()
    torch.testing.assert_close(diffusion_loss(family, b), theirs, rtol=1e-5, atol=1e-5)
    right = family.predict
    mistakes = {
        "sign": (family, "process", Backwards()),
        "unit of time": (family, "predict", lambda xt, t, cond: right(xt, 1000 * t, cond)),
        **THEIRS[name].mistakes(family),
    }
    for mistake, patched in mistakes.items():
        with monkeypatch.context() as patch:
            patch.setattr(*patched)
            assert abs(diffusion_loss(family, batch(name, family)) - theirs) > 1e-5, mistake


def test_training_draws_the_times_of_the_schedulers_table(name, family):
    drawn = family.process.draw_times(4000, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) <= set(FlowMatchEulerDiscreteScheduler(**THEIRS[name].table).sigmas.tolist())
    assert float(drawn.median()) == pytest.approx(THEIRS[name].median, abs=0.03)


@torch.no_grad()
def test_samples_are_the_pipelines_own_bit_for_bit(name, family, plain):
    for ours, theirs in THEIRS[name].guidances:
        how = {"num_inference_steps": 3, "guidance_scale": theirs, "height": 32, "width": 32}
        picture = plain(prompt=PROMPTS[0], generator=torch.Generator().manual_seed(3), **how).images[0]
        (mine,) = sample_images(family, PROMPTS[:1], [3], steps=3, guidance=ours)
        assert np.array_equal(np.asarray(mine), np.asarray(picture)), ours


@torch.no_grad()
def test_latents_in_and_out_are_the_autoencoders_own(name, family, plain):
    mean, std = family.encode_images(PICTURES)
    raw, scaled = plain.vae.encode(PIXELS).latent_dist, THEIRS[name].latents
    torch.testing.assert_close(mean + std, scaled(plain.vae, raw.mean + raw.std), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(family._unscaled(mean), raw.mean, rtol=1e-5, atol=1e-5)
    decoded = plain.image_processor.postprocess(plain.vae.decode(raw.mean).sample, "np")
    assert np.abs(family.decode_latents(mean) - decoded * 255).max() < 0.51


# --- exports ----------------------------------------------------------------------------------------------------------

LORA = {"method": "lora", "rank": 2}


def trained(family, settings, **changes):
    usual = {"model": str(family.card.folder), "max_train_steps": 2, "learning_rate": 0.03}
    return train(settings(**usual | changes), family=family, progress=False).folder


@pytest.mark.parametrize("name", ["flux2", "z_image"], indirect=True)
def test_kohyas_layout_is_read_by_diffusers_and_here_as_the_same_change(name, family, plain, settings, tmp_path):
    """Query, key and value are one layer there."""
    run = trained(family, settings, **LORA, adapter_targets="attention+ff")
    whole = load_file(write_export(run, "diffusers", tmp_path / "own") / "pytorch_lora_weights.safetensors")
    file = write_export(run, "kohya", tmp_path / "kohya") / "run.safetensors"
    read = type(plain).lora_state_dict(file)
    downs = [key for key in whole if "lora_A" in key]
    assert len(read) == len(whole)
    wanted = {key: whole[key.replace("lora_A", "lora_B")] @ whole[key] for key in downs}
    for key in downs:
        torch.testing.assert_close(read[key.replace("lora_A", "lora_B")] @ read[key], wanted[key])
    for other in (file, tmp_path / "own/pytorch_lora_weights.safetensors"):
        mine = load_family(family.card)
        load_adapter(mine, other)
        assert len(lora_layers(mine.denoiser)) == len(downs)
        for key in downs:
            layer = mine.denoiser.get_submodule(key.removeprefix("transformer.").removesuffix(".lora_A.weight"))
            torch.testing.assert_close(layer.get_delta_weight("default"), wanted[key])
    with pytest.raises(ValueError, match="no name in kohya's files"):
        family.kohya_name("transformer", {"flux2": "x_embedder", "z_image": "all_x_embedder.2-1"}[name])


@pytest.mark.parametrize(
    ("name", "format", "more"),
    [
        ("z_image", "kohya", LORA),
        pytest.param("z_image", "diffusers", LORA, marks=slow),
        pytest.param("z_image", "peft", {"method": "oft", "oft_blocks": 2, "bayes": True}, marks=slow),
        pytest.param("z_image", "merged", {}, marks=slow),
        pytest.param("flux2", "kohya", LORA, marks=slow),
        pytest.param("flux2", "diffusers", LORA, marks=slow),
        pytest.param("flux2", "merged", {}, marks=slow),
    ],
    indirect=["name"],
)
def test_exports_give_the_runs_pictures_elsewhere(name, format, more, family, settings, tmp_path):
    found = verify(write_export(trained(family, settings, **more), format, tmp_path / "export"), num_images=1, steps=2)
    assert found.agrees, found


@slow
@pytest.mark.parametrize("name", ["sd3", "flux2", "z_image"])
def test_every_method_prior_and_cache_resumes_bit_for_bit_and_is_verified(name, tmp_path):
    """As benchmarks/families.py measures it."""
    file = Path(__file__).parents[1] / "benchmarks/families.py"
    spec = importlib.util.spec_from_file_location("families", file)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    rows = benchmark.measured(name, tmp_path)
    assert len(rows) == 24
    assert [row for row in rows if not (row["resumed_bit_for_bit"] and row["verified"])] == []


# --- what one of them has alone ---------------------------------------------------------------------------------------


def test_other_training_times_are_trained_on_and_refused_of_a_schedule(z_image_model, settings):
    usual = LORA | {"max_train_steps": 1, "training_times": "mode:-0.8", "time_shift": 1.0}
    losses = set()
    for changes in (usual, usual | {"training_times": None, "time_shift": None}):
        run = train(settings(str(len(losses)), model=str(z_image_model), **changes), progress=False).folder
        losses.add((run / "metrics.jsonl").read_text().splitlines()[0])
    assert len(losses) == 2
    with pytest.raises(ValueError, match="for flow models"):
        train(settings(**usual), progress=False)


def test_what_is_distilled_is_known_by_its_index_or_its_name_and_trained_with_a_warning(
    flux2_model, z_image_model, settings, tmp_path, caplog
):
    folder = shutil.copytree(flux2_model, tmp_path / "model")
    assert not inspect_model(str(folder)).distilled
    change(folder / "model_index.json", is_distilled=True)
    assert inspect_model(str(folder)).distilled
    turbo = shutil.copytree(z_image_model, tmp_path / "Z-Image-Turbo")
    assert inspect_model(str(turbo)).distilled
    assert not inspect_model(str(z_image_model)).distilled
    train(settings(model=str(turbo), **LORA | {"max_train_steps": 1}), progress=False)
    assert "distilled to draw in few steps" in caplog.text


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("flux2_model", {"guidance_embeds": True}, "not told its guidance"),
        ("z_image_model", {"siglip_feat_dim": 1152}, "sees no pictures"),
    ],
)
def test_a_model_for_something_else_is_refused(model, changes, said, request, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(model), tmp_path / "model")
    change(folder / "transformer/config.json", **changes)
    with pytest.raises(ValueError, match=said):
        inspect_model(str(folder))


def change(file: Path, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_language_model_is_not_trained(flux2_model, settings):
    with pytest.raises(ValueError, match=r"text encoders of FLUX.2 klein are not trained"):
        train(settings(model=str(flux2_model), train_text_encoder=True), progress=False)
