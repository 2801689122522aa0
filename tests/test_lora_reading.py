"""A LoRA file of any layout changes every layer by alpha / rank B A; what is no LoRA is refused by name."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fewbayes.errors import UserError
from fewbayes.models.adapters import load_adapter
from fewbayes.models.lora_reading import attach, read_lora

UNET = ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "conv_in"]
UNET += [f"mid_block.attentions.0.transformer_blocks.0.{end}" for end in ("attn2.to_out.0", "ff.net.2")]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.0.mlp.fc1"]


def spellings(part: str, layer: str) -> list[str]:
    bare = layer.removeprefix("text_model.").replace(".", "_")
    return [f"lora_unet_{bare}"] if part == "unet" else [f"lora_te_text_model_{bare}", f"lora_te1_text_model_{bare}"]


def dotted(part: str, layer: str) -> str:
    return f"{part}.{layer}" if part == "unet" else f"{part}.text_model.{layer}"


def kohya(part: str, layer: str) -> str:
    return ("lora_unet_" if part == "unet" else "lora_te_text_model_") + layer.replace(".", "_")


def old_processor(part: str, layer: str) -> str:
    """Attention processors of old diffusers; only attention layers have such names."""
    return re.sub(r"\.(to_\w+?)(\.0)?$", r".processor.\1_lora", f"{part}.{layer}")


LAYOUTS = {
    "diffusers": (dotted, "lora_A.weight", "lora_B.weight"),
    "diffusers, with an adapter's name": (dotted, "lora_A.default.weight", "lora_B.default.weight"),
    "diffusers 0.2x": (dotted, "lora.down.weight", "lora.up.weight"),
    "diffusers, text encoder of 0.1x": (dotted, "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "PEFT inside diffusers": (lambda p, n: f"{p}.base_model.model.{n}", "lora_A.weight", "lora_B.weight"),
    "kohya": (kohya, "lora_down.weight", "lora_up.weight"),
    "kohya with dots": (dotted, "lora_down.weight", "lora_up.weight"),
    "kohya, first of two encoders": (
        lambda p, n: kohya(p, n).replace("lora_te_", "lora_te1_"),
        "lora_down.weight",
        "lora_up.weight",
    ),
}


@pytest.fixture(scope="module")
def parts(family):
    return {"unet": family.denoiser, "text_encoder": family.text_encoders["text_encoder"]}


def own_name(module, layer: str) -> str:
    """transformers 5.6 dropped "text_model." from the module's own names."""
    return layer if layer in dict(module.named_modules()) else f"text_model.{layer}"


def drawn(module, layer: str, rank: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    weight = module.get_submodule(own_name(module, layer)).weight
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *weight.shape[1:], generator=generator)
    up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=generator)
    return down.to(dtype), up.to(dtype)


def changes(parts, layer_of) -> dict[tuple[str, str], torch.Tensor]:
    return {
        (part, layer): parts[part].get_submodule(own_name(parts[part], layer)).get_delta_weight("default")
        for part, layer in layer_of
    }


