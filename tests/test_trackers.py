"""What a run logs is shown by a tracker of accelerate's too."""

import pytest
from accelerate import tracking

from fewbayes.errors import UserError
from fewbayes.runs.folder import read_metrics
from fewbayes.training import trackers
from fewbayes.training.train import train

MADE: list = []


class Heard:
    """A tracker that keeps what it is told."""

    name, requires_logging_directory = "tensorboard", True

    def __init__(self, run_name, logging_dir):
        self.run_name, self.rows, self.pictures, self.ended = run_name, [], [], False
        MADE.append(self)

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step):
        self.rows += [(step, name, value) for name, value in values.items()]

    def log_images(self, values, step, dataformats):
        self.pictures += [(step, name, value.shape) for name, value in values.items()]

    def finish(self):
        self.ended = True


def test_a_tracker_is_told_of_every_row_and_of_the_samples(settings, family, monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Heard)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    config = settings(report_to="tensorboard", use_ema=True, validation_steps=4)
    folder = train(config, family=family, progress=False).folder
    heard = MADE.pop()
    losses = [(row["step"], row["value"]) for row in read_metrics(folder / "metrics.jsonl") if row["metric"] == "loss"]
    assert [(step, value) for step, name, value in heard.rows if name == "loss"] == losses
    assert {name for _, name, _ in heard.rows} >= {"lr", "image_similarity", "image_similarity_ema"}
    assert heard.pictures == [(4, "samples_raw", (2, 32, 32, 3)), (4, "samples_ema", (2, 32, 32, 3))]
    assert heard.settings["learning_rate"] == 1e-3
    assert heard.ended


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_loaded(settings, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="report_to is wandb, which is not installed: pip install wandb"):
        train(settings(report_to="wandb"), progress=False)
