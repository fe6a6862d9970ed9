# SPDX-License-Identifier: Apache-2.0
"""How well two images lie on one another: overlap, mutual information, and their shift."""

import numpy as np
import pytest
from skimage.metrics import normalized_mutual_information

from contourdiff_jax.data import fitting
from contourdiff_jax.data.phantoms.heads import Heads


@pytest.fixture(scope="module")
def head():
    """MR and CT [N, H, W] of one head, and its body."""
    pictures, _ = Heads(4, 64, slices=6, thickness=12).render("phantom000", ("mr", "ct"))
    mr, ct = (np.moveaxis(pictures[kind], 2, 0).astype(np.float32) for kind in ("mr", "ct"))
    return mr, ct, ct > -300


def test_dice_is_of_each_slice_or_of_all():
    one = np.zeros((3, 4, 4), bool)
    one[0, :2], one[1, :2] = True, True
    other = np.zeros_like(one)
    other[0, 1:3], other[1, :2] = True, True
    np.testing.assert_allclose(fitting.dice(one, other, (1, 2)), [0.5, 1, 1])
    assert fitting.dice(one, other) == pytest.approx(0.75)


def test_mutual_information_is_scikit_image_s(rng):
    one = rng.integers(0, 8, 4000)
    other = np.where(rng.random(4000) < 0.7, 7 - one, rng.integers(0, 8, 4000))
    ours = fitting.mutual_information(np.bincount(one * 8 + other, minlength=64), 8)
    entropies = [
        -(p[p > 0] * np.log(p[p > 0])).sum()
        for p in (np.bincount(values, minlength=8) / 4000 for values in (one, other))
    ]
    # Theirs is (H(A) + H(B)) / H(A, B), and H(A, B) = H(A) + H(B) - I(A, B).
    theirs = normalized_mutual_information(one, other, bins=8)
    assert ours == pytest.approx(sum(entropies) - sum(entropies) / theirs, rel=1e-9)
    assert fitting.mutual_information(np.ones(64), 8) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("moved", [(0, 0), (3, -2), (-5, 4), (1, 0), (0, 6)])
def test_a_shift_is_found_though_the_modalities_differ(head, moved):
    mr, ct, body = head
    columns, rows = moved
    found = fitting.shift(mr, np.roll(ct, (rows, columns), (1, 2)), body, 8, -1000.0)
    assert (found.columns, found.rows) == pytest.approx(moved, abs=0.35)


def test_information_falls_with_the_shift_and_knows_no_unit(head):
    mr, ct, body = head
    known = [
        fitting.shift(mr, np.roll(ct, by, 2), body, 2, -1000.0).information for by in (0, 2, 4, 8)
    ]
    assert known == sorted(known, reverse=True)
    again = fitting.shift(mr * 7 - 3, np.exp(ct / 1000), body, 2, np.exp(-1.0))
    assert again.information == pytest.approx(known[0], rel=0.02)


def test_where_there_is_nothing_to_see_nothing_is_shifted(head):
    mr, ct, body = head
    found = fitting.shift(mr, np.full_like(ct, -1000), body, 5, -1000.0)
    assert found == pytest.approx((0, 0, 0), abs=1e-12)
    assert fitting.shift(mr, ct, np.zeros_like(body), 5, -1000.0) == (0, 0, 0)


def test_no_farther_than_its_reach(head):
    mr, ct, body = head
    found = fitting.shift(mr, np.roll(ct, 9, 2), body, 3, -1000.0)
    assert found.columns == 3
    assert fitting.shift(mr, ct, body, 0, -1000.0)[:2] == (0, 0)
