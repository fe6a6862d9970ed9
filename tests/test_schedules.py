# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from ml_collections import ConfigDict

from contourdiff_jax.diffusion import schedules
from contourdiff_jax.errors import InputError


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_signal_falls_from_nearly_all_to_nearly_none(make):
    schedule = make(1000)
    alpha_bar = np.asarray(schedule.alpha_bar)
    assert schedule.steps == 1000
    assert (np.diff(alpha_bar) < 0).all()
    assert alpha_bar[0] > 0.999
    assert alpha_bar[-1] < 1e-4
    # Signal and noise are amplitudes of a unit-variance mixture.
    power = np.asarray(schedule.signal) ** 2 + np.asarray(schedule.noise) ** 2
    np.testing.assert_allclose(power, 1, atol=1e-6)


def test_linear_is_the_published_schedule():
    """beta_1 = 1e-4 and beta_T = 0.02 at T = 1000 leave 4.0e-5 of the signal's power."""
    alpha_bar = np.asarray(schedules.linear(1000).alpha_bar)
    assert alpha_bar[0] == pytest.approx(1 - 1e-4, abs=1e-7)
    assert alpha_bar[-1] == pytest.approx(4.036e-5, rel=1e-3)


def test_cosine_follows_its_closed_form():
    """Where no beta is cut off at 0.999, the product of (1 - beta) is the squared cosine itself."""
    steps, s = 200, 0.008
    u = np.arange(1, steps) / steps
    closed = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2 / np.cos(s / (1 + s) * np.pi / 2) ** 2
    np.testing.assert_allclose(schedules.cosine(steps).alpha_bar[:-1], closed, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"schedule": "square", "steps": 10}, "square"),
        ({"schedule": "linear", "steps": 1}, "steps"),
    ],
)
def test_bad_settings_are_named(fields, named):
    with pytest.raises(InputError, match=named):
        schedules.build(ConfigDict(fields))
