"""SD3: one batch's loss is the diffusers script's, samples are the pipeline's bit for bit, exports load elsewhere."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from safetensors.torch import load_file

from conftest import build_sd3
from fewbayes.diffusion.objective import Batch, diffusion_loss
from fewbayes.diffusion.process import Flow
from fewbayes.export import write_export
from fewbayes.export.verify import verify
from fewbayes.models import inspect_model, load_family
from fewbayes.models.sampling import sample_images
from fewbayes.posterior.where import Rule, select
from fewbayes.training import memory
from fewbayes.training.train import train
from fewbayes.world.pipelines import PIPELINES

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
PROMPTS = ["a photo of a <v> dog", "a photo"]
SLOW = "FEWBAYES_SLOW" in os.environ
# 2026-11: diffusers 0.42 turns tensors into arrays in a way that numpy 2 will forbid
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def family(sd3_model):
    return load_family(str(sd3_model))


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory):
    return load_family(str(build_sd3(tmp_path_factory.mktemp("sd3") / "model", t5=False)))


def plain(family):
    absent = {} if "text_encoder_3" in family.modules else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(family.card.folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def batch(family):
    """At times of the scheduler's own table."""
    mean, _ = family.encode_images(PICTURES)
    t = FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas[[100, 700]]
    eps = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    return Batch(mean, eps, t, family.encode_prompts(PROMPTS))


def loss_of_the_script(pipeline, b):
    """examples/dreambooth/train_dreambooth_lora_sd3.py, from the pictures to the loss."""
    pixels = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 127.5 - 1
    vae, scheduler = pipeline.vae, pipeline.scheduler
    x0 = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    timesteps = scheduler.timesteps[[100, 700]]
    sigmas = torch.stack([scheduler.sigmas[scheduler.timesteps == t] for t in timesteps]).view(-1, 1, 1, 1)
    tokens, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    noisy = (1.0 - sigmas) * x0 + sigmas * b.eps
    predicted = pipeline.transformer(
        hidden_states=noisy, timestep=timesteps, encoder_hidden_states=tokens, pooled_projections=pooled
    ).sample
    return ((predicted - (b.eps - x0)) ** 2).reshape(2, -1).mean(1).mean()


@torch.no_grad()
@pytest.mark.parametrize("which", ["family", "without_t5"])
def test_the_loss_of_a_batch_is_that_of_the_diffusers_script(which, request):
    family = request.getfixturevalue(which)
    b = batch(family)
    torch.testing.assert_close(diffusion_loss(family, b), loss_of_the_script(plain(family), b), rtol=1e-5, atol=1e-5)


class Backwards(Flow):
    def answer(self, t, dtype=torch.float32):
        c, d = super().answer(t, dtype)
        return -c, -d


@torch.no_grad()
@pytest.mark.parametrize("mutation", ["sign", "time", "shift", "scale", "words"])
def test_a_wrong_sign_time_shift_or_scale_is_not_the_script(mutation, family, monkeypatch):
    theirs = loss_of_the_script(plain(family), batch(family))
    if mutation == "sign":
        monkeypatch.setattr(family, "process", Backwards())
    elif mutation == "time":
        right = family.predict
        monkeypatch.setattr(family, "predict", lambda xt, t, cond: right(xt, t / 1000, cond))
    elif mutation == "words":
        right = family.encode_prompts
        monkeypatch.setattr(family, "encode_prompts", lambda prompts: right(prompts[::-1]))
    else:
        monkeypatch.setattr(type(family), f"_latent_{mutation}", 1.0)
    assert abs(diffusion_loss(family, batch(family)) - theirs) > 1e-4


def test_training_draws_the_times_of_the_schedulers_shifted_table(family):
    drawn = family.process.draw_times(4000, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) <= set(FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas.tolist())
    assert float(drawn.median()) == pytest.approx(0.75, abs=0.02)


