"""The algebra of the one-shot model against integrals that know only Bayes' rule, its limits, and docs/theory.md."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fewbayes.stage import theory

ALPHA_BARS = (0.9942, 0.8942, 0.5, 0.0581, 0.0047)
SIGMAS = (0.03, 0.5, 1.0, 4.8)
DOCS = Path(__file__).parents[1] / "docs" / "theory.md"

alpha_bars = st.floats(0.005, 0.995)
sigmas = st.floats(0.05, 20)
pairs = pytest.mark.parametrize(("alpha_bar", "sigma_1"), [(a, s) for a in ALPHA_BARS for s in SIGMAS])


def integrated(xt: float, images: list[float], alpha_bar: float, sigma_1: float) -> tuple[float, float]:
    """Mean and variance of x_0 given x_t by the trapezoid rule: prior times likelihood, normalised."""
    centres = [*images, xt / math.sqrt(alpha_bar)]
    width = 40 * (sigma_1 + math.sqrt((1 - alpha_bar) / alpha_bar))
    x0 = np.linspace(min(centres) - width, max(centres) + width, 400_001)
    prior = sum(norm.pdf(x0, image, sigma_1) for image in images)
    density = prior * norm.pdf(xt, math.sqrt(alpha_bar) * x0, math.sqrt(1 - alpha_bar))
    density /= density.sum()
    mean = float((density * x0).sum())
    return mean, float((density * (x0 - mean) ** 2).sum())


@pairs
def test_eq_2_is_the_posterior_mean_of_an_exact_gaussian_denoiser(alpha_bar, sigma_1):
    for xt in (-2.0, 0.0, 1.3):
        mean, variance = integrated(xt, [0.7], alpha_bar, sigma_1)
        found = theory.x0_given_xt(np.array(xt), np.array(0.7), alpha_bar, sigma_1)
        assert found.mean == pytest.approx(mean, abs=1e-6)
        assert found.variance == pytest.approx(variance, abs=1e-6)
        assert theory.x0_hat(np.array(xt), np.array(0.7), alpha_bar, sigma_1) == pytest.approx(mean, abs=1e-6)


@pairs
def test_eq_2_is_conjugate_algebra_in_many_dimensions(alpha_bar, sigma_1):
    """Solve the linear system of a Gaussian prior and a linear observation, without the formula."""
    x_prime, xt = np.random.default_rng(0).normal(size=(2, 8))
    observe = math.sqrt(alpha_bar) * np.eye(8)
    precision = np.eye(8) / sigma_1**2 + observe.T @ observe / (1 - alpha_bar)
    mean = np.linalg.solve(precision, x_prime / sigma_1**2 + observe.T @ xt / (1 - alpha_bar))
    np.testing.assert_allclose(theory.x0_hat(xt, x_prime, alpha_bar, sigma_1), mean, atol=1e-6)
    variance = theory.posterior_variance(alpha_bar, sigma_1)
    np.testing.assert_allclose(np.linalg.inv(precision), variance * np.eye(8), atol=1e-6)


@given(alpha_bars, st.floats(-3, 3))
def test_without_spread_the_model_copies_and_with_all_spread_it_only_rescales(alpha_bar, value):
    xt, x_prime = np.array([value, 1.0]), np.array([0.3, -0.2])
    assert (theory.x0_hat(xt, x_prime, alpha_bar, 0) == x_prime).all()
    np.testing.assert_allclose(theory.x0_hat(xt, x_prime, alpha_bar, math.inf), xt / math.sqrt(alpha_bar), atol=1e-12)
    np.testing.assert_allclose(theory.x0_hat(xt, x_prime, alpha_bar, 1e-8), x_prime, atol=1e-6)
    np.testing.assert_allclose(theory.x0_hat(xt, x_prime, alpha_bar, 1e8), xt / math.sqrt(alpha_bar), atol=1e-6)
    assert theory.posterior_variance(alpha_bar, 0) == 0
    assert theory.posterior_variance(alpha_bar, math.inf) == pytest.approx((1 - alpha_bar) / alpha_bar)


@pairs
@pytest.mark.parametrize("sign", [1, -1])
def test_appendix_a_follows_step_by_step(alpha_bar, sigma_1, sign):
    c = theory.covariance(alpha_bar, sigma_1, sign)
    joint = theory.joint_covariance(alpha_bar, sigma_1, c)
    np.testing.assert_array_equal(joint, theory.learned_joint_covariance(alpha_bar, sigma_1, sign))
    inverse = theory.joint_precision(alpha_bar, sigma_1, c)  # Eq. 7
    np.testing.assert_allclose(inverse @ joint, np.eye(2), atol=1e-9)
    assert 1 / inverse[1, 1] == pytest.approx(1 - alpha_bar)  # Eq. 9
    x_prime = np.array(0.7)
    at_x_prime = theory.xt_given_x0(x_prime, x_prime, alpha_bar, sigma_1, c)  # Eq. 8 at x' is Eq. 6
    assert at_x_prime.mean == pytest.approx(theory.xt_given_x_prime(x_prime, alpha_bar).mean)
    assert at_x_prime.variance == pytest.approx(theory.xt_given_x_prime(x_prime, alpha_bar).variance)
    # Eq. 11 by the textbook formula for conditioning a joint Gaussian
    xt, mean_xt = np.array(1.3), math.sqrt(alpha_bar) * x_prime
    found = theory.x0_given_xt(xt, x_prime, alpha_bar, sigma_1, sign)
    assert found.mean == pytest.approx(x_prime + joint[0, 1] / joint[1, 1] * (xt - mean_xt))
    assert found.variance == pytest.approx(joint[0, 0] - joint[0, 1] ** 2 / joint[1, 1])


@pairs
def test_only_the_positive_covariance_is_that_of_the_forward_process(alpha_bar, sigma_1):
    x0, x_prime = np.array(2.0), np.array(0.7)
    right, wrong = (
        theory.xt_given_x0(x0, x_prime, alpha_bar, sigma_1, theory.covariance(alpha_bar, sigma_1, sign)).mean
        for sign in (1, -1)
    )
    assert right == pytest.approx(math.sqrt(alpha_bar) * x0)
    assert wrong == pytest.approx(math.sqrt(alpha_bar) * (2 * x_prime - x0))


@pairs
def test_a_mixture_is_denoised_to_its_exact_mean(alpha_bar, sigma_1):
    images = [-1.0, 0.4, 2.0]
    for xt in (-1.5, 0.2, 1.0):
        mean, _ = integrated(xt, images, alpha_bar, sigma_1)
        found = theory.x0_hat_of_mixture(np.array(xt), np.array(images), alpha_bar, sigma_1)
        assert found == pytest.approx(mean, abs=1e-6)


@given(alpha_bars, sigmas)
def test_the_nearest_image_has_the_smallest_error_at_every_spread(alpha_bar, sigma_1):
    xt, *images = np.random.default_rng(1).normal(size=(5, 16))
    errors = [np.sum(theory.delta_t(xt, image, alpha_bar, sigma_1) ** 2) for image in images]
    assert theory.nearest(xt, images, alpha_bar) == int(np.argmin(errors))


def test_images_far_apart_are_denoised_as_the_nearest_alone_and_close_ones_are_blended():
    images = np.random.default_rng(2).normal(size=(3, 4096))
    xt = math.sqrt(0.5) * images[1] + math.sqrt(0.5) * np.random.default_rng(3).normal(size=4096)
    of_set, of_mixture = (f(xt, images, 0.5, 0.1) for f in (theory.x0_hat_of_set, theory.x0_hat_of_mixture))
    np.testing.assert_allclose(of_set, of_mixture, atol=1e-9)
    np.testing.assert_array_equal(of_set, theory.x0_hat(xt, images[1], 0.5, 0.1))
    blended = theory.x0_hat_of_mixture(np.array([0.1]), np.array([[-0.1], [0.1]]), 0.05, 0.0)
    assert abs(blended[0]) < 0.01  # the mean of both, where the simplification says 0.1


def test_the_blank_picture_is_nearest_to_the_image_of_least_energy():
    images = np.stack([np.full(4, 3.0), np.full(4, -1.0), np.full(4, 2.0)])
    assert theory.nearest(np.zeros(4), images, 0.005) == 1


@given(alpha_bars, sigmas, st.floats(-2, 2))
def test_a_multiple_of_the_image_is_answered_with_a_multiple(alpha_bar, sigma_1, k):
    x_prime = np.array([0.7, -1.1])
    answer = theory.x0_hat(k * x_prime, x_prime, alpha_bar, sigma_1)
    np.testing.assert_allclose(answer, theory.k_response(k, alpha_bar, sigma_1) * x_prime, atol=1e-9)
    assert theory.k_response(math.sqrt(alpha_bar), alpha_bar, sigma_1) == pytest.approx(1)
    assert theory.k_response(0, alpha_bar, sigma_1) == pytest.approx(1 - theory.retention(alpha_bar, sigma_1))


@given(alpha_bars, sigmas)
def test_amplification_stays_below_pass_through_and_crosses_one_where_said(alpha_bar, sigma_1):
    x_prime, xt, disturbance = np.random.default_rng(4).normal(size=(3, 8))
    change = theory.delta_t(xt + disturbance, x_prime, alpha_bar, sigma_1) - theory.delta_t(
        xt, x_prime, alpha_bar, sigma_1
    )
    measured = np.sum(change**2) / np.sum(disturbance**2)
    assert theory.amplification(alpha_bar, sigma_1) == pytest.approx(measured)
    assert measured < 1 / alpha_bar
    assert theory.amplification(alpha_bar, math.inf) == pytest.approx(1 / alpha_bar)
    assert theory.amplification(alpha_bar, theory.amplifying_sigma_1(alpha_bar)) == pytest.approx(1)


@given(alpha_bars, sigmas)
def test_the_loss_on_the_training_image_is_the_squared_retention(alpha_bar, sigma_1):
    x_prime, eps = np.random.default_rng(5).normal(size=(2, 8))
    xt = math.sqrt(alpha_bar) * x_prime + math.sqrt(1 - alpha_bar) * eps
    x0 = theory.x0_hat(xt, x_prime, alpha_bar, sigma_1)
    predicted = (xt - math.sqrt(alpha_bar) * x0) / math.sqrt(1 - alpha_bar)
    loss = np.sum((predicted - eps) ** 2) / np.sum(eps**2)
    assert theory.training_loss(alpha_bar, sigma_1) == pytest.approx(loss)
    by_eps = 1 - np.sum(predicted * eps) / np.sum(eps**2)
    assert theory.retention_of(x0, xt, x_prime, alpha_bar) == pytest.approx(by_eps)


@pairs
def test_the_loss_on_what_the_model_knows_is_its_uncertainty(alpha_bar, sigma_1):
    """E (x0_hat - x0)^2 over draws x0 of the model is the posterior variance; in units of eps, the typical loss."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    x0, eps = 0.7 + sigma_1 * nodes[:, None], nodes[None]
    xt = math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * eps
    errors = (theory.x0_hat(xt, np.array(0.7), alpha_bar, sigma_1) - x0) ** 2 * alpha_bar / (1 - alpha_bar)
    mean = float(weights @ errors @ weights) / weights.sum() ** 2
    assert theory.typical_loss(alpha_bar, sigma_1) == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("sigma_1", SIGMAS)
