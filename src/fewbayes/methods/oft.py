"""OFT: linear layers whose inputs are rotated by blocks, W R with R orthogonal, by PEFT's exact Cayley transform.

R = (I - S)(I + S)^-1 with S skew-symmetric; the trained parameter oft_R holds the upper triangles of S, block by block.
With Bayesian weights only that parameter is random, so that every sampled R is orthogonal. The authors parametrise
S = (Q - Q^T) / 2 with all entries of Q: at the same weight_std the noise of S is there smaller by sqrt(2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.methods.adapters import PEFT_FOLDERS, AdapterSettings, PeftFolders, targeted
from fewbayes.methods.registry import Registered, register

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class OftSettings(AdapterSettings):
    oft_blocks: int = setting(4, above=0)
    """Number of orthogonal blocks of each layer."""
    oft_block_size: int | None = setting(None, above=0, own_none=True)
    """Side of the orthogonal blocks, in place of their number; it has to divide the width of every layer."""

    @classmethod
    def check(cls, config: Any) -> None:
        if config.oft_block_size is not None and config.oft_blocks != cls.oft_blocks:
            raise UserError(
                f"oft_blocks is {config.oft_blocks} and oft_block_size is {config.oft_block_size}; give one of them"
            )


class Oft(PeftFolders):
    config: OftSettings

    def tuner(self) -> Any:
        from peft import OFTModel

        return OFTModel

    def peft_config(self, part: str, module: nn.Module, targets: list[str]) -> Any:
        from peft import OFTConfig

        config, block_size = self.config, self.config.oft_block_size or 0
        _check_division(targeted(module, targets), config.oft_blocks, block_size)
        return OFTConfig(
            r=0 if block_size else config.oft_blocks,
            oft_block_size=block_size,
            use_cayley_neumann=False,  # PEFT's default is a truncated series, which is orthogonal near zero only
            module_dropout=0.0,
            target_modules=targets,
        )


def _check_division(layers: dict[str, nn.Linear], blocks: int, block_size: int) -> None:
    """PEFT would quietly take another number of blocks for a layer whose inputs do not divide."""
    name, number = ("oft_block_size", block_size) if block_size else ("oft_blocks", blocks)
    for path, layer in layers.items():
        if layer.in_features % number:
            fitting = [n for n in range(1, 65) if all(each.in_features % n == 0 for each in layers.values())]
            raise UserError(
                f"{name} is {number}, which does not divide the {layer.in_features} inputs of {path}; "
                f"{', '.join(map(str, fitting))} would do for all layers"
            )


register(
    Registered(
        "oft",
        Oft,
        OftSettings,
        title="OFT",
        trains="orthogonal adapters",
        learning_rate=1e-4,
        steps_per_image=200,
        kind="adapter",
        result=PEFT_FOLDERS,
        random=r"\.oft_R\.",
    )
)
