# SPDX-License-Identifier: Apache-2.0
"""Augmentation: where points go, what is drawn, and that image and mask go together."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import ndimage

from contourdiff_jax import config
from contourdiff_jax.data import augment
from contourdiff_jax.data.augment import Transform

STILL = {"flip": False, "scale": (1.0, 1.0), "rotation": 0.0, "shift": (0.0, 0.0)}


def transform(**change) -> Transform:
    """The Transform of one image."""
    return Transform(**{name: jnp.array([value]) for name, value in (STILL | change).items()})


def apply(transform, values, mask, air):
    """`augment.apply` to one slice."""
    warped = augment.apply(transform, values[None, None], mask[None, None], air)
    return tuple(np.asarray(array)[0, 0] for array in warped)


def apply_to_contours(transform, edges):
    return np.asarray(augment.apply_to_contours(transform, edges[None]))[0]


def draw(section, count, seed=0):
    return augment.draw(jax.random.split(jax.random.key(seed), count), section)


def one(transforms, i) -> Transform:
    return jax.tree.map(lambda a: a[i : i + 1], transforms)


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
    columns, rows = (np.asarray(a, np.float64)[0] for a in transform.sources(*size))
    places = np.stack([columns, rows])
    origin = places[:, 0, 0]
    inverse = np.stack([places[:, 0, 1] - origin, places[:, 1, 0] - origin], 1)
    return np.linalg.solve(inverse, np.asarray(point) - origin)


def blob(column, row, size=31):
    rows, columns = np.mgrid[:size, :size]
    return np.exp(-((columns - column) ** 2 + (rows - row) ** 2) / 8).astype(np.float32)


def test_the_identity_changes_nothing(picture):
    for before, after in zip(picture, apply(transform(), *picture, air=-1), strict=True):
        np.testing.assert_array_equal(after, before)
        assert after.dtype == before.dtype


@pytest.mark.parametrize("shape", [(31, 31), (32, 32), (12, 17), (1, 1)])
def test_a_flip_exchanges_left_and_right_and_is_its_own_inverse(rng, shape):
    values = rng.normal(size=shape).astype(np.float32)
    mask = np.uint8(values > 0.3)
    flipped = apply(transform(flip=True), values, mask, air=-1)
    np.testing.assert_array_equal(flipped[0], values[:, ::-1])
    np.testing.assert_array_equal(flipped[1], mask[:, ::-1])
    back = apply(transform(flip=True), *flipped, air=-1)
    np.testing.assert_array_equal(back[0], values)
    np.testing.assert_array_equal(back[1], mask)


def test_rotation_is_anticlockwise_on_screen(picture):
    """As numpy's rot90, which is seen so when rows run downwards."""
    quarter = apply(transform(rotation=90.0), *picture, air=-1)
    for before, after in zip(picture, quarter, strict=True):
        np.testing.assert_allclose(after, np.rot90(before), atol=2e-5)
    # A point to the right of the centre goes up.
    np.testing.assert_allclose(moved(transform(rotation=90.0), (25, 15)), (15, 5), atol=1e-4)


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
    changed = transform(**change)
    np.testing.assert_allclose(moved(changed, point), goal, atol=1e-4)
    # And the picture goes with them: a blob's centre of mass.
    values, _ = apply(changed, blob(*point), np.zeros((31, 31), np.uint8), air=0.0)
    rows, columns = np.mgrid[:31, :31]
    centre = [(values * c).sum() / values.sum() for c in (columns, rows)]
    np.testing.assert_allclose(centre, goal, atol=0.15)


def test_the_order_is_flip_scale_rotate_shift():
    full = {"flip": True, "scale": (1.2, 0.9), "rotation": 35.0, "shift": (0.1, -0.2)}
    point = (20.0, 9.0)
    for name, value in full.items():
        point = moved(transform(**{name: value}), point)
    np.testing.assert_allclose(moved(transform(**full), (20.0, 9.0)), point, atol=1e-3)


def test_shifts_are_fractions_of_the_width():
    shifted = moved(transform(shift=(0.1, 0.2)), (5, 5), size=(12, 20))
    np.testing.assert_allclose(shifted, (7, 9), atol=1e-4)


def test_air_flows_in_from_outside():
    values, mask = np.ones((20, 20), np.float32), np.ones((20, 20), np.uint8)
    shifted, shifted_mask = apply(transform(shift=(0.5, 0.0)), values, mask, air=-1000.0)
    assert (shifted[:, :10] == -1000).all() and (shifted[:, 10:] == 1).all()
    assert (shifted_mask[:, :10] == 0).all() and (shifted_mask[:, 10:] == 1).all()


