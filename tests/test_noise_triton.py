"""The kernel's numbers, from Triton's interpreter on a CPU and, where there is one, from a GPU."""

import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from fewbayes.posterior.noise import WeightNoise, _compare_with_reference, _kernel_noise, normal, reference_normal

SIZES = {"a": 700, "b": 3, "empty": 0, "c": 2600, "d": 512}
PLACES = [(0, 0), (5, 1), (7, 2**40 + 3), (1, 2**31), (-3, 2**63 - 1)]  # seed, step
SECOND_STEP = 9
INTERPRETED = """
import json, sys
import numpy as np, torch
from fewbayes.posterior.noise import _kernel_noise
sizes, places, second_step, path = json.loads(sys.argv[1])
found = {}
for i, (seed, step) in enumerate(places):
    kernel = _kernel_noise(seed, list(sizes), list(sizes.values()), torch.device("cpu"))
    assert kernel is not None
    found[f"first{i}"], found[f"second{i}"] = kernel.draw(step).numpy().copy(), kernel.draw(second_step).numpy().copy()
np.savez(path, **found)
"""

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (pip install triton)")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def reference(seed: int, step: int) -> torch.Tensor:
    return torch.cat([reference_normal(seed, step, name, (size,)) for name, size in SIZES.items()])


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Draws of a process of its own: whether Triton compiles or interprets is settled when it is imported."""
    path = tmp_path_factory.mktemp("interpreted") / "noise.npz"
    order = json.dumps([SIZES, PLACES, SECOND_STEP, str(path)])
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", INTERPRETED, order], check=True, env=environment)
    return np.load(path)


@needs_triton
@pytest.mark.parametrize("place", range(len(PLACES)))
def test_the_kernel_draws_the_reference_noise_to_rounding(interpreted, place):
    seed, step = PLACES[place]
    for draw, at in (("first", step), ("second", SECOND_STEP)):
        found = torch.from_numpy(interpreted[f"{draw}{place}"])
        torch.testing.assert_close(found, reference(seed, at), atol=3e-6, rtol=0)


@needs_triton
def test_the_table_covers_every_element_once_whatever_the_sizes():
    from fewbayes.posterior.noise_triton import tile_table

    sizes = [1, 512, 0, 513, 2**31 + 7, 1024]
    words, number, start, length = tile_table([2**64 - 1, 0, 1, 2, 3, 4], sizes)
    assert int(start[0]) == 0
    assert torch.equal(start[1:], (start + length)[:-1])
    assert int(start[-1] + length[-1]) == sum(sizes)
    assert int(length.min()) > 0
    assert int(length.max()) == 512
    starts = dict(zip([-1, 0, 1, 2, 3, 4], np.cumsum([0, *sizes]).tolist(), strict=False))
    first = torch.tensor([starts[word] for word in words.unique().tolist()])[words.unique(return_inverse=True)[1]]
    assert torch.equal(start - first, number * 512)


def test_where_the_kernel_cannot_run_the_user_is_told_and_gets_none(caplog):
    """Without Triton it cannot be imported; with it, it cannot compile for a CPU."""
    with caplog.at_level(logging.WARNING, "fewbayes"):
        assert _kernel_noise(0, list(SIZES), list(SIZES.values()), torch.device("cpu")) is None
    assert len(caplog.records) == 1
    assert "Triton kernel is not usable here" in caplog.text


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_one_wrong_number_is_refused(wrong):
    noise = torch.cat([normal(3, 4, name, (size,)) for name, size in SIZES.items()])
    _compare_with_reference(noise, 3, 4, SIZES)
    noise[-1] += wrong
    with pytest.raises(ArithmeticError, match="differ"):
        _compare_with_reference(noise, 3, 4, SIZES)


@needs_triton
@needs_cuda
def test_a_gpu_compiles_once_and_draws_the_noise_of_the_cpu():
    from fewbayes.posterior.noise_triton import _fill_tiles

    device = torch.device("cuda", torch.cuda.current_device())
    for seed, step in PLACES:
        noise = WeightNoise(seed, list(SIZES), list(SIZES.values()), device)
        assert noise._kernel is not None
        for at in (step, SECOND_STEP, 1, 16):
            torch.testing.assert_close(noise.draw(at).cpu(), reference(seed, at), atol=1e-5, rtol=0)
    assert sum(len(caches[0]) for caches in _fill_tiles.device_caches.values()) == 1
