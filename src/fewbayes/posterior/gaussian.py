"""Weights of any module as independent Gaussians: theta = mu + weight_std * eps, mu being the module's own parameters.

Outside `GaussianPosterior.sample` the module is untouched: same classes, same keys, parameters are the means. Inside,
its parameters hold one draw, for forward and backward alike. This file does not know what the loss is, nor anything
of diffusion, optimisers or run folders.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fewbayes.errors import UserError
from fewbayes.files.decode import parse_json, typed
from fewbayes.posterior.noise import WeightNoise
from fewbayes.posterior.where import Predicate, select

Learn = Literal["elementwise", "row", "fixed"]
Direction = Literal["forward", "reverse"]
_SMALLEST_STD = 1e-7  # the authors' floor; only logarithms need it, a negative deviation samples like a positive one
_FORMAT = "fewbayes.posterior.1"


class GaussianPosterior:
    """Mean-field Gaussian over chosen weights of a module, whose parameters are its means.

    module        any nn.Module, already on its device; selected weights are floating and on one device
    where         preset name, "pattern:<regex>" or predicate(module path, module, parameter name)
    weight_std    initial standard deviation; with std_mode="relative", in units of each weight's own spread
    prior_std     standard deviation of the prior, in the same units; None is weight_std
    prior_mean    "initial": the weights as they are now; "zero"
    learn         "elementwise": one trained deviation per weight, a plain parameter as in the authors' code;
                  "row": one per output row; "fixed": none is trained
    kl            "forward": KL(Q || P) of Eq. 3; "reverse": KL(P || Q) of Algorithm 1 and the authors' code
    track_prior   keep a copy of the initial weights; without it (and without prior_mean="zero") there is no KL
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        where: str | Predicate = "linear",
        weight_std: float = 0.01,
        prior_std: float | None = None,
        seed: int = 0,
        learn: Learn = "elementwise",
        kl: Direction = "forward",
        std_mode: Literal["absolute", "relative"] = "absolute",
        prior_mean: Literal["initial", "zero"] = "initial",
        track_prior: bool = True,
    ) -> None:
        prior_std = weight_std if prior_std is None else prior_std
        _check_std("weight_std", weight_std)
        _check_std("prior_std", prior_std)
        _check_choice("learn", learn, ("elementwise", "row", "fixed"))
        _check_choice("kl", kl, ("forward", "reverse"))
        _check_choice("std_mode", std_mode, ("absolute", "relative"))
        _check_choice("prior_mean", prior_mean, ("initial", "zero"))
        selected = select(module, where)
        self.names = tuple(weight.name for weight in selected)
        self.seed = seed
        self.learn: Learn = learn
        self.direction: Direction = kl
        self._settings = {
            "where": where if isinstance(where, str) else "a predicate",
            "seed": seed,
            "learn": learn,
            "kl": kl,
            "weight_std": weight_std,
            "prior_std": prior_std,
            "std_mode": std_mode,
            "prior_mean": prior_mean,
        }
        self._weights = [weight.parameter for weight in selected]
        self._sizes = [weight.numel() for weight in self._weights]
        self.num_random = sum(self._sizes)
        self._device = _single_device(self.names, self._weights)
        self._dtype = torch.float64 if any(w.dtype == torch.float64 for w in self._weights) else torch.float32

        relative = std_mode == "relative"
        self._units = _spreads(self.names, self._weights) if relative else [1.0] * len(self.names)
        self._set_scale(weight_std, prior_std)
        self._std_shapes = [_std_shape(weight, learn) for weight in self._weights]
        # fixed deviations are only ever read as numbers: on the CPU that costs no wait for the device
        std_device = torch.device("cpu") if learn == "fixed" else self._device
        std = torch.empty(sum(map(math.prod, self._std_shapes)), dtype=self._dtype, device=std_device)
        for view, value in zip(_views(std, self._std_shapes), self._initial_std, strict=True):
            view.fill_(value)
        self._std = nn.Parameter(std, requires_grad=learn != "fixed")

        tracked = prior_mean == "initial" and track_prior
        self._prior_means = [weight.detach().clone() for weight in self._weights] if tracked else None
        self._noise = WeightNoise(seed, self.names, self._sizes, self._device)
        self._theta: Tensor | None = None  # one buffer for life: captured graphs want a fixed address
        self._draws: list[Tensor] = []
        self._inside = False

    def _set_scale(self, weight_std: float, prior_std: float) -> None:
        self._initial_std = [weight_std * unit for unit in self._units]
        self._prior_std = [prior_std * unit for unit in self._units]

    def std_parameters(self) -> list[nn.Parameter]:
        """What the optimiser trains beside the module's parameters: all deviations in one flat tensor, or nothing."""
        return [] if self.learn == "fixed" else [self._std]

    def weight_std(self) -> dict[str, Tensor]:
        """The deviations by weight name, as views that broadcast over the weight."""
        return dict(zip(self.names, _views(self._std.data, self._std_shapes), strict=True))

    @contextmanager
    def sample(self, step: int, sign: int = 1) -> Iterator[None]:
        """The module's weights are mu + sign * weight_std * eps(step) inside, mu bit for bit outside.

        Forward and backward both belong inside. Gradients land in `.grad` of the means and of `std_parameters()`, on
        top of what is there; several blocks before an optimiser step accumulate. sign=-1 is the antithetic draw.
        """
        if sign not in (1, -1):
            raise UserError(f"sign must be 1 or -1, but is {sign}")
        if self._inside:
            raise RuntimeError("sample() inside sample() of the same posterior: leave the first block before")
        self._inside = True
        try:
            means, earlier = self._enter(step, sign)
            marks = self._marks()
            guard = register_optimizer_step_pre_hook(self._refuse_step)
            completed = False
            try:
                yield
                completed = True
            finally:
                guard.remove()
                changed = self._marks() != marks
                gradients = self._leave(means, earlier)
        finally:
            self._inside = False
        if completed and changed:
            raise RuntimeError(
                "weights were changed inside sample() and the change is lost: load weights or move the module after "
                "the block"
            )
        self._add_std_gradient(gradients, step, sign)

    def _enter(self, step: int, sign: int) -> tuple[list[Tensor], list[Tensor | None]]:
        means = [weight.data for weight in self._weights]
        draws = self._draw(means, step, sign)
        earlier = [weight.grad for weight in self._weights]
        if self.learn != "fixed":
            for weight in self._weights:
                weight.grad = None
        self._swap(draws)
        return means, earlier

    @torch.no_grad()
    def _leave(self, means: list[Tensor], earlier: list[Tensor | None]) -> list[Tensor | None]:
        """Put the means back; return this block's gradients after adding them to the earlier ones."""
        self._swap(means)
        gradients = [weight.grad for weight in self._weights]
        if self.learn != "fixed":
            for weight, before, gradient in zip(self._weights, earlier, gradients, strict=True):
                if before is not None:
                    weight.grad = before if gradient is None else before.add_(gradient)
        return gradients

    def _refuse_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        own = set(map(id, self._weights))
        if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise RuntimeError(
                "inside sample() the weights are a draw, not the means: step the optimiser after the block"
            )

    def _marks(self) -> list[tuple[int, int]]:
        return [(weight._version, weight.data_ptr()) for weight in self._weights]

    def _swap(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.data = value
        # A graph built with the old values must not run backward with the new: autograd sees a changed version.
        torch.autograd.graph.increment_version(self._weights)
        torch.clear_autocast_cache()

    # theta = mu + weight_std * eps (Algorithm 1, third line)
    @torch.no_grad()
    def _draw(self, means: list[Tensor], step: int, sign: int) -> list[Tensor]:
        if means[0].device != self._device:
            raise UserError(
                f"the module is on {means[0].device}, its posterior on {self._device}: "
                "build the posterior after moving the module"
            )
        if self._theta is None:
            self._theta = torch.empty(self.num_random, dtype=self._dtype, device=self._device)
            self._draws = self._split(self._theta)
        theta, draws, eps = self._theta, self._draws, self._noise.draw(step).to(self._dtype)
        if self.learn == "elementwise":
            torch.cat([mean.reshape(-1) for mean in means], out=theta).addcmul_(self._std, eps, value=sign)
        elif self.learn == "row":
            stds = _views(self._std, self._std_shapes)
            for draw, mean, std, noise in zip(draws, means, stds, self._split(eps), strict=True):
                torch.addcmul(mean, std, noise, value=sign, out=draw)
        else:
            for draw, mean, std, noise in zip(draws, means, self._std.tolist(), self._split(eps), strict=True):
                torch.add(mean, noise, alpha=sign * std, out=draw)
        return [draw.to(mean.dtype) for draw, mean in zip(draws, means, strict=True)]

    # d loss / d weight_std = d loss / d theta * eps (appendix C)
    @torch.no_grad()
    def _add_std_gradient(self, gradients: list[Tensor | None], step: int, sign: int) -> None:
        if self.learn == "fixed" or all(gradient is None for gradient in gradients):
            return
        filled = [
            torch.zeros_like(weight) if gradient is None else gradient
            for weight, gradient in zip(self._weights, gradients, strict=True)
        ]
        product = torch.cat([gradient.reshape(-1) for gradient in filled]).to(self._dtype)
        product.mul_(self._noise.draw(step))
        if sign < 0:
            product.neg_()
        if self.learn == "row":
            product = _row_sums(self._split(product), self._std_shapes)
        self._std.grad = product if self._std.grad is None else self._std.grad.add_(product)

    def _check_outside(self) -> None:
        if self._inside:
            raise RuntimeError("inside sample() the weights are a draw, not the means: ask for the KL after the block")

    def _split(self, flat: Tensor) -> list[Tensor]:
        return _views(flat, [weight.shape for weight in self._weights])

    def kl(self) -> Tensor:
        """KL divergence between posterior and prior in nats, summed over weights in double precision, without graph."""
        return torch.stack([divergence.sum() for divergence in self._divergences()]).sum()

    def _divergences(self) -> Iterator[Tensor]:
        for mean, std, prior_mean, prior_std in self._quadruples(torch.float64):
            yield gaussian_kl(mean, std, prior_mean, prior_std, self.direction)

    def _quadruples(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
        """Mean, positive deviation, prior mean and prior deviation of each weight, as `dtype`."""
        self._check_outside()
        if self._settings["prior_mean"] == "initial" and self._prior_means is None:
            raise UserError("this posterior kept no copy of the initial weights: build it with track_prior=True")
        if min(self._prior_std) == 0:
            raise UserError("prior_std is 0, so there is no KL: give a positive prior_std")
        for index, (weight, std) in enumerate(zip(self._weights, self.weight_std().values(), strict=True)):
            mean = weight.detach().to(dtype)
            prior_mean = mean.new_zeros(()) if self._prior_means is None else self._prior_means[index].to(dtype)
            yield mean, std.to(dtype).abs().clamp_min(_SMALLEST_STD), prior_mean, self._prior_std[index]

    @torch.no_grad()
    def add_kl_gradient(self, weight: float) -> None:
        """Add the gradient of weight * kl() to `.grad` of means and deviations; nothing at all when weight is 0.

        After the gradients of the loss are unscaled (float16 scalers) and before they are clipped.
        """
        if not 0 <= weight < math.inf:
            raise UserError(f"the weight of the KL must be finite and not negative, but is {weight}")
        if weight == 0:
            return
        by_stds = []
        for parameter, shape, quadruple in zip(
            self._weights, self._std_shapes, self._quadruples(self._dtype), strict=True
        ):
            by_mean, by_std = gaussian_kl_gradient(*quadruple, self.direction)
            _add_gradient(parameter, by_mean.mul_(weight).to(parameter.dtype))
            if self.learn != "fixed":
                by_stds.append(by_std.expand(parameter.shape).sum_to_size(shape).reshape(-1))
        if by_stds:
            _add_gradient(self._std, torch.cat(by_stds).mul_(weight).mul_(torch.where(self._std < 0, -1.0, 1.0)))

    @torch.no_grad()
    def diagnostics(self) -> list[dict[str, float | str | None]]:
        """One row per weight tensor: deviations, their drift, signal to noise, KL and effective parameters.

        Signal to noise is the median of |mu - prior mean| / weight_std; effective parameters are
        sum(1 - weight_std^2 / prior_std^2). Both and the KL are None where no prior is known.
        """
        self._check_outside()
        known = min(self._prior_std) > 0 and (self._prior_means is not None or self._settings["prior_mean"] == "zero")
        quadruples = self._quadruples(torch.float64) if known else [None] * len(self.names)
        return [
            {**self._spread_row(index), **_prior_row(quadruple, self.direction)}
            for index, quadruple in enumerate(quadruples)
        ]

    def _spread_row(self, index: int) -> dict[str, float | str | None]:
        mean, std = self._weights[index].detach().double(), self.weight_std()[self.names[index]].double().abs()
        spread = float(mean.square().mean().sqrt())
        return {
            "name": self.names[index],
            "num_random": float(self._sizes[index]),
            "weight_std_mean": float(std.mean()),
            "weight_std_min": float(std.min()),
            "weight_std_drift": float(std.mean()) - self._initial_std[index],
            "weight_std_drift_rms": float((std - self._initial_std[index]).square().mean().sqrt()),
            "relative_noise": float(std.square().mean().sqrt()) / spread if spread else None,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Deviations and, where kept, the prior's means and units. The means are the module's own state."""
        state = {f"weight_std.{name}": std for name, std in self.weight_std().items()}
        if self._prior_means is not None:
            state |= {f"prior_mean.{name}": mean for name, mean in zip(self.names, self._prior_means, strict=True)}
        if self._settings["std_mode"] == "relative":  # of the initial weights: moved ones have other spreads
            state |= {
                f"spread.{name}": torch.tensor(u, dtype=torch.float64)
                for name, u in zip(self.names, self._units, strict=True)
            }
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state in; names and shapes must be those of this posterior."""
        own = self.state_dict()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise UserError(
                f"the state is of another posterior: {_counted('missing', missing)}, {_counted('unknown', unknown)}; "
                "build this one with the same where and track_prior"
            )
        for name, value in own.items():
            if value.shape != state[name].shape:
                raise UserError(
                    f"{name} has shape {tuple(state[name].shape)} in the state and {tuple(value.shape)} here: "
                    "build this posterior with the same module and the same learn"
                )
        for name, value in own.items():
            value.copy_(state[name])
        if self._settings["std_mode"] == "relative":
            self._units = [float(own[f"spread.{name}"]) for name in self.names]
            self._set_scale(float(self._settings["weight_std"]), float(self._settings["prior_std"]))

    def save(self, path: Path | str) -> None:
        """Write state and settings as one safetensors file."""
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, path, metadata={_FORMAT: json.dumps(self._settings)})

    def load(self, path: Path | str) -> None:
        """Read what `save` wrote; the settings of the file must be those of this posterior."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _FORMAT not in metadata:
                raise UserError(f"{path} is not a posterior: its header has no {_FORMAT!r}")
            saved = typed(parse_json(metadata[_FORMAT], f"{path}"), dict[str, Any], f"{path}")
            differing = [key for key in self._settings if saved.get(key) != self._settings[key]]
            if differing:
                pairs = [f"{key} is {saved.get(key)!r} there, {self._settings[key]!r} here" for key in differing]
                raise UserError(f"{path} belongs to another posterior: {'; '.join(pairs)}")
            self.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


# KL(Q || P) (Eq. 3) or KL(P || Q) (Algorithm 1 and the authors' code) of two Gaussians
def gaussian_kl(mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: float, direction: Direction) -> Tensor:
    """Elementwise KL divergence in nats, without cancellation where posterior and prior are close."""
    distance = mean - prior_mean
    if direction == "forward":
        return _excess((std - prior_std) / prior_std) + distance.square() / (2 * prior_std**2)
    return _excess((prior_std - std) / std) + distance.square() / (2 * std.square())


def gaussian_kl_gradient(
    mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: float, direction: Direction
) -> tuple[Tensor, Tensor]:
    """Derivatives of `gaussian_kl` by mean and by std, in closed form."""
    distance, difference = mean - prior_mean, (std - prior_std) * (std + prior_std)
    if direction == "forward":
        return distance / prior_std**2, difference / (prior_std**2 * std)
    return distance / std.square(), (difference - distance.square()) / std**3


def _excess(x: Tensor) -> Tensor:
    """x + x^2 / 2 - log(1 + x) for x > -1: what the ratio 1 + x of two deviations costs."""
    series = x.square() * (1 - x / 3 + x.square() / 4)
    return torch.where(x.abs() < 1e-4, series, x + x.square() / 2 - torch.log1p(x))


def _check_std(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise UserError(f"{name} must be finite and not negative, but is {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, but is {value!r}")


def _single_device(names: Sequence[str], weights: Sequence[Tensor]) -> torch.device:
    device = weights[0].device
    for name, weight in zip(names, weights, strict=True):
        if weight.device != device:
            raise UserError(f"{names[0]} is on {device} and {name} on {weight.device}: one posterior, one device")
    return device


def _spreads(names: Sequence[str], weights: Sequence[Tensor]) -> list[float]:
    """Root mean square of each weight about its own mean."""
    spreads = [float(weight.detach().double().std(correction=0)) for weight in weights]
    flat = [name for name, spread in zip(names, spreads, strict=True) if spread == 0]
    if flat:
        raise UserError(
            f"{_counted('weights without any spread', flat)}: relative deviations would be 0 there; "
            "use std_mode='absolute' or leave them out of where"
        )
    return spreads


def _counted(what: str, names: Sequence[str]) -> str:
    return f"{len(names)} {what}" + (f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "")


def _std_shape(weight: Tensor, learn: Learn) -> torch.Size:
    if learn == "elementwise":
        return weight.shape
    if learn == "fixed":
        return torch.Size()
    return torch.Size([size if axis == 0 else 1 for axis, size in enumerate(weight.shape)])


def _views(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    pieces = flat.split([math.prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _row_sums(values: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
    return torch.cat([value.sum_to_size(shape).view(-1) for value, shape in zip(values, shapes, strict=True)])


def _add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)


def _prior_row(
    quadruple: tuple[Tensor, Tensor, Tensor, float] | None, direction: Direction
) -> dict[str, float | str | None]:
    if quadruple is None:
        return {"signal_to_noise": None, "kl": None, "effective_parameters": None}
    mean, std, prior_mean, prior_std = quadruple
    variance_ratio = (std / prior_std).square().expand(mean.shape)
    return {
        "signal_to_noise": float(((mean - prior_mean).abs() / std).median()),
        "kl": float(gaussian_kl(mean, std, prior_mean, prior_std, direction).sum()),
        "effective_parameters": float((1 - variance_ratio).sum()),
    }
