"""x_t = 0 denoised in one step from pure noise's timestep.

By the pretrained model, and by models tuned on one image and on five.
"""

from __future__ import annotations

from typing import Any

from fewbayes.studies.paper import paper
from fewbayes.studies.paper.blank import blanks
from fewbayes.studies.paper.blank import draw as draw
from fewbayes.studies.paper.options import Ask

IMAGES, T = (1, 5), 999
CONSTANTS = {"images": IMAGES, "t": T}


def run(ask: Ask) -> dict[str, Any]:
    return blanks(ask, IMAGES, T) | {"paper": {"says": paper.FIG3}}
