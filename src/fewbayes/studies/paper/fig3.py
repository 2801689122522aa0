"""Fig. 3: x_t = 0 at the last timestep, denoised in one step by the pretrained model and by models tuned on 1 and 5."""

from __future__ import annotations

from typing import Any

from fewbayes.studies.paper import paper
from fewbayes.studies.paper.blank import blanks
from fewbayes.studies.paper.options import Ask

IMAGES, T = (1, 5), 999
CONSTANTS = {"images": IMAGES, "t": T}


def run(ask: Ask) -> dict[str, Any]:
    return blanks(ask, IMAGES, T) | {"paper": {"says": paper.FIG3}}
