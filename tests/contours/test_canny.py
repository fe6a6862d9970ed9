# SPDX-License-Identifier: Apache-2.0
"""Canny edges and the blur before them against OpenCV, whose every bit they must have.

OpenCV's own code is the reference, without the vendors' that some builds put in its place.
"""

import functools
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from PIL import Image

from contourdiff_jax.contours.canny import KERNELS, canny, gaussian_blur
from contourdiff_jax.volumes import io

pytestmark = pytest.mark.device

compiled_canny = jax.jit(canny, static_argnames="l2_gradient")
compiled_blur = jax.jit(gaussian_blur, static_argnames="width")

SHAPES = [(1, 1), (1, 40), (40, 1), (2, 3), (64, 64), (65, 97)]
THRESHOLDS = [0, 0.5, 20, 20.999, 50, 80, 150.25, 333.3, 1000, 1500, 40000, 1e9, -0.5, -7]


@pytest.fixture(autouse=True)
def own_code():
    before = cv2.getNumThreads(), cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    yield
    cv2.setNumThreads(before[0])
    cv2.ipp.setUseIPP(before[1])


def pictures(rng, count: int, height: int, width: int) -> np.ndarray:
    """[count, height, width] uint8: white, smooth, faint and two-grey noise; flats; stairs."""

    def picture(kind):
        noise = rng.normal(size=(height, width))
        if kind == 0:
            return rng.integers(0, 256, noise.shape)
        if kind == 1:
            smooth = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.5, 4)).reshape(noise.shape)
            return 128 + 60 * smooth / (smooth.std() + 1e-6)
        if kind == 2:
            return 128 + 3 * noise
        if kind == 3:
            return 255 * (noise > 0)
        if kind == 4:
            return np.full(noise.shape, rng.integers(0, 256))
        rise, run, step = rng.integers(-9, 10), rng.integers(-9, 10), rng.integers(1, 30)
        slope = np.add.outer(rise * np.arange(height), run * np.arange(width))
        return slope // step * step % 256

    return np.uint8([np.clip(picture(i % 6), 0, 255) for i in range(count)])


def opencv(images, low, high, l2_gradient=False) -> np.ndarray:
    """cv2.Canny of each image, at thresholds of its own; threads share an image's rows."""
    lows, highs = (np.broadcast_to(np.float64(t), len(images)) for t in (low, high))
    edges = []
    for image, a, b in zip(images, lows, highs, strict=True):
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            edges.append(cv2.Canny(image, a, b, apertureSize=3, L2gradient=l2_gradient))
        np.testing.assert_array_equal(*edges[-2:])
    return np.stack(edges[::2]).reshape(images.shape)


def opencv_blur(images, width) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(i, (width, width), 0) for i in images]).reshape(images.shape)


