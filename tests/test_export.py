"""Exports: what other programs load is what was trained. Foreign loaders are diffusers' and PEFT's own."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fewbayes.export import FORMATS, ROUTES, foreign, route_of, write_export
from fewbayes.export.metadata import NO_HASH, write_safetensors
from fewbayes.export.record import read_record
from fewbayes.export.svd import ELSEWHERE, as_lora, decompose, product, relative_residual, residual_rows
from fewbayes.export.trained import LowRank, Trained, kind_of, lora_layers, merge_adapters, weight_changes
from fewbayes.export.verify import foreign_job
from fewbayes.export.write import write
from fewbayes.files.atomic import files_in
from fewbayes.methods import make_method
from fewbayes.models import inspect_model, load_family
from fewbayes.models.unet_clip_keys import UNET, VAE, clip_name, open_clip_weights, single_file, unet_name
from fewbayes.runs.opening import Found
from fewbayes.sample import sample_images
from fewbayes.settings.config import TrainConfig
from fewbayes.training.train import train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # PEFT asks transformers 5 so
]

PROMPT = "a photo of a <v> dog"
HOW = {"steps": 2, "guidance": 3.0, "resolution": 32}


@pytest.fixture
def trained(tmp_path, tmp_path_factory):
    """Makes a run's model without training: the method is attached and its weights are moved at random."""

    def make(model, method: str, **changes) -> Trained:
        config = TrainConfig(
            model=str(model),
            instance_data_dir="photos",
            instance_prompt=PROMPT,
            output_dir=str(tmp_path / "dog"),
            method=method,
            rare_token="<v>",
            **changes,
        )
        family = load_family(str(model))
        chosen = make_method(config)
        chosen.attach(family)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in chosen.trainable(family).values():
                step = 0.003 if method == "full" else 0.1
                weight.add_(step * torch.randn(weight.shape, generator=generator))
        run = tmp_path_factory.mktemp("runs") / "dog"
        run.mkdir(exist_ok=True)
        (run / "manifest.json").write_text("{}")
        return Trained(Found("run", run, run, config), family, inspect_model(str(model)), "<v>", "raw")

    return make


@pytest.fixture
def exported(tmp_path):
    """Writes a format and returns its folder, a new one each time."""

    def make(run: Trained, format: str, *, rank: int = 4, dtype: str = "fp32"):
        folder = tmp_path / f"{format}-{dtype}-{len(list(tmp_path.iterdir()))}"
        return write(run, format, route_of(run.run.config, kind_of(run.run), format), folder, rank=rank, dtype=dtype)

    return make


def ours(family) -> np.ndarray:
    (picture,) = sample_images(family, [PROMPT], [0], sampler="ddim", **HOW)
    return np.asarray(picture).astype(int)


def theirs(folder, base, *, word: str = "<v>") -> np.ndarray:
    """A picture by the program that `verify` runs in another process."""
    output = folder.with_name(f"{folder.name}-pictures")
    output.mkdir(exist_ok=True)
    job = foreign_job(folder, read_record(folder), base, PROMPT, [0], HOW, output)
    foreign.sample(job | {"prompts": [PROMPT.replace("<v>", word)], "device": "cpu"})
    from PIL import Image

    return np.asarray(Image.open(output / "0.png")).astype(int)


# --- every format loads elsewhere and gives the same pictures ---------------------------------------------------------

EXACT = [
    ("eps", "lora", "diffusers"),
    ("eps", "lora", "peft"),
    ("eps", "lora", "kohya"),
    ("eps", "lora", "merged"),
    ("eps", "full", "original"),
    ("eps", "oft", "peft"),
    ("eps", "oft", "merged"),
    ("sdxl", "lora", "diffusers"),
    ("sdxl", "lora", "comfyui"),
    ("sdxl", "full", "original"),
]


@pytest.mark.parametrize(("model", "method", "format"), EXACT)
def test_a_foreign_loader_gives_the_pictures_of_the_run(model, method, format, request, trained, exported):
    base = request.getfixturevalue(f"{model}_model")
    run = trained(base, method, train_text_encoder=True)
    before, after = ours(load_family(str(base))), ours(run.family)
    assert np.abs(after - before).max() > 4  # the run has an effect, or this would show nothing
    assert np.abs(theirs(exported(run, format), base) - after).max() <= 1


