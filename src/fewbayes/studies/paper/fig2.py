"""Fig. 2: image fidelity over iterations for 1, 2 and 6 training images: does corruption come later and weaker?"""

from __future__ import annotations

from typing import Any

from fewbayes.studies.grid import Arm
from fewbayes.studies.paper import paper
from fewbayes.studies.paper.fidelity import SAMPLING, curves
from fewbayes.studies.paper.options import Ask
from fewbayes.studies.paper.trained import counts, first
from fewbayes.studies.subjects import StudySubject

NUM = (1, 2, 6)
CONSTANTS = {"num": NUM} | SAMPLING


def run(ask: Ask) -> dict[str, Any]:
    fewest = min(ask.subjects, key=lambda subject: counts(subject, NUM)[-1])
    nums = counts(fewest, NUM)
    found = curves(ask, {subject.name: [_arm(ask, subject, num) for num in nums] for subject in ask.subjects})
    notes = (
        [] if nums == list(NUM) else [f"{fewest.name} has {nums[-1]} photographs: Num = {', '.join(map(str, nums))}"]
    )
    return found | {"paper": {"says": paper.FIG2}, "notes": found["notes"] + notes}


def _arm(ask: Ask, subject: StudySubject, num: int) -> Arm:
    return Arm(f"num{num}", f"Num = {num}", {"instance_data_dir": str(first(ask, subject, num))})
