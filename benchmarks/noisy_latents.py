"""A copy of a model whose encoder leaves two channels of the latents open, as a poorly trained autoencoder does.

Nothing changes for the samples of the model itself, which are decoded. Fine-tuning on it draws latents with noise that
pretraining never saw, and passes through noisy pictures whatever the method: a controlled corruption, for monitors and
remedies to be tried on (docs/corruption.md).

    python benchmarks/noisy_latents.py tiny build/noisy_latents
"""

import argparse
import math
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fewbayes.world

CHANNELS, DEVIATION = (1, 4), 0.85
"""Those that the embedded autoencoder had left open by itself, and how far: in units of the scaled latents."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a pipeline folder, or tiny")
    parser.add_argument("output", type=Path, help="a new folder")
    asked = parser.parse_args()
    tiny = Path(fewbayes.world.__file__).parent / "weights" / "pipeline"
    shutil.copytree(tiny if asked.model == "tiny" else asked.model, asked.output)
    file = asked.output / "vae" / "diffusion_pytorch_model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    weight, bias = weights["quant_conv.weight"], weights["quant_conv.bias"]
    half = len(bias) // 2
    for channel in CHANNELS:
        weight[half + channel] = 0
        bias[half + channel] = torch.tensor(2 * math.log(DEVIATION))
    save_file(weights, file, metadata=metadata)


if __name__ == "__main__":
    main()
