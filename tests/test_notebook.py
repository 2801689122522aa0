"""The notebook of docs/ runs and is kept without outputs; every module has its page of the API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
slow = pytest.mark.skipif("FEWBAYES_SLOW" not in os.environ, reason="a training; set FEWBAYES_SLOW=1")


def test_the_notebook_is_kept_without_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in said) == 3
    assert (tmp_path / "quickstart/fish/report.html").is_file()
    assert not [output for output in said if output["output_type"] == "error"]


@slow
def test_every_module_has_its_page(tmp_path):
    pytest.importorskip("pdoc")
    subprocess.run([sys.executable, "-m", "pdoc", "-o", tmp_path, "fewbayes"], check=True, capture_output=True)
    assert (tmp_path / "fewbayes/posterior/gaussian.html").is_file()
    assert "GaussianPosterior" in (tmp_path / "fewbayes/posterior/gaussian.html").read_text("utf-8")
