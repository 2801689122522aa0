"""A grid of trainings: errors are those of the work, and how far weights have gone is told by what they do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from safetensors.torch import save_file

from adapted import attaching, trained
from fewbayes.methods.adapters import ADAPTER, adapter_layers
from fewbayes.studies import followed, grid
from fewbayes.studies.grid import Arm, Training


def failing(training: Training) -> None:
    raise ArithmeticError(f"{training.arm.name} went wrong")


def test_a_damaged_manifest_hides_no_error_of_the_work(settings, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text("{")
    training = Training(cast(Any, None), Arm("plain", "Plain", {}), 0, replace(settings(), output_dir=str(folder)))
    with pytest.raises(RuntimeError, match="ArithmeticError: plain went wrong"):
        grid.run([training], failing, workers=1)


@pytest.mark.parametrize("kind", [{}, {"lora_alpha": 8.0}, {"lora_alpha": 8.0, "use_rslora": True}])
def test_a_lora_has_gone_as_far_as_what_it_adds_to_the_weights(family, settings, tmp_path, kind):
    with attaching("lora", family, settings) as attached:
        method = attached(rank=4, **kind)
        trained(method, family)
        save_file(dict(method.trainable(family)), tmp_path / "weights.safetensors")
        layers = adapter_layers(family.denoiser).values()
        added = sum(float(layer.get_delta_weight(ADAPTER).detach().square().sum()) for layer in layers)
        cell = cast(Any, SimpleNamespace(config=method.config))
        assert followed._displacement(Path(tmp_path), cell) == pytest.approx(added**0.5, rel=1e-5)
    dora = cast(Any, SimpleNamespace(config=replace(method.config, use_dora=True)))
    assert followed._displacement(Path(tmp_path), dora) is None
