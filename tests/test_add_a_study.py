"""A new study is one file: the one of docs/extending.md, put into the package and run by its name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import fewbayes.studies as studies
from fewbayes.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")

SMALL = ["experiment", "toy", "--steps", "2", "--seeds", "1", "--workers", "1"]


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The study of the page, as a file of the package."""
    section = PAGE[PAGE.index("## Add a study") :]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "toy.py").write_text(found[1])
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path / "more")])
    yield
    sys.modules.pop("fewbayes.studies.toy", None)


def test_a_study_of_one_file_runs_from_its_name_to_a_table_and_a_picture(toy, tmp_path, capsys):
    assert main(["experiment", "--help"]) == 0
    assert "does a lower rate fit less closely?" in capsys.readouterr().out
    wanted = [*SMALL, "--output_dir", str(tmp_path / "out")]
    assert main([*wanted, "--subjects", "swirl_fish", "ringed_cat"]) == 0
    table, picture = (tmp_path / "out" / name for name in ("toy.md", "toy.png"))
    assert capsys.readouterr().out.splitlines() == [str(table), str(picture)]
    lines = table.read_text().splitlines()
    assert lines[0] == "| arm | last loss ↓ |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| Plain", "| A tenth of the rate"]
    assert all(re.search(r"\d\.\d{3} \(-?\d+\.\d{3} to \d+\.\d{3}\)", line) for line in lines[2:])
    assert picture.stat().st_size > 5000


def test_what_a_study_has_found_is_not_found_again(toy, tmp_path):
    wanted = [*SMALL, "--output_dir", str(tmp_path / "out")]
    assert main([*wanted, "--subjects", "swirl_fish"]) == 0
    memo = tmp_path / "out" / "swirl_fish" / "plain-seed0" / "toy.json"
    stamp = memo.stat().st_mtime_ns
    (memo.parent / "metrics.jsonl").unlink()
    assert main([*wanted, "--subjects", "swirl_fish"]) == 0
    assert memo.stat().st_mtime_ns == stamp
