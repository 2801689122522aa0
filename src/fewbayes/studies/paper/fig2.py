"""Image fidelity over iterations for several numbers of training images.

Does corruption come later, and weaker, with more of them?
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fewbayes.studies.grid import Arm
from fewbayes.studies.paper import paper
from fewbayes.studies.paper.drawing import Told, canvas, parts
from fewbayes.studies.paper.fidelity import FALL, SAMPLING, curves, fall, falls, fidelity_axes, noise_axes, strips
from fewbayes.studies.paper.options import Ask
from fewbayes.studies.paper.trained import counts
from fewbayes.studies.subjects import StudySubject

NUM = (1, 2, 6)
CONSTANTS = {"num": NUM} | SAMPLING


def run(ask: Ask) -> dict[str, Any]:
    fewest = min(ask.subjects, key=lambda subject: counts(subject, NUM)[-1])
    nums = counts(fewest, NUM)
    found = curves(ask, {subject.name: [_arm(subject, num) for num in nums] for subject in ask.subjects})
    notes = (
        [] if nums == list(NUM) else [f"{fewest.name} has {nums[-1]} photographs: Num = {', '.join(map(str, nums))}"]
    )
    return found | {"paper": {"says": paper.FIG2}, "notes": found["notes"] + notes}


def _arm(subject: StudySubject, num: int) -> Arm:
    return Arm(f"num{num}", f"Num = {num}", {"instance_data_dir": str(subject.first(num).photographs)})


def draw(told: Told, folder: Path) -> Figure:
    figure = canvas(told, seen(told), 9.0, falls(told))
    top, bottom = parts(figure, (1, 1.15))
    fidelity, noise = top.subplots(1, 2)
    fidelity_axes(fidelity, told)
    noise_axes(noise, told)
    strips(bottom, told, folder)
    return figure


def seen(told: Told) -> str:
    dips = [arm["dips"] for arm in told["arms"]]
    depths, onsets = [one["depth"]["mean"] for one in dips], [one["onset"]["mean"] for one in dips]
    said = "; ".join(f"{arm['label']}: {fall(arm['dips'])}" for arm in told["arms"]) + "."
    if depths[0] < FALL:
        return f"no fall like the paper's 0.5 that more images could delay: {said}"
    weaker = all(a > b for a, b in pairwise(depths))
    later = all(a < b for a, b in pairwise(onset for onset in onsets if onset is not None))
    not_so = [word for word, so in (("weaker", weaker), ("later", later)) if not so]
    return f"not {' nor '.join(not_so)} with each further number of images: {said}" if not_so else said
