# SPDX-License-Identifier: Apache-2.0
import types

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from setups import perturbed

from contourdiff_jax import config, models
from contourdiff_jax.models import blocks


@pytest.fixture
def settings():
    section = config.default().model
    section.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
    return section


def inputs(dims: int, size: int = 8):
    z_t = jax.random.normal(jax.random.key(1), (2, *(size,) * dims, 1))
    condition = {"contour": jax.random.normal(jax.random.key(2), (2, *(size,) * dims, 2))}
    return z_t, jnp.array([3, 700]), condition


def network(settings, dims: int = 2):
    """(params, compiled apply), none of the parameters zero, so that every layer counts."""
    settings.dims = dims
    model = models.build(settings)
    return perturbed(jax.jit(model.init)(jax.random.key(0))), jax.jit(model.apply)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_same_code_serves_any_number_of_dimensions(settings, dims):
    params, apply = network(settings, dims)
    z_t, t, condition = inputs(dims)
    assert apply(params, z_t, t, condition).shape == z_t.shape


def test_parameters_are_a_plain_dict_of_float32(settings):
    settings.dtype = "bfloat16"
    params, _ = network(settings)
    assert type(params) is dict
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_initialisation_follows_its_key(settings):
    init = jax.jit(models.build(settings).init)
    same, again, other = (init(jax.random.key(k)) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, same, again)
    assert not np.array_equal(same["conv_in"]["kernel"], other["conv_in"]["kernel"])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {
            "resample_convolution": True,
            "downsample_padding": 0,
            "decoder_attention": (True, False),
            "middle_norm": False,
            "head_width": 0,
            "time_scale_shift": True,
            "time_shift": 1,
            "centre_input": True,
        },
    ],
)
def test_every_parameter_and_every_input_matters(settings, fields):
    settings.update(fields)
    params, apply = network(settings)
    z_t, t, condition = inputs(2)

    def loss(params, z_t, condition):
        return jnp.square(apply(params, z_t, t, condition)).mean()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, z_t, condition)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        # A shift of all keys changes no softmax, so the bias of the keys alone has no gradient.
        if "'key']['bias']" not in jax.tree_util.keystr(path):
            assert np.abs(gradient).max() > 1e-7, jax.tree_util.keystr(path)
    later = apply(params, z_t, t + 50, condition)
    assert not np.allclose(later, apply(params, z_t, t, condition))


def test_examples_of_a_batch_do_not_see_each_other(settings):
    params, apply = network(settings)
    z_t, t, condition = inputs(2)
    both = apply(params, z_t, t, condition)
    first = apply(params, z_t[:1], t[:1], {"contour": condition["contour"][:1]})
    np.testing.assert_allclose(both[:1], first, atol=1e-5)


@pytest.mark.device
def test_bfloat16_agrees_with_float32_to_its_precision(settings):
    outputs = {}
    for dtype in ("float32", "bfloat16"):
        settings.dtype = dtype
        params, apply = network(settings)
        outputs[dtype] = apply(params, *inputs(2))
        assert outputs[dtype].dtype == jnp.float32
    scale = float(outputs["float32"].std())
    np.testing.assert_allclose(outputs["bfloat16"], outputs["float32"], atol=0.1 * scale)
    assert not np.array_equal(outputs["bfloat16"], outputs["float32"])


def test_dropout_acts_only_with_a_key(settings):
    settings.dropout = 0.5
    params, apply = network(settings)
    quiet = apply(params, *inputs(2))
    np.testing.assert_array_equal(quiet, apply(params, *inputs(2)))
    noisy = [apply(params, *inputs(2), key=jax.random.key(k)) for k in (0, 1)]
    assert not np.allclose(noisy[0], quiet)
    assert not np.allclose(noisy[0], noisy[1])


def test_rematerialising_keeps_less_for_the_same_gradients(settings):
    settings.update(channels=(8,), attention=(True,), dropout=0.5)
    given, found, sizes = inputs(2), [], []
    for settings.rematerialise in (False, True):
        model = models.build(settings)
        params = perturbed(jax.jit(model.init)(jax.random.key(0)))

        def loss(params, model=model):
            return jnp.square(model.apply(params, *given, key=jax.random.key(5))).mean()

        _, pull = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params), params)
        sizes.append(sum(4 * leaf.size for leaf in jax.tree.leaves(pull)))
        found.append(jax.tree.leaves(jax.jit(jax.grad(loss))(params)))
    largest = max(jnp.abs(leaf).max() for leaf in found[0])
    for kept, again in zip(*found, strict=True):
        np.testing.assert_allclose(again, kept, rtol=1e-4, atol=1e-5 * largest)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert sizes[1] - held < (sizes[0] - held) / 2


@pytest.mark.device
def test_group_norm_is_flax_group_norm(rng):
    x = jnp.asarray(rng.normal(2, 3, (2, 6, 5, 8)), jnp.float32)
    scale, bias = (jnp.asarray(rng.normal(size=8), jnp.float32) for _ in range(2))
    reference = flax.linen.GroupNorm(num_groups=4, epsilon=1e-5)
    expected = reference.apply({"params": {"scale": scale, "bias": bias}}, x)
    ours = blocks.GroupNorm(8, groups=4, epsilon=1e-5)
    ours.scale[...], ours.bias[...] = scale, bias
    np.testing.assert_allclose(ours(x), expected, atol=1e-5)
    np.testing.assert_allclose(ours.then_silu(x), jax.nn.silu(expected), atol=1e-5)


def test_attention_is_jax_attention(rng):
    q, k, v = (jnp.asarray(rng.normal(size=(2, 9, 3, 4)), jnp.float32) for _ in range(3))
    np.testing.assert_allclose(
        blocks.attend(q, k, v), jax.nn.dot_product_attention(q, k, v), atol=1e-5
    )


def test_attention_is_fused_on_nvidia_alone(monkeypatch):
    """The kernel's arguments are those of `attend`, whose place it takes when lowering for CUDA."""
    qkv = jax.random.normal(jax.random.key(0), (3, 2, 16, 3, 8))
    mixed = blocks._attend_in_cudnn(*qkv, implementation="xla")
    np.testing.assert_allclose(blocks.attend_fused(*qkv), mixed, atol=1e-5)

    version = types.SimpleNamespace(platform_version="cuda 13000")
    monkeypatch.setattr(blocks.backend, "get_backend", lambda: version)
    monkeypatch.setattr(blocks, "_attend_in_cudnn", lambda query, key, value: jnp.cos(value))

    def lowered(platform):
        exported = jax.export.export(jax.jit(blocks.attend_fused), platforms=[platform])
        return exported(*qkv).mlir_module()

    assert "cosine" in lowered("cuda")
    assert "cosine" not in lowered("cpu")
    assert "cosine" not in lowered("rocm")


def test_fused_attention_makes_no_difference_elsewhere(settings):
    settings.dtype = "bfloat16"
    outputs = []
    for settings.fused_attention in (False, True):
        params, apply = network(settings)
        outputs.append(apply(params, *inputs(2)))
    np.testing.assert_array_equal(*outputs)