@pytest.mark.parametrize(
    ("model", "format"), [("eps", "diffusers"), ("eps", "peft"), ("eps", "merged"), ("sdxl", "diffusers")]
)
def test_dora_keeps_its_magnitudes_in_the_denoiser_and_in_text_encoders(model, format, request, trained, exported):
    """Without the text encoder's magnitudes the file loads just as well, and gives other pictures."""
    base = request.getfixturevalue(f"{model}_model")
    run = trained(base, "lora", use_dora=True, train_text_encoder=True)
    after = ours(run.family)
    folder = exported(run, format)
    assert np.abs(theirs(folder, base) - after).max() <= 1


@pytest.mark.parametrize("model", ["eps", "sdxl"])
def test_a_lora_of_full_rank_made_by_svd_loses_only_what_a_lora_cannot_hold(model, request, trained, exported):
    """At full rank all layers are whole: what differs is what norms, biases and embeddings did."""
    base = request.getfixturevalue(f"{model}_model")
    folder = exported(trained(base, "full"), "kohya", rank=144)
    rows = {row["group"]: row for row in read_record(folder).residual}
    assert rows[ELSEWHERE]["residual"] == 1
    assert all(row["residual"] < 1e-3 for name, row in rows.items() if name not in (ELSEWHERE, "all"))
    assert rows["all"]["residual"] == pytest.approx(rows[ELSEWHERE]["share"] ** 0.5, abs=1e-3)
    theirs(folder, base)  # diffusers refuses a kohya file with a key that it does not know


def test_oft_as_a_lora_is_nearer_the_higher_the_rank(eps_model, trained, exported):
    after = ours(trained(eps_model, "oft").family)
    far, near = (
        np.abs(theirs(exported(trained(eps_model, "oft"), "svd-lora", rank=rank), eps_model) - after).mean()
        for rank in (1, 16)
    )
    assert near < far
    assert near < 0.05


def test_half_precision_is_stored_as_asked_and_stays_near(eps_model, trained, exported):
    run = trained(eps_model, "lora")
    after = ours(run.family)
    folder = exported(run, "diffusers", dtype="fp16")
    assert {weight.dtype for weight in load_file(folder / "pytorch_lora_weights.safetensors").values()} == {torch.half}
    assert np.abs(theirs(folder, eps_model) - after).mean() < 1


def test_a_learned_rare_token_goes_along(eps_model, trained, exported):
    run = trained(eps_model, "lora", train_rare_token=True)
    after = ours(run.family)
    folder = exported(run, "kohya")
    assert np.abs(theirs(folder, eps_model, word="<v-learned>") - after).max() <= 1
    assert np.abs(theirs(folder, eps_model, word="<v>") - after).max() > 1
    assert np.abs(theirs(exported(run, "merged"), eps_model) - after).max() <= 1


# --- the traps --------------------------------------------------------------------------------------------------------


def test_strength_does_not_depend_on_reading_alpha_or_the_header(eps_model, trained, exported):
    run = trained(eps_model, "lora", lora_alpha=16.0, use_rslora=True)
    after = ours(run.family)
    for format in ("diffusers", "kohya"):
        folder = exported(run, format)
        path = folder / read_record(folder).file
        save_file({name: w for name, w in load_file(path).items() if not name.endswith(".alpha")}, path)
        assert np.abs(theirs(folder, eps_model) - after).max() <= 1


def test_alpha_equals_the_rank_in_every_layer(eps_model, trained, exported):
    run = trained(eps_model, "lora", lora_alpha=1.0, rank=4)
    tensors = load_file(next(exported(run, "kohya").glob("*.safetensors")))
    assert {float(value) for name, value in tensors.items() if name.endswith(".alpha")} == {4.0}


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_text_encoder_keys_have_the_level_that_transformers_has_dropped(format, sdxl_model, trained, exported):
    folder = exported(trained(sdxl_model, "lora", train_text_encoder=True), format)
    names = list(load_file(folder / read_record(folder).file))
    starts = {
        "diffusers": ("text_encoder.text_model.encoder.layers.", "text_encoder_2.text_model.encoder.layers."),
        "kohya": ("lora_te1_text_model_encoder_layers_", "lora_te2_text_model_encoder_layers_"),
    }[format]
    assert all(any(name.startswith(start) for name in names) for start in starts)
    assert all(name.startswith(starts) for name in names if name.startswith(("text", "lora_te")))


