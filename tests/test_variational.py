"""Truths of the method, on modules small enough for exact answers. A test that trains says what it must recover."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fewbayes.posterior.calibrate import calibrate_weight_std
from fewbayes.posterior.gaussian import GaussianPosterior, gaussian_kl, gaussian_kl_gradient
from fewbayes.posterior.noise import normal

LEARN = ["elementwise", "row", "fixed"]
DIRECTIONS = ["forward", "reverse"]


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3)).to(dtype)


def batch(count: int = 8, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, width, generator=random, dtype=dtype) for width in (5, 3))


def loss_of(module: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return (module(data[0]) - data[1]).square().mean()


def eps_of(posterior: GaussianPosterior, module: nn.Module, step: int) -> dict[str, Tensor]:
    return {
        name: normal(posterior.seed, step, name, module.get_parameter(name).shape).double() for name in posterior.names
    }


def explicit_gradients(
    posterior: GaussianPosterior, module: nn.Module, data: tuple[Tensor, Tensor], step: int, sign: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients by means and deviations from the graph mu + sign * weight_std * eps, without any swap."""
    means = {name: module.get_parameter(name).detach().clone().requires_grad_() for name in posterior.names}
    stds = {name: std.detach().clone().requires_grad_() for name, std in posterior.weight_std().items()}
    eps = eps_of(posterior, module, step)
    theta = {name: means[name] + sign * stds[name] * eps[name] for name in posterior.names}
    loss = (functional_call(module, theta, (data[0],)) - data[1]).square().mean()
    gradients = torch.autograd.grad(loss, [*means.values(), *stds.values()])
    count = len(means)
    return dict(zip(means, gradients[:count], strict=True)), dict(zip(stds, gradients[count:], strict=True))


def std_gradients(posterior: GaussianPosterior) -> dict[str, Tensor]:
    (flat,) = posterior.std_parameters()
    stds = posterior.weight_std()
    pieces = flat.grad.split([std.numel() for std in stds.values()])
    return {name: piece.view(std.shape) for (name, std), piece in zip(stds.items(), pieces, strict=True)}


def spread_out(posterior: GaussianPosterior) -> None:
    """Give every deviation a value of its own, one of them negative."""
    for std in posterior.weight_std().values():
        std.mul_(torch.linspace(0.5, 2, std.numel(), dtype=std.dtype).view(std.shape))
    next(iter(posterior.weight_std().values())).view(-1)[0].neg_()


# The sampling context


@pytest.mark.parametrize("learn", LEARN)
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_are_those_of_the_explicit_reparameterisation(learn, sign):
    module, data = network(dtype=torch.float64), batch(dtype=torch.float64)
    posterior = GaussianPosterior(module, where="all", weight_std=0.1, learn=learn, seed=3)
    spread_out(posterior)
    by_mean, by_std = explicit_gradients(posterior, module, data, step=4, sign=sign)
    with posterior.sample(4, sign=sign):
        loss_of(module, data).backward()
    for name in posterior.names:
        torch.testing.assert_close(module.get_parameter(name).grad, by_mean[name])
    if learn != "fixed":
        torch.testing.assert_close(std_gradients(posterior), by_std)
    assert len(posterior.std_parameters()) == (learn != "fixed")


@pytest.mark.parametrize("learn", LEARN)
def test_weights_are_the_draw_inside_and_the_mean_outside(learn):
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    posterior = GaussianPosterior(module, weight_std=0.1, learn=learn)
    with posterior.sample(2):
        for name in posterior.names:
            expected = before[name] + 0.1 * normal(0, 2, name, before[name].shape)
            torch.testing.assert_close(module.get_parameter(name).data, expected)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_module_outside_is_untouched():
    module = network()
    reference = network()
    addresses = [parameter.data_ptr() for parameter in module.parameters()]
    posterior = GaussianPosterior(module, where="all")
    with posterior.sample(0):
        loss_of(module, batch()).backward()
    assert list(module.state_dict()) == list(reference.state_dict())
    assert [type(part) for part in module.modules()] == [type(part) for part in reference.modules()]
    assert [parameter.data_ptr() for parameter in module.parameters()] == addresses
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_an_exception_inside_restores_the_mean_bit_for_bit():
    module = network()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    posterior = GaussianPosterior(module, where="all", weight_std=0.3)
    with pytest.raises(ZeroDivisionError), posterior.sample(0):
        raise ZeroDivisionError
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), before, strict=True))
    with posterior.sample(1):  # and the posterior is usable again
        loss_of(module, batch()).backward()


