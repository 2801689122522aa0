"""Noise is told from edges, brightness and copies; likeness and diversity are what their names say."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fewbayes.files.decode import typed
from fewbayes.stage.samples import (
    ROUNDING,
    SampleStats,
    coarse,
    contours,
    contrast,
    describe,
    detail,
    relief,
    saturation,
    unrest,
)

SIDE = 64


def scene(seed: int, side: int = SIDE) -> np.ndarray:
    """Colours that run over the picture, and a disc with an edge."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    colours = rng.uniform(60, 190, (3, 3))
    pixels = colours[0] * x[..., None] + colours[1] * (1 - x[..., None]) + 30 * np.sin(3 * y + seed)[..., None]
    centre = rng.uniform(0.35, 0.65, 2)
    pixels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 0.04] = colours[2]
    return pixels.clip(0, 255).astype(np.uint8)


def noised(picture: np.ndarray, strength: float, blotch: int = 4, seed: int = 0) -> np.ndarray:
    """With soft coloured blotches of about `blotch` pixels, like noise of latents once decoded."""
    shape = (3, picture.shape[0] // blotch, picture.shape[1] // blotch)
    noise = np.random.default_rng(seed).normal(0, strength, shape)
    blotches = [Image.fromarray(channel).resize(picture.shape[1::-1], Image.Resampling.BICUBIC) for channel in noise]
    return (picture + np.stack(blotches, axis=-1)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("blotch", [1, 2, 4])
def test_more_noise_of_any_size_is_more_noise(blotch):
    found = [detail(noised(scene(0), strength, blotch)) for strength in (0, 5, 10, 20, 40)]
    assert found == sorted(found)
    assert found[-1] > 4 * found[0]


def test_brightness_contrast_and_mirrors_are_no_noise():
    picture = noised(scene(1), 15)
    darker = (picture.astype(float) - 20).clip(0, 255).astype(np.uint8)
    assert detail(darker) == pytest.approx(detail(picture), rel=0.02)
    assert detail(picture[:, ::-1]) == pytest.approx(detail(picture))
    assert detail(picture // 2) < detail(picture)


def test_upright_and_level_edges_are_no_noise():
    stripes = np.zeros((SIDE, SIDE, 3), np.uint8)
    stripes[:, ::3] = 255
    assert detail(stripes) == detail(stripes.transpose(1, 0, 2)) == pytest.approx(12**-0.5)


def test_a_larger_print_of_a_picture_has_the_same_noise():
    picture = noised(scene(2, 128), 20)
    assert detail(picture.repeat(4, 0).repeat(4, 1)) == pytest.approx(detail(picture))


def test_a_flat_picture_has_the_noise_of_rounding():
    assert detail(np.full((SIDE, SIDE, 3), 90, np.uint8)) == pytest.approx(12**-0.5)


def test_values_at_the_limits_are_saturated():
    picture = np.full((10, 10, 3), 128, np.uint8)
    picture[0], picture[1] = 255, 1
    assert saturation(picture) == pytest.approx(0.2)


def test_a_copy_is_wholly_like_even_mirrored_darker_or_of_another_size():
    reference = scene(3)
    copies = [reference.copy(), reference[:, ::-1], (reference * 0.7).astype(np.uint8), scene(3, 128)]
    assert min(describe(copies, [scene(4), reference]).likeness) > 0.97


def test_an_unlike_picture_is_less_like_than_a_copy():
    rng = np.random.default_rng(0)
    other = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    assert describe([other], [scene(5)]).likeness[0] < 0.3


def test_training_images_are_compared_with_different_ones_only():
    references = [scene(6), scene(7), scene(6)[:, ::-1]]
    found = describe(references, references)
    assert max(found.likeness) < 0.9
    assert found.distinct == 2
    assert describe([scene(6)], references).likeness[0] == pytest.approx(1)  # a sample is spared nothing
    assert describe(references[:1], references[:1]).likeness == (0.0,)


def test_contrast_is_of_light_and_dark_at_large():
    picture = scene(3)
    assert contrast(np.full((SIDE, SIDE, 3), 200, np.uint8)) == 0
    assert contrast(picture // 2) == pytest.approx(contrast(picture) / 2, rel=0.05)
    assert contrast(noised(picture, 30, blotch=1)) == pytest.approx(contrast(picture), rel=0.1)


def test_blotches_take_the_change_from_the_outlines_and_contrast_does_not():
    found = [contours(noised(scene(3), strength)) for strength in (0, 5, 10, 20, 40)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 2 * found[-1]
    assert relief(scene(3)) > relief(noised(scene(3), 10)) > relief(noised(scene(3), 40))
    assert contours(scene(3) // 2) == pytest.approx(found[0], rel=0.05)  # whole grey levels
    assert contours(np.zeros((SIDE, SIDE, 3), np.uint8)) == 0


def test_unrest_is_of_colour_everywhere():
    picture = scene(4)
    assert unrest(np.full((SIDE, SIDE, 3), 90, np.uint8)) == pytest.approx(ROUNDING)
    found = [unrest(noised(picture, strength)) for strength in (0, 5, 10, 20, 40)]
    assert found == sorted(found)
    assert found[-1] > 8 * found[0]


def test_light_and_dark_are_no_unrest():
    grey = np.random.default_rng(0).integers(0, 200, (SIDE, SIDE, 1), np.uint8).repeat(3, axis=2)
    assert unrest(grey) == pytest.approx(ROUNDING)
    tinted = grey + np.array([40, 0, 10], np.uint8)
    assert unrest(tinted) == pytest.approx(ROUNDING)


def test_one_object_of_many_colours_is_no_unrest():
    picture = scene(5)
    coloured = picture.copy()
    coloured[20:44, 20:44] = noised(picture, 60)[20:44, 20:44]
    assert unrest(coloured) < 1.5 * unrest(picture) < 0.5 * unrest(noised(picture, 60))


def test_a_larger_print_of_a_picture_has_the_same_unrest():
    picture = noised(scene(2, 128), 20)
    assert unrest(picture.repeat(4, 0).repeat(4, 1)) == pytest.approx(unrest(picture))


def test_what_is_kept_is_told_from_twins_and_from_no_others():
    pictures, twins = [scene(6), scene(7)], [scene(6), scene(8)]
    found = describe(pictures, [scene(9)], twins)
    assert found.kept[0] == pytest.approx(1)
    assert found.kept[1] < 0.9
    assert describe(pictures, [scene(9)]).kept == ()
    flat = np.full((SIDE, SIDE, 3), 90, np.uint8)
    assert describe([flat], [], [flat.copy()]).kept == (1.0,)
    assert describe(pictures, [scene(9)], [coarse(twin) for twin in twins]) == found
    with pytest.raises(ValueError, match="2 pictures and 1 of the base model"):
        describe(pictures, [scene(9)], twins[:1])


def test_diversity_is_zero_for_one_picture_and_for_equal_ones():
    assert describe([scene(8)], []).diversity == describe([scene(8)] * 3, []).diversity == 0
    assert describe([scene(8), scene(9)], []).diversity > 0.02
    black, white = (np.full((SIDE, SIDE, 3), value, np.uint8) for value in (0, 255))
    assert describe([black, white], []).diversity == pytest.approx(1)


def test_no_pictures_have_no_numbers():
    assert describe([], [scene(0)]) == SampleStats(0, (), (), (), 0.0, (), (), 0)


@pytest.mark.parametrize(("shape", "dtype"), [((8, 8), np.uint8), ((8, 8, 4), np.uint8), ((8, 8, 3), np.float32)])
def test_what_is_no_picture_is_refused(shape, dtype):
    with pytest.raises(ValueError, match="height, width, 3"):
        describe([np.zeros(shape, dtype)], [])
    with pytest.raises(ValueError, match="2 x 2"):
        describe([np.zeros((1, 8, 3), np.uint8)], [])


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(2, 40), st.integers(2, 40), st.just(3))))
def test_any_picture_has_finite_numbers_in_their_ranges_that_outlive_json(picture):
    found = describe([picture, picture], [scene(0), picture.copy()])
    assert found.noise[0] >= 0.28
    assert np.isfinite(found.noise).all()
    assert 0 <= min(found.saturation) <= max(found.saturation) <= 1
    assert -1 <= min(found.likeness) <= max(found.likeness) <= 1
    assert found.diversity == 0
    assert min(found.contrast) >= 0
    assert typed(json.loads(json.dumps(asdict(found))), SampleStats, "kept") == found
