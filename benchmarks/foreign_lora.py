"""A LoRA as other trainers make it: plain diffusers and PEFT, no line of this package. For `fewbayes diagnose`.

The loop of diffusers' own example scripts: adapters in the attention layers, AdamW, one image per step, the file that
`save_lora_weights` writes.

The prompt is taken as it is written. `<v>` is a word of the embedded model alone.

    python benchmarks/foreign_lora.py MODEL PHOTOS "a photo of sks dog" OUT --steps 500 --rate 3e-4 --rank 16
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image, ImageOps

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}


def pixels(path: Path, side: int) -> torch.Tensor:
    """(1, 3, side, side) in [-1, 1], cut in the middle."""
    with Image.open(path) as image:
        square = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def latents_of(
    pipeline: StableDiffusionPipeline, photographs: Path, side: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and standard deviation of what the autoencoder makes of each photograph."""
    files = sorted(path for path in photographs.iterdir() if path.suffix.lower() in ENDINGS)
    scale = pipeline.vae.config.scaling_factor
    found = [pipeline.vae.encode(pixels(path, side)).latent_dist for path in files]
    return [(latents.mean * scale, latents.std * scale) for latents in found]


@torch.no_grad()
def prompt_of(pipeline: StableDiffusionPipeline, prompt: str) -> torch.Tensor:
    length = pipeline.tokenizer.model_max_length
    tokens = pipeline.tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return pipeline.text_encoder(tokens.input_ids)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="A LoRA by plain diffusers and PEFT.")
    parser.add_argument("model", help="folder of a Stable Diffusion pipeline")
    parser.add_argument("photographs", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draw_latents", action="store_true", help="draw latents anew at each step [their means]")
    asked = parser.parse_args()

    torch.manual_seed(asked.seed)
    pipeline = StableDiffusionPipeline.from_pretrained(asked.model, safety_checker=None)
    unet, noising = pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config)
    side = unet.config.sample_size * pipeline.vae_scale_factor
    images, words = latents_of(pipeline, asked.photographs, side), prompt_of(pipeline, asked.prompt)
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=asked.rank, lora_alpha=asked.rank, init_lora_weights="gaussian", target_modules=TARGETS)
    )
    optimizer = torch.optim.AdamW([weight for weight in unet.parameters() if weight.requires_grad], lr=asked.rate)
    for step in range(asked.steps):
        mean, std = images[int(torch.randint(len(images), ()))]
        x0 = mean + std * torch.randn_like(mean) if asked.draw_latents else mean
        noise, t = torch.randn_like(x0), torch.randint(noising.config.num_train_timesteps, (1,))
        told = unet(noising.add_noise(x0, noise, t), t, words).sample
        wanted = noise if noising.config.prediction_type == "epsilon" else noising.get_velocity(x0, noise, t)
        loss = torch.nn.functional.mse_loss(told, wanted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(asked.output, unet_lora_layers=layers)
    print(asked.output)


if __name__ == "__main__":
    main()
