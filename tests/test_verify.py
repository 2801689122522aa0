"""Verification sees what it must see: a file that loads elsewhere, one that does not, one that changes nothing."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from conftest import short_run
from fewbayes.cli import main
from fewbayes.export import foreign, run_export, verify
from fewbayes.export.record import Record, read_record
from fewbayes.export.verify import compare, run_verify
from fewbayes.training.train import train

EXACT = Record(
    format="kohya",
    loader="lora",
    run="../dog",
    base_model="tiny",
    base_sha256="0" * 64,
    family="sd",
    prediction_type="epsilon",
    instance_prompt="a photo of a <v> dog",
    resolution=32,
)


def flat(level: int) -> list[np.ndarray]:
    return [np.full((4, 4, 3), level, dtype=np.uint8)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, eps_model, photos):
    """A LoRA trained at a rate that shows."""
    how = {"instance_prompt": "a photo of a <v> dog", "method": "lora", "learning_rate": 0.3, "max_train_steps": 3}
    return train(short_run(eps_model, photos, tmp_path_factory.mktemp("verify") / "dog", **how)).folder


@pytest.fixture
def in_this_process(monkeypatch):
    """Call it, and the foreign program runs here: its start takes six seconds, and one true start is enough."""

    def run(command, **_):
        foreign.main(command[3:])
        return CompletedProcess(command, 0, json.dumps({"fewbayes_imported": False}), "")

    return lambda: monkeypatch.setattr(verify, "subprocess", SimpleNamespace(run=run))


def test_the_foreign_program_imports_nothing_of_ours():
    tree = ast.parse(Path(foreign.__file__).read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.startswith(("fewbayes", "."))]


def test_an_export_agrees_and_a_spoilt_one_does_not(run, tmp_path, capsys, in_this_process):
    export = tmp_path / "export"
    assert run_export([str(run), "--format", "kohya", "--output_dir", str(export)]) == 0
    asked = [str(export), "--num_images", "1", "--num_inference_steps", "2"]
    assert run_verify(asked) == 0
    assert "the same pictures" in capsys.readouterr().out
    written = json.loads((export / "verify.json").read_text())
    assert written["agrees"]
    assert written["max"] <= 2 < written["base_mean"]

    path = export / read_record(export).file
    save_file({name: weight * (0 if "lora_up" in name else 1) for name, weight in load_file(path).items()}, path)
    in_this_process()
    assert run_verify(asked) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_a_file_that_does_not_load_elsewhere_is_said_with_the_words_of_the_loader(
    run, tmp_path, eps_model, capsys, in_this_process
):
    in_this_process()
    export = tmp_path / "export"
    run_export([str(run), "--format", "kohya", "--output_dir", str(export)])
    record = read_record(export)
    path = export / record.file
    save_file({f"{name}.odd": weight for name, weight in load_file(path).items()}, path)
    how = {"steps": 1, "guidance": 1.0, "resolution": 32}
    with pytest.raises(ValueError, match=r"does not load where it is meant to[\s\S]*ValueError in _convert"):
        verify.sample_foreign(export, record, eps_model, "a dog", [0], how)
    path.write_bytes(path.read_bytes()[:100])
    (export / "verify.json").write_text("{}")
    assert main(["verify", str(export), "--num_images", "1", "--num_inference_steps", "1"]) == 2
    assert str(export) in capsys.readouterr().err
    assert not (export / "verify.json").exists()  # no verdict on files that are no more


def test_small_differences_agree_and_large_ones_do_not():
    assert compare(flat(101), flat(100), flat(50), EXACT).agrees
    assert not compare(flat(103), flat(100), flat(50), EXACT).agrees
    assert not compare(flat(102), flat(100), flat(50), replace(EXACT, dtype="fp16")).agrees


def test_an_approximation_has_to_be_nearer_than_the_base_model():
    approximation = replace(EXACT, residual=[{"group": "all", "residual": 0.3}])
    near = compare(flat(110), flat(100), flat(50), approximation)
    assert near.agrees
    assert "80% of the way" in near.verdict
    assert not compare(flat(40), flat(100), flat(50), approximation).agrees


def test_agreement_with_a_run_that_changed_nothing_is_said_to_show_nothing():
    nothing = compare(flat(100), flat(100), flat(100), EXACT)
    assert "cannot show" in nothing.verdict
    assert not nothing.agrees
    assert compare(flat(100), flat(100), flat(50), EXACT).agrees


def test_half_precision_has_to_be_much_nearer_than_the_base_model():
    half = replace(EXACT, dtype="fp16")
    assert compare(flat(101), flat(100), flat(104), half).agrees
    assert not compare(flat(101), flat(100), flat(103), half).agrees


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no export"):
        run_verify([str(tmp_path)])
