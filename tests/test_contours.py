# SPDX-License-Identifier: Apache-2.0
"""Contours against OpenCV, against shapes whose border is known, and their settings."""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from contourdiff_jax.data import contours as module
from contourdiff_jax.data.contours import ContourSettings, contours, stack
from contourdiff_jax.errors import InputError

SETTINGS = ContourSettings(windows=((0, 1),), low=20, high=50)
EVERYWHERE = np.ones((64, 64), bool)


def radius(size: int = 64) -> np.ndarray:
    """[size, size] distance in pixels from the middle."""
    axis = np.arange(size) - (size - 1) / 2
    return np.hypot(*np.meshgrid(axis, axis))


def photograph(rng) -> np.ndarray:
    """An 8-bit image with structure at every scale."""
    noise = rng.normal(size=(64, 64))
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (1, 3, 8))
    return np.uint8(np.clip(128 + 60 * smooth, 0, 255))


@pytest.mark.parametrize("blur", [1, 3, 7])
@pytest.mark.parametrize("window", [(0, 255), (-1000, 1000), (0, 1)])
def test_one_window_is_opencv_on_an_8_bit_image(rng, window, blur):
    """Values that are the 256 levels of a window are that 8-bit image, whatever their unit."""
    grey = photograph(rng)
    low, high = window
    values = np.float32(low + grey / 255 * (high - low))
    settings = ContourSettings(windows=(window,), low=80, high=150, blur=blur)
    blurred = cv2.GaussianBlur(grey, (blur, blur), 0)
    expected = cv2.Canny(blurred, 80, 150) > 0
    assert expected.any()
    np.testing.assert_array_equal(contours(values, EVERYWHERE, settings), expected)


def test_the_edges_of_a_box_lie_on_its_border():
    values = np.zeros((64, 64), np.float32)
    values[20:41, 10:51] = 1
    edges = contours(values, EVERYWHERE, SETTINGS) > 0
    rows, columns = np.nonzero(edges)
    outside = np.maximum(np.abs(rows - 30) - 10, np.abs(columns - 30) - 20)  # 0: the box's rim
    assert np.abs(outside).max() <= 1
    for side in (edges[19:22], edges[39:42]):
        assert side.any(0)[12:49].all()
    for side in (edges[:, 9:12], edges[:, 49:52]):
        assert side.any(1)[22:39].all()


def test_the_edge_of_a_disc_is_a_closed_circle():
    values = np.float32(radius() < 20)
    rows, columns = np.nonzero(contours(values, EVERYWHERE, SETTINGS))
    np.testing.assert_allclose(np.hypot(rows - 31.5, columns - 31.5), 20, atol=1.5)
    angles = np.sort(np.arctan2(rows - 31.5, columns - 31.5))
    assert np.diff(angles, append=angles[0] + 2 * np.pi).max() < 0.15


def test_the_windows_are_united(rng):
    """What one window saturates, another shows; together they show both."""
    values = np.float32(photograph(rng)) * 12 - 1000
    windows = ((-500, 1500), (-150, 250), (-20, 80))
    single = [
        contours(values, EVERYWHERE, ContourSettings(windows=(w,), low=60, high=120))
        for w in windows
    ]
    united = contours(values, EVERYWHERE, ContourSettings(windows=windows, low=60, high=120))
    np.testing.assert_array_equal(united, np.maximum.reduce(single))
    assert all((united != s).any() for s in single)


def test_doubled_borders_are_left_out():
    """A soft border lies elsewhere for each window; `apart` keeps the first and all far from it."""
    values = np.clip(24 - radius(), 0, 8) / 8  # from 0 to 1 over 8 pixels
    values[30:34, 30:34] = 0.5  # inside, for the second window alone
    windows = ((0, 0.5), (0.6, 1.0))
    first, second = (
        contours(values, EVERYWHERE, ContourSettings(windows=(w,), low=20, high=50))
        for w in windows
    )
    apart = contours(values, EVERYWHERE, ContourSettings(windows=windows, low=20, high=50, apart=4))
    border, inside = radius() > 12, radius() < 12
    assert (second & border).any() and (second & inside).any()
    np.testing.assert_array_equal(apart[border], first[border])
    np.testing.assert_array_equal(apart[inside], second[inside])


def test_what_lies_outside_the_body_has_no_contour(rng):
    """A head holder, or noise, changes nothing."""
    body = radius() < 20
    values = np.float32(np.where(body, photograph(rng) / 255, 0))
    with_holder = np.where(body, values, rng.normal(size=values.shape)).astype(np.float32)
    with_holder[58:61] = 1
    clean, held = (contours(v, body, SETTINGS) for v in (values, with_holder))
    assert clean.any()
    np.testing.assert_array_equal(held, clean)
    assert not contours(values, np.zeros_like(body), SETTINGS).any()
    assert contours(with_holder, EVERYWHERE, SETTINGS)[57:62].any()


