"""OFT: rotations at the start, after training and under every draw of the weights, in PEFT's own format."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CLIPTextModel

from adapted import PROMPTS, XT, T, attaching, prediction
from adapted import trained as moved
from fewbayes.methods import make_method
from fewbayes.methods.adapters import adapter_layers
from fewbayes.posterior.gaussian import GaussianPosterior


@pytest.fixture
def attached(family, settings):
    with attaching("oft", family, settings) as attach:
        yield attach


def trained(method, family, seed=1):
    """Far beyond where a truncated series is orthogonal."""
    moved(method, family, seed, by=1.0)


def rotations(family):
    return [layer.get_delta_weight("default").detach() for layer in adapter_layers(family.denoiser).values()]


def assert_orthogonal(matrices):
    for matrix in matrices:
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_at_the_start_it_is_the_base_model_bit_for_bit(family, attached, train_text_encoder):
    before = prediction(family)
    attached(train_text_encoder=train_text_encoder)
    assert torch.equal(prediction(family), before)


@pytest.mark.parametrize("weight_std", [0.01, 0.1, 1.0])
def test_every_sampled_rotation_is_orthogonal(family, attached, weight_std):
    method = attached(bayes=True)
    trained(method, family)
    module, where = method.random(family)
    posterior = GaussianPosterior(module, where=where, weight_std=weight_std)
    means = rotations(family)
    for step in range(3):
        with posterior.sample(step):
            drawn = rotations(family)
            assert_orthogonal(drawn)
            assert not any(torch.equal(*pair) for pair in zip(drawn, means, strict=True))


def test_a_draw_from_the_start_is_a_rotation_too(family, attached):
    module, where = attached(bayes=True).random(family)
    with GaussianPosterior(module, where=where, weight_std=0.05).sample(0):
        assert_orthogonal(rotations(family))


def test_only_the_rotations_of_the_denoiser_are_random(family, attached):
    module, where = attached(bayes=True, train_text_encoder=True).random(family)
    posterior = GaussianPosterior(module, where=where)
    assert module is family.denoiser
    assert set(posterior.names) == {f"{name}.oft_R.default.weight" for name in adapter_layers(family.denoiser)}


def test_lengths_and_angles_of_the_weights_rows_are_kept(family, attached):
    trained(attached(), family)
    for layer, rotation in zip(adapter_layers(family.denoiser).values(), rotations(family), strict=True):
        weight = layer.get_base_layer().weight.detach()
        rotated = weight @ rotation.T
        assert not torch.allclose(rotated, weight, atol=1e-2)
        torch.testing.assert_close(rotated @ rotated.T, weight @ weight.T, atol=1e-5, rtol=1e-4)


def test_the_rotated_weight_is_what_the_layer_computes_with(family, attached):
    trained(attached(), family)
    layer = next(iter(adapter_layers(family.denoiser).values()))
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    weight = layer.get_base_layer().weight @ layer.get_delta_weight("default").T
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, weight), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [({}, lambda d: 4), ({"oft_blocks": 2}, lambda d: 2), ({"oft_block_size": 8}, lambda d: d // 8)],
)
def test_each_layer_has_the_asked_blocks(family, attached, changes, blocks):
    attached(**changes)
    for layer in adapter_layers(family.denoiser).values():
        number = blocks(layer.in_features)
        side = layer.in_features // number
        assert tuple(layer.oft_R["default"].weight.shape) == (number, side * (side - 1) // 2)


def test_blocks_that_do_not_divide_a_layer_are_refused_and_leave_the_model_alone(family, settings):
    before = {name: type(module) for name, module in family.denoiser.named_modules()}
    with pytest.raises(ValueError, match=r"oft_blocks is 3.*16 inputs.*1, 2, 4, 8, 16 would do"):
        make_method(settings(method="oft", oft_blocks=3)).attach(family)
    with pytest.raises(ValueError, match="oft_block_size is 5"):
        make_method(settings(method="oft", oft_block_size=5)).attach(family)
    assert {name: type(module) for name, module in family.denoiser.named_modules()} == before


def test_plain_peft_loads_the_folder_and_predicts_the_same(family, attached, eps_model, tmp_path):
    method = attached()
    trained(method, family)
    method.export(family, tmp_path)
    plain = UNet2DConditionModel.from_pretrained(eps_model, subfolder="unet")
    plain = PeftModel.from_pretrained(plain, tmp_path / "unet").eval()
    with torch.no_grad():
        theirs = plain(XT, T, encoder_hidden_states=family.encode_prompts(PROMPTS)["tokens"]).sample
    torch.testing.assert_close(theirs, prediction(family), atol=1e-6, rtol=1e-5)
    assert json.loads((tmp_path / "unet/adapter_config.json").read_text())["use_cayley_neumann"] is False


# 2026-11: peft 0.21 asks transformers 5 for a name that it will drop
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_text_encoders_get_a_folder_of_their_own(family, attached, eps_model, tmp_path):
    method = attached(train_text_encoder=True)
    trained(method, family)
    method.export(family, tmp_path)
    plain = PeftModel.from_pretrained(
        CLIPTextModel.from_pretrained(eps_model, subfolder="text_encoder"), tmp_path / "text_encoder"
    ).eval()
    ids = family.tokenizers["tokenizer"](PROMPTS, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        ours = family.encode_prompts(PROMPTS)["tokens"]
        torch.testing.assert_close(plain(input_ids=ids)[0], ours, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_what_was_exported_is_read_back(family, attached, tmp_path, train_text_encoder):
    method = attached(train_text_encoder=train_text_encoder)
    trained(method, family)
    method.export(family, tmp_path)
    asked = prediction(family)
    trained(method, family, seed=2)
    assert not torch.equal(prediction(family), asked)
    method.load(family, tmp_path)
    assert torch.equal(prediction(family), asked)


def test_a_bayesian_export_has_not_one_number_more(family, attached, tmp_path):
    sizes = []
    for bayes in (False, True):
        method = attached(bayes=bayes)
        if bayes:
            module, where = method.random(family)
            with GaussianPosterior(module, where=where).sample(0):
                prediction(family)
        method.export(family, tmp_path / str(bayes))
        file = load_file(tmp_path / str(bayes) / "unet/adapter_model.safetensors")
        sizes.append({name: tensor.shape for name, tensor in file.items()})
        method.detach(family)
    assert sizes[0] == sizes[1]


def test_rotations_stay_exact_under_autocast(family, attached):
    """The transform is solved in float32 whatever the network computes in."""
    trained(attached(), family)
    exact = rotations(family)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(*pair) for pair in zip(rotations(family), exact, strict=True))
