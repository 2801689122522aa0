"""Sound scores against plain loops written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbayes.metrics import scores

seeds = st.integers(0, 2**32 - 1)


def features(seed: int, count: int, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(float(x) ** 2 for x in a)) / math.sqrt(sum(float(y) ** 2 for y in b))


def distance_table(seed: int, count: int) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).random((count, count)), 1)
    return upper + upper.T


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 6))
def test_clip_t_is_the_cosine_of_a_picture_with_its_own_prompt(seed, count):
    images, texts = features(seed, count), features(seed + 1, count)
    expected = [cosine(image, text) for image, text in zip(images, texts, strict=True)]
    assert scores.prompt_scores(images, texts) == pytest.approx(expected, abs=1e-9)


def test_clip_t_keeps_its_sign_and_is_not_scaled():
    assert scores.prompt_scores(np.array([[1.0, 0]]), np.array([[-2.0, 0]])) == pytest.approx([-1])


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 6), st.integers(1, 5))
def test_fidelity_is_the_mean_over_all_pairs_and_the_mean_of_the_nearest(seed, many, few):
    samples, references = features(seed, many), features(seed + 1, few)
    table = [[cosine(sample, reference) for reference in references] for sample in samples]
    found = scores.fidelity(samples, references)
    assert found.mean == pytest.approx(sum(map(sum, table)) / (many * few), abs=1e-9)
    assert found.nearest == pytest.approx(sum(map(max, table)) / many, abs=1e-9)
    assert found.pairs == many * few
    assert list(found.nearest_reference) == [row.index(max(row)) for row in table]


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 6))
def test_the_ceiling_counts_every_pair_of_references_once_and_none_with_itself(seed, count):
    references = features(seed, count)
    pairs = [cosine(references[i], references[j]) for i in range(count) for j in range(i + 1, count)]
    others = [max(cosine(a, b) for j, b in enumerate(references) if j != i) for i, a in enumerate(references)]
    found = scores.real_fidelity(references)
    assert found.mean == pytest.approx(np.mean(pairs), abs=1e-9)
    assert found.nearest == pytest.approx(np.mean(others), abs=1e-9)
    assert found.pairs == count * (count - 1) // 2


@settings(max_examples=20, deadline=None)
@given(seeds, st.lists(st.integers(1, 5), min_size=1, max_size=4).filter(lambda counts: max(counts) > 1))
def test_diversity_is_the_mean_over_prompts_of_the_mean_over_pairs(seed, counts):
    groups = [distance_table(seed + i, count) for i, count in enumerate(counts)]
    means, pairs = [], 0
    for group in groups:
        values = [group[i, j] for i in range(len(group)) for j in range(i + 1, len(group))]
        pairs += len(values)
        if values:
            means.append(sum(values) / len(values))
    assert scores.diversity(groups) == scores.Mean(pytest.approx(np.mean(means), abs=1e-12), pairs)


def test_equal_pictures_have_no_diversity_and_are_not_left_out():
    assert scores.diversity([np.zeros((4, 4))]) == scores.Mean(0, 6)


def test_one_collapsed_prompt_lowers_diversity_by_its_share():
    assert scores.diversity([np.zeros((4, 4)), 1 - np.eye(4)]).value == 0.5


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(1, 100))
def test_quality_is_the_softmax_over_the_two_antonyms(seed, scale):
    image, anchors = features(seed, 1), features(seed + 1, 2)
    good, bad = (math.exp(scale * cosine(image[0], anchor)) for anchor in anchors)
    assert scores.quality(image, anchors, scale) == pytest.approx([good / (good + bad)], abs=1e-9)


def test_quality_of_strong_features_stays_finite():
    with np.errstate(over="raise"):
        assert scores.quality(np.array([[1.0, 0]]), np.array([[1.0, 0], [-1, 0]]), 100) == pytest.approx([1])


def test_vendi_counts_different_pictures():
    assert scores.vendi(np.eye(4)) == pytest.approx(4)
    assert scores.vendi(np.ones((4, 3))) == pytest.approx(1)
    assert scores.vendi(np.repeat(np.eye(3), 5, axis=0)) == pytest.approx(3)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 6))
def test_vendi_is_the_exponential_of_the_entropy_of_the_eigenvalues(seed, count):
    rows = features(seed, count, 4)
    kernel = np.array([[cosine(a, b) for b in rows] for a in rows]) / count
    values = [value for value in np.linalg.eigvals(kernel).real if value > 1e-9]
    assert scores.vendi(rows) == pytest.approx(math.exp(-sum(v * math.log(v) for v in values)), rel=1e-6)


def test_the_effective_number_within_prompts_leaves_out_single_pictures():
    assert scores.group_vendi([np.eye(2), np.ones((3, 2)), np.eye(1)]) == scores.Mean(pytest.approx(1.5), 2)


def test_noise_of_the_base_model_itself_has_the_ratio_1():
    levels = np.array([0.0, 2.0, 4.0])
    assert scores.noise_ratio(levels, levels) == 1
    assert scores.noise_ratio(3 * levels, levels) == pytest.approx(3)


def test_unchanged_pictures_have_not_drifted():
    before = features(0, 3)
    assert scores.drift(before, before) == pytest.approx([0, 0, 0], abs=1e-12)
    assert scores.drift(-before, before) == pytest.approx([2, 2, 2])


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a <v> backpack in the jungle", "a backpack in the jungle"),
        ("a photo of a <v> umbrella", "a photo of an umbrella"),
        ("an <v> backpack", "a backpack"),
        ("A <v> dog, and a cat", "A dog, and a cat"),
        ("a photo of <v>, on a rug", "a photo of, on a rug"),
        ("a backpack", "a backpack"),
    ],
)
def test_prompts_without_the_rare_token_read_as_people_write_them(prompt, plain):
    assert scores.without_token(prompt, "<v>") == plain


def test_a_word_that_contains_the_rare_token_is_kept():
    assert scores.without_token("a sks dog with sksy fur", "sks") == "a dog with sksy fur"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.fidelity(features(0, 2), features(0, 2)[:0]), "2 samples and 0 references"),
        (lambda: scores.real_fidelity(features(0, 1)), "it takes two"),
        (lambda: scores.diversity([np.zeros((1, 1))]), "no prompt has two"),
        (lambda: scores.group_vendi([np.eye(1)]), "no prompt has two"),
        (lambda: scores.noise_ratio(np.ones(2), np.zeros(2)), "no noise to compare"),
    ],
)
def test_what_has_no_value_says_why(call, message):
    with pytest.raises(scores.Unavailable, match=message):
        call()


def test_shapes_that_do_not_agree_are_a_mistake_and_no_missing_value():
    with pytest.raises(ValueError, match="2 pictures and 3 prompts"):
        scores.prompt_scores(features(0, 2), features(0, 3))
    assert not issubclass(scores.Unavailable, ValueError)
