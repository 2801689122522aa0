"""Folders of results to a page that opens anywhere: `write_report(folder)`, and its numbers: `summarise(folder)`.

Reads files only: it knows no model, no trainer, and never imports torch.
"""

from pathlib import Path

from fewbayes.report.evaluation import is_evaluation
from fewbayes.report.evaluation_page import write_evaluation_report
from fewbayes.report.page import summarise, write_run_report

__all__ = ["summarise", "write_report"]


def write_report(folder: Path, output: Path | None = None) -> Path:
    """The page of a run, an experiment, an evaluation or a study, whichever the folder holds; its path."""
    write = write_evaluation_report if is_evaluation(Path(folder)) else write_run_report
    return write(Path(folder), output)
