"""A small campaign of `hostile.py`: a few damages of each kind of file, and none that ends in a traceback."""

from __future__ import annotations

import logging
import sys

import pytest

from hostile import RULES, Count, Hang, Target, attack, build, outcome

DAMAGES, SLOW = 4, ("model", "opening", "adapter", "page of a run", "page of an experiment")
"""Of each file, and those whose readers load a model or draw curves, which get one; the whole campaign has hundreds."""


def _most(kind: str) -> int:
    return 1 if kind.startswith(SLOW) else DAMAGES


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured and limited as Linux has it")
@pytest.mark.filterwarnings("default")  # what libraries say of damaged files is theirs
def test_no_damaged_file_ends_in_a_traceback_a_hang_or_a_blow_up(tmp_path):
    logging.disable(logging.WARNING)
    try:
        counts = {target.kind: attack(target, most=_most(target.kind)) for target in build(tmp_path)}
    finally:
        logging.disable(logging.NOTSET)
    assert not [line for count in counts.values() for line in count.bad]
    assert all(sum(count.ends.values()) == _most(kind) for kind, count in counts.items())
    assert sum(count.ends["refused"] for count in counts.values()) > len(counts)


def forever() -> None:
    while True:
        pass


def test_the_campaign_sees_a_traceback_a_hang_and_a_blow_up(tmp_path, monkeypatch):
    monkeypatch.setattr("hostile.SECONDS", 0.2)
    assert outcome(lambda: {}["key"])[0] == "traceback"
    assert outcome(forever)[0] == "hang"
    assert outcome(lambda: bytearray(2**40))[0] == "memory"
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}')
    count = attack(Target("bad reader", file, lambda: len(file.read_bytes()) / (file.read_bytes() != b"")))
    assert count == Count(count.ends, [])
    assert count.ends["stopped with a message"] == 1  # ArithmeticError: division by zero
    assert file.read_text() == '{"a": 1}'
    assert Hang.__mro__[1] is BaseException  # no reader's `except Exception` swallows it
    assert {".json", ".jsonl", ".yaml", ".safetensors", ".png"} <= RULES.keys()
