"""Who sees what, where and when: a function of the study and the participant's number, so nothing of it is stored.

Every participant gets `per_block` items of each block, and over participants every item of a block is seen nearly as
often as every other. Order and sides are of chance. Knows no arms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fewbayes.survey.plan import Item, Study


@dataclass(frozen=True)
class Trial:
    """An item as one participant sees it. left: the side on the left."""

    item: Item
    left: int
    repeat: bool = False

    def side(self, choice: int) -> int:
        """The side that a choice on the screen means; choices beyond left and right are themselves."""
        return abs(choice - self.left) if len(self.item.sides) == 2 and choice < 2 else choice


def trials(study: Study, number: int) -> list[Trial]:
    """What participant `number` sees, in order.

    An item that comes again has its sides exchanged, and at least a third of the trials lie between.
    """
    chance = np.random.default_rng([study.seed, 1, number])
    shown = [Trial(item, left) for item, left in _with_sides(_items(study, number), chance)]
    checks = [study.checks[i] for i in chance.permutation(len(study.checks))[: study.checks_each]]
    again = [Trial(trial.item, 1 - trial.left, repeat=True) for trial in shown[: study.repeats]]
    rest = shown[len(again) :] + [Trial(item, left) for item, left in _with_sides(checks, chance)]
    rest = [rest[i] for i in chance.permutation(len(rest))]
    third = len(rest) // 3
    early, middle, late = rest[:third], rest[third : len(rest) - third], rest[len(rest) - third :]
    ordered = [early + shown[: len(again)], middle, late + again]
    return [part[i] for part in ordered for i in chance.permutation(len(part))]


def _with_sides(items: list[Item], chance: np.random.Generator) -> list[tuple[Item, int]]:
    """Half of the items have their first side on the left, half on the right, within one."""
    left = chance.permutation((np.arange(len(items)) + chance.integers(2)) % 2)
    return [(item, int(side) if len(item.sides) == 2 else 0) for item, side in zip(items, left, strict=True)]


def _items(study: Study, number: int) -> list[Item]:
    """The participant's share: of each block the next ones in an endless row of its permutations."""
    blocks: dict[int, list[Item]] = {}
    for item in study.items:
        blocks.setdefault(item.block, []).append(item)
    found: list[Item] = []
    for block, items in sorted(blocks.items()):
        count = min(study.per_block, len(items))
        found += _dealt(study.seed, block, items, number * count, count)
    chance = np.random.default_rng([study.seed, 2, number])
    return [found[i] for i in chance.permutation(len(found))]


def _dealt(seed: int, block: int, items: list[Item], start: int, count: int) -> list[Item]:
    """`count` different items from place `start` on in the endless row of permutations."""
    found: dict[str, Item] = {}
    place = start
    while len(found) < count:
        turn, index = divmod(place, len(items))
        item = items[_order(seed, block, turn, len(items))[index]]
        found.setdefault(item.id, item)
        place += 1
    return list(found.values())


@lru_cache(maxsize=4096)
def _order(seed: int, block: int, turn: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, 3, block, turn]).permutation(count).tolist())
