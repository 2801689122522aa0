"""The loss is the mean squared error of what the network is asked for, with or without class images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.objective import Batch, denoising_errors, diffusion_loss, min_snr_weight, preserved_loss
from fewbayes.diffusion.process import PREDICTIONS, add_noise, alpha_bar_of, betas, loss_target, to_x0
from fewbayes.models import load_family
from fewbayes.training.batches import Pictures, draw


def a_batch(seed: int, size: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, size, 4, 8, 8, generator=generator)
    t = torch.randint(1000, (size,), generator=generator)
    return Batch(x0, eps, t, Conditioning(torch.randn(size, 16, 16, generator=generator)))


class Knows:
    """Predicts perfectly but for a constant error."""

    alpha_bar = alpha_bar_of(betas())

    def __init__(self, prediction_type: str, batch: Batch, error: float):
        self.prediction_type, self.batch, self.error = prediction_type, batch, error

    def predict(self, xt, t, cond):
        b = self.batch
        assert torch.equal(xt, add_noise(b.x0, b.eps, b.t, self.alpha_bar))
        return loss_target(self.prediction_type, b.x0, b.eps, b.t, self.alpha_bar) + self.error


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("error", [0.0, 0.5])
def test_the_loss_is_the_squared_error_of_the_prediction(prediction, error):
    batch = a_batch(0)
    torch.testing.assert_close(diffusion_loss(Knows(prediction, batch, error), batch), torch.tensor(error**2))


def test_the_v_prediction_loss_is_that_of_the_diffusers_script(v_model):
    family, batch = load_family(str(v_model)), a_batch(1)
    scheduler = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", prediction_type="v_prediction")
    with torch.no_grad():
        xt = scheduler.add_noise(batch.x0, batch.eps, batch.t)
        output = family.denoiser(xt, batch.t, batch.cond.tokens).sample
        expected = F.mse_loss(output, scheduler.get_velocity(batch.x0, batch.eps, batch.t))
        assert family.prediction_type == "v_prediction"
        torch.testing.assert_close(diffusion_loss(family, batch), expected)


def test_prior_preservation_adds_the_weighted_loss_on_class_images(family):
    instance, prior = a_batch(2), a_batch(3)
    with torch.no_grad():
        apart = diffusion_loss(family, instance), diffusion_loss(family, prior)
        for weight in (0.0, 0.5, 2.0):
            torch.testing.assert_close(
                preserved_loss(family, instance, prior, weight), apart[0] + weight * apart[1], rtol=1e-5, atol=1e-6
            )


def test_each_example_has_its_own_error(family):
    batch = a_batch(4, size=3)
    with torch.no_grad():
        errors = denoising_errors(family, batch)
        alone = diffusion_loss(family, Batch(batch.x0[1:2], batch.eps[1:2], batch.t[1:2], batch.cond[1:2]))
    assert errors.shape == (3,)
    torch.testing.assert_close(errors[1], alone, rtol=1e-5, atol=1e-6)


# --- min-SNR ----------------------------------------------------------------------------------------------------------

ALPHA_BAR = alpha_bar_of(betas())
SNR = ALPHA_BAR / (1 - ALPHA_BAR)
T = torch.arange(1000)


def test_min_snr_weighs_the_error_of_x0_by_the_smaller_of_snr_and_gamma():
    """Whatever is predicted: an error of x0 of the same size counts the same."""
    for prediction in PREDICTIONS:
        x0, eps, error = torch.randn(3, 1000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        alpha_bar = ALPHA_BAR.double()
        xt = add_noise(x0, eps, T, alpha_bar)
        wrong = loss_target(prediction, x0, eps, T, alpha_bar) + error
        by_x0 = (to_x0(prediction, wrong, xt, T, alpha_bar) - x0).square().flatten()
        weight = min_snr_weight(prediction, T, alpha_bar, 5.0)
        torch.testing.assert_close(
            weight * error.square().flatten(), SNR.double().clamp(max=5.0) * by_x0, rtol=1e-5, atol=0
        )


def test_min_snr_weights_are_those_of_the_paper():
    torch.testing.assert_close(min_snr_weight("epsilon", T, ALPHA_BAR, 5.0), SNR.clamp(max=5.0) / SNR)
    torch.testing.assert_close(min_snr_weight("v_prediction", T, ALPHA_BAR, 5.0), SNR.clamp(max=5.0) / (SNR + 1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weights_are_finite_where_no_signal_is_left(prediction):
    weight = min_snr_weight(prediction, T, alpha_bar_of(betas(), zero_terminal_snr=True), 5.0)
    assert weight.isfinite().all()
    assert (weight >= 0).all()


def test_a_large_gamma_is_no_weighting_of_eps(family):
    batch = a_batch(5)
    with torch.no_grad():
        assert torch.equal(diffusion_loss(family, batch, snr_gamma=1e9), diffusion_loss(family, batch))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("size", [1, 3])
def test_each_half_of_prior_preservation_is_weighted_by_its_own_timesteps(prediction, size):
    instance, prior = (replace(a_batch(6, size), t=torch.full((size,), t)) for t in (50, 800))
    knows = Knows(prediction, instance.joined(prior), error=1.0)
    own = [min_snr_weight(prediction, batch.t, ALPHA_BAR, 5.0).mean() for batch in (instance, prior)]
    loss = preserved_loss(knows, instance, prior, 0.5, snr_gamma=5.0)
    torch.testing.assert_close(loss, own[0] + 0.5 * own[1])
    of_both = min_snr_weight(prediction, torch.cat([instance.t, prior.t]), ALPHA_BAR, 5.0).mean()
    assert not torch.isclose(loss, of_both + 0.5 * own[1], rtol=1e-3)  # what broadcasting gives in the public scripts


def test_a_gamma_that_is_not_positive_is_refused(family):
    with pytest.raises(ValueError, match="snr_gamma"):
        diffusion_loss(family, a_batch(8), snr_gamma=0.0)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_noise_offset_adds_one_normal_number_per_channel_and_changes_nothing_else():
    drawn = [draw(0, 3, 64, 5, (4, 8, 8), 1000, noise_offset=offset) for offset in (0.0, 0.1, 0.2)]
    shift = drawn[1].eps - drawn[0].eps
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), atol=1e-6, rtol=0)
    torch.testing.assert_close(drawn[2].eps - drawn[0].eps, 2 * shift, atol=1e-6, rtol=0)
    assert abs(float(shift[..., 0, 0].std()) - 0.1) < 0.02
    assert all(drawn[0].indices == other.indices for other in drawn)
    for name in ("t", "latent_eps", "crop"):
        assert all(torch.equal(getattr(drawn[0], name), getattr(other, name)) for other in drawn)


def test_prompts_that_are_kept_are_those_encoded_anew(family):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    prompts = ["a photo of a dog", "a photo", "a photo of a dog"]
    kept, anew = (Pictures(family, pixels, prompts, side=32, keep_prompts=keep) for keep in (True, False))
    drawn = kept.draw(0, 0, 6)
    with torch.no_grad():
        first, second = (pictures.batch(drawn, slice(1, 5)) for pictures in (kept, anew))
    torch.testing.assert_close(first.cond.tokens, second.cond.tokens)
    assert torch.equal(first.x0, second.x0)


def test_conditioning_keeps_its_rows_together():
    cond = Conditioning(torch.arange(6.0).view(3, 2, 1), torch.arange(3.0).view(3, 1))
    assert cond[[2, 2, 0]].pooled.flatten().tolist() == [2, 2, 0]
    assert cond[[2, 0]].tokens[:, 0, 0].tolist() == [4, 0]
    assert len(cond.joined(cond[:1])) == 4
    with pytest.raises(TypeError, match="rows"):
        cond[0]