def test_interpolation_is_scipys(section, rng):
    """Between four pixels, those outside being air; the nearest pixel of the mask."""
    section.update(probability=1.0, shift=0.3)
    values = rng.normal(size=(20, 4, 24, 33)).astype(np.float32)
    masks = np.uint8(values > 0.3)
    drawn = draw(section, len(values))
    warped, moved_masks = augment.apply(drawn, values, masks, -1.0)
    columns, rows = (np.asarray(a) for a in drawn.sources(24, 33))
    for b, k in np.ndindex(20, 4):
        expected = ndimage.map_coordinates(
            values[b, k], (rows[b], columns[b]), order=1, mode="grid-constant", cval=-1
        )
        np.testing.assert_allclose(warped[b, k], expected, atol=1e-4)
        expected = ndimage.map_coordinates(
            masks[b, k], (rows[b], columns[b]), order=0, mode="grid-constant"
        )
        # Half-way between two pixels either is right.
        assert (np.asarray(moved_masks[b, k]) != expected).mean() < 0.01


def test_image_and_mask_go_together(section):
    """The mask of the warped image is the warped mask, but for pixels that the border crosses."""
    rows, columns = np.mgrid[:64, :64]
    distance = np.hypot((rows - 28) / 1.3, columns - 34)
    values = np.clip(20 - distance, -1, 1).astype(np.float32)
    drawn = draw(section, 50)
    for i in range(50):
        warped, mask = apply(one(drawn, i), values, np.uint8(values > 0), air=-1.0)
        assert set(np.unique(mask)) <= {0, 1}
        rim = cv2.dilate(mask, np.ones((3, 3))) != cv2.erode(mask, np.ones((3, 3)))
        np.testing.assert_array_equal(mask[~rim] > 0, warped[~rim] > 0)
        assert rim.mean() < 0.15


def test_contours_go_with_the_image_and_stay_whole(section):
    """A circle a pixel wide stays closed, and lies on the border of the disc that it was."""
    rows, columns = np.mgrid[:64, :64]
    disc = (np.hypot(rows - 30, columns - 33) < 16).astype(np.uint8)
    circle = disc - cv2.erode(disc, np.ones((3, 3)))
    np.testing.assert_array_equal(apply_to_contours(transform(), circle), circle)
    flipped = apply_to_contours(transform(flip=True), circle)
    np.testing.assert_array_equal(flipped, circle[:, ::-1])
    drawn = draw(section, 50)
    for i in range(50):
        warped = apply_to_contours(one(drawn, i), circle)
        assert warped.dtype == np.uint8 and set(np.unique(warped)) == {0, 1}
        _, moved_disc = apply(one(drawn, i), disc.astype(np.float32), disc, air=0.0)
        if moved_disc[[0, -1]].any() or moved_disc[:, [0, -1]].any():
            continue
        near = cv2.dilate(moved_disc, np.ones((5, 5))) != cv2.erode(moved_disc, np.ones((5, 5)))
        assert near[warped > 0].all()
        # Outside, the circle and what it encloses: three parts, of which one is the circle.
        assert cv2.connectedComponents(1 - warped, connectivity=4)[0] == 3


def test_what_is_drawn_follows_the_key_alone(section):
    """Not the images beside: any part of a batch can be drawn by itself."""
    keys = jax.random.split(jax.random.key(3), 5)
    whole, part = augment.draw(keys, section), augment.draw(keys[2:4], section)
    for ours, theirs in zip(part, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs[2:4])
    assert len(set(np.asarray(whole.rotation).tolist())) > 1


def test_what_is_drawn_stays_within_the_settings(section):
    section.update(flip=0.25, probability=1.0)
    drawn = draw(section, 4000)
    scales = np.asarray(drawn.scale)
    largest = (1 + section.scale) * (1 + section.zoom)
    assert scales.max() <= largest * 1.00001 and scales.min() >= 0.99999 / largest
    # Up as often as down, by factors.
    assert np.log(scales).mean() == pytest.approx(0, abs=0.005)
    assert np.abs(drawn.shift).max() <= section.shift
    rotations = np.asarray(drawn.rotation)
    assert 0.99 * section.rotation < np.abs(rotations).max() <= section.rotation
    assert rotations.mean() == pytest.approx(0, abs=0.5)
    # Four standard deviations of a binomial share.
    assert np.mean(drawn.flip) == pytest.approx(0.25, abs=4 * (3 / 16 / 4000) ** 0.5)


def test_zoom_scales_both_axes_alike():
    section = ConfigDict(
        {"flip": 0, "probability": 1, "scale": 0.0, "zoom": 0.3, "rotation": 0.0, "shift": 0.0}
    )
    scales = np.asarray(draw(section, 100).scale)
    np.testing.assert_array_equal(scales[:, 0], scales[:, 1])
    assert scales.std() > 0.05


def test_some_examples_are_only_flipped(section):
    section.update(flip=0.5, probability=0.5)
    drawn = draw(section, 2000)
    still = np.asarray(
        (drawn.scale == 1).all(1) & (drawn.rotation == 0) & (drawn.shift == 0).all(1)
    )
    assert still.mean() == pytest.approx(0.5, abs=4 * (1 / 4 / 2000) ** 0.5)
    assert np.asarray(drawn.flip)[still].mean() == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flips_can_be_forbidden_and_forced(section, flip):
    section.flip = flip
    assert (np.asarray(draw(section, 200).flip) == bool(flip)).all()
