# SPDX-License-Identifier: Apache-2.0
"""Contours against OpenCV, against shapes whose border is known, and their settings."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import filters, morphology

from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.opencv import contours, on_grid, stack
from contourdiff_jax.contours.settings import ContourSettings, named
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import geometry, intensity, io
from contourdiff_jax.volumes import volume as volumes_volume
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.volume import Assumed

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


@pytest.mark.parametrize("name", contour_settings.PRESETS)
def test_settings_travel_through_json(name):
    for settings in contour_settings.PRESETS[name].values():
        assert contour_settings.preset(name, "ct") is contour_settings.PRESETS[name]["ct"]
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
        ({"low": float("nan")}, "low: nan, where a finite number"),
        ({"windows": []}, "windows"),
        ({"windows": [[0, 1], [5, 5]]}, r"\(5.0, 5.0\)"),
        ({"windows": [[80, -20]]}, r"\(80.0, -20.0\)"),
        ({"windows": [[0, 1, 2]]}, "windows"),
        ({"windows": [[0, float("nan")]]}, "windows"),
        ({"curve": [[0, 0]]}, "curve.*two or more"),
        ({"curve": [[0, 0], [0, 1]]}, "curve.*rise"),
        ({"curve": [[0, 0], [1, 1.5]]}, "curve.*between 0 and 1"),
        ({"windows": 5}, "windows: 5, where a list"),
        ({"low": "a"}, "low: .a., where a finite number"),
        ({"windows": [[0, float("inf")]]}, r"windows\[0\]\[1\]: inf"),
        ({"blur": 3.0}, "blur: 3.0"),
        ({"blur": 11}, "blur: 11 is none of 1, 3, 5, 7, 9"),
        ({"thin": -1}, "thin: -1"),
        ({"thin": 3}, "thin: it is of a curve alone"),
        ({"clean": (1, 1)}, "clean: it is of native pixels"),
        ({"blur": 4}, "blur: 4"),
        ({"blur": 0}, "blur: 0"),
        ({"blur": -3}, "blur: -3"),
        ({"apart": -1}, "apart: -1"),
        ({"clean": [8000]}, "clean: .8000., where a list of 2"),
        ({"clean": [8000, -1]}, "clean.*-1"),
        ({"clean": 8000}, "clean: 8000, where a list"),
        ({"appart": 1}, "appart: unknown; known are.*apart"),
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
    with pytest.raises(InputError, match=f"{name}: missing"):
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
    united, curve = (contour_settings.preset(name, "ct") for name in ("united", "default"))
    assert contours(values, EVERYWHERE, curve)[32].sum() == 1
    assert contours(values, EVERYWHERE, united)[32].sum() > 1


def test_an_unknown_preset_is_named():
    with pytest.raises(InputError, match=r"mediffuse.*default"):
        contour_settings.preset("mediffuse", "ct")


def test_settings_are_named_by_a_preset_or_a_file(tmp_path):
    assert named("published", "ct") == contour_settings.preset("published", "ct")
    path = tmp_path / "contours.json"
    path.write_text(json.dumps(SETTINGS.to_dict()))
    assert named(path, "ct") == SETTINGS
    path.write_text("{")
    with pytest.raises(InputError, match=r"contours\.json.*JSON.*original"):
        named(path, "ct")
    path.write_text('{"low": 3}')
    with pytest.raises(InputError, match=r"contours\.json.*missing"):
        named(path, "ct")


# ----------------------------------------------------------------------------------------------
# Of native pixels
# ----------------------------------------------------------------------------------------------


def organ(size: int, rng) -> np.ndarray:
    """[size, size] uint8: a large bright organ with a small and a large hole, and things beside."""
    scale = size / 320
    rows, columns = np.mgrid[:size, :size] / scale
    body = np.hypot(rows - 150, columns - 140) < 110
    for row, column, radius, inside in (
        (150, 90, 12, False),
        (150, 170, 45, False),
        (290, 280, 22, True),
        (20, 290, 4, True),
    ):
        body = np.where(np.hypot(rows - row, columns - column) < radius, inside, body)
    noise = cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), 1.5) * 90
    return np.uint8(np.clip(np.where(body, 170, 20) + noise, 0, 255))


def original(picture: np.ndarray, size: int, clean: bool) -> np.ndarray:
    """[size, size] what a network of the original's sees of a square picture.

    Written from what ContourDiff's preprocess.py and transform.py do, with other functions.
    """
    if clean:
        bright = np.uint8(picture > filters.threshold_multiotsu(picture, classes=2))
        bright = morphology.erosion(bright, morphology.disk(1))
        bright = morphology.area_opening(bright, 8000, connectivity=1)
        picture = picture * morphology.area_closing(bright, 3000, connectivity=1)
    edges = cv2.Canny(cv2.GaussianBlur(picture, (3, 3), 0), 80, 150)
    resized = Image.fromarray(edges).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(resized) > 50


def taken(path, size: int, modality: str, settings: ContourSettings, assumed=None) -> np.ndarray:
    """[N, size, size] contours of a file of square planes, on a grid that covers just these."""
    volume = io.read(path, assumed=assumed or volumes_volume.UNKNOWN)
    chosen = intensity.preset(modality)
    window = chosen.window_of(volume)
    spacing = volume.array.shape[0] * geometry.spacing(volume.affine)[0] / size
    _, resampling = Grid("axial", float(spacing), size).fit_volume(volume)
    # The body is of no account.
    masks = np.zeros((volume.array.shape[2], size, size), bool)
    values, shown = chosen.values(volume.array, window), chosen.shown(volume, window)
    return on_grid(values, masks, resampling, chosen, settings, shown)


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("modality", ["mr", "ct"])
@pytest.mark.parametrize(("pixels", "size"), [(512, 256), (320, 256), (300, 96), (256, 256)])
def test_contours_of_pictures_are_the_originals(tmp_path, rng, pixels, size, modality, clean):
    """Byte for byte, whatever the preset and the window of the picture's greys."""
    picture = organ(pixels, rng)
    Image.fromarray(picture).save(tmp_path / "a.png")
    settings = contour_settings.preset("original_cleaned" if clean else "original", modality)
    edges = taken(tmp_path / "a.png", size, modality, settings)
    expected = original(picture, size, clean)
    assert expected.sum() > 100
    np.testing.assert_array_equal(edges, expected[None])
    # What the artefacts' removal leaves is another picture.
    assert (original(picture, size, True) != original(picture, size, False)).any()


