"""A masked loss on request, and what is said of photographs and captions beside the settings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewbayes.data.images import check_folder, load_images
from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.objective import Batch, denoising_errors, diffusion_loss, preserved_loss
from fewbayes.diffusion.process import Flow
from fewbayes.errors import UserError
from fewbayes.runs.layout import read_manifest
from fewbayes.training.batches import Pictures, draw
from fewbayes.training.prepare import check_photographs
from fewbayes.training.train import train


class Scaled:
    """predict = theta * xt, whose gradient is known in closed form."""

    process = Flow()

    def __init__(self):
        self.theta = torch.tensor(0.3, requires_grad=True)

    def predict(self, xt, t, cond):
        return self.theta * xt


def a_batch(seed: int = 0, weights: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 3, 4, 8, 8, generator=generator)
    mask = 0.1 + 0.9 * torch.rand(3, 1, 8, 8, generator=generator)
    return Batch(
        x0, eps, torch.rand(3, generator=generator), Conditioning(a=torch.zeros(3, 1, 1)), mask if weights else None
    )


def test_the_gradient_of_the_masked_loss_is_that_of_the_closed_form():
    family, batch = Scaled(), a_batch()
    diffusion_loss(family, batch).backward()
    xt, target = Flow().noised(batch.x0, batch.eps, batch.t), Flow().target(batch.x0, batch.eps, batch.t)
    w = batch.weights.expand_as(xt)
    each = (w * 2 * (0.3 * xt - target) * xt).sum((1, 2, 3)) / w.sum((1, 2, 3))
    torch.testing.assert_close(family.theta.grad, each.mean())


def test_where_all_weighs_alike_the_loss_is_the_plain_one_and_class_images_weigh_one():
    batch, family = a_batch(), Scaled()
    plain = replace(batch, weights=None)
    torch.testing.assert_close(
        denoising_errors(family, replace(batch, weights=torch.full((3, 1, 8, 8), 0.4))), denoising_errors(family, plain)
    )
    prior = a_batch(1, weights=False)
    expected = diffusion_loss(family, batch) + 2 * diffusion_loss(family, prior)
    torch.testing.assert_close(preserved_loss(family, batch, prior, 2.0), expected)


@pytest.fixture
def masked(tmp_path, photos) -> Path:
    """Three pictures of 32 pixels; the first has a mask whose left half is white."""
    folder = tmp_path / "masked"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    Image.fromarray(mask).save(folder / "0-mask.png")
    return folder


def test_pixels_outside_the_mask_weigh_what_was_asked(masked, family):
    images = load_images(masked, resolution=32, center_crop=False, masks=True)
    assert [image.mask is not None for image in images] == [True, False, False]
    pixels, masks = [image.pixels for image in images], [image.mask for image in images]
    pictures = Pictures(family, pixels, ["a"] * 3, side=32, masks=masks, mask_weight=0.25, random_flip=True)
    draws = draw(0, 0, 24, 3, pictures.latent_shape, family.process)
    weights = pictures.batch(draws, slice(0, 24)).weights
    flipped = draws.crop[:, 2] < 0.5
    for i, index in enumerate(draws.indices):
        left, right = weights[i, 0, :, :4], weights[i, 0, :, 4:]
        if index:
            assert bool((weights[i] == 1).all())
        else:
            assert bool(((right if flipped[i] else left) == 1).all())
            assert bool(((left if flipped[i] else right) == 0.25).all())


def test_weight_one_is_as_without_masks_bit_for_bit_and_a_smaller_one_is_not(settings, masked, family):
    def loss(name: str, **changes) -> list:
        config = settings(name, instance_data_dir=str(masked), max_train_steps=2, **changes)
        folder = train(config, family=family, progress=False).folder
        return [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]

    assert loss("none") == loss("one", mask_weight=1.0) != loss("tenth", mask_weight=0.1)
    kept = read_manifest(settings("tenth").output_dir).fingerprint["mask_weight"]
    assert kept[0] == 0.1
    assert len(kept[1]) == 64


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((32, 32), np.uint8), "black all over"),
        (np.full((32, 16), 255, np.uint8), "16 x 32 and its picture 32"),
    ],
)
def test_a_mask_that_cannot_be_one_is_refused(masked, mask, said):
    Image.fromarray(mask).save(masked / "0-mask.png")
    with pytest.raises(UserError, match=said):
        load_images(masked, resolution=32, center_crop=False, masks=True)


def remarks(settings, folder: Path, **changes) -> str:
    config = settings(instance_data_dir=str(folder), **changes).resolve({"rare_token": "<v>"}, 32, 3)
    return "\n".join(check_photographs(config, check_folder(folder)))


def test_masks_that_are_not_used_are_said_and_missing_ones_refused(settings, masked, photos):
    assert "the masks of 1 images are not used; --mask_weight 0.1" in remarks(settings, masked)
    assert remarks(settings, masked, mask_weight=0.1) == ""
    with pytest.raises(UserError, match=r"holds no masks; put 00-mask\.png beside 00\.jpg"):
        remarks(settings, photos, mask_weight=0.1)


def test_photographs_that_are_enlarged_are_said(settings, photos):
    said = remarks(settings, photos, resolution=64)
    assert "3 of 3 images are smaller than 64 pixels and are enlarged, the smallest from 32 x 32" in said


def test_captions_without_the_rare_token_are_said_once_and_trigger_stands_for_it(settings, photos, tmp_path):
    folder = tmp_path / "captioned"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for i, caption in enumerate(["a photo of <v> dog", "a [trigger] dog", "a dog in the snow"]):
        (folder / f"{i}.txt").write_text(caption)
    said = remarks(settings, folder)
    assert "1 of 3 captions lack the rare token <v>, so nothing ties it to the subject there (2.png); write <v>" in said
    assert settings(rare_token="sks").with_rare_token("[trigger], a <v> dog") == "sks, a sks dog"
