# SPDX-License-Identifier: Apache-2.0
"""The U-Net that attends to a context, and what a ControlNet or more channels change of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attentive import STABLE_DIFFUSION, TOKENS, WIDTH, inputs, section
from flax import nnx
from setups import perturbed

from contourdiff_jax import config, models
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import blocks, transformer, unet


@pytest.fixture(scope="module")
def network():
    """(model, params) of 4 channels, none of the parameters zero."""
    model = models.build(section(), channels=4)
    return model, perturbed(jax.jit(model.init)(jax.random.key(0)))


@pytest.mark.slow
def test_every_parameter_and_the_context_matter(network):
    model, params = network
    z_t, t, context = inputs()

    def loss(params, context):
        return jnp.square(model.apply(params, z_t, t, {}, context=context)).mean()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, context)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(gradient).max() > 1e-7, jax.tree_util.keystr(path)


def test_the_order_of_a_context_is_no_matter(network):
    """Attention has no places: whoever makes a context writes them into it."""
    model, params = network
    z_t, t, context = inputs()
    apply = jax.jit(model.apply)
    answer = apply(params, z_t, t, {}, context=context)
    turned = apply(params, z_t, t, {}, context=context[:, ::-1])
    np.testing.assert_allclose(turned, answer, atol=1e-5)
    other = apply(params, z_t, t, {}, context=context[::-1])
    assert not np.allclose(other, answer, atol=1e-3)


def test_residuals_are_added_to_what_they_are_for(network):
    """A residual of zero changes nothing, and any other does."""
    model, params = network
    z_t, t, context = inputs()
    features = unet.skip_features(section())
    assert features == [8, 8, 8, 16]
    shapes = [(2, size, size, f) for size, f in zip((8, 8, 4, 4), features, strict=True)]
    zeros = [jnp.zeros(shape) for shape in shapes], jnp.zeros(shapes[-1])

    @jax.jit
    def apply(residuals):
        return model.apply(params, z_t, t, {}, context=context, residuals=residuals)

    answer = apply(None)
    np.testing.assert_allclose(apply(zeros), answer, atol=1e-5)
    leaves, tree = jax.tree.flatten(zeros)
    for place in range(len(leaves)):
        added = [
            leaf + (n == place) * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)
            for n, leaf in enumerate(leaves)
        ]
        assert not np.allclose(apply(tree.unflatten(added)), answer, atol=1e-3)


@pytest.mark.parametrize(
    ("width", "given", "named"),
    [
        (WIDTH, None, r"context: none, .*context=6 asks for one \[B, M, 6\]"),
        (WIDTH, (2, TOKENS, 7), r"context: \[2, 5, 7\], .*asks for one"),
        (0, (2, TOKENS, WIDTH), r"context: \[2, 5, 6\], .*context=0 asks for none"),
    ],
)
def test_a_context_that_is_not_seen_is_named(width, given, named):
    model = models.build(section(context=width), channels=4)
    params = jax.eval_shape(model.init, jax.random.key(0))
    z_t, t, _ = inputs()
    context = None if given is None else jnp.zeros(given)
    with pytest.raises(InputError, match=named) as error:
        jax.eval_shape(lambda params: model.apply(params, z_t, t, {}, context=context), params)
    assert "\n" not in str(error.value)


def test_heads_are_counted_or_have_a_width():
    of_count = section(heads=(2, 4))
    assert config.head_widths(of_count) == (4, 4)
    assert config.head_widths(section(heads=(2,))) == (4, 8)
    assert config.head_widths(section(heads=(), head_width=0)) == (8, 16)
    z_t, t, context = inputs()
    answers = []
    for model in (of_count, section(heads=(), head_width=4)):
        built = models.build(model, channels=4)
        params = jax.eval_shape(built.init, jax.random.key(0))
        answers.append(str(jax.make_jaxpr(built.apply)(params, z_t, t, {}, context=context)))
    assert answers[0] == answers[1]


def test_a_transformer_begins_as_the_identity():
    block = transformer.Transformer(
        8, context=6, head_width=4, groups=2, fused=False, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    x, context = jax.random.normal(jax.random.key(0), (2, 3, 3, 8)), jnp.ones((2, TOKENS, 6))
    np.testing.assert_array_equal(block(x, context), x)


def test_fused_attention_is_that_of_the_image_to_itself(monkeypatch):
    """cuDNN's kernel takes no odd number of tokens to learn from."""
    seen = []

    def fused(query, key, value):
        seen.append(key.shape[1])
        return blocks.attend(query, key, value)

    monkeypatch.setattr(blocks, "attend_fused", fused)
    settings = section(channels=(16,), attention=(True,), fused_attention=True, dtype="bfloat16")
    model = models.build(settings, channels=3)
    z_t, t, context = inputs(3)
    params = jax.eval_shape(model.init, jax.random.key(0))
    jax.eval_shape(lambda params: model.apply(params, z_t, t, {}, context=context), params)
    assert seen and set(seen) == {64}


# ----------------------------------------------------------------------------------------------
# More channels
# ----------------------------------------------------------------------------------------------


def test_a_widened_network_is_the_same_until_it_learns(network):
    model, params = network
    wide = models.build(section(), channels=8, outputs=4)
    z_t, t, context = inputs(8)
    more = unet.widened(params, 8)
    shapes = jax.eval_shape(wide.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, more) == jax.tree.map(jnp.shape, shapes)
    np.testing.assert_array_equal(more["conv_in"]["bias"], params["conv_in"]["bias"])
    assert np.abs(more["conv_in"]["bias"]).min() > 0

    answer = jax.jit(wide.apply)(more, z_t, t, {}, context=context)
    before = jax.jit(model.apply)(params, z_t[..., :4], t, {}, context=context)
    np.testing.assert_allclose(answer, before, atol=1e-5)
    assert jax.tree.map(jnp.shape, unet.widened(params, 4)) == jax.tree.map(jnp.shape, params)
    with pytest.raises(InputError, match="channels: 3, where the network has 4"):
        unet.widened(params, 3)


def test_stable_diffusion_has_as_many_parameters():
    """Counts of SD 1.5's U-Net, and of InstructPix2Pix's."""
    model = models.build(section(**STABLE_DIFFUSION), channels=4)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert models.count(params) == 859_520_964
    wide = jax.eval_shape(lambda params: unet.widened(params, 8), params)
    assert models.count(wide) == 859_532_484