@pytest.mark.parametrize("clean", [False, True])
def test_contours_of_real_pictures_are_the_originals(data_root, clean):
    """CT slices of heads in 8 bits, one picture a volume."""
    settings = contour_settings.preset("original_cleaned" if clean else "original", "ct")
    files = sorted((data_root / "png2d" / "harvard_ct").glob("*.png"))[::4]
    assert files
    for path in files:
        expected = original(np.asarray(Image.open(path).convert("L")), 128, clean)
        np.testing.assert_array_equal(taken(path, 128, "ct", settings)[0], expected)


@pytest.mark.parametrize("span", [(-1000.0, 1000.0), (-160.0, 240.0)])
def test_8_bits_stay_what_they_are_whatever_they_stand_for(tmp_path, rng, span):
    picture = organ(320, rng)
    Image.fromarray(picture).save(tmp_path / "a.png")
    settings = contour_settings.preset("original", "ct")
    edges = taken(tmp_path / "a.png", 160, "ct", settings, Assumed(0.7, span))
    np.testing.assert_array_equal(edges[0], original(picture, 160, False))


def test_deeper_volumes_are_seen_through_the_window_of_the_model(tmp_path, rng):
    """HU of -1000 to 1000, in 8 bits, plane by plane; a window in the settings counts instead."""
    pictures = np.stack([organ(128, rng) for _ in range(3)])
    window = (-1000, 1000)
    hu = pictures / np.float32(255) * 2000 - 1000
    # Rows and columns of a picture run against the axes of RAS.
    array = hu.transpose(2, 1, 0)[::-1, ::-1]
    io.save(tmp_path / "a_ct.nii.gz", array, np.diag((0.7, 0.7, 3, 1)), np.float32)
    settings = contour_settings.preset("original", "ct")
    expected = np.stack([original(picture, 64, False) for picture in pictures])
    for given in (settings, dataclasses.replace(settings, windows=(window,))):
        edges = taken(tmp_path / "a_ct.nii.gz", 64, "ct", given)
        np.testing.assert_array_equal(edges, expected)
    narrow = dataclasses.replace(settings, windows=((-100, 100),))
    assert (taken(tmp_path / "a_ct.nii.gz", 64, "ct", narrow) != expected).any()


