# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours are those of a search by hand, and "closer" is a chance with an interval."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from contourdiff_jax.evaluation.metrics import nearest


@pytest.fixture
def groups(rng):
    return [rng.uniform(-1, 1, (count, 30)).astype(np.float32) for count in (5, 1, 130, 8)]


@pytest.mark.parametrize("queries", [1024, 7])
def test_neighbours_are_found_whatever_is_held_at_a_time(groups, rng, monkeypatch, queries):
    monkeypatch.setattr(nearest, "QUERIES", queries)
    images = rng.uniform(-1, 1, (20, 30)).astype(np.float32)
    found = nearest.neighbours(images, iter(groups))
    distances = [cdist(images, group) / np.sqrt(30) for group in groups]
    closest = np.stack([of_group.min(1) for of_group in distances], 1)
    np.testing.assert_array_equal(found.group, closest.argmin(1))
    ordered = np.sort(closest, axis=1)
    np.testing.assert_allclose(found.distance, ordered[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.elsewhere, ordered[:, 1], rtol=1e-5)
    np.testing.assert_allclose(found.ratio, ordered[:, 0] / ordered[:, 1], rtol=1e-5)
    for number, (group, row) in enumerate(zip(found.group, found.number, strict=True)):
        assert row == distances[group][number].argmin()


def test_a_copy_has_no_distance(groups):
    # in |x|^2 - 2 x.y + |y|^2 it would have one of a thousandth
    found = nearest.neighbours(groups[2][70:90], groups)
    assert not found.distance.any() and not found.ratio.any()
    np.testing.assert_array_equal(found.number, np.arange(70, 90))
    assert set(found.group) == {2}


def test_one_group_has_no_ratio(groups, rng):
    found = nearest.neighbours(rng.random((3, 30), np.float32), groups[:1])
    assert np.isinf(found.elsewhere).all() and (found.ratio == 1).all()


def names(counts):
    return np.repeat([f"s{i}" for i in range(len(counts))], counts)


def test_nearer_is_the_statistic_of_mann_and_whitney(rng):
    values, others = rng.integers(0, 9, 40), rng.integers(2, 12, 30)  # with ties
    found = nearest.nearer(values, names([10, 30]), others, names([5, 5, 20]))
    statistic = stats.mannwhitneyu(others, values).statistic
    assert found["value"] == pytest.approx(statistic / (40 * 30))
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1 and found["n"] == 2


def test_alike_is_a_half_and_copies_are_one(rng):
    distances = rng.random(60)
    subjects = names([20, 20, 20])
    alike = nearest.nearer(distances, subjects, distances, subjects)
    assert alike["value"] == 0.5
    # drawn together, the same subjects are alike in every resample
    assert alike["low"] == pytest.approx(0.5) and alike["high"] == pytest.approx(0.5)
    copies = nearest.nearer(np.zeros(60), subjects, distances, subjects)
    assert (copies["value"], copies["low"], copies["high"]) == (1, 1, 1)


def test_one_subject_has_no_interval(rng):
    found = nearest.nearer(rng.random(5), names([5]), rng.random(8), names([4, 4]))
    assert found["low"] is None and found["high"] is None
