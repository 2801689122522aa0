"""A small classifier that says which object, colour and setting a picture of the embedded world shows.

It judges the pretrained pipeline (are prompts followed?) and serves experiments; it knows nothing of diffusion.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewbayes.world.objects import OBJECTS
from fewbayes.world.scenes import COLOURS
from fewbayes.world.settings import SETTINGS

VOCABULARY = {"object": list(OBJECTS), "colour": list(COLOURS), "setting": list(SETTINGS)}


@dataclass(frozen=True)
class Recognition:
    object: str
    colour: str
    setting: str


class Recogniser(nn.Module):
    """RGB in [-1, 1], (B, 3, 64, 64), to logits of each question of VOCABULARY."""

    def __init__(self, width: int = 32):
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.SiLU()
            )

        self.features = nn.Sequential(
            block(3, width, 2),
            block(width, 2 * width, 2),
            block(2 * width, 2 * width, 1),
            block(2 * width, 4 * width, 2),
            block(4 * width, 4 * width, 1),
            block(4 * width, 4 * width, 1),
        )
        self.heads = nn.ModuleDict({key: nn.Linear(8 * width, len(values)) for key, values in VOCABULARY.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        maps = self.features(pictures)
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
        return {key: head(pooled) for key, head in self.heads.items()}

    @torch.no_grad()
    def recognise(self, pictures: Tensor) -> list[Recognition]:
        answers = {key: logits.argmax(1).tolist() for key, logits in self(pictures).items()}
        return [
            Recognition(**{key: VOCABULARY[key][answers[key][i]] for key in VOCABULARY}) for i in range(len(pictures))
        ]


def load_recogniser() -> Recogniser:
    """The shipped recogniser, ready to judge."""
    model = Recogniser()
    path = Path(__file__).parent / "weights" / "recogniser.safetensors"
    model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return model.eval()