def test_an_exception_inside_keeps_earlier_gradients():
    module = network()
    posterior = GaussianPosterior(module, where="all")
    with posterior.sample(0):
        loss_of(module, batch()).backward()
    before = [parameter.grad.clone() for parameter in module.parameters()]
    with pytest.raises(ZeroDivisionError), posterior.sample(1):
        raise ZeroDivisionError
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(module.parameters(), before, strict=True))


def test_nested_sampling_is_an_error():
    module = network()
    before = module[0].weight.detach().clone()
    posterior = GaussianPosterior(module)
    with pytest.raises(RuntimeError, match="inside sample"), posterior.sample(0), posterior.sample(1):
        pass
    assert torch.equal(module[0].weight, before)


def test_backward_after_the_block_is_an_error():
    module = network()
    posterior = GaussianPosterior(module)
    with posterior.sample(0):
        loss = loss_of(module, batch())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backward_inside_of_a_graph_from_outside_is_an_error():
    module = network()
    posterior = GaussianPosterior(module)
    loss = loss_of(module, batch())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"), posterior.sample(0):
        loss.backward()


@pytest.mark.parametrize("fused", [False, True])
def test_stepping_the_optimiser_inside_is_an_error(fused):
    module = network()
    before = module[0].weight.detach().clone()
    posterior = GaussianPosterior(module)
    optimizer = torch.optim.AdamW(module.parameters(), fused=fused, foreach=False)
    loss_of(module, batch()).backward()
    with pytest.raises(RuntimeError, match="after the block"), posterior.sample(0):
        optimizer.step()
    assert torch.equal(module[0].weight, before)
    optimizer.step()  # outside it is free again
    assert not torch.equal(module[0].weight, before)


def test_an_optimiser_of_other_weights_may_step_inside():
    module, other = network(), nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    with GaussianPosterior(module).sample(0):
        torch.optim.SGD(other.parameters(), lr=0.1).step()


def test_loading_weights_inside_is_an_error():
    module = network()
    before = module[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="after the block"), GaussianPosterior(module).sample(0):
        module.load_state_dict(network(seed=5).state_dict())
    assert torch.equal(module[0].weight, before)


def test_kl_inside_is_an_error():
    posterior = GaussianPosterior(network())
    for ask in (posterior.kl, lambda: posterior.add_kl_gradient(1.0), posterior.diagnostics):
        with pytest.raises(RuntimeError, match="after the block"), posterior.sample(0):
            ask()


