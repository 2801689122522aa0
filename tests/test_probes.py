"""The probes on constructed denoisers whose answers are known: pass-through, a perfect copy, an exact Gaussian."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.guidance import Interval
from fewbayes.diffusion.process import Ddpm, Flow, Process, alpha_bar_of, betas, level_of_step
from fewbayes.files.decode import typed
from fewbayes.models import load_family
from fewbayes.stage import theory
from fewbayes.stage.probes import PROBES, SCALED_STEP, Prober, ProbeSettings, adapters_off
from fewbayes.stage.readings import Reading

ALPHA_BAR = alpha_bar_of(betas()).double()
PROCESSES = {name: Ddpm(alpha_bar_of(betas()), name) for name in ("epsilon", "v_prediction")} | {"flow": Flow()}
SHAPE = (4, 8, 8)
IMAGES = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
OTHERS = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
STEPS = (20, 100, 400, 900)
UNCONDITIONAL = 9  # stands for no prompt: `guided_pair` tells it from the images
SETTINGS = ProbeSettings(levels=tuple(map(level_of_step, STEPS)))


class Constructed:
    """A network of any process, given by its x0_hat(xt, alpha_bar, image) on the variance-preserving path.

    Its prompts are numbers, and their embedding is the number: the image that the prompt stands for.
    """

    device = torch.device("cpu")

    def __init__(self, x0_hat, process: Process = PROCESSES["epsilon"]):
        self.x0_hat, self.process, self.forwards = x0_hat, process, 0

    def encode_prompts(self, prompts):
        return Conditioning(image=torch.tensor([int(prompt) for prompt in prompts]))

    def encode_negative(self, prompt):
        return Conditioning(image=torch.tensor([UNCONDITIONAL]))

    def predict(self, xt, t, cond):
        assert len(xt) == len(t) == cond.count
        self.forwards += len(xt)
        xt, scale = xt.double(), self.process.scale(t).view(-1, 1, 1, 1)
        alpha_bar = self.process.alpha_bar(t).view(-1, 1, 1, 1)
        self.empty = (cond["image"] == UNCONDITIONAL).view(-1, 1, 1, 1)
        image = IMAGES.double()[cond["image"].where(cond["image"] != UNCONDITIONAL, 0)]
        x0 = self.x0_hat(xt / scale, alpha_bar, image)
        if isinstance(self.x0_hat, GuidedPair):
            x0 = x0.where(~self.empty, self.x0_hat.unconditional(xt / scale, alpha_bar, image))
        return self.process.target(x0, self.process.eps_of_x0(x0, xt, t), t)


def passes_through(xt, alpha_bar, image):
    return xt / alpha_bar.sqrt()


def copies(xt, alpha_bar, image):
    return image


def gaussian(sigma_1: float):
    """The exact posterior mean under N(image, sigma_1^2), by precision weighting."""

    def x0_hat(xt, alpha_bar, image):
        precision = alpha_bar / (1 - alpha_bar)
        return (image / sigma_1**2 + precision * xt / alpha_bar.sqrt()) / (1 / sigma_1**2 + precision)

    return x0_hat


class GuidedPair:
    """A conditional and an unconditional branch, each an exact Gaussian of its own width around image 0."""

    def __init__(self, sigma_c: float, sigma_u: float):
        self.conditional, self.unconditional = gaussian(sigma_c), gaussian(sigma_u)

    def __call__(self, *inputs):
        return self.conditional(*inputs)


def prober(x0_hat, *, prediction: str = "epsilon", images: int = 1, others=None, settings=SETTINGS) -> Prober:
    family = Constructed(x0_hat, PROCESSES[prediction])
    prompts = [str(i) for i in range(images)]
    other_prompts = ["0"] * len(others) if others is not None else ()
    return Prober(family, IMAGES[:images], prompts, others=others, other_prompts=other_prompts, settings=settings)


either = pytest.mark.parametrize("prediction", PROCESSES)


@either
def test_pass_through_keeps_every_disturbance_and_all_noise(prediction):
    reading = prober(passes_through, prediction=prediction).read()
    assert reading.gain.relative == pytest.approx((1,) * 4)  # the gain is exactly 1 / alpha_bar
    assert reading.gain.retention == pytest.approx((1,) * 4)
    assert reading.gain.inside == pytest.approx((1,) * 4)
    assert reading.sigma_1.retention == pytest.approx((1,) * 4)
    assert reading.from_noise.retention == pytest.approx((1,) * 4)
    assert reading.losses.loss == pytest.approx((1,) * 4)
    assert reading.blank.scale == pytest.approx((0, 0))
    assert reading.blank.contrast == pytest.approx((0, 0))
    assert reading.scaled.slope == pytest.approx(1)
    assert reading.scaled.at_zero == pytest.approx(0, abs=1e-6)


@either
def test_a_perfect_memoriser_forgets_disturbances_and_answers_blank_with_its_image(prediction):
    reading = prober(copies, prediction=prediction).read()
    assert reading.gain.relative == pytest.approx((0,) * 4, abs=1e-9)
    assert reading.sigma_1.retention == pytest.approx((0,) * 4, abs=1e-5)
    assert reading.from_noise.typical == pytest.approx(0, abs=1e-2)
    assert reading.losses.loss == pytest.approx((0,) * 4, abs=1e-9)
    assert reading.blank.narrowing == pytest.approx(1)
    assert reading.blank.scale == pytest.approx((1, 1))
    assert reading.blank.contrast == pytest.approx((1, 1))
    assert reading.scaled.factor == pytest.approx((1, 1, 1))
    assert reading.scaled.slope == pytest.approx(0, abs=1e-6)
    assert reading.scaled.at_zero == pytest.approx(1)


@either
@pytest.mark.parametrize("sigma_1", [0.1, 1.0, 4.8])
def test_an_exact_gaussian_is_recognised_by_every_probe(prediction, sigma_1):
    reading = prober(gaussian(sigma_1), prediction=prediction).read()
    levels = np.array(reading.sigma_1.alpha_bar)
    np.testing.assert_allclose(levels, ALPHA_BAR[list(STEPS)], rtol=1e-6)
    kept = theory.retention(levels, sigma_1)
    assert reading.sigma_1.sigma_1 == pytest.approx((sigma_1,) * 4, rel=1e-3)
    assert reading.from_noise.sigma_1 == pytest.approx((sigma_1,) * 4, rel=1e-3)
    assert reading.gain.relative == pytest.approx(tuple(kept**2), rel=1e-4)
    assert reading.gain.retention == pytest.approx(tuple(kept), rel=1e-4)
    assert reading.losses.loss == pytest.approx(tuple(theory.training_loss(levels, sigma_1)), rel=1e-3)
    assert reading.excess_error == pytest.approx((0,) * 4, abs=1e-5)
    process = PROCESSES[prediction]
    blank_kept = theory.retention(process.alpha_bar(process.times(reading.blank.t)).numpy(), sigma_1)
    assert reading.blank.scale == pytest.approx(tuple(1 - blank_kept), rel=1e-3)
    at = reading.scaled.alpha_bar
    assert at == pytest.approx(float(ALPHA_BAR[SCALED_STEP]))
    assert reading.scaled.factor == pytest.approx(tuple(theory.k_response(np.array(SETTINGS.ks), at, sigma_1)))
    assert reading.scaled.slope == pytest.approx(float(theory.retention(at, sigma_1)))


@either
@pytest.mark.parametrize("widths", [(0.6, 0.3), (0.05, 0.4), (math.inf, 1e-6), (0.3, 0.3)])
@pytest.mark.parametrize("guidance", [0.5, 1.0, 7.5])
def test_guidance_multiplies_the_gap_between_the_branches(prediction, widths, guidance):
    """Closed form: the guided retention is r_u + g (r_c - r_u), its gain and its loss on the image the square."""
    settings = replace(SETTINGS, guidance=guidance)
    found = prober(GuidedPair(*widths), prediction=prediction, settings=settings).read(["guided", "gain"]).guided
    levels = ALPHA_BAR[list(STEPS)].numpy()
    if prediction == "flow":
        levels = Flow().alpha_bar(torch.tensor(found.t, dtype=torch.float64)).numpy()
    kept = [theory.retention(levels, width) for width in widths]
    kept.append(theory.guided_retention(*kept, guidance))
    for answer, expected in zip((found.conditional, found.unconditional, found.guided), kept, strict=True):
        assert answer.retention == pytest.approx(tuple(expected), abs=1e-6)
        assert answer.gain == pytest.approx(tuple(expected**2), rel=1e-6, abs=1e-6)
        assert answer.loss == pytest.approx(tuple(expected**2), rel=2e-5, abs=1e-6)
    assert found.gap == pytest.approx(tuple(kept[0] - kept[1]), abs=1e-6)
    assert max(found.gain) <= theory.guided_ceiling(levels, guidance).max() * (1 + 1e-9)
    below, above = theory.amplifying_gaps(kept[1], guidance)
    amplifies = (np.array(found.gap) < below) | (np.array(found.gap) > above)
    clearly = np.abs(np.array(found.gain) - 1) > 1e-3
    assert (amplifies == (np.array(found.gain) > 1))[clearly].all()


def test_guidance_is_off_outside_of_its_interval():
    settings = replace(SETTINGS, interval=Interval(level_of_step(100), level_of_step(400)))
    found = prober(GuidedPair(0.6, 0.3), settings=settings).read(["guided"]).guided
    assert found.guidance == (1, 7.5, 7.5, 1)
    assert found.guided.gain is None
    assert found.guided.retention[0] == found.conditional.retention[0]
    assert found.gain == pytest.approx([r**2 for r in found.guided.retention])


def test_the_unconditional_branch_can_be_asked_of_fewer_examples_than_the_others():
    family = Constructed(GuidedPair(0.6, 0.3))
    few = replace(SETTINGS, examples=3, guided_levels=SETTINGS.levels[::2], guided_examples=1)
    reading = Prober(family, IMAGES[:1], ["0"], settings=few).read(["sigma_1", "guided"])
    assert family.forwards == reading.forwards == 4 * 3 + 2
    assert reading.guided.t == reading.sigma_1.t[::2]
    levels = ALPHA_BAR[list(STEPS[::2])].numpy()
    assert reading.guided.unconditional.retention == pytest.approx(theory.retention(levels, 0.3), abs=1e-6)


def test_the_noise_alone_is_compared_with_the_nearest_image():
    def nearest(xt, alpha_bar, _):
        images = IMAGES.double()
        x_star = [theory.nearest(x.numpy(), images.numpy(), float(a)) for x, a in zip(xt, alpha_bar, strict=True)]
        return gaussian(0.8)(xt, alpha_bar, images[x_star])

    reading = prober(nearest, images=3, settings=ProbeSettings(examples=6)).read(["from_noise"])
    assert reading.from_noise.sigma_1 == pytest.approx((0.8,) * 5, rel=1e-3)


def test_the_blank_probe_names_the_image_that_it_brings_forth():
    reading = prober(lambda xt, alpha_bar, image: IMAGES[2:3].double().expand_as(xt), images=3).read(["blank"])
    assert reading.blank.nearest == (2, 2)
    assert reading.blank.similarity[0][2] == pytest.approx(1)
    assert max(abs(value) for value in reading.blank.similarity[0][:2]) < 0.3


def test_colour_plates_are_no_likeness():
    plate = IMAGES[0].double().mean((1, 2), keepdim=True).expand(SHAPE)
    assert prober(lambda xt, alpha_bar, image: plate.expand_as(xt)).read(["blank"]).blank.narrowing == 0


def test_the_disturbance_is_local_and_of_the_size_of_the_noise():
    draws = prober(copies)._training
    delta, timesteps = draws.disturbed - draws.noisy, torch.tensor(STEPS)
    assert float(draws.patch.mean()) == pytest.approx(1 / 16)
    assert float((delta * (1 - draws.patch)).abs().max()) == 0
    inside = delta[draws.patch.expand_as(delta) > 0].view(len(timesteps), -1)
    expected = (1 - ALPHA_BAR[timesteps]).sqrt().float()
    torch.testing.assert_close(inside.std(1) / expected, torch.ones(4), atol=0.35, rtol=0)


def test_all_images_are_looked_at_in_turn_or_evenly_chosen():
    few = prober(copies, images=2, settings=ProbeSettings(levels=(0.3,), examples=3))._training
    assert torch.equal(few.x0, IMAGES[[0, 1, 0]])
    many = prober(copies, images=3, settings=ProbeSettings(levels=(0.3,), examples=2))._training
    assert torch.equal(many.x0, IMAGES[[0, 1]])


@pytest.mark.parametrize("probes", [PROBES, *[[name] for name in PROBES], ["sigma_1", "losses"], ["gain", "blank"]])
@pytest.mark.parametrize("others", [None, OTHERS])
def test_the_cost_is_as_stated(probes, others):
    asked = prober(gaussian(1.0), others=others)
    reading = asked.read(probes)
    assert asked.family.forwards == asked.forwards(probes) == reading.forwards


def test_a_reading_is_a_function_of_the_seed():
    first, again = (prober(gaussian(1.0), others=OTHERS).read() for _ in range(2))
    assert first == again
    other = prober(gaussian(1.0), settings=ProbeSettings(seed=1)).read()
    assert other.losses != prober(gaussian(1.0), settings=ProbeSettings(seed=0)).read().losses


def test_an_error_that_is_no_noise_left_over_shows_as_excess_and_not_as_retention():
    error = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def wrong(xt, alpha_bar, image):
        return gaussian(0.5)(xt, alpha_bar, image) + 0.3 * error * ((1 - alpha_bar) / alpha_bar).sqrt()

    asked = [prober(x0_hat, settings=ProbeSettings(examples=8)).read() for x0_hat in (gaussian(0.5), wrong)]
    right, off = (reading.excess_error for reading in asked)
    assert right == pytest.approx((0,) * 5, abs=1e-5)
    assert off == pytest.approx((0.09 * float((error**2).mean()),) * 5, rel=0.15)
    assert asked[1].sigma_1.retention == pytest.approx(asked[0].sigma_1.retention, abs=0.02)


def test_what_is_not_asked_is_none_and_alone_as_together():
    together = prober(gaussian(1.0)).read()
    for name in PROBES:
        asked = [name, "gain"] if name == "guided" else [name]  # whose gains come with the other gain
        alone = prober(gaussian(1.0)).read(asked)
        assert getattr(alone, name) == getattr(together, name)
        assert all(getattr(alone, other) is None for other in PROBES if other not in asked)


def test_a_reading_outlives_its_model_as_json():
    reading = prober(gaussian(1.0), others=OTHERS).read(["sigma_1", "gain", "losses", "blank", "scaled"])
    assert typed(json.loads(json.dumps(asdict(reading), allow_nan=False)), Reading, "kept") == reading


def test_a_narrower_model_has_learned_the_training_image_and_lost_the_others():
    wide, narrow = (prober(gaussian(sigma_1), others=OTHERS).read() for sigma_1 in (2.0, 0.2))
    assert max(narrow.losses.ratio(wide.losses)) < 1
    assert min(narrow.others_losses.ratio(wide.others_losses)) > 0.9
    numbers = narrow.numbers(wide)
    assert numbers["loss_training_ratio"] < 0.5 < numbers["loss_others_ratio"]
    assert set(wide.numbers()) == {name for name in numbers if not name.endswith("_ratio")}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"levels": (0.0,)}, "noise-to-signal"),
        ({"blank_levels": (-1.0,)}, "noise-to-signal"),
        ({"levels": ()}, "one noise level"),
        ({"ks": (1.0, 1.0)}, "ks"),
        ({"patch": 0.0}, "patch"),
        ({"examples": 0}, "one example"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(change, match):
    with pytest.raises(ValueError, match=match):
        prober(copies, settings=ProbeSettings(**change))


def test_images_and_prompts_must_agree():
    family = Constructed(copies)
    with pytest.raises(ValueError, match="one prompt for each"):
        Prober(family, IMAGES, ["0"])
    with pytest.raises(ValueError, match="count, channels"):
        Prober(family, IMAGES[0], ["0"])
    with pytest.raises(ValueError, match="no probe"):
        Prober(family, IMAGES[:1], ["0"]).read(["sigma"])  # pyright: ignore


SHARES = [level_of_step(step) / (1 + level_of_step(step)) for step in (50, 100, 200, 400, 600)]


@pytest.mark.parametrize(
    ("process", "usual", "blank"),
    [
        (PROCESSES["epsilon"], (50, 100, 200, 400, 600), (100, 999)),
        (Ddpm(alpha_bar_of(betas())[9::10].clone()), (4, 9, 19, 39, 59), (9, 99)),
        (Ddpm(alpha_bar_of(betas(), zero_terminal_snr=True), "v_prediction"), (47, 94, 190, 381, 567), (94, 998)),
        (Flow(), SHARES, (SHARES[1], Flow.LAST)),
    ],
    ids=["stable-diffusion", "hundred-steps", "ends-in-pure-noise", "flow"],
)
def test_models_are_asked_at_the_same_noise_levels_whatever_their_process(process, usual, blank):
    """On Stable Diffusion's schedule these are its timesteps; one that ends in pure noise is asked just before."""
    reading = Prober(Constructed(copies, process), IMAGES[:1], ["0"]).read()
    assert reading.losses.t == pytest.approx(usual)
    assert reading.blank.t == pytest.approx(blank)
    assert reading.blank.narrowing == pytest.approx(1)


