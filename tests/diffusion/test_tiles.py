# SPDX-License-Identifier: Apache-2.0
"""Tiles: they cover, their weights sum to one, and what they make has no seam."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax.diffusion import tiles
from contourdiff_jax.runtime import mesh as meshes


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
    pieces = tiles.blended(denoiser, condition, (8, 8), 0.25)(z_t, 3.0)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------
# Volumes
# ----------------------------------------------------------------------------------------------


def volume(*space):
    """(z_t, condition) of one volume."""
    rng = np.random.default_rng(0)
    z_t, seen = (jnp.asarray(rng.normal(size=(1, *space, n)), jnp.float32) for n in (1, 2))
    return z_t, {"contour": seen}


def pointwise(condition):
    return lambda z_t, t: jnp.tanh(z_t * t + condition["contour"][..., :1])


def wide(condition):
    """It looks at all neighbours, and knows where a tile ends."""
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 3, 1)) / 9, jnp.float32)

    def denoise(z_t, t):
        x = jnp.concatenate([z_t, condition["contour"]], -1)
        layout = ("NDHWC", "DHWIO", "NDHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=layout)
        return t * jnp.tanh(y)

    return denoise


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize(("space", "tile"), [((9, 16, 16), (4, 8, 8)), ((5, 11, 7), (4, 0, 3))])
def test_of_a_volume_each_voxel_is_what_it_is_in_the_whole(space, tile, batch):
    """For a denoiser that looks at single voxels, whatever the sides and the number at once."""
    z_t, condition = volume(*space)
    pieces = tiles.blended(pointwise, condition, tile, 0.25, batch)(z_t, 0.5)
    np.testing.assert_allclose(pieces, pointwise(condition)(z_t, 0.5), atol=1e-6)


@pytest.mark.parametrize("tile", [(6, 8, 8), (0, 0, 0), (32, 8, 64)])
def test_a_tile_that_holds_a_volume_is_the_whole(tile):
    z_t, condition = volume(6, 8, 8)
    pieces = tiles.blended(wide, condition, tile, 0.5, 4)(z_t, 0.5)
    np.testing.assert_allclose(pieces, wide(condition)(z_t, 0.5), atol=1e-6)


def test_what_all_tiles_agree_on_is_the_answer():
    z_t, condition = volume(9, 13, 10)

    def constant(condition):
        return lambda z_t, t: jnp.full_like(z_t, 0.7)

    pieces = tiles.blended(constant, condition, (4, 6, 4), 0.3, 2)(z_t, 0.5)
    np.testing.assert_allclose(pieces, 0.7, atol=1e-6)


def test_only_where_tiles_meet_do_they_differ_from_the_whole():
    """Beside the borders between tiles; and there, too, they are near."""
    z_t, condition = volume(4, 4, 24)
    whole = wide(condition)(z_t, 0.5)
    pieces = tiles.blended(wide, condition, (0, 0, 16), 0.5)(z_t, 0.5)
    apart = np.abs(pieces - whole).max((0, 1, 2, 4))
    # Tiles are 0 to 15 and 8 to 23: where they end they have hardly any weight.
    assert apart[[7, 16]].max() < 1e-5 and apart[8:16].max() < 0.02
    np.testing.assert_allclose(apart[[*range(7), *range(17, 24)]], 0, atol=1e-6)


def test_how_many_are_denoised_at_once_and_where_changes_nothing():
    """On one device and on two, whatever is left over for the last group."""
    z_t, condition = volume(9, 12, 12)
    blended = functools.partial(tiles.blended, wide, tile=(4, 8, 8), overlap=0.25)
    alone = blended(condition)(z_t, 0.5)
    for devices, batch in ((1, 5), (2, 2), (2, 10)):
        mesh = meshes.local(devices)
        split, whole = meshes.batch(mesh), meshes.replicated(mesh)

        @functools.partial(jax.jit, in_shardings=whole, out_shardings=whole)
        def denoise(z_t, condition, batch=batch, split=split):
            return blended(condition, batch=batch, sharding=split)(z_t, 0.5)

        np.testing.assert_allclose(denoise(z_t, condition), alone, atol=1e-6)


def test_groups_are_as_few_and_as_small_as_can_be():
    """Of 3 x 2 x 2 tiles, whose weights in all groups together are those of the volume."""
    counts = {1: (12, 1), 5: (3, 4), 8: (2, 6), 64: (1, 12)}
    for batch, shape in counts.items():
        seen = []

        def denoiser(condition, seen=seen):
            seen.append(len(condition["contour"]))
            return pointwise(condition)

        z_t, condition = volume(10, 12, 12)
        tiles.blended(denoiser, condition, (4, 8, 8), 0.25, batch)(z_t, 0.5)
        assert seen == [shape[1]]
        corners, weights = tiles._groups((10, 12, 12), (4, 8, 8), 0.25, batch, 1)
        assert corners.shape == (*shape, 3) and weights[2].shape == (*shape, 8)