def test_zero_weight_std_is_plain_training():
    def train(bayes: bool) -> list[Tensor]:
        module = network()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        posterior = GaussianPosterior(module, where="all", weight_std=0.0, learn="fixed") if bayes else None
        for step in range(5):
            if posterior is None:
                loss_of(module, batch(seed=step)).backward()
            else:
                with posterior.sample(step):
                    loss_of(module, batch(seed=step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return list(module.parameters())

    assert all(torch.equal(plain, bayes) for plain, bayes in zip(train(False), train(True), strict=True))


def test_antithetic_draws_mirror_each_other_at_the_mean():
    module = network(dtype=torch.float64)
    mean = module[0].weight.detach().clone()
    posterior = GaussianPosterior(module, weight_std=0.2)
    draws = []
    for sign in (1, -1):
        with posterior.sample(7, sign=sign):
            draws.append(module[0].weight.detach().clone())
    torch.testing.assert_close((draws[0] + draws[1]) / 2, mean, atol=1e-15, rtol=0)
    assert not torch.allclose(draws[0], mean)


def test_the_sign_is_one_or_minus_one():
    with pytest.raises(ValueError, match="sign must be 1 or -1"), GaussianPosterior(network()).sample(0, sign=0):
        pass


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    def gradients(checkpointing: bool) -> list[Tensor]:
        module, (inputs, targets) = network(), batch()
        inputs.requires_grad_()
        posterior = GaussianPosterior(module, where="all", weight_std=0.1)
        with posterior.sample(0):
            output = checkpoint(module, inputs, use_reentrant=reentrant) if checkpointing else module(inputs)
            (output - targets).square().mean().backward()
        return [parameter.grad for parameter in (*module.parameters(), *posterior.std_parameters())]

    assert all(torch.equal(*pair) for pair in zip(gradients(True), gradients(False), strict=True))


def test_two_micro_batches_of_one_step_are_one_large_batch():
    inputs, targets = batch(8, torch.float64)
    halves = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]

    def gradients(blocks: list[list[tuple[Tensor, Tensor]]]) -> list[Tensor]:
        module = network(dtype=torch.float64)
        posterior = GaussianPosterior(module, where="all", weight_std=0.1)
        for block in blocks:
            with posterior.sample(3):
                for data in block:
                    (loss_of(module, data) * len(data[0]) / 8).backward()
        return [parameter.grad for parameter in (*module.parameters(), *posterior.std_parameters())]

    whole = gradients([[(inputs, targets)]])
    torch.testing.assert_close(gradients([halves]), whole)
    torch.testing.assert_close(gradients([[halves[0]], [halves[1]]]), whole)


@pytest.mark.parametrize("learn", ["elementwise", "row"])
def test_draws_accumulate_each_with_its_own_noise(learn):
    module, data = network(dtype=torch.float64), batch(dtype=torch.float64)
    posterior = GaussianPosterior(module, where="all", weight_std=0.1, learn=learn)
    explicit = [explicit_gradients(posterior, module, data, step, sign) for step, sign in [(0, 1), (0, -1), (5, 1)]]
    for step, sign in [(0, 1), (0, -1), (5, 1)]:
        with posterior.sample(step, sign=sign):
            loss_of(module, data).backward()
    for name in posterior.names:
        torch.testing.assert_close(module.get_parameter(name).grad, sum(means[name] for means, _ in explicit))
        torch.testing.assert_close(std_gradients(posterior)[name], sum(stds[name] for _, stds in explicit))


def test_several_forwards_and_one_backward_share_the_draw():
    inputs, targets = batch(8)
    module = network()
    posterior = GaussianPosterior(module, where="all", weight_std=0.1)

    def gradients(parts: int) -> list[Tensor]:
        with posterior.sample(0):
            outputs = torch.cat([module(part) for part in inputs.chunk(parts)])
            (outputs - targets).square().mean().backward()
        found = [parameter.grad for parameter in (*module.parameters(), *posterior.std_parameters())]
        for parameter in (*module.parameters(), *posterior.std_parameters()):
            parameter.grad = None
        return found

    torch.testing.assert_close(gradients(4), gradients(1))


def test_two_draws_inside_one_autocast_block_differ():
    module, (inputs, _) = network(), batch()
    posterior = GaussianPosterior(module, weight_std=0.3)

    def output(step: int) -> Tensor:
        with posterior.sample(step):
            return module(inputs).detach()

    with torch.autocast("cpu", torch.bfloat16):
        together = [output(0), output(1), module(inputs).detach()]
    for step, cached in enumerate(together):
        with torch.autocast("cpu", torch.bfloat16):
            fresh = output(step) if step < 2 else module(inputs).detach()
        assert torch.equal(cached, fresh)
    assert not torch.equal(together[0], together[1])


def test_tied_weights_are_one_random_weight():
    torch.manual_seed(0)
    module = nn.ModuleDict({"embedding": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)}).double()
    module["head"].weight = module["embedding"].weight
    posterior = GaussianPosterior(module, where="all", weight_std=0.1)
    assert posterior.names == ("embedding.weight",)
    tokens = torch.tensor([0, 3, 3])

    mean = module["head"].weight.detach().clone().requires_grad_()
    std = torch.full_like(mean, 0.1, requires_grad=True)
    theta = mean + std * normal(0, 0, "embedding.weight", mean.shape).double()
    expected = torch.autograd.grad((theta[tokens] @ theta.T).square().sum(), (mean, std))

    with posterior.sample(0):
        module["head"](module["embedding"](tokens)).square().sum().backward()
    torch.testing.assert_close(module["head"].weight.grad, expected[0])
    torch.testing.assert_close(std_gradients(posterior)["embedding.weight"], expected[1])
    assert module["head"].weight is module["embedding"].weight


