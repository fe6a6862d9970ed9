# SPDX-License-Identifier: Apache-2.0
"""Paired differences: their test is SciPy's, exact for few subjects, and many tests pay for it."""

import itertools

import numpy as np
import pytest

from contourdiff_jax.evaluation.metrics import bootstrap


def test_p_is_that_of_all_sign_flips(rng):
    # the definition: ranks of |d| with every sign as likely, two-sided
    differences = rng.normal(0.5, 1, 8)
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    sums = [np.dot(signs, ranks) for signs in itertools.product((-1, 1), repeat=8)]
    expected = np.mean(np.abs(sums) >= abs(np.dot(np.sign(differences), ranks)))
    found = bootstrap.difference(differences, np.zeros(8))
    assert found["p"] == pytest.approx(expected)
    assert found["value"] == pytest.approx(differences.mean())
    assert found["low"] < found["value"] < found["high"] and found["n"] == 8


@pytest.mark.parametrize("subjects", [1, 2, 5, 8])
def test_few_subjects_cannot_be_significant(subjects):
    values = np.arange(1.0, subjects + 1)
    found = bootstrap.difference(values, np.zeros(subjects))
    assert found["p"] == pytest.approx(bootstrap.least_p(subjects))


def test_equal_methods_do_not_differ():
    found = bootstrap.difference([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert found == {"value": 0, "low": 0, "high": 0, "n": 3, "p": 1}


def test_ties_and_zeros_are_no_warning():
    found = bootstrap.difference([1.0, 2, 2, 3, 0, 0], [0.0, 1, 1, 2, 0, 0])
    assert 0 < found["p"] <= 1


def test_holm_by_hand():
    # 0.01 x 4, then 0.02 x 3, then 0.04 x 2, then the last, never below the one before
    got = bootstrap.holm([0.04, 0.01, 0.05, 0.02])
    np.testing.assert_allclose(got, [0.08, 0.04, 0.08, 0.06])
    np.testing.assert_allclose(bootstrap.holm([0.6, 0.7]), [1, 1])
    assert bootstrap.holm([]).size == 0
