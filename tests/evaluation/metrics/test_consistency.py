# SPDX-License-Identifier: Apache-2.0
"""Coherence along the axis: known answers for noise, ramps, drift and shifts; gaps; few slices."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity

from contourdiff_jax.evaluation.metrics import consistency

SHAPE = (24, 32, 32)
EVERYWHERE = np.ones(SHAPE, bool)
SPACING = (1.0, 1.0)


def gaps(mm=1.0, count=SHAPE[0]):
    return np.full(count - 1, mm)


def along_axis(slices, masks=EVERYWHERE, between=None, spacing=SPACING):
    between = gaps(count=len(slices)) if between is None else between
    return consistency.along_axis(slices, masks, between, spacing)


def anatomy(rng):
    """Smooth in all directions."""
    return 5 * ndimage.gaussian_filter(rng.standard_normal(SHAPE), 3, mode="nearest")


# ----------------------------------------------------------------------------------------------
# Known answers
# ----------------------------------------------------------------------------------------------


def test_independent_noise_has_the_second_difference_of_its_variance(rng):
    got = along_axis(0.1 * rng.standard_normal(SHAPE))
    normal = np.sqrt(2 / np.pi)  # mean of the absolute value of a standard normal
    assert got["flicker"] == pytest.approx(np.sqrt(6) * 0.1 * normal, rel=0.03)
    assert got["slice_difference"] == pytest.approx(np.sqrt(2) * 0.1 * normal, rel=0.03)
    assert got["gradient_ratio"] == pytest.approx(1, rel=0.03)
    assert got["gradient_energy"] == pytest.approx(2 * 0.1**2, rel=0.03)


def test_noise_that_is_smooth_along_the_axis_does_not_flicker(rng):
    noise = rng.standard_normal(SHAPE)
    smooth = ndimage.gaussian_filter1d(noise, 3, axis=0, mode="wrap")
    smooth *= noise.std() / smooth.std()
    one, other = along_axis(noise), along_axis(smooth)
    assert other["flicker"] < 0.1 * one["flicker"]
    assert other["slice_difference"] < 0.4 * one["slice_difference"]
    assert other["gradient_ratio"] < 0.4 * one["gradient_ratio"]


def test_a_ramp_has_its_slope_and_no_flicker_whatever_the_gaps(rng):
    uneven = rng.uniform(0.5, 4, SHAPE[0] - 1)
    place = np.r_[0, np.cumsum(uneven)]
    x, y = np.arange(32)[:, None], np.arange(32)
    ramp = (0.02 * place)[:, None, None] + 0.04 * x / 2 + 0.04 * y / 2
    got = along_axis(ramp, between=uneven, spacing=(2.0, 2.0))
    assert got["slice_difference"] == pytest.approx(0.02, rel=1e-4)
    assert got["gradient_ratio"] == pytest.approx(2, rel=1e-4)  # 0.02 per 2 mm in the plane
    assert got["flicker"] == pytest.approx(0, abs=1e-6)
    assert got["gradient_energy"] == pytest.approx((0.04 / 4) ** 2, rel=1e-4)
    taken_as_even = along_axis(ramp, between=gaps(2.0))
    assert taken_as_even["flicker"] > 0.01


def test_a_missing_slice_is_a_gap_and_not_a_flicker():
    ramp = np.broadcast_to(0.1 * np.arange(8.0)[:, None, None], (8, 16, 16))
    got = along_axis(np.delete(ramp, 3, 0), np.ones((7, 16, 16), bool), [1, 1, 2, 1, 1, 1])
    assert got["slice_difference"] == pytest.approx(0.1, rel=1e-5)
    assert got["flicker"] == pytest.approx(0, abs=1e-6)


def test_the_unit_of_length_scales_what_is_per_mm_only(rng):
    volume = anatomy(rng)
    near, far = along_axis(volume), along_axis(volume, between=gaps(3.0), spacing=(3.0, 3.0))
    assert far["slice_difference"] == pytest.approx(near["slice_difference"] / 3)
    assert far["gradient_energy"] == pytest.approx(near["gradient_energy"] / 9)
    for name in ("gradient_ratio", "flicker", "level_step"):
        assert far[name] == pytest.approx(near[name])


def test_levels_that_change_from_slice_to_slice_are_found_and_anatomy_is_not(rng):
    # discs that come and go: the mean of a slice follows them, the median of changes does not
    x, y = np.mgrid[-1:1:32j, -1:1:32j]
    radii = 0.5 + 0.08 * np.sin(np.arange(SHAPE[0]))
    volume = np.stack([np.where(np.hypot(x, y) < r, 0.8, 0.2) for r in radii])
    assert np.diff(volume.mean((1, 2))).std() > 0.02
    assert along_axis(volume)["level_step"] == 0
    offsets = 0.05 * rng.standard_normal(SHAPE[0])
    unsteady = volume + offsets[:, None, None]
    expected = np.sqrt(np.mean(np.diff(offsets) ** 2))
    assert along_axis(unsteady)["level_step"] == pytest.approx(expected, rel=1e-4)


def test_slices_count_by_the_body_they_show():
    # a few pixels at the end of the body, where the level is far off
    volume, masks = np.zeros((3, 32, 32)), np.ones((3, 32, 32), bool)
    volume[2], masks[2] = 1, False
    masks[2, 0, 0] = True
    got = along_axis(volume, masks)
    assert got["level_step"] == pytest.approx(np.sqrt(1 / (32 * 32 + 1)))


def test_what_lies_outside_the_body_does_not_count(rng):
    volume, masks = anatomy(rng), np.zeros(SHAPE, bool)
    masks[2:-2, 4:20, 4:20] = True
    spoilt = np.where(masks, volume, rng.standard_normal(SHAPE))
    assert along_axis(spoilt, masks) == along_axis(volume, masks)


# ----------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------


def test_anatomy_drops_out_of_the_error(rng):
    truth = anatomy(rng)
    noise = 0.1 * rng.standard_normal(SHAPE)
    got = consistency.of_error(truth + noise, truth, EVERYWHERE, gaps())
    alone = consistency.of_error(noise, np.zeros(SHAPE), EVERYWHERE, gaps())
    assert got == pytest.approx(alone, rel=1e-4)
    same = consistency.of_error(truth, truth, EVERYWHERE, gaps())
    assert same == {"error_flicker": 0, "error_drift": 0}


def test_drift_is_the_deviation_of_the_levels_of_the_error(rng):
    truth = anatomy(rng)
    drift = np.linspace(-0.1, 0.1, SHAPE[0])
    got = consistency.of_error(truth + drift[:, None, None], truth, EVERYWHERE, gaps())
    assert got["error_drift"] == pytest.approx(drift.std(), rel=1e-4)
    assert got["error_flicker"] == pytest.approx(0, abs=1e-6)
    # an offset of the whole volume is an error, not a drift
    shifted = consistency.of_error(truth + 0.3, truth, EVERYWHERE, gaps())
    assert shifted["error_drift"] == pytest.approx(0, abs=1e-6)


# ----------------------------------------------------------------------------------------------
# Few slices
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "defined"),
    [
        (1, {"gradient_energy"}),
        (2, {"gradient_energy", "slice_difference", "gradient_ratio", "level_step"}),
    ],
)
def test_what_few_slices_do_not_define_is_none(rng, count, defined):
    volume, masks = rng.random((count, 8, 8)), np.ones((count, 8, 8), bool)
    got = along_axis(volume, masks)
    assert {name for name, value in got.items() if value is not None} == defined
    error = consistency.of_error(volume, 0 * volume, masks, gaps(count=count))
    assert error["error_flicker"] is None
    assert (error["error_drift"] is None) == (count == 1)


def test_without_a_body_nothing_is_defined(rng):
    empty = np.zeros(SHAPE, bool)
    volume = rng.random(SHAPE)
    assert set(along_axis(volume, empty).values()) == {None}
    assert set(consistency.of_error(volume, volume, empty, gaps()).values()) == {None}
    flat = along_axis(np.zeros(SHAPE))
    assert flat["gradient_ratio"] is None and flat["slice_difference"] == 0


# ----------------------------------------------------------------------------------------------
# Reformatted planes
# ----------------------------------------------------------------------------------------------


def test_square_voxels_are_scored_as_they_are(rng):
    truth = rng.random((3, 20, 24))
    planes = np.clip(truth + 0.1 * rng.standard_normal(truth.shape), 0, 1)
    masks = np.zeros(truth.shape, bool)
    masks[:, 3:15, 5:20] = True
    got = consistency.reformatted(planes, truth, masks, (2.0, 2.0))
    maps = [
        structural_similarity(p, t, data_range=1, full=True)[1]
        for p, t in zip(planes, truth, strict=True)
    ]
    expected = np.mean([m[mask].mean() for m, mask in zip(maps, masks, strict=True)])
    assert got["ssim_mask"] == pytest.approx(expected, abs=1e-5)
    assert got["mae_mask"] == pytest.approx(np.abs(planes - truth)[masks].mean(), abs=1e-6)


def test_thick_slices_are_interpolated_to_square_pixels_for_ssim(rng):
    # seen along a plane, every slice repeated is the same picture on finer voxels
    truth = ndimage.gaussian_filter(rng.random((2, 12, 40)), (0, 1, 3))
    truth = (truth - truth.min()) / np.ptp(truth)
    planes = np.clip(truth + 0.05, 0, 1)
    masks = np.ones(truth.shape, bool)
    got = consistency.reformatted(planes, truth, masks, (3.0, 1.0))
    square = [
        ndimage.zoom(a, (1, 3, 1), order=1, mode="nearest", grid_mode=True) for a in (planes, truth)
    ]
    whole = consistency.reformatted(*square, np.ones(square[0].shape, bool), SPACING)
    assert got["ssim_mask"] == pytest.approx(whole["ssim_mask"], abs=1e-6)
    stretched = consistency.reformatted(planes, truth, masks, SPACING)
    assert got["mae_mask"] == stretched["mae_mask"]  # of the voxels as they are
    assert got["ssim_mask"] != pytest.approx(stretched["ssim_mask"], abs=1e-4)


def test_a_shifted_volume_is_worse_and_its_slices_as_coherent(rng):
    truth = np.clip(0.5 + anatomy(rng), 0, 1)
    masks = np.ones(truth.shape, bool)
    scores = [
        consistency.reformatted(np.roll(truth, shift, 2), truth, masks, SPACING)
        for shift in (0, 1, 3)
    ]
    assert scores[0]["ssim_mask"] == pytest.approx(1) and scores[0]["mae_mask"] == 0
    for name, sign in (("ssim_mask", -1), ("psnr_mask", -1), ("mae_mask", 1)):
        assert (sign * np.diff([score[name] for score in scores]) > 0).all()
    coherence = [along_axis(np.roll(truth, shift, 2)) for shift in (0, 3)]
    assert coherence[1]["flicker"] == pytest.approx(coherence[0]["flicker"])


def test_planes_that_are_too_narrow_for_a_window_have_no_ssim(rng):
    truth = rng.random((4, 2, 30))
    got = consistency.reformatted(truth, truth, np.ones(truth.shape, bool), (2.0, 1.0))
    assert got["ssim_mask"] is None and got["mae_mask"] == 0