def test_half_precision_weights_are_drawn_in_full_precision_and_restored_exactly():
    module = network(dtype=torch.bfloat16)
    before = module[0].weight.detach().clone()
    posterior = GaussianPosterior(module, weight_std=0.1)
    inputs, targets = batch(dtype=torch.bfloat16)
    with posterior.sample(0):
        draw = module[0].weight.detach().clone()
        loss_of(module, (inputs, targets)).backward()
    expected = (before.float() + 0.1 * normal(0, 0, "0.weight", before.shape)).bfloat16()
    torch.testing.assert_close(draw, expected)
    assert torch.equal(module[0].weight, before)
    assert module[0].weight.grad.dtype == torch.bfloat16
    (std,) = posterior.std_parameters()
    assert std.dtype == std.grad.dtype == torch.float32


def test_weights_that_a_loss_does_not_reach_have_no_gradient():
    module = network()
    posterior = GaussianPosterior(module, where="linear")
    with posterior.sample(0):
        module[0](batch()[0]).square().mean().backward()
    gradients = std_gradients(posterior)
    assert module[3].weight.grad is None
    assert not gradients["3.weight"].any()
    assert gradients["0.weight"].any()


def test_a_block_without_backward_leaves_no_gradient():
    module = network()
    posterior = GaussianPosterior(module)
    with posterior.sample(0), torch.no_grad():
        module(batch()[0])
    assert posterior.std_parameters()[0].grad is None
    assert module[0].weight.grad is None


def test_a_channels_last_weight_is_drawn_element_by_element():
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    before = module.weight.detach().clone()
    posterior = GaussianPosterior(module, where="all", weight_std=0.1)
    with posterior.sample(0):
        torch.testing.assert_close(module.weight.data, before + 0.1 * normal(0, 0, "weight", before.shape))
        module(torch.randn(1, 3, 5, 5)).sum().backward()
        gradient = module.weight.grad.clone()
    assert torch.equal(module.weight, before)
    eps = normal(0, 0, "weight", before.shape)
    torch.testing.assert_close(std_gradients(posterior)["weight"], gradient * eps)


# The statistics


def quadratic(dimension: int = 4) -> tuple[nn.Linear, Tensor, Tensor]:
    """A module whose only weight theta has the loss theta' H theta / 2 - b' theta."""
    torch.manual_seed(0)
    root = torch.randn(dimension, dimension, dtype=torch.float64)
    module = nn.Linear(dimension, 1, bias=False, dtype=torch.float64)
    return (
        module,
        root @ root.T / dimension + torch.eye(dimension, dtype=torch.float64),
        torch.randn(dimension, dtype=torch.float64),
    )


def test_gradients_are_unbiased():
    module, hessian, linear_term = quadratic()
    posterior = GaussianPosterior(module, where="all", weight_std=0.5)
    draws = []
    for step in range(3000):
        with posterior.sample(step):
            theta = module.weight[0]
            (theta @ hessian @ theta / 2 - linear_term @ theta).backward()
        (std,) = posterior.std_parameters()
        draws.append(torch.cat([module.weight.grad[0], std.grad]))
        module.weight.grad = std.grad = None
    sample = torch.stack(draws)
    mean = module.weight.detach()[0]
    expected = torch.cat([hessian @ mean - linear_term, 0.5 * hessian.diagonal()])
    z = (sample.mean(0) - expected) / (sample.std(0) / math.sqrt(len(draws)))
    assert z.abs().max() < 4


def test_an_antithetic_pair_has_the_exact_mean_gradient_of_a_quadratic():
    module, hessian, linear_term = quadratic()
    posterior = GaussianPosterior(module, where="all", weight_std=0.5)
    for sign in (1, -1):
        with posterior.sample(0, sign=sign):
            theta = module.weight[0]
            ((theta @ hessian @ theta / 2 - linear_term @ theta) / 2).backward()
    torch.testing.assert_close(module.weight.grad[0], hessian @ module.weight.detach()[0] - linear_term)


