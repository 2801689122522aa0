"""The study of frontiers: areas by hand, invariances, and verdicts where the answer is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbayes.studies.frontier import FIRST, hypervolume, leads

SHARE = st.floats(0, 1)
POINTS = st.lists(st.tuples(SHARE, SHARE), min_size=1, max_size=6)


def test_area_by_hand():
    assert hypervolume([(0.5, 0.4)]) == pytest.approx(0.2)
    assert hypervolume([(0.5, 1), (1, 0.5)]) == pytest.approx(0.75)
    assert hypervolume([(0.5, 1), (1, 0.5), (0.4, 0.4)]) == pytest.approx(0.75)  # inside the others
    assert hypervolume([(-1, 1), (0.5, -1)]) == 0
    assert hypervolume([(2, 2)]) == 1


@given(POINTS, POINTS)
def test_area_grows_with_every_point_and_knows_no_order(some, more):
    both = hypervolume(some + more)
    assert both == pytest.approx(hypervolume(more[::-1] + some[::-1]))
    assert max(hypervolume(some), hypervolume(more)) - 1e-12 <= both <= hypervolume(some) + hypervolume(more) + 1e-12
    assert hypervolume([(y, x) for x, y in some]) == pytest.approx(hypervolume(some))


def test_verdicts_where_they_are_known():
    rate = {f"s{i}": [(0.4 + 0.01 * i, 0.9), (0.6, 0.5 + 0.01 * i)] for i in range(10)}
    better = {s: [(x + 0.1 + 0.01 * i, y) for x, y in v] for i, (s, v) in enumerate(rate.items())}
    worse = {s: [(x, y - 0.1 - 0.01 * i) for x, y in v] for i, (s, v) in enumerate(rate.items())}
    like = {s: [(x + 0.001 * (-1) ** i * (1 + i), y) for x, y in v] for i, (s, v) in enumerate(rate.items())}
    wild = {s: [(x + 0.05 * (-1) ** i * (1 + i / 20), y) for x, y in v] for i, (s, v) in enumerate(rate.items())}
    found = leads(
        {FIRST: rate, "better": better, "worse": worse, "like": like, "wild": wild},
        dict.fromkeys(("better", "worse", "like", "wild"), FIRST),
    )
    assert {knob: lead.verdict for knob, lead in found.items()} == {
        "better": "outside",
        "worse": "inside",
        "like": "equal",
        "wild": "open",
    }
    few = {name: dict(list(each.items())[:4]) for name, each in ((FIRST, rate), ("better", better))}
    assert leads(few, {"better": FIRST})["better"].verdict == "open"  # four subjects decide nothing
