# SPDX-License-Identifier: Apache-2.0
"""The bootstrap interval agrees with SciPy's and behaves as an interval should."""

import numpy as np
import pytest
import scipy.stats

from contourdiff_jax.evaluation.metrics.bootstrap import interval, text


def test_equals_scipy_up_to_resampling_noise():
    values = np.random.default_rng(0).normal(0.7, 0.1, 25)
    got = interval(values)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, random_state=1
    )
    noise = 0.1 * (got["high"] - got["low"])
    assert got["value"] == pytest.approx(values.mean())
    assert got["low"] == pytest.approx(reference.confidence_interval.low, abs=noise)
    assert got["high"] == pytest.approx(reference.confidence_interval.high, abs=noise)
    assert got["n"] == 25


def test_intervals_shrink_with_the_number_of_subjects():
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    widths = [interval(values[:n])["high"] - interval(values[:n])["low"] for n in (25, 100, 400)]
    # as 1 / sqrt(n): four times the subjects, half the width
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.25)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.25)


def test_the_seed_decides_the_resamples():
    values = np.random.default_rng(0).random(12)
    assert interval(values, seed=3) == interval(values, seed=3)
    assert interval(values, seed=3) != interval(values, seed=4)


def test_methods_share_their_resamples():
    # a method that is better by the same amount for each subject is better in every resample
    values = np.random.default_rng(0).random(12)
    one, other = interval(values), interval(values + 1)
    assert [other[k] - one[k] for k in ("value", "low", "high")] == pytest.approx([1, 1, 1])


def test_one_subject_has_no_interval():
    assert interval([0.5]) == {"value": 0.5, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize("values", [[], [0.5, float("nan")], [[0.5, 0.6]]])
def test_what_is_not_a_list_of_numbers_is_refused(values):
    with pytest.raises(ValueError, match="one per subject"):
        interval(values)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.5321, "0.532 [0.432, 0.632]"),
        (-0.02, "-0.020 [-0.120, 0.080]"),
        (0.00344, "0.0034 [-0.0966, 0.1034]"),
        (19.874, "19.87 [19.77, 19.97]"),
        (132.44, "132.4 [132.3, 132.5]"),
        (12345.6, "12346 [12346, 12346]"),
    ],
)
def test_text_keeps_about_four_digits(value, shown):
    assert text({"value": value, "low": value - 0.1, "high": value + 0.1, "n": 5}) == shown


def test_text_without_an_interval_is_the_value():
    assert text({"value": 0.5, "low": None, "high": None, "n": 1}) == "0.500"