class Conjugate:
    """y = A theta + n, n ~ N(0, noise_std^2), theta ~ N(theta0, prior_std^2): every answer is known."""

    noise_std, prior_std = 0.7, 0.8

    def __init__(self) -> None:
        torch.manual_seed(2)
        self.module = nn.Linear(3, 1, bias=False, dtype=torch.float64)
        self.prior_mean = self.module.weight.detach()[0].clone()
        self.inputs = torch.randn(6, 3, dtype=torch.float64) + 0.5
        self.targets = self.inputs @ (
            self.prior_mean + torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
        ) + self.noise_std * torch.randn(6, dtype=torch.float64)
        self.precision = (
            self.inputs.T @ self.inputs / self.noise_std**2 + torch.eye(3, dtype=torch.float64) / self.prior_std**2
        )
        self.mean = torch.linalg.solve(
            self.precision, self.inputs.T @ self.targets / self.noise_std**2 + self.prior_mean / self.prior_std**2
        )
        self.mean_field_std = self.precision.diagonal().rsqrt()

    def negative_log_likelihood(self) -> Tensor:
        residual = self.targets - self.module(self.inputs)[:, 0]
        constant = len(residual) * math.log(2 * math.pi * self.noise_std**2) / 2
        return residual.square().sum() / (2 * self.noise_std**2) + constant

    def posterior(self, **settings) -> GaussianPosterior:
        return GaussianPosterior(self.module, where="all", weight_std=0.3, prior_std=self.prior_std, **settings)

    def expected_negative_log_likelihood(self, posterior: GaussianPosterior) -> float:
        std = posterior.weight_std()["weight"][0]
        curvature = (self.inputs.square().sum(0) / self.noise_std**2 * std.square()).sum() / 2
        return float((self.negative_log_likelihood() + curvature).detach())

    def log_evidence(self) -> float:
        covariance = self.inputs @ self.inputs.T * self.prior_std**2 + self.noise_std**2 * torch.eye(
            6, dtype=torch.float64
        )
        normal = torch.distributions.MultivariateNormal(self.inputs @ self.prior_mean, covariance)
        return float(normal.log_prob(self.targets))


def test_training_recovers_the_conjugate_posterior():
    problem = Conjugate()
    posterior = problem.posterior()
    (std,) = posterior.std_parameters()
    optimizer = torch.optim.SGD([{"params": [problem.module.weight]}, {"params": [std], "lr": 1e-3}], lr=1e-2)
    averaged = torch.zeros_like(std)
    for step in range(1200):
        for sign in (1, -1):
            with posterior.sample(step, sign=sign):
                (problem.negative_log_likelihood() / 2).backward()
        posterior.add_kl_gradient(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= 200:
            averaged += std.detach() / 1000
    torch.testing.assert_close(problem.module.weight.detach()[0], problem.mean, atol=1e-5, rtol=0)
    # what is left of the noise of 1,000 draws
    torch.testing.assert_close(averaged, problem.mean_field_std, atol=0, rtol=0.06)


def test_negative_elbo_exceeds_the_evidence_by_the_divergence_from_the_true_posterior():
    problem = Conjugate()
    posterior = problem.posterior()
    problem.module.weight.data[0] = problem.mean
    posterior.weight_std()["weight"][0] = problem.mean_field_std
    negative_elbo = problem.expected_negative_log_likelihood(posterior) + float(posterior.kl())
    gap = (problem.precision.diagonal().log().sum() - torch.logdet(problem.precision)) / 2
    assert negative_elbo == pytest.approx(float(gap) - problem.log_evidence(), abs=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-0.5, 0.5), min_size=6, max_size=6))
def test_negative_elbo_is_nowhere_lower_than_at_the_mean_field_optimum(change):
    problem = Conjugate()
    posterior = problem.posterior()
    elbos = []
    for factor in (0.0, 1.0):
        moved = factor * torch.tensor(change, dtype=torch.float64)
        problem.module.weight.data[0] = problem.mean + moved[:3]
        posterior.weight_std()["weight"][0] = problem.mean_field_std * moved[3:].exp()
        elbos.append(problem.expected_negative_log_likelihood(posterior) + float(posterior.kl()))
    assert elbos[0] <= elbos[1] + 1e-12


