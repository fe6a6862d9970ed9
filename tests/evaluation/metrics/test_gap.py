# SPDX-License-Identifier: Apache-2.0
"""Contours of rings and spokes, whose layout is known, and the gap between them."""

import numpy as np
import pytest

from contourdiff_jax.evaluation.metrics import gap

SIZE, RADIUS = 96, 35  # pixels; a unit of length is one


def distance(size: int = SIZE) -> np.ndarray:
    """[size, size] pixels from the middle."""
    axis = np.arange(size) - (size - 1) / 2
    return np.hypot(*np.meshgrid(axis, axis))


def disc(radius: float = RADIUS, size: int = SIZE) -> np.ndarray:
    return distance(size)[None] < radius


def rings(*radii: float, width: float = 1.2, size: int = SIZE) -> np.ndarray:
    """[1, size, size] circles without a gap, a pixel wide."""
    return np.any([np.abs(distance(size) - r) <= width / 2 for r in radii], axis=0)[None]


def spokes(count: int = 24) -> np.ndarray:
    """[1, SIZE, SIZE] lines from near the middle to near the outline."""
    drawn = np.zeros((SIZE, SIZE), bool)
    for angle in 2 * np.pi * np.arange(count) / count:
        r = np.arange(8, 34, 0.5)
        middle = (SIZE - 1) / 2
        drawn[
            np.rint(middle + r * np.sin(angle)).astype(int),
            np.rint(middle + r * np.cos(angle)).astype(int),
        ] = True
    return drawn[None]


def measure(contours, masks=None) -> dict:
    masks = disc() if masks is None else masks
    return gap.measure(contours, gap.frames(masks, gap.unit(masks)))


def subjects(rng, count: int = 4) -> list[dict]:
    """Heads of three rings each, a little different in size."""
    found = []
    for _ in range(count):
        radius = RADIUS + rng.uniform(-2, 2)
        inner = (radius - 4 + rng.uniform(-0.7, 0.7), radius - 8 + rng.uniform(-0.7, 0.7))
        found.append(measure(rings(radius - 0.5, *inner), disc(radius)))
    return found


@pytest.mark.parametrize(("second", "third"), [(4, 9), (6, 9), (3, 20)])
def test_layers_are_the_distances_between_rings(second, third):
    """A ring is met a pixel early or late where it is drawn on a square grid."""
    layers = measure(rings(34, 34 - second, 34 - third))["layers"]
    for histogram, wanted in zip(layers, (second, third), strict=True):
        near = histogram[wanted - 1 : wanted + 2].sum()
        assert near > 0.95 * histogram.sum() == 0.95 * gap.RAYS


def test_layers_do_not_depend_on_where_the_mask_ends():
    """The border of a body mask lies a pixel further out in one modality than in another."""
    drawn = rings(34, 30, 26)
    some, others = (
        gap.measure(drawn, gap.frames(disc(radius), 1))["layers"] for radius in (34, 35.5)
    )
    np.testing.assert_array_equal(some, others)


def test_contours_that_are_missing_lie_farthest():
    for drawn, missing in ((rings(34), [128, 128]), (rings(34, 30), [0, 128])):
        np.testing.assert_array_equal(measure(drawn)["layers"][:, gap.FARTHEST], missing)
    counts = measure(np.zeros((1, SIZE, SIZE), bool))
    np.testing.assert_array_equal(counts["layers"][:, gap.FARTHEST], [128, 128])
    assert counts["contour"].sum() == counts["pieces"].sum() == 0
    assert np.isfinite(list(gap.statistics(counts, 1).values())).all()


def test_rings_run_along_the_outline_and_spokes_across_it():
    for drawn, least, most in ((rings(33, 27, 20), 0.97, 1), (spokes(), 0, 0.2)):
        counts = measure(drawn)
        assert least <= counts["along"].sum() / counts["contour"].sum() <= most


def test_contours_are_counted_in_the_shell_they_lie_in():
    """A ring d pixels below the outline, for a depth in every shell."""
    for shell, depth in enumerate((1, 4, 8, 14, 25)):
        drawn = rings(RADIUS - depth)
        counts = measure(drawn)
        assert counts["contour"][shell] == counts["contour"].sum() == drawn.sum()


