"""How many weights are random on the true shapes of SD 1.5, SD 2.1 and SDXL, against the paper and by hand."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fewbayes.models import meta_denoiser, meta_family, parameter_counts

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PAPER = {  # Table 4: the share of the U-Net that is random, and the count behind it
    "linear": (0.263, 226_246_720),
    "linear-no-time": (0.231, 198_371_200),
    "linear-up": (0.138, 118_864_320),
    "linear-cross": (0.314, 270_209_280),
    "norm": (0.0002, 200_320),
    "all": (1.0, 859_520_964),
}


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(BENCHMARKS))
    import counts

    yield counts
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def sd15(benchmark):
    return meta_family(benchmark.card_of("sd15"))


@pytest.mark.parametrize(
    ("shape", "denoiser", "text_encoders"),
    [
        ("sd15", 859_520_964, [123_060_480]),
        ("sd21", 865_910_724, [340_387_840]),
        ("sdxl", 2_567_463_684, [123_060_480, 694_659_840]),
    ],
)
def test_the_shapes_are_those_of_the_published_models(benchmark, shape, denoiser, text_encoders):
    counts = parameter_counts(benchmark.card_of(shape))
    assert counts.pop("denoiser") == denoiser
    assert counts.pop("vae") == 83_653_863
    assert list(counts.values()) == text_encoders


@pytest.mark.parametrize("where", PAPER)
def test_random_weights_of_sd_15_are_those_of_the_paper(benchmark, sd15, where):
    row, (share, count) = benchmark.counted(sd15, "full", where), PAPER[where]
    assert (row["random"], row["trained"]) == (count, 859_520_964)
    assert abs(row["share_of_denoiser"] - share) < 5e-4


def attention_layers(denoiser):
    return [
        layer
        for name, layer in denoiser.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    ]


@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_lora_and_oft_train_what_their_formulas_say(benchmark, shape):
    """LoRA: r (in + out), of which r out are random; OFT: the upper triangles of 4 blocks of the inputs, all random."""
    family = meta_family(benchmark.card_of(shape))
    layers = attention_layers(family.denoiser)
    lora, oft = benchmark.counted(family, "lora", rank=4), benchmark.counted(family, "oft", oft_blocks=4)
    assert lora["trained"] == sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    assert lora["random"] == sum(4 * layer.out_features for layer in layers)
    blocks = [layer.in_features // 4 for layer in layers]
    assert oft["trained"] == oft["random"] == sum(4 * block * (block - 1) // 2 for block in blocks)


def test_counting_leaves_the_family_as_it_was(benchmark, sd15):
    before = [(name, type(module)) for name, module in sd15.denoiser.named_modules()]
    benchmark.counted(sd15, "lora", rank=4)
    assert [(name, type(module)) for name, module in sd15.denoiser.named_modules()] == before
    assert not any(parameter.requires_grad for parameter in sd15.denoiser.parameters())


def test_a_denoiser_of_shapes_alone_takes_no_memory(benchmark):
    denoiser = meta_denoiser(benchmark.card_of("sd21"))
    assert {parameter.device for parameter in denoiser.parameters()} == {torch.device("meta")}


def test_the_written_results_are_those_of_today(benchmark, sd15):
    written = json.loads((BENCHMARKS / "results/counts.json").read_text())
    today = [benchmark.counted(sd15, "full", where) for where in PAPER] + [benchmark.counted(sd15, "lora", rank=4)]
    rows = [row for row in written["rows"] if row["model"] == "SD 1.5" and row["method"] != "oft"]
    assert rows == today
    assert (BENCHMARKS / "results/counts.md").read_text() == benchmark.as_table(written)
