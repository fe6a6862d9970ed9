# SPDX-License-Identifier: Apache-2.0
"""Augmentation: where points go, what is drawn, and that image and mask go together."""

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from contourdiff_jax import config
from contourdiff_jax.data.augment import Transform, apply, apply_to_contours, draw

IDENTITY = Transform(flip=False, scale=(1.0, 1.0), rotation=0.0, shift=(0.0, 0.0))
FLIPPED = IDENTITY._replace(flip=True)


@pytest.fixture
def section():
    return config.default().augment


@pytest.fixture
def picture(rng):
    """values [31, 31] and mask, without symmetry."""
    values = rng.normal(size=(31, 31)).astype(np.float32)
    return values, np.uint8(values > 0.3)


def moved(transform, point, size=(31, 31)):
    """Where the (column, row) `point` goes."""
    return transform.matrix(*size) @ (*point, 1)


def blob(column, row, size=31):
    rows, columns = np.mgrid[:size, :size]
    return np.exp(-((columns - column) ** 2 + (rows - row) ** 2) / 8).astype(np.float32)


def test_the_identity_changes_nothing(picture):
    for before, after in zip(picture, apply(IDENTITY, *picture, air=-1), strict=True):
        np.testing.assert_array_equal(after, before)
        assert after.dtype == before.dtype


@pytest.mark.parametrize("shape", [(31, 31), (32, 32), (12, 17)])
def test_a_flip_exchanges_left_and_right_and_is_its_own_inverse(rng, shape):
    values = rng.normal(size=shape).astype(np.float32)
    mask = np.uint8(values > 0.3)
    flipped = apply(FLIPPED, values, mask, air=-1)
    np.testing.assert_array_equal(flipped[0], values[:, ::-1])
    np.testing.assert_array_equal(flipped[1], mask[:, ::-1])
    back = apply(FLIPPED, *flipped, air=-1)
    np.testing.assert_array_equal(back[0], values)
    np.testing.assert_array_equal(back[1], mask)


def test_rotation_is_anticlockwise_on_screen(picture):
    """As numpy's rot90, which is seen so when rows run downwards."""
    quarter = apply(IDENTITY._replace(rotation=90.0), *picture, air=-1)
    for before, after in zip(picture, quarter, strict=True):
        np.testing.assert_allclose(after, np.rot90(before), atol=1e-5)
    # A point to the right of the centre goes up.
    np.testing.assert_allclose(
        moved(IDENTITY._replace(rotation=90.0), (25, 15)), (15, 5), atol=1e-9
    )


@pytest.mark.parametrize(
    ("change", "point", "goal"),
    [
        ({"scale": (1.5, 1.0)}, (20, 9), (22.5, 9)),  # columns alone, about the centre
        ({"scale": (1.0, 0.5)}, (20, 9), (20, 12)),
        ({"shift": (0.1, 0.0)}, (20, 9), (23.1, 9)),  # to the right, by a tenth of 31
        ({"shift": (0.0, 0.1)}, (20, 9), (20, 12.1)),  # down
        ({"flip": True}, (20, 9), (10, 9)),
        ({"rotation": 180.0}, (20, 9), (10, 21)),
        ({"rotation": -90.0}, (20, 15), (15, 20)),
    ],
)
def test_points_go_where_the_parameters_say(change, point, goal):
    transform = IDENTITY._replace(**change)
    np.testing.assert_allclose(moved(transform, point), goal, atol=1e-9)
    # And the picture goes with them: a blob's centre of mass.
    values, _ = apply(transform, blob(*point), np.zeros((31, 31), np.uint8), air=0.0)
    rows, columns = np.mgrid[:31, :31]
    centre = [(values * c).sum() / values.sum() for c in (columns, rows)]
    np.testing.assert_allclose(centre, goal, atol=0.15)


def test_the_order_is_flip_scale_rotate_shift():
    full = Transform(True, (1.2, 0.9), 35.0, (0.1, -0.2))
    point = (20.0, 9.0)
    for change in (
        {"flip": True},
        {"scale": full.scale},
        {"rotation": full.rotation},
        {"shift": full.shift},
    ):
        point = moved(IDENTITY._replace(**change), point)
    np.testing.assert_allclose(moved(full, (20.0, 9.0)), point, atol=1e-9)


def test_shifts_are_fractions_of_the_width():
    matrix = IDENTITY._replace(shift=(0.1, 0.2)).matrix(12, 20)
    np.testing.assert_allclose(matrix, [[1, 0, 2], [0, 1, 4]], atol=1e-9)