def test_many_ddim_steps_keep_the_root_of_what_one_step_keeps(sigma_1):
    path = np.cos(np.linspace(math.acos(math.sqrt(0.8942)), 0, 2001)) ** 2
    one, many = (theory.ddim_gain(list(levels), sigma_1) for levels in ((0.8942, 1.0), path))
    assert one == pytest.approx(float(theory.gain(0.8942, sigma_1)))
    assert many == pytest.approx(float(theory.sampler_gain(0.8942, sigma_1)), rel=2e-2)
    assert many >= one - 1e-9


@pytest.mark.parametrize(("sigma_c", "sigma_u"), [(0.6, 0.3), (0.3, 0.6), (0.3, 0.3)])
def test_a_long_guided_sampler_multiplies_by_a_power_of_the_branches_own_gains(sigma_c, sigma_u):
    """S_c^g / S_u^(g - 1): beyond the conditional branch's own where that is the wider, below it where it is not."""
    path = np.cos(np.linspace(np.arccos(np.sqrt(0.8942)), 0, 1001)) ** 2
    found = theory.ddim_gain(list(path), sigma_c, guidance=7.5, unconditional=sigma_u)
    limit = float(theory.sampler_gain(0.8942, sigma_c, guidance=7.5, unconditional=sigma_u))
    assert found == pytest.approx(limit, rel=2e-2)
    own = float(theory.sampler_gain(0.8942, sigma_c))
    assert (limit > own) == (sigma_c > sigma_u)


