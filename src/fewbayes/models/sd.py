"""Stable Diffusion 1.x and 2.x: one text encoder, whose last hidden states are the whole conditioning.

The rest is `latent.py`, shared with XL. 1.x predicts eps; 2.1 predicts v, has linear projections and OpenCLIP's text
encoder, all of which its own config.json says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from fewbayes.models.latent import LatentDiffusion

if TYPE_CHECKING:
    from torch import Tensor

    from fewbayes.diffusion.conditioning import Conditioning


class StableDiffusion(LatentDiffusion):
    """A loaded Stable Diffusion 1.x or 2.x."""

    family = "sd"

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        from fewbayes.diffusion.conditioning import Conditioning

        ids = self._token_ids("tokenizer", prompts)
        return Conditioning(cast("Any", self.text_encoder)(ids)[0])

    def encode_negative(self, prompt: str) -> Conditioning:
        return self.encode_prompts([prompt])

    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.unet(xt, t, encoder_hidden_states=cond.tokens, return_dict=False)[0]

    def prompt_arguments(self, cond: Conditioning, negative: Conditioning) -> dict[str, Any]:
        return {"prompt_embeds": cond.tokens, "negative_prompt_embeds": negative.tokens}

    def _pipeline_settings(self) -> dict[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
