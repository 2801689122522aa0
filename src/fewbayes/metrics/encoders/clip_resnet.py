"""CLIP RN50 as CLIP-IQA uses it, built from the published file: no positional embedding, pictures of any size.

transformers has no ResNet of CLIP, and the published torchscript adds a positional embedding that ties it to 224
pixels. Names of weights are those of the file (Radford et al., Learning Transferable Visual Models, 2021; Wang et al.,
Exploring CLIP for Assessing the Look and Feel of Images, 2023). torch only; knows nothing of files or scores.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


class Bottleneck(nn.Module):
    """Strides are averages before a convolution of stride 1."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = None
        if stride > 1 or inputs != outputs:
            shortcut = [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            self.downsample = nn.Sequential(OrderedDict(zip("01", shortcut, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = self.pool(F.relu(self.bn2(self.conv2(inner))))
        shortcut = self.downsample(self.pool(x)) if self.downsample else x
        return F.relu(self.bn3(self.conv3(inner)) + shortcut)


class AttentionPool(nn.Module):
    """The mean of all places asks, the mean and the places answer. The positional embedding is loaded and not used."""

    def __init__(self, places: int, width: int, heads: int, outputs: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(places + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        places = maps.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(1, keepdim=True), places], 1)
        query, key, value = (
            layer(part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, part in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        pooled = F.scaled_dot_product_attention(query, key, value)
        return self.c_proj(pooled.transpose(1, 2).flatten(2))[:, 0]


class ResNet(nn.Module):
    def __init__(self, blocks: tuple[int, ...], width: int, places: int, outputs: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        inputs = width
        for number, count in enumerate(blocks, start=1):
            inner = width * 2 ** (number - 1)
            first = Bottleneck(inputs, inner, 2 if number > 1 else 1)
            layers = [first, *(Bottleneck(4 * inner, inner, 1) for _ in range(count - 1))]
            self.add_module(f"layer{number}", nn.Sequential(*layers))
            inputs = 4 * inner
        self.stages = len(blocks)
        self.attnpool = AttentionPool(places, inputs, inputs // 64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return self.attnpool(x)


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TextBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGelu()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        inner = self.ln_1(x)
        x = x + self.attn(inner, inner, inner, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ClipResnet(nn.Module):
    """`encode_image`: normalised (n, 3, height, width). `encode_text`: token ids (n, length), closed by the highest."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        inner, outputs = weights["text_projection"].shape
        stages = [{key.split(".")[2] for key in weights if key.startswith(f"visual.layer{n}.")} for n in range(1, 5)]
        places = len(weights["visual.attnpool.positional_embedding"]) - 1
        width = weights["visual.layer1.0.conv1.weight"].shape[0]
        self.visual = ResNet(tuple(map(len, stages)), width, places, outputs)
        blocks = {key.split(".")[2] for key in weights if key.startswith("transformer.resblocks.")}
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([TextBlock(inner) for _ in blocks])
        vocabulary, _ = weights["token_embedding.weight"].shape
        self.token_embedding = nn.Embedding(vocabulary, inner)
        self.positional_embedding = nn.Parameter(torch.empty(weights["positional_embedding"].shape))
        self.ln_final = nn.LayerNorm(inner)
        self.text_projection = nn.Parameter(torch.empty(inner, outputs))
        self.logit_scale = nn.Parameter(torch.empty(()))
        kept = {name: value.float() for name, value in weights.items() if name not in NOT_WEIGHTS}
        self.load_state_dict(kept)
        self.eval().requires_grad_(False)

    def encode_image(self, pictures: Tensor) -> Tensor:
        return self.visual(pictures)

    def encode_text(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf, device=ids.device).triu(1)
        for block in self.transformer.get_submodule("resblocks").children():
            x = block(x, mask)
        x = self.ln_final(x)
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection
