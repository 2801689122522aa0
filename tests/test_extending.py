"""The walks of docs/extending.md, each taken as the page says it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PAGE = Path(__file__).parents[1] / "docs/extending.md"


def code_of(section: str) -> str:
    """The first Python block of a section of the page."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2]
    return re.findall(r"```python\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)[0]


@pytest.fixture
def with_custom(tmp_path):
    """`fewbayes` as it is, with the page's file among its methods: with_custom("train", ...)."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/custom.py").write_text(code_of("Add a method"))
    code = f"""if True:
        import sys, fewbayes.methods
        fewbayes.methods.__path__.append({str(tmp_path / "methods")!r})
        from fewbayes.cli import main
        raise SystemExit(main(sys.argv[1:]))
    """
    return lambda *arguments: subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_a_method_is_one_file(with_custom, settings, eps_model, tmp_path):
    assert "custom: keys and values of cross-attention" in " ".join(with_custom("train", "--help").stdout.split())
    run = tmp_path / "run.yaml"
    run.write_text(settings().to_yaml())
    wrong = with_custom("train", str(run), "--custom-layers", "to_v")
    assert (wrong.returncode, "which method full never uses" in wrong.stderr) == (2, True)
    done = with_custom(
        *("train", str(run), "--method", "custom", "--custom-layers", "to_v", "--max_train_steps", "2"),
        *("--bayes", "--weight_std", "0.1"),
    )
    assert done.returncode == 0, done.stderr
    weights = [load_file(next((folder / "unet").glob("*.safetensors"))) for folder in (eps_model, tmp_path / "run")]
    moved = {name for name, before in weights[0].items() if not torch.equal(before, weights[1][name])}
    assert moved == {name for name in weights[0] if "attn2.to_v" in name}
