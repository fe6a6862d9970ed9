# SPDX-License-Identifier: Apache-2.0
"""Networks of volumes: planar resolutions, paths for broader shape, pooled attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from setups import perturbed

from contourdiff_jax import config as configuration
from contourdiff_jax import models
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import blocks, convolution

RNGS = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}
NORM = {"groups": 4, "epsilon": 1e-5}


@pytest.fixture
def settings():
    section = configuration.default().model
    section.update(
        dims=3, channels=(8, 16), attention=(False, True), head_width=8, groups=4, layers=1
    )
    return section


def given(*space):
    z_t, contour = (jax.random.normal(jax.random.key(c), (2, *space, c)) for c in (1, 2))
    return z_t, jnp.array([3, 700]), {"contour": contour}


def network(settings):
    """(params, apply), none of the parameters zero, so that every layer counts."""
    model = models.build(settings)
    return perturbed(jax.jit(model.init)(jax.random.key(0))), jax.jit(model.apply)


def gradients(settings, *space):
    params, apply = network(settings)
    loss = lambda params: jnp.square(apply(params, *given(*space))).mean()  # noqa: E731
    return jax.jit(jax.grad(loss))(params)


# --------------------------------------------------------------------------------------------------
# Convolutions
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [convolution.PIXELS, 150, 1])
@pytest.mark.parametrize("shape", [(2, 5, 5, 7, 3, 4), (1, 1, 8, 8, 2, 3)])
def test_a_volume_is_convolved_as_by_xla(shape, pixels, monkeypatch):
    """Its kernel's gradient is summed over parts of all five slices, of two and of one."""
    monkeypatch.setattr(convolution, "PIXELS", pixels)
    *space, features, outputs = shape
    rng = np.random.default_rng(0)
    sizes = (*space, features), (3, 3, 3, features, outputs), (*space, outputs)
    x, kernel, gradient = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)
    found, pull = jax.vjp(convolution.convolve_volume, x, kernel)
    right, exact = jax.vjp(convolution._volume_by_xla, x, kernel)
    for ours, theirs in zip(
        (found, *jax.jit(pull)(gradient)), (right, *exact(gradient)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_the_form_of_slices_is_a_cpu_s_alone_and_keeps_nothing_but_what_it_is_given():
    x, kernel = jnp.ones((1, 4, 6, 6, 2)), jnp.ones((3, 3, 3, 2, 5))

    def lowered(platform):
        pull = jax.jit(lambda g: jax.vjp(convolution.convolve_volume, x, kernel)[1](g))
        traced = pull.trace(jnp.ones((1, 4, 6, 6, 5)))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "0, 1, 2, f]" not in lowered("cpu") and "0, 1, 2, f]" in lowered("cuda")
    _, pull = jax.eval_shape(lambda *a: jax.vjp(convolution.convolve_volume, *a), x, kernel)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) == x.size + kernel.size


# --------------------------------------------------------------------------------------------------
# Planar resolutions
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"paths": 2, "pool": (2, 2)},
        {"resample_convolution": True, "downsample_padding": 0, "time_scale_shift": True},
    ],
)
def test_a_planar_network_of_one_slice_is_that_of_pictures(settings, fields):
    settings.update(planar=2, **fields)
    params, apply = network(settings)
    found = apply(params, *given(1, 12, 8))

    def of_pictures(leaf):
        return leaf[0] if leaf.ndim == 5 else leaf

    settings.dims = 2
    flat = models.build(settings)
    shapes = jax.eval_shape(flat.init, jax.random.key(0))
    params = jax.tree.map(of_pictures, params)
    jax.tree.map(lambda ours, its: np.testing.assert_equal(ours.shape, its.shape), params, shapes)
    z_t, t, seen = jax.tree.map(lambda a: a[:, 0] if a.ndim > 1 else a, given(1, 12, 8))
    right = jax.jit(flat.apply)(params, z_t, t, seen)
    np.testing.assert_allclose(found[:, 0], right, rtol=1e-6, atol=1e-6 * float(right.std()))