def test_a_mask_may_be_of_bytes(rng):
    values, body = np.float32(photograph(rng) / 255), radius() < 20
    np.testing.assert_array_equal(
        contours(values, body.astype(np.uint8), SETTINGS), contours(values, body, SETTINGS)
    )


def test_contours_are_zeros_and_ones_of_bytes(rng):
    edges = contours(np.float32(photograph(rng) / 255), EVERYWHERE, SETTINGS)
    assert edges.dtype == np.uint8
    assert set(np.unique(edges)) == {0, 1}


def test_a_stack_is_its_slices(rng):
    values = rng.random((3, 64, 64), np.float32)
    masks = rng.random((3, 64, 64)) < 0.9
    stacked = stack(values, masks, SETTINGS)
    for slice_edges, value, mask in zip(stacked, values, masks, strict=True):
        np.testing.assert_array_equal(slice_edges, contours(value, mask, SETTINGS))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (16, 16)])
@pytest.mark.parametrize("value", [-3000.0, 0.5, 3000.0])
def test_images_without_borders_have_no_contours(shape, value):
    settings = dataclasses.replace(SETTINGS, blur=5, apart=1)
    edges = contours(np.full(shape, value, np.float32), np.ones(shape, bool), settings)
    assert edges.shape == shape
    assert not edges.any()


@pytest.mark.parametrize("name", module.PRESETS)
def test_settings_travel_through_json(name):
    for settings in module.PRESETS[name].values():
        assert module.preset(name, "ct") is module.PRESETS[name]["ct"]
        assert ContourSettings.from_dict(settings.to_dict()) == settings
        assert ContourSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
        assert hash(ContourSettings.from_dict(settings.to_dict())) == hash(settings)


def test_what_may_be_left_out_has_its_default():
    short = ContourSettings.from_dict({"windows": [[0, 1]], "low": 20, "high": 50})
    assert short == SETTINGS


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"low": 60, "high": 50}, "low=60"),
        ({"low": -1}, "low=-1"),
        ({"low": float("nan")}, "low=nan"),
        ({"windows": []}, "windows"),
        ({"windows": [[0, 1], [5, 5]]}, r"\(5.0, 5.0\)"),
        ({"windows": [[80, -20]]}, r"\(80.0, -20.0\)"),
        ({"windows": [[0, 1, 2]]}, "windows"),
        ({"windows": [[0, float("nan")]]}, "windows"),
        ({"curve": [[0, 0]]}, "curve.*two or more"),
        ({"curve": [[0, 0], [0, 1]]}, "curve.*rise"),
        ({"curve": [[0, 0], [1, 1.5]]}, "curve.*between 0 and 1"),
        ({"windows": 5}, "wrong type"),
        ({"low": "a"}, "wrong type"),
        ({"windows": [[0, float("inf")]]}, "low < high"),
        ({"blur": 3.0}, "blur: 3.0"),
        ({"blur": 4}, "blur: 4"),
        ({"blur": 0}, "blur: 0"),
        ({"blur": -3}, "blur: -3"),
        ({"apart": -1}, "apart: -1"),
        ({"appart": 1}, "unknown.*appart.*fields are.*apart"),
    ],
)
def test_bad_settings_are_named(fields, named):
    good = {"windows": [[0, 1]], "low": 20, "high": 50}
    with pytest.raises(InputError, match=named) as error:
        ContourSettings.from_dict(good | fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["low", "high"])
def test_missing_settings_are_named(name):
    fields = {"windows": [[0, 1]], "low": 20, "high": 50}
    del fields[name]
    with pytest.raises(InputError, match=f"missing.*{name}"):
        ContourSettings.from_dict(fields)


def test_a_curve_of_two_points_is_a_window(rng):
    values = np.float32(rng.normal(size=(64, 64)))
    window = ContourSettings(windows=((-1, 2),), low=80, high=150)
    curve = ContourSettings(curve=((-1, 0), (2, 1)), low=80, high=150)
    assert contours(values, EVERYWHERE, window).any()
    np.testing.assert_array_equal(
        contours(values, EVERYWHERE, curve), contours(values, EVERYWHERE, window)
    )


def test_a_curve_draws_a_border_once_where_windows_draw_it_twice():
    """Bone beside fat, three pixels of partial volume between them: MR has one border there."""
    columns = np.interp(np.arange(64), [30, 34], [-100, 1000])
    values = np.tile(columns, (64, 1)).astype(np.float32)
    united, curve = (module.preset(name, "ct") for name in ("united", "default"))
    assert contours(values, EVERYWHERE, curve)[32].sum() == 1
    assert contours(values, EVERYWHERE, united)[32].sum() > 1


def test_an_unknown_preset_is_named():
    with pytest.raises(InputError, match=r"mediffuse.*default"):
        module.preset("mediffuse", "ct")
