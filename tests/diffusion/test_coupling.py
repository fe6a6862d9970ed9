# SPDX-License-Identifier: Apache-2.0
"""Coupling: neighbours agree, and parts of a volume are the volume."""

import jax.numpy as jnp
import numpy as np

from contourdiff_jax.diffusion import coupling


def test_estimates_move_towards_the_mean_of_both_neighbours():
    values = jnp.asarray([0.0, 1.0, 4.0]).reshape(3, 1, 1, 1)
    beside = np.array([[1, 1], [0, 2], [1, 1]])
    agreed = coupling.coupled(lambda z_t, t: z_t * t, beside, 0.25)(values, 2.0)
    expected = [0.75 * 0 + 0.25 * 2, 0.75 * 2 + 0.25 * 4, 0.75 * 8 + 0.25 * 2]
    np.testing.assert_allclose(agreed.ravel(), expected)


def test_parts_are_the_whole():
    """Each slice with its own condition, back in its place; B at a time."""
    z_t = jnp.arange(12.0).reshape(12, 1, 1, 1)
    condition = {"contour": 100 * z_t}
    seen = []

    def denoiser(condition):
        def denoise(z_t, t):
            seen.append(z_t.shape[0])
            return z_t + condition["contour"] + t

        return denoise

    whole = coupling.in_parts(denoiser, condition, 4)(z_t, 0.5)
    np.testing.assert_allclose(whole, 101 * z_t + 0.5)
    assert set(seen) == {4}
