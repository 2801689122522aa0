"""The schedule's conversions undo one another and agree with diffusers."""

import pytest
import torch
from diffusers import DDPMScheduler

from fewbayes.diffusion import process as schedule

T = 1000


@pytest.fixture
def drawn():
    x0, eps = torch.randn(2, 5, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x0, eps, torch.tensor([0, 1, 300, 700, 999])


@pytest.fixture
def alpha_bar():
    return schedule.alpha_bar_of(schedule.betas())


@pytest.mark.parametrize("kind", schedule.BETA_SCHEDULES)
def test_alpha_bar_is_that_of_diffusers(kind):
    theirs = DDPMScheduler(T, 0.00085, 0.012, kind).alphas_cumprod
    ours = schedule.alpha_bar_of(schedule.betas(kind, 0.00085, 0.012, T))
    exact = kind != "squaredcos_cap_v2"
    torch.testing.assert_close(ours, theirs, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-7)


def test_alpha_bar_falls_from_nearly_one_to_nearly_zero(alpha_bar):
    assert alpha_bar.shape == (T,)
    assert bool((alpha_bar.diff() < 0).all())
    assert 0.999 < alpha_bar[0] < 1
    assert 0 < alpha_bar[-1] < 0.005


def test_zero_terminal_snr_leaves_no_signal_at_the_end():
    ours = schedule.alpha_bar_of(schedule.betas(), zero_terminal_snr=True)
    theirs = DDPMScheduler(T, 0.00085, 0.012, "scaled_linear", rescale_betas_zero_snr=True).alphas_cumprod
    assert ours[-1] == 0
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=1e-3, atol=1e-6)


def test_noise_is_added_as_diffusers_adds_it(drawn, alpha_bar):
    x0, eps, t = (value.float() if value.is_floating_point() else value for value in drawn)
    theirs = DDPMScheduler(T, 0.00085, 0.012, "scaled_linear")
    torch.testing.assert_close(schedule.add_noise(x0, eps, t, alpha_bar), theirs.add_noise(x0, eps, t))
    torch.testing.assert_close(schedule.v_from_x0_eps(x0, eps, t, alpha_bar), theirs.get_velocity(x0, eps, t))


@pytest.mark.parametrize("prediction", schedule.PREDICTIONS)
def test_a_perfect_output_stands_for_the_true_x0_and_eps(prediction, drawn, alpha_bar):
    x0, eps, t = drawn
    xt = schedule.add_noise(x0, eps, t, alpha_bar)
    output = schedule.loss_target(prediction, x0, eps, t, alpha_bar)
    torch.testing.assert_close(schedule.to_x0(prediction, output, xt, t, alpha_bar), x0)
    torch.testing.assert_close(schedule.to_eps(prediction, output, xt, t, alpha_bar), eps)


def test_x0_and_eps_conversions_undo_one_another(drawn, alpha_bar):
    xt, other, t = drawn
    torch.testing.assert_close(
        schedule.eps_from_x0(xt, schedule.x0_from_eps(xt, other, t, alpha_bar), t, alpha_bar), other
    )


def test_an_unknown_name_is_refused_with_the_known_ones(drawn, alpha_bar):
    with pytest.raises(ValueError, match="scaled_linear"):
        schedule.betas("sigmoid")
    x0, eps, t = drawn
    with pytest.raises(ValueError, match="v_prediction"):
        schedule.loss_target("flow", x0, eps, t, alpha_bar)