def test_slices_of_planar_resolutions_do_not_see_one_another():
    """A convolution, two paths and both changes of resolution; norms are of the whole volume."""
    x = jax.random.normal(jax.random.key(0), (1, 5, 8, 8, 4))
    other = x.at[:, 2].add(1)
    planar = {"dims": 3, "planar": True, **RNGS}
    resampling = {"convolve": True, **planar}
    broader = blocks.Broader(4, **planar)
    broader.conv.kernel[...] = jnp.ones_like(broader.conv.kernel[...])
    for block in (
        blocks.convolution(4, 4, **planar),
        broader,
        blocks.Downsample(4, padding=1, **resampling),
        blocks.Downsample(4, padding=1, **(resampling | {"convolve": False})),
        blocks.Upsample(4, **resampling),
    ):
        moved = jnp.abs(block(other) - block(x)).max((0, 2, 3, 4))
        assert len(moved) == 5 and set(np.flatnonzero(moved)) == {2}


@pytest.mark.parametrize(
    ("planar", "depth", "kernels"),
    [(0, 8, (3, 3, 3)), (1, 4, (1, 3, 3)), (2, 2, (1, 1, 3)), (3, 2, (1, 1, 1))],
)
def test_planar_resolutions_are_the_first(settings, planar, depth, kernels):
    settings.update(channels=(8, 8, 16), attention=(False, False, True), planar=planar, patch=2)
    params, apply = network(settings)
    found = (params["down"][at]["residual"]["conv_1"]["kernel"].shape[0] for at in (0, 2, 4))
    assert tuple(found) == kernels
    assert {params[name]["kernel"].shape[0] for name in ("conv_in", "conv_out")} == {kernels[0]}
    assert configuration.depth_unit(settings) == depth
    drawn = apply(params, *given(depth, 8, 16))
    assert drawn.shape == (2, depth, 8, 16, 1) and len(np.unique(drawn)) > 0.9 * drawn.size


def test_a_depth_that_cannot_be_halved_is_named_with_one_that_can():
    config = configuration.default()
    assert configuration.depth_unit(config.model) == 1
    config.model.dims = 3
    configuration.check_size(config, 64, depth=16)
    words = "12 slices cannot be halved 3 times: take --config.volume.depth=16, or raise config.mod"
    with pytest.raises(InputError, match=words):
        configuration.check_size(config, 64, depth=12)
    config.model.planar = 1
    configuration.check_size(config, 64, depth=12)
    config.model.patch = 2
    with pytest.raises(InputError, match=r"2 times after patches of 2 px: take .*depth=16"):
        configuration.check_size(config, 64, depth=12)


