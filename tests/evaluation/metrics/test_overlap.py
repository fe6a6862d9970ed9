# SPDX-License-Identifier: Apache-2.0
"""Dice and surface distances: exact, symmetric, in mm, and equal to brute force."""

import fractions

import numpy as np
import pytest
from skimage.metrics import hausdorff_distance

from contourdiff_jax.evaluation.metrics import overlap

SPACING = (0.7, 1.3, 3.0)


def blobs(rng, shape=(14, 12, 10)):
    """Two ragged masks that overlap."""
    centre = (np.array(shape) - 1) / 2
    distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - centre, axis=-1)
    return [distance + rng.normal(0, 0.7, shape) < radius for radius in (3.5, 4.5)]


def brute(mask, truth, spacing):
    """Every surface voxel against every other, surfaces found neighbour by neighbour."""

    def points(part):
        padded, inside = np.pad(part, 1), []
        for place in np.argwhere(part):
            faces = [
                tuple(place + 1 + step) for step in np.vstack([np.eye(3), -np.eye(3)]).astype(int)
            ]
            if not all(padded[face] for face in faces):
                inside.append(place * np.array(spacing))
        return np.array(inside)

    a, b = points(mask), points(truth)
    every = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return every.min(1), every.min(0)


def test_dice_is_the_exact_fraction(rng):
    labels, truth = rng.integers(0, 4, (2, 7, 8, 9))
    found = overlap.dice(labels, truth, [1, 2, 3])
    for number, value in found.items():
        both = int(((labels == number) & (truth == number)).sum())
        sizes = int((labels == number).sum() + (truth == number).sum())
        assert value == float(fractions.Fraction(2 * both, sizes))


def test_dice_of_what_is_not_there(rng):
    labels = rng.integers(0, 2, (4, 4, 4))
    truth = np.zeros_like(labels)
    # a label that is not there but predicted is wrong; one that is in neither is no question
    assert overlap.dice(labels, truth, [1, 2]) == {1: 0.0, 2: None}
    assert overlap.dice(labels, labels, [1]) == {1: 1.0}


def test_distances_are_those_of_brute_force(rng):
    mask, truth = blobs(rng)
    got = overlap.surface_distances(mask, truth, SPACING)
    expected = brute(mask, truth, SPACING)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=1e-12)
    forth, back = expected
    scores = overlap.distances(mask, truth, SPACING)
    assert scores["assd"] == pytest.approx((forth.sum() + back.sum()) / (len(forth) + len(back)))
    assert scores["hd95"] == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)))


def test_the_largest_distance_is_scikit_image_s(rng):
    mask, truth = blobs(rng)
    largest = max(part.max() for part in overlap.surface_distances(mask, truth, (1, 1, 1)))
    surfaces = [overlap.surface(part) for part in (mask, truth)]
    assert largest == pytest.approx(hausdorff_distance(*surfaces))


def test_a_shift_is_as_far_as_it_is_in_mm():
    slab = np.zeros((6, 20, 12), bool)
    slab[:, 3:9] = True
    shifted = np.roll(slab, 4, axis=1)
    forth, back = overlap.surface_distances(slab, shifted, SPACING)
    assert [forth.max(), back.max()] == pytest.approx([4 * 1.3] * 2)
    assert overlap.distances(slab, slab, SPACING) == {"assd": 0.0, "hd95": 0.0}


def test_distances_follow_the_spacing_and_not_the_order(rng):
    mask, truth = blobs(rng)
    scores = overlap.distances(mask, truth, SPACING)
    assert overlap.distances(truth, mask, SPACING) == pytest.approx(scores)
    doubled = overlap.distances(mask, truth, [2 * mm for mm in SPACING])
    assert doubled == pytest.approx({name: 2 * value for name, value in scores.items()})
    turned = overlap.distances(mask.transpose(2, 0, 1), truth.transpose(2, 0, 1), (3.0, 0.7, 1.3))
    assert turned == pytest.approx(scores)


def test_one_voxel_is_its_own_surface():
    mask, truth = np.zeros((2, 5, 5, 5), bool)
    mask[0, 0, 0] = truth[4, 0, 4] = True
    assert overlap.distances(mask, truth, (1, 1, 2)) == {
        "assd": pytest.approx(80**0.5),
        "hd95": pytest.approx(80**0.5),
    }


def test_there_is_no_distance_from_nothing():
    mask = np.ones((3, 3, 3), bool)
    assert overlap.distances(mask, ~mask, SPACING) == {"assd": None, "hd95": None}
    with pytest.raises(ValueError, match="empty"):
        overlap.surface_distances(mask, ~mask, SPACING)
