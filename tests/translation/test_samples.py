# SPDX-License-Identifier: Apache-2.0
"""Which of several samples is kept."""

import numpy as np

from contourdiff_jax.translation import samples

ZEROS = np.zeros((3, 4, 8, 8), np.float32)  # K samples, N slices


def levels(rows):
    """Samples of even pictures: their grey [K, N]."""
    return ZEROS + np.asarray(rows, np.float32)[:, :, None, None]


SAMPLES = levels([[0.5, 0.1, 0.9, -0.1], [-0.2, 0.3, 0.2, 0.8], [0.4, -0.3, -0.9, 0.3]])


def test_the_first_is_the_usual_one():
    np.testing.assert_array_equal(samples.first(SAMPLES, None, None), [0, 0, 0, 0])


def test_the_lowest_mean_is_kept():
    np.testing.assert_array_equal(samples.lowest_mean(SAMPLES, None, None), [1, 2, 2, 0])


def test_the_nearest_follows_what_was_kept_before():
    """-0.2; then -0.3; then 0.2, and not the sample's own -0.9; then 0.3."""
    np.testing.assert_array_equal(samples.nearest(SAMPLES, None, None), [1, 2, 1, 2])


def test_the_best_contours_are_those_asked_for():
    asked = np.zeros((4, 8, 8), np.uint8)
    asked[:, 4] = 1
    shown = np.zeros((3, 4, 8, 8), np.uint8)
    shown[0, :, 1] = shown[1, :, :, 4] = 1
    shown[2] = asked
    np.testing.assert_array_equal(samples.best_contours(SAMPLES, shown, asked), [2, 2, 2, 2])


def test_what_is_kept_are_slices_of_the_samples_or_their_mean():
    kept = samples.chosen("nearest", SAMPLES, None, None)
    np.testing.assert_array_equal(kept[:, 0, 0], np.float32([-0.2, -0.3, 0.2, 0.3]))
    mean = samples.chosen("mean", SAMPLES, None, None)
    np.testing.assert_allclose(mean[:, 0, 0], SAMPLES[..., 0, 0].mean(0), atol=1e-7)
    assert set(samples.NAMES) == {*samples.RULES, "mean"}