@pytest.mark.parametrize("weight", [0.1, 1.0, 5.0])
def test_the_reverse_optimum_solves_its_quadratic_in_the_variance(weight):
    # H s^4 + w s^2 - w (prior_std^2 + distance^2) = 0 for the objective E_q NLL + w KL(P || Q)
    problem = Conjugate()
    posterior = problem.posterior(kl="reverse")
    problem.module.weight.data[0] += torch.tensor([0.3, 0.0, -0.7])
    distance = problem.module.weight.detach()[0] - problem.prior_mean
    curvature = problem.inputs.square().sum(0) / problem.noise_std**2
    root = (weight**2 + 4 * curvature * weight * (problem.prior_std**2 + distance.square())).sqrt()
    posterior.weight_std()["weight"][0] = ((root - weight) / (2 * curvature)).sqrt()
    (std,) = posterior.std_parameters()
    std.grad = curvature * std.detach()  # of the expected negative log likelihood
    posterior.add_kl_gradient(weight)
    torch.testing.assert_close(std.grad, torch.zeros_like(std), atol=1e-10, rtol=0)


# The divergence


positive = st.floats(1e-4, 1e2)


@settings(deadline=None)
@given(st.floats(-10, 10), positive, st.floats(-10, 10), positive)
def test_kl_agrees_with_torch_distributions(mean, std, prior_mean, prior_std):
    values = [torch.tensor(value, dtype=torch.float64) for value in (mean, std, prior_mean)]
    posterior = torch.distributions.Normal(values[0], values[1])
    prior = torch.distributions.Normal(values[2], torch.tensor(prior_std, dtype=torch.float64))
    for direction, pair in [("forward", (posterior, prior)), ("reverse", (prior, posterior))]:
        expected = torch.distributions.kl_divergence(*pair)
        torch.testing.assert_close(gaussian_kl(*values, prior_std, direction), expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(st.floats(-10, 10), positive, st.floats(-10, 10), positive, st.sampled_from(DIRECTIONS))
def test_kl_gradients_agree_with_autograd(mean, std, prior_mean, prior_std, direction):
    values = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (mean, std)]
    centre = torch.tensor(prior_mean, dtype=torch.float64)
    expected = torch.autograd.grad(gaussian_kl(*values, centre, prior_std, direction), values)
    scale = (1 + abs(mean - prior_mean)) ** 2 * (1 / std + std / prior_std**2 + (1 + prior_std**2) / std**3)
    found = gaussian_kl_gradient(*(value.detach() for value in values), centre, prior_std, direction)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * scale)


@settings(deadline=None)
@given(st.floats(1e-9, 1e-2), st.sampled_from([-1, 1]), st.sampled_from(DIRECTIONS))
def test_kl_keeps_its_digits_near_the_prior(change, sign, direction):
    one = torch.tensor(1.0, dtype=torch.float64)
    std = one + sign * change
    x = float(std - 1) if direction == "forward" else float((1 - std) / std)
    series = sum((-1) ** power * x**power / power for power in range(3, 30)) + x * x
    assert float(gaussian_kl(one, std, one, 1.0, direction)) == pytest.approx(series, rel=1e-8)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("std_mode", ["absolute", "relative"])
def test_kl_is_zero_only_at_the_prior(direction, std_mode):
    module = network()
    posterior = GaussianPosterior(module, kl=direction, std_mode=std_mode, weight_std=0.013)
    at_prior = float(posterior.kl())
    assert 0 <= at_prior < posterior.num_random * 1e-14  # deviations are rounded to float32
    std = posterior.weight_std()["0.weight"]
    std[0, 0] *= 1.001
    assert float(posterior.kl()) > 1e-7
    std[0, 0] /= 1.001
    module[0].weight.data[0, 0] += 1e-5
    assert float(posterior.kl()) > 1e-7


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("learn", LEARN)
@pytest.mark.parametrize("prior_mean", ["initial", "zero"])
def test_added_kl_gradient_is_autograd_of_the_sum(direction, learn, prior_mean):
    module = network(dtype=torch.float64)
    initial = {name: value.detach().clone() for name, value in module.named_parameters()}
    posterior = GaussianPosterior(
        module, where="all", weight_std=0.2, prior_std=0.3, kl=direction, learn=learn, prior_mean=prior_mean
    )
    spread_out(posterior)
    for parameter in module.parameters():
        parameter.data.add_(torch.linspace(-0.3, 0.2, parameter.numel()).view(parameter.shape))
        parameter.grad = torch.ones_like(parameter)

    means = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}
    stds = {name: std.detach().clone().requires_grad_() for name, std in posterior.weight_std().items()}
    centres = {name: initial[name] if prior_mean == "initial" else torch.zeros_like(initial[name]) for name in initial}
    total = sum(
        gaussian_kl(means[name], stds[name].abs(), centres[name], 0.3, direction).sum() for name in posterior.names
    )
    assert float(posterior.kl()) == pytest.approx(float(total.detach()), rel=1e-12)
    (0.7 * total).backward()

    posterior.add_kl_gradient(0.7)
    for name in posterior.names:
        torch.testing.assert_close(module.get_parameter(name).grad, 1 + means[name].grad)
    if learn != "fixed":
        torch.testing.assert_close(std_gradients(posterior), {name: std.grad for name, std in stds.items()})


