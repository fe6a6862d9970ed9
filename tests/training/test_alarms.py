# SPDX-License-Identifier: Apache-2.0
"""Alarms: each number is low where all is well, and above its threshold where it is not."""

import numpy as np
import pytest
from scipy import ndimage

from contourdiff_jax.training import alarms


@pytest.fixture
def heads(rng):
    """Smooth images with more dark than light in a round body; sources of another contrast."""
    rows, columns = np.mgrid[:48, :48] - 23.5
    body = np.broadcast_to(rows**2 + columns**2 < 20**2, (6, 48, 48))
    texture = np.abs(ndimage.gaussian_filter(rng.standard_normal(body.shape), (0, 3, 3))) * 6
    real = np.where(body, np.clip(texture - 0.9, -0.9, 1), -1)
    sources = np.where(body, np.clip(0.6 - texture**2, -0.9, 1), -1)
    return real, sources


def of(drawn, heads, *, paired):
    real, sources = heads
    return alarms.numbers(drawn, real if paired else real[::-1], sources, paired=paired)


@pytest.mark.parametrize("paired", [True, False])
def test_where_all_is_well_nothing_is_said(heads, rng, paired):
    drawn = heads[0] + 0.05 * rng.standard_normal(heads[0].shape)
    found = of(np.clip(drawn, -1, 1), heads, paired=paired)
    assert found.keys() == alarms.ALARMS.keys()
    assert alarms.warnings(found) == []


@pytest.mark.parametrize("paired", [True, False])
def test_each_fault_is_told_by_its_number(heads, paired):
    real, sources = heads
    signs = (-1.0) ** np.arange(48)
    body = real > -1
    faults = {
        "alarm_identity": sources,
        "alarm_reversed": np.where(body, real[body].max() + real[body].min() - real, -1),
        "alarm_checkerboard": real + 0.08 * signs * signs[:, None] * body,
    }
    for name, drawn in faults.items():
        found = of(drawn, heads, paired=paired)
        assert found[name] > alarms.ALARMS[name].threshold
        (line,) = [line for line in alarms.warnings(found) if line.startswith(name)]
        assert f"{found[name]:.2g} is above" in line and "\n" not in line


def test_an_amplitude_is_that_of_the_pattern_as_share_of_the_range():
    signs = (-1.0) ** np.arange(32)
    for pattern in (signs[:, None], signs[None], signs * signs[:, None]):
        images = np.broadcast_to(0.3 + 0.1 * pattern, (2, 32, 32))
        assert alarms.checkerboard(images) == pytest.approx(0.05)
    assert alarms.checkerboard(np.full((2, 32, 32), 0.3)) == pytest.approx(0)


def test_what_cannot_be_told_is_left_out(heads):
    real, _ = heads
    air = np.full_like(real, -1)
    assert alarms.numbers(air, air, air, paired=False).keys() == {"alarm_checkerboard"}
    assert "alarm_reversed" not in alarms.numbers(0 * real, real, paired=True)
    assert "alarm_identity" not in alarms.numbers(real, real, paired=True)


def test_the_domain_that_is_drawn_stays_in_the_line():
    (line,) = alarms.warnings({"alarm_identity_source": 0.9, "heldout_loss": 9.0})
    assert line.startswith("alarm_identity_source 0.9 is above 0.8")