one_layer = st.tuples(
    st.sampled_from([("unet", name) for name in UNET] + [("text_encoder", name) for name in TEXT]),
    st.integers(1, 5),
    st.one_of(st.none(), st.floats(0.25, 16)),
)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.lists(one_layer, min_size=1, max_size=5, unique_by=lambda each: each[0]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_every_layout_changes_every_layer_by_alpha_over_rank_b_a(parts, tmp_path_factory, layout, layers, dtype):
    spelled, down_end, up_end = LAYOUTS[layout]
    tensors, wanted = {}, {}
    for number, ((part, layer), rank, alpha) in enumerate(layers):
        down, up = drawn(parts[part], layer, rank, number, dtype)
        name = spelled(part, layer)
        tensors |= {f"{name}.{down_end}": down, f"{name}.{up_end}": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        scale = 1.0 if alpha is None else float(tensors[f"{name}.alpha"]) / rank
        product = torch.einsum("or,r...->o...", up.double().flatten(1), down.double())
        wanted[part, layer] = scale * product
    file = tmp_path_factory.mktemp("lora") / "any.safetensors"
    save_file(tensors, file)
    mine = copy.deepcopy(parts)
    lora = read_lora(file, mine, spellings)
    assert lora.unsaid == any(alpha is None for _, _, alpha in layers)
    attach(mine, lora)
    for place, change in changes(mine, wanted).items():
        torch.testing.assert_close(change.double(), wanted[place], rtol=1e-5, atol=1e-5)
    adapted = sum(hasattr(layer, "get_delta_weight") for part in mine.values() for layer in part.modules())
    assert adapted == len(layers)


def test_names_of_old_attention_processors(parts, tmp_path):
    tensors = {}
    for number, layer in enumerate((UNET[0], UNET[2])):
        down, up = drawn(parts["unet"], layer, 2, number, torch.float32)
        for name in (old_processor("unet", layer), old_processor("unet", layer).removeprefix("unet."))[number:][:1]:
            tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    save_file(tensors, tmp_path / "old.safetensors")
    lora = read_lora(tmp_path / "old.safetensors", parts, spellings)
    assert set(lora.layers["unet"]) == {UNET[0], UNET[2]}


@pytest.mark.parametrize("names_of_the_original", [True, False])
def test_kohya_files_of_sdxl_have_the_names_of_the_original_release(sdxl_model, tmp_path, names_of_the_original):
    """sd-scripts trains SDXL under its original names; other trainers write diffusers' own."""
    from fewbayes.models import load_family

    family = load_family(str(sdxl_model))
    layer = "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"
    stem = "lora_unet_input_blocks_3_1_transformer_blocks_1_attn1_to_q"
    if not names_of_the_original:
        stem = f"lora_unet_{layer.replace('.', '_')}"
    down, up = drawn(family.denoiser, layer, 2, 0, torch.float32)
    text, text_layer = family.text_encoders["text_encoder_2"], "encoder.layers.1.self_attn.v_proj"
    down_2, up_2 = drawn(text, text_layer, 3, 1, torch.float32)
    stem_2 = "lora_te2_text_model_encoder_layers_1_self_attn_v_proj"
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)}
    tensors |= {f"{stem_2}.lora_down.weight": down_2, f"{stem_2}.lora_up.weight": up_2}
    save_file(tensors | {f"{stem_2}.alpha": torch.tensor(6.0)}, tmp_path / "xl.safetensors")
    load_adapter(family, tmp_path / "xl.safetensors")
    torch.testing.assert_close(family.denoiser.get_submodule(layer).get_delta_weight("default"), 0.5 * up @ down)
    changed_2 = text.get_submodule(own_name(text, text_layer)).get_delta_weight("default")
    torch.testing.assert_close(changed_2, 2 * up_2 @ down_2)


def test_rows_of_zeros_with_alpha_scaled_along_change_nothing(parts, tmp_path):
    """What resizing tools write: the same LoRA in more rows."""
    down, up = drawn(parts["unet"], UNET[0], 3, 0, torch.float32)
    padded = torch.cat([down, torch.zeros(5, *down.shape[1:])]), torch.cat([up, torch.zeros(up.shape[0], 5)], 1)
    found = []
    for name, (a, b), alpha in (("plain", (down, up), 1.5), ("padded", padded, 4.0)):
        stem = kohya("unet", UNET[0])
        file = tmp_path / f"{name}.safetensors"
        save_file(
            {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(alpha)}, file
        )
        mine = copy.deepcopy(parts)
        attach(mine, read_lora(file, mine, spellings))
        found.append(changes(mine, [("unet", UNET[0])])["unet", UNET[0]])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_header_gives_the_strength_of_each_layer(parts, tmp_path, rslora):
    tensors = {}
    for number, layer in enumerate(UNET[:1] + UNET[2:3]):
        down, up = drawn(parts["unet"], layer, 4, number, torch.float32)
        tensors |= {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
    header = {"unet.r": 4, "unet.lora_alpha": 8, "unet.use_rslora": rslora, "unet.alpha_pattern": {"to_out.0": 2}}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(header)})
    lora = read_lora(file, parts, spellings)
    assert not lora.unsaid
    for layer, alpha in ((UNET[0], 8), (UNET[2], 2)):
        scale = alpha / (2 if rslora else 4)
        torch.testing.assert_close(
            lora.layers["unet"][layer].up, scale * tensors[f"unet.{layer}.lora_B.weight"], rtol=1e-6, atol=0
        )


def test_dora_of_kohya_has_rows_of_its_own_lengths(parts, tmp_path):
    down, up = drawn(parts["unet"], UNET[0], 2, 0, torch.float32)
    lengths = torch.rand(len(up), 1) + 0.5
    stem, file = kohya("unet", UNET[0]), tmp_path / "dora.safetensors"
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)}
    save_file(tensors | {f"{stem}.dora_scale": lengths}, file)
    mine = copy.deepcopy(parts)
    attach(mine, read_lora(file, mine, spellings))
    layer = mine["unet"].get_submodule(UNET[0])
    moved = layer.get_base_layer().weight + 0.5 * up @ down
    wanted = lengths * moved / moved.norm(dim=1, keepdim=True)
    x = torch.randn(3, down.shape[1])
    torch.testing.assert_close(layer(x), x @ wanted.T, rtol=1e-4, atol=1e-5)


