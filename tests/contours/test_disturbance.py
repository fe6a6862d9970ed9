# SPDX-License-Identifier: Apache-2.0
"""Disturbed contours: each kind does what it says, and nothing where it is off."""

import cv2
import jax
import numpy as np
import pytest

from contourdiff_jax import config
from contourdiff_jax.contours import device, disturbance
from contourdiff_jax.contours.settings import ContourSettings

SETTINGS = ContourSettings(windows=((0, 1),), low=20, high=50)
SIZE = (40, 56)
COUNT = 64


@pytest.fixture
def section():
    return config.default().disturbance


def draw(section, count=COUNT, seed=0, size=SIZE):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(lambda keys: disturbance.draw(keys, section, size))(keys)


def disc(count=COUNT, radius=12.0) -> np.ndarray:
    """Greys [count, 1, *SIZE] of a soft disc."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(rows - 19.5, columns - 27.5)
    grey = np.clip((radius - distance) / 3 + 0.5, 0, 1).astype(np.float32)
    return np.repeat(grey[None, None], count, 0)


def taken(greys, change):
    masks = np.ones((len(greys), *SIZE), np.uint8)
    return np.asarray(
        jax.jit(lambda *a: device.contours(*a[:2], SETTINGS, a[2]))(greys, masks, change)
    )


def test_nothing_is_drawn_where_all_is_off(section):
    assert disturbance.draw(jax.random.split(jax.random.key(0), 2), section, SIZE) is None


@pytest.mark.parametrize("kind", [k for k in disturbance.KINDS if k != "doubled"])
def test_a_kind_alone_changes_contours_by_an_amount_that_varies(section, kind):
    section[kind] = {"thresholds": 5.0, "displacement": 2.0}.get(kind, 0.5)
    # Fainter to the left: thresholds decide how much of the circle is seen.
    greys, change = disc() * np.linspace(0, 0.4, SIZE[1], dtype=np.float32), draw(section)
    differences = (taken(greys, change) != taken(greys, None)).mean((1, 2))
    assert (differences > 0).mean() > 0.2
    assert len(set(differences.tolist())) > 2
    assert sum(field is not None for field in change) == 1


@pytest.mark.parametrize("kind", disturbance.KINDS)
def test_what_is_drawn_follows_the_key_alone(section, kind):
    section.displacement = 1.0
    section[kind] = 0.5
    keys = jax.random.split(jax.random.key(1), 6)
    drawn = jax.jit(lambda keys: disturbance.draw(keys, section, SIZE))
    whole, part = drawn(keys), drawn(keys[2:4])
    for ours, theirs in zip(part, whole, strict=True):
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs[2:4])


def test_contours_go_missing_in_pieces_and_none_are_added(section):
    section.missing = 0.6
    change = draw(section, 400)
    missing = np.asarray(change.missing)
    gone = missing.mean((1, 2))
    # Uniform between none and the most: the mean is half of that.
    assert gone.mean() == pytest.approx(0.3, abs=0.04)
    assert gone.min() < 0.05 and 0.5 < gone.max() < 0.75
    before, after = taken(disc(400), None), taken(disc(400), change)
    assert (after <= before).all() and (after < before).any()
    # Pieces are far larger than a pixel: neighbours go together.
    borders = (missing[:, :, 1:] != missing[:, :, :-1]).mean((0, 1))
    assert borders.mean() < 0.1
    # And lie anywhere: their borders favour no column.
    assert borders.min() > 0.4 * borders.mean()


def test_displaced_contours_lie_near_the_true_ones_and_stay_whole(section):
    section.displacement = 1.0
    before, after = taken(disc(), None), taken(disc(), draw(section))
    assert (before != after).any((1, 2)).mean() > 0.7
    far = cv2.distanceTransform(1 - before[0], cv2.DIST_L2, 5)
    assert far[after.any(0) > 0].max() < 6
    assert all(cv2.connectedComponents(1 - image, connectivity=4)[0] == 3 for image in after)


def test_doubled_contours_are_both(section):
    section.update(displacement=2.0, doubled=1.0)
    change = draw(section)
    both = taken(disc(), change)
    np.testing.assert_array_equal(
        both, taken(disc(), None) | taken(disc(), change._replace(doubled=None))
    )
    section.doubled = 0.25
    assert np.mean(draw(section, 1000).doubled) == pytest.approx(0.25, abs=0.06)


def test_thresholds_change_by_factors_either_way(section):
    section.thresholds = 1.0
    factors = np.asarray(draw(section, 2000).thresholds)
    assert 0.5 <= factors.min() < 0.52 and 1.95 < factors.max() <= 2.0
    assert np.log(factors).mean() == pytest.approx(0, abs=0.03)


def test_a_change_of_contrast_is_straight_between_its_knots(section):
    section.contrast = 0.2
    change = draw(section)
    knots = np.linspace(0, 1, disturbance.KNOTS)
    grey = np.linspace(0, 1, 101, dtype=np.float32)
    greys = np.asarray(change.grey(np.broadcast_to(grey, (COUNT, 1, 101))))[:, 0]
    for found, added in zip(greys, np.asarray(change.contrast), strict=True):
        expected = np.clip(grey + np.interp(grey, knots, added), 0, 1)
        np.testing.assert_allclose(found, expected, atol=1e-6)
