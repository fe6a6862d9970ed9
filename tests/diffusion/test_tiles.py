# SPDX-License-Identifier: Apache-2.0
"""Tiles: they cover, their weights sum to one, and what they make has no seam."""

import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax.diffusion import tiles


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("tile", [8, 96])
def test_tiles_fill_the_picture_and_their_weights_sum_to_one(tile, overlap):
    for wanted in (tile - 1, tile, tile + 1, 2 * tile, 3 * tile + 5):
        side = tiles.side(wanted, tile)
        corners, weights = tiles.windows(side, tile, overlap)
        assert side >= wanted and corners[0] == 0 and corners[-1] + tile == side
        stride = tile - round(overlap * tile)
        assert np.diff(corners).max(initial=0) <= stride
        assert len(corners) == 1 or (len(corners) - 2) * stride + tile < side  # no more than needed
        total = np.zeros(side)
        for corner, weight in zip(corners, weights, strict=True):
            total[corner : corner + tile] += weight
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_pictures_are_of_whole_latents():
    assert tiles.side(97, 96) == 104 and tiles.side(97, 96, 16) == 112


def test_what_one_tile_holds_is_one_tile():
    assert tiles.side(40, 96) == 96
    np.testing.assert_array_equal(tiles.windows(96, 96, 0.25)[1], np.ones((1, 96)))


@pytest.mark.parametrize("wanted", [104, 130, 200])
def test_weights_change_smoothly(wanted):
    """Where one tile begins the others have all the weight."""
    _, weights = tiles.windows(tiles.side(wanted, 96), 96, 0.25)
    assert np.abs(np.diff(weights, axis=1)).max() < 1.6 / 24  # pi / 2 over the least overlap
    assert weights[1, 0] < 0.01


def test_a_denoiser_that_looks_at_single_pixels_sees_no_tiles():
    """Every pixel's weights sum to one, and condition and picture are cut alike."""
    side = tiles.side(20, 8)
    z_t = jnp.asarray(np.random.default_rng(0).normal(size=(2, side, side, 1)), jnp.float32)
    condition = {"contour": jnp.asarray(np.arange(4 * side**2).reshape(2, side, side, 2) * 1e-3)}

    def denoiser(condition):
        return lambda z_t, t: z_t * t + condition["contour"][..., :1]

    whole = denoiser(condition)(z_t, 3.0)
    pieces = tiles.blended(denoiser, condition, 8, 0.25)(z_t, 3.0)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-5)