def test_alpha_of_a_file_that_does_not_say_it_can_be_given(parts, tmp_path):
    down, up = drawn(parts["unet"], UNET[0], 4, 0, torch.float32)
    file = tmp_path / "bare.safetensors"
    save_file({f"unet.{UNET[0]}.lora_A.weight": down, f"unet.{UNET[0]}.lora_B.weight": up}, file)
    assert read_lora(file, parts, spellings).unsaid
    given_one = read_lora(file, parts, spellings, alpha=8.0)
    assert not given_one.unsaid
    torch.testing.assert_close(given_one.layers["unet"][UNET[0]].up, 2 * up)


def changed(base: dict, **changes) -> dict:
    return {key: value for key, value in (base | changes).items() if value is not None}


NAME = f"unet.{UNET[0]}"
REFUSED = {
    "one matrix missing": ({f"{NAME}.lora_B.weight": None}, r"to_q has no up \(lora_B\) matrix"),
    "not finite": ({f"{NAME}.lora_B.weight": torch.full((16, 2), float("nan"))}, "holds numbers that are not finite"),
    "another base model": ({f"{NAME}.lora_A.weight": torch.zeros(2, 320)}, "for another base model: .*320 to 16 there"),
    "ranks that differ": ({f"{NAME}.lora_A.weight": torch.zeros(3, 16)}, "for another base model"),
    "LoHa": ({"lora_unet_x.hada_w1_a": torch.zeros(2, 2)}, "is a LoHa"),
    "LoKr": ({"lora_unet_x.lokr_w1": torch.zeros(2, 2)}, "is a LoKr"),
    "trained norms": ({"lora_unet_x.w_norm": torch.zeros(2)}, "norm layers"),
    "layers that are not there": ({"unet.nowhere.lora_A.weight": torch.zeros(2, 16)}, "1 of the 3 tensors"),
    "no LoRA": ({f"{NAME}.lora_B.weight": None, f"{NAME}.lora_A.weight": None, "x": torch.zeros(2)}, "1 of the 1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_lora_for_this_model_is_refused_in_one_line(parts, tmp_path, kind):
    changes_, said = REFUSED[kind]
    whole = {f"{NAME}.lora_A.weight": torch.zeros(2, 16), f"{NAME}.lora_B.weight": torch.zeros(16, 2)}
    save_file(changed(whole, **changes_), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said) as refusal:
        read_lora(tmp_path / "x.safetensors", parts, spellings)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(("header", "said"), [("{not json", "is not JSON"), ("[1]", "must be a table of named values")])
def test_a_broken_header_is_named(parts, tmp_path, header, said):
    tensors = {f"{NAME}.lora_A.weight": torch.zeros(2, 16), f"{NAME}.lora_B.weight": torch.zeros(16, 2)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": header})
    with pytest.raises(UserError, match=said):
        read_lora(tmp_path / "x.safetensors", parts, spellings)


def test_words_that_a_trainer_bundles_are_left_out_and_said(eps_model, tmp_path, caplog):
    from fewbayes.models import load_family

    tensors = {f"{NAME}.lora_A.weight": torch.zeros(2, 16), f"{NAME}.lora_B.weight": torch.zeros(16, 2)}
    save_file(tensors | {"bundle_emb.dog.string_to_param.*": torch.zeros(1, 16)}, tmp_path / "x.safetensors")
    load_adapter(load_family(str(eps_model)), tmp_path / "x.safetensors")
    assert "bundles learned words, which are left out" in caplog.text


def test_a_file_of_a_peft_folder_stands_for_its_folder(eps_model, tmp_path):
    from fewbayes.models import load_family

    folder = Path(tmp_path / "adapter")
    folder.mkdir()
    down, up = torch.ones(2, 16), torch.ones(16, 2)
    save_file(
        {f"base_model.model.{UNET[0]}.lora_A.weight": down, f"base_model.model.{UNET[0]}.lora_B.weight": up},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    found = []
    for source in (folder, folder / "adapter_model.safetensors"):
        family = load_family(str(eps_model))
        load_adapter(family, source)
        found.append(family.denoiser.get_submodule(UNET[0]).get_delta_weight("default"))
    torch.testing.assert_close(found[0], torch.full((16, 16), 6.0))
    torch.testing.assert_close(found[1], found[0])