def read_slices(root: Path) -> list[np.ndarray]:
    """Batches [N, H, W] uint8 of real CT and MR."""
    folders = ("harvard_ct", "harvard_mr", "synthrad_ct_brain", "synthrad_ct_pelvis")
    paths = [p for name in folders for p in sorted((root / "png2d" / name).glob("*.png"))[::25]]
    array = io.read(root / "nifti" / "stroke" / "T1.nii.gz").array
    return [
        np.stack([np.asarray(Image.open(path).convert("L")) for path in paths]),
        np.ascontiguousarray(np.moveaxis(np.uint8(array), 2, 0)[::6]),
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", KERNELS)
def test_the_blur_is_opencvs(rng, shape, width):
    images = pictures(rng, 12, *shape)
    np.testing.assert_array_equal(compiled_blur(images, width=width), opencv_blur(images, width))


def test_a_blur_that_is_not_exact_is_refused(rng):
    with pytest.raises(ValueError, match="width 11"):
        gaussian_blur(pictures(rng, 1, 8, 8), 11)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("l2_gradient", [False, True])
def test_edges_are_opencvs(rng, shape, l2_gradient):
    images = pictures(rng, 96, *shape)
    low, high = rng.choice(THRESHOLDS, (2, len(images)))  # in either order
    expected = opencv(images, np.float32(low), np.float32(high), l2_gradient)
    assert expected.any() == (shape != (1, 1))
    found = compiled_canny(images, low, high, l2_gradient=l2_gradient)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_thresholds_that_are_not_traced_keep_double_precision(rng):
    """Single precision would make 10 of it, and leave out what is 10."""
    images = pictures(rng, 24, 64, 64)
    below = 10 - 1e-9
    for l2_gradient in (False, True):
        expected = opencv(images, below, below, l2_gradient)
        assert (expected != opencv(images, 10, 10, l2_gradient)).any()
        fixed = jax.jit(functools.partial(canny, low=below, high=below, l2_gradient=l2_gradient))
        np.testing.assert_array_equal(fixed(images), expected)


def test_squares_of_traced_thresholds_are_not_rounded(rng):
    """Roots of magnitudes, in single precision: rounded, their squares are the magnitudes."""
    images = pictures(rng, 2, 64, 64)[1:].repeat(400, 0)
    derivatives = [
        cv2.Sobel(images[0], cv2.CV_32F, *order, borderType=cv2.BORDER_REPLICATE)
        for order in ((1, 0), (0, 1))
    ]
    squares = np.unique(np.sum(np.square(derivatives), 0))
    roots = np.sqrt(np.float32(rng.choice(squares, len(images), replace=False)))
    expected = opencv(images, roots, roots, True)
    assert (expected != opencv(images, np.sqrt(np.round(roots**2)), 1e4, True)).any()
    np.testing.assert_array_equal(compiled_canny(images, roots, roots, l2_gradient=True), expected)


def test_whole_traced_thresholds_of_any_type(rng):
    images = pictures(rng, 6, 64, 64)
    found = compiled_canny(images, np.uint8(90), jnp.full(6, 30, jnp.int32))
    np.testing.assert_array_equal(found, opencv(images, 30, 90))


def test_a_weak_chain_is_followed_to_its_end():
    """A faint spiral band is an edge for its whole length, since its beginning is bright."""
    y, x = np.mgrid[:256, :256] - 127.5
    radius = np.hypot(x, y)
    turns = radius / 12 - np.arctan2(y, x) / (2 * np.pi)
    band = (turns % 1 < 0.5) & (radius < 110)
    faint, bright = (np.uint8(band * grey) for grey in (15, np.where(radius < 16, 150, 15)))
    expected = opencv(np.stack([faint, bright]), 20, 300)
    assert not expected[0].any()
    assert np.count_nonzero(expected[1]) > 3000
    np.testing.assert_array_equal(compiled_canny(np.stack([faint, bright]), 20, 300), expected)


@pytest.mark.parametrize("l2_gradient", [False, True])
def test_edges_of_real_slices_are_opencvs(data_root, l2_gradient):
    for images in read_slices(data_root):
        blurred = compiled_blur(images, width=3)
        np.testing.assert_array_equal(blurred, opencv_blur(images, 3))
        for low, high in ((20, 50), (80, 150)):
            expected = opencv(np.asarray(blurred), low, high, l2_gradient)
            assert expected.any()
            found = compiled_canny(blurred, low, high, l2_gradient=l2_gradient)
            np.testing.assert_array_equal(found, expected)


def test_devices_take_edges_of_their_own_images(rng):
    """The loop ends on each when it ends; they have nothing to tell one another."""
    images = pictures(rng, 12, 65, 97)
    lows = rng.integers(0, 100, len(images)).astype(np.float32)
    batch, whole = PartitionSpec("batch"), PartitionSpec()
    mesh = Mesh(np.array(jax.devices()), "batch")
    split = jax.shard_map(canny, mesh=mesh, in_specs=(batch, batch, whole), out_specs=batch)
    program = jax.jit(split).lower(images, lows, np.float32(150)).compile()
    assert "all-" not in program.as_text()
    np.testing.assert_array_equal(
        jax.jit(split)(images, lows, np.float32(150)), opencv(images, lows, 150)
    )


@pytest.mark.slow
@pytest.mark.parametrize("l2_gradient", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(1, 7), (7, 1), (3, 5), (8, 32), (33, 31), (64, 96), (100, 129), (256,) * 2, (512,) * 2],
)
def test_thousands_of_images(rng, shape, l2_gradient):
    batch, times = (12, 4) if min(shape) > 200 else (60, 20)
    for _ in range(times):
        images = pictures(rng, batch, *shape)
        for width in KERNELS:
            blurred = np.asarray(compiled_blur(images, width=width))
            np.testing.assert_array_equal(blurred, opencv_blur(images, width))
            low, high = np.float32(rng.uniform(0, 500, (2, batch)))
            low[::2], high[::3] = np.floor(low[::2]), np.floor(high[::3])
            expected = opencv(blurred, low, high, l2_gradient)
            found = compiled_canny(blurred, low, high, l2_gradient=l2_gradient)
            np.testing.assert_array_equal(found, expected)
