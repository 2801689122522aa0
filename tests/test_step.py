"""What a training step costs beyond its arithmetic: nothing that is not needed, and never other numbers."""

import json
import os

import pytest
import torch
from torch import nn

from fewbayes.models import load_family
from fewbayes.settings.config import TrainConfig
from fewbayes.training import mode
from fewbayes.training.optimize import clip_gradients
from fewbayes.training.train import train


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