def test_diffusers_writes_an_oft_adapter_that_it_cannot_load_and_so_we_refuse(eps_model, tmp_path, trained):
    run = trained(eps_model, "oft")
    run.family.denoiser._hf_peft_config_loaded = True
    run.family.denoiser.save_lora_adapter(tmp_path)  # the setting above is all that it asks for
    fresh = load_family(str(eps_model)).denoiser
    with pytest.raises(TypeError, match="LoraConfig"):
        fresh.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match=r"merged .* peft .* svd-lora"):
        route_of(run.run.config, kind_of(run.run), "diffusers")


def test_layers_of_different_ranks_are_filled_up_to_one(eps_model, trained):
    """A reader without alphas would scale by the most frequent rank."""
    run = trained(eps_model, "full")
    layers, _ = as_lora(weight_changes(run), run.parts, rank=30)
    assert layers["unet"]["conv_out"].up.shape == (4, 30, 1, 1)
    assert {layer.rank for layer in layers["unet"].values()} == {30}


# --- no parameter and no operation more -------------------------------------------------------------------------------


def _cost(module: nn.Module, width: int) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 4, 8, 8), 10, torch.zeros(1, 16, width))
    return sum(parameter.numel() for parameter in module.parameters()), counter.get_total_flops()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_bayesian_export_costs_what_a_plain_one_does(method, settings, eps_model, tmp_path):
    costs, shapes = [], []
    for bayes in (False, True):
        run = train(settings(f"run-{bayes}", method=method, bayes=bayes, max_train_steps=1)).folder
        folder = write_export(run, "diffusers", tmp_path / f"export-{bayes}")
        job = foreign_job(folder, read_record(folder), eps_model, PROMPT, [0], HOW, tmp_path)
        costs.append(_cost(foreign.load(job).unet, 16))
        files = sorted(folder.rglob("*.safetensors"))
        shapes.append([(file.name, {name: w.shape for name, w in load_file(file).items()}) for file in files])
    assert costs[0] == costs[1]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("method", ["lora", "oft"])
def test_a_merged_adapter_costs_nothing_and_leaves_the_plain_modules(method, eps_model, trained):
    run = trained(eps_model, method)
    base = load_family(str(eps_model)).denoiser
    run.merge()
    assert _cost(run.family.denoiser, 16) == _cost(base, 16)
    assert [(name, type(module)) for name, module in run.family.denoiser.named_modules()] == [
        (name, type(module)) for name, module in base.named_modules()
    ]
    assert not hasattr(run.family.denoiser, "peft_config")


def test_merging_what_has_no_adapter_changes_nothing():
    layer = nn.Linear(2, 2)
    before = layer.weight.clone()
    merge_adapters(layer)
    assert torch.equal(layer.weight, before)


# --- truncated SVD ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 9), (5, 4, 3, 3), (7, 3, 1, 1)])
def test_a_change_comes_back_at_full_rank(shape):
    change = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(product(decompose(change, rank=9)), change, atol=1e-5)


def test_the_residual_is_the_part_of_the_singular_values_that_is_cut():
    left, right = (torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(i)))[0] for i in (0, 1))
    change = left @ torch.diag(torch.tensor([4.0, 3.0, 0, 0, 0, 0, 0, 0])) @ right
    layer = nn.Sequential(nn.Linear(8, 8))
    _, losses = as_lora({"unet": {"0.weight": change}}, {"unet": layer}, rank=1)
    assert relative_residual(losses) == pytest.approx(3 / 5, abs=1e-5)


def test_what_has_no_place_in_a_lora_is_counted_as_lost():
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    changes = {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2), "1.weight": torch.ones(2)}
    layers, losses = as_lora({"unet": changes}, {"unet": module}, rank=1)
    rows = {row["group"]: row for row in residual_rows(losses)}
    assert list(layers["unet"]) == ["0"]
    assert rows[ELSEWHERE]["share"] == pytest.approx(0.5)
    assert rows["all"]["residual"] == pytest.approx(0.5**0.5, abs=1e-5)


def test_padding_changes_the_rank_and_not_the_product():
    layer = decompose(torch.randn(4, 5), rank=2)
    assert layer.padded(7).rank == 7
    assert torch.equal(product(layer.padded(7)), product(layer))


