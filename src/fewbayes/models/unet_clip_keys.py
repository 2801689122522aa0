"""What other programs call the weights of Stable Diffusion 1.x, 2.x and XL: the original releases, and kohya's trainer.

Every map goes from the diffusers layout to the other one. SD 1.x carries OpenAI's text encoder under
`cond_stage_model.transformer`, SD 2.x OpenCLIP's under `cond_stage_model.model`, SDXL both under `conditioner`; their
weights lie under `model.diffusion_model.` and `first_stage_model.`. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fewbayes.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_SD1, OPEN_CLIP_SD2 = "cond_stage_model.transformer.", "cond_stage_model.model."
CLIP_SDXL, OPEN_CLIP_SDXL = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."

KOHYA_PREFIX = {
    "sd": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}
# width of the text that the U-Net reads: (ModelSpec's architecture, by prediction type; kohya's base version)
ARCHITECTURES = {
    ("sd", 768): ("stable-diffusion-v1", "stable-diffusion-v1", "sd_v1"),
    ("sd", 1024): ("stable-diffusion-v2-512", "stable-diffusion-v2-768-v", "sd_v2"),
    ("sdxl", 2048): ("stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
}
# an architecture that the specification has no id for, as is that of every small test model
UNLISTED = ("stable-diffusion-unlisted", "stable-diffusion-unlisted", "sd_unlisted")

UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """The original name of a U-Net's layer or weight.

    config: of the UNet2DConditionModel, whose numbers of blocks and layers give the numbers in the names.
    """
    each = config["layers_per_block"]
    if not isinstance(each, int):
        raise UserError(f"layers_per_block is {each}; the original layout has the same number of layers in each block")
    inside = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)", name)
    if inside:
        side, block, kind, index, rest = inside[1], int(inside[2]), inside[3], int(inside[4]), inside[5]
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (each + 1)}.0.{_first(rest, {'conv': 'op'})}"
        if kind == "upsamplers":
            place = 2 if "CrossAttn" in config["up_block_types"][block] else 1
            return f"output_blocks.{block * (each + 1) + each}.{place}.{rest}"
        number = block * (each + 1) + index + (side == "down")
        stem = "input_blocks" if side == "down" else "output_blocks"
        return f"{stem}.{number}." + (f"0.{_first(rest, UNET_RESNET)}" if kind == "resnets" else f"1.{rest}")
    middle = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if middle and middle[1] == "resnets":
        return f"middle_block.{2 * int(middle[2])}.{_first(middle[3], UNET_RESNET)}"
    if middle:
        return f"middle_block.{2 * int(middle[2]) + 1}.{middle[3]}"
    return _start(name, UNET_ENDS)


def kohya_name(family: str, part: str, layer: str, config: Mapping[str, Any]) -> str:
    """`lora_unet_...`, `lora_te_text_model_...`: of the network that kohya trains.

    That is diffusers' for SD 1.x and 2.x and the original one (`input_blocks_4_1_...`) for SDXL. config: of the U-Net.
    """
    if part != "unet":
        layer = clip_name(layer)
    elif family == "sdxl":
        layer = unet_name(layer, config)
    return f"{KOHYA_PREFIX[family][part]}_{layer.replace('.', '_')}"


def published_as(family: str, text_width: int, *, predicts_v: bool) -> tuple[str, str]:
    """ModelSpec's architecture and kohya's base version."""
    eps, v, version = ARCHITECTURES.get((family, text_width), UNLISTED)
    return v if predicts_v else eps, version


def vae_name(name: str, config: Mapping[str, Any]) -> str:
    """The original name of an autoencoder's weight; the decoder's blocks are counted from the other end there."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    up = len(config["up_block_types"]) - 1
    name = re.sub(r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block.", name)
    name = re.sub(r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample.", name)
    name = re.sub(r"\.up_blocks\.(\d+)\.resnets\.", lambda found: f".up.{up - int(found[1])}.block.", name)
    name = re.sub(r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda found: f".up.{up - int(found[1])}.upsample.", name)
    name = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda found: f".mid.block_{int(found[1]) + 1}.", name)
    attention = re.fullmatch(r"(.+)\.mid_block\.attentions\.0\.(.+)", name)
    return f"{attention[1]}.mid.attn_1.{_start(attention[2], VAE_ATTENTION)}" if attention else name


def vae_weights(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Attention in the original autoencoder is of 1 x 1 convolutions."""
    named = {vae_name(name, config): weight for name, weight in weights.items()}
    return {
        name: weight[:, :, None, None] if ".attn_1." in name and weight.dim() == 2 else weight
        for name, weight in named.items()
    }


def clip_name(name: str) -> str:
    """The name that all programs know: transformers 5.6 dropped `text_model.` from CLIPTextModel's own names."""
    if name.startswith(("text_model.", "text_projection.")):
        return name
    return f"text_model.{name}"


def open_clip_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP keeps query, key and value in one matrix and multiplies by its projection from the other side."""
    import torch

    named = {clip_name(name): weight for name, weight in weights.items() if not name.endswith("position_ids")}
    out: dict[str, Tensor] = {}
    for name, weight in named.items():
        layer = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if layer is None:
            out[_OPEN_CLIP_ENDS[name]] = weight.T if name == "text_projection.weight" else weight
            continue
        stem, inner, kind = f"transformer.resblocks.{layer[1]}", layer[2], layer[3]
        if inner in OPEN_CLIP_LAYER:
            out[f"{stem}.{OPEN_CLIP_LAYER[inner]}.{kind}"] = weight
        elif inner == "self_attn.q_proj":
            three = [named[name.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")]
            out[f"{stem}.attn.in_proj_{kind}"] = torch.cat(three)
    return out


_OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}


def single_file(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """All weights of a pipeline under their original names.

    parts: the modules "unet", "vae", "text_encoder" and, for SDXL, "text_encoder_2".
    """
    unet, vae, text = parts["unet"], parts["vae"], parts["text_encoder"]
    out = {UNET + unet_name(name, unet.config): weight for name, weight in unet.state_dict().items()}
    out |= {VAE + name: weight for name, weight in vae_weights(vae.state_dict(), vae.config).items()}
    if "text_encoder_2" in parts:
        out |= {CLIP_SDXL + name: weight for name, weight in _clip_weights(text).items()}
        second = open_clip_weights(parts["text_encoder_2"].state_dict())
        out |= {OPEN_CLIP_SDXL + name: weight for name, weight in second.items()}
    elif is_open_clip(text):
        out |= {OPEN_CLIP_SD2 + name: weight for name, weight in open_clip_weights(text.state_dict()).items()}
    else:
        out |= {CLIP_SD1 + name: weight for name, weight in _clip_weights(text).items()}
    return {name: weight.detach().contiguous() for name, weight in out.items()}


def is_open_clip(text_encoder: Any) -> bool:
    """SD 2.x: OpenCLIP's encoders use the exact GELU, OpenAI's an approximation of it."""
    return text_encoder.config.hidden_act == "gelu"


def _clip_weights(text_encoder: Any) -> dict[str, Tensor]:
    return {clip_name(name): weight for name, weight in text_encoder.state_dict().items()}


def _first(name: str, renamed: Mapping[str, str]) -> str:
    """The name with its first part renamed, where it is listed."""
    head, dot, rest = name.partition(".")
    return renamed.get(head, head) + dot + rest


def _start(name: str, renamed: Mapping[str, str]) -> str:
    """The name with its listed beginning renamed."""
    for old, new in renamed.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name
