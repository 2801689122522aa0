"""What the files of a run folder are called."""

from __future__ import annotations

CONFIG, MANIFEST, METRICS, STATE = "config.yaml", "manifest.json", "metrics.jsonl", "trainer_state.json"
STAGES, BEST, BEST_STATE = "stages.jsonl", "best", "best.json"
LOCK, SAMPLES, REFERENCE, POSTERIOR, REPORT = ".lock", "samples", "reference", "posterior.json", "report.html"
APPENDED = (METRICS, STAGES)
OURS = frozenset({CONFIG, MANIFEST, METRICS, STAGES, BEST, LOCK, REFERENCE, SAMPLES, POSTERIOR, REPORT})
"""Names that no part of a result may have."""
