"""PVeRA, a comparison arm: layers share two fixed random projections and learn scales, and a variance, of their own.

The layers are PEFT's (arXiv 2512.07703); at inference the learned mean is used. Ours is the noise: a function of
(seed, layer, step, first image of the pass), so that runs can be resumed and activations recomputed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewbayes.methods.adapters import ADAPTER, PEFT_FOLDERS, PeftFolders, adapter_layers, trained_parts
from fewbayes.methods.lora import DroppedSettings
from fewbayes.methods.registry import Registered, register
from fewbayes.seeds import stream_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewbayes.models import Family


class Pvera(PeftFolders):
    config: DroppedSettings
    _pass: tuple[int, int] | None = None

    def tuner(self) -> Any:
        from peft import PveraModel

        return PveraModel

    def peft_config(self, part: str, module: nn.Module, targets: list[str]) -> Any:
        from peft import PveraConfig

        return PveraConfig(
            r=self.config.rank,
            pvera_dropout=self.config.lora_dropout,
            projection_prng_key=stream_seed(self.config.seed, f"pvera projection {part}"),
            generator_seed=0,  # each forward pass seeds its own, see _seed_noise
            target_modules=targets,
        )

    def attach(self, family: Family) -> None:
        super().attach(family)
        for name, part in trained_parts(family, self.config).items():
            for path, layer in adapter_layers(part).items():
                self._seed_noise(layer, f"{name}.{path}")

    def _seed_noise(self, layer: Any, path: str) -> None:
        def seed(*_: Any) -> None:
            if layer.training:
                assert self._pass is not None, "begin_step() comes before the forward pass"
                layer.pvera_generator[ADAPTER].manual_seed(stream_seed(self.config.seed, f"pvera {path}", *self._pass))

        layer.register_forward_pre_hook(seed)

    def begin_step(self, family: Family, step: int, row: int = 0) -> None:
        self._pass = step, row

    def state(self, module: nn.Module) -> dict[str, Tensor]:
        state = module.state_dict()
        suffixes = (f".pvera_lambda_b.{ADAPTER}", f".pvera_lambda_d.{ADAPTER}")
        return {key.removesuffix(f".{ADAPTER}"): value for key, value in state.items() if key.endswith(suffixes)}

    def file_state(self, part: nn.Module) -> dict[str, Tensor]:
        """Scales of each layer, and the projections once."""
        first = next(iter(adapter_layers(part).values()))
        projections = {f"base_model.{name}": getattr(first, name)[ADAPTER] for name in ("pvera_A", "pvera_B")}
        return super().file_state(part) | projections


register(
    Registered(
        "pvera",
        Pvera,
        DroppedSettings,
        title="PVeRA",
        trains="scales of shared random projections, to compare with",
        learning_rate=1e-4,
        steps_per_image=400,
        kind="adapter",
        result=PEFT_FOLDERS,
        random=None,
    )
)
