"""The recogniser of objects, colours and settings, trained on rendered scenes with mild blur, noise and shifts."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from fewbayes.world.recogniser import VOCABULARY, Recogniser
from fewbayes.world.scenes import draw_scene
from training import HELD_OUT, Training, batch_indices, device, run_training, scene_pictures, to_unit

BATCH = 64


def labels(count: int, first_seed: int = 0) -> dict[str, torch.Tensor]:
    scenes = [draw_scene(first_seed + i)[0] for i in range(count)]
    return {key: torch.tensor([known.index(getattr(s, key)) for s in scenes]) for key, known in VOCABULARY.items()}


def pretrain_recogniser(folder: Path, pictures: np.ndarray, steps: int) -> Recogniser:
    torch.manual_seed(2)
    model = Recogniser().to(device())
    truth = labels(len(pictures))
    training = Training(folder, {"recogniser": model}, total=steps, peak=2e-3, ema=0.99)

    def loss_of(step: int) -> torch.Tensor:
        chosen = batch_indices(step, BATCH, len(pictures), seed=2)
        random = torch.Generator().manual_seed(step)
        x = to_unit(pictures[chosen])
        dy, dx = (int(i) for i in torch.randint(-4, 5, (2,), generator=random))
        x = torch.roll(x, (dy, dx), (2, 3))
        if torch.rand((), generator=random) < 0.3:
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)
        x = x + 0.1 * torch.rand((), generator=random) * torch.randn(x.shape, generator=random)
        logits = model(x.to(device()))
        return sum(
            (F.cross_entropy(logits[key], truth[key][chosen].to(device())) for key in VOCABULARY), torch.zeros(())
        )

    run_training(training, loss_of)
    return model.eval()


@torch.no_grad()
def held_out_accuracy(model: Recogniser, folder: Path, count: int = 4000) -> dict[str, float]:
    """Share of right answers on scenes whose seeds were never trained on, for each question."""
    pictures, truth = scene_pictures(folder, count, HELD_OUT), labels(count, HELD_OUT)
    right = dict.fromkeys(VOCABULARY, 0)
    for start in range(0, count, 250):
        logits = model(to_unit(pictures[start : start + 250]).to(device()))
        for key in VOCABULARY:
            right[key] += int((logits[key].argmax(1).cpu() == truth[key][start : start + 250]).sum())
    return {key: number / count for key, number in right.items()}
