"""The estimate of memory: what goes into it, what it refuses, and how near it comes to what is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import build_pipeline
from fewbayes.models import ModelCard, inspect_model
from fewbayes.settings.config import TrainConfig
from fewbayes.training import memory
from fewbayes.training.memory import check, estimate, free_memory
from fewbayes.training.train import train

slow = pytest.mark.skipif("FEWBAYES_SLOW" not in os.environ, reason="minutes and gigabytes; set FEWBAYES_SLOW=1")
SD15 = Path(__file__).parents[1] / "benchmarks/shapes/sd15"
PATHS = {"model": "tiny", "instance_data_dir": "-", "instance_prompt": "<v>", "output_dir": "-"}


@pytest.fixture(scope="module")
def sd15():
    """SD 1.5 by its config files alone."""
    return ModelCard("SD 1.5", SD15, "sd", "epsilon", 512)


def need(card, **changes):
    return estimate(card, TrainConfig(**PATHS | changes).resolve({}, card.resolution, 1))


def test_parts_of_full_fine_tuning_are_the_known_multiples_of_the_weights(sd15):
    parts = need(sd15).parts
    assert parts["gradients"] == 4 * 859_520_964
    assert parts["optimizer"] == 2 * parts["gradients"]
    positions = 8 * 77  # a buffer of the text encoder
    assert parts["model"] == 4 * (859_520_964 + 123_060_480 + 83_653_863) + positions
    bayes = need(sd15, bayes=True).parts
    assert bayes["deviations"] == 4 * 226_246_720
    assert bayes["gradients"] == parts["gradients"] + bayes["deviations"]
    fixed = need(sd15, bayes=True, weight_std_learn="fixed").parts
    assert (fixed["deviations"], fixed["gradients"]) == (0, parts["gradients"])


def test_lora_of_sd15_needs_little_beside_the_model_and_the_activations(sd15):
    parts = need(sd15, method="lora").parts
    assert parts["adapters"] == parts["gradients"] == 4 * 797_184
    assert need(sd15, method="lora").peak < 7e9 < 14e9 < need(sd15).peak < 20e9


def test_what_saves_memory_saves_memory(eps_model):
    card, base = inspect_model(str(eps_model)), {"method": "lora", "train_batch_size": 16}
    usual = need(card, **base).peak
    assert need(card, **base, gradient_checkpointing=True).peak < 0.8 * usual
    assert need(card, **base, mixed_precision="bf16").peak < 0.9 * usual
    assert need(card, method="lora").peak < 0.7 * usual
    assert need(card, use_8bit_adam=True).peak < 0.8 * need(card).peak


def test_class_images_need_what_a_batch_of_double_size_needs(eps_model):
    card = inspect_model(str(eps_model))
    prior = {"with_prior_preservation": True, "class_prompt": "a photo of dog"}
    double = need(card, method="lora", train_batch_size=2)
    assert need(card, method="lora", **prior).parts == double.parts


def test_a_rare_token_in_training_needs_the_text_encoders_activations(eps_model):
    card = inspect_model(str(eps_model))
    still, trained, all_of_it = (
        need(card, method="lora", **more).parts["activations"]
        for more in ({}, {"train_rare_token": True}, {"train_text_encoder": True})
    )
    assert still < trained < 1.2 * all_of_it


def test_an_error_of_the_estimate_itself_stops_no_run(eps_model, monkeypatch, caplog):
    def fails(*_, **__):
        raise RuntimeError("no fake tensor for this")

    monkeypatch.setattr(memory, "estimate", fails)
    config = TrainConfig(**PATHS, memory_limit="1MB").resolve({}, 32, 1)
    assert not check(inspect_model(str(eps_model)), config, torch.device("cpu")).parts
    assert "could not be estimated (RuntimeError: no fake tensor for this)" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_that_torch_keeps_for_the_next_run_is_free():
    device = torch.device("cuda")
    torch.zeros(1, device=device)
    before = free_memory(device)
    kept = torch.empty(2**30, dtype=torch.uint8, device=device)
    assert free_memory(device) < before - 2**29
    del kept
    assert abs(free_memory(device) - before) < 2**28


def test_counting_leaves_no_memory_behind(eps_model):
    """A second look is the first one's answer, and real tensors can be made as before."""
    card = inspect_model(str(eps_model))
    assert need(card) == need(card)
    assert torch.ones(2).sum() == 2


def test_a_model_of_known_shapes_is_counted_once_and_anew_where_they_have_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    looks, right = [], memory.meta_family
    monkeypatch.setattr(memory, "meta_family", lambda card: (looks.append(card), right(card))[1])

    def found(name, **shapes):
        """In a folder of its own, as another process would find it."""
        build_pipeline(tmp_path / name)
        config = tmp_path / name / "unet/config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | shapes))
        return need(ModelCard(name, tmp_path / name, "sd", "epsilon", 32))

    first = found("first")
    assert looks
    looks.clear()
    assert found("second") == first
    assert not looks
    assert found("third", layers_per_block=2) != first
    assert looks


