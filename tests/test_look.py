"""One palette with a colour for every arm, and drawings that take their colours from the page."""

from __future__ import annotations

from itertools import pairwise

from matplotlib.figure import Figure

from fewbayes.page import look


def test_no_two_arms_share_a_colour_however_many_there_are():
    for dark in (False, True):
        assert len({look.colour(i, dark) for i in range(look.MOST)} | set(look.NAMED)) == look.MOST + len(look.NAMED)


def test_a_palette_of_more_arms_begins_with_that_of_fewer():
    assert look.colours(9)[:6] == look.colours(6)


def test_neighbours_can_be_told_apart():
    channels = [[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in look.colours(12)]
    apart = [sum(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in pairwise(channels)]
    assert min(apart) > 80


def test_a_seventh_arm_has_a_colour_of_its_own_on_the_page():
    with look.style():
        figure = Figure()
        axes = figure.subplots()
        for i in range(9):
            axes.plot([0, 1], [i, i], color=look.colour(i))
    svg = look.inline(figure, "lines", "nine lines")
    assert all(f"var(--arm-{i})" in svg for i in range(9))
    sheet = look.style_sheet(9)
    assert all(sheet.count(f"--arm-{i}:") == 2 for i in range(9))  # on light and on dark


def test_the_same_drawing_is_the_same_file(tmp_path):
    def draw(name):
        with look.style():
            figure = Figure(figsize=(2, 2))
            figure.subplots().plot([0, 1], [1, 0], color=look.colour(0))
            return look.save(figure, tmp_path / name).read_bytes()

    assert draw("a.png") == draw("b.png")