def test_air_flows_in_from_outside():
    values, mask = np.ones((20, 20), np.float32), np.ones((20, 20), np.uint8)
    shifted, shifted_mask = apply(IDENTITY._replace(shift=(0.5, 0.0)), values, mask, air=-1000.0)
    assert (shifted[:, :10] == -1000).all() and (shifted[:, 10:] == 1).all()
    assert (shifted_mask[:, :10] == 0).all() and (shifted_mask[:, 10:] == 1).all()


def test_image_and_mask_go_together(section, rng):
    """The mask of the warped image is the warped mask, but for pixels that the border crosses."""
    rows, columns = np.mgrid[:64, :64]
    distance = np.hypot((rows - 28) / 1.3, columns - 34)
    values = np.clip(20 - distance, -1, 1).astype(np.float32)
    for _ in range(50):
        warped, mask = apply(draw(rng, section), values, np.uint8(values > 0), air=-1.0)
        assert set(np.unique(mask)) <= {0, 1}
        rim = cv2.dilate(mask, np.ones((3, 3))) != cv2.erode(mask, np.ones((3, 3)))
        np.testing.assert_array_equal(mask[~rim] > 0, warped[~rim] > 0)
        assert rim.mean() < 0.15


def test_contours_go_with_the_image_and_stay_whole(section, rng):
    """A circle a pixel wide stays closed, and lies on the border of the disc that it was."""
    rows, columns = np.mgrid[:64, :64]
    disc = (np.hypot(rows - 30, columns - 33) < 16).astype(np.uint8)
    circle = disc - cv2.erode(disc, np.ones((3, 3)))
    np.testing.assert_array_equal(apply_to_contours(IDENTITY, circle), circle)
    np.testing.assert_array_equal(apply_to_contours(FLIPPED, circle), circle[:, ::-1])
    for _ in range(50):
        transform = draw(rng, section)
        warped = apply_to_contours(transform, circle)
        assert warped.dtype == np.uint8 and set(np.unique(warped)) == {0, 1}
        _, moved_disc = apply(transform, disc.astype(np.float32), disc, air=0.0)
        if moved_disc[[0, -1]].any() or moved_disc[:, [0, -1]].any():
            continue
        near = cv2.dilate(moved_disc, np.ones((5, 5))) != cv2.erode(moved_disc, np.ones((5, 5)))
        assert near[warped > 0].all()
        # Outside, the circle and what it encloses: three parts, of which one is the circle.
        assert cv2.connectedComponents(1 - warped, connectivity=4)[0] == 3


def test_what_is_drawn_follows_the_generator(section):
    again = [draw(np.random.default_rng((3, n)), section) for n in (5, 5, 6)]
    assert again[0] == again[1]
    assert again[0] != again[2]


def test_what_is_drawn_stays_within_the_settings(section, rng):
    section.update(flip=0.25, probability=1.0)
    drawn = [draw(rng, section) for _ in range(4000)]
    scales = np.array([t.scale for t in drawn])
    largest = (1 + section.scale) * (1 + section.zoom)
    assert scales.max() <= largest and scales.min() >= 1 / largest
    # Up as often as down, by factors.
    assert np.log(scales).mean() == pytest.approx(0, abs=0.005)
    shifts = np.array([t.shift for t in drawn])
    assert np.abs(shifts).max() <= section.shift
    rotations = np.array([t.rotation for t in drawn])
    assert 0.99 * section.rotation < np.abs(rotations).max() <= section.rotation
    assert rotations.mean() == pytest.approx(0, abs=0.5)
    # Four standard deviations of a binomial share.
    assert np.mean([t.flip for t in drawn]) == pytest.approx(0.25, abs=4 * (3 / 16 / 4000) ** 0.5)


def test_zoom_scales_both_axes_alike(rng):
    section = ConfigDict(
        {"flip": 0, "probability": 1, "scale": 0.0, "zoom": 0.3, "rotation": 0.0, "shift": 0.0}
    )
    scales = np.array([draw(rng, section).scale for _ in range(100)])
    np.testing.assert_array_equal(scales[:, 0], scales[:, 1])
    assert scales.std() > 0.05


def test_some_examples_are_only_flipped(section, rng):
    section.update(flip=0.5, probability=0.0)
    assert {draw(rng, section) for _ in range(50)} == {IDENTITY, FLIPPED}
    section.probability = 0.5
    still = np.mean([draw(rng, section)._replace(flip=False) == IDENTITY for _ in range(2000)])
    assert still == pytest.approx(0.5, abs=4 * (1 / 4 / 2000) ** 0.5)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flips_can_be_forbidden_and_forced(section, rng, flip):
    section.flip = flip
    assert {draw(rng, section).flip for _ in range(50)} == {bool(flip)}
