# SPDX-License-Identifier: Apache-2.0
"""CLIP's text encoder: its size, and what a token may see.

That it is CLIP's is for tests/parity to say.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax import models
from contourdiff_jax.models import blocks, clip

TINY = clip.TextConfig(vocabulary=50, positions=9, width=16, layers=2, heads=4, mlp=32)
IDS = jnp.arange(18, dtype=jnp.int32).reshape(2, 9)


def network(config=TINY):
    """(params, compiled encode), none of the parameters zero, so that every one counts."""
    encoder, rng = clip.build(config), np.random.default_rng(9)
    params = jax.tree.map(
        lambda p: p + rng.normal(0, 0.1, p.shape).astype(np.float32),
        jax.jit(encoder.init)(jax.random.key(0)),
    )
    return params, jax.jit(encoder.encode)


def test_stable_diffusion_s_encoders_have_as_many_parameters():
    """Counts of CLIPTextModel as Stable Diffusion 1.5 and 2.1 have it; nothing is allocated."""
    second = clip.TextConfig(width=1024, layers=23, heads=16, mlp=4096, activation="gelu")
    for config, expected in ((clip.TextConfig(), 123_060_480), (second, 340_387_840)):
        shapes = jax.eval_shape(clip.build(config).init, jax.random.key(0))
        assert models.count(shapes) == expected


def test_a_prompt_becomes_features_of_its_tokens():
    params, encode = network()
    features = encode(params, IDS)
    assert features.shape == (2, 9, 16) and features.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(encode(params, IDS[:1]), features[:1], atol=1e-5)


def test_a_token_sees_those_before_it_alone():
    params, encode = network()
    before, after = encode(params, IDS), encode(params, IDS.at[:, 5].set(49))
    np.testing.assert_array_equal(after[:, :5], before[:, :5])
    for place in range(5, 9):
        assert not np.allclose(after[:, place], before[:, place], atol=1e-3)
    np.testing.assert_allclose(encode(params, IDS[:, :5]), before[:, :5], atol=1e-5)


def test_every_parameter_matters():
    params, encode = network()
    target = np.random.default_rng(2).normal(size=(2, 9, 16)).astype(np.float32)

    def loss(params):
        return jnp.square(encode(params, IDS) - target).mean()

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(params)):
        assert np.isfinite(gradient).all()
        # A shift of all keys changes no softmax, so the bias of the keys alone has no gradient.
        if "'key']['bias']" not in jax.tree_util.keystr(path):
            assert np.abs(gradient).max() > 1e-6, jax.tree_util.keystr(path)


def test_what_is_set_matters():
    for other in ({"activation": "gelu"}, {"heads": 2}, {"epsilon": 0.1}):
        features = []
        for config in (TINY, dataclasses.replace(TINY, **other)):
            params, encode = network(config)
            features.append(encode(params, IDS))
        assert not np.allclose(*features, atol=1e-5), other


def test_new_parameters_follow_their_key():
    init = jax.jit(clip.build(TINY).init)
    same, again, other = (init(jax.random.key(k)) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, same, again)
    for params in (same, other):
        for part in ("token", "position"):
            assert params[part]["embedding"].std() == pytest.approx(clip.DEVIATION, rel=0.2)
    assert not np.array_equal(same["token"]["embedding"], other["token"]["embedding"])


def test_masked_attention_is_jax_attention(rng):
    q, k, v = (jnp.asarray(rng.normal(size=(2, 9, 3, 4)), jnp.float32) for _ in range(3))
    seen = jnp.tri(9, dtype=bool)
    reference = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(blocks.attend(q, k, v, seen), reference, atol=1e-5)
    everything = jnp.ones((9, 9), bool)
    np.testing.assert_array_equal(blocks.attend(q, k, v, everything), blocks.attend(q, k, v))
