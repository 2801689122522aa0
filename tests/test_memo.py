"""A result is found once, and found again where what it follows from has changed."""

from __future__ import annotations

import pytest

from fewbayes.errors import UserError
from fewbayes.studies.memo import claim, content, recall, remember, rounded


def test_what_is_known_is_not_found_again(tmp_path):
    calls = []

    def find():
        calls.append(1)
        return {"mean": 0.5, "steps": (1, 2)}

    file = tmp_path / "looks" / "one.json"
    first = remember(file, {"model": "a", "steps": (1, 2)}, find)
    assert remember(file, {"steps": [1, 2], "model": "a"}, find) == first == {"mean": 0.5, "steps": [1, 2]}
    assert calls == [1]


def test_what_follows_from_something_else_is_found_anew(tmp_path):
    file = tmp_path / "one.json"
    remember(file, {"model": "a"}, lambda: 1)
    assert recall(file, {"model": "b"}) is None
    assert remember(file, {"model": "b"}, lambda: 2) == 2
    assert recall(file, {"model": "a"}) is None


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"found": 1}'])
def test_a_torn_memo_is_none(tmp_path, torn):
    (tmp_path / "one.json").write_text(torn)
    assert remember(tmp_path / "one.json", {}, lambda: 3) == 3


def test_a_folder_of_something_else_is_refused_and_says_what_differs(tmp_path):
    claim(tmp_path / "study" / "asked.json", {"model": "a", "steps": (4, 5)})
    claim(tmp_path / "study" / "asked.json", {"steps": [4, 5], "model": "a"})
    with pytest.raises(UserError, match="with model a, not b; give another output_dir"):
        claim(tmp_path / "study" / "asked.json", {"model": "b", "steps": [4, 5]})


def test_content_changes_with_a_name_and_with_a_byte_and_not_with_the_place(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place / "deep").mkdir(parents=True)
        (tmp_path / place / "deep" / "x").write_bytes(b"1")
    before = content(tmp_path / "a")
    assert content(tmp_path / "b") == before
    (tmp_path / "b" / "deep" / "x").write_bytes(b"2")
    assert content(tmp_path / "b") != before
    (tmp_path / "a" / "deep" / "x").rename(tmp_path / "a" / "deep" / "y")
    assert content(tmp_path / "a") != before


def test_rounding_keeps_what_is_no_number():
    assert rounded({"a": [0.123456, None, "x", 3]}) == {"a": [0.1235, None, "x", 3]}
