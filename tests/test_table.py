"""One description of a table, written three ways."""

from __future__ import annotations

import csv
import io

from fewbayes.metrics.statistics import Estimate
from fewbayes.page.table import Column, Table, Value, comma_separated, latex, markdown

FOUND = Estimate(0.1234, -0.001, 0.25, subjects=3, units=6)
TABLE = Table(
    [Column("arm"), Column("Dino", 2, better=1), Column("share, %", 0, percent=True)],
    [["Plain", FOUND, 0.456], ["a|b_c", Value(FOUND, sign=True, after="; 4 of 6"), None]],
)


def test_markdown_shows_intervals_arrows_and_what_is_absent():
    assert markdown(TABLE).splitlines() == [
        "| arm | Dino ↑ | share, % |",
        "| --- | --- | --- |",
        "| Plain | 0.12 (0.00 to 0.25) | 46 |",
        "| a\\|b_c | +0.12 (0.00 to 0.25); 4 of 6 | - |",
    ]


def test_latex_escapes_words_and_sets_intervals_small():
    text = latex([TABLE, TABLE], "50 % of all_runs")
    assert r"\caption{50 \% of all\_runs}" in text
    assert r"arm & Dino $\uparrow$ & share, \% \\" in text
    assert r"Plain & $0.12$ {\scriptsize $[0.00, 0.25]$} & $46$ \\" in text
    assert text.count(r"\midrule") == 2
    assert r"a|b\_c & $+0.12$" in text


def test_csv_gives_every_number_unrounded_with_its_bounds():
    rows = list(csv.DictReader(io.StringIO(comma_separated(TABLE))))
    assert rows[0] == {
        "arm": "Plain",
        "Dino": "0.1234",
        "Dino low": "-0.001",
        "Dino high": "0.25",
        "share, %": "0.456",
    }
    assert rows[1]["share, %"] == ""


def test_no_number_is_a_negative_zero():
    assert Column("x").number(-0.001) == "0.00"
    assert Column("x").number(-0.001, sign=True) == "+0.00"
