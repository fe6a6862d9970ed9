# SPDX-License-Identifier: Apache-2.0
"""The ControlNet: nothing at first, then what it was copied from and what it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attentive import STABLE_DIFFUSION, inputs, section
from flax import nnx
from setups import perturbed

from contourdiff_jax import models
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import controlnet, unet

HINT = {"hint": 1, "hint_channels": (4, 6, 8)}  # of latents 4 pixels wide
ZEROS = ("zeros", "zero_middle")


@pytest.fixture(scope="module")
def new():
    """(ControlNet, its new parameters, those of a U-Net, compiled apply)"""
    control = controlnet.build(section(), **HINT)
    base = perturbed(jax.jit(models.build(section(), channels=4).init)(jax.random.key(1)))
    params = jax.jit(control.init)(jax.random.key(0))
    return control, controlnet.from_base(params, base), base, jax.jit(control.apply)


def hint(size=32):
    return jax.random.uniform(jax.random.key(3), (2, size, size, 1))


def test_nothing_is_added_at_first(new):
    _, params, _, apply = new
    z_t, t, context = inputs()
    added, middle = apply(params, z_t, t, hint(), context)
    features = unet.skip_features(section())
    shapes = [(2, size, size, f) for size, f in zip((8, 8, 4, 4), features, strict=True)]
    assert [residual.shape for residual in added] == shapes
    assert middle.shape == shapes[-1]
    for residual in (*added, middle):
        np.testing.assert_array_equal(residual, 0)


@pytest.mark.slow
def test_what_is_copied_is_the_base_s_encoder_and_middle(new):
    """With ones for zeros, and the hint not yet seen, residuals are the U-Net's own features."""
    _, params, base, apply = new
    z_t, t, context = inputs()
    for name in controlnet.COPIED:
        jax.tree.map(np.testing.assert_array_equal, params[name], base[name])
    left = params.keys() - set(controlnet.COPIED)
    assert left == {"hint", *ZEROS}
    # A step of training may overwrite the branch's arrays, and not the base's.
    copies = jax.tree.leaves({name: params[name] for name in controlnet.COPIED})
    originals = {id(leaf) for leaf in jax.tree.leaves(base)}
    assert not any(id(leaf) in originals for leaf in copies)

    eyes = jax.tree.map(
        lambda p: jnp.eye(p.shape[-1])[None, None] if p.ndim == 4 else p,
        {name: params[name] for name in ZEROS},
    )
    added, middle = apply(params | eyes, z_t, t, hint(), context)

    def create():
        how = {"dims": 2, "inputs": 4, "outputs": 4, "timed": True, "dtype": jnp.float32}
        return unet.UNet(section(), **how, rngs=nnx.Rngs(0))

    network = models.functional(create)[1](base)
    last, skips = network.encode(*network.enter(z_t, t), context)
    for residual, feature in zip((*added, middle), (*skips, last), strict=True):
        np.testing.assert_allclose(residual, feature, atol=1e-4)
        assert np.abs(feature).max() > 0.1


@pytest.mark.slow
def test_the_hint_and_every_parameter_matter(new):
    control, params, _, _ = new
    params, (z_t, t, context) = perturbed(params), inputs()

    def loss(params, hint):
        residuals = control.apply(params, z_t, t, hint, context)
        return sum(jnp.square(leaf).mean() for leaf in jax.tree.leaves(residuals))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, hint())
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(gradient).max() > 1e-7, jax.tree_util.keystr(path)


def test_a_scale_is_of_all_residuals(new):
    _, params, _, apply = new
    params, (z_t, t, context) = perturbed(params), inputs()
    whole, half = (apply(params, z_t, t, hint(), context, scale=s) for s in (1.0, 0.5))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(half), strict=True):
        assert np.abs(one).max() > 0.01
        np.testing.assert_allclose(other, 0.5 * one, rtol=1e-6)


def test_a_hint_of_another_size_is_named(new):
    control, params, _, _ = new
    z_t, t, context = inputs()
    with pytest.raises(InputError, match=r"hint: 64 x 64 px, .* 4 px wide and ask for 32 x 32"):
        control.apply(params, z_t, t, hint(64), context)


def test_a_base_of_another_network_is_named(new):
    _, params, base, _ = new
    with pytest.raises(InputError, match=r"base: conv_in/kernel is not that of the branch"):
        controlnet.from_base(params, unet.widened(base, 8))


def test_stable_diffusion_s_has_as_many_parameters():
    control = controlnet.build(section(**STABLE_DIFFUSION))
    params = jax.eval_shape(control.init, jax.random.key(0))
    assert models.count(params) == 361_279_120
    assert models.count({"hint": params["hint"]}) == 1_086_480
    assert models.count({name: params[name] for name in ZEROS}) == 11_479_680
