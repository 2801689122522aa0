"""What a training step costs beyond its arithmetic: nothing that is not needed, and never other numbers."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from fewbayes.models import load_family
from fewbayes.settings.config import TrainConfig
from fewbayes.training import mode
from fewbayes.training.optimize import clip_gradients
from fewbayes.training.train import train

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("largest", [1e-3, 1.0, 1e3])
def test_gradients_are_clipped_as_by_torch_bit_for_bit(largest):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(2))]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    for mine, other in zip(ours[:2], theirs, strict=False):  # the last has none
        mine.grad = torch.randn_like(mine)
        other.grad = mine.grad.clone()
    norm = clip_gradients(ours, largest)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs, largest))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours[:2], theirs, strict=False))


def test_gradients_that_are_no_numbers_stay_so():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, torch.nan])
    assert clip_gradients([weight], 1.0).isnan()
    assert weight.grad.isnan().all()


def test_asking_for_the_device_walks_no_modules(eps_model, monkeypatch):
    family = load_family(str(eps_model))
    monkeypatch.setattr(type(family.denoiser), "device", property(lambda _: pytest.fail("this walks all modules")))
    assert family.device == torch.device("cpu")


@pytest.mark.parametrize("variant", ["textbook", "authors"])
def test_the_layers_that_we_are_timed_against_draw_and_diverge_as_they_should(variant, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from drawn_layers import WEIGHT_STD, convert

    torch.manual_seed(0)
    layer = nn.Linear(400, 300)
    prior = Normal(layer.weight.detach().clone(), WEIGHT_STD)
    convert(layer, variant, prior=True)
    with torch.no_grad():
        noise = layer(torch.eye(400)).T - layer.bias[:, None] - layer.weight  # the bias is drawn as well
        assert noise.std().item() == pytest.approx(WEIGHT_STD * 2**0.5, rel=0.2)
        layer.weight.add_(0.003)
        layer.spread_weight.mul_(0.9)
    std = layer.spread_weight.detach() if variant == "authors" else nn.functional.softplus(layer.spread_weight.detach())
    here = Normal(layer.weight.detach(), std)
    expected = kl_divergence(here, prior) if variant == "textbook" else kl_divergence(prior, here)
    assert layer.kl().item() == pytest.approx(expected.sum().item(), rel=1e-3)
    layer.kl().backward()
    assert layer.spread_weight.grad.abs().min() > 0


@pytest.mark.skipif("FEWBAYES_SLOW" not in os.environ, reason="half a minute; set FEWBAYES_SLOW=1")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_compiled_denoiser_has_the_same_graphs_for_all_steps(method, eps_model, photos, tmp_path, monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(mode, "BACKEND", counter)
    family = load_family(str(eps_model))

    def losses(name, steps, **settings):
        out = tmp_path / name
        config = TrainConfig(
            model=str(eps_model),
            instance_data_dir=str(photos),
            instance_prompt="a photo of <v>",
            output_dir=str(out),
            method=method,
            bayes=True,
            max_train_steps=steps,
            checkpointing_steps=0,
            **settings,
        )
        train(config, family=family, progress=False)
        rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        return [row["value"] for row in rows if row["metric"] == "loss"]

    eager = losses("eager", 4)
    assert not counter.frame_count
    compiled = losses("compiled", 4, compile=True, validation_steps=2, num_inference_steps=2)
    graphs = counter.frame_count
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert family.denoiser._compiled_call_impl is None
    torch._dynamo.reset()
    counter.clear()
    losses("longer", 8, compile=True)
    assert counter.frame_count == graphs > 0
