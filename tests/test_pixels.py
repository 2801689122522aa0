"""What the two pixel measures promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbayes.metrics.pixels import haar_noise, image_similarity, normalised_cross_correlation


def smooth_picture(size: int = 256) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size] / size
    return np.stack([0.5 + 0.3 * np.sin(3 * x + y), 0.4 + 0.3 * y, 0.5 + 0.2 * np.cos(4 * y - x)], axis=-1)


def random_picture(seed: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).random((size, size, 3))


seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("noise_std", [2.0, 8.0, 25.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_haar_noise_recovers_the_std_of_white_noise_on_a_smooth_picture(noise_std, seed):
    noise = np.random.default_rng(seed).normal(0, noise_std / 255, (256, 256, 3))
    assert haar_noise(smooth_picture() + noise) == pytest.approx(noise_std, rel=0.05)


def test_haar_noise_survives_rounding_to_eight_bits():
    noise = np.random.default_rng(0).normal(0, 8 / 255, (256, 256, 3))
    rounded = np.rint(255 * (smooth_picture() + noise)).astype(np.uint8)
    assert haar_noise(rounded) == pytest.approx(8, rel=0.05)


def test_a_smooth_picture_and_a_sharp_upright_edge_have_no_noise():
    edge = np.zeros((64, 64, 3))
    edge[:, 31:] = 1
    assert haar_noise(edge) == 0
    assert haar_noise(smooth_picture()) < 0.05


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.01, 1), st.floats(-1, 1))
def test_haar_noise_scales_with_contrast_and_ignores_brightness(seed, contrast, brightness):
    picture = random_picture(seed)
    assert haar_noise(contrast * picture + brightness) == pytest.approx(contrast * haar_noise(picture), rel=1e-9)


def test_haar_noise_leaves_out_an_odd_row_and_column():
    picture = random_picture(0, 13)
    assert haar_noise(picture) == haar_noise(picture[:12, :12])


@settings(max_examples=50, deadline=None)
@given(seeds, seeds)
def test_correlation_is_symmetric_and_within_one(first, second):
    a, b = random_picture(first), random_picture(second)
    assert normalised_cross_correlation(a, b) == normalised_cross_correlation(b, a)
    assert -1 <= normalised_cross_correlation(a, b) <= 1


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.01, 10), st.floats(-1, 1))
def test_correlation_ignores_brightness_and_contrast(seed, contrast, brightness):
    picture = random_picture(seed)
    assert normalised_cross_correlation(picture, contrast * picture + brightness) == pytest.approx(1, abs=1e-9)
    assert normalised_cross_correlation(picture, -contrast * picture) == pytest.approx(-1, abs=1e-9)


def test_correlation_agrees_with_pearsons_coefficient():
    a, b = random_picture(0), random_picture(1)
    assert normalised_cross_correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-12)


def test_eight_bits_and_floats_are_the_same_picture():
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert normalised_cross_correlation(picture, picture / 255) == pytest.approx(1)
    assert haar_noise(picture) == pytest.approx(haar_noise((picture / 255).astype(np.float32)), rel=1e-5)


def test_a_flat_picture_correlates_with_nothing():
    assert normalised_cross_correlation(np.full((8, 8, 3), 0.3), random_picture(0, 8)) == 0


def test_similarity_takes_the_nearest_reference_and_averages_over_samples():
    a, b, c = (random_picture(seed) for seed in range(3))
    assert image_similarity([a, b], [b, a, c]) == pytest.approx(1)
    expected = (1 + max(normalised_cross_correlation(c, a), normalised_cross_correlation(c, b))) / 2
    assert image_similarity([a, c], [a, b]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normalised_cross_correlation(random_picture(0, 8), random_picture(0, 9)), "must agree"),
        (lambda: haar_noise(np.zeros((8, 8))), "height, width, 3"),
        (lambda: haar_noise(np.zeros((8, 8, 3), dtype=np.int64)), "uint8"),
        (lambda: haar_noise(np.zeros((1, 8, 3))), "2 x 2"),
        (lambda: image_similarity([], [random_picture(0)]), "0 samples"),
    ],
)
def test_what_is_no_picture_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
