# SPDX-License-Identifier: Apache-2.0
"""How images reach the network: resizing against other libraries, order, sizes and channels."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import features
from contourdiff_jax.runtime import mesh as meshes

SIZES = [(256, 256), (512, 512), (299, 299), (40, 301), (7, 1000)]


def resized(image, weights):
    rows, columns = (weights(size) for size in image.shape)
    return rows @ np.float32(image) @ columns.T


@pytest.mark.parametrize("size", SIZES)
def test_clean_fid_resizes_as_pil(rng, size):
    image = rng.integers(0, 256, size).astype(np.uint8)
    pil = Image.fromarray(np.float32(image)).resize((299, 299), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(resized(image, features.bicubic), np.asarray(pil), atol=2e-3)


@pytest.mark.parametrize("size", SIZES)
def test_pytorch_fid_resizes_without_averaging(rng, size):
    # OpenCV's bilinear has the same places, rounded to a 2048th of a pixel
    image = rng.integers(0, 256, size).astype(np.float32)
    opencv = cv2.resize(image, (299, 299), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resized(image, features.aligned_centres), opencv, atol=0.3)


@pytest.mark.parametrize("n", [256, 512, 299, 40])
def test_torch_fidelity_begins_at_the_first_pixel(n):
    # of a ramp, a resized pixel is its place: a multiple of the scale, as far as there are pixels
    ramp = features.aligned_corners(n) @ np.arange(n, dtype=np.float32)
    np.testing.assert_allclose(ramp, np.minimum(np.arange(299) * n / 299, n - 1), atol=1e-3)


@pytest.mark.parametrize("mode", features.MODES.values(), ids=features.MODES)
def test_every_weighting_keeps_a_constant(mode):
    for n in (1, 2, 50, 299, 777):
        np.testing.assert_allclose(mode.weights(n).sum(1), 1, atol=1e-6)


def look(params, images):
    """In place of the network: what it is shown, at 8 places, in three channels."""
    shown = images[:, 5::80, 7::160]
    return jnp.pad(shown.reshape(len(images), -1), ((0, 0), (0, 2048 - 24)))


@pytest.fixture
def extract(monkeypatch):
    monkeypatch.setattr(features.inception, "apply", look)
    features._jitted.cache_clear()
    yield lambda stacks, mode="clean-fid", batch=4: features.extract(
        iter(stacks), features.mode(mode), {}, mesh(), batch
    )
    features._jitted.cache_clear()


def mesh():
    return meshes.make(ConfigDict({"data": -1, "fsdp": 1}))


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batches_leave_no_trace(extract, rng, batch):
    stacks = [rng.integers(0, 256, (n, h, w), np.uint8) for n, h, w in ((5, 30, 40), (3, 9, 9))]
    together = extract(stacks, batch=batch)
    alone = [extract([image[None]]) for stack in stacks for image in stack]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
    assert together.shape == (8, 2048)


@pytest.mark.parametrize(
    ("mode", "black", "white"), [("pytorch-fid", -1, 1), ("torch-fidelity", -1, 127 / 128)]
)
def test_black_and_white_of_each_mode(extract, mode, black, white):
    shown = extract([np.uint8([np.zeros((20, 20)), np.full((20, 20), 255)])], mode)[:, :24]
    np.testing.assert_allclose(shown[0], black, atol=1e-5)
    np.testing.assert_allclose(shown[1], white, atol=1e-5)


def test_grey_is_three_equal_channels(extract, rng):
    grey = rng.integers(0, 256, (3, 20, 20), np.uint8)
    coloured = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_allclose(extract([grey]), extract([coloured]), atol=1e-6)


def test_colours_keep_their_order(extract, rng):
    colours = rng.integers(0, 256, (2, 20, 20, 3), np.uint8)
    shown = extract([colours])[:, :24].reshape(2, 8, 3)
    for channel in range(3):
        alone = extract([colours[..., channel]])[:, :24].reshape(2, 8, 3)
        np.testing.assert_allclose(shown[..., channel], alone[..., channel], atol=1e-6)


def test_overshoot_is_clipped_where_clean_fid_does(extract):
    image = np.zeros((1, 20, 20), np.uint8)
    image[:, :, 10:] = 255
    assert resized(image[0], features.bicubic).min() < -5
    assert extract([image]).min() >= -1


def test_deeper_images_need_a_window_first(extract):
    with pytest.raises(ValueError, match="images of 8 bits are needed, not uint16"):
        extract([np.zeros((1, 8, 8), np.uint16)])
    assert extract([]).shape == (0, 2048)
    with pytest.raises(InputError, match="--mode=fid: known are pytorch-fid, "):
        features.mode("fid")
