# SPDX-License-Identifier: Apache-2.0
"""Maps of where samples differ, and of what no contour asked for."""

import numpy as np
import pytest

from contourdiff_jax.contours import opencv
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.translation import samples
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Window

GRID = Grid("axial", 1.0, 32)
RESAMPLING = GRID.fit((32, 32, 2), np.eye(4))


def disc(radius, at=(15.5, 15.5)):
    rows, columns = np.mgrid[:32, :32]
    return (np.hypot(rows - at[0], columns - at[1]) < radius) * 1.0


@pytest.mark.parametrize(("name", "window"), [("mr", Window(100, 500)), ("ct", Window(0, 1))])
def test_mean_and_deviation_are_in_the_units_of_the_target(name, window):
    """Of samples that go all the way to native units one by one."""
    preset = intensity.preset(name)
    drawn = np.random.default_rng(0).uniform(-1, 1, (5, 2, 32, 32)).astype(np.float32)
    native = [
        preset.native(RESAMPLING.volume(preset.image.inverse(sample), preset.air), window)
        for sample in drawn
    ]
    nothing = np.zeros((2, 32, 32), np.uint8)
    maps = samples.maps(drawn, drawn > 2, nothing, RESAMPLING, preset, window)
    assert set(maps) == set(samples.MAPS)
    scale = np.ptp(native)
    np.testing.assert_allclose(maps["mean"], np.mean(native, 0), atol=1e-5 * scale)
    np.testing.assert_allclose(maps["std"], np.std(native, 0), atol=1e-5 * scale)
    assert not maps["unasked"].any()


def test_structure_that_no_contour_asked_for_is_found():
    """A disc was asked for; one sample of two shows another one inside."""
    mr = intensity.preset("mr")
    body = np.ones((2, 32, 32), bool)
    asked_for, both = disc(12), disc(12) - 0.5 * disc(4)
    drawn = 2 * np.stack([np.stack([asked_for] * 2), np.stack([both] * 2)]) - 1
    shown = np.stack([opencv.of_translations(s, body, mr, contour_settings.MR) for s in drawn])
    maps = samples.maps(drawn, shown, shown[0], RESAMPLING, mr, Window(0, 1))
    inner = opencv.of_translations(drawn[1], body, mr, contour_settings.MR)[0] * (disc(8) > 0)
    assert inner.sum() > 10
    expected = RESAMPLING.volume(np.stack([0.5 * inner] * 2), 0)
    np.testing.assert_allclose(maps["unasked"], expected, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [contour_settings.CT, contour_settings.CLEANED, contour_settings.ORIGINAL]
)
def test_settings_for_voxels_are_followed_on_the_grid(settings):
    ct = intensity.preset("ct")
    pictures = np.stack([disc(10) - 0.45])
    assert opencv.of_translations(pictures, np.ones((1, 32, 32), bool), ct, settings).any()
