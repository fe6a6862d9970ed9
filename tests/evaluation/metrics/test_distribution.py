# SPDX-License-Identifier: Apache-2.0
"""Fréchet and kernel distances against their definitions."""

import numpy as np
import pytest
from scipy import linalg

from contourdiff_jax.evaluation.metrics import distribution


def features(rng, n, d=24, shift=0.0):
    """Correlated features, as those of a network are."""
    mixing = rng.standard_normal((d, d)) / np.sqrt(d)
    return np.float32(np.maximum(rng.standard_normal((n, d)) @ mixing + shift, 0))


def by_definition(x, y):
    covariances = [np.cov(a, rowvar=False) for a in (x, y)]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    difference = np.square(x.mean(0, dtype=float) - y.mean(0, dtype=float)).sum()
    return difference + np.trace(sum(covariances) - 2 * root.real)


@pytest.mark.parametrize(("n", "m"), [(200, 300), (24, 24), (25, 400)])
def test_frechet_is_its_definition(rng, n, m):
    x, y = features(rng, n), features(rng, m, shift=0.3)
    assert distribution.frechet(x, y) == pytest.approx(by_definition(x, y), rel=1e-6)


@pytest.mark.parametrize("n", [2, 7, 23])
def test_frechet_of_few_images_is_that_of_singular_covariances(rng, n):
    x, y = features(rng, n), features(rng, n + 3, shift=0.3)
    difference = np.square(x.mean(0, dtype=float) - y.mean(0, dtype=float)).sum()
    (_, first), (_, second) = map(distribution.statistics, (x, y))
    values = linalg.eigvals(first @ second)
    roots = np.sqrt(np.maximum(values.real, 0)).sum()
    expected = difference + np.trace(first + second) - 2 * roots
    assert distribution.frechet(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_normal_distributions_along_one_axis(rng):
    # (mu_x - mu_y)^2 + (s_x - s_y)^2
    x = rng.standard_normal((100_000, 1))
    x = (x - x.mean()) / x.std(ddof=1)
    assert distribution.frechet(1 + 2 * x, 4 + 5 * x) == pytest.approx(9 + 9, rel=1e-9)


def test_a_set_has_no_distance_from_itself(rng):
    for n in (10, 100):
        x = features(rng, n)
        assert distribution.frechet(x, x) == pytest.approx(0, abs=1e-6)
        assert distribution.frechet(x, x[::-1]) == pytest.approx(0, abs=1e-6)


def test_constant_features_are_as_far_as_their_means():
    x, y = np.zeros((20, 3)), np.full((30, 3), 2.0)
    assert distribution.frechet(x, y) == pytest.approx(12)


def mmd(x, y):
    """Binkowski et al., equation 4, pair by pair."""
    kernel = lambda a, b: (float(a @ b) / len(a) + 1) ** 3  # noqa: E731
    x, y = x.astype(float), y.astype(float)
    within = [
        np.mean([kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])
        for s in (x, y)
    ]
    return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kernel_is_the_mean_over_the_packages_subsets(rng):
    x, y = features(rng, 12, d=5), features(rng, 15, d=5, shift=0.2)
    draws = np.random.RandomState(2020)
    expected = []
    for _ in range(100):
        a, b = draws.choice(12, 6, replace=False), draws.choice(15, 6, replace=False)
        expected.append(mmd(x[a], y[b]))
    assert distribution.kernel(x, y, size=6) == pytest.approx(np.mean(expected), rel=1e-9)


def test_however_the_work_is_divided(rng, monkeypatch):
    x, y = features(rng, 60), features(rng, 70, shift=0.2)
    one_by_one = distribution.kernel(x, y, size=5)  # 60 x 70 > 100 x 5^2
    together = distribution.kernel(x[:40], y[:50], size=5)
    monkeypatch.setattr(distribution, "CHUNK", 7)
    assert distribution.kernel(x, y, size=5) == pytest.approx(one_by_one, rel=1e-12)
    assert distribution.kernel(x[:40], y[:50], size=5) == pytest.approx(together, rel=1e-9)


def test_without_a_size_all_images_of_the_smaller_set_are_taken(rng):
    x, y = features(rng, 20), features(rng, 20, shift=0.2)
    assert distribution.kernel(x, y) == pytest.approx(mmd(x, y), rel=1e-9)


def test_kernel_does_not_depend_on_the_number_of_images_and_frechet_does(rng):
    # the same distribution on both sides: the one scatters around 0, the other falls towards it
    pairs = {n: [features(np.random.default_rng(5), 2 * n)] for n in (30, 300)}
    frechet = {n: distribution.frechet(p[0][:n], p[0][n:]) for n, p in pairs.items()}
    assert frechet[30] > 5 * frechet[300] > 0
    kernels = [
        distribution.kernel(a[:30], a[30:])
        for a in (features(np.random.default_rng(0), 60)[rng.permutation(60)] for _ in range(40))
    ]
    assert abs(np.mean(kernels)) < 3 * np.std(kernels) / np.sqrt(40) < 0.05


def test_copies_of_an_image_are_not_likeness(rng):
    # drawn twice, every image: the same distance, where pairing copies would raise it
    x, y = features(rng, 10), features(rng, 10, shift=0.2)
    once, twice = distribution.kernels(x, y, *2 * [np.array([[1] * 10, [2] * 10])])
    assert once == pytest.approx(mmd(x, y), rel=1e-9)
    assert twice == pytest.approx(once, rel=1e-9)
    half = np.array([[1] * 5 + [0] * 5])
    assert distribution.kernels(x, y, half, half) == pytest.approx(mmd(x[:5], y[:5]), rel=1e-9)
