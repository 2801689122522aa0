"""The page that follows a training: served to this machine, fresh when the run has news, closed to foreign pages."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from threading import Thread

import pytest

from fewbayes.cli import main
from fewbayes.errors import UserError
from fewbayes.page.live import server
from test_report import draw, watch, write_run


@pytest.fixture
def run(tmp_path):
    return watch(write_run(tmp_path / "run", steps=(0, 100), raw=(0.5,) * 2), [(0, "underfit"), (100, "good")])


@pytest.fixture
def address(run):
    with server(run) as here:
        thread = Thread(target=here.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{here.server_address[1]}/"
        here.shutdown()
        thread.join()


def get(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
        return answer.read().decode()


def test_the_page_is_new_when_the_run_has_news_and_only_then(run, address):
    first, page = get(address + "version"), get(address)
    assert f'data-version="{first}"' in page
    assert "connect-src 'self'" in page
    assert "Looks good at step 100" in page
    assert get(address + "version") == first
    with (run / "stages.jsonl").open("a") as rows:
        rows.write("\n" + json.dumps({"step": 200, "stage": "corrupted"}) + "\n")
    step = run / "samples" / "step-000200" / "raw"
    step.mkdir(parents=True)
    draw(16, 0.5, 40, 0).save(step / "00.png")
    assert get(address + "version") != first
    assert "Corrupted from step 200 on" in get(address)


def test_foreign_names_and_other_paths_get_nothing(address):
    for path, host in (
        ("", "evil.example"),
        ("", "127.0.0.1.evil.example:80"),
        ("config.yaml", "127.0.0.1:1"),
        ("..", ""),
    ):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(address + path, Host=host or "localhost:1")


def test_what_is_no_run_is_refused_before_anything_is_served(tmp_path, capsys):
    with pytest.raises(UserError, match="nor a run"):
        server(tmp_path)
    assert main(["report", str(tmp_path), "--live", "--output", "page.html"]) == 2
    assert main(["report", str(tmp_path), "--port", "8000"]) == 2
    assert "add --live" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(run):
    with server(run) as here, pytest.raises(UserError, match="cannot be used"):
        server(run, here.server_address[1])
