"""Run folders to a page that opens anywhere: `write_report(folder)`, and its numbers: `summarise(folder)`.

Reads files only: it knows no model, no trainer, and never imports torch.
"""

from fewbayes.report.page import summarise, write_report

__all__ = ["summarise", "write_report"]
