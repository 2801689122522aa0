"""FLUX.2 klein: one batch's loss is the diffusers script's, samples are the pipeline's own, exports load elsewhere."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

from fewbayes.diffusion.objective import Batch, diffusion_loss
from fewbayes.diffusion.process import Flow
from fewbayes.export import write_export
from fewbayes.export.verify import verify
from fewbayes.models import flux2, inspect_model, load_family
from fewbayes.models.sampling import sample_images
from fewbayes.training.train import train

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
PROMPTS = ["a photo of a <v> dog", "a photo"]
# 2026-11: diffusers 0.42 turns tensors into arrays in a way that numpy 2 will forbid
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
slow = pytest.mark.skipif("FEWBAYES_SLOW" not in os.environ, reason="minutes; set FEWBAYES_SLOW=1")


@pytest.fixture(scope="module")
def family(flux2_model):
    return load_family(str(flux2_model))


@pytest.fixture(scope="module")
def plain(flux2_model):
    pipeline = Flux2KleinPipeline.from_pretrained(flux2_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def batch(family):
    """At times of the scheduler's own table."""
    mean, _ = family.encode_images(PICTURES)
    t = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).sigmas[[100, 700]]
    eps = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    return Batch(mean, eps, t, family.encode_prompts(PROMPTS))


def loss_of_the_script(pipeline, b):
    """examples/dreambooth/train_dreambooth_lora_flux2_klein.py, from the pictures to the loss."""
    vae, scheduler = pipeline.vae, pipeline.scheduler
    bn_std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    pixels = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 127.5 - 1
    x0 = Flux2KleinPipeline._patchify_latents(vae.encode(pixels).latent_dist.mode())
    x0 = (x0 - vae.bn.running_mean.view(1, -1, 1, 1)) / bn_std
    ids = Flux2KleinPipeline._prepare_latent_ids(x0)
    timesteps = scheduler.timesteps[[100, 700]]
    sigmas = torch.stack([scheduler.sigmas[scheduler.timesteps == t] for t in timesteps]).view(-1, 1, 1, 1)
    tokens, text_ids = pipeline.encode_prompt(PROMPTS)
    predicted = pipeline.transformer(
        hidden_states=Flux2KleinPipeline._pack_latents((1.0 - sigmas) * x0 + sigmas * b.eps),
        timestep=timesteps / 1000,
        guidance=None,
        encoder_hidden_states=tokens,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0]
    predicted = Flux2KleinPipeline._unpack_latents_with_ids(predicted, ids)
    return ((predicted - (b.eps - x0)) ** 2).reshape(2, -1).mean(1).mean()


@torch.no_grad()
def test_the_loss_of_a_batch_is_that_of_the_diffusers_script_and_no_other(family, plain, monkeypatch):
    b = batch(family)
    theirs = loss_of_the_script(plain, b)
    torch.testing.assert_close(diffusion_loss(family, b), theirs, rtol=1e-5, atol=1e-5)

    class Backwards(Flow):
        def answer(self, t, dtype=torch.float32):
            c, d = super().answer(t, dtype)
            return -c, -d

    right = family.predict
    mutations = {
        "sign": lambda patch: patch.setattr(family, "process", Backwards()),
        "time": lambda patch: patch.setattr(family, "predict", lambda xt, t, cond: right(xt, 1000 * t, cond)),
        "whitening": lambda patch: patch.setattr(flux2.Flux2Klein, "_whitening", lambda self: (0.0, 1.0)),
        "places": lambda patch: patch.setattr(
            "fewbayes.models.flux2._places", lambda h, w, n: torch.zeros(h * w * n, 4)
        ),
        "patches": lambda patch: patch.setattr(
            flux2,
            "_patched",
            lambda x: x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3),
        ),
    }
    for name, mutate in mutations.items():
        with monkeypatch.context() as patch:
            mutate(patch)
            assert abs(diffusion_loss(family, batch(family)) - theirs) > 1e-5, name


def test_training_draws_its_times_evenly_and_unshifted(family):
    drawn = family.process.draw_times(4000, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) <= set(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).sigmas.tolist())
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.02)


@torch.no_grad()
def test_samples_and_latents_are_the_pipelines_own(family, plain):
    how = {"num_inference_steps": 3, "guidance_scale": 4.0, "height": 32, "width": 32}
    theirs = plain(prompt=PROMPTS[0], generator=torch.Generator().manual_seed(3), **how).images[0]
    (ours,) = sample_images(family, PROMPTS[:1], [3], steps=3, guidance=4.0)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    mean, _ = family.encode_images(PICTURES)
    raw = plain.vae.encode(torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
    torch.testing.assert_close(family._unscaled(mean), raw, rtol=1e-5, atol=1e-5)
    decoded = plain.image_processor.postprocess(plain.vae.decode(raw).sample, "np")
    assert np.abs(family.decode_latents(mean) - decoded * 255).max() < 0.51


def test_what_is_distilled_is_said_and_what_is_no_klein_refused(flux2_model, tmp_path):
    import shutil

    folder = shutil.copytree(flux2_model, tmp_path / "model")

    def change(name, **changes):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    assert not inspect_model(str(folder)).distilled
    change("model_index.json", is_distilled=True)
    assert inspect_model(str(folder)).distilled
    change("transformer/config.json", guidance_embeds=True)
    with pytest.raises(ValueError, match="not told its guidance"):
        inspect_model(str(folder))


def test_the_language_model_is_not_trained(family, settings):
    with pytest.raises(ValueError, match=r"text encoders of FLUX.2 klein are not trained"):
        train(settings(model=str(family.card.folder), train_text_encoder=True), family=family, progress=False)


@slow
@pytest.mark.parametrize(("format", "more"), [("diffusers", {"method": "lora", "rank": 2}), ("merged", {})])
def test_its_exports_give_the_runs_pictures_in_diffusers(format, more, family, settings, tmp_path):
    usual = {"model": str(family.card.folder), "max_train_steps": 2, "learning_rate": 0.03}
    run = train(settings(**usual | more), family=family, progress=False).folder
    found = verify(write_export(run, format, tmp_path / "export"), num_images=1, steps=2)
    assert found.agrees, found
