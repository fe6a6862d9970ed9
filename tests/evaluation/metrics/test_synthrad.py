# SPDX-License-Identifier: Apache-2.0
"""SynthRAD's scores equal their definitions, computed voxel by voxel, and scikit-image."""

import numpy as np
import pytest
from scipy import ndimage, signal
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from contourdiff_jax.evaluation.metrics import paired, synthrad

LOW, HIGH = -1024.0, 3071.0
SCORES = {"synthrad_mae", "synthrad_psnr", "synthrad_ssim", "synthrad_ms_ssim"}


def volumes(shape, seed=0):
    """A CT-like truth, an image that is off, some of it beyond the range, and a mask."""
    rng = np.random.default_rng(seed)
    truth = 4000 * ndimage.gaussian_filter(rng.standard_normal(shape), 2) + 200
    image = truth + 150 * rng.standard_normal(shape)
    image[tuple(side // 2 for side in shape)] = 5000
    mask = np.zeros(shape, bool)
    mask[tuple(slice(max(side // 2 - 9, 0), side // 2 + 9) for side in shape)] = True
    return image, truth, mask


def component(a, b):
    """Luminance x contrast x structure of two windows, each as it is defined."""
    c1, c2 = (0.01 * (HIGH - LOW)) ** 2, (0.03 * (HIGH - LOW)) ** 2
    c3 = c2 / 2
    covariance = ((a - a.mean()) * (b - b.mean())).sum() / (a.size - 1)
    deviations = a.std(ddof=1), b.std(ddof=1)
    product = deviations[0] * deviations[1]
    luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
    contrast = (2 * product + c2) / (deviations[0] ** 2 + deviations[1] ** 2 + c2)
    structure = (covariance + c3) / (product + c3)
    return [max(value, 0) for value in (luminance, contrast, structure)]


def by_hand(image, truth, mask):
    """MS-SSIM with a loop over the mask's voxels and convolution by Fourier transform."""
    x, y = (np.where(mask, np.clip(v, LOW, HIGH), LOW) - LOW for v in (image, truth))
    widths = [((97 - n) // 2, 97 - n - (97 - n) // 2) if n < 97 else (0, 0) for n in mask.shape]
    x, y, mask = (np.pad(v, widths, mode="edge") for v in (x, y, mask))
    total = 1
    for weight in (0.0448, 0.2856, 0.3001, 0.2363, 0.1333):
        values = []
        for place in np.argwhere(mask):
            if all(3 <= p < n - 3 for p, n in zip(place, mask.shape, strict=True)):
                window = tuple(slice(p - 3, p + 4) for p in place)
                values.append(np.prod(np.power(component(x[window], y[window]), weight)))
        total *= np.mean(values)
        box = np.full((2, 2, 2), 1 / 8)
        x, y = (signal.fftconvolve(v, box, mode="same")[::2, ::2, ::2] for v in (x, y))
        mask = mask[::2, ::2, ::2]
    return total


@pytest.mark.parametrize(("shape", "axis"), [((164, 161, 20), 2), ((30, 161, 170), 0)])
def test_ms_ssim_equals_its_definition_voxel_by_voxel(shape, axis):
    # thin along the axis, so that the continued border is in the number
    image, truth, mask = volumes(shape)
    found = synthrad.scores(image, truth, mask, LOW, HIGH, axis)
    assert found["synthrad_ms_ssim"] == pytest.approx(by_hand(image, truth, mask), abs=1e-9)
    assert 0 < found["synthrad_ms_ssim"] < 1


def test_the_others_equal_scikit_image():
    image, truth, mask = volumes((40, 41, 30))
    found = synthrad.scores(image, truth, mask, LOW, HIGH, 2)
    clipped = [np.where(mask, np.clip(v, LOW, HIGH), LOW) for v in (truth, image)]
    psnr = peak_signal_noise_ratio(*(v[mask] for v in clipped), data_range=HIGH - LOW)
    assert found["synthrad_psnr"] == pytest.approx(psnr, abs=1e-6)
    everywhere = structural_similarity(*(v - LOW for v in clipped), data_range=4095, full=True)[1]
    assert found["synthrad_ssim"] == pytest.approx(everywhere[mask].mean(), abs=1e-6)
    # the mean absolute error alone sees what lies beyond the range
    assert found["synthrad_mae"] == pytest.approx(np.abs(image - truth)[mask].mean(), rel=1e-12)


def test_nothing_outside_the_mask_counts():
    image, truth, mask = volumes((161, 161, 12))
    other = np.where(mask, image, 3000)
    found = [synthrad.scores(v, truth, mask, LOW, HIGH, 2) for v in (image, other)]
    assert found[0] == found[1] and found[0].keys() == SCORES


def test_equal_volumes_are_perfect():
    _, truth, mask = volumes((161, 161, 12))
    found = synthrad.scores(truth, truth, mask, LOW, HIGH, 2)
    assert found == pytest.approx(
        dict(zip(sorted(SCORES), (0, 1, paired.PSNR_CAP, 1), strict=True)), abs=1e-12
    )


def test_what_is_too_small_has_no_number():
    for shape, axis, missing in (
        ((161, 160, 30), 2, {"synthrad_ms_ssim"}),
        ((161, 30, 161), 2, {"synthrad_ms_ssim"}),
        ((40, 40, 6), 2, {"synthrad_ssim", "synthrad_ms_ssim"}),
    ):
        image, truth, _ = volumes(shape)
        found = synthrad.scores(image, truth, np.ones(shape, bool), LOW, HIGH, axis)
        assert SCORES - found.keys() == missing
    border = np.zeros((161, 161, 97), bool)
    border[0, 0, 0] = True
    image, truth, _ = volumes(border.shape)
    found = synthrad.scores(image, truth, border, LOW, HIGH, 2)
    assert found.keys() == {"synthrad_mae", "synthrad_psnr"}
