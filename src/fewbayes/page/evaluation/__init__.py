"""Evaluations, and studies of several: read, put into tables and on a page."""

from fewbayes.page.evaluation.page import write_evaluation_report
from fewbayes.page.evaluation.reading import is_evaluation, read_evaluation
from fewbayes.page.evaluation.scores import make_scores

__all__ = ["is_evaluation", "make_scores", "read_evaluation", "write_evaluation_report"]
