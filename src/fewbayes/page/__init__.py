"""Folders of results to a page that opens anywhere: `write_report(folder)`, and its numbers: `summarise(folder)`.

Reads files only: it knows no model, no trainer, and never imports torch.
"""

from pathlib import Path

from fewbayes.page.diagnosis_page import is_diagnosis, write_diagnosis_report
from fewbayes.page.evaluation import is_evaluation, write_evaluation_report
from fewbayes.page.page import summarise, write_run_report

__all__ = ["summarise", "write_report"]


def write_report(folder: Path, output: Path | None = None) -> Path:
    """The page of a run, an experiment, an evaluation, a study or a diagnosis, whichever the folder holds; its path."""
    folder = Path(folder)
    if is_diagnosis(folder):
        return write_diagnosis_report(folder, output)
    return (write_evaluation_report if is_evaluation(folder) else write_run_report)(folder, output)
