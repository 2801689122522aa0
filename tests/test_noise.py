import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbayes.posterior.noise import WeightNoise, _philox, generator, normal, reference_normal, stream_seed

COUNT = 2**18


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() * b.double()).mean())


def test_the_integer_generator_gives_the_published_words_of_philox_4x64_10():
    zero = torch.zeros(1, dtype=torch.int64)
    words = [int(word) % 2**64 for word in _philox([zero] * 4, (0, 0))]
    assert words == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**63), st.integers(0, 2**64 - 1))
def test_the_integer_generator_agrees_with_numpy(key0, key1, block, name_word):
    numpy_words = np.random.Philox(
        key=np.array([key0, key1], dtype=np.uint64), counter=np.array([block, 7, name_word, 0], dtype=np.uint64)
    ).random_raw(4)
    signed = [value - 2**64 if value >= 2**63 else value for value in (block + 1, 7, name_word, 0)]
    words = _philox([torch.tensor([value]) for value in signed], (key0, key1))
    assert [int(word) % 2**64 for word in words] == numpy_words.tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**40), 2**70), st.integers(0, 2**63 - 1), st.text(), st.integers(0, 10**12), st.integers(0, 3000))
def test_fast_noise_is_the_reference_noise_to_rounding(seed, step, name, offset, count):
    fast = normal(seed, step, name, (count,), offset=offset)
    torch.testing.assert_close(fast, reference_normal(seed, step, name, (count,), offset=offset), atol=3e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200_000), st.integers(0, 2000))
def test_any_chunk_is_the_same_slice_of_the_whole(start, count):
    whole = normal(3, 5, "weight", (202_000,))
    assert torch.equal(normal(3, 5, "weight", (count,), offset=start), whole[start : start + count])


def test_the_definition_has_not_moved():
    torch.testing.assert_close(
        normal(0, 1, "weight", (3,)), torch.tensor([-0.200406, -0.293524, -0.947517]), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_moments_are_those_of_a_standard_normal(seed):
    noise = normal(seed, 0, "weight", (COUNT,)).double()
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(float((noise**power).mean()) - mean) < 4.5 * math.sqrt(variance / COUNT)


@pytest.mark.parametrize("seed", [0, 1])
def test_distribution_passes_kolmogorov_and_smirnov(seed):
    ordered = normal(seed, 0, "weight", (COUNT,)).double().sort().values
    cdf = torch.special.ndtr(ordered)
    rank = torch.arange(COUNT + 1, dtype=torch.float64) / COUNT
    distance = float(torch.maximum((cdf - rank[:-1]).abs(), (rank[1:] - cdf).abs()).max())
    assert distance < 1.95 / math.sqrt(COUNT)  # one in a thousand


def test_tails_are_as_heavy_as_they_should_be():
    noise = normal(0, 0, "tails", (2**21,))
    expected = 2**21 * math.erfc(4 / math.sqrt(2))
    assert abs(int((noise.abs() > 4).sum()) - expected) < 5 * math.sqrt(expected)
    assert torch.isfinite(noise).all()


@pytest.mark.parametrize("other", [(1, 0, "weight"), (0, 1, "weight"), (0, 0, "bias"), (0, 2**40, "weight")])
def test_seed_step_and_name_each_give_independent_noise(other):
    first, second = normal(0, 0, "weight", (COUNT,)), normal(*other, (COUNT,))
    limit = 4.5 / math.sqrt(COUNT)
    assert abs(correlation(first, second)) < limit
    assert abs(correlation(first.square() - 1, second.square() - 1)) < 2 * limit


@pytest.mark.parametrize("lag", [1, 4, 8, 64, 256, 512])
def test_elements_are_independent_of_their_neighbours(lag):
    noise = normal(0, 0, "weight", (COUNT,))
    limit = 4.5 / math.sqrt(COUNT - lag)
    assert abs(correlation(noise[lag:], noise[:-lag])) < limit
    assert abs(correlation(noise[lag:].square() - 1, noise[:-lag].square() - 1)) < 2 * limit


def test_dtype_and_shape_change_nothing_else():
    flat = normal(0, 0, "weight", (6,))
    assert torch.equal(normal(0, 0, "weight", (2, 3)), flat.view(2, 3))
    assert torch.equal(normal(0, 0, "weight", (6,), dtype=torch.bfloat16), flat.bfloat16())
    assert normal(0, 0, "weight", ()).shape == ()


@pytest.mark.parametrize("place", [{"step": -1}, {"step": 2**63}, {"offset": -1}])
def test_places_outside_the_counter_are_refused(place):
    with pytest.raises(ValueError, match=r"must"):
        normal(0, place.get("step", 0), "weight", (1,), offset=place.get("offset", 0))


def test_draws_of_many_weights_do_not_depend_on_the_order_of_steps():
    sizes = {"a": 700, "b": 3, "c": 70_000}
    noise = WeightNoise(0, list(sizes), list(sizes.values()), torch.device("cpu"))
    for step in (0, 1, 1, 2, 9, 3, 0):
        expected = torch.cat([normal(0, step, name, (size,)) for name, size in sizes.items()])
        assert torch.equal(noise.draw(step), expected)


def test_stream_seeds_are_63_bit_and_differ():
    seeds = [
        stream_seed(seed, name, *index)
        for seed in (0, 1, -1)
        for name in ("order", "noise")
        for index in ((), (0,), (1,), (1, 0), (10,))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_parts_of_a_stream_do_not_run_together():
    assert stream_seed(1, "a", 12, 3) != stream_seed(1, "a", 1, 23)
    assert stream_seed(11, "a", 2) != stream_seed(1, "1a", 2)


def test_a_generator_repeats_its_stream():
    first, second = (torch.randn(5, generator=generator(4, "noise", 2)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.randn(5, generator=generator(4, "noise", 3)))
