"""Folders of results to a page that opens anywhere: `write_report(folder)`, and its numbers: `summarise(folder)`.

Reads files only: it knows no model, no trainer, and never imports torch. Each kind of page is imported when asked for.
"""

from pathlib import Path
from typing import Any


def write_report(folder: Path, output: Path | None = None) -> Path:
    """The page of a run, an experiment, an evaluation, a study, a diagnosis or samples, whichever the folder holds.

    A run's best/ and its checkpoint-N have the page of the run.
    """
    from fewbayes.page.diagnosis_page import is_diagnosis, write_diagnosis_report
    from fewbayes.page.evaluation import is_evaluation, write_evaluation_report
    from fewbayes.page.run_page import write_run_report
    from fewbayes.page.samples_page import is_samples, write_samples_report
    from fewbayes.runs.layout import part_of_run

    folder, _ = part_of_run(Path(folder)) or (Path(folder), None)
    kinds = ((is_diagnosis, write_diagnosis_report), (is_evaluation, write_evaluation_report))
    for holds, write in (*kinds, (is_samples, write_samples_report)):
        if holds(folder):
            return write(folder, output)
    return write_run_report(folder, output)


def summarise(folder: Path) -> dict[str, Any]:
    """The numbers of a run's or an experiment's page."""
    from fewbayes.page.run_page import summarise

    return summarise(folder)
