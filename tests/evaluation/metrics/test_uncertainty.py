# SPDX-License-Identifier: Apache-2.0
"""Uncertainty: what a perfect, a calibrated, a constant and a useless standard deviation score."""

import numpy as np
import pytest
from scipy import stats

from contourdiff_jax.evaluation.metrics import uncertainty

M = 20_000


def test_the_error_itself_ranks_errors_right(rng):
    error = rng.exponential(size=M)
    got = uncertainty.scores(7 * error, error)  # in whatever unit
    assert got["uncertainty_spearman"] == pytest.approx(1)
    assert got["ause"] == pytest.approx(0, abs=1e-12)
    left, oracle = uncertainty.sparsification(error, error)
    np.testing.assert_allclose(left, oracle)


def test_ranks_drawn_by_lot_leave_the_error_as_it_is(rng):
    error, deviation = rng.exponential(size=M), rng.random(M)
    got = uncertainty.scores(deviation, error)
    assert abs(got["uncertainty_spearman"]) < 0.03
    assert got["ause"] == pytest.approx(got["ause_chance"], rel=0.05)


def test_a_calibrated_deviation_lies_between(rng):
    """Errors drawn from normals of just that standard deviation: all that can be known of them."""
    deviation = rng.uniform(0.1, 2, M)
    error = np.abs(deviation * rng.standard_normal(M))
    got = uncertainty.scores(deviation, error)
    assert 0.3 < got["uncertainty_spearman"] < 0.8
    assert 0 < got["ause"] < 0.7 * got["ause_chance"]
    expected = stats.spearmanr(deviation, error).statistic
    assert got["uncertainty_spearman"] == pytest.approx(expected)
    # without the most uncertain half, E|e| is proportional to the mean deviation that is left
    left, _ = uncertainty.sparsification(deviation, error)
    half = np.flatnonzero(np.isclose(uncertainty.REMOVED, 0.5))[0]
    expected = np.sort(deviation)[: M // 2].mean() / deviation.mean()
    assert left[half] == pytest.approx(expected, rel=0.03)


def test_the_wrong_way_round_is_worse_than_by_lot(rng):
    error = rng.exponential(size=M)
    got = uncertainty.scores(-error + error.max(), error)
    assert got["uncertainty_spearman"] == pytest.approx(-1)
    assert got["ause"] > got["ause_chance"]


def test_ties_share_their_errors_whatever_their_order(rng):
    error = np.sort(rng.exponential(size=M))
    got = uncertainty.scores(np.full(M, 0.2), error)
    assert got["uncertainty_spearman"] is None
    assert got["ause"] == pytest.approx(got["ause_chance"])
    coarse = np.floor(4 * rng.random(M))
    order = rng.permutation(M)
    one, other = (uncertainty.sparsification(coarse[o], error[o])[0] for o in (slice(None), order))
    np.testing.assert_allclose(one, other)


@pytest.mark.parametrize("error", [[], [0.0, 0.0, 0.0]])
def test_without_errors_there_is_nothing_to_rank(error):
    got = uncertainty.scores(np.arange(len(error), dtype=float), error)
    assert set(got.values()) == {None}
