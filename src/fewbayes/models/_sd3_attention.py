"""Attention of SD3 in which one word may stand for many that are the same.

Without T5 the pipeline appends 256 words of zeros to every prompt. They know no place, so they stay the same in every
layer, and what attends to n of them gets what it gets from one whose logit is raised by log n.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class OneForMany:
    """An attention processor; the last word of prompts of `words` counts `times`, any other prompt is as it says."""

    def __init__(self, words: int, times: int):
        self.words, self.raised = words, math.log(times)

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Any:
        picture, words = hidden_states, encoder_hidden_states

        def heads(projected: Tensor, norm: Any) -> Tensor:
            parted = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return parted if norm is None else norm(parted)

        q, k = heads(attn.to_q(picture), attn.norm_q), heads(attn.to_k(picture), attn.norm_k)
        v, raised = heads(attn.to_v(picture), None), None
        if words is not None:
            q = torch.cat([q, heads(attn.add_q_proj(words), attn.norm_added_q)], dim=2)
            k = torch.cat([k, heads(attn.add_k_proj(words), attn.norm_added_k)], dim=2)
            v = torch.cat([v, heads(attn.add_v_proj(words), None)], dim=2)
            if words.shape[1] == self.words:
                raised = F.pad(q.new_full((1,), self.raised), (k.shape[2] - 1, 0)).view(1, 1, 1, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=raised).transpose(1, 2).flatten(2).to(q.dtype)
        seen, read = out[:, : picture.shape[1]], out[:, picture.shape[1] :]
        seen = attn.to_out[1](attn.to_out[0](seen))
        if words is None:
            return seen
        return seen, read if attn.context_pre_only else attn.to_add_out(read)
