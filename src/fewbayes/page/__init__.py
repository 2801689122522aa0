"""Folders of results to a page that opens anywhere: `write_report(folder)`, and its numbers: `summarise(folder)`.

Reads files only: it knows no model, no trainer, and never imports torch. Each kind of page is imported when asked for.
"""

from pathlib import Path
from typing import Any


def write_report(folder: Path, output: Path | None = None) -> Path:
    """The page of a run, an experiment, an evaluation, a study, a diagnosis or samples, whichever the folder holds.

    A run's best/ and its checkpoint-N have the page of the run. Into the folder as report.html, or as `output`.
    """
    from fewbayes.page.diagnosis_page import diagnosis_page, is_diagnosis
    from fewbayes.page.evaluation import is_evaluation, write_evaluation_report
    from fewbayes.page.render import write_page
    from fewbayes.page.run_page import write_run_report
    from fewbayes.page.samples_page import is_samples, samples_page
    from fewbayes.runs.layout import part_of_run

    folder, _ = part_of_run(Path(folder)) or (Path(folder), None)
    for holds, page in ((is_diagnosis, diagnosis_page), (is_samples, samples_page)):
        if holds(folder):
            return write_page(page(folder), folder, output)
    return (write_evaluation_report if is_evaluation(folder) else write_run_report)(folder, output)


def summarise(folder: Path) -> dict[str, Any]:
    """The numbers of a run's or an experiment's page: per arm and kind of weights, means, intervals and stages."""
    from fewbayes.page.read import read_experiment
    from fewbayes.page.summary import summarise_experiment

    return summarise_experiment(read_experiment(Path(folder)))
