"""Whatever a file holds, reading it ends in a value of the asked type or in one message that says what to mend."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbayes.errors import UserError
from fewbayes.files import decode
from fewbayes.files.decode import Count, Meta, Positive, parse_json, parse_yaml, read_json, read_json_lines, read_yaml


@dataclass(frozen=True)
class Part:
    channels: list[Positive]
    name: str | None = None


@dataclass(frozen=True)
class Whole:
    steps: Count
    rate: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    status: Literal["done", "failed"] | None = None
    part: Part | None = None
    more: dict[str, list[Positive]] = field(default_factory=dict)


def said(tmp_path, content: str | bytes, kind: Any = Whole, read=read_json) -> str:
    path = tmp_path / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read(path, kind, cure="write it anew")
    text = str(caught.value)
    assert text.startswith(str(path))
    assert text.endswith("; write it anew")
    return text[len(str(path)) : -len("; write it anew")]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", ": steps is missing"),
        ("[]", " holds an empty list; it must be a table of named values"),
        ("null", " holds null; it must be a table of named values"),
        ('{"steps": "3"}', ': steps is "3"; it must be a whole number'),
        ('{"steps": 1.5}', ": steps is 1.5; it must be a whole number"),
        ('{"steps": true}', ": steps is true; it must be a whole number"),
        ('{"steps": -1}', ": steps is -1; it must be a whole number of at least 0"),
        ('{"steps": 1, "rate": 1}', ": rate is 1; it must be a number below 1.0"),
        ('{"steps": 1, "status": "odd"}', ': status is "odd", which is no value that is known here'),
        ('{"steps": 1, "part": {}}', ": part.channels is missing"),
        (
            '{"steps": 1, "part": {"channels": [1, {}]}}',
            ": part.channels[1] is an empty table; it must be a whole number",
        ),
        ('{"steps": 1, "part": {"channels": 3}}', ": part.channels is 3; it must be a list"),
        ('{"steps": 1, "steps": 2}', " is not JSON ('steps' is given twice)"),
        ('{"steps": NaN}', " is not JSON (NaN is not a finite number)"),
        ('{"steps": 1e999}', " is not JSON (1e999 is not a finite number)"),
        (f'{{"steps": {"9" * 9999}}}', " is not JSON (99999999999999999999... is too large a whole number)"),
        ("[" * 10**6, " is nested too deep (limit 64)"),
        (f'{{"steps": 1, "more": {"[" * 70}1{"]" * 70}}}', " is nested too deep (limit 64)"),
        ('{"steps": 1, "a": "\\u0000"}', " holds text with NUL or half a character: '\\x00'"),
        ('{"steps": 1, "a": "\\ud800"}', " holds text with NUL or half a character: '\\ud800'"),
        (b'{"steps": 1}\0', " is damaged or no text: it holds NUL bytes"),
        (b'{"steps": "\xff"}', " is damaged or no text: byte 11 is not UTF-8"),
    ],
)
def test_a_json_file_that_is_wrong_is_refused_by_key_found_and_wanted(tmp_path, content, problem):
    assert said(tmp_path, content) == problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("steps: 1\nsteps: 2", "steps is given twice"),
        ("a: &a [1]\nsteps: *a", "an alias (*) stands for a list or a table"),
        ("a: &a {b: 1}\nsteps: 1\n<<: *a", "an alias (*) stands for a list or a table"),
        ("[" * 100, "nested too deep (limit 64)"),
        ("steps: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("steps: 2001-99-99", "month must be in 1..12"),
        ("steps: " + "9" * 5000, "cannot be read as YAML"),
        ("? [a]\n: 1", "unhashable key"),
        ("steps: .inf", "not a finite number"),
        ("!!int ''", "cannot be read as YAML"),
        ("!!bool x", "cannot be read as YAML"),
        ("!!timestamp x", "cannot be read as YAML"),
    ],
)
def test_a_yaml_file_that_is_wrong_is_refused(tmp_path, content, problem):
    assert problem in said(tmp_path, content, read=read_yaml)


@pytest.mark.parametrize("merge", [False, True])
def test_a_yaml_bomb_is_refused_at_once(tmp_path, merge):
    """Nine times nine times ... of the same table."""
    lines = ["a0: &a0 {x: 1}"] + [
        f"a{i}: &a{i} {{{'<<: ' if merge else 'x: '}[{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 30)
    ]
    began = time.monotonic()
    assert "alias" in said(tmp_path, "\n".join(lines), read=read_yaml)
    assert time.monotonic() - began < 2


def test_an_alias_of_a_single_value_is_fine():
    assert parse_yaml("prompt: &p a dog\nvalidation_prompt: *p", "x") == {
        "prompt": "a dog",
        "validation_prompt": "a dog",
    }


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MOST_YAML", 100)
    assert "more than 100 bytes" in said(tmp_path, "steps: 1 #" + "x" * 100, read=read_yaml)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no file"):
        read_json(tmp_path, Whole)
    with pytest.raises(UserError, match="is missing"):
        read_json(tmp_path / "gone", Whole)
    with pytest.raises(UserError, match="cannot be read"):
        read_json(str(tmp_path / "x\0y"), Whole)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "file").write_bytes(b'\xef\xbb\xbf{"steps": 3}')
    assert read_json(tmp_path / "file", Whole) == Whole(steps=3)


def test_rows_are_named_by_their_line_and_a_torn_last_one_is_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"steps": 1}\n\n{"steps": 2}\n{"ste')
    assert read_json_lines(path, Whole, torn=True) == [Whole(steps=1), Whole(steps=2)]
    with pytest.raises(UserError, match=r"rows\.jsonl, line 4 is not JSON"):
        read_json_lines(path, Whole)
    path.write_text('{"steps": 1}\n{"steps": null}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2: steps is null; it must be a whole number"):
        read_json_lines(path, Whole)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
@settings(deadline=None)
def test_what_json_and_yaml_can_write_is_read_as_it_was(value):
    assert parse_json(json.dumps(value), "x") == value
    assert parse_yaml(yaml.safe_dump(json.loads(json.dumps(value))), "x") == value


@given(st.binary(max_size=200) | st.text("{}[]:,&*!?-\"'#|>%@` \n\t0123456789abcdefx.~=<\\u", max_size=60))
@settings(deadline=None, max_examples=400)
def test_nothing_that_a_file_can_hold_ends_in_anything_but_a_value_or_a_refusal(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (read_json, read_yaml, read_json_lines):
        for kind in (Whole, dict[str, Any]):
            with contextlib.suppress(UserError):
                read(path, kind)


ELSEWHERE = {
    "export/foreign.py",  # a stranger's program, which must not import this package
    "export/verify.py",  # the last line that this program prints
    "files/decode.py",
    "files/safetensors.py",  # a header that was written a moment ago, in the library's own spelling
    "models/tokens.py",  # a tokenizer's state in memory
    "settings/config.py",  # its own text, to see that it reads back
    "studies/memo.py",  # a value in memory, as JSON gives it back
}


def test_every_file_is_read_through_here():
    source = Path(__file__).parents[1] / "src" / "fewbayes"
    reading = re.compile(r"\bjson\.loads?\(|\byaml\.(safe_)?load\(")
    found = {p.relative_to(source).as_posix() for p in source.rglob("*.py") if reading.search(p.read_text("utf-8"))}
    assert found == ELSEWHERE