# --------------------------------------------------------------------------------------------------
# Two paths
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [(6, 4), (5, 7), (4, 6, 4), (3, 5, 1)])
def test_a_block_of_two_paths_starts_as_the_identity(space, capsys):
    def made(paths):
        return blocks.ResidualBlock(
            8, 8, 0, dims=len(space), paths=paths, time_scale_shift=False, dropout=0, **NORM, **RNGS
        )

    block, x = made(2), jax.random.normal(jax.random.key(0), (2, *space, 8))
    np.testing.assert_array_equal(block(x, None, None), x)
    one, two = (models.count(nnx.to_pure_dict(nnx.state(b, nnx.Param))) for b in (made(1), block))
    assert two - one == 3 ** len(space) * 8 * 8 + 8
    with capsys.disabled():
        print(
            f"\n{len(space)}D, 8 features: {one} parameters with one path, {two} with two", end=""
        )
    # Of a path alone that passes its middle on, what is drawn are the means.
    centre = (1,) * len(space)
    block.broader.conv.kernel[...] = block.broader.conv.kernel[...].at[centre].set(jnp.eye(8))
    h = block.norm_2.then_silu(block.conv_1(block.norm_1.then_silu(x)))
    drawn = block(x, None, None) - x
    first = (slice(None), *[slice(2)] * len(space))
    mean = h[first].mean(tuple(range(1, h.ndim - 1)))
    corner = (slice(None), *[0] * len(space))
    np.testing.assert_allclose(drawn[corner], mean, atol=1e-5)
    last = (slice(None), *[slice((n - 1) // 2 * 2, n) for n in space])
    mean = h[last].mean(tuple(range(1, h.ndim - 1)))
    np.testing.assert_allclose(drawn[(slice(None), *[-1] * len(space))], mean, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# Pooled attention
# --------------------------------------------------------------------------------------------------


def attention(pool):
    return blocks.AttentionBlock(8, head_width=4, pool=pool, **NORM, **RNGS)


def weights(block, like):
    """`block` with the parameters of `like`, none of them zero."""
    nnx.replace_by_pure_dict(
        state := nnx.state(block), perturbed(nnx.to_pure_dict(nnx.state(like)))
    )
    nnx.update(block, state)
    return block


@pytest.mark.parametrize("dims", [2, 3])
def test_blocks_of_one_position_are_no_pooling(settings, dims):
    settings.dims = dims
    space = (8,) * dims
    params, apply = network(settings)
    right = apply(params, *given(*space))
    for settings.pool in ((1,), (4, 1)):  # of the two resolutions the second has attention
        np.testing.assert_array_equal(network(settings)[1](params, *given(*space)), right)
    settings.pool = (2,)
    assert not np.allclose(network(settings)[1](params, *given(*space)), right, atol=1e-3)


def test_an_image_constant_within_blocks_is_attended_to_block_by_block():
    """It is what attention of the small image of blocks gives, each repeated."""
    small = jax.random.normal(jax.random.key(0), (2, 2, 3, 2, 8))
    pool = (1, 2, 4)
    large = blocks.repeated(small, pool)
    whole, pooled = weights(attention(()), attention(())), weights(attention(pool), attention(()))
    np.testing.assert_allclose(pooled(large), blocks.repeated(whole(small), pool), atol=1e-5)


def test_fine_detail_stays_where_blocks_attend():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 4, 8))
    found = weights(attention((2, 2, 2)), attention(()))(x) - x
    np.testing.assert_allclose(
        found, blocks.repeated(found[:, ::2, ::2, ::2], (2, 2, 2)), atol=1e-5
    )
    assert found.std() > 0.01


@pytest.mark.parametrize(("space", "pool"), [((5, 7), 2), ((3, 4, 5), 4), ((1, 3, 2), 8)])
def test_at_odd_ends_the_means_are_of_what_is_left(space, pool):
    x = jax.random.normal(jax.random.key(0), (1, *space, 8))
    sides = (pool,) * len(space)
    pooled = blocks.means(x, sides)
    assert pooled.shape[1:-1] == tuple(-(-size // pool) for size in space)
    for block in np.ndindex(*pooled.shape[1:-1]):
        part = x[(0, *(slice(pool * i, pool * (i + 1)) for i in block))]
        right = part.reshape(-1, 8).mean(0)
        np.testing.assert_allclose(pooled[(0, *block)], right, atol=1e-6)
    weight = jax.random.normal(jax.random.key(1), pooled.shape)
    found = jax.grad(lambda x: (blocks.means(x, sides) * weight).sum())(x)
    # Means are linear: the gradient's product with any x is what the means of that x come to.
    np.testing.assert_allclose((found * x).sum(), (pooled * weight).sum(), rtol=1e-4)
    moved = (found * jnp.square(x)).sum(), (blocks.means(jnp.square(x), sides) * weight).sum()
    np.testing.assert_allclose(*moved, rtol=1e-4)
    assert attention(sides)(x).shape == x.shape


def test_pooling_and_transformers_are_refused_together():
    config = configuration.default()
    config.model.update(pool=(2,), context=8)
    with pytest.raises(InputError, match=r"config\.model\.pool: a transformer of config\.model\.c"):
        configuration.check_model(config)


# --------------------------------------------------------------------------------------------------
# All of it
# --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rematerialising_changes_no_gradient_of_an_enhanced_network(settings):
    settings.update(planar=1, paths=2, pool=(2,))
    kept, again = (gradients(settings, 6, 10, 8) for settings.rematerialise in (False, True))
    largest = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(kept))
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(kept), jax.tree.leaves(again), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * largest)
        if "'key']['bias']" not in jax.tree_util.keystr(path):  # it changes no softmax
            assert jnp.abs(one).max() > 1e-7, jax.tree_util.keystr(path)


def test_fused_attention_of_blocks_makes_no_difference_elsewhere(settings):
    settings.update(pool=(2,), dtype="bfloat16")
    drawn = []
    for settings.fused_attention in (False, True):
        params, apply = network(settings)
        drawn.append(apply(params, *given(4, 8, 8)))
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize(("field", "value"), [("dims", 3), ("paths", 2), ("pool", (2,))])
def test_diffusers_have_no_such_network(field, value):
    from contourdiff_jax.interop import unet2d

    section = configuration.default().model
    section.update({"resample_convolution": True, field: value})
    with pytest.raises(
        InputError, match=rf"config\.model\.{field}: .* has no equivalent in UNet2D"
    ):
        unet2d.unet(section, inputs=3, outputs=1, size=64)