def test_kl_gradient_of_weight_zero_is_no_gradient_at_all():
    module = network()
    posterior = GaussianPosterior(module, track_prior=False)
    posterior.add_kl_gradient(0.0)
    assert module[0].weight.grad is None
    assert posterior.std_parameters()[0].grad is None


def test_a_posterior_without_a_prior_has_no_kl():
    with pytest.raises(ValueError, match="track_prior=True"):
        GaussianPosterior(network(), track_prior=False).kl()
    with pytest.raises(ValueError, match="prior_std is 0"):
        GaussianPosterior(network(), prior_std=0.0).kl()


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_senseless_kl_weight_is_refused(weight):
    with pytest.raises(ValueError, match="weight of the KL"):
        GaussianPosterior(network()).add_kl_gradient(weight)


# Settings, state, diagnostics, calibration


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_std": -0.1},
        {"weight_std": math.nan},
        {"prior_std": math.inf},
        {"learn": "tensor"},
        {"kl": "backward"},
        {"std_mode": "auto"},
        {"prior_mean": "mean"},
    ],
)
def test_senseless_settings_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        GaussianPosterior(network(), **settings)


def test_relative_deviations_are_in_units_of_each_weights_spread():
    module = network()
    posterior = GaussianPosterior(module, weight_std=0.3, std_mode="relative", learn="row")
    for name, std in posterior.weight_std().items():
        expected = 0.3 * module.get_parameter(name).std(correction=0)
        torch.testing.assert_close(std, expected.expand(std.shape))


def test_relative_deviations_need_a_spread():
    with pytest.raises(ValueError, match=r"without any spread \(2\.weight, 2\.bias\)"):
        GaussianPosterior(network(), where="norm", std_mode="relative")


def test_a_row_shares_its_deviation():
    posterior = GaussianPosterior(network(), learn="row")
    shapes = {name: tuple(std.shape) for name, std in posterior.weight_std().items()}
    assert shapes == {"0.weight": (7, 1), "0.bias": (7,), "3.weight": (3, 1), "3.bias": (3,)}
    assert posterior.num_random == 7 * 5 + 7 + 3 * 7 + 3


def train(
    module: nn.Module, posterior: GaussianPosterior, optimizer: torch.optim.Optimizer, steps: Iterator[int]
) -> None:
    for step in steps:
        with posterior.sample(step):
            loss_of(module, batch(seed=step)).backward()
        posterior.add_kl_gradient(1e-3)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("learn", ["elementwise", "row"])
def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(tmp_path, learn):
    def start() -> tuple[nn.Module, GaussianPosterior, torch.optim.Optimizer]:
        module = network()
        posterior = GaussianPosterior(module, weight_std=0.05, learn=learn, seed=9)
        return module, posterior, torch.optim.AdamW([*module.parameters(), *posterior.std_parameters()], lr=1e-2)

    module, posterior, optimizer = start()
    train(module, posterior, optimizer, range(6))

    first, first_posterior, first_optimizer = start()
    train(first, first_posterior, first_optimizer, range(3))
    first_posterior.save(tmp_path / "posterior.safetensors")
    resumed, resumed_posterior, resumed_optimizer = start()
    resumed.load_state_dict(first.state_dict())
    resumed_posterior.load(tmp_path / "posterior.safetensors")
    resumed_optimizer.load_state_dict(first_optimizer.state_dict())
    train(resumed, resumed_posterior, resumed_optimizer, range(3, 6))

    assert all(torch.equal(*pair) for pair in zip(module.parameters(), resumed.parameters(), strict=True))
    assert torch.equal(posterior.std_parameters()[0], resumed_posterior.std_parameters()[0])
    assert torch.equal(posterior.kl(), resumed_posterior.kl())


