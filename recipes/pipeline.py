"""The text-to-image pipeline: tokenizer, text encoder and U-Net trained together on latents of scenes and captions.

Layout, schedule and prediction type are Stable Diffusion's; only the sizes differ. The result is a folder that
`StableDiffusionPipeline.from_pretrained` loads.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import AddedToken, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewbayes.world.scenes import RARE_TOKEN
from muon import Muon
from training import Training, batch_indices, device, run_training, scene_captions, to_unit

BATCH = 64
MAX_TOKENS = 24
DROP_CAPTION = 0.1
WIDTHS = (64, 96, 128)
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def new_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the captions is one token; other words fall apart into letters."""
    words = Counter(word for caption in captions for word in caption.split() if word != RARE_TOKEN)
    model = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    model.train_from_iterator((word for word in sorted(words)), trainer)
    bpe = json.loads(model.to_str())["model"]
    vocabulary = bpe["vocab"]
    for letter in sorted(letters):
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in bpe["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
    tokenizer.add_tokens([AddedToken(RARE_TOKEN, normalized=False)])
    return tokenizer


def kept_tokenizer(folder: Path, captions: list[str]) -> CLIPTokenizer:
    """The tokenizer of this training: built once, since equal pairs merge in an order that varies."""
    if not folder.exists():
        scratch = folder.with_name(folder.name + ".tmp")
        new_tokenizer(captions).save_pretrained(scratch)
        scratch.rename(folder)
    return CLIPTokenizer.from_pretrained(folder)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet(latent_channels: int, widths: tuple[int, int, int] = WIDTHS) -> UNet2DConditionModel:
    """widths: in the proportion 2 : 3 : 4, so that a norm group has as many channels at every size."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=widths[0] // 2,
    )


@torch.no_grad()
def widened_unet(narrow: UNet2DConditionModel, latent_channels: int) -> UNet2DConditionModel:
    """`narrow` for more latent channels: its blocks as they are, the new channels of both ends at zero."""
    unet = new_unet(latent_channels)
    for part in (unet.conv_in.weight, unet.conv_out.weight, unet.conv_out.bias):
        part.zero_()
    for ours, theirs in zip(unet.parameters(), narrow.parameters(), strict=True):
        ours[tuple(slice(size) for size in theirs.shape)] = theirs
    return unet


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, path: Path) -> np.ndarray:
    """Scaled latent means of all pictures, computed and kept in half precision beside them."""
    if not path.exists():
        batches = []
        for i in tqdm(range(0, len(pictures), 64), desc="encoding scenes", mininterval=5):
            x = to_unit(pictures[i : i + 64]).to(device(), memory_format=torch.channels_last)
            with torch.autocast(x.device.type, torch.bfloat16):
                mean = vae.encode(x).latent_dist.mean
            batches.append((mean.float() * vae.config.scaling_factor).half().cpu().numpy())
        scratch = path.with_suffix(".tmp.npy")
        np.save(scratch, np.concatenate(batches))
        scratch.replace(path)
    return np.load(path)


def pretrain_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    pictures: np.ndarray,
    steps: int,
    latents_path: Path,
    start: StableDiffusionPipeline | None = None,
    peak: float = 1e-3,
    finer: int = 0,
    widths: tuple[int, int, int] = WIDTHS,
) -> StableDiffusionPipeline:
    """From nothing, or from the words and the U-Net of a pipeline whose latents have fewer channels; of other widths
    than its own, the U-Net begins from nothing and the words stay as they are.

    `steps` of Adam, then `finer` ones of Muon.
    """
    torch.manual_seed(1)
    captions = scene_captions(len(pictures))
    tokenizer = start.tokenizer if start else kept_tokenizer(folder / "tokenizer", captions)
    latents, ids = encode(vae, pictures, latents_path), tokens(tokenizer, captions)
    unspoken = tokens(tokenizer, [""])
    channels = vae.config.latent_channels
    text_encoder = start.text_encoder.float() if start else new_text_encoder(tokenizer)
    unet = widened_unet(start.unet, channels) if start and widths == WIDTHS else new_unet(channels, widths)
    modules = {"unet": unet.to(device()).train(), "text_encoder": text_encoder.to(device()).train()}
    if widths != WIDTHS:
        del modules["text_encoder"]
        text_encoder.requires_grad_(False)
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    training = Training(folder, modules, total=steps, peak=peak, ema=0.999)

    def loss_of(step: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(1_000_003 * step + 1)
        chosen = batch_indices(step, BATCH, len(latents), seed=1)
        x0 = torch.from_numpy(latents[chosen]).float().to(device())
        words = ids[chosen].clone()
        words[torch.rand(BATCH, generator=random) < DROP_CAPTION] = unspoken
        eps = torch.randn(x0.shape, generator=random).to(device())
        # one timestep in each of BATCH equal strata: the same expectation, a steadier gradient
        t = ((torch.arange(BATCH) + torch.rand(BATCH, generator=random)) / BATCH * 1000).long().to(device())
        context = text_encoder(words.to(device())).last_hidden_state
        return F.mse_loss(unet(scheduler.add_noise(x0, eps, t), t, context).sample, eps)

    run_training(training, loss_of)
    if finer:
        muon = Training(folder / "muon", modules, total=finer, peak=1e-2, ema=0.998, warm=50, optimizer=Muon)
        run_training(muon, lambda step: loss_of(steps + step))
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
