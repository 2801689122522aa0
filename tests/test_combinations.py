"""Every method with every family, plain and Bayesian, with and without class images, cached and not."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from fewbayes.methods import registered
from fewbayes.models import load_family
from fewbayes.runs.folder import read_metrics
from fewbayes.settings.config import TrainConfig
from fewbayes.training.train import train

ARMS = [(name, bayes) for name, entry in registered().items() for bayes in (False, True)]
MODELS = ("eps_model", "v_model", "sdxl_model")


@pytest.fixture(scope="module", params=MODELS)
def shared(request):
    """A model of each family, loaded once; every run has to give it back as it was."""
    family = load_family(str(request.getfixturevalue(request.param)))
    family.encode_prompts(["a photo"])  # transformers put hooks of their own into SDXL's encoders at the first call
    return family


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("class")


def as_it_is(family) -> dict[str, object]:
    """Values, names, classes, hooks and modes of all that a method may touch."""
    found: dict[str, object] = {}
    for part, module in {"denoiser": family.denoiser, **family.text_encoders}.items():
        found |= {f"{part}.{name}": value.clone() for name, value in module.state_dict().items()}
        for name, layer in module.named_modules():
            hooks = len(layer._forward_hooks) + len(layer._forward_pre_hooks)
            found[f"{part}.{name} is"] = (type(layer), hooks, layer.training, getattr(layer, "p", None))
        found[f"{part} trains"] = any(weight.requires_grad for weight in module.parameters())
    return found


def assert_same(before: dict, after: dict) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name], name


@pytest.mark.parametrize(("method", "bayes"), ARMS, ids=lambda value: str(value))
def test_it_trains_and_leaves_its_result_and_the_family_as_it_was(
    shared, photos, class_folder, tmp_path, method, bayes
):
    before = as_it_is(shared)
    for preserving, cached in product((False, True), (False, True)):
        prior = {
            "with_prior_preservation": True,
            "class_prompt": "a photo of dog",
            "class_data_dir": str(class_folder),
            "num_class_images": 2,
        }
        config = TrainConfig(
            model=shared.card.model,
            instance_data_dir=str(photos),
            instance_prompt="a photo of <v> dog",
            output_dir=str(tmp_path / f"{preserving}{cached}"),
            method=method,
            bayes=bayes,
            cache_latents=cached,
            max_train_steps=2,
            learning_rate=1e-3,
            checkpointing_steps=0,
            num_inference_steps=1,
            guidance_scale=1.0,
            **(prior if preserving else {}),
        )
        folder = train(config, family=shared, progress=False).folder
        assert (folder / registered()[config.method].result_in(shared)).is_file()
        assert (folder / "posterior.json").is_file() == bayes
        assert losses(folder) == pytest.approx(losses(tmp_path / f"{preserving}False"), rel=1e-3)  # cached or not
        assert_same(before, as_it_is(shared))


def losses(folder: Path) -> list[float]:
    found = [row["value"] for row in read_metrics(folder / "metrics.jsonl") if row["metric"] == "loss"]
    assert len(found) == 2
    return found
