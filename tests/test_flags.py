"""Flags of a dataclass: how a command line becomes what is asked, and what is said where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.settings.flags import parse_command


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Paint pictures."""

    source: str = setting(positional=True)
    """What is painted."""
    prompt: tuple[str, ...]
    """May be repeated."""
    colours: tuple[str, ...] = setting(("red",), several=True, choices=("red", "blue"))
    """All of them."""
    folder: Path | None = None
    """None: beside the source."""
    layers: int = setting(2, above=0)
    """One over another."""
    speed: float | None = setting(None, above=0, below=1)
    """Of the brush."""
    weights: Literal["raw", "ema"] | None = None
    """Of a run."""
    quick: bool = False
    """Fewer layers."""


def paint(*arguments: str) -> Asked:
    return parse_command(Asked, arguments, "paint")


def test_words_become_fields_of_their_types():
    asked = paint("--prompt", "a", "fish", "--prompt=b c", "--folder", "x/y", "--layers", "3", "--quick")
    assert asked == Asked(source="fish", prompt=("a", "b c"), folder=Path("x/y"), layers=3, quick=True)


def test_a_flag_of_several_takes_all_words_up_to_the_next_flag():
    assert paint("fish", "--colours", "red", "blue", "--prompt", "a").colours == ("red", "blue")
    assert paint("fish", "--colours", "red", "--prompt", "a", "--colours", "blue").colours == ("red", "blue")


def test_what_is_left_open_is_the_default_and_none_may_be_said():
    asked = paint("fish", "--prompt", "a", "--speed", "none", "--no-quick")
    assert (asked.colours, asked.folder, asked.speed, asked.quick) == (("red",), None, None, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fish"], "missing: prompt (fewbayes paint --help says more)"),
        ([], "missing: source, prompt"),
        (["fish", "bird", "--prompt", "a"], "'bird' belongs to no flag"),
        (["fish", "--prompt"], "--prompt needs a value"),
        (["fish", "--prompt", "a", "--layers", "0"], "layers is 0; it must be greater than 0"),
        (["fish", "--prompt", "a", "--layers", "many"], "layers is 'many'; it must be a whole number"),
        (["fish", "--prompt", "a", "--layers", "1", "--layers", "2"], "layers is given twice"),
        (["fish", "--prompt", "a", "--speed", "1"], "speed is 1.0; it must be above 0 and below 1"),
        (["fish", "--prompt", "a", "--speed", "nan"], "speed is nan; it must be a finite number"),
        (["fish", "--prompt", "a", "--weights", "best"], "weights is 'best'; it must be one of raw, ema"),
        (["fish", "--prompt", "a", "--colours", "red", "green"], "colours is 'green'; it must be one of red, blue"),
        (["fish", "--prompt", "a", "--quick", "yes"], "write --quick or --no-quick"),
    ],
)
def test_what_cannot_be_is_refused_with_its_limit(arguments, said):
    with pytest.raises(UserError) as refused:
        paint(*arguments)
    assert said in str(refused.value)


def test_unknown_flags_are_named_all_at_once():
    with pytest.raises(UserError) as refused:
        paint("fish", "--promt", "a", "--layer=3", "--zzz")
    said = str(refused.value).splitlines()
    assert len(said) == 3
    assert said[0].endswith("promt is not a setting; did you mean prompt?")
    assert said[1].endswith("layer is not a setting; did you mean layers?")


def test_help_says_everything_and_ends(capsys):
    with pytest.raises(SystemExit) as end:
        paint("fish", "--help")
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: fewbayes paint SOURCE [--key value ...]\n\nPaint pictures.\n")
    assert "  --colours {red,blue} ...  [red]\n      All of them.\n" in said
    assert "  --quick, --no-quick  [off]\n      Fewer layers." in said