@pytest.mark.parametrize("std_mode", ["absolute", "relative"])
def test_the_prior_survives_saving_from_moved_weights(tmp_path, std_mode):
    module = network()
    posterior = GaussianPosterior(module, weight_std=0.05, std_mode=std_mode)
    module[0].weight.data *= 1.1
    posterior.save(tmp_path / "posterior.safetensors")
    late = GaussianPosterior(module, weight_std=0.05, std_mode=std_mode)  # takes the moved weights for its prior
    assert not torch.equal(late.kl(), posterior.kl())
    late.load(tmp_path / "posterior.safetensors")
    assert torch.equal(late.kl(), posterior.kl())
    assert late.diagnostics() == posterior.diagnostics()


def test_loading_another_posterior_names_what_differs(tmp_path):
    path = tmp_path / "posterior.safetensors"
    GaussianPosterior(network(), seed=1, kl="reverse").save(path)
    with pytest.raises(ValueError, match="seed is 1 there, 0 here; kl is 'reverse' there, 'forward' here"):
        GaussianPosterior(network()).load(path)


def test_loading_names_missing_and_unknown_weights():
    state = GaussianPosterior(network(), where="pattern:^0", track_prior=False).state_dict()
    with pytest.raises(ValueError, match=r"1 missing \(weight_std.3.weight\), 1 unknown \(weight_std.0.bias\)"):
        GaussianPosterior(network(), where="pattern:weight$", track_prior=False).load_state_dict(
            {**state, "weight_std.2.weight": torch.ones(7)}
        )


def test_loading_names_a_wrong_shape_and_changes_nothing():
    posterior = GaussianPosterior(network())
    before = posterior.std_parameters()[0].detach().clone()
    state = {name: value.clone() + 1 for name, value in posterior.state_dict().items()}
    state["weight_std.3.bias"] = torch.ones(4)
    with pytest.raises(ValueError, match=r"weight_std.3.bias has shape \(4,\) in the state and \(3,\) here"):
        posterior.load_state_dict(state)
    assert torch.equal(posterior.std_parameters()[0], before)


def test_a_file_that_is_no_posterior_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not a posterior"):
        GaussianPosterior(network()).load(tmp_path / "other.safetensors")


def test_diagnostics_are_silent_at_the_prior_and_speak_after_a_move():
    module = network()
    posterior = GaussianPosterior(module, weight_std=0.1)
    for row in posterior.diagnostics():
        assert row["weight_std_drift"] == pytest.approx(0, abs=1e-8)
        assert row["signal_to_noise"] == 0
        assert row["kl"] == pytest.approx(0, abs=1e-12)
        assert row["effective_parameters"] == pytest.approx(0, abs=1e-5)
    module[0].weight.data += 0.05
    posterior.weight_std()["0.weight"].mul_(0.5)
    first = posterior.diagnostics()[0]
    assert first["name"] == "0.weight"
    assert first["signal_to_noise"] == pytest.approx(1, rel=1e-4)
    assert first["weight_std_drift"] == pytest.approx(-0.05, rel=1e-5)
    assert first["effective_parameters"] == pytest.approx(0.75 * 35, rel=1e-5)
    assert sum(row["kl"] for row in posterior.diagnostics()) == pytest.approx(float(posterior.kl()))


def test_diagnostics_without_a_prior_say_so():
    row = GaussianPosterior(network(), track_prior=False).diagnostics()[0]
    assert row["kl"] is row["signal_to_noise"] is row["effective_parameters"] is None
    assert row["weight_std_mean"] == pytest.approx(0.01)


@pytest.mark.parametrize("start", [1e-5, 0.01, 10.0])
def test_calibration_finds_the_analytic_tolerance_of_a_quadratic(start):
    module = nn.Linear(100, 100, bias=False)
    before = module.weight.detach().clone()

    def loss() -> Tensor:  # rises by std^2 on average
        return 1 + (module.weight - before).square().mean()

    found = calibrate_weight_std(module, "all", loss, tolerance=0.04, start=start)
    assert found.weight_std == pytest.approx(0.2, rel=0.04)
    assert found.loss_at_mean == 1
    assert found.loss <= 1.04
    assert torch.equal(module.weight, before)


def test_calibration_says_when_the_loss_does_not_see_the_weights():
    with pytest.raises(ValueError, match="does the loss see the weights"):
        calibrate_weight_std(network(), "linear", lambda: 1.0)