def test_contours_on_the_grid_are_those_of_its_slices(rng):
    """Without `native` and `thin` nothing of the volume's own pixels is left."""
    array = rng.random((40, 40, 3), np.float32)
    resampling = Grid("axial", 1.3, 32).fit(array.shape, np.eye(4))
    masks = rng.random((3, 32, 32)) < 0.9
    mr = intensity.preset("mr")
    edges = on_grid(array, masks, resampling, mr, SETTINGS)
    assert edges.any()
    np.testing.assert_array_equal(edges, stack(resampling.slices(array, 0), masks, SETTINGS))


def bone_and_air(spacing: float) -> np.ndarray:
    """A disc of bone in air, 80 mm across, its border mixed: HU [X, Y, 1] of that spacing [mm]."""
    distance = radius(round(96 / spacing)) * spacing
    bone = np.clip((40 - distance) / spacing + 0.5, 0, 1)
    return np.float32(1200 * bone - 1000 * (1 - bone))[..., None]


@pytest.mark.parametrize("spacing", [0.5, 1.0])
def test_mixed_voxels_are_not_taken_for_fat(spacing):
    """Half bone, half air has the HU of fat: a bright line where there is none."""
    values = bone_and_air(spacing)
    resampling = Grid("axial", 2.0, 64).fit(values.shape, np.diag([spacing, spacing, 3, 1]))
    ct, settings = intensity.preset("ct"), contour_settings.preset("default", "ct")
    coarse = dataclasses.replace(settings, thin=0.0)
    masks = np.ones((1, 64, 64), bool)
    # In the greys bone is air, so this disc has no border at all.
    assert on_grid(values, masks, resampling, ct, coarse).any()
    assert not on_grid(values, masks, resampling, ct, settings).any()


def test_tissue_wider_than_that_stays():
    """A layer of fat of 6 mm, as skin has, keeps both its borders."""
    distance = radius(96)
    values = np.select([distance < 34, distance < 40], [45.0, -90.0], -1000.0)[..., None]
    resampling = Grid("axial", 2.0, 48).fit(values.shape, np.eye(4))
    ct, settings = intensity.preset("ct"), contour_settings.preset("default", "ct")
    masks = np.ones((1, 48, 48), bool)
    edges = on_grid(np.float32(values), masks, resampling, ct, settings)
    rows, columns = np.nonzero(edges[0])
    borders = 2 * np.hypot(rows - 23.5, columns - 23.5)
    assert np.minimum(np.abs(borders - 34), np.abs(borders - 40)).max() < 3
    assert (borders < 36).any() and (borders > 38).any()


@pytest.mark.parametrize("value", [0, 77, 255])
def test_cleaning_leaves_an_even_picture_even(value):
    settings = dataclasses.replace(SETTINGS, native=True, clean=(8000, 3000))
    assert not contours(np.full((64, 64), value / 255, np.float32), EVERYWHERE, settings).any()


def test_only_settings_without_values_suit_any_modality():
    assert contour_settings.preset("original", "ct") == contour_settings.preset("original", "mr")
    suits = {
        name for name in contour_settings.PRESETS if contour_settings.preset(name, "ct").suits_any
    }
    assert suits == {"original", "original_cleaned"}
