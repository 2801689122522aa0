"""The evaluators of the embedded world: where their folders lie, what they are called, how they are loaded.

`fewbayes-clip` reads pictures and captions, `fewbayes-dino` pictures alone; both are plain transformers models that
`recipes/evaluators.py` trained on scenes that we draw. The file knows nothing of metrics, and importing it is instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, CLIPModel, CLIPTokenizer, ViTModel

CLIP_NAME = "fewbayes-clip"
DINO_NAME = "fewbayes-dino"
CLIP_FOLDER = Path(__file__).parent / "weights" / "clip"
DINO_FOLDER = Path(__file__).parent / "weights" / "dino"
EVALUATORS = {CLIP_NAME: CLIP_FOLDER, DINO_NAME: DINO_FOLDER}
"""Folders by the names that result tables print."""

# The antonyms of Clip-IQA; the model was trained to answer just these, `CLIPModel.logit_scale` included.
QUALITY_PROMPTS = ("Good photo.", "Bad photo.")


def load_clip() -> tuple[CLIPModel, CLIPTokenizer, BaseImageProcessor]:
    """`fewbayes-clip` in float32, ready to judge; RGB pictures of any size, captions of up to 48 tokens."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(CLIP_FOLDER, local_files_only=True).eval()
    return model, CLIPTokenizer.from_pretrained(CLIP_FOLDER, local_files_only=True), _pictures(CLIP_FOLDER)


def load_dino() -> tuple[ViTModel, BaseImageProcessor]:
    """`fewbayes-dino` in float32; the feature of a picture is `last_hidden_state[:, 0]`."""
    from transformers import ViTModel

    return ViTModel.from_pretrained(DINO_FOLDER, local_files_only=True).eval(), _pictures(DINO_FOLDER)


def _pictures(folder: Path) -> BaseImageProcessor:
    """The folder's preprocessing on PIL, whatever else is installed: the same numbers everywhere."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
