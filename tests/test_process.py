"""Processes: their conversions undo one another, Ddpm is that of diffusers, and times compare by noise to signal."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling

from fewbayes.diffusion.process import (
    BETA_SCHEDULES,
    PREDICTIONS,
    Ddpm,
    Flow,
    TrainingTimes,
    alpha_bar_of,
    betas,
    level_of_step,
)

STEPS = 1000
ALPHA_BARS = alpha_bar_of(betas())
PROCESSES = {prediction: Ddpm(ALPHA_BARS, prediction) for prediction in PREDICTIONS} | {"flow": Flow()}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
LEVELS = (0.03, 0.2, 1.0, 5.0, 14.0)


@pytest.fixture
def drawn():
    return torch.randn(2, 5, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", BETA_SCHEDULES)
def test_alpha_bar_is_that_of_diffusers(kind):
    theirs = DDPMScheduler(STEPS, 0.00085, 0.012, kind).alphas_cumprod
    ours = alpha_bar_of(betas(kind, 0.00085, 0.012, STEPS))
    exact = kind != "squaredcos_cap_v2"
    torch.testing.assert_close(ours, theirs, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-7)


def test_alpha_bar_falls_from_nearly_one_to_nearly_zero():
    assert ALPHA_BARS.shape == (STEPS,)
    assert bool((ALPHA_BARS.diff() < 0).all())
    assert 0.999 < ALPHA_BARS[0] < 1
    assert 0 < ALPHA_BARS[-1] < 0.005


def test_zero_terminal_snr_leaves_no_signal_at_the_end():
    ours = alpha_bar_of(betas(), zero_terminal_snr=True)
    theirs = DDPMScheduler(STEPS, 0.00085, 0.012, "scaled_linear", rescale_betas_zero_snr=True).alphas_cumprod
    assert ours[-1] == 0
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=1e-3, atol=1e-6)


def test_noise_is_added_and_velocities_are_as_in_diffusers(drawn):
    x0, eps = drawn.float()
    t, theirs = torch.tensor([0, 1, 300, 700, 999]), DDPMScheduler(STEPS, 0.00085, 0.012, "scaled_linear")
    torch.testing.assert_close(PROCESSES["epsilon"].noised(x0, eps, t), theirs.add_noise(x0, eps, t))
    torch.testing.assert_close(PROCESSES["v_prediction"].target(x0, eps, t), theirs.get_velocity(x0, eps, t))


def test_what_the_network_is_trained_for_is_the_noise_the_picture_or_the_velocity(drawn):
    x0, eps = drawn
    t = torch.tensor([0, 1, 300, 700, 999])
    assert torch.equal(PROCESSES["epsilon"].target(x0, eps, t), eps)
    assert torch.equal(PROCESSES["sample"].target(x0, eps, t), x0)
    assert torch.equal(PROCESSES["flow"].target(x0, eps, t / STEPS), eps - x0)


@every_process
def test_a_perfect_output_stands_for_the_true_x0_and_eps(process, drawn):
    x0, eps = drawn
    t = process.times([process.time_of(level) for level in LEVELS])
    xt, output = process.noised(x0, eps, t), process.target(x0, eps, t)
    torch.testing.assert_close(process.x0(output, xt, t), x0)
    torch.testing.assert_close(process.eps(output, xt, t), eps)
    torch.testing.assert_close(process.eps_of_x0(x0, xt, t), eps)


@every_process
def test_over_its_scale_every_path_is_variance_preserving(process, drawn):
    """x_t / sqrt(a^2 + b^2) = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps, to the last bits of double precision."""
    x0, eps = drawn
    t = process.times([process.time_of(level) for level in LEVELS])
    left = process.alpha_bar(t).view(-1, 1, 1, 1)
    preserving = left.sqrt() * x0 + (1 - left).sqrt() * eps
    ours = process.noised(x0, eps, t) / process.scale(t).view(-1, 1, 1, 1)
    torch.testing.assert_close(ours, preserving, rtol=0, atol=1e-14)
    ratio = process.noise_to_signal(t)
    torch.testing.assert_close(process.alpha_bar(t), 1 / (1 + ratio**2))


@every_process
def test_the_time_of_a_ratio_is_the_nearest_one(process):
    for level in LEVELS:
        t = process.time_of(level)
        found = process.noise_to_signal(process.times([t]))
        assert float(found) == pytest.approx(level, rel=0.05)
        assert process.time_of(float(found)) == pytest.approx(t)
    assert process.time_of(math.inf) >= process.time_of(1e6) > process.time_of(1.0) > process.time_of(1e-6)


@pytest.mark.parametrize("step", [0, 1, 50, 100, 200, 400, 600, 998, 999])
def test_a_timestep_of_stable_diffusion_is_found_again_by_its_ratio(step):
    assert PROCESSES["epsilon"].time_of(level_of_step(step)) == step


def test_the_noisiest_time_has_some_signal():
    assert PROCESSES["epsilon"].time_of(math.inf) == 999
    assert Ddpm(alpha_bar_of(betas(), zero_terminal_snr=True)).time_of(math.inf) == 998


@pytest.mark.parametrize("level", [0.0, -1.0, math.nan])
def test_a_ratio_that_means_nothing_is_refused(level):
    with pytest.raises(ValueError, match="noise-to-signal"):
        PROCESSES["epsilon"].time_of(level)


@pytest.mark.parametrize("t", [-1, 1000, 0.5])
def test_a_time_that_a_schedule_has_not_is_refused(t):
    with pytest.raises(ValueError, match=f"timestep {t}"):
        PROCESSES["epsilon"].times([t])


@every_process
def test_training_times_are_a_function_of_the_generator(process):
    first, again = (process.draw_times(1000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert process.alpha_bar(first).isfinite().all()
    assert len(first.unique()) > 500


def test_training_times_of_a_schedule_are_uniform_integers():
    drawn = torch.randint(STEPS, (8,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(PROCESSES["epsilon"].draw_times(8, torch.Generator().manual_seed(3)), drawn)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="scaled_linear"):
        betas("sigmoid")
    with pytest.raises(ValueError, match="v_prediction"):
        Ddpm(ALPHA_BARS, "flow")


def test_min_snr_is_refused_where_it_is_not_meant():
    with pytest.raises(ValueError, match="min-SNR"):
        PROCESSES["flow"].min_snr_weight(torch.tensor([0.5]), 5.0)


SCRIPTS = {
    "sd3": (TrainingTimes("logit_normal", shift=3.0), {"weighting_scheme": "logit_normal", "logit_mean": 0.0}, 3.0),
    "mode": (TrainingTimes("mode", scale=0.8), {"weighting_scheme": "mode", "mode_scale": 0.8}, 1.0),
    "none": (TrainingTimes(), {"weighting_scheme": "none"}, 1.0),
}


@pytest.mark.parametrize(("ours", "density", "shift"), SCRIPTS.values(), ids=SCRIPTS)
def test_training_times_of_a_flow_are_those_of_the_diffusers_scripts(ours, density, shift):
    u = compute_density_for_timestep_sampling(
        batch_size=4000, logit_std=1.0, generator=torch.Generator().manual_seed(7), **density
    )
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    assert torch.equal(ours.draw(4000, torch.Generator().manual_seed(7)), theirs.sigmas[(u * 1000).long()])


def test_training_times_may_be_cut_to_a_range_and_prefer_its_ends_or_its_middle():
    def drawn(**times):
        return TrainingTimes(steps=None, **times).draw(20_000, torch.Generator().manual_seed(0))

    for shift in (1.0, 3.0):
        cut = drawn(shift=shift, low=0.2, high=0.6)
        assert 0.2 <= cut.min() < 0.201
        assert 0.599 < cut.max() <= 0.6 + 1e-6
    ends, even, middle = (drawn(density="mode", scale=scale).sub(0.5).abs().mean() for scale in (-1.0, 0.0, 1.7))
    assert ends > even + 0.02 > middle + 0.04
    assert drawn(shift=3.0).median() == pytest.approx(0.75, abs=0.01)
    for wrong in ({"density": "normal"}, {"shift": 0.0}, {"low": 0.6, "high": 0.2}, {"density": "mode", "scale": 3.0}):
        with pytest.raises(ValueError, match=r"known|greater than 0|from"):
            TrainingTimes(**wrong)


def test_training_times_are_read_from_words_and_are_for_flows_alone():
    own = TrainingTimes("logit_normal", shift=3.0, steps=500)
    assert Flow(own).drawing(None, None).training == own
    assert Flow(own).drawing("mode:-0.8", None).training == TrainingTimes("mode", scale=-0.8, shift=3.0, steps=500)
    asked = Flow(own).drawing("logit_normal:0.5,2", 1.0).training
    assert asked == TrainingTimes("logit_normal", mean=0.5, std=2.0, shift=1.0, steps=500)
    for wrong in ("normal", "mode:3", "uniform:1", "logit_normal:0.5", "mode:x"):
        with pytest.raises(ValueError, match=r"training_times is .*; it must be uniform"):
            Flow().drawing(wrong, None)
    with pytest.raises(ValueError, match="for flow models"):
        Ddpm(torch.tensor([0.9, 0.5])).drawing("uniform", None)
