"""The contract that every family keeps, asked of Stable Diffusion in both predictions, XL, 3, FLUX.2, Z-Image, a toy.

A new family is done when it passes: add its small model to MODELS.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fewbayes
from fewbayes.diffusion.objective import Batch, diffusion_loss
from fewbayes.diffusion.process import level_of_step
from fewbayes.methods import make_method, registered
from fewbayes.models import inspect_model, load_family, meta_family, parameter_counts
from fewbayes.models.family import changeable, text_parts
from fewbayes.models.registry import families, register
from fewbayes.models.sampling import sample_images
from fewbayes.posterior.gaussian import GaussianPosterior
from fewbayes.posterior.where import PRESETS, Rule, select
from fewbayes.stage.probes import USUAL_STEPS, Prober, ProbeSettings
from fewbayes.training import memory
from toy_family import build_toy

MODELS = ("eps_model", "v_model", "sdxl_model", "sd3_model", "flux2_model", "z_image_model", "toy_model")
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
PROMPTS = ["a photo of a <v> dog", "a photo", "of a dog"]
# 2026-11: diffusers 0.42 turns tensors into arrays in a way that numpy 2 will forbid
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory):
    return build_toy(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def family(model):
    return load_family(model)


@torch.no_grad()
def a_prediction(family):
    return family.predict(*inputs(family))


def inputs(family, prompts=PROMPTS[:2]):
    xt = torch.randn(2, *family.encode_images(PICTURES)[0].shape[1:], generator=torch.Generator().manual_seed(0))
    t = family.process.times([family.process.time_of(level) for level in (0.3, 3.0)])
    return xt, t, family.encode_prompts(prompts)


def kept(family):
    """All weights, and the class of every module."""
    weights = {
        f"{part}.{name}": weight.detach().clone()
        for part, module in family.modules.items()
        for name, weight in module.state_dict().items()
    }
    kinds = [(part, name, type(it)) for part, module in family.modules.items() for name, it in module.named_modules()]
    return weights, kinds


def shapes_of(module):
    return {name: (weight.shape, weight.dtype) for name, weight in module.state_dict().items()}


def is_as_it_was(family, before):
    weights, kinds = kept(family)
    assert kinds == before[1]
    assert weights.keys() == before[0].keys()
    assert all(torch.equal(weights[name], before[0][name]) for name in weights)
    assert not any(weight.requires_grad for module in family.modules.values() for weight in module.parameters())


def test_a_model_is_known_by_its_pipelines_class_before_it_is_loaded(model, family):
    card = inspect_model(model)
    assert card == family.card
    assert isinstance(family, families()[card.family])
    assert card.resolution == 32
    assert family.denoiser_part in family.parts
    assert family.modules.keys() == family.parts.keys()
    assert set(changeable(family)) == {family.denoiser_part, *family.text_encoders}


def test_two_families_cannot_have_one_pipeline():
    families()  # all are registered from here on
    with pytest.raises(AssertionError, match="StableDiffusion"):
        register(SimpleNamespace(name="other", pipeline_class="StableDiffusionPipeline", __name__="Other"))  # pyright: ignore


def test_pictures_become_latents_and_latents_pictures(family):
    mean, deviation = family.encode_images(PICTURES)
    assert mean.shape == deviation.shape
    assert mean.dtype == torch.float32
    assert (deviation >= 0).all()
    assert torch.equal(mean, family.encode_images(torch.from_numpy(PICTURES.copy()))[0])
    torch.testing.assert_close(family.encode_images(PICTURES[1:])[0], mean[1:], atol=1e-5, rtol=1e-4)
    decoded = family.decode_latents(mean)
    assert (decoded.dtype, decoded.shape) == (np.uint8, PICTURES.shape)
    np.testing.assert_array_equal(decoded, family.decode_latents(mean))


def test_decoding_may_be_tried_in_another_precision_on_a_copy(family):
    mean, _ = family.encode_images(PICTURES)
    before = kept(family)
    whole, half = (family.decoded(mean, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert whole.shape == half.shape == (2, 3, 32, 32)
    assert whole.dtype == half.dtype == torch.float32
    assert not torch.equal(whole, half)
    shades = (whole.permute(0, 2, 3, 1).clamp(-1, 1) * 127.5 + 127.5).numpy()
    assert np.abs(shades - family.decode_latents(mean)).max() <= 0.501
    is_as_it_was(family, before)


@torch.no_grad()
def test_prompts_are_rows_of_named_tensors(family):
    encoded, again = (family.encode_prompts(PROMPTS) for _ in range(2))
    assert encoded.count == 3
    negative = family.encode_negative("")
    assert (negative.count, [*negative]) == (1, [*encoded])
    for name in encoded:
        assert torch.equal(encoded[name], again[name])
        alone = family.encode_prompts(PROMPTS[1:2])[name]
        torch.testing.assert_close(encoded.rows([1])[name], alone, atol=1e-5, rtol=1e-4)
        assert negative[name].shape[1:] == encoded[name].shape[1:]
    assert family.count_tokens("<v>") == 1


@torch.no_grad()
def test_a_prediction_has_the_shape_of_xt_and_depends_on_its_own_row_alone(family):
    xt, t, cond = inputs(family)
    together = family.predict(xt, t, cond)
    assert together.shape == xt.shape
    assert together.isfinite().all()
    assert torch.equal(together, family.predict(xt, t, cond))
    for i in range(2):
        one = family.predict(xt[[i]], t[[i]], cond.rows([i]))
        torch.testing.assert_close(one, together[[i]], atol=1e-5, rtol=1e-4)
    assert not torch.equal(together, family.predict(xt, t.flip(0), cond))
    assert not torch.equal(together, family.predict(xt, t, cond.rows([1, 0])))


def test_what_is_saved_loads_as_the_same_model(family, tmp_path):
    family.save(tmp_path / "saved")
    again = load_family(str(tmp_path / "saved"))
    assert type(again) is type(family)
    assert torch.equal(a_prediction(again), a_prediction(family))
    assert again.card.rare_token == family.card.rare_token


def test_without_weights_it_has_the_same_names_and_shapes(family):
    shapes = meta_family(family.card)
    for part, module in shapes.modules.items():
        assert shapes_of(module) == shapes_of(family.modules[part])
        assert all(weight.is_meta for weight in module.parameters())
    counted = {part: sum(w.numel() for w in module.parameters()) for part, module in family.modules.items()}
    counted["denoiser"] = counted.pop(family.denoiser_part)
    assert parameter_counts(family.card) == counted


def test_parts_are_loaded_in_the_precision_that_they_name(family):
    for name, part in family.parts.items():
        assert {weight.dtype for weight in family.modules[name].parameters()} == {getattr(torch, part.dtype)}


def test_the_denoiser_predicts_without_what_is_encoded_once(model):
    family = load_family(model)
    xt, t, cond = inputs(family)
    with torch.no_grad():
        before = family.predict(xt, t, cond)
        once = [name for name, part in family.parts.items() if part.once]
        for name in once:
            family.modules[name].to_empty(device="meta")
        assert torch.equal(family.predict(xt, t, cond), before)
    assert family.denoiser_part not in once


def linear_layers(module):
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def test_layer_groups_name_layers_and_those_of_a_kind_are_disjoint(family):
    layers = [name for name, module in family.denoiser.named_modules() if list(module.parameters(recurse=False))]
    groups = {name: {x for x in layers if re.search(pattern, x)} for name, pattern in family.layer_groups.items()}
    assert all(groups.values())
    kinds = groups.keys() & {"self-attention", "cross-attention", "feed-forward", "time"}
    places = groups.keys() & {"down", "middle", "up"}
    for one, other in [*combinations(kinds, 2), *combinations(places, 2)]:
        assert not groups[one] & groups[other], (one, other)
    assert groups.get("time-embedding", set()) <= groups["time"]


def test_adapters_go_into_the_layers_of_their_groups(family):
    for targets, names in (("attention", {"self-attention", "cross-attention"}), ("ff", {"feed-forward"})):
        ends = family.adapter_targets[targets]
        found = [x for x in linear_layers(family.denoiser) if any(f".{x}".endswith(f".{end}") for end in ends)]
        patterns = [family.layer_groups[name] for name in names & family.layer_groups.keys()]
        assert found
        assert all(any(re.search(pattern, x) for pattern in patterns) for x in found)
    for encoder in family.text_encoders.values():
        assert [x for x in linear_layers(encoder) if any(f".{x}".endswith(f".{end}") for end in family.text_targets)]


def test_every_preset_selects_weights_or_says_what_the_model_has_not(family):
    family.denoiser.requires_grad_(True)
    try:
        for name, preset in PRESETS.items():
            if preset.within and preset.within[0] not in family.layer_groups:
                with pytest.raises(ValueError, match="which this model has not"):
                    Rule(name, family.layer_groups)
            else:
                assert select(family.denoiser, Rule(name, family.layer_groups))
    finally:
        family.denoiser.requires_grad_(False)


@pytest.mark.parametrize("encode", [False, True])
def test_an_example_batch_has_the_shapes_of_training(family, encode):
    xt, t, cond = family.example_batch(2, 32, encode=encode)
    real_xt, real_t, real = inputs(family)
    assert (xt.shape, t.shape, t.is_floating_point()) == (real_xt.shape, real_t.shape, real_t.is_floating_point())
    assert {name: (it.shape, it.dtype) for name, it in cond.items()} == {n: (x.shape, x.dtype) for n, x in real.items()}


@pytest.mark.parametrize("changes", [{}, {"train_text_encoder": True}, {"gradient_checkpointing": True}])
def test_memory_is_estimated_from_shapes_alone(family, settings, changes):
    config = settings(model=str(family.card.folder), method="lora", rank=2, **changes).resolve({}, 32, 1)
    parts = memory.estimate(family.card, config).parts
    gone = [] if changes.get("train_text_encoder") else text_parts(family)
    held = [it for name, it in family.modules.items() if name not in gone]
    tensors = [it for module in held for it in (*module.parameters(), *module.buffers())]
    assert parts["model"] == sum(it.numel() * it.element_size() for it in tensors)
    assert parts["activations"] > 0
    assert parts["adapters"] > 0


def test_every_sampler_draws_a_picture_that_its_seed_and_prompt_decide(family):
    for sampler in family.samplers:
        how = {"sampler": sampler, "steps": 4, "guidance": 5.0}
        both = sample_images(family, PROMPTS[:2], [1, 2], **how)
        alone = sample_images(family, PROMPTS[1:2], [2], **how)
        difference = np.asarray(both[1]).astype(int) - np.asarray(alone[0]).astype(int)
        assert abs(difference).max() <= 1
        assert (np.asarray(both[0]) != np.asarray(both[1])).any()
    with pytest.raises(ValueError, match=next(iter(family.samplers))):
        sample_images(family, PROMPTS[:1], [1], sampler="heun", steps=1)


def test_guidance_in_an_interval_is_plain_guidance_where_it_is_full_and_none_where_it_is_empty(family):
    def drawn(**how):
        return np.stack([np.asarray(it) for it in sample_images(family, PROMPTS[:2], [1, 2], steps=6, **how)])

    plain, none = drawn(guidance=7.5), drawn(guidance=1.0)
    for sampler in family.samplers:
        half = drawn(guidance=7.5, guidance_interval="3:", sampler=sampler)
        assert (half != drawn(guidance=7.5, sampler=sampler)).any()
        assert (half != drawn(guidance=1.0, sampler=sampler)).any()
    for full in (":", "0:"):  # the noisiest time of a flow has no signal at all
        assert (drawn(guidance=7.5, guidance_interval=full) == plain).all()
    away = drawn(guidance=7.5, guidance_interval="1e8:1e9").astype(int) - none
    assert abs(away).max() <= 1
    with pytest.raises(ValueError, match=r"guidance_interval is '4:1'; it must be two noise-to-signal ratios"):
        drawn(guidance_interval="4:1")


def test_recomputed_activations_give_the_same_gradients(family):
    gradients = []
    family.denoiser.requires_grad_(True)
    cond = family.encode_prompts(PROMPTS[:2]).detach()
    for on in (False, True):
        family.checkpoint_gradients(on)
        family.predict(*inputs(family)[:2], cond).square().sum().backward()
        gradients.append([w.grad.clone() for w in family.denoiser.parameters() if w.grad is not None])
        family.denoiser.zero_grad(set_to_none=True)
    family.checkpoint_gradients(False)
    family.denoiser.requires_grad_(False)
    assert gradients[0]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("bayes", [False, True], ids=["plain", "bayes"])
@pytest.mark.parametrize("method", ["full", "lora", "oft"])
def test_every_method_trains_two_steps_and_leaves_no_trace(family, settings, method, bayes):
    before = kept(family)
    sizes = {"lora": {"rank": 2}, "oft": {"oft_blocks": 2}}.get(method, {})
    config = settings(model=str(family.card.folder), method=method, bayes=bayes, **sizes)
    made = make_method(config)
    made.attach(family)
    weights = made.trainable(family)
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    module, where = made.random(family)
    posterior = GaussianPosterior(module, where=where, weight_std=1e-3) if bayes else None
    optimizer = torch.optim.SGD(weights.values(), lr=1e-2)
    try:
        made.training(family, True)
        x0, _ = family.encode_images(PICTURES)
        for step in range(2):
            random = torch.Generator().manual_seed(step)
            t, eps = family.process.draw_times(2, random), torch.randn(x0.shape, generator=random)
            with posterior.sample(step) if posterior else nullcontext():
                diffusion_loss(family, Batch(x0, eps, t, family.encode_prompts(PROMPTS[:2]))).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert any(not torch.equal(weight, start[name]) for name, weight in weights.items())
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(start[name])
        made.detach(family)
    is_as_it_was(family, before)


@pytest.mark.parametrize("method", ["lora", "oft"])
def test_what_a_method_exports_it_loads(family, settings, method, tmp_path):
    sizes = {"lora": {"rank": 2}, "oft": {"oft_blocks": 2}}[method]
    config = settings(model=str(family.card.folder), method=method, train_text_encoder=True, **sizes)
    predictions = []
    for _ in range(2):
        made = make_method(config)
        made.attach(family)
        try:
            if predictions:
                made.load(family, tmp_path)
            else:
                with torch.no_grad():
                    for weight in made.trainable(family).values():
                        weight += 0.1
                made.export(family, tmp_path)
                assert (tmp_path / registered()[method].result_in(family)).is_file()
            predictions.append(a_prediction(family))
        finally:
            made.detach(family)
    assert torch.equal(*predictions)
    assert not torch.equal(predictions[0], a_prediction(family))


def test_probes_read_it_at_the_same_noise_levels_as_any_other(family):
    images = family.encode_images(PICTURES)[0]
    reading = Prober(family, images, PROMPTS[:2], settings=ProbeSettings(examples=2)).read()
    assert all(np.isfinite(value) for value in reading.numbers().values())
    assert reading.sigma_1.alpha_bar == pytest.approx([1 / (1 + level_of_step(t) ** 2) for t in USUAL_STEPS], rel=1e-6)
    left = family.process.alpha_bar(family.process.times(reading.blank.t))
    assert left[-1] < 0.01


SOURCE = Path(fewbayes.__file__).parent
FORBIDDEN = r"unet|u-net|stable_?diffusion(xl)?pipeline|alphas_cumprod|num_train_timesteps|(?<![\d.])77(?![\d.])"
FORBIDDEN += r"|[\"']clip_[lg][\"']|replace\([\"']text_encoder"
ALLOWED = {
    "diffusion/process.py": "its legend says what diffusers calls the same things",
    "settings/foreign.py": "flags of other programs under their own names",
}
"""Files above the families that may name what only a family knows, and why."""


def test_no_file_above_the_families_names_a_network_a_schedule_or_a_text_encoders_length():
    rooms = [file for file in SOURCE.rglob("*.py") if file.relative_to(SOURCE).parts[0] != "models"]
    found = {
        str(file.relative_to(SOURCE)): sorted({match[0] for match in re.finditer(FORBIDDEN, file.read_text(), re.I)})
        for file in rooms
    }
    assert {name: words for name, words in found.items() if words and name not in ALLOWED} == {}
