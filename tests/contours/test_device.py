# SPDX-License-Identifier: Apache-2.0
"""Contours on the device are those of the host."""

import dataclasses
import functools

import cv2
import jax
import numpy as np
import pytest

from contourdiff_jax.contours import canny, device, opencv
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.settings import ContourSettings

pytestmark = pytest.mark.device

CURVE = contour_settings.CT_CURVE
SETTINGS = {
    "one window": ContourSettings(windows=((0, 1),), low=20, high=50),
    "no blur": ContourSettings(windows=((-0.5, 1.3),), low=20.5, high=50.5, blur=1),
    "windows": ContourSettings(windows=((0, 0.5), (0.2, 0.9)), low=60, high=120, blur=5),
    "apart": ContourSettings(windows=((0, 0.5), (0.2, 0.9)), low=20, high=50, apart=2),
    "curve": ContourSettings(curve=((0, 0), (0.3, 0.9), (0.6, 0.2), (1, 1)), low=20, high=50),
    "both": ContourSettings(windows=((0, 1),), curve=((0, 1), (1, 0)), low=20, high=50, blur=9),
}


def smooth(rng, count=6, size=48) -> np.ndarray:
    """Values [count, size, size] with structure, about 0 to 1."""
    noise = rng.normal(size=(count, size, size))
    return np.stack([0.5 + 2 * cv2.GaussianBlur(n, (0, 0), 3) for n in noise]).astype(np.float32)


def on_device(values, masks, settings):
    @jax.jit
    def taken(values, masks):
        return device.contours(device.greys(values, settings), masks, settings)

    return np.asarray(taken(values, masks))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_contours_are_those_of_the_host(rng, settings):
    """Equal but where rounding to 8 bits decides."""
    values, masks = smooth(rng), np.uint8(smooth(rng) > 0.2)
    expected = opencv.stack(values, masks, settings)
    assert expected.any()
    found = on_device(values, masks, settings)
    assert found.dtype == np.uint8
    assert (found == expected).mean() > 0.999


def test_values_of_256_levels_give_the_same_bits(rng):
    """No rounding is left to differ."""
    values = np.float32(np.round(255 * smooth(rng).clip(0, 1)) / 255)
    masks = np.uint8(smooth(rng) > 0.2)
    settings = SETTINGS["one window"]
    found = on_device(values, masks, settings)
    np.testing.assert_array_equal(found, opencv.stack(values, masks, settings))


def test_curves_are_straight_between_their_points(rng):
    values = np.float32(rng.uniform(-1500, 1500, (2, 40, 40)))
    greys = device.greys(values, ContourSettings(curve=CURVE, low=20, high=50))
    expected = np.interp(values, *zip(*CURVE, strict=True))
    np.testing.assert_allclose(greys[:, 0], expected, atol=1e-5)


def test_the_widths_of_the_blur_are_those_of_the_settings():
    assert tuple(canny.KERNELS) == contour_settings.BLURS


def test_images_do_not_see_one_another(rng):
    values, masks = smooth(rng), np.ones((6, 48, 48), np.uint8)
    taken = functools.partial(on_device, settings=dataclasses.replace(SETTINGS["apart"], blur=3))
    whole = taken(values, masks)
    for i in (0, 5):
        np.testing.assert_array_equal(taken(values[i : i + 1], masks[i : i + 1])[0], whole[i])
