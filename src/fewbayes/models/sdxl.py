"""Stable Diffusion XL, the base model without its refiner: two text encoders, a pooled prompt and six sizes.

The rest is `latent.py`, shared with 1.x and 2.x. A picture is said to be of its own size and uncropped
(original = target = the size of xt in pixels, crop 0, 0), as diffusers' pipeline says it when nothing else is asked.
Training says the same, also of photographs that were cropped at random: what was cut off is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from fewbayes.models.folders import INDEX, read_json
from fewbayes.models.latent import LatentDiffusion

if TYPE_CHECKING:
    from torch import Tensor

    from fewbayes.diffusion.conditioning import Conditioning


class StableDiffusionXL(LatentDiffusion):
    """A loaded Stable Diffusion XL base model."""

    family = "sdxl"

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Penultimate hidden states of both text encoders side by side; pooled is the second one's projection."""
        import torch

        from fewbayes.diffusion.conditioning import Conditioning

        outputs = [
            cast("Any", self.text_encoders[encoder])(self._token_ids(tokenizer, prompts), output_hidden_states=True)
            for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
        ]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return Conditioning(tokens, pooled=outputs[1].text_embeds)

    def encode_negative(self, prompt: str) -> Conditioning:
        """Zeros for "" where the model was made so, which SDXL's own base is."""
        import torch

        from fewbayes.diffusion.conditioning import Conditioning

        encoded = self.encode_prompts([prompt])
        if prompt or not self._zeros_for_no_prompt or encoded.pooled is None:
            return encoded
        return Conditioning(torch.zeros_like(encoded.tokens), torch.zeros_like(encoded.pooled))

    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        added = {"text_embeds": cond.pooled, "time_ids": self.time_ids(xt)}
        return self.unet(xt, t, cond.tokens, added_cond_kwargs=cast("Any", added), return_dict=False)[0]

    def time_ids(self, xt: Tensor) -> Tensor:
        """(batch, 6): original height and width, top and left of the crop, target height and width, in pixels."""
        height, width = (side * self._pixels_per_latent for side in xt.shape[-2:])
        return xt.new_tensor([height, width, 0, 0, height, width]).expand(len(xt), -1)

    def prompt_arguments(self, cond: Conditioning, negative: Conditioning) -> dict[str, Any]:
        return {
            "prompt_embeds": cond.tokens,
            "pooled_prompt_embeds": cond.pooled,
            "negative_prompt_embeds": negative.tokens,
            "negative_pooled_prompt_embeds": negative.pooled,
        }

    def _pipeline_settings(self) -> dict[str, Any]:
        # Pictures are compared with each other and with photographs: none of them gets an invisible watermark.
        return {"force_zeros_for_empty_prompt": self._zeros_for_no_prompt, "add_watermarker": False}

    @property
    def _zeros_for_no_prompt(self) -> bool:
        return read_json(self.card.folder / INDEX).get("force_zeros_for_empty_prompt", True)
