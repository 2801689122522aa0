"""Averages follow the weights with a warm-up, and looking at the model through them changes nothing."""

import pytest
import torch
from torch import nn

from fewbayes.training.ema import WeightAverage


@pytest.fixture
def weights():
    return {"a": nn.Parameter(torch.tensor([1.0, 2.0])), "b": nn.Parameter(torch.tensor([[3.0]]))}


def held(average: WeightAverage) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in average.state_dict().items()}


def test_weights_that_stand_still_are_their_own_average(weights):
    average = WeightAverage(weights)
    for _ in range(20):
        average.update()
    assert torch.equal(held(average)["a"], weights["a"].detach())


def test_the_decay_warms_up_from_a_tenth_to_its_limit(weights):
    average = WeightAverage(weights, decay=0.5)
    decays = []
    for _ in range(20):
        decays.append(average.decay_now())
        average.update()
    assert decays[:3] == [1 / 10, 2 / 11, 3 / 12]
    assert decays == sorted(decays)
    assert decays[-1] == 0.5


def test_until_it_is_warm_the_decay_plays_no_part_and_the_mean_age_is_a_tenth_of_the_run(weights):
    short, long = (WeightAverage(weights, decay=decay) for decay in (0.98, 0.99))
    shares: list[float] = []
    for _ in range(440):
        assert short.decay_now() == long.decay_now()
        shares = [share * short.decay_now() for share in shares] + [1 - short.decay_now()]
        short.updates, long.updates = short.updates + 1, long.updates + 1
    long.updates += 1
    assert short.decay_now() == 0.98 < long.decay_now()
    assert sum(share * age for age, share in enumerate(reversed(shares))) == pytest.approx(44, abs=0.5)


def test_one_update_is_the_formula(weights):
    average = WeightAverage(weights)
    before = weights["a"].detach().clone()
    weights["a"].data.add_(1)
    average.update()
    torch.testing.assert_close(held(average)["a"], 0.1 * before + 0.9 * (before + 1))


def test_decay_zero_keeps_the_latest_weights(weights):
    average = WeightAverage(weights, decay=0)
    for _ in range(3):
        weights["a"].data.mul_(1.7)
        average.update()
    assert torch.equal(held(average)["a"], weights["a"].detach())


def test_swapping_in_the_averages_and_back_leaves_every_bit(weights):
    average = WeightAverage(weights)
    weights["a"].data.add_(0.1)
    own, averages = weights["a"].detach().clone(), held(average)["a"]
    seen = []

    def look():
        with average.swapped():
            seen.append(weights["a"].detach().clone())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        look()
    assert torch.equal(seen[0], averages)
    assert torch.equal(weights["a"].detach(), own)
    assert torch.equal(held(average)["a"], averages)


def test_a_loaded_average_goes_on_as_the_saved_one(weights):
    average = WeightAverage(weights)
    weights["a"].data.add_(1)
    average.update()
    saved = held(average)
    other = WeightAverage(weights)
    other.load_state_dict(saved)
    weights["b"].data.add_(1)
    average.update()
    other.update()
    assert all(torch.equal(held(average)[name], held(other)[name]) for name in saved)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_decay_is_refused(weights, decay):
    with pytest.raises(ValueError, match="ema_decay"):
        WeightAverage(weights, decay)
