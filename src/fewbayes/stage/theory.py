"""The paper's model of one-shot fine-tuning as algebra: Eq. 1, 2, 5-12 and appendix F, with their limits. numpy only.

A model that has learned one image x' is taken for one that knows N(x', sigma_1^2 I). All follows from one number,

    retention r = sigma_1^2 / (sigma_1^2 + (1 - alpha_bar) / alpha_bar)    in [0, 1],

the share of any deviation from sqrt(alpha_bar) x' that denoising leaves. docs/theory.md derives it and lists where the
printed equations differ from these. Knows nothing of networks or schedules: `alpha_bar` is the value at the timestep at
hand, strictly between 0 and 1; `sigma_1` is 0 or more, infinity included. Both may be arrays that broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fewbayes.errors import UserError

Array = NDArray[np.float64]
Numbers = float | Array


@dataclass(frozen=True)
class Gaussian:
    """N(mean, variance I): mean of any shape, one variance for all its elements."""

    mean: Array
    variance: Array


def _checked(alpha_bar: Numbers, sigma_1: Numbers = 0.0) -> tuple[Array, Array]:
    a, s = np.asarray(alpha_bar, dtype=np.float64), np.asarray(sigma_1, dtype=np.float64)
    if not np.all((a > 0) & (a < 1)):
        raise UserError(f"alpha_bar is {alpha_bar}; the theory needs it strictly between 0 (noise) and 1 (clean)")
    if not np.all(s >= 0):
        raise UserError(f"sigma_1 is {sigma_1}; a standard deviation is 0 or more")
    return a, s


# --- one image --------------------------------------------------------------------------------------------------------


def noise_to_signal(alpha_bar: Numbers) -> Array:
    """(1 - alpha_bar) / alpha_bar: the variance of the noise in x_t / sqrt(alpha_bar), a picture at its own scale."""
    a, _ = _checked(alpha_bar)
    return (1 - a) / a


def retention(alpha_bar: Numbers, sigma_1: Numbers) -> Array:
    """Share of a deviation that is left, in [0, 1]: 0 at sigma_1 = 0 (a copy of x'), 1 at infinity (pass-through)."""
    a, s = _checked(alpha_bar, sigma_1)
    with np.errstate(divide="ignore"):
        return 1 / (1 + noise_to_signal(a) / s**2)


def gain(alpha_bar: Numbers, sigma_1: Numbers) -> Array:
    """The factor in Eq. 1, sqrt(alpha_bar) sigma_1^2 / (alpha_bar sigma_1^2 + 1 - alpha_bar); at most 1 / its root."""
    return retention(alpha_bar, sigma_1) / np.sqrt(alpha_bar)


# Error of the one-shot model (Eq. 1): what denoising x_t leaves between its answer and x'.
def delta_t(xt: Array, x_prime: Array, alpha_bar: float, sigma_1: float) -> Array:
    """0 at sigma_1 = 0, x_t / sqrt(alpha_bar) - x' at infinity; linear in x_t - sqrt(alpha_bar) x'."""
    return gain(alpha_bar, sigma_1) * (xt - np.sqrt(alpha_bar) * x_prime)


# Denoised picture (Eq. 2).
def x0_hat(xt: Array, x_prime: Array, alpha_bar: float, sigma_1: float) -> Array:
    """The most probable, and for a Gaussian also the mean x_0 given x_t."""
    return x_prime + delta_t(xt, x_prime, alpha_bar, sigma_1)


# Variance of Eq. 1, 11 and 12 with the factor sigma_1^2 that they lack.
def posterior_variance(alpha_bar: Numbers, sigma_1: Numbers) -> Array:
    """Variance of x_0 given x_t: 0 at sigma_1 = 0, (1 - alpha_bar) / alpha_bar at infinity."""
    return noise_to_signal(alpha_bar) * retention(alpha_bar, sigma_1)


# Variance of Eq. 1, 11 and 12 as printed.
def printed_posterior_variance(alpha_bar: Numbers, sigma_1: Numbers) -> Array:
    """1 at sigma_1 = 0 and 0 at infinity: the wrong way round. Kept for docs/theory.md alone."""
    a, s = _checked(alpha_bar, sigma_1)
    return (1 - a) / (a * s**2 + 1 - a)


# --- the derivation: appendix A ---------------------------------------------------------------------------------------


# Covariance of one element of (x_0, x_t) with an unknown covariance c (Eq. 5); the mean is (x', sqrt(alpha_bar) x').
def joint_covariance(alpha_bar: float, sigma_1: float, c: float) -> Array:
    a, s = _checked(alpha_bar, sigma_1)
    return np.array([[s**2, c], [c, a * s**2 + 1 - a]])


# What is known of x_t (Eq. 6).
def xt_given_x_prime(x_prime: Array, alpha_bar: float) -> Gaussian:
    a, _ = _checked(alpha_bar)
    return Gaussian(np.sqrt(a) * x_prime, 1 - a)


# Inverse of the covariance (Eq. 7), entries lambda_11, lambda_12, lambda_21, lambda_22.
def joint_precision(alpha_bar: float, sigma_1: float, c: float) -> Array:
    a, s = _checked(alpha_bar, sigma_1)
    determinant = s**2 * (a * s**2 + 1 - a) - c**2
    if not determinant > 0:
        raise UserError(f"sigma_1 = {sigma_1} and c = {c} are not of a joint distribution with a density")
    return np.array([[a * s**2 + 1 - a, -c], [-c, s**2]]) / determinant


# x_t given any x_0, for an unknown covariance c (Eq. 8).
def xt_given_x0(x0: Array, x_prime: Array, alpha_bar: float, sigma_1: float, c: float) -> Gaussian:
    (_, lambda_12), (_, lambda_22) = joint_precision(alpha_bar, sigma_1, c)
    mean = (lambda_22 * np.sqrt(alpha_bar) * x_prime + lambda_12 * x_prime - lambda_12 * x0) / lambda_22
    return Gaussian(mean, 1 / lambda_22)


# The covariance that Eq. 6 and 9 allow; they leave its sign open, the forward process does not.
def covariance(alpha_bar: float, sigma_1: float, sign: Literal[1, -1] = 1) -> float:
    a, s = _checked(alpha_bar, sigma_1)
    return float(sign * np.sqrt(a) * s**2)


# Joint covariance with c found (Eq. 10).
def learned_joint_covariance(alpha_bar: float, sigma_1: float, sign: Literal[1, -1] = 1) -> Array:
    return joint_covariance(alpha_bar, sigma_1, covariance(alpha_bar, sigma_1, sign))


# x_0 given x_t (Eq. 11 with either sign, Eq. 12 with +1), with the right variance.
def x0_given_xt(xt: Array, x_prime: Array, alpha_bar: float, sigma_1: float, sign: Literal[1, -1] = 1) -> Gaussian:
    mean = x_prime + sign * delta_t(xt, x_prime, alpha_bar, sigma_1)
    return Gaussian(mean, posterior_variance(alpha_bar, sigma_1))


# --- several images (section 3.2) -------------------------------------------------------------------------------------


def nearest(xt: Array, images: Sequence[Array] | Array, alpha_bar: float) -> int:
    """Index of x*, the image of the learned set with the smallest error delta_t: the same one for every sigma_1."""
    return int(np.argmin(_squared_distances(xt, images, alpha_bar)))


def x0_hat_of_set(xt: Array, images: Sequence[Array] | Array, alpha_bar: float, sigma_1: float) -> Array:
    """The paper's simplification: denoise as if x* were the only image."""
    return x0_hat(xt, images[nearest(xt, images, alpha_bar)], alpha_bar, sigma_1)


def mixture_weights(xt: Array, images: Sequence[Array] | Array, alpha_bar: float, sigma_1: float) -> Array:
    """Probability of each image given x_t, if all are equally likely and each has spread sigma_1."""
    a, s = _checked(alpha_bar, sigma_1)
    logits = -_squared_distances(xt, images, alpha_bar) / (2 * (a * s**2 + 1 - a))
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def x0_hat_of_mixture(xt: Array, images: Sequence[Array] | Array, alpha_bar: float, sigma_1: float) -> Array:
    """The exact mean of x_0 given x_t for that mixture; `x0_hat_of_set` is its limit for images far apart."""
    weights = mixture_weights(xt, images, alpha_bar, sigma_1)
    return sum((w * x0_hat(xt, x, alpha_bar, sigma_1) for w, x in zip(weights, images, strict=True)), np.zeros_like(xt))


def _squared_distances(xt: Array, images: Sequence[Array] | Array, alpha_bar: float) -> Array:
    a, _ = _checked(alpha_bar)
    return np.array([np.sum((xt - np.sqrt(a) * image) ** 2) for image in images])


# --- what it predicts of the probes -----------------------------------------------------------------------------------


# Answer to x_t = k x' (appendix F): this many times x'.
def k_response(k: Numbers, alpha_bar: Numbers, sigma_1: Numbers) -> Array:
    """Exactly 1 at k = sqrt(alpha_bar) whatever sigma_1 is; 1 - retention at k = 0, the blank picture."""
    return 1 + gain(alpha_bar, sigma_1) * (k - np.sqrt(alpha_bar))


# ||delta_t||^2 / ||delta'||^2 for a disturbance delta' added to x_t (section 3.3).
def amplification(alpha_bar: Numbers, sigma_1: Numbers) -> Array:
    """At most 1 / alpha_bar, reached by a model that passes its input through; that share of it is retention^2."""
    return gain(alpha_bar, sigma_1) ** 2


def amplifying_sigma_1(alpha_bar: Numbers) -> Array:
    """The sigma_1 at which one denoising leaves a disturbance as large as it was; above it, amplifies."""
    a, _ = _checked(alpha_bar)
    return np.sqrt((1 - a) / (np.sqrt(a) - a))


def training_loss(alpha_bar: Numbers, sigma_1: Numbers) -> Array:
    """|| eps_theta - eps ||^2 per element on the training image itself: retention^2."""
    return retention(alpha_bar, sigma_1) ** 2


def typical_loss(alpha_bar: Numbers, sigma_1: Numbers) -> Array:
    """The same on pictures drawn from what the model knows, averaged: retention, since its centre is easier."""
    return retention(alpha_bar, sigma_1)


# --- guidance: two branches, each a one-image model of its own sigma_1 ------------------------------------------------


def guided_retention(conditional: Numbers, unconditional: Numbers, guidance: Numbers) -> Array:
    """r_u + guidance (r_c - r_u): what the guided answer keeps of a deviation. Outside [0, 1] where branches differ."""
    c, u = np.asarray(conditional, dtype=np.float64), np.asarray(unconditional, dtype=np.float64)
    return u + np.asarray(guidance, dtype=np.float64) * (c - u)


def guided_ceiling(alpha_bar: Numbers, guidance: Numbers) -> Array:
    """The most that a guided answer multiplies a disturbance's energy by, guidance^2 / alpha_bar, where that of one
    branch is 1 / alpha_bar: the conditional one passes its input through, the unconditional one has a copy by heart."""
    a, _ = _checked(alpha_bar)
    return np.maximum(1.0, guidance) ** 2 / a


def amplifying_gaps(unconditional: Numbers, guidance: Numbers) -> tuple[Array, Array]:
    """The r_c - r_u below the first, or above the second, of which the guided answer passes on more than pass-through.

    Below: the prompt's branch copies, the other lags behind it. Above: the prompt's branch lets noise pass.
    """
    u = np.asarray(unconditional, dtype=np.float64)
    return -(1 + u) / guidance, (1 - u) / guidance


def ddim_gain(
    alpha_bars: Sequence[float], sigma_1: float, *, guidance: float = 1.0, unconditional: float = 0.0
) -> float:
    """Factor of a deviation of x_t through DDIM steps along `alpha_bars`, the last of which may be 1 (clean).

    guidance, unconditional: with the answers led away from a branch of that sigma_1 around the same image.
    """
    factor = 1.0
    for now, then in pairwise(alpha_bars):
        kept = float(guided_retention(retention(now, sigma_1), retention(now, unconditional), guidance))
        factor *= np.sqrt(then / now) * kept + np.sqrt((1 - then) / (1 - now)) * (1 - kept)
    return float(factor)


def sampler_gain(alpha_bar: Numbers, sigma_1: Numbers, *, guidance: float = 1.0, unconditional: Numbers = 0.0) -> Array:
    """Its limit for infinitely many steps to the clean picture: S = sqrt(retention / alpha_bar), no less than `gain`.

    Guided: S_c^guidance / S_u^(guidance - 1), beyond either where the prompt's branch is the wider one.
    """
    mine, its = (np.sqrt(retention(alpha_bar, spread) / alpha_bar) for spread in (sigma_1, unconditional))
    return mine**guidance / its ** (guidance - 1)


# --- sigma_1 of a denoiser (Fig. 4) -----------------------------------------------------------------------------------


def retention_of(x0_hat: Array, xt: Array, x_prime: Array, alpha_bar: float) -> float:
    """Least-squares retention of a denoiser's answer: the regression of x0_hat - x' on x_t - sqrt(alpha_bar) x'.

    For x_t = sqrt(alpha_bar) x' + noise_std eps this is the regression on eps, 1 - <eps_theta, eps> / <eps, eps>.
    Real denoisers may lie outside [0, 1].
    """
    deviation = xt - np.sqrt(alpha_bar) * x_prime
    return float(np.sqrt(alpha_bar) * np.sum((x0_hat - x_prime) * deviation) / np.sum(deviation**2))


def sigma_1_of(retention: Numbers, alpha_bar: Numbers) -> Array:
    """The sigma_1 with this retention; 0 below the range of the model, infinity above it.

    d log(sigma_1) / d r = 1 / (2 r (1 - r)): an error of 0.005 in r is one of 25 % in sigma_1 at r = 0.01 and 0.99.
    """
    r = np.clip(np.asarray(retention, dtype=np.float64), 0, 1)
    with np.errstate(divide="ignore"):
        return np.sqrt(noise_to_signal(alpha_bar) * r / (1 - r))


def sigma_1_range(alpha_bar: Numbers, margin: float = 0.01) -> tuple[Array, Array]:
    """The sigma_1 that can be told at this timestep: those whose retention is `margin` away from 0 and from 1."""
    if not 0 < margin < 0.5:
        raise UserError(f"margin is {margin}; it must lie between 0 and 0.5")
    return sigma_1_of(margin, alpha_bar), sigma_1_of(1 - margin, alpha_bar)
