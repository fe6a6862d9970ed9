# SPDX-License-Identifier: Apache-2.0
"""What a network is shown of its conditions, given and missing."""

import numpy as np
import pytest

from contourdiff_jax import config
from contourdiff_jax.data import examples
from contourdiff_jax.models import conditioning

BOTH = ("contour", "neighbour")


def section(**fields):
    model = config.default().model
    model.update(fields)
    return model


@pytest.fixture
def condition(rng):
    """Contours of 0 and 1, neighbours in [-1, 1], of two 4 x 4 images."""
    values = {
        "contour": (rng.random((2, 4, 4)) < 0.5).astype(np.float32),
        "neighbour": rng.uniform(-1, 1, (2, 4, 4)).astype(np.float32),
    }
    return {name: examples.given(value) for name, value in values.items()}


def test_with_a_flag_everything_is_shown_in_order(condition, rng):
    z_t = rng.normal(size=(2, 4, 4, 1)).astype(np.float32)
    for names in (("contour",), BOTH):
        model = section(conditions=names)
        shown = conditioning.concatenate(model, z_t, condition)
        expected = np.concatenate([z_t, *(condition[name] for name in names)], -1)
        np.testing.assert_array_equal(shown, expected)
        assert shown.shape[-1] == 1 + conditioning.channels(model)


def test_as_published_values_alone_are_shown(condition):
    model = section(conditions=BOTH, null="empty")
    shown = conditioning.concatenate(model, np.zeros((2, 4, 4, 1), np.float32), condition)
    np.testing.assert_array_equal(shown[..., 1], condition["contour"][..., 0])
    np.testing.assert_array_equal(shown[..., 2], condition["neighbour"][..., 0])
    assert shown.shape[-1] == 1 + conditioning.channels(model) == 3


def test_as_published_what_is_missing_is_black(condition):
    """A contour of 0, a neighbour of -1: an image in [-1, 1] that is air everywhere."""
    model = section(conditions=BOTH, null="empty")
    missing = {name: np.zeros_like(value) for name, value in condition.items()}
    shown = conditioning.concatenate(model, np.zeros((2, 4, 4, 1), np.float32), missing)
    np.testing.assert_array_equal(shown[..., 1], 0)
    np.testing.assert_array_equal(shown[..., 2], -1)
