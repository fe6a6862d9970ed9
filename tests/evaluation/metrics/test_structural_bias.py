# SPDX-License-Identifier: Apache-2.0
"""Structural bias of masks whose overlap is known."""

import numpy as np
import pytest

from contourdiff_jax.evaluation.metrics.gap import structural_bias


def boxes(*firsts: int) -> np.ndarray:
    """Masks of 4 x 4 pixels that begin at these columns."""
    masks = np.zeros((len(firsts), 4, 16), bool)
    for mask, first in zip(masks, firsts, strict=True):
        mask[:, first : first + 4] = True
    return masks


def test_bodies_that_lie_alike_have_none_however_many_there_are():
    assert structural_bias(boxes(2, 2, 6, 6), boxes(2, 6)) == 0


@pytest.mark.parametrize("shift", [0, 1, 2, 4, 8])
def test_it_is_the_share_that_does_not_overlap(shift):
    """Of 4 columns as many lie outside on either side as the shift, 4 at most."""
    assert structural_bias(boxes(0), boxes(shift)) == pytest.approx(2 * min(shift, 4) / 4)


def test_it_has_no_direction(rng):
    some, others = rng.random((2, 5, 6, 7)) < 0.5
    assert structural_bias(some, others) == pytest.approx(structural_bias(others, some))