def drawn(family, prompts, guidance):
    """Latents; prompts are encoded one by one, as a text encoder rounds otherwise in another batch."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    cond, negative = family.encode_prompts(prompts), family.encode_negative("").rows([0] * len(prompts))
    how = {"sampler": "euler", "steps": 3, "guidance": guidance, "resolution": None}
    return family.draw_latents(cond, negative, generators, **how)


def drawn_by_the_pipeline(pipeline, prompts, guidance):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    how = {"num_inference_steps": 3, "guidance_scale": guidance, "output_type": "latent"}
    return pipeline(prompts, generator=generators, **how).images


@torch.no_grad()
@pytest.mark.parametrize(("prompts", "guidance"), [(PROMPTS, 1.0), (PROMPTS[:1], 5.0)])
def test_samples_are_the_pipelines_own_bit_for_bit(prompts, guidance, family):
    assert torch.equal(drawn(family, prompts, guidance), drawn_by_the_pipeline(plain(family), prompts, guidance))


@torch.no_grad()
def test_one_word_of_zeros_stands_for_the_256_that_the_pipeline_reads_without_t5(without_t5):
    theirs = drawn_by_the_pipeline(plain(without_t5), PROMPTS[:1], 7.0)
    assert without_t5.encode_prompts(PROMPTS)["tokens"].shape[1] == 16 + 1
    torch.testing.assert_close(drawn(without_t5, PROMPTS[:1], 7.0), theirs, rtol=1e-4, atol=1e-5)
    raised = {it.raised: it for it in without_t5.denoiser.attn_processors.values()}
    for processor in raised.values():
        processor.raised = 0.0
    try:
        assert (drawn(without_t5, PROMPTS[:1], 7.0) - theirs).abs().max() > 1e-3
    finally:
        for value, processor in raised.items():
            processor.raised = value


@torch.no_grad()
def test_latents_in_and_out_are_the_autoencoders_own(family):
    pipeline = plain(family)
    pixels = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 127.5 - 1
    raw = pipeline.vae.encode(pixels).latent_dist
    mean, std = family.encode_images(PICTURES)
    torch.testing.assert_close(mean, (raw.mean - 0.0609) * 1.5305)
    torch.testing.assert_close(std, raw.std * 1.5305)
    decoded = pipeline.image_processor.postprocess(pipeline.vae.decode(mean / 1.5305 + 0.0609).sample, "np")
    assert np.array_equal(family.decode_latents(mean), (decoded * 255).round().astype(np.uint8))


def test_where_means_what_it_means_on_a_unet(family):
    family.denoiser.requires_grad_(True)
    try:
        chosen = {
            name: {it.name for it in select(family.denoiser, Rule(name, family.layer_groups))}
            for name in ("linear", "linear-no-time", "linear-cross", "norm")
        }
    finally:
        family.denoiser.requires_grad_(False)
    words = ("add_", "_context", "context_", "norm_added")
    assert not [name for name in chosen["linear"] if any(word in name for word in words)]
    assert {
        "transformer_blocks.1.attn.to_q.weight",
        "transformer_blocks.0.attn2.to_out.0.weight",
        "transformer_blocks.1.ff.net.2.weight",
        "proj_out.weight",
    } <= chosen["linear-no-time"]
    gone = chosen["linear"] - chosen["linear-no-time"]
    assert {name.split(".")[-2] for name in gone if "norm" in name} == {"linear"}
    assert any("time_text_embed" in name for name in gone)
    assert chosen["linear"] < chosen["linear-cross"]
    assert all(".norm_" in name for name in chosen["norm"])


def test_of_two_models_that_do_not_belong_together_or_a_side_that_cannot_be_drawn_is_refused(family, tmp_path):
    with pytest.raises(ValueError, match="multiple of 8"):
        sample_images(family, PROMPTS[:1], [0], steps=1, resolution=36)
    folder = build_sd3(tmp_path / "model", t5=False)
    assert inspect_model(str(folder)).prediction_type == "flow"
    file = folder / "transformer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"in_channels": 4}))
    with pytest.raises(ValueError, match="4 channels"):
        inspect_model(str(folder))


def test_the_embedded_flow_model_is_one_name_away(without_t5, monkeypatch):
    monkeypatch.setitem(PIPELINES, "tiny-flow", without_t5.card.folder)
    card = inspect_model("tiny-flow")
    assert (card.family, card.prediction_type, card.rare_token) == ("sd3", "flow", "<v>")
    assert len(sample_images(load_family(card), PROMPTS[:1], [0], steps=1)) == 1


RUNS = {
    "lora": {"method": "lora", "rank": 2, "learning_rate": 0.03},
    "lora-words-bayes": {"method": "lora", "rank": 2, "train_text_encoder": True, "bayes": True, "weight_std": 0.01},
    "oft-bayes": {"method": "oft", "oft_blocks": 2, "bayes": True, "weight_std": 0.01},
    "full-prior": {"with_prior_preservation": True, "class_prompt": "a photo of dog", "num_class_images": 2},
    "full-bayes": {"bayes": True, "weight_std": 0.01, "cache_latents": False},
}


@pytest.mark.parametrize("kind", RUNS if SLOW else ["lora-words-bayes"])
def test_it_trains_and_resumes_bit_for_bit(kind, family, settings, tmp_path):
    changes = RUNS[kind] | ({"class_data_dir": str(tmp_path / "class")} if kind == "full-prior" else {})
    usual = {"model": str(family.card.folder), "checkpointing_steps": 2, **changes}
    before = copy.deepcopy(family.denoiser.state_dict())
    whole = train(settings("whole", max_train_steps=4, **usual), family=family, progress=False).folder
    train(settings("resumed", max_train_steps=2, **usual), family=family, progress=False)
    resumed = train(settings("resumed", max_train_steps=4, **usual), family=family, progress=False)
    assert resumed.resumed_from == 2
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors") if "checkpoint" not in str(path))
    assert files
    for file in files:
        one, other = load_file(whole / file), load_file(resumed.folder / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), file
    assert all(torch.equal(weight, before[name]) for name, weight in family.denoiser.state_dict().items())


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("without_t5", {"method": "lora", "rank": 2}),
        ("family", {"method": "oft", "oft_blocks": 2}),
        ("eps", {"method": "lora"}),
    ],
)
def test_a_base_in_bf16_is_half_as_large_and_trains_nearly_the_same(model, method, request, settings, eps_model):
    folder = eps_model if model == "eps" else request.getfixturevalue(model).card.folder
    usual = {"model": str(folder), "max_train_steps": 2, "bayes": True, "weight_std": 0.01, **method}
    held, losses = {}, {}
    for precision in ("fp32", "bf16"):
        config = settings(precision, base_precision=precision, monitor_steps=2, validation_steps=2, **usual)
        held[precision] = memory.estimate(inspect_model(str(folder)), config.resolve({}, 32, 3)).parts["model"]
        run = train(config, progress=False).folder
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses[precision] = [row["value"] for row in rows if row["metric"] == "loss"]
        assert (run / "stages.jsonl").is_file()
        result = [path for path in run.rglob("*.safetensors") if "checkpoint" not in str(path)]
        assert {weight.dtype for file in result for weight in load_file(file).values()} == {torch.float32}
    autoencoder = sum(4 * weight.numel() for weight in load_family(str(folder)).modules["vae"].parameters())
    assert held["bf16"] - autoencoder < 0.55 * (held["fp32"] - autoencoder)
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_a_base_in_bf16_is_refused_where_it_is_trained_or_somebody_elses(without_t5, settings):
    of_sd3 = {"model": str(without_t5.card.folder), "base_precision": "bf16"}
    with pytest.raises(ValueError, match="which trains the base"):
        settings(**of_sd3)
    with pytest.raises(ValueError, match="given model is in fp32"):
        train(settings(method="lora", rank=2, **of_sd3), family=without_t5, progress=False)


@pytest.mark.parametrize("kind", ["lora", "words", "merged"] if SLOW else ["lora"])
def test_its_exports_give_the_runs_pictures_in_diffusers_and_peft(kind, family, without_t5, settings, tmp_path):
    its, format, more = {
        "lora": (without_t5, "diffusers", RUNS["lora"]),
        "words": (family, "peft", RUNS["lora"] | {"train_text_encoder": True}),
        "merged": (without_t5, "merged", {"learning_rate": 1e-2}),
    }[kind]
    usual = {"model": str(its.card.folder), "max_train_steps": 2}
    run = train(settings(**usual | more), family=its, progress=False).folder
    exported = write_export(run, format, tmp_path / "export")
    found = verify(exported, num_images=1, steps=2)
    assert found.agrees, found
    if its is without_t5:
        assert "text_encoder_3=None" in (exported / "README.md").read_text()
