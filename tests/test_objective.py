"""The loss is the mean squared error of what the network is asked for, with or without class images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.objective import Batch, denoising_errors, diffusion_loss, preserved_loss
from fewbayes.diffusion.process import PREDICTIONS, Ddpm, Flow, Process, alpha_bar_of, betas
from fewbayes.models import load_family
from fewbayes.training.batches import Pictures, draw


def a_batch(seed: int, size: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, size, 4, 8, 8, generator=generator)
    t = torch.randint(1000, (size,), generator=generator)
    return Batch(x0, eps, t, Conditioning(tokens=torch.randn(size, 16, 16, generator=generator)))


def ddpm(prediction: str) -> Ddpm:
    return Ddpm(alpha_bar_of(betas()), prediction)


class Knows:
    """Predicts perfectly but for a constant error."""

    def __init__(self, process: Process, batch: Batch, error: float):
        self.process, self.batch, self.error = process, batch, error

    def predict(self, xt, t, cond):
        b = self.batch
        assert torch.equal(xt, self.process.noised(b.x0, b.eps, b.t))
        return self.process.target(b.x0, b.eps, b.t) + self.error


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("error", [0.0, 0.5])
def test_the_loss_is_the_squared_error_of_the_prediction(prediction, error):
    batch = a_batch(0)
    torch.testing.assert_close(diffusion_loss(Knows(ddpm(prediction), batch, error), batch), torch.tensor(error**2))


def test_the_loss_on_another_process_is_the_squared_error_of_its_prediction():
    instance, prior = (replace(a_batch(seed), t=torch.tensor([0.1, 0.9])) for seed in (0, 1))
    torch.testing.assert_close(diffusion_loss(Knows(Flow(), instance, 0.5), instance), torch.tensor(0.25))
    knows = Knows(Flow(), instance.joined(prior), 0.5)
    torch.testing.assert_close(preserved_loss(knows, instance, prior, 2.0), torch.tensor(0.75))
    with pytest.raises(ValueError, match="min-SNR"):
        diffusion_loss(knows, instance.joined(prior), snr_gamma=5.0)


def test_the_v_prediction_loss_is_that_of_the_diffusers_script(v_model):
    family, batch = load_family(str(v_model)), a_batch(1)
    scheduler = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", prediction_type="v_prediction")
    with torch.no_grad():
        xt = scheduler.add_noise(batch.x0, batch.eps, batch.t)
        output = family.denoiser(xt, batch.t, batch.cond["tokens"]).sample
        expected = F.mse_loss(output, scheduler.get_velocity(batch.x0, batch.eps, batch.t))
        assert family.process.prediction == "v_prediction"
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
        alone = diffusion_loss(family, Batch(batch.x0[1:2], batch.eps[1:2], batch.t[1:2], batch.cond.rows(slice(1, 2))))
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
        process = Ddpm(alpha_bar, prediction)
        xt = process.noised(x0, eps, T)
        wrong = process.target(x0, eps, T) + error
        by_x0 = (process.x0(wrong, xt, T) - x0).square().flatten()
        weight = process.min_snr_weight(T, 5.0)
        torch.testing.assert_close(
            weight * error.square().flatten(), SNR.double().clamp(max=5.0) * by_x0, rtol=1e-5, atol=0
        )


def test_min_snr_weights_are_those_of_the_paper():
    torch.testing.assert_close(ddpm("epsilon").min_snr_weight(T, 5.0), SNR.clamp(max=5.0) / SNR)
    torch.testing.assert_close(ddpm("v_prediction").min_snr_weight(T, 5.0), SNR.clamp(max=5.0) / (SNR + 1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weights_are_finite_where_no_signal_is_left(prediction):
    weight = Ddpm(alpha_bar_of(betas(), zero_terminal_snr=True), prediction).min_snr_weight(T, 5.0)
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
    process = ddpm(prediction)
    knows = Knows(process, instance.joined(prior), error=1.0)
    own = [process.min_snr_weight(batch.t, 5.0).mean() for batch in (instance, prior)]
    loss = preserved_loss(knows, instance, prior, 0.5, snr_gamma=5.0)
    torch.testing.assert_close(loss, own[0] + 0.5 * own[1])
    of_both = process.min_snr_weight(torch.cat([instance.t, prior.t]), 5.0).mean()
    assert not torch.isclose(loss, of_both + 0.5 * own[1], rtol=1e-3)  # what broadcasting gives in the public scripts


def test_a_gamma_that_is_not_positive_is_refused(family):
    with pytest.raises(ValueError, match="snr_gamma"):
        diffusion_loss(family, a_batch(8), snr_gamma=0.0)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_noise_offset_adds_one_normal_number_per_channel_and_changes_nothing_else():
    drawn = [draw(0, 3, 64, 5, (4, 8, 8), ddpm("epsilon"), noise_offset=offset) for offset in (0.0, 0.1, 0.2)]
    shift = drawn[1].eps - drawn[0].eps
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), atol=1e-6, rtol=0)
    torch.testing.assert_close(drawn[2].eps - drawn[0].eps, 2 * shift, atol=1e-6, rtol=0)
    assert abs(float(shift[..., 0, 0].std()) - 0.1) < 0.02
    assert all(drawn[0].indices == other.indices for other in drawn)
    for name in ("t", "latent_eps", "crop"):
        assert all(torch.equal(getattr(drawn[0], name), getattr(other, name)) for other in drawn)


def test_caption_dropout_takes_its_share_of_the_captions_and_changes_no_other_draw():
    shares = [
        [draw(3, step, 8, 5, (1, 1, 1), ddpm("epsilon"), caption_dropout=p) for step in range(500)] for p in (0, 0.1)
    ]
    for plain, dropped in zip(*shares, strict=True):
        assert not any(plain.uncaptioned)
        assert plain.indices == dropped.indices
        assert all(
            torch.equal(getattr(plain, name), getattr(dropped, name)) for name in ("t", "eps", "latent_eps", "crop")
        )
    mean = np.mean([one.uncaptioned for one in shares[1]])
    assert abs(mean - 0.1) < 4 * (0.1 * 0.9 / 4000) ** 0.5


@pytest.mark.parametrize("keep", [True, False])
def test_a_dropped_caption_is_what_guidance_leads_away_from(family, keep):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    prompts = ["a photo of a dog", "a photo"]
    pictures = Pictures(family, pixels, prompts, side=32, keep_prompts=keep, caption_dropout=0.5)
    drawn = pictures.draw(0, 0, 16)
    with torch.no_grad():
        found = pictures.batch(drawn, slice(None)).cond
        expected = family.encode_prompts([prompts[i] for i in drawn.indices]), family.encode_negative("")
    assert 0 < sum(drawn.uncaptioned) < 16
    for i, none in enumerate(drawn.uncaptioned):
        for name, rows in found.items():
            torch.testing.assert_close(rows[i], expected[none][name][0 if none else i])


def test_means_of_latents_are_trained_on_where_they_are_asked_for(family):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    drawing, mean = (Pictures(family, pixels, ["a", "b"], side=32, mean_latents=mean) for mean in (False, True))
    draws = drawing.draw(0, 0, 2)
    assert torch.equal(mean.batch(draws, slice(None)).x0, family.encode_images(pixels)[0][draws.indices])
    assert not torch.equal(drawing.batch(draws, slice(None)).x0, mean.batch(draws, slice(None)).x0)
    assert mean.open_channels() == {}


def test_prompts_that_are_kept_are_those_encoded_anew(family):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    prompts = ["a photo of a dog", "a photo", "a photo of a dog"]
    kept, anew = (Pictures(family, pixels, prompts, side=32, keep_prompts=keep) for keep in (True, False))
    drawn = kept.draw(0, 0, 6)
    with torch.no_grad():
        first, second = (pictures.batch(drawn, slice(1, 5)) for pictures in (kept, anew))
    torch.testing.assert_close(first.cond["tokens"], second.cond["tokens"])
    assert torch.equal(first.x0, second.x0)


def test_conditioning_keeps_its_rows_together():
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    cond = Conditioning(tokens=torch.arange(6.0).view(3, 2, 1), pooled=torch.arange(3.0).view(3, 1), mask=mask)
    assert cond.rows([2, 2, 0])["pooled"].flatten().tolist() == [2, 2, 0]
    assert cond.rows([2, 0])["tokens"][:, 0, 0].tolist() == [4, 0]
    assert torch.equal(cond.rows(torch.tensor([1]))["mask"], mask[1:2])
    joined = cond.joined(cond.rows(slice(1)))
    assert (cond.count, joined.count, [*joined]) == (3, 4, ["tokens", "pooled", "mask"])
    with pytest.raises(TypeError, match="rows"):
        cond.rows(0)
    with pytest.raises(ValueError, match="do not agree"):
        Conditioning(tokens=torch.zeros(2, 3), pooled=torch.zeros(3, 3))
