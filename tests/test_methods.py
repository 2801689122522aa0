"""What every method promises: the base model at the start, a function of the seed, and no trace when it is gone."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from transformers import CLIPTextModel

from fewbayes.methods import make_method, registered
from fewbayes.methods.adapters import adapter_layers
from fewbayes.models import load_family
from fewbayes.posterior.where import select

XT = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([100, 900])
PROMPTS = ["a photo of <v> dog", "a photo of"]
METHODS = registered()
ADAPTERS = [name for name in METHODS if name != "full"]


@pytest.fixture
def make(settings):
    return lambda method, **changes: make_method(settings(method=method, rare_token="<v>", **changes))


@pytest.fixture(scope="module")
def xl(sdxl_model):
    return load_family(str(sdxl_model))


@torch.no_grad()
def prediction(family):
    return family.predict(XT, T, family.encode_prompts(PROMPTS))


@torch.no_grad()
def move(weights, seed=1, by=0.1):
    """As if training had moved every weight."""
    random = torch.Generator().manual_seed(seed)
    for weight in weights.values():
        weight += by * torch.randn(weight.shape, generator=random)


def anatomy(family):
    """Everything that a visitor could leave changed: classes, attributes, hooks, flags, keys and values."""
    parts = {"denoiser": family.denoiser, **family.text_encoders}
    modules = {
        f"{part}.{name}": (type(module), id(module), sorted(vars(module)), module.training, len(module._forward_hooks))
        for part, root in parts.items()
        for name, module in root.named_modules()
    }
    pre_hooks = {part: len(root._forward_pre_hooks) for part, root in parts.items()}
    flags = {f"{part}.{name}": p.requires_grad for part, root in parts.items() for name, p in root.named_parameters()}
    values = {
        f"{part}.{name}": value.clone() for part, root in parts.items() for name, value in root.state_dict().items()
    }
    return modules | pre_hooks | flags, values


def assert_same(before, after):
    assert before[0] == after[0]
    assert before[1].keys() == after[1].keys()
    assert all(torch.equal(value, after[1][name]) for name, value in before[1].items())


def test_an_unknown_method_is_refused_with_the_known_ones(settings):
    config = settings()
    object.__setattr__(config, "method", "dora")
    with pytest.raises(ValueError, match="full, lora, oft"):
        make_method(config)


@pytest.mark.parametrize("method", METHODS)
def test_attaching_changes_no_prediction_and_draws_nothing_from_the_global_generator(family, make, method):
    before, state = prediction(family), torch.get_rng_state()
    attached = make(method)
    attached.attach(family)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(prediction(family), before)
    attached.detach(family)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("model", ["family", "xl"])
def test_detaching_leaves_no_trace(request, make, method, rare, model):
    """Of adapters after training; of full fine-tuning, whose weights the trainer puts back, before."""
    family = request.getfixturevalue(model)
    prediction(family)  # transformers hangs hooks of its own into a text encoder when it is first used
    before = anatomy(family)
    attached = make(method, train_rare_token=rare, train_text_encoder=method != "full")
    attached.attach(family)
    if method != "full":
        move(attached.trainable(family))
        attached.training(family, True)
        prediction(family)
    attached.detach(family)
    assert_same(before, anatomy(family))


@pytest.mark.parametrize("method", ADAPTERS)
def test_adapters_begin_as_a_function_of_the_seed(family, make, method):
    starts = []
    for seed in (0, 0, 1):
        attached = make(method, seed=seed)
        attached.attach(family)
        names = attached.trainable(family)
        starts.append([weight.detach().clone() for weight in names.values()])
        attached.detach(family)
    assert all(torch.equal(*pair) for pair in zip(starts[0], starts[1], strict=True))
    if method != "oft":  # whose rotations begin at the identity
        assert not all(torch.equal(*pair) for pair in zip(starts[0], starts[2], strict=True))


@pytest.mark.parametrize("method", ADAPTERS)
def test_only_what_is_named_gets_gradients(family, make, method):
    attached = make(method)
    attached.attach(family)
    named = attached.trainable(family)
    assert {id(p) for p in named.values()} == {id(p) for p in family.denoiser.parameters() if p.requires_grad}
    assert all(weight.dtype == torch.float32 for weight in named.values())
    attached.detach(family)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["family", "xl"])
def test_names_say_which_part_a_weight_belongs_to(request, make, method, model):
    family = request.getfixturevalue(model)
    attached = make(method, train_text_encoder=True)
    attached.attach(family)
    parts = {name.partition(".")[0] for name in attached.trainable(family)}
    assert parts == {"denoiser", *family.text_encoders}
    attached.detach(family)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["family", "xl"])
@pytest.mark.parametrize("rare", [False, True])
def test_what_was_exported_is_read_back(request, make, tmp_path, method, model, rare):
    family = request.getfixturevalue(model)
    attached = make(method, train_rare_token=rare, train_text_encoder=not (method == "full" and rare))
    attached.attach(family)
    weights = attached.trainable(family)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    move(weights)
    attached.export(family, tmp_path)
    assert (tmp_path / METHODS[method].result_in(family)).is_file()
    asked = prediction(family)
    move(weights, seed=2)
    assert not torch.equal(prediction(family), asked)
    attached.load(family, tmp_path)
    assert torch.equal(prediction(family), asked)
    if method == "full":
        for name, weight in weights.items():
            weight.data.copy_(before[name])
    attached.detach(family)
    if method == "full" and rare:  # reading a pipeline reads its embeddings; the trainer never does
        source = load_family(str(family.card.folder))
        for name, encoder in family.text_encoders.items():
            encoder.load_state_dict(source.text_encoders[name].state_dict())


@pytest.mark.parametrize("method", ["full", "lora", "oft"])
def test_what_may_be_random_is_found_in_the_denoiser(family, make, method):
    attached = make(method, bayes=True, **({"where": "norm"} if method == "full" else {}))
    attached.attach(family)
    module, where = attached.random(family)
    names = [weight.name for weight in select(module, where)]
    expected = {"full": "norm", "lora": "lora_B", "oft": "oft_R"}[method]
    assert module is family.denoiser
    assert all(expected in name for name in names)
    attached.detach(family)


def test_lora_for_two_text_encoders_loads_in_plain_diffusers(xl, make, sdxl_model, tmp_path):
    attached = make("lora", train_text_encoder=True, rank=2, lora_alpha=3.0)
    attached.attach(xl)
    move(attached.trainable(xl))
    attached.export(xl, tmp_path)
    plain = StableDiffusionXLPipeline.from_pretrained(sdxl_model)
    plain.load_lora_weights(tmp_path)
    with torch.no_grad():
        tokens, _, pooled, _ = plain.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        ours = xl.encode_prompts(PROMPTS)
        theirs = prediction_of(plain.unet, ours)
    torch.testing.assert_close(tokens, ours["tokens"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pooled, ours["pooled"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(theirs, prediction_of(xl.denoiser, ours), atol=1e-6, rtol=1e-5)
    attached.detach(xl)


def prediction_of(unet, cond):
    more = {"text_embeds": cond["pooled"], "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)}
    return unet(XT, T, encoder_hidden_states=cond["tokens"], added_cond_kwargs=more).sample


# the rare token


@pytest.fixture
def rare(family, make):
    attached = make("lora", train_rare_token=True)
    attached.attach(family)
    yield attached
    attached.detach(family)


def step_on_text(family, weights):
    """One step of gradient descent on something that depends on the words."""
    family.encode_prompts(PROMPTS)["tokens"].square().sum().backward()
    with torch.no_grad():
        for weight in weights.values():
            if weight.grad is not None:
                weight -= 0.1 * weight.grad
            weight.grad = None


def test_training_changes_the_rare_tokens_row_and_nothing_else(family, rare):
    weights = rare.trainable(family)
    row = weights["rare_token.text_encoder"]
    matrix = family.text_encoders["text_encoder"].get_input_embeddings().weight
    before, first, words = matrix.clone(), row.detach().clone(), family.encode_prompts(PROMPTS)["tokens"].detach()
    step_on_text(family, weights)
    after = family.encode_prompts(PROMPTS)["tokens"].detach()
    assert torch.equal(matrix, before)
    assert matrix.grad is None
    assert not torch.equal(row, first)
    assert not torch.equal(after[0], words[0])
    assert torch.equal(after[1], words[1])


def test_the_rare_tokens_row_begins_as_the_models_own(family, rare):
    token = family.tokenizers["tokenizer"]("<v>", add_special_tokens=False).input_ids
    matrix = family.text_encoders["text_encoder"].get_input_embeddings().weight
    assert torch.equal(rare.trainable(family)["rare_token.text_encoder"], matrix[token])


@pytest.mark.parametrize("word", ["dog", "aa"])
def test_a_word_of_several_tokens_is_refused_and_leaves_no_trace(family, settings, word):
    """Its pieces stand in other words too, which would be changed."""
    prediction(family)
    before = anatomy(family)
    attached = make_method(settings(method="lora", train_rare_token=True, rare_token=word))
    with pytest.raises(ValueError, match=f"'{word}' is {len(word)} tokens .*choose another word"):
        attached.attach(family)
    assert_same(before, anatomy(family))


def test_plain_diffusers_loads_the_learned_embedding_of_a_new_word(family, settings, eps_model, tmp_path):
    attached = make_method(settings(method="lora", train_rare_token=True, rare_token="photo"))
    attached.attach(family)
    move(attached.trainable(family))
    attached.export(family, tmp_path)
    plain = StableDiffusionPipeline.from_pretrained(eps_model)
    plain.load_textual_inversion(tmp_path / "learned_embeds.safetensors")
    prompt = plain.maybe_convert_prompt("a photo of", plain.tokenizer)
    ids = plain.tokenizer([prompt], padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        ours = family.encode_prompts(["a photo of"])["tokens"]
        torch.testing.assert_close(plain.text_encoder(ids)[0], ours, atol=1e-6, rtol=1e-5)
    attached.detach(family)


def test_a_word_that_the_tokenizer_knows_is_given_another_name(family, rare, eps_model, tmp_path):
    move(rare.trainable(family))
    rare.export(family, tmp_path)
    assert list(load_file(tmp_path / "learned_embeds.safetensors")) == ["<v-learned>"]
    plain = StableDiffusionPipeline.from_pretrained(eps_model)
    plain.load_textual_inversion(tmp_path / "learned_embeds.safetensors")
    ids = plain.tokenizer(["a photo of <v-learned> dog"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        ours = family.encode_prompts(PROMPTS[:1])["tokens"]
        torch.testing.assert_close(plain.text_encoder(ids.input_ids)[0], ours, atol=1e-6, rtol=1e-5)


def test_full_fine_tuning_writes_the_row_into_the_text_encoder(family, make, tmp_path):
    attached = make("full", train_rare_token=True)
    attached.attach(family)
    matrix = family.text_encoders["text_encoder"].get_input_embeddings().weight
    before = matrix.clone()
    move({"row": attached.trainable(family)["rare_token.text_encoder"]})
    attached.export(family, tmp_path)
    asked = family.encode_prompts(PROMPTS)["tokens"].detach()
    ids = family.tokenizers["tokenizer"](PROMPTS, padding="max_length", return_tensors="pt").input_ids
    plain = CLIPTextModel.from_pretrained(tmp_path, subfolder="text_encoder")
    assert torch.equal(plain(ids)[0], asked)
    assert torch.equal(matrix, before)
    changed = (plain.get_input_embeddings().weight != before).any(1)
    assert changed.nonzero().flatten().tolist() == family.tokenizers["tokenizer"]("<v>").input_ids[1:-1]
    attached.detach(family)


def test_each_text_encoder_of_two_has_its_own_row(xl, make, tmp_path):
    attached = make("lora", train_rare_token=True)
    attached.attach(xl)
    names = {name for name in attached.trainable(xl) if name.startswith("rare_token.")}
    assert names == {"rare_token.text_encoder", "rare_token.text_encoder_2"}
    attached.export(xl, tmp_path)
    assert set(load_file(tmp_path / "learned_embeds.safetensors")) == {"clip_l", "clip_g"}
    attached.detach(xl)


def test_the_rare_token_is_refused_where_every_embedding_is_trained(make):
    with pytest.raises(ValueError, match="train_rare_token has nothing to add"):
        make("full", train_rare_token=True, train_text_encoder=True)


def test_adapters_of_the_text_encoder_and_the_rare_token_go_together(family, make):
    before = prediction(family)
    attached = make("oft", train_rare_token=True, train_text_encoder=True)
    attached.attach(family)
    assert torch.equal(prediction(family), before)
    assert adapter_layers(family.text_encoders["text_encoder"])
    attached.detach(family)
