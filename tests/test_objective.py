"""The loss is the mean squared error of what the network is asked for, with or without class images."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from fewbayes.families import load_family
from fewbayes.objective import Batch, denoising_errors, diffusion_loss, preserved_loss
from fewbayes.schedule import PREDICTIONS, add_noise, alpha_bar_of, betas, loss_target


def a_batch(seed: int, size: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, size, 4, 8, 8, generator=generator)
    t = torch.randint(1000, (size,), generator=generator)
    return Batch(x0, eps, t, torch.randn(size, 16, 16, generator=generator))


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
        output = family.denoiser(xt, batch.t, batch.cond).sample
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
