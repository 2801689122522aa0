"""T-LoRA, a comparison arm: LoRA with fewer ranks the noisier the picture (arXiv 2507.05964).

    W + alpha / rank (B diag(s) M_t A - B_0 diag(s_0) M_t A_0),  M_t = the first r(t) ranks

A_0, s_0, B_0 are the last singular vectors and values of a random matrix, so that the rows of A_0 and the columns of
B_0 are orthonormal and a rank that is masked takes nothing from the others. Written here and not taken from LyCORIS,
whose mask is a global that every program that samples has to set. A hook tells the layers each example's timestep,
in training and sampling alike. Knows nothing of diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbayes.errors import UserError
from fewbayes.methods.adapters import copy_state, replace_layer, target_layers, targeted
from fewbayes.methods.lora import ScaledSettings
from fewbayes.methods.registry import Method, Registered, register
from fewbayes.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewbayes.methods._tlora_layer import TimestepLora
    from fewbayes.models import Family

FORMAT = "fewbayes.tlora.1"
RESULT = "tlora_weights.safetensors"


class TLoraSettings(ScaledSettings):
    @classmethod
    def check(cls, config: Any) -> None:
        if config.train_text_encoder:
            raise UserError(
                "method tlora depends on the timestep, which text encoders never see; leave out train_text_encoder, or "
                "take method lora"
            )


class TLora(Method):
    config: TLoraSettings
    _listening: Any = None

    def attach(self, family: Family) -> None:
        from fewbayes.diffusion.process import Ddpm
        from fewbayes.methods._tlora_layer import Clock, TimestepLora

        config, denoiser = self.config, family.denoiser
        layers = targeted(denoiser, target_layers(family, "denoiser", denoiser, config.adapter_targets))
        for name, layer in layers.items():
            if config.rank > min(layer.in_features, layer.out_features):
                raise UserError(
                    f"rank is {config.rank}, more than the {min(layer.in_features, layer.out_features)} that {name} "
                    "has; give a smaller one"
                )
        if not isinstance(family.process, Ddpm):
            raise UserError(f"method tlora counts the steps of a schedule, which {family.card.model} has not")
        clock = Clock(family.process.steps)
        scale = 1.0 if config.lora_alpha is None else config.lora_alpha / config.rank
        for name, layer in layers.items():
            random = generator(config.seed, f"adapter denoiser.{name}")
            replace_layer(denoiser, name, TimestepLora(layer, config.rank, scale, clock, random))
        self._listening = denoiser.register_forward_pre_hook(clock.listen, with_kwargs=True)

    def trainable(self, family: Family) -> dict[str, nn.Parameter]:
        return {
            f"denoiser.{name}.{key}": parameter
            for name, layer in _layers(family).items()
            for key, parameter in layer.named_parameters(recurse=False)
        }

    def export(self, family: Family, folder: Path) -> None:
        """A format of its own: a loader that knows no timestep would apply all ranks to all of them."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        layer = next(iter(_layers(family).values()))
        header = {"format": FORMAT, "rank": str(layer.rank), "scale": repr(layer.scale)}
        state = {name: tensor.detach().cpu().clone() for name, tensor in _file_state(family).items()}
        save_file(state, folder / self.result, metadata=header)

    def load(self, family: Family, folder: Path) -> None:
        from safetensors.torch import load_file

        copy_state(_file_state(family), load_file(folder / self.result), folder / self.result)

    def detach(self, family: Family) -> None:
        for name, layer in _layers(family).items():
            replace_layer(family.denoiser, name, layer.base_layer)
        if self._listening is not None:
            self._listening.remove()
        self._listening = None
        family.denoiser.requires_grad_(False)


def _layers(family: Family) -> dict[str, TimestepLora]:
    from fewbayes.methods._tlora_layer import TimestepLora

    return {name: layer for name, layer in family.denoiser.named_modules() if isinstance(layer, TimestepLora)}


def _file_state(family: Family) -> dict[str, Tensor]:
    return {
        f"{family.denoiser_part}.{name}.{kind}_{key}": getattr(layer, f"{kind}_{key}")
        for name, layer in _layers(family).items()
        for kind in ("lora", "start")
        for key in "AsB"
    }


register(
    Registered(
        "tlora",
        TLora,
        TLoraSettings,
        title="T-LoRA",
        trains="LoRA whose rank depends on the noise, to compare with",
        learning_rate=1e-4,
        steps_per_image=400,
        kind="timestep",
        result=RESULT,
        random=None,
    )
)
