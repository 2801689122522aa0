"""Stable Diffusion pipelines of the true classes, so small and random that a training step takes milliseconds."""

from __future__ import annotations

import json
import os
import runpy
import string
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")

RARE_TOKEN = "<v>"
SIDE = 32


def run_here(script: Path, *arguments: object) -> None:
    """A program of ours from its first line, without the seconds that a process of its own needs to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(script), *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")


def _tokenizer(folder: Path, **settings):
    """A byte-pair tokenizer of single letters, two whole words and the rare token."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *(f"{c}</w>" for c in letters), "ph", "pho", "phot", "photo</w>", "of</w>"]
    merges = [("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>"), ("o", "f</w>")]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16, **settings)
    tokenizer.add_tokens([RARE_TOKEN])
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def _text_config(tokenizer, width: int, layers: int):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _unet(**settings):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        **settings,
    )


def _vae(**settings):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=SIDE,
        **settings,
    )


def _noted(folder: Path, **more) -> Path:
    (folder / "fewbayes.json").write_text(json.dumps({"rare_token": RARE_TOKEN, "recommended": {}, **more}))
    return folder


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def build_pipeline(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a whole pipeline folder; pictures are 32 x 32, latents 4 x 8 x 8."""
    import torch
    from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    tokenizer = _tokenizer(folder / "tokenizer")
    torch.manual_seed(seed)
    unet, vae = _unet(cross_attention_dim=16), _vae()
    if prediction_type == "epsilon":
        scheduler = PNDMScheduler(**BETAS, skip_prk_steps=True)
    else:
        scheduler = DDIMScheduler(**BETAS, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False)
    text_encoder = CLIPTextModel(_text_config(tokenizer, width=16, layers=1))
    StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    return _noted(folder)


def build_sdxl(folder: Path, *, seed: int = 0) -> Path:
    """The same of SDXL: text encoders of widths 16 and 24, whose tokenizers pad with different tokens."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first, second = _tokenizer(folder / "tokenizer"), _tokenizer(folder / "tokenizer_2", pad_token="a")
    torch.manual_seed(seed)
    unet = _unet(
        cross_attention_dim=16 + 24,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    StableDiffusionXLPipeline(
        _vae(scaling_factor=0.13025, force_upcast=True),
        CLIPTextModel(_text_config(first, width=16, layers=2)),
        CLIPTextModelWithProjection(_text_config(second, width=24, layers=2)),
        first,
        second,
        unet,
        EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        add_watermarker=False,
    ).save_pretrained(folder)
    return _noted(folder)


def build_sd3(folder: Path, *, t5: bool = True, seed: int = 0) -> Path:
    """The same of SD3: 16 channels of latents, two blocks of which the first has attention among pictures alone."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

    clips = _tokenizer(folder / "tokenizer"), _tokenizer(folder / "tokenizer_2", pad_token="a")
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=16 + 24,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = _vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)
    encoders = [
        CLIPTextModelWithProjection(_text_config(its, width, 2)) for its, width in zip(clips, (16, 24), strict=True)
    ]
    third = tokenizer_3 = None
    if t5:
        tokenizer_3 = _t5_tokenizer(folder / "tokenizer_3")
        third = T5EncoderModel(
            T5Config(vocab_size=len(tokenizer_3), d_model=48, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
        )
    StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae,
        encoders[0],
        clips[0],
        encoders[1],
        clips[1],
        third,
        tokenizer_3,
    ).save_pretrained(folder)
    return _noted(folder)


def _t5_tokenizer(folder: Path):
    """One of single letters."""
    from transformers import T5TokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *string.ascii_lowercase]
    tokenizer = T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)
    tokenizer.save_pretrained(folder)
    return T5TokenizerFast.from_pretrained(folder)


def build_flux2(folder: Path, *, seed: int = 0) -> Path:
    """The same of FLUX.2 klein: 8 channels of latents, of which 32 in patches, read by one block of each kind."""
    import torch
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )

    tokenizer = _chat_tokenizer(folder / "tokenizer")
    torch.manual_seed(seed)
    transformer = Flux2Transformer2DModel(
        in_channels=32,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=SIDE,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    words = _language_model("Qwen3ForCausalLM", tokenizer, layers=28)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    Flux2KleinPipeline(scheduler, vae, words, tokenizer, transformer).save_pretrained(folder)
    return _noted(folder, resolution=SIDE)


def build_z_image(folder: Path, *, seed: int = 0) -> Path:
    """The same of Z-Image: a block for pictures, one for words, one for both."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    tokenizer = _chat_tokenizer(folder / "tokenizer")
    torch.manual_seed(seed)
    transformer = ZImageTransformer2DModel(
        dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[4, 2, 2]
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    vae = _vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159)
    words = _language_model("Qwen3Model", tokenizer, layers=2)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    ZImagePipeline(scheduler, vae, words, tokenizer, transformer).save_pretrained(folder)
    return _noted(folder, resolution=SIDE)


def _language_model(kind: str, tokenizer, layers: int):
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=tokenizer.pad_token_id,
    )
    return getattr(transformers, kind)(config)


def _chat_tokenizer(folder: Path):
    """One of single letters, with a template in which a user speaks."""
    from transformers import Qwen2TokenizerFast

    pieces = ["<|endoftext|>", "\u0120", *string.printable.strip()]
    tokenizer = Qwen2TokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokenizer.add_tokens([RARE_TOKEN])
    tokenizer.chat_template = "{% for m in messages %}user: {{ m.content }} {% endfor %}model:"
    tokenizer.save_pretrained(folder)
    return Qwen2TokenizerFast.from_pretrained(folder)


def _shared(build, **how):
    """A model that all tests of a session have in common."""

    @pytest.fixture(scope="session")
    def model(tmp_path_factory) -> Path:
        return build(tmp_path_factory.mktemp("model"), **how)

    return model


eps_model, v_model = _shared(build_pipeline), _shared(build_pipeline, prediction_type="v_prediction")
sdxl_model, sd3_model = _shared(build_sdxl), _shared(build_sd3)
sd3_without_t5_model = _shared(build_sd3, t5=False)
flux2_model, z_image_model = _shared(build_flux2), _shared(build_z_image)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Three pictures, all different, already square and of the model's size."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def short_run(model: Path, photos: Path, output: Path, **changes):
    """The config of a run of a few steps."""
    from fewbayes.settings.config import TrainConfig

    usual = {
        "model": str(model),
        "instance_data_dir": str(photos),
        "instance_prompt": f"a photo of {RARE_TOKEN} dog",
        "output_dir": str(output),
        "max_train_steps": 4,
        "checkpointing_steps": 500,
        "learning_rate": 1e-3,
        "num_inference_steps": 2,
        "num_validation_images": 2,
    }
    return TrainConfig(**(usual | changes))


@pytest.fixture
def settings(eps_model, photos, tmp_path):
    """Makes the config of a run of a few steps: settings(output="name", learning_rate=1e-3, ...)."""
    return lambda output="run", model=eps_model, **changes: short_run(model, photos, tmp_path / output, **changes)


@pytest.fixture(scope="session")
def family(eps_model):
    """A loaded model that tests share; training gives it back as it was."""
    from fewbayes.models import load_family

    return load_family(str(eps_model))
