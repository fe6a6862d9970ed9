# SPDX-License-Identifier: Apache-2.0
"""Gradients of convolutions: the CPU's ways give what XLA's own give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax.models import convolution

# (B, H, W, C, O): one of each case, and beside it one where XLA's is used.
FEW = (2, 32, 20, 24, 8)
LARGE = (1, 96, 12, 128, 24)
HEAVY = (2, 4, 8, 512, 512)
NEITHER = (2, 24, 20, 24, 8)


def given(shape):
    batch, rows, columns, features, out = shape
    rng = np.random.default_rng(0)
    shapes = (batch, rows, columns, features), (3, 3, features, out), (batch, rows, columns, out)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


@pytest.mark.parametrize("shape", [FEW, LARGE, HEAVY, NEITHER])
def test_the_gradients_are_those_of_the_convolution(shape):
    """Sums of the same products in another order: equal but for rounding."""
    x, kernel, gradient = given(shape)
    ours = jax.jit(jax.vjp(convolution.convolve, x, kernel)[1])(gradient)
    exact = convolution._by_xla(*(jnp.asarray(a) for a in (x, kernel)), jnp.asarray(gradient))
    for found, right in zip(ours, exact, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize(("shape", "replaced"), [(FEW, 1), (LARGE, 1), (HEAVY, 0)])
def test_each_case_has_a_way_of_its_own(monkeypatch, shape, replaced):
    """With XLA's made wrong, what a CPU computes by itself is right and the other is not."""
    x, kernel, gradient = given(shape)
    right = convolution._by_xla(x, kernel, gradient)
    monkeypatch.setattr(convolution, "_by_xla", lambda x, k, g: (0 * x, 0 * k))
    found = convolution._on_a_cpu(*(jnp.asarray(a) for a in (x, kernel, gradient)))
    for which in (0, 1):
        agrees = np.allclose(found[which], right[which], rtol=1e-3, atol=1e-2)
        assert agrees == (which == replaced)


def test_elsewhere_the_gradients_are_xlas():
    """Lowered for a GPU, nothing of the CPU's ways is left."""
    x, kernel, gradient = given(FEW)

    def backward(platform):
        traced = jax.jit(lambda g: jax.vjp(convolution.convolve, x, kernel)[1](g)).trace(gradient)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert backward("cpu").count("stablehlo.slice") > 0
    assert backward("cuda").count("stablehlo.slice") == 0
