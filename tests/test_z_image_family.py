"""Z-Image: one batch's loss is the diffusers script's, samples are the pipeline's own, exports load elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

from fewbayes.diffusion.objective import Batch, diffusion_loss
from fewbayes.diffusion.process import Flow
from fewbayes.export import write_export
from fewbayes.export.verify import verify
from fewbayes.models import inspect_model, load_family
from fewbayes.models.sampling import sample_images
from fewbayes.training.train import train

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
PROMPTS = ["a photo of a <v> dog that sits on the roof of a house", "a photo"]  # of 3 and 1 times 32 tokens
slow = pytest.mark.skipif("FEWBAYES_SLOW" not in os.environ, reason="minutes; set FEWBAYES_SLOW=1")


@pytest.fixture(scope="module")
def family(z_image_model):
    return load_family(str(z_image_model))


@pytest.fixture(scope="module")
def plain(z_image_model):
    pipeline = ZImagePipeline.from_pretrained(z_image_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def batch(family):
    """At times of the scheduler's own table."""
    mean, _ = family.encode_images(PICTURES)
    t = FlowMatchEulerDiscreteScheduler(shift=6.0).sigmas[[100, 900]]
    eps = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    return Batch(mean, eps, t, family.encode_prompts(PROMPTS))


def loss_of_the_script(pipeline, b):
    """examples/dreambooth/train_dreambooth_lora_z_image.py, from the pictures to the loss."""
    vae, scheduler = pipeline.vae, pipeline.scheduler
    pixels = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 127.5 - 1
    x0 = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    timesteps = scheduler.timesteps[[100, 900]]
    sigmas = torch.stack([scheduler.sigmas[scheduler.timesteps == t] for t in timesteps]).view(-1, 1, 1, 1)
    words, _ = pipeline.encode_prompt([*PROMPTS], do_classifier_free_guidance=False)
    noisy = ((1.0 - sigmas) * x0 + sigmas * b.eps).unsqueeze(2)
    predicted = pipeline.transformer(list(noisy.unbind(dim=0)), (1000 - timesteps) / 1000, words, return_dict=False)[0]
    predicted = -torch.stack(predicted, dim=0).squeeze(2)
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

    right, words = family.predict, family.encode_prompts

    def padded(prompts):
        cond = words(prompts)
        return type(cond)(tokens=cond["tokens"], mask=torch.ones_like(cond["mask"]))

    mutations = {
        "sign": (family, "process", Backwards()),
        "direction of time": (family, "predict", lambda xt, t, cond: right(xt, 1 - t, cond)),
        "unit of time": (family, "predict", lambda xt, t, cond: right(xt, 1000 * t, cond)),
        "padding": (family, "encode_prompts", padded),
        "layer": ("fewbayes.models.z_image.LAYER", -1),
        "shift": (type(family), "_latent_shift", 0.0),
        "scale": (type(family), "_latent_scale", 1.0),
    }
    for name, mutation in mutations.items():
        with monkeypatch.context() as patch:
            patch.setattr(*mutation)
            assert abs(diffusion_loss(family, batch(family)) - theirs) > 1e-5, name


def test_training_draws_its_times_evenly_from_the_schedulers_shifted_table(family):
    drawn = family.process.draw_times(4000, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) <= set(FlowMatchEulerDiscreteScheduler(shift=6.0).sigmas.tolist())
    assert float(drawn.median()) == pytest.approx(6 / 7, abs=0.02)


def test_other_training_times_are_trained_on_and_refused_of_a_schedule(z_image_model, settings):
    usual = {"method": "lora", "rank": 2, "max_train_steps": 1, "training_times": "mode:-0.8", "time_shift": 1.0}
    losses = set()
    for changes in (usual, usual | {"training_times": None, "time_shift": None}):
        run = train(settings(str(len(losses)), model=str(z_image_model), **changes), progress=False).folder
        losses.add((run / "metrics.jsonl").read_text().splitlines()[0])
    assert len(losses) == 2
    with pytest.raises(ValueError, match="for flow models"):
        train(settings(**usual), progress=False)


@torch.no_grad()
@pytest.mark.parametrize(("ours", "theirs"), [(5.0, 4.0), (1.0, 0.0)])
def test_samples_are_the_pipelines_own_whose_guidance_is_ours_less_one(ours, theirs, family, plain):
    how = {"num_inference_steps": 3, "guidance_scale": theirs, "height": 32, "width": 32}
    picture = plain(prompt=PROMPTS[0], generator=torch.Generator().manual_seed(3), **how).images[0]
    (mine,) = sample_images(family, PROMPTS[:1], [3], steps=3, guidance=ours)
    assert np.array_equal(np.asarray(mine), np.asarray(picture))


@torch.no_grad()
def test_latents_in_and_out_are_the_autoencoders_own(family, plain):
    mean, _ = family.encode_images(PICTURES)
    raw = plain.vae.encode(torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
    torch.testing.assert_close(family._unscaled(mean), raw, rtol=1e-5, atol=1e-5)
    decoded = plain.image_processor.postprocess(plain.vae.decode(raw).sample, "np")
    assert np.abs(family.decode_latents(mean) - decoded * 255).max() < 0.51


def test_a_turbo_model_is_known_by_its_name_and_trained_with_a_warning(z_image_model, settings, tmp_path, caplog):
    turbo = shutil.copytree(z_image_model, tmp_path / "Z-Image-Turbo")
    assert inspect_model(str(turbo)).distilled
    assert not inspect_model(str(z_image_model)).distilled
    train(settings(model=str(turbo), method="lora", rank=2, max_train_steps=1), progress=False)
    assert "distilled to draw in few steps" in caplog.text


def test_what_sees_pictures_is_refused(z_image_model, tmp_path):
    omni = shutil.copytree(z_image_model, tmp_path / "model")
    config = omni / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"siglip_feat_dim": 1152}))
    with pytest.raises(ValueError, match="sees no pictures"):
        inspect_model(str(omni))


@pytest.mark.parametrize(
    ("format", "more"),
    [
        ("diffusers", {"method": "lora", "rank": 2}),
        pytest.param("peft", {"method": "oft", "oft_blocks": 2, "bayes": True, "weight_std": 0.01}, marks=slow),
        pytest.param("merged", {}, marks=slow),
    ],
)
def test_its_exports_give_the_runs_pictures_elsewhere(format, more, family, settings, tmp_path):
    usual = {"model": str(family.card.folder), "max_train_steps": 2, "learning_rate": 0.03}
    run = train(settings(**usual | more), family=family, progress=False).folder
    found = verify(write_export(run, format, tmp_path / "export"), num_images=1, steps=2)
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
