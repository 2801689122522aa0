"""Training in several processes: set up, computed once for all, averaged.

Whole models lie on each device. Gradients are averaged here and not by a wrapper around the model, so that the model
stays what it is for sampling and saving. Knows nothing of what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn

from fewbayes.errors import UserError

Answer = TypeVar("Answer")

PATIENCE = timedelta(hours=6)  # that processes wait while the main one draws samples or writes


def make_accelerator(mixed_precision: str) -> Accelerator:
    """accelerate's, as it was launched; UserError for what it cannot do here."""
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("mixed_precision is fp16, which needs a GPU; use bf16 or no")
    # accelerate keeps its precision for the life of the process; a second run may want another.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[patience])
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UserError(
            f"accelerate is set up for {accelerator.distributed_type.value}; whole models on each device are trained "
            "here, with accelerate launch --multi_gpu"
        )
    return accelerator


def gpu_name(accelerator: Accelerator) -> str | None:
    """The model of this process's GPU; None on a CPU."""
    return torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else None


def check_same_gpus(accelerator: Accelerator) -> None:
    """Every process draws the noise of the weights for itself, and models of GPU may draw different numbers."""
    names = set(gather_object([gpu_name(accelerator)]))
    if len(names) > 1:
        raise UserError(
            f"the processes run on {', '.join(sorted(map(str, names)))}, which draw different noise for Bayesian "
            "weights; choose GPUs of one model by CUDA_VISIBLE_DEVICES"
        )


def from_main(accelerator: Accelerator, compute: Callable[[], Answer]) -> Answer:
    """What the main process computes, in all of them; where it raises, all of them raise and none is left waiting."""
    if accelerator.num_processes == 1:
        return compute()
    value = raised = None
    if accelerator.is_main_process:
        try:
            value = compute()
        except Exception as error:
            raised = error
    told = [value, raised and (isinstance(raised, UserError), f"{raised}")]
    broadcast_object_list(told)
    if raised:
        raise raised
    value, error = told
    if error:
        theirs, text = error
        raise UserError(text) if theirs else RuntimeError(f"the main process failed: {text}")
    return cast("Answer", value)


def average_gradients(accelerator: Accelerator, weights: Iterable[nn.Parameter], bucket: int = 2**24) -> None:
    """Mean over the processes, inside the draw of the weights: gradients of deviations follow from these."""
    if accelerator.num_processes == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    while gradients:
        taken, size = 0, 0
        while taken < len(gradients) and (size == 0 or size + gradients[taken].numel() <= bucket):
            size += gradients[taken].numel()
            taken += 1
        flat = mean_over_processes(accelerator, torch.cat([gradient.reshape(-1) for gradient in gradients[:taken]]))
        for gradient, mean in zip(
            gradients[:taken], flat.split([gradient.numel() for gradient in gradients[:taken]]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))
        del gradients[:taken]


def any_of(accelerator: Accelerator, flag: bool) -> bool:
    """Whether it is set in any of the processes, in all of them; waits for the device."""
    return bool(mean_over_processes(accelerator, torch.tensor(float(flag), device=accelerator.device)) > 0)


def mean_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Elementwise, in all of them."""
    return cast("Tensor", accelerator.reduce(values, "mean"))
