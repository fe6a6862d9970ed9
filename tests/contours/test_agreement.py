# SPDX-License-Identifier: Apache-2.0
"""Contour agreement: tolerance, empty contours, symmetry, and a brute-force reference."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from contourdiff_jax.contours.agreement import contour_agreement


def _square(offset=0, size=32):
    contour = np.zeros((size, size), np.uint8)
    contour[8 + offset : 20 + offset, 8] = contour[8 + offset : 20 + offset, 19] = 1
    contour[8 + offset, 8:20] = contour[19 + offset, 8:20] = 1
    return contour


def test_equal_contours_agree_fully():
    assert set(contour_agreement(_square(), _square()).values()) == {1.0}


@pytest.mark.parametrize(("offset", "tolerance"), [(1, 1), (2, 2), (3, 3)])
def test_a_shift_within_the_tolerance_is_forgiven_and_a_larger_one_is_not(offset, tolerance):
    shifted = _square(offset)
    assert contour_agreement(shifted, _square(), tolerance)["contour_f1"] == 1
    assert contour_agreement(shifted, _square(), tolerance - 1)["contour_f1"] < 1


def test_diagonal_neighbours_are_one_apart():
    contour, reference = np.zeros((9, 9)), np.zeros((9, 9))
    contour[4, 4], reference[5, 5] = 1, 1
    assert contour_agreement(contour, reference)["contour_f1"] == 1


def test_empty_contours():
    # air above the head has no contour and needs none; a lost or an invented contour is wrong
    empty = np.zeros((32, 32))
    assert contour_agreement(empty, empty)["contour_f1"] == 1
    assert contour_agreement(empty, _square())["contour_f1"] == 0
    assert contour_agreement(_square(), empty)["contour_f1"] == 0


def test_contours_that_never_meet_score_zero():
    far = np.zeros((32, 32))
    far[30, 30] = 1
    assert set(contour_agreement(far, _square()).values()) == {0.0}


def test_invented_contours_cost_precision_and_lost_ones_recall():
    more = _square()
    more[25, :] = 1
    invented, lost = contour_agreement(more, _square()), contour_agreement(_square(), more)
    assert invented["contour_recall"] == lost["contour_precision"] == 1
    assert invented["contour_precision"] == lost["contour_recall"] < 1
    assert invented["contour_f1"] == lost["contour_f1"]


def test_pixels_at_the_border_do_not_wrap():
    contour, reference = np.zeros((16, 16)), np.zeros((16, 16))
    contour[:, 0], reference[:, -1] = 1, 1
    assert contour_agreement(contour, reference)["contour_f1"] == 0


@pytest.mark.parametrize("tolerance", [0, 1, 2])
def test_equals_all_distances_computed_one_by_one(tolerance):
    rng = np.random.default_rng(tolerance)
    contour, reference = rng.random((2, 24, 20)) > 0.97
    distance = cdist(np.argwhere(contour), np.argwhere(reference), "chebyshev")
    precision = (distance.min(axis=1) <= tolerance).mean()
    recall = (distance.min(axis=0) <= tolerance).mean()
    got = contour_agreement(contour, reference, tolerance)
    assert got["contour_precision"] == pytest.approx(precision)
    assert got["contour_recall"] == pytest.approx(recall)
    total = precision + recall
    assert got["contour_f1"] == pytest.approx(2 * precision * recall / total if total else 0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        contour_agreement(np.zeros((8, 8)), np.zeros((8, 9)))
