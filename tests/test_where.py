import pytest
import torch
from torch import nn

from fewbayes.models.unet_clip import LAYER_GROUPS
from fewbayes.posterior.where import PRESETS, Rule, select


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.Linear(4, 4)
        self.attn2 = nn.Linear(4, 4)
        self.time_emb_proj = nn.Linear(2, 4)
        self.norm1 = nn.LayerNorm(4)
        self.conv = nn.Conv2d(4, 4, 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList([Block()])
        self.up_blocks = nn.ModuleList([Block()])
        self.time_embedding = nn.Linear(1, 2)


def names(where, module=None) -> list[str]:
    rule = Rule(where, LAYER_GROUPS) if isinstance(where, str) else where
    return [selected.name for selected in select(module or Net(), rule)]


@pytest.fixture(scope="module")
def stable_diffusion_unet() -> nn.Module:
    """The U-Net of Stable Diffusion 1.5, without memory."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=768,
            attention_head_dim=8,
        )


@pytest.mark.parametrize(
    ("where", "weights"),
    [
        ("linear", 226_246_720),  # 26.3 %
        ("linear-no-time", 198_371_200),  # 23.08 %, the authors' script
        ("linear-up", 118_864_320),  # 13.83 %, as the paper counts
        ("linear-cross", 270_209_280),  # 31.4 %
        ("norm", 200_320),  # 0.02 %
        ("all", 859_520_964),
        (r"pattern:^up_blocks\..*\.(attn1|ff)\.(?!.*norm)", 103_286_400),  # 12.02 %
    ],
)
def test_presets_count_the_weights_of_stable_diffusion(stable_diffusion_unet, where, weights):
    chosen = select(stable_diffusion_unet, Rule(where, LAYER_GROUPS))
    assert sum(selected.parameter.numel() for selected in chosen) == weights


def test_the_authors_script_converts_144_tensors(stable_diffusion_unet):
    assert len(select(stable_diffusion_unet, Rule("linear-no-time", LAYER_GROUPS))) == 144
    assert len(select(stable_diffusion_unet, Rule("linear", LAYER_GROUPS))) == 192


def test_linear_leaves_out_cross_attention_and_keeps_biases():
    assert "down_blocks.0.attn1.bias" in names("linear")
    assert not [name for name in names("linear") if "attn2" in name]
    assert set(names("linear-cross")) - set(names("linear")) == {
        f"{side}_blocks.0.attn2.{key}" for side in ("down", "up") for key in ("weight", "bias")
    }


def test_time_layers_are_what_separates_paper_and_script():
    assert {name.split(".")[-2] for name in set(names("linear")) - set(names("linear-no-time"))} == {
        "time_emb_proj",
        "time_embedding",
    }


def test_a_pattern_is_searched_in_the_whole_name():
    assert names(r"pattern:^up.*conv\.weight$") == ["up_blocks.0.conv.weight"]


def test_a_predicate_sees_path_module_and_parameter_name():
    chosen = names(lambda name, module, key: isinstance(module, nn.Conv2d) and key == "bias" and name.startswith("up"))
    assert chosen == ["up_blocks.0.conv.bias"]


def test_tied_weights_are_selected_once():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    assert names("linear", module) == ["0.weight", "0.bias", "1.bias"]


def test_a_tied_weight_is_found_under_the_name_that_matches():
    module = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    module["head"].weight = module["embedding"].weight
    assert names("linear", module) == ["head.weight"]


def test_frozen_weights_are_never_selected():
    module = Net()
    module.down_blocks.requires_grad_(False)
    assert all(not name.startswith("down") for name in names("all", module))


@pytest.mark.parametrize("where", ["norm", "pattern:nowhere", lambda *_: False])
def test_selecting_nothing_lists_what_could_be_selected(where):
    with pytest.raises(ValueError, match=r"selects nothing in Sequential(?s:.)*Linear: 2 parameters, e.g. 0.weight"):
        select(nn.Sequential(nn.Linear(2, 2)), where)


def test_selecting_nothing_names_the_presets_that_would_do():
    with pytest.raises(ValueError, match="by norm, all, pattern"):
        select(nn.Sequential(nn.LayerNorm(2)), "linear")


def test_a_frozen_module_has_nothing_to_select():
    with pytest.raises(ValueError, match="no trainable parameter"):
        select(nn.Linear(2, 2).requires_grad_(False), "all")


def test_unknown_names_are_answered_with_the_known():
    with pytest.raises(ValueError, match=", ".join(PRESETS)):
        select(Net(), "liner")


def test_without_groups_a_preset_chooses_by_kind_of_layer_alone():
    assert {selected.name for selected in select(Net(), "linear")} == set(names("linear-cross"))


def test_a_preset_of_layers_that_a_model_has_not_is_refused_and_one_that_leaves_them_out_is_not():
    groups = {"self-attention": "attn1"}
    with pytest.raises(ValueError, match="where='linear-up' is of layers called up, which"):
        Rule("linear-up", groups)
    assert select(Net(), Rule("linear", groups))


def test_a_broken_pattern_is_named():
    with pytest.raises(ValueError, match="not a regular expression"):
        select(Net(), "pattern:(")


def test_weights_that_cannot_be_random_are_refused():
    module = nn.Linear(2, 2)
    module.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"weight holds torch\.complex64"):
        select(module, "linear")


def test_tensor_subclasses_are_refused():
    class Packed(torch.Tensor):
        pass

    module = nn.Linear(2, 2)
    module.weight = nn.Parameter(torch.zeros(2, 2).as_subclass(Packed))
    with pytest.raises(ValueError, match="Packed"):
        select(module, "linear")