@pytest.mark.parametrize("model", ["eps_model", "v_model"])
def test_a_real_network_is_read_the_same_in_any_batch(model, request):
    family = load_family(str(request.getfixturevalue(model)))
    prompts = ["a photo of <v> dog", "a photo of <v> dog", "a photo of dog"]
    one, eight = (Prober(family, IMAGES, prompts, settings=ProbeSettings(batch_size=size)).read() for size in (1, 8))
    for name, value in one.numbers().items():
        assert math.isfinite(value)
        assert eight.numbers()[name] == pytest.approx(value, rel=1e-3, abs=1e-4)


def test_adapters_off_is_the_base_model_and_leaves_the_adapters_as_they_were(eps_model):
    from peft import LoraConfig

    family = load_family(str(eps_model))
    prober = Prober(family, IMAGES[:1], ["a photo"])
    base = prober.read()
    family.denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    adapted, asked = prober.read(), [p.requires_grad for p in family.denoiser.parameters()]
    with adapters_off(family.denoiser):
        off = prober.read()
    assert off == base != adapted
    assert prober.read() == adapted
    assert [p.requires_grad for p in family.denoiser.parameters()] == asked
    with pytest.raises(RuntimeError), adapters_off(family.denoiser):
        raise RuntimeError
    assert prober.read() == adapted


def test_the_residual_gain_grows_with_what_the_model_knows():
    readings = [prober(gaussian(sigma_1)).read(["gain"]).gain.typical for sigma_1 in (0.1, 0.3, 1.0, 3.0)]
    assert all(low < high for low, high in pairwise(readings))
