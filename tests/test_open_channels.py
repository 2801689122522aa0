"""Noise that training draws from an autoencoder's posterior, and who is told of it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import run_here
from fewbayes.diagnose.lookalikes import noisy_latents
from fewbayes.diagnose.verdict import explained
from fewbayes.models import load_family
from fewbayes.settings.config import TrainConfig
from fewbayes.training.batches import open_channels
from fewbayes.training.prepare import warn_of_open_channels
from fewbayes.training.train import train
from fewbayes.world.scenes import subject_photograph

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "noisy_latents.py"


@pytest.fixture(scope="module")
def noisy_model(tmp_path_factory):
    """The embedded model with an encoder that leaves channels 1 and 4 open."""
    folder = tmp_path_factory.mktemp("models") / "noisy"
    run_here(SCRIPT, "tiny", folder)
    return folder


def fish(count=2):
    return np.stack([np.round(subject_photograph("swirl_fish", i)[0] * 255).astype(np.uint8) for i in range(count)])


def test_a_channel_is_open_where_its_deviation_is_large_beside_its_spread():
    mean = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 0.1, 1]).view(
        3, 1, 1
    )
    found = open_channels(mean, torch.full((4, 3, 16, 16), 0.1))
    assert list(found) == [1]
    assert found[1] == pytest.approx(1, abs=0.1)


def test_the_noisy_copy_differs_in_nothing_but_the_noise(noisy_model):
    plain, noisy = load_family("tiny"), load_family(str(noisy_model))
    (mean, narrow), (same, wide) = (family.encode_images(fish()) for family in (plain, noisy))
    assert torch.equal(mean, same)
    assert not open_channels(mean, narrow)
    assert list(open_channels(same, wide)) == [1, 4]
    assert wide[:, 1].mean() == pytest.approx(0.85, rel=0.05)


def test_open_channels_are_a_cause_only_of_bad_pictures():
    mean, deviation = torch.randn(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    assert noisy_latents(mean, deviation, corrupted=False, drawn="draw").cause is None
    found = explained([noisy_latents(mean, deviation, corrupted=True, drawn="draw")])
    assert found is not None
    assert found.cause == "latents"
    assert noisy_latents(mean, deviation, corrupted=True, drawn="mean").cause is None
    assert noisy_latents(mean, 0.01 * deviation, corrupted=True, drawn="draw").cause is None


@pytest.mark.parametrize("noisy", [False, True])
def test_training_says_so_when_it_trains_on_noise(noisy, noisy_model, tmp_path, caplog):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.fromarray(fish(1)[0]).save(tmp_path / "photos" / "0.png")
    config = TrainConfig(
        model=str(noisy_model) if noisy else "tiny",
        instance_data_dir=str(tmp_path / "photos"),
        instance_prompt="a photo of a <v> fish",
        output_dir=str(tmp_path / "run"),
        max_train_steps=1,
        checkpointing_steps=0,
    )
    with caplog.at_level(logging.WARNING, "fewbayes"):
        train(config, progress=False)
    assert ("channels of the latents open, 1 (" in caplog.text) == noisy


def test_of_many_open_channels_the_worst_are_named(caplog):
    warn_of_open_channels({channel: channel / 10 for channel in range(1, 31)})
    assert "open, 25 (2.5 of its spread), 26 (2.6 of its spread)" in caplog.text
    assert "30 (3.0 of its spread) and 24 more, and" in caplog.text
    assert "24 (" not in caplog.text
