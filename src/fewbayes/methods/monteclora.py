"""MonteCLoRA, a comparison arm: LoRA whose down matrix is perturbed by a learned mixture of Gaussians while training.

The layers are PEFT's (PR 2943 there), and so is the mean that is exported, a plain LoRA. Ours is the noise: a function
of (seed, layer, step, first image of the pass) where PEFT's comes from the global generator, so that runs can be
resumed and activations recomputed; and the way to its loss, which PEFT's own trainer collects and diffusers' users
never see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewbayes.methods.adapters import ADAPTER, adapter_layers, seeded, trained_parts
from fewbayes.methods.lora import RESULT, Lora, PlainLoraSettings
from fewbayes.methods.registry import Registered, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewbayes.models import Family


class MonteClora(Lora):
    def peft_config(self, part: str, module: nn.Module, targets: list[str], **more: Any) -> Any:
        from peft import MontecloraConfig

        # PEFT's default buffer of 150 draws for each layer would be tens of gigabytes on a large network
        return super().peft_config(part, module, targets, monteclora_config=MontecloraConfig(buffer_size=1), **more)

    def attach(self, family: Family) -> None:
        super().attach(family)
        for name, sampler in self._samplers(family).items():
            sampler.sampler = _draws_by_step(sampler, self.config.seed, name)

    def penalty(self, family: Family) -> Tensor | None:
        """Divergence and entropy terms of all layers, their mean as in PEFT; None outside training."""
        import torch

        samplers = [sampler for sampler in self._samplers(family).values() if sampler.training]
        terms = [torch.as_tensor(sum(sampler.get_variational_loss())) for sampler in samplers]
        return torch.stack(terms).mean() if terms else None

    def begin_step(self, family: Family, step: int, row: int = 0) -> None:
        for sampler in self._samplers(family).values():
            sampler.sampler.pass_ = step, row

    def _samplers(self, family: Family) -> dict[str, Any]:
        return {
            f"{name}.{path}": layer.lora_monteclora_sampler[ADAPTER]
            for name, part in trained_parts(family, self.config).items()
            for path, layer in adapter_layers(part).items()
        }


def _draws_by_step(sampler: Any, seed: int, layer: str) -> Any:
    from peft.tuners.lora.monteclora import BufferedMontecloraSampler

    class DrawsByStep(BufferedMontecloraSampler):
        """PEFT's draws on the CPU, made anew from (seed, layer, step, row) whenever they are asked for."""

        pass_: tuple[int, int] | None = None

        def get(self) -> dict[str, Tensor]:
            assert self.pass_ is not None, "begin_step() comes before the forward pass"
            with seeded(seed, f"monteclora {layer}", *self.pass_):
                self._refill_buffer()
            return self.buffer[0]

    with seeded(seed, f"monteclora {layer}"):
        return DrawsByStep(sampler, buffer_size=1, device="cpu")


register(
    Registered(
        "monteclora",
        MonteClora,
        PlainLoraSettings,
        title="MonteCLoRA",
        trains="LoRA and a mixture of Gaussians around it, to compare with",
        learning_rate=1e-4,
        steps_per_image=400,
        kind="lora",
        result=RESULT,
        random=None,
    )
)
