"""LoRA: the base model at the start, the strength that was asked for, and files that plain diffusers loads."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from adapted import PROMPTS, XT, T, attaching, prediction, trained
from fewbayes.methods import make_method
from fewbayes.methods.adapters import adapter_layers
from fewbayes.methods.lora import RESULT
from fewbayes.posterior.gaussian import GaussianPosterior


@pytest.fixture
def attached(family, settings):
    with attaching("lora", family, settings) as attach:
        yield attach


KINDS = [{}, {"lora_alpha": 1.0}, {"use_dora": True, "lora_alpha": 8.0}, {"use_rslora": True, "lora_alpha": 3.0}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_at_the_start_it_is_the_base_model_bit_for_bit(family, attached, kind, train_text_encoder):
    before = prediction(family)
    attached(**kind, train_text_encoder=train_text_encoder)
    assert torch.equal(prediction(family), before)


def test_self_and_cross_attention_are_adapted_everywhere(family, attached):
    attached()
    layers = adapter_layers(family.denoiser)
    attention = {name for name, _ in family.denoiser.named_modules() if name.endswith((".attn1", ".attn2"))}
    assert set(layers) == {f"{name}.{end}" for name in attention for end in ("to_q", "to_k", "to_v", "to_out.0")}


def test_the_update_has_the_asked_rank(family, attached):
    method = attached(rank=2)
    trained(method, family)
    for layer in adapter_layers(family.denoiser).values():
        assert torch.linalg.matrix_rank(layer.get_delta_weight("default"), atol=1e-6) == 2


def test_alpha_of_twice_the_rank_doubles_the_update(family, attached):
    deltas = []
    for alpha in (None, 8.0):
        method = attached(rank=4, lora_alpha=alpha)
        trained(method, family)
        deltas.append([layer.get_delta_weight("default") for layer in adapter_layers(family.denoiser).values()])
        method.detach(family)
    assert all(torch.equal(2 * one, two) for one, two in zip(*deltas, strict=True))


def test_merged_weights_predict_what_the_adapter_predicts(family, attached):
    trained(attached(), family)
    beside = prediction(family)
    layers = adapter_layers(family.denoiser).values()
    before = [layer.get_base_layer().weight.clone() for layer in layers]
    for layer in layers:
        layer.merge()
    merged = prediction(family)
    for layer, weight in zip(layers, before, strict=True):
        layer.merged_adapters.clear()
        layer.get_base_layer().weight.data = weight
    torch.testing.assert_close(merged, beside, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, {"adapter_targets": r"pattern:(attn2\.to_k|ff\.net\.2)", "lora_alpha": 3.0}])
def test_plain_diffusers_loads_the_file_and_predicts_the_same(family, attached, eps_model, tmp_path, kind):
    method = attached(rank=2, train_text_encoder=True, **kind)
    trained(method, family)
    method.export(family, tmp_path)
    plain = StableDiffusionPipeline.from_pretrained(eps_model)
    plain.load_lora_weights(tmp_path)
    with torch.no_grad():
        ids = plain.tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt").input_ids
        words = plain.text_encoder(ids)[0]
        theirs = plain.unet(XT, T, encoder_hidden_states=words).sample
    torch.testing.assert_close(words, family.encode_prompts(PROMPTS)["tokens"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(theirs, prediction(family), atol=1e-6, rtol=1e-5)


def test_the_file_says_rank_and_alpha_and_spells_text_encoders_as_everyone_does(family, attached, tmp_path):
    method = attached(rank=2, lora_alpha=6.0, train_text_encoder=True)
    method.export(family, tmp_path)
    with safe_open(tmp_path / RESULT, framework="pt") as file:
        header, names = json.loads(file.metadata()["lora_adapter_metadata"]), set(file.keys())
    assert (header["unet.r"], header["unet.lora_alpha"], header["text_encoder.lora_alpha"]) == (2, 6.0, 6.0)
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert {name.partition(".")[0] for name in names} == {"unet", "text_encoder"}


@pytest.mark.parametrize("train_text_encoder", [False, True])
@pytest.mark.parametrize("use_dora", [False, True])
def test_what_was_exported_is_read_back(family, attached, tmp_path, train_text_encoder, use_dora):
    method = attached(train_text_encoder=train_text_encoder, use_dora=use_dora)
    trained(method, family)
    method.export(family, tmp_path)
    asked = prediction(family)
    trained(method, family, seed=2)
    assert not torch.equal(prediction(family), asked)
    method.load(family, tmp_path)
    assert torch.equal(prediction(family), asked)


def test_a_file_of_another_rank_is_refused(family, attached, tmp_path):
    method = attached(rank=2)
    method.export(family, tmp_path)
    method.detach(family)
    with pytest.raises(ValueError, match="rank"):
        attached(rank=3).load(family, tmp_path)


def test_a_file_without_the_text_encoder_is_refused_where_it_is_trained(family, attached, tmp_path):
    method = attached()
    method.export(family, tmp_path)
    method.detach(family)
    with pytest.raises(ValueError, match="8 names differ"):
        attached(train_text_encoder=True).load(family, tmp_path)


def test_only_the_up_matrices_of_the_denoiser_are_random_and_their_prior_mean_is_zero(family, attached):
    method = attached(bayes=True, train_text_encoder=True)
    module, where = method.random(family)
    posterior = GaussianPosterior(module, where=where, weight_std=0.01)
    assert module is family.denoiser
    assert set(posterior.names) == {f"{name}.lora_B.default.weight" for name in adapter_layers(family.denoiser)}
    assert not any(mean.any() for name, mean in posterior.state_dict().items() if name.startswith("prior_mean."))


def test_a_bayesian_export_has_not_one_number_more(family, attached, tmp_path):
    """Not in the file, and not in the pipeline that loads it."""
    sizes = []
    for bayes in (False, True):
        method = attached(bayes=bayes)
        if bayes:
            module, where = method.random(family)
            with GaussianPosterior(module, where=where).sample(0):
                prediction(family)
        method.export(family, tmp_path / str(bayes))
        file = load_file(tmp_path / str(bayes) / RESULT)
        sizes.append({name: tensor.shape for name, tensor in file.items()})
        method.detach(family)
    assert sizes[0] == sizes[1]


def test_one_draw_of_the_weights_changes_the_prediction_and_only_inside(family, attached):
    method = attached(bayes=True)
    module, where = method.random(family)
    posterior = GaussianPosterior(module, where=where, weight_std=0.05)
    before = prediction(family)
    with posterior.sample(0):
        assert not torch.equal(prediction(family), before)
    assert torch.equal(prediction(family), before)


def test_dropout_acts_in_training_only(family, attached):
    method = attached(lora_dropout=0.5)
    trained(method, family)
    still = prediction(family)
    assert torch.equal(prediction(family), still)
    method.training(family, True)
    assert not torch.equal(prediction(family), still)
    method.training(family, False)
    assert torch.equal(prediction(family), still)


def test_targets_may_be_feed_forward_layers_or_a_pattern(family, attached):
    method = attached(adapter_targets="attention+ff")
    assert any(name.endswith("ff.net.2") for name in adapter_layers(family.denoiser))
    method.detach(family)
    attached(adapter_targets=r"pattern:attn2\.to_(k|v)$")
    layers = adapter_layers(family.denoiser)
    assert layers
    assert all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in layers)


@pytest.mark.parametrize(("targets", "named"), [("pattern:nothing", "matches none"), ("pattern:(", "regular")])
def test_targets_that_name_nothing_are_refused_and_leave_the_model_alone(family, settings, targets, named):
    before = {name: type(module) for name, module in family.denoiser.named_modules()}
    with pytest.raises(ValueError, match=named):
        make_method(settings(method="lora", adapter_targets=targets)).attach(family)
    assert {name: type(module) for name, module in family.denoiser.named_modules()} == before
