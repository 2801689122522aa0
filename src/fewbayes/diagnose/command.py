"""`fewbayes diagnose`: the stage of a model that somebody has trained, and what explains it. Nothing is trained.

All that is found lies in one folder: diagnosis.json and pictures/. Knows nothing of pages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fewbayes.diagnose.ask import Asked, settle
from fewbayes.diagnose.verdict import Diagnosis, spoken
from fewbayes.files.atomic import atomic_folder
from fewbayes.settings.flags import parse_command

log = logging.getLogger(__name__)

ABOUT = "The stage of a trained model (underfit, good, unclear, corrupted, memorised) and what explains it."


def diagnose(asked: Asked) -> Diagnosis:
    """Look at the source and its base model, judge, try the look-alikes; writes `output_dir`, which must be new."""
    case = settle(asked)
    for note in case.images.notes:
        log.info("%s: %s", case.images.folder, note)
    began = time.monotonic()
    from fewbayes.diagnose.course import single, timeline  # with torch, which no refusal waits for
    from fewbayes.diagnose.examine import Book

    with atomic_folder(asked.output_dir, new=True) as folder:
        book = Book(case, folder)
        diagnosis = timeline(book) if case.kept else single(book)
        book.write(diagnosis, time.monotonic() - began)
    return diagnosis


def run_diagnose(arguments: Sequence[str], page: Callable[[Path], Path] | None = None) -> int:
    """The command `fewbayes diagnose`; 0 whatever the verdict. page: writes the page of the folder, its path."""
    asked = parse_command(Asked, arguments, "diagnose", ABOUT)
    diagnosis = diagnose(asked)
    print("\n".join(spoken(diagnosis)))
    written = page(Path(asked.output_dir)) if page else asked.output_dir
    print(f"\ndone: {written}")
    return 0
