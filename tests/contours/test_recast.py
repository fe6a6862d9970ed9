# SPDX-License-Identifier: Apache-2.0
"""Pictures of a slice in other contrasts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax import config as configuration
from contourdiff_jax.contours import recast
from contourdiff_jax.contours.settings import preset
from contourdiff_jax.errors import InputError

SIZE = (32, 40)


@pytest.fixture
def section():
    """Curves alone: neither blur nor noise."""
    section = configuration.default().recast
    section.update(blur=0.0, noise=0.0)
    return section


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def pictures(section, greys, count=6):
    greys = jnp.broadcast_to(jnp.asarray(greys, jnp.float32), (count, *SIZE))

    @jax.jit
    def drawn(keys):
        return recast.draw(keys, section, SIZE)(greys, jnp.ones_like(greys))

    return np.asarray(drawn(keys(count)))


def test_a_curve_never_falls_and_keeps_black_and_white(section):
    ramp = np.linspace(0, 1, 32 * 40).reshape(SIZE)
    drawn = pictures(section, ramp)
    inside = drawn.reshape(6, -1)
    assert (np.diff(inside) >= -1e-5).all()
    np.testing.assert_allclose(inside[:, [0, -1]], [[-1, 1]] * 6, atol=1e-5)
    assert np.abs(inside[0] - inside[1]).max() > 0.1  # each has its own


def test_even_rises_leave_the_contrast_and_uneven_ones_take_it_away(section):
    ramp = np.linspace(0, 1, 32 * 40).reshape(SIZE)
    section.evenness = 1e4
    even = pictures(section, ramp, 16)
    np.testing.assert_allclose(even, np.broadcast_to(2 * ramp - 1, even.shape), atol=0.05)
    section.evenness = 0.2
    level = np.abs(np.diff(pictures(section, ramp, 16).reshape(16, -1))) < 1e-5
    assert level.mean() > 0.2


def test_blur_and_noise_are_at_most_as_asked(section):
    dot = np.zeros(SIZE)
    dot[16, 20] = 1
    section.update(blur=1.0)
    peaks = (pictures(section, dot, 32)[:, 16, 20] + 1) / 2
    assert peaks.max() > 0.9 and 0.12 < peaks.min() < 0.5  # 1 / (2 pi) for a blur of a pixel
    section.update(blur=0.0, noise=0.1)
    noise = (pictures(section, np.full(SIZE, 0.5), 32) + 1) / 2
    deviations = noise.std((1, 2))
    assert deviations.max() <= 0.1 and deviations.max() > 0.07 and deviations.min() < 0.03


def test_outside_the_body_a_picture_is_black(section):
    mask = np.zeros((1, *SIZE), np.uint8)
    mask[:, 8:20] = 1
    section.noise = 0.3
    drawn = recast.draw(keys(1), section, SIZE)(jnp.full((1, *SIZE), 0.7), mask)
    assert (np.asarray(drawn)[mask == 0] == -1).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [(preset("united", "ct"), "3 pictures"), (preset("original", "mr"), "native pixels")],
)
def test_contours_of_several_pictures_are_refused(settings, words):
    with pytest.raises(InputError, match=f"somewhere: its contours are sought in {words}"):
        recast.check(settings, "somewhere")
    recast.check(preset("default", "ct"), "somewhere")
    recast.check(dataclasses.replace(preset("default", "mr"), blur=5), "somewhere")
