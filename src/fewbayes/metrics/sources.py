"""Which pictures, references, token and weights a path stands for: a run of ours, or any folder of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewbayes.errors import UserError
from fewbayes.files.decode import plain_yaml, typed
from fewbayes.metrics.listing import read_listing
from fewbayes.runs.layout import CONFIG, HELD_OUT, MANIFEST, REFERENCE, part_of_run, read_manifest, sample_folders


@dataclass(frozen=True)
class Source:
    """What a path given to `evaluate` stands for. subject: of a run, by the folder of its photographs."""

    pictures: Path
    reference: Path | None = None
    held_out: Path | None = None
    rare_token: str | None = None
    model: str | None = None
    weights: str | None = None
    subject: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Settings:
    """What is read of a run's config.yaml."""

    model: str | None = None
    rare_token: str | None = None
    instance_data_dir: str | None = None
    seed: int | None = None


def find_source(source: str | Path, samples: str | None = None) -> Source:
    """A run's last samples (or those of `samples` inside it) and its references; any other folder is itself.

    Of a run's best/ or checkpoint-N: the samples of that step.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give a run or a folder of pictures")
    run, step = (None if samples else part_of_run(folder)) or (folder, None)
    of_run = (run / CONFIG).is_file()
    pictures = run / samples if samples else _samples_of(run, step, folder) if of_run else run
    if not pictures.is_dir():
        raise UserError(f"there is no folder {pictures}; --samples names one inside {folder}")
    if not of_run:
        return Source(pictures, model=_model_behind(pictures))
    settings = _settings(run)
    reference, held_out = (place if place.is_dir() else None for place in (run / REFERENCE, run / HELD_OUT))
    return Source(
        pictures,
        reference,
        held_out,
        settings.rare_token,
        settings.model,
        _exported(run),
        Path(settings.instance_data_dir).name if settings.instance_data_dir else None,
        settings.seed,
    )


def _samples_of(run: Path, step: int | None, named: Path) -> Path:
    """Those of a step of a run, the last ones where none is asked for. named: what was given."""
    drawn = sample_folders(run)
    if step is None and drawn:
        return next(reversed(drawn.values()))
    if step in drawn:
        return drawn[step]
    there = f" (it has those of step {', '.join(map(str, drawn))})" if drawn else ""
    raise UserError(
        f"the run {run} holds no samples{'' if step is None else f' of step {step}'}{there}; make some by `fewbayes "
        f"sample {named} --prompt ... --output_dir DIR` and evaluate DIR, or name a folder inside it with --samples"
    )


def _exported(run: Path) -> str | None:
    try:
        return read_manifest(run).exported if (run / MANIFEST).is_file() else None
    except UserError:
        return None


def _model_behind(folder: Path) -> str | None:
    """The model that made the pictures of a folder, as far as its listing says."""
    named = next((row.source for row in read_listing(folder) if row.source), None)
    if not named or not (Path(named) / CONFIG).is_file():
        return named
    return _settings(Path(named)).model


def _settings(run: Path) -> Settings:
    return typed(plain_yaml(run / CONFIG) or {}, Settings, str(run / CONFIG), cure="mend it or move it away")