@given(alpha_bars, st.floats(0.01, 0.99))
def test_sigma_1_is_found_again_from_a_denoisers_answers(alpha_bar, share):
    sigma_1 = float(theory.sigma_1_of(share, alpha_bar))
    x_prime, eps = np.random.default_rng(6).normal(size=(2, 64))
    xt = math.sqrt(alpha_bar) * x_prime + math.sqrt(1 - alpha_bar) * eps
    measured = theory.retention_of(theory.x0_hat(xt, x_prime, alpha_bar, sigma_1), xt, x_prime, alpha_bar)
    assert theory.sigma_1_of(measured, alpha_bar) == pytest.approx(sigma_1, rel=1e-6)


def test_sigma_1_is_zero_or_infinite_outside_the_range_of_the_model():
    assert theory.sigma_1_of(-0.2, 0.5) == 0
    assert theory.sigma_1_of(1.0, 0.5) == math.inf
    assert theory.sigma_1_of(1.3, 0.5) == math.inf


def test_beyond_its_range_a_small_error_of_the_retention_is_a_large_one_of_sigma_1():
    low, high = theory.sigma_1_range(0.8942)
    for edge in (low, high):
        kept = theory.retention(0.8942, edge)
        assert abs(theory.sigma_1_of(kept + 0.005, 0.8942) / edge - 1) > 0.2
    middle = theory.sigma_1_of(0.5, 0.8942)
    assert theory.sigma_1_of(0.505, 0.8942) / middle == pytest.approx(1, abs=0.011)


@pytest.mark.parametrize(
    ("alpha_bar", "sigma_1"), [(0.0, 1.0), (1.0, 1.0), (0.5, -1.0), (math.nan, 1.0), (0.5, math.nan)]
)
def test_what_is_no_level_or_no_deviation_is_refused(alpha_bar, sigma_1):
    with pytest.raises(ValueError, match=r"alpha_bar|sigma_1"):
        theory.gain(alpha_bar, sigma_1)


def blocks() -> list[tuple[str, str]]:
    """The computations of docs/theory.md, each with the title over it."""
    found, title = [], ""
    for part in re.finditer(r"^#+ ([^\n]+)$|^```python\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL):
        title = part.group(1) or title
        if part.group(2):
            found.append((title, part.group(2)))
    return found


@pytest.mark.parametrize("code", [pytest.param(code, id=title) for title, code in blocks()])
def test_a_computation_of_the_docs_holds_and_checks_something(code):
    assert "assert " in code
    exec(compile(code, str(DOCS), "exec"), {})
