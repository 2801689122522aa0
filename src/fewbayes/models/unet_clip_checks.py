"""What makes a folder no Stable Diffusion that can be trained here though it names its class: told with the way out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.models.folders import read_json


def check_channels(folder: Path, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    if unet["in_channels"] != vae["latent_channels"]:
        raise UserError(
            f"{folder / 'unet'} takes {unet['in_channels']} channels and the autoencoder gives "
            f"{vae['latent_channels']}: an inpainting or depth model; choose the text-to-image one"
        )
    if vae.get("latents_mean") or vae.get("shift_factor"):
        raise UserError(
            f"the autoencoder of {folder} shifts its latents (latents_mean or shift_factor in its config.json), which "
            "is not done here; choose a model whose latents are only scaled"
        )


def check_time_ids(folder: Path, unet: dict[str, Any]) -> None:
    """SDXL's base is told six sizes beside the pooled prompt; the refiner, which is told five, is not trained here."""
    pooled = read_json(folder / "text_encoder_2/config.json")["projection_dim"]
    told, six = unet["projection_class_embeddings_input_dim"], pooled + 6 * unet["addition_time_embed_dim"]
    if told != six:
        raise UserError(
            f"{folder / 'unet'} is told {told} numbers beside the prompt and SDXL's base model {six}: a refiner, or "
            "another model; give the base model"
        )
