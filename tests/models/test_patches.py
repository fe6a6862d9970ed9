# SPDX-License-Identifier: Apache-2.0
"""Patches as channels, and networks of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax import config as configuration
from contourdiff_jax import models
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import patches, unet


@pytest.mark.parametrize("space", [(4, 8), (4, 6, 8)])
def test_a_patch_holds_the_pixels_of_its_square_in_order(space):
    x = np.arange(2 * np.prod(space) * 3, dtype=np.float32).reshape(2, *space, 3)
    folded = patches.fold(x, 2)
    assert folded.shape == (2, *(n // 2 for n in space), 3 * 2 ** len(space))
    corner = x[(0, *[slice(2, 4)] * len(space))]
    np.testing.assert_array_equal(folded[(0, *[1] * len(space))], corner.reshape(-1))
    np.testing.assert_array_equal(patches.unfold(folded, 2), x)


def test_a_network_of_patches_draws_every_pixel():
    config = configuration.default().model
    with config.unlocked():
        config.update({"patch": 2, "channels": (32, 32), "attention": (False, False)})
    model = models.build(config)
    key = jax.random.key(0)
    params = jax.tree.map(lambda p: p + jax.random.normal(key, p.shape) / 9, model.init(key))
    x = jax.random.normal(key, (2, 16, 24, 1))
    seen = {"contour": jnp.zeros((2, 16, 24, 2))}
    drawn = jax.jit(model.apply)(params, x, jnp.array([3, 7]), seen)
    assert drawn.shape == x.shape and len(np.unique(drawn)) > 0.9 * drawn.size


def test_patches_must_fill_the_images():
    config = configuration.default()
    config.model.patch = 2
    configuration.check_size(config, 48)
    with pytest.raises(InputError, match="halved 3 times after patches of 2 px: take --size=64"):
        configuration.check_size(config, 56)


def test_what_is_new_to_a_network_of_patches_has_no_effect_at_first(rng):
    """The channels of a patch's pixels lie beside one another, and so do the new ones of each."""
    image = rng.standard_normal((1, 8, 8, 1)).astype(np.float32)
    more = rng.standard_normal((1, 8, 8, 2)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 4, 5)).astype(np.float32)
    bias = rng.standard_normal(5).astype(np.float32)
    params = {"conv_in": {"kernel": jnp.asarray(kernel), "bias": bias}}
    wider = unet.widened(params, 12, pixels=4)["conv_in"]

    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(
            patches.fold(x, 2), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    found = convolved(np.concatenate([image, more], -1), wider["kernel"])
    np.testing.assert_allclose(found, convolved(image, kernel), atol=1e-5)
    np.testing.assert_array_equal(wider["bias"], bias)
