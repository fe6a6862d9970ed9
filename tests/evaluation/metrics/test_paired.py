# SPDX-License-Identifier: Apache-2.0
"""Paired scores agree with scikit-image, and the mask does what it says."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from contourdiff_jax.evaluation.metrics import paired


def _images(seed=0, shape=(40, 31)):
    rng = np.random.default_rng(seed)
    truth = rng.random(shape)
    return np.clip(truth + 0.2 * rng.standard_normal(shape), 0, 1), truth


@pytest.mark.parametrize("data_range", [1.0, 2000.0])
def test_whole_image_equals_scikit_image(data_range):
    image, truth = (data_range * x for x in _images())
    got = paired.scores(image, truth, data_range)
    assert got["ssim"] == pytest.approx(
        structural_similarity(image, truth, data_range=data_range), abs=1e-6
    )
    assert got["psnr"] == pytest.approx(
        peak_signal_noise_ratio(truth, image, data_range=data_range), abs=1e-6
    )
    assert got["mae"] == pytest.approx(np.abs(image - truth).mean(), rel=1e-12)
    assert set(got) == {"mae", "psnr", "ssim"}


def test_mask_equals_scikit_image_on_the_masked_pixels():
    image, truth = _images()
    mask = np.zeros(image.shape, bool)
    mask[5:30, 8:25] = True
    got = paired.scores(image, truth, 1.0, mask)
    ssim_map = structural_similarity(image, truth, data_range=1.0, full=True)[1]
    assert got["ssim_mask"] == pytest.approx(ssim_map[mask].mean(), abs=1e-6)
    expected = 10 * np.log10(1 / mean_squared_error(image[mask], truth[mask]))
    assert got["psnr_mask"] == pytest.approx(expected, abs=1e-6)
    assert got["mae_mask"] == pytest.approx(np.abs(image - truth)[mask].mean(), rel=1e-12)


def test_errors_outside_the_mask_do_not_count_inside():
    _, truth = _images()
    mask = np.zeros(truth.shape, bool)
    mask[10:20, 10:20] = True
    image = truth.copy()
    image[30:, :] += 0.5  # further than half a window from the mask
    got = paired.scores(image, truth, 1.0, mask)
    assert got["mae_mask"] == 0
    assert got["ssim_mask"] == pytest.approx(1, abs=1e-9)
    assert got["mae"] > 0 and got["ssim"] < 1


def test_float32_images_are_scored_in_double_precision():
    # a CT in HU has squares of 1e6: single precision would lose the covariances
    image, truth = (3000 * x - 1000 for x in _images())
    image, truth = np.float32(image), np.float32(truth)
    got = paired.scores(image, truth, 3000.0)
    expected = structural_similarity(
        image.astype(np.float64), truth.astype(np.float64), data_range=3000.0
    )
    assert got["ssim"] == pytest.approx(expected, abs=1e-9)


def test_equal_images_have_a_finite_psnr():
    _, truth = _images()
    got = paired.scores(truth, truth, 1.0, np.ones(truth.shape, bool))
    assert got["psnr"] == got["psnr_mask"] == paired.PSNR_CAP
    assert got["ssim"] == got["ssim_mask"] == pytest.approx(1)
    assert got["mae"] == 0


def test_psnr_does_not_depend_on_the_unit():
    # the same relative error in [0, 1] and in HU must give the same decibels
    assert paired.psnr(1e-4, 1.0) == pytest.approx(paired.psnr(1e-4 * 2000**2, 2000.0))
    assert paired.psnr(0.0, 2000.0) == pytest.approx(paired.PSNR_CAP)


def test_bad_arrays_are_refused():
    image, truth = _images()
    with pytest.raises(ValueError, match="differ in shape"):
        paired.scores(image, truth[:-1], 1.0)
    with pytest.raises(ValueError, match="mask"):
        paired.scores(image, truth, 1.0, np.zeros(image.shape, bool))


def test_an_image_that_lies_beside_its_truth_is_right_where_it_is_moved_back():
    rng = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.random((40, 40)), 2)
    truth = (truth - truth.min()) / np.ptp(truth)
    mask = np.zeros((40, 40), bool)
    mask[8:30, 8:30] = True
    moved = np.roll(truth, (2, -1), (0, 1))
    plain = paired.scores(moved, truth, 1.0, mask)
    best = paired.shifted(moved, truth, 1.0, mask, (2, 1))
    assert best["ssim_shifted"] == pytest.approx(1) and best["mae_shifted"] == 0
    assert best["psnr_shifted"] == paired.PSNR_CAP and plain["ssim_mask"] < 0.9
    near = paired.shifted(moved, truth, 1.0, mask, (1, 1))
    assert plain["ssim_mask"] < near["ssim_shifted"] < 1
    still = paired.shifted(moved, truth, 1.0, mask, (0, 0))
    assert still["psnr_shifted"] == plain["psnr_mask"]
