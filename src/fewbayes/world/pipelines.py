"""The embedded pipelines: their names, and the folders in which their weights lie. Importing it is instant."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
PIPELINES = {"tiny": WEIGHTS / "pipeline", "tiny-sharp": WEIGHTS / "tiny-sharp", "tiny-flow": WEIGHTS / "tiny-flow"}
"""Folders by the names that `--model` takes. Each draws the embedded world's scenes and knows its words alone."""


def is_embedded(model: str) -> bool:
    """Whether a model is known by one of our names, rather than by a folder or an id on the hub."""
    return model in PIPELINES


def shipped() -> tuple[str, ...]:
    """The names whose weights lie in this installation."""
    return tuple(name for name, folder in PIPELINES.items() if (folder / "model_index.json").is_file())
