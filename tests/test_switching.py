"""Two models on one sampler's way: who answers where, at the ends and in the middle."""

import numpy as np
import pytest
import torch

from fewbayes.diffusion.guidance import EVERYWHERE, Interval
from fewbayes.models import load_family
from fewbayes.models.sampling import sample_images
from fewbayes.models.switching import answering


@pytest.fixture(params=("eps_model", "sd3_model"))
def two(request):
    """A model and one that differs from it in its denoiser alone."""
    model = str(request.getfixturevalue(request.param))
    family, other = load_family(model), load_family(model)
    with torch.no_grad():
        for i, weight in enumerate(other.denoiser.parameters()):
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    return family, other


def drawn(family):
    return np.stack(sample_images(family, ["a photo of a cat"], [0], steps=4, guidance=3.0)).astype(int)


def test_the_whole_way_is_one_models_or_the_others_and_parts_are_complements(two):
    family, other = two
    mine, theirs = drawn(family), drawn(other)
    assert (mine != theirs).any()
    noisy, calm, nowhere = Interval(1.0), Interval(high=1.0), Interval(high=0)
    with answering(EVERYWHERE, family, other):
        assert (drawn(family) == mine).all()
    with answering(nowhere, family, other):
        assert (drawn(family) == theirs).all()
    with answering(noisy, family, other):
        first = drawn(family)
    with answering(calm, other, family):
        assert (drawn(other) == first).all()
    assert (first != mine).any()
    assert (first != theirs).any()
    assert (drawn(family) == mine).all()  # afterwards it is itself again
    assert (drawn(other) == theirs).all()