def test_a_limit_is_refused_before_loading_with_the_ways_that_fit(settings, tmp_path):
    with pytest.raises(
        ValueError, match=r"need about .* and memory_limit is 50\.0 MB; most of it is for optimizer"
    ) as no:
        train(settings("run", model="tiny", memory_limit="50MB"), progress=False)
    assert "It would fit with method lora (about 3" in str(no.value)
    assert "gradient_checkpointing" not in str(no.value).partition("It would")[2]  # it saves less than is missing
    assert not (tmp_path / "run").exists()


def test_where_nothing_alone_fits_the_largest_savings_together_are_named(eps_model):
    card = inspect_model(str(eps_model))
    config = TrainConfig(**PATHS, memory_limit="0.5MB").resolve({}, 32, 1)
    with pytest.raises(ValueError, match=r"fit with method lora, gradient_checkpointing together"):
        check(card, config, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"Nothing here would make it fit .*smaller resolution"):
        check(card, TrainConfig(**PATHS, memory_limit="0.1MB").resolve({}, 32, 1), torch.device("cpu"))


def test_a_model_that_is_loaded_already_is_not_counted_again(eps_model):
    card = inspect_model(str(eps_model))
    config = TrainConfig(**PATHS).resolve({}, card.resolution, 1)
    assert (
        estimate(card, config).peak - estimate(card, config, loaded=True).peak == estimate(card, config).parts["model"]
    )


MEASURE = """
import ctypes, gc, json, sys
from pathlib import Path
from fewbayes.settings.config import TrainConfig
from fewbayes.models import inspect_model
from fewbayes.training.memory import estimate
from fewbayes.training.train import train

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

changes, photos, small, out = json.loads(sys.argv[1]), *sys.argv[2:]
def config(name, model):
    prompt = "a photo of <v> dog"
    return TrainConfig(model=model, instance_data_dir=photos, instance_prompt=prompt, output_dir=f"{out}/{name}",
                       max_train_steps=3, checkpointing_steps=0, **changes)
train(config("first", small), progress=False)  # so that libraries are there already
card = inspect_model("tiny")
need = estimate(card, config("run", "tiny").resolve({}, card.resolution, 1)).peak
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
train(config("run", "tiny"), progress=False)
print(json.dumps([need, resident("VmHWM") - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize(
    "changes",
    [{"bayes": True}, pytest.param({"method": "lora", "train_batch_size": 2}, marks=slow)],
    ids=["full-bayes", "lora"],
)
def test_what_is_measured_is_between_0_8_and_1_8_of_the_estimate(changes, eps_model, tmp_path):
    """The tiny model is so small that what the estimate leaves out, workspaces and scraps of the heap, shows."""
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photos/0.png")
    asked = [
        sys.executable,
        "-c",
        MEASURE,
        json.dumps(changes),
        str(tmp_path / "photos"),
        str(eps_model),
        str(tmp_path),
    ]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert told.returncode == 0, told.stderr[-2000:]
    estimated, measured = json.loads(told.stdout.splitlines()[-1])
    assert 0.8 < measured / estimated < 1.8


STEP = """
import json, sys
from contextlib import nullcontext
from pathlib import Path
import torch
from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.settings.config import TrainConfig
from fewbayes.models import ModelCard, meta_family
from fewbayes.training.memory import estimate
from fewbayes.methods import make_method

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

card = ModelCard("SD 1.5", Path(sys.argv[1]), "sd", "epsilon", 512)
method, bayes = sys.argv[2], sys.argv[3] == "bayes"
paths = dict.fromkeys(("model", "instance_data_dir", "output_dir"), "-")
config = TrainConfig(**paths, instance_prompt="<v>", method=method, bayes=bayes)
need = estimate(card, config.resolve({}, 512, 1)).peak
before = resident("VmRSS")
family = meta_family(card)
for module in family.modules.values():
    module.to_empty(device="cpu")
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.02)
method = make_method(config)
method.attach(family)
optimizer = torch.optim.AdamW(method.trainable(family).values(), fused=True)
from fewbayes.posterior.gaussian import GaussianPosterior
posterior = None
if bayes:
    module, where = method.random(family)
    posterior = GaussianPosterior(module, where=where, track_prior=False)
for step in range(2):
    with posterior.sample(step) if posterior else nullcontext():
        cond = Conditioning(tokens=torch.randn(1, 77, 768))
        family.predict(torch.randn(1, 4, 64, 64), torch.tensor([500]), cond).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
print(json.dumps([need, resident("VmHWM") - before]))
"""


@slow
@pytest.mark.parametrize(("method", "kind"), [("lora", "bayes"), ("full", "plain")])
def test_a_step_of_the_size_of_sd15_needs_what_is_estimated(method, kind):
    asked = [sys.executable, "-c", STEP, str(SD15), method, kind]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=1800)
    assert told.returncode == 0, told.stderr[-2000:]
    estimated, measured = json.loads(told.stdout.splitlines()[-1])
    print(f"estimated {estimated / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB")
    assert 0.8 < measured / estimated < 1.4
    assert measured < 24e9
