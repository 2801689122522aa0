import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbayes.posterior.gaussian import GaussianPosterior
from fewbayes.posterior.noise import WeightNoise, device_normal, normal
from fewbayes.seeds import digest, generator, stream_seed

COUNT = 2**18
CPU = torch.device("cpu")
TILE = 512


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() * b.double()).mean())


def from_the_cpu(step: int, name: str = "weight", seed: int = 0) -> torch.Tensor:
    return normal(seed, step, name, (COUNT,))


def from_a_device(step: int, name: str = "weight", seed: int = 0) -> torch.Tensor:
    """By way of other devices, whose generator here is the CPU's; names have no part in it."""
    return device_normal(seed, step, COUNT, CPU)


both = pytest.mark.parametrize("drawn", [from_the_cpu, from_a_device])


# the definition, in plain integers and in double precision


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011, Table 2 and section 4)."""
    c0, c1, c2, c3 = counter
    for turn in range(10):
        k0, k1 = key[0] + turn * 0x9E3779B97F4A7C15, key[1] + turn * 0xBB67AE8584CAA73B
        first, second = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = second >> 64 ^ c1 ^ k0 % 2**64, second % 2**64, first >> 64 ^ c3 ^ k1 % 2**64, first % 2**64
    return [c0, c1, c2, c3]


def defined(seed: int, step: int, name: str, tile: int) -> list[float]:
    """One tile of the noise, as the module's docstring defines it."""
    key = [int.from_bytes(digest(seed, "weights", size=16)[i : i + 8], "little") for i in (0, 8)]
    name_word = int.from_bytes(digest(name, size=8), "little")
    blocks = [philox([tile * 64 + block + 1, step, name_word, 0], key) for block in range(64)]
    words = np.array(blocks, dtype="<u8").view("<i4").ravel().tolist()
    polar = [
        (math.sqrt(-2 * math.log((abs(s) + 0.5) * 2**-31)), math.pi * 2**-31 * a)
        for s, a in zip(words[:256], words[256:], strict=True)
    ]
    return [r * math.cos(a) for r, a in polar] + [r * math.sin(a) for r, a in polar]


def test_the_generator_of_this_test_gives_the_published_words_of_philox_4x64_10():
    assert philox([0] * 4, [0, 0]) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**40), 2**70), st.integers(0, 2**63 - 1), st.text(), st.integers(0, 10**9))
def test_the_noise_is_the_defined_one_to_rounding(seed, step, name, tile):
    found = normal(seed, step, name, (TILE,), offset=tile * TILE)
    wanted = torch.tensor(defined(seed, step, name, tile), dtype=torch.float64)
    radius = wanted.view(2, -1).norm(dim=0).repeat(2)
    # the uniform number is rounded twice, by 2^-25 at most; near 1, where the radius is sqrt(2 (1 - u)), that is much
    assert ((found.double() - wanted).abs() <= 3e-6 + 2**-24 / radius).all()


def test_a_tile_with_a_tiny_radius_is_as_near_as_float32_can_be():
    test_the_noise_is_the_defined_one_to_rounding.hypothesis.inner_test(-510, 527, "\U0008aac8", 527)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200_000), st.integers(0, 2000))
def test_any_chunk_is_the_same_slice_of_the_whole(start, count):
    whole = normal(3, 5, "weight", (202_000,))
    assert torch.equal(normal(3, 5, "weight", (count,), offset=start), whole[start : start + count])


def test_the_definition_has_not_moved():
    torch.testing.assert_close(
        normal(0, 1, "weight", (3,)), torch.tensor([-0.200406, -0.293524, -0.947517]), atol=2e-6, rtol=0
    )


@both
@pytest.mark.parametrize("seed", [0, 1])
def test_moments_are_those_of_a_standard_normal(drawn, seed):
    noise = drawn(0, seed=seed).double()
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(float((noise**power).mean()) - mean) < 4.5 * math.sqrt(variance / COUNT)


