"""The fields of other programs' model files that are used here, with bounds: what they ask for is built only within.

Each is a table of which we read a part; the rest is passed on to the library that wrote it. The bounds are far above
every released model and far below what would fill a machine.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from fewbayes.files.decode import Meta

Channels = Annotated[int, Meta(ge=1, le=65536)]
Side = Annotated[int, Meta(ge=1, le=65536)]
Layers = Annotated[int, Meta(ge=0, le=1000)]
Blocks = Annotated[list[Channels], Meta(min_length=1, max_length=16)]
PerBlock = Layers | Annotated[list[Layers | list[Layers]], Meta(max_length=16)]
Kinds = Annotated[list[str], Meta(min_length=1, max_length=16)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]


class ModelIndex(TypedDict):
    _class_name: str


"""model_index.json, which also has [library, class] for each part."""


class Settings(TypedDict, total=False):
    """fewbayes.json of a model: what it advises, the word it keeps for a new subject, the side of its pictures."""

    recommended: dict[str, Any]
    rare_token: str | None
    resolution: Side


class WeightIndex(TypedDict):
    """The index of weights in several files: tensor -> file beside it."""

    weight_map: dict[str, Annotated[str, Meta(pattern=r"^[^/\\]+\.safetensors$")]]


class Unet(TypedDict):
    """UNet2DConditionModel."""

    _diffusers_version: NotRequired[str]
    downsample_padding: NotRequired[Annotated[int, Meta(ge=0, le=64)]]
    freq_shift: NotRequired[float]
    sample_size: Side
    in_channels: Channels
    block_out_channels: Blocks
    out_channels: NotRequired[Channels]
    down_block_types: NotRequired[Kinds]
    up_block_types: NotRequired[Kinds]
    layers_per_block: NotRequired[PerBlock]
    cross_attention_dim: NotRequired[Channels | Blocks]
    attention_head_dim: NotRequired[Channels | Blocks]
    num_attention_heads: NotRequired[Channels | Blocks | None]
    transformer_layers_per_block: NotRequired[PerBlock]
    reverse_transformer_layers_per_block: NotRequired[PerBlock | None]
    norm_num_groups: NotRequired[Channels | None]
    addition_time_embed_dim: NotRequired[Channels | None]
    projection_class_embeddings_input_dim: NotRequired[Channels | None]
    num_class_embeds: NotRequired[Channels | None]
    time_embedding_dim: NotRequired[Channels | None]


class ToldSizes(TypedDict):
    """What the U-Net of SDXL also has: it is told sizes beside the prompt."""

    addition_time_embed_dim: Channels
    projection_class_embeddings_input_dim: Channels


class Autoencoder(TypedDict):
    """AutoencoderKL."""

    latent_channels: Channels
    block_out_channels: Blocks
    in_channels: NotRequired[Channels]
    out_channels: NotRequired[Channels]
    down_block_types: NotRequired[Kinds]
    up_block_types: NotRequired[Kinds]
    layers_per_block: NotRequired[Layers]
    norm_num_groups: NotRequired[Channels]
    sample_size: NotRequired[Side | list[Side] | None]
    scaling_factor: NotRequired[Annotated[float, Meta(gt=0)]]
    shift_factor: NotRequired[float | None]
    latents_mean: NotRequired[list[float] | None]
    latents_std: NotRequired[list[float] | None]


class TextEncoder(TypedDict, total=False):
    """CLIPTextModel."""

    vocab_size: Annotated[int, Meta(ge=1, le=1_000_000)]
    hidden_size: Channels
    intermediate_size: Annotated[int, Meta(ge=1, le=2**20)]
    num_hidden_layers: Annotated[int, Meta(ge=1, le=1000)]
    num_attention_heads: Channels
    max_position_embeddings: Side


class PooledTextEncoder(TextEncoder):
    """CLIPTextModelWithProjection."""

    projection_dim: Channels


class DdpmScheduler(TypedDict):
    """The noise schedule of a model that was trained by denoising diffusion."""

    _class_name: str
    num_train_timesteps: Annotated[int, Meta(ge=1, le=100_000)]
    beta_start: Fraction
    beta_end: Fraction
    beta_schedule: str
    trained_betas: NotRequired[Annotated[list[Fraction], Meta(min_length=1, max_length=100_000)] | None]
    prediction_type: NotRequired[str]
    rescale_betas_zero_snr: NotRequired[bool]
    steps_offset: NotRequired[Annotated[int, Meta(ge=0, le=1000)]]
    timestep_spacing: NotRequired[str]


class FlowScheduler(TypedDict):
    """FlowMatchEulerDiscreteScheduler."""

    _class_name: str
    num_train_timesteps: Annotated[int, Meta(ge=1, le=100_000)]
    shift: NotRequired[Annotated[float, Meta(gt=0, le=1000)]]
    use_dynamic_shifting: NotRequired[bool]


class Sd3Transformer(TypedDict):
    """SD3Transformer2DModel."""

    sample_size: Side
    in_channels: Channels
    patch_size: Annotated[int, Meta(ge=1, le=64)]
    num_layers: Annotated[int, Meta(ge=1, le=1000)]
    attention_head_dim: Channels
    num_attention_heads: Channels
    joint_attention_dim: Channels
    caption_projection_dim: Channels
    pooled_projection_dim: Channels
    pos_embed_max_size: Side
    out_channels: NotRequired[Channels | None]
    dual_attention_layers: NotRequired[Annotated[list[Layers], Meta(max_length=1000)]]
    qk_norm: NotRequired[str | None]


class Flux2Transformer(TypedDict):
    """Flux2Transformer2DModel."""

    in_channels: Channels
    num_layers: Layers
    num_single_layers: Layers
    attention_head_dim: Channels
    num_attention_heads: Channels
    joint_attention_dim: Channels
    guidance_embeds: NotRequired[bool]
    axes_dims_rope: NotRequired[Blocks]
    mlp_ratio: NotRequired[Annotated[float, Meta(gt=0, le=64)]]


class ZImageTransformer(TypedDict):
    """ZImageTransformer2DModel."""

    in_channels: Channels
    dim: Channels
    n_layers: Layers
    n_refiner_layers: Layers
    n_heads: Channels
    cap_feat_dim: Channels
    siglip_feat_dim: NotRequired[Channels | None]
    axes_dims: NotRequired[Blocks]
    axes_lens: NotRequired[Blocks]


class LanguageModel(TypedDict):
    """Qwen3ForCausalLM and its like."""

    vocab_size: Annotated[int, Meta(ge=1, le=1_000_000)]
    hidden_size: Channels
    intermediate_size: Annotated[int, Meta(ge=1, le=2**20)]
    num_hidden_layers: Annotated[int, Meta(ge=1, le=1000)]
    num_attention_heads: Channels


SCHEMAS: dict[str, Any] = {
    "UNet2DConditionModel": Unet,
    "SD3Transformer2DModel": Sd3Transformer,
    "Flux2Transformer2DModel": Flux2Transformer,
    "AutoencoderKLFlux2": Autoencoder,
    "Qwen3ForCausalLM": LanguageModel,
    "Qwen3Model": LanguageModel,
    "ZImageTransformer2DModel": ZImageTransformer,
    "AutoencoderKL": Autoencoder,
    "CLIPTextModel": TextEncoder,
    "CLIPTextModelWithProjection": PooledTextEncoder,
}
"""Of a part's config.json, by the class of the part; others are only held to be tables."""
