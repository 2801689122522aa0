"""The registry of metrics: complete words, no torch, and what a metric's own mistake looks like."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewbayes.files.decode import plain_json_lines
from fewbayes.metrics import features, registry
from fewbayes.metrics.encoders.base import load_from
from fewbayes.metrics.encoders.places import Place
from fewbayes.metrics.evaluate import evaluate_folder, summary
from fewbayes.metrics.layout import METRICS
from fewbayes.metrics.registry import Metric, in_table, register, registered
from fewbayes.metrics.scores import Mean, Unavailable
from fewbayes.page.evaluation.page import write_evaluation_report
from small_encoders import build_embedded, picture
from test_extending import code_of

DOCS = Path(__file__).parents[1] / "docs"
BETTER = {"higher": 1, "lower": -1, "": 0}


@pytest.fixture
def one_more(monkeypatch):
    """A registry whose additions are forgotten after the test."""
    registered()
    monkeypatch.setattr(registry.METRICS, "_things", registry.METRICS.all())
    monkeypatch.setattr(features, "OF_PIXELS", dict(features.OF_PIXELS))


@pytest.fixture
def scene(tmp_path):
    for folder, seeds in (("samples", range(4)), ("reference", range(10, 13))):
        (tmp_path / folder).mkdir()
        for seed in seeds:
            picture(seed).save(tmp_path / folder / f"{seed:02d}.png")
    encoders = load_from(Place(build_embedded(tmp_path / "encoders"), "cpu", world=True))
    return {"source": tmp_path / "samples", "reference_dir": tmp_path / "reference", "encoders": encoders}


def test_the_papers_five_come_first_and_each_column_is_taken_once():
    assert [metric.title for metric in in_table("paper")] == ["Clip-T", "Dino", "Clip-I", "Lpips", "Clip-IQA"]
    assert registered()[:5] == in_table("paper")
    for table in ("paper", "beside"):
        assert [metric.place[1] for metric in in_table(table)] == list(range(1, len(in_table(table)) + 1))


def test_every_metric_says_what_it_measures_in_one_line_of_its_own():
    for metric in registered():
        assert metric.title[0].isupper(), metric.name
        assert metric.says, metric.name
        assert not metric.says.endswith("."), metric.name
    assert len({metric.title for metric in registered()}) == len(registered())


def test_what_paper_mode_computes_are_the_papers_five():
    assert {metric.name for metric in registered() if metric.paper} == {metric.name for metric in in_table("paper")}


def test_only_what_is_computed_of_references_can_have_a_ceiling():
    assert all(metric.real for metric in registered() if metric.ceiling)


def test_the_page_of_metrics_names_each_with_its_direction_and_its_encoder():
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (higher|lower|) ?\| (\w*) ?\|$", (DOCS / "metrics.md").read_text(), re.M)
    said = {name: (BETTER[better], encoder or None) for name, better, encoder in rows}
    assert said == {metric.name: (metric.better, metric.encoder) for metric in registered()}


def test_the_registry_brings_in_nothing_heavy():
    code = "import sys; from fewbayes.metrics.registry import registered; registered(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "diffusers", "scipy", "matplotlib"} & set(loaded)


def test_a_name_is_taken_once_in_every_registry_and_a_second_is_a_mistake_of_ours():
    from fewbayes.methods import registry as methods
    from fewbayes.metrics.encoders import base as encoders
    from fewbayes.models import registry as families

    class Another:
        name, pipeline_class = "another", "StableDiffusionPipeline"

    families.families()
    for register_again, name in (
        (lambda: register(registered()[0]), registered()[0].name),
        (lambda: methods.register(methods.registered()["lora"]), "lora"),
        (lambda: encoders.register(encoders.ROLES.all()["dino"]), "dino"),
        (lambda: families.register(Another), "StableDiffusionPipeline"),
    ):
        with pytest.raises(AssertionError, match=name):
            register_again()


def test_only_unavailable_is_a_missing_value_and_a_mistake_keeps_its_traceback(one_more, scene):
    def refused(case, samples):
        raise Unavailable("it is Sunday")

    def mistaken(case, samples):
        return Mean.over(np.ones(3) @ np.ones(4))

    register(Metric("sunday", "Sunday", "nothing", refused))
    [row] = [row for row in evaluate_folder(**scene).rows if row.metric == "sunday" and row.row == "samples"]
    assert (row.value, row.reason) == (None, "it is Sunday")
    register(Metric("mistaken", "Mistaken", "a product of shapes that do not agree", mistaken))
    with pytest.raises(ValueError, match="mismatch"):
        evaluate_folder(**scene)


def test_a_metric_is_one_file_and_stands_in_rows_table_and_page(one_more, scene, tmp_path):
    """The page on extending holds the whole file; its numbers are those of a plain loop."""
    file = tmp_path / "contrast.py"
    file.write_text(code_of("Add a metric"))
    spec = importlib.util.spec_from_file_location("fewbayes.metrics.measures.contrast", file)
    assert spec
    assert spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    output = tmp_path / "out"
    result = evaluate_folder(**scene, output_dir=output, subject="rex")
    for row, folder in (("samples", "source"), ("real", "reference_dir")):
        levels = [np.asarray(Image.open(f).convert("L")).std() for f in sorted(scene[folder].glob("*.png"))]
        assert result.value("contrast", row=row) == pytest.approx(np.mean(levels))
    written = [row for _, row in plain_json_lines(output / METRICS) if row["metric"] == "contrast"]
    assert [(row["row"], row["n"], row["encoder"]) for row in written] == [("samples", 4, None), ("real", 3, None)]
    assert len([row for row in result.images if row.metric == "contrast"]) == 4
    assert any(line.startswith("contrast ") for line in summary(result))
    page = write_evaluation_report(output).read_text()
    table = (output / "table.md").read_text()
    assert "Contrast |" in table
    assert f"{result.value('contrast'):.1f}" in table
    assert "spread of the grey levels" in page