@both
@pytest.mark.parametrize("seed", [0, 1])
def test_distribution_passes_kolmogorov_and_smirnov(drawn, seed):
    ordered = drawn(0, seed=seed).double().sort().values
    cdf = torch.special.ndtr(ordered)
    rank = torch.arange(COUNT + 1, dtype=torch.float64) / COUNT
    distance = float(torch.maximum((cdf - rank[:-1]).abs(), (rank[1:] - cdf).abs()).max())
    assert distance < 1.95 / math.sqrt(COUNT)  # one in a thousand


def test_tails_are_as_heavy_as_they_should_be():
    noise = normal(0, 0, "tails", (2**21,))
    expected = 2**21 * math.erfc(4 / math.sqrt(2))
    assert abs(int((noise.abs() > 4).sum()) - expected) < 5 * math.sqrt(expected)
    assert torch.isfinite(noise).all()


def test_two_weights_have_independent_noise():
    assert_independent(from_the_cpu(0), from_the_cpu(0, "bias"))


@both
@pytest.mark.parametrize("other", [{"seed": 1, "step": 0}, {"step": 1}, {"step": 2**40}])
def test_seed_and_step_each_give_independent_noise(drawn, other):
    assert_independent(drawn(0), drawn(**other))


def assert_independent(first: torch.Tensor, second: torch.Tensor) -> None:
    limit = 4.5 / math.sqrt(COUNT)
    assert abs(correlation(first, second)) < limit
    assert abs(correlation(first.square() - 1, second.square() - 1)) < 2 * limit


@pytest.mark.parametrize("lag", [1, 4, 8, 64, 256, 512])
def test_elements_are_independent_of_their_neighbours(lag):
    noise = normal(0, 0, "weight", (COUNT,))
    limit = 4.5 / math.sqrt(COUNT - lag)
    assert abs(correlation(noise[lag:], noise[:-lag])) < limit
    assert abs(correlation(noise[lag:].square() - 1, noise[:-lag].square() - 1)) < 2 * limit


def test_a_shape_changes_nothing_else():
    flat = normal(0, 0, "weight", (6,))
    assert torch.equal(normal(0, 0, "weight", (2, 3)), flat.view(2, 3))
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


def by_the_device(monkeypatch) -> None:
    """Weight noise as on a GPU, from the CPU's generator."""
    monkeypatch.setattr(WeightNoise, "_make", lambda self, step: device_normal(self.seed, step, self.count, CPU))


def test_draws_of_a_device_do_not_depend_on_the_order_of_steps(monkeypatch):
    by_the_device(monkeypatch)
    noise = WeightNoise(0, ["a", "b"], [700, 3], CPU)
    for step in (0, 1, 1, 2, 9, 3, 0):
        assert torch.equal(noise.draw(step), device_normal(0, step, 703, CPU))


def test_a_posterior_on_a_device_has_the_gradient_of_its_own_draw(monkeypatch):
    """loss = sum of the weights, so d loss / d weight_std is the noise."""
    by_the_device(monkeypatch)
    module = torch.nn.Linear(3, 2)
    posterior = GaussianPosterior(module, where="all", weight_std=0.1)
    before = torch.cat([weight.detach().reshape(-1) for weight in module.parameters()])
    with posterior.sample(5):
        drawn = torch.cat([weight.detach().reshape(-1) for weight in module.parameters()])
        torch.stack([weight.sum() for weight in module.parameters()]).sum().backward()
    eps = device_normal(0, 5, 8, CPU)
    torch.testing.assert_close(drawn, before + 0.1 * eps)
    [deviations] = posterior.std_parameters()
    torch.testing.assert_close(deviations.grad, eps)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_repeats_its_draws():
    device = torch.device("cuda", torch.cuda.current_device())
    first, second = (WeightNoise(0, ["a"], [2**24], device) for _ in range(2))
    kept = first.draw(3).clone()
    torch.cuda.manual_seed(1)  # the device's usual generator has no part in it
    second.draw(4)
    assert torch.equal(second.draw(3), kept)
    assert not torch.equal(second.draw(4), kept)
    assert abs(float(kept.double().mean())) < 4.5 / math.sqrt(kept.numel())


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