def test_lora_weights_hold_the_strength_that_peft_gives_them(eps_model, trained):
    run = trained(eps_model, "lora", lora_alpha=3.0, rank=2)
    found = lora_layers(run)["unet"]
    run.merge()
    base = load_family(str(eps_model)).denoiser.state_dict()
    for name, weight in run.family.denoiser.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer in found and name.endswith(".weight"):
            assert torch.allclose(product(found[layer]), weight - base[name], atol=1e-6)


# --- the original layout ----------------------------------------------------------------------------------------------

SD15 = {"cross_attention_dim": 768}
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.parametrize("settings_of", [SD15, SD21, SDXL], ids=["sd15", "sd21", "sdxl"])
def test_diffusers_finds_every_weight_of_a_true_unet_under_its_original_name(settings_of):
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with torch.device("meta"):
        unet = UNet2DConditionModel(**settings_of)
    weights = unet.state_dict()
    named = {UNET + unet_name(name, unet.config): weight for name, weight in weights.items()}
    back = convert_ldm_unet_checkpoint(named, dict(unet.config))
    assert {name: weight.shape for name, weight in back.items()} == {n: w.shape for n, w in weights.items()}


def test_original_names_are_those_of_the_releases():
    """Names as they stand in v1-5-pruned-emaonly.safetensors and sd_xl_base_1.0.safetensors."""
    sd = {"layers_per_block": 2, "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)}
    xl = {"layers_per_block": 2, "up_block_types": SDXL["up_block_types"]}
    assert unet_name("down_blocks.1.attentions.0.proj_in.weight", sd) == "input_blocks.4.1.proj_in.weight"
    assert unet_name("down_blocks.0.downsamplers.0.conv.bias", sd) == "input_blocks.3.0.op.bias"
    assert unet_name("up_blocks.0.upsamplers.0.conv.weight", sd) == "output_blocks.2.1.conv.weight"
    assert unet_name("up_blocks.0.upsamplers.0.conv.weight", xl) == "output_blocks.2.2.conv.weight"
    assert unet_name("mid_block.resnets.1.conv1.weight", sd) == "middle_block.2.in_layers.2.weight"
    assert unet_name("add_embedding.linear_2.bias", xl) == "label_emb.0.2.bias"


def test_the_text_encoder_of_sd2_is_written_as_open_clip_and_comes_back(v_model):
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    encoder = load_family(str(v_model)).text_encoders["text_encoder"]
    named = {f"cond_stage_model.model.{name}": w for name, w in open_clip_weights(encoder.state_dict()).items()}
    back = convert_open_clip_checkpoint(encoder, named)
    wanted = {clip_name(name): weight for name, weight in encoder.state_dict().items()}
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)


def test_attention_of_the_autoencoder_is_of_convolutions_in_the_original(eps_model):
    family = load_family(str(eps_model))
    parts = {"unet": family.denoiser, "vae": family.vae, **family.text_encoders}
    tensors = single_file(parts)
    assert tensors[f"{VAE}decoder.mid.attn_1.q.weight"].shape == (8, 8, 1, 1)
    assert len(tensors) == sum(len(part.state_dict()) for part in parts.values())


# --- headers, cards, refusals -----------------------------------------------------------------------------------------