def test_what_lies_far_outside_the_body_is_no_contour_of_it():
    """A head holder."""
    np.testing.assert_equal(measure(rings(30, 34, 40)), measure(rings(30, 34)))


def test_statistics_of_a_line():
    drawn = np.zeros((1, SIZE, SIZE), bool)
    drawn[0, 48, 30:62] = True  # 32 pixels
    found = gap.statistics(measure(drawn), width=2.5)
    body = gap.statistics(measure(drawn), 1)
    assert found["piece"] == 80  # mm
    assert found["hole"] == pytest.approx(2.5 * body["hole"])
    # The body reaches two pixels around its mask.
    assert found["density"] == pytest.approx(32 / disc(RADIUS + 2).sum(), rel=0.02)
    rows, columns = np.nonzero(disc(RADIUS + 2)[0])
    away = np.hypot(rows - 48, columns - columns.clip(30, 61))
    assert body["hole"] == pytest.approx(away.mean(), rel=0.03)


def test_counts_of_slices_add_up():
    drawn = np.concatenate([rings(34, 30, 25), spokes(), rings(33)])
    masks = np.repeat(disc(), 3, axis=0)
    whole = measure(drawn, masks)
    parts = gap.total([measure(drawn[i : i + 1]) for i in range(3)])
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name])


def test_slices_without_a_body_count_for_nothing():
    masks = np.concatenate([disc(), disc(3)])
    frames = gap.frames(masks, 1)
    assert frames[1] is None
    drawn = np.concatenate([rings(34, 30), rings(2)])
    np.testing.assert_equal(gap.measure(drawn, frames), measure(rings(34, 30)))


def test_lengths_are_in_parts_of_the_body():
    """The same head on twice the pixels, its lines twice as wide apart."""
    large = {"size": 2 * SIZE}
    coarse = measure(rings(34, 28, 20))
    fine = measure(rings(68, 56, 40, **large), disc(2 * RADIUS, **large))
    assert gap.unit(disc()) == 1 and gap.unit(disc(2 * RADIUS, **large)) == 2
    for histograms in zip(coarse["layers"], fine["layers"], strict=True):
        some, others = (h.argmax() for h in histograms)
        assert abs(some - others) <= 1
    assert gap.unit(np.zeros((2, 8, 8))) == 1


def test_a_subject_of_the_target_is_one_away_from_the_others(rng):
    """What the unit of the gap is."""
    target = subjects(rng)
    yardstick = gap.yardstick(target)
    found = [
        gap.gap(subject, gap.total(target[:i] + target[i + 1 :]), yardstick)
        for i, subject in enumerate(target)
    ]
    for part in gap.PARTS:
        assert np.mean([each[part] for each in found]) == pytest.approx(1)


def test_the_gap_is_the_geometric_mean_of_its_parts_and_nothing_of_the_same(rng):
    target = subjects(rng)
    yardstick, total = gap.yardstick(target), gap.total(target)
    assert gap.gap(total, total, yardstick) == {"gap": 0, "layers": 0, "shells": 0}
    found = gap.gap(measure(rings(34, 20)), total, yardstick)
    assert found["gap"] == pytest.approx(np.sqrt(found["layers"] * found["shells"]))


@pytest.mark.parametrize(
    "drawn",
    [
        rings(31, 27),  # no skin
        rings(34.5, 31),  # nothing behind the second
        rings(34.5, 33, 31, 29, 27, 25),  # every border twice
        rings(34.5, 31, 27) | spokes(80),
        np.zeros((1, SIZE, SIZE), bool),
    ],
)
def test_what_differs_from_the_target_has_a_larger_gap_than_another_of_its_subjects(drawn):
    rng = np.random.default_rng(1)
    target = subjects(rng)
    yardstick, total = gap.yardstick(target), gap.total(target)
    another = gap.gap(subjects(rng, 1)[0], total, yardstick)["gap"]
    assert gap.gap(measure(drawn), total, yardstick)["gap"] > 1.5 * another
