"""SD3 beyond what `test_flow_families.py` has of all: words without T5, `where`, a base in bf16, resuming, exports."""

from __future__ import annotations

import copy
import json
import os

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from conftest import build_sd3
from fewbayes.export import write_export
from fewbayes.export.verify import verify
from fewbayes.models import inspect_model, load_family
from fewbayes.models.sampling import sample_images
from fewbayes.posterior.where import Rule, select
from fewbayes.training import memory
from fewbayes.training.train import train
from fewbayes.world.pipelines import PIPELINES

PROMPTS = ["a photo of a <v> dog", "a photo"]
SLOW = "FEWBAYES_SLOW" in os.environ
# 2026-11: diffusers 0.42 turns tensors into arrays in a way that numpy 2 will forbid
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def family(sd3_model):
    return load_family(str(sd3_model))


@pytest.fixture(scope="module")
def without_t5(sd3_without_t5_model):
    return load_family(str(sd3_without_t5_model))


@torch.no_grad()
def test_one_word_of_zeros_stands_for_the_256_that_the_pipeline_reads_without_t5(without_t5):
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(without_t5.card.folder, **absent)
    pipeline.set_progress_bar_config(disable=True)

    def seed():
        return torch.Generator().manual_seed(0)

    def drawn():
        cond, negative = without_t5.encode_prompts(PROMPTS[:1]), without_t5.encode_negative("")
        how = {"sampler": "euler", "steps": 3, "guidance": 7.0, "resolution": None}
        return without_t5.draw_latents(cond, negative, [seed()], **how)

    how = {"num_inference_steps": 3, "guidance_scale": 7.0, "output_type": "latent"}
    theirs = pipeline(PROMPTS[:1], generator=[seed()], **how).images
    assert without_t5.encode_prompts(PROMPTS)["tokens"].shape[1] == 16 + 1
    torch.testing.assert_close(drawn(), theirs, rtol=1e-4, atol=1e-5)
    raised = {it.raised: it for it in without_t5.denoiser.attn_processors.values()}
    for processor in raised.values():
        processor.raised = 0.0
    try:
        assert (drawn() - theirs).abs().max() > 1e-3
    finally:
        for value, processor in raised.items():
            processor.raised = value


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
