"""Full fine-tuning: every weight of the denoiser is trained, on request those of the text encoders too.

Which of the denoiser's weights may be random is left to `where` (Table 4 of the paper). Knows nothing of diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbayes.fields import setting
from fewbayes.methods.adapters import copy_state, trained_parts
from fewbayes.methods.registry import Method, MethodSettings, Registered, register
from fewbayes.models.family import changeable

if TYPE_CHECKING:
    from torch import nn

    from fewbayes.models import Family

WHERE_PRESETS = ("linear", "linear-no-time", "linear-up", "linear-cross", "norm", "all")


@dataclass(frozen=True, kw_only=True)
class FullSettings(MethodSettings):
    where: str = setting("linear", patterns=WHERE_PRESETS, needs="bayes", group="Bayesian weights")
    """Which weights of the denoiser are random: linear, linear-no-time, linear-up, linear-cross, norm, all, or
    pattern:<regex>. For method full; adapters know which of theirs are."""


class Full(Method):
    config: FullSettings

    def attach(self, family: Family) -> None:
        for part in trained_parts(family, self.config).values():
            part.requires_grad_(True)

    def trainable(self, family: Family) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{key}": parameter
            for name, part in trained_parts(family, self.config).items()
            for key, parameter in part.named_parameters()
        }

    def random(self, family: Family) -> tuple[nn.Module, Any]:
        from fewbayes.posterior.where import Rule

        return family.denoiser, Rule(self.config.where, family.layer_groups)

    @property
    def chosen(self) -> str:
        return f"where {self.config.where}"

    def export(self, family: Family, folder: Path) -> None:
        family.save(folder)

    def load(self, family: Family, folder: Path) -> None:
        """Read a pipeline folder's denoiser and text encoders, trained or not."""
        from safetensors.torch import load_file

        for name, part in changeable(family).items():
            shards = [load_file(file) for file in sorted((folder / name).glob("*.safetensors"))]
            copy_state(
                part.state_dict(), {key: value for shard in shards for key, value in shard.items()}, folder / name
            )

    def detach(self, family: Family) -> None:
        for part in (family.denoiser, *family.text_encoders.values()):
            part.requires_grad_(False)


register(
    Registered(
        "full",
        Full,
        FullSettings,
        title="Full fine-tuning",
        trains="every weight of the denoiser",
        learning_rate=5e-6,
        steps_per_image=200,
        kind="full",
        result="model_index.json",
        random=".",  # any weight; the setting `where` picks among them
        has_spread=True,
    )
)