def _header(path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_the_header_says_what_the_file_is(eps_model, trained, exported):
    header = _header(next(exported(trained(eps_model, "lora", rank=3), "kohya").glob("*.safetensors")))
    assert header["ss_network_module"] == "networks.lora"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("3", "3.0")
    assert header["ss_output_name"] == header["modelspec.title"] == "dog"
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.architecture"].endswith("/lora")
    assert (header["modelspec.resolution"], header["modelspec.prediction_type"]) == ("32x32", "epsilon")
    assert "a photo of a <v> dog" in json.loads(header["ss_tag_frequency"])["instance"]


def test_the_header_of_a_diffusers_lora_is_what_peft_needs(eps_model, trained, exported):
    from peft import LoraConfig

    folder = exported(trained(eps_model, "lora", rank=3, lora_alpha=12.0), "diffusers")
    settings = json.loads(_header(folder / "pytorch_lora_weights.safetensors")["lora_adapter_metadata"])
    config = LoraConfig(**{key.removeprefix("unet."): value for key, value in settings.items()})
    assert config.r == config.lora_alpha == 3


def test_the_hash_in_the_header_is_of_the_bytes_after_it(tmp_path):
    path = tmp_path / "file.safetensors"
    write_safetensors(path, {"weight": torch.arange(6.0)}, {"modelspec.hash_sha256": NO_HASH})
    data = path.read_bytes()
    content = data[8 + int.from_bytes(data[:8], "little") :]
    assert _header(path)["modelspec.hash_sha256"] == f"0x{hashlib.sha256(content).hexdigest()}"
    assert torch.equal(load_file(path)["weight"], torch.arange(6.0))


def test_a_card_shows_the_pictures_of_the_run(settings, tmp_path):
    import yaml

    run = train(settings(method="lora", max_train_steps=1, validation_prompt=PROMPT, validation_steps=1)).folder
    text = (write_export(run, "kohya", tmp_path / "export") / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["instance_prompt"] == "a photo of <v> dog"
    assert {"text-to-image", "diffusers", "lora"} <= set(front["tags"])
    assert all((tmp_path / "export" / row["output"]["url"]).is_file() for row in front["widget"])
    assert "| rank | 4 |" in text


@pytest.mark.parametrize("model", ["eps", "sdxl"])
def test_the_code_of_a_card_loads_all_of_the_export(model, request, trained, exported, monkeypatch):
    base = request.getfixturevalue(f"{model}_model")
    run = trained(base, "lora", train_text_encoder=True, train_rare_token=True)
    folder = exported(run, "peft")
    monkeypatch.chdir(folder)
    loaded: dict = {}
    exec((folder / "README.md").read_text().split("```python")[1].split("```")[0], loaded)
    pipeline = loaded["pipeline"]
    for name in ("unet", *run.family.text_encoders):
        assert any("lora_" in key for key in getattr(pipeline, name).state_dict()), name
    word = _header(folder / "learned_embeds.safetensors")["token"]
    expected = run.family.encode_prompts([PROMPT])["tokens"]
    how = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    found = pipeline.encode_prompt(PROMPT.replace("<v>", word), **how)[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_rank_beyond_every_layer_is_that_of_the_widest(eps_model, trained, exported):
    folder = exported(trained(eps_model, "full"), "kohya", rank=100_000)
    assert read_record(folder).rank == 32  # of 100000: the time embedding has the widest layers, 32 x 32


@pytest.mark.parametrize(
    ("method", "format"), [("lora", "kohya"), ("lora", "diffusers"), ("oft", "peft"), ("full", "merged")]
)
def test_the_same_run_makes_the_same_files(method, format, eps_model, trained, exported):
    """Also in another process: neither the time of day nor the order of a set is in them."""
    twice = [exported(trained(eps_model, method, train_text_encoder=True), format) for _ in range(2)]
    first, second = ({file.relative_to(f): file.read_bytes() for file in files_in(f)} for f in twice)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name] and name.name != "export.json"] == []
    for file in twice[0].glob("*/adapter_config.json"):
        told = json.loads(file.read_text())["target_modules"]
        assert told == sorted(told)


def test_every_pair_of_kind_and_format_is_written_or_refused_with_a_reason():
    kinds = ("full", "lora", "adapter")
    assert set(ROUTES) == {(kind, format) for kind in kinds for format in FORMATS}
    for route in ROUTES.values():
        assert route in ("lora", "peft", "pipeline", "original", "svd") or "choose" in route


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path, settings):
    run = train(settings(max_train_steps=1)).folder
    target = tmp_path / "export"
    with pytest.raises(ValueError, match="no run"):
        write_export(tmp_path, "kohya", target)
    with pytest.raises(ValueError, match="rank means nothing"):
        write_export(run, "diffusers", target, rank=4)
    with pytest.raises(ValueError, match="rank is 0"):
        write_export(run, "kohya", target, rank=0)
    with pytest.raises(ValueError, match="not an empty folder"):
        write_export(run, "diffusers", run)
    with pytest.raises(ValueError, match="no adapter for PEFT"):
        write_export(run, "peft", target)
    assert not target.exists()


def test_nothing_is_left_where_writing_fails(eps_model, trained, tmp_path, monkeypatch):
    run = trained(eps_model, "lora")
    monkeypatch.setattr(LowRank, "to", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(run, "kohya", "lora", tmp_path / "export", rank=4, dtype="fp32")
    assert list(tmp_path.iterdir()) == []
