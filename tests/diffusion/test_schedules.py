# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from contourdiff_jax import config
from contourdiff_jax.diffusion import schedules

BETAS = [schedules.linear, schedules.scaled_linear, schedules.cosine]


def section(**fields):
    settings = config.default().diffusion
    settings.update(fields)
    return settings


@pytest.mark.parametrize("betas", BETAS)
def test_signal_falls_from_nearly_all_to_nearly_none(betas):
    schedule = schedules.from_betas(betas(1000))
    alpha_bar = np.asarray(schedule.alpha_bar)
    assert schedule.steps == 1000
    assert (np.diff(alpha_bar) < 0).all()
    assert alpha_bar[0] > 0.999
    assert alpha_bar[-1] < 2e-3
    # Signal and noise are amplitudes of a unit-variance mixture.
    power = np.asarray(schedule.signal) ** 2 + np.asarray(schedule.noise) ** 2
    np.testing.assert_allclose(power, 1, atol=1e-6)


def test_linear_is_the_published_schedule():
    """beta_1 = 1e-4 and beta_T = 0.02 at T = 1000 leave 4.0e-5 of the signal's power."""
    alpha_bar = np.asarray(schedules.build(section(schedule="linear")).alpha_bar)
    assert alpha_bar[0] == pytest.approx(1 - 1e-4, abs=1e-7)
    assert alpha_bar[-1] == pytest.approx(4.036e-5, rel=1e-3)


def test_scaled_linear_is_linear_in_the_square_root():
    betas = schedules.scaled_linear(100, 0.00085, 0.012)
    assert betas[[0, -1]] == pytest.approx([0.00085, 0.012])
    np.testing.assert_allclose(np.diff(betas**0.5, 2), 0, atol=1e-15)


def test_cosine_follows_its_closed_form():
    """Where no beta is cut off at 0.999, the product of (1 - beta) is the squared cosine itself."""
    steps, s = 200, 0.008
    u = np.arange(1, steps) / steps
    closed = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2 / np.cos(s / (1 + s) * np.pi / 2) ** 2
    alpha_bar = schedules.from_betas(schedules.cosine(steps)).alpha_bar
    np.testing.assert_allclose(alpha_bar[:-1], closed, rtol=1e-5)


@pytest.mark.parametrize("betas", BETAS)
def test_without_terminal_signal_the_rest_keeps_its_shape(betas):
    """The signal still begins where it did and falls in proportion; at the end there is none."""
    before = schedules.from_betas(betas(1000))
    after = schedules.from_betas(schedules.zero_terminal_snr(betas(1000)))
    assert after.signal[-1] == 0 and after.noise[-1] == 1
    assert after.signal[0] == before.signal[0]
    falls = [np.diff(np.asarray(s.signal, np.float64)) for s in (before, after)]
    span = [float(s.signal[0]) - float(s.signal[-1]) for s in (before, after)]
    np.testing.assert_allclose(falls[1] / span[1], falls[0] / span[0], atol=3e-7)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_a_section_is_what_its_fields_say(name):
    ends = {"beta_first": 0.001, "beta_last": 0.01}
    betas = getattr(schedules, name)(50, *(ends.values() if "linear" in name else ()))
    for zero in (False, True):
        expected = schedules.from_betas(schedules.zero_terminal_snr(betas) if zero else betas)
        built = schedules.build(section(schedule=name, steps=50, zero_terminal_snr=zero, **ends))
        np.testing.assert_array_equal(built.alpha_bar, expected.alpha_bar)
