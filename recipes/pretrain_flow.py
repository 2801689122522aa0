"""Pretrain `tiny-flow`, the embedded world's Stable Diffusion 3, a transformer on straight paths; judge and export it.

    python recipes/pretrain_flow.py --work build/flow            # two CPU cores: under three hours; a GPU: minutes
    python recipes/pretrain_flow.py --work build/flow --export   # also place the weights inside the package

Scenes, captions and autoencoder are those of `tiny-sharp` (`--autoencoder`, made here where it is not given); words are
read by the text encoder of `tiny` and a second one beside it, trained with the transformer. There is no T5. Run it
again after an interruption: it continues from its last checkpoint.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from autoencoder import psnr
from fewbayes.diffusion.objective import Batch, diffusion_loss
from fewbayes.models import ModelCard, load_family
from fewbayes.models.sd3 import StableDiffusion3
from fewbayes.world.pipelines import PIPELINES
from fewbayes.world.recogniser import load_recogniser
from judge import judge_drawn, judge_pipeline
from muon import Muon
from pipeline import BATCH, DROP_CAPTION, encode, tokens
from pretrain import curve_of, halve, made_here, publish
from pretrain_sharp import sharp_autoencoder
from training import HELD_OUT, Training, batch_indices, device, run_training, scene_captions, scene_pictures

WIDTHS = (128, 64)  # of the text encoders; the first is that of `tiny`
# Rates of full weights and of LoRA were found by the rules in docs/lab-log.md; that of OFT is `tiny`'s, untried.
RECOMMENDED = {
    "learning_rate": 6e-4,
    "weight_std": 0.01,
    "lora": {"learning_rate": 2e-3},
    "oft": {"learning_rate": 5e-4},
}


def new_text_encoder(like: CLIPTextConfig, width: int) -> CLIPTextModelWithProjection:
    changed = {"hidden_size": width, "intermediate_size": 3 * width, "projection_dim": width}
    return CLIPTextModelWithProjection(CLIPTextConfig(**{**like.to_dict(), **changed}))


def new_transformer(latent_channels: int) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=6,
        attention_head_dim=40,
        num_attention_heads=4,
        joint_attention_dim=sum(WIDTHS),
        caption_projection_dim=160,
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=32,
        qk_norm="rms_norm",
    )


def new_family(vae: AutoencoderKL, start: StableDiffusionPipeline) -> StableDiffusion3:
    """The words of `tiny`, all else from nothing."""
    torch.manual_seed(1)
    first, second = (new_text_encoder(start.text_encoder.config, width) for width in WIDTHS)
    first.load_state_dict(start.text_encoder.float().state_dict(), strict=False)
    modules = {"vae": vae, "transformer": new_transformer(vae.config.latent_channels)}
    modules |= {"text_encoder": first, "text_encoder_2": second}
    card = ModelCard("tiny-flow", PIPELINES["tiny-flow"], StableDiffusion3.name, "flow", 64)
    words = dict.fromkeys(("tokenizer", "tokenizer_2"), start.tokenizer)
    scheduler = dict(FlowMatchEulerDiscreteScheduler(shift=1.0).config)
    return StableDiffusion3(card, modules, words, scheduler).to(device())


def spread_times(count: int, random: torch.Generator) -> torch.Tensor:
    """Logit-normal, one in each of `count` equal strata: the same expectation, a steadier gradient."""
    u = (torch.arange(count) + torch.rand(count, generator=random).clamp(1e-3, 1 - 1e-3)) / count
    return torch.special.ndtri(u.double()).sigmoid().float()


def pretrain_flow(folder: Path, family: StableDiffusion3, latents: np.ndarray, captions: list[str], steps: int) -> None:
    words: CLIPTokenizer = family.tokenizers["tokenizer"]
    ids, unspoken = tokens(words, captions), tokens(words, [""])
    trained = {name: family.modules[name].requires_grad_(True).train() for name in family.parts if name != "vae"}
    training = Training(folder, trained, total=steps, peak=2e-2, ema=0.998, warm=100, optimizer=Muon)

    def loss_of(step: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(1_000_003 * step + 1)
        chosen = batch_indices(step, BATCH, len(latents), seed=1)
        x0 = torch.from_numpy(latents[chosen]).float().to(device())
        said = ids[chosen].clone()
        said[torch.rand(BATCH, generator=random) < DROP_CAPTION] = unspoken
        eps, t = torch.randn(x0.shape, generator=random).to(device()), spread_times(BATCH, random).to(device())
        cond = family._encoded([said.to(device())] * 2)
        return diffusion_loss(family, Batch(x0, eps, t, cond))

    run_training(training, loss_of)
    for module in trained.values():
        module.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, checkpoints and results")
    parser.add_argument("--scenes", type=int, default=80_000)
    parser.add_argument("--autoencoder", type=Path, help="folder of the sharp autoencoder, if it is there already")
    parser.add_argument("--latents", type=Path, help="scaled latents of the scenes, if they are there already")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--export", action="store_true", help="place the weights in the package")
    options = parser.parse_args()
    work: Path = options.work

    if options.autoencoder:
        vae = AutoencoderKL.from_pretrained(options.autoencoder).float()
    else:
        vae = sharp_autoencoder(work, scene_pictures(work / "data", options.scenes))
    file = options.latents or work / "data" / f"latents-{options.scenes}.npy"
    latents = np.load(file, mmap_mode="r") if file.exists() else None
    if latents is None:
        latents = encode(vae.to(device()), scene_pictures(work / "data", options.scenes), file)
    family = new_family(vae, StableDiffusionPipeline.from_pretrained(PIPELINES["tiny"]))
    pretrain_flow(work / "transformer", family, latents, scene_captions(len(latents)), options.steps)
    halve(family.pipeline(), work / "export", RECOMMENDED)

    family = load_family(str(work / "export"))
    held_out = scene_pictures(work / "data", 4000, HELD_OUT)
    report = made_here(family) | {
        "scenes": len(latents),
        "stages": {"transformer": curve_of(work / "transformer")},
        "autoencoder_psnr_scenes": float(np.mean(psnr(vae.cpu().float(), held_out[:500]))),
        "prompts": judge_pipeline(family, load_recogniser()),
        "drawn": judge_drawn(family, load_recogniser()),
    }
    publish(report, family, work / "export", "tiny-flow", PIPELINES["tiny-flow"] if options.export else None)


if __name__ == "__main__":
    main()
