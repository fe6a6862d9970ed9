# SPDX-License-Identifier: Apache-2.0
"""Convolutions and their gradients: the CPU's forms give what XLA's own give."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from contourdiff_jax.models import convolution, winograd
from contourdiff_jax.runtime import compiling
from contourdiff_jax.runtime import mesh as meshes

# (B, H, W, C, O): one of each case, and beside it one where XLA's is used.
FEW = (2, 32, 20, 24, 8)
MANY = (1, 40, 12, 128, 128)
HEAVY = (2, 4, 8, 512, 512)
NEITHER = (2, 24, 20, 24, 24)


def given(shape):
    batch, rows, columns, features, out = shape
    rng = np.random.default_rng(0)
    shapes = (batch, rows, columns, features), (3, 3, features, out), (batch, rows, columns, out)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def agree(found, right) -> bool:
    """Sums of the same products in another order: equal but for rounding."""
    return np.allclose(found, right, rtol=1e-4, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize("shape", [FEW, MANY, HEAVY, NEITHER])
def test_values_and_gradients_are_those_of_xla(shape):
    x, kernel, gradient = given(shape)
    found, pull = jax.vjp(convolution.convolve, x, kernel)
    right, exact = jax.vjp(convolution._by_xla, x, kernel)
    assert agree(found, right)
    for ours, theirs in zip(jax.jit(pull)(gradient), exact(gradient), strict=True):
        assert agree(ours, theirs)


@pytest.mark.parametrize(
    ("shape", "own"),
    [(FEW, {"kernel"}), (MANY, {"x", "kernel"}), (HEAVY, {"x", "kernel"}), (NEITHER, set())],
)
def test_each_case_has_a_form_of_its_own(monkeypatch, shape, own):
    """With the usual gradients made wrong, those that are computed in another form are right."""
    x, kernel, gradient = given(shape)
    right = convolution._gradients_by_xla(x, kernel, gradient)
    wrong = (jnp.zeros_like(x), jnp.zeros_like(kernel))
    monkeypatch.setattr(convolution, "_gradients_in_order", lambda *_: wrong)
    found = convolution._gradients_on_a_cpu(x, kernel, gradient)
    cases = zip(("x", "kernel"), found, right, strict=True)
    assert {name for name, ours, theirs in cases if agree(ours, theirs)} == own


@pytest.mark.parametrize("network", ["convolve", "slide", "halve", "double"])
def test_gradients_within_a_loop_have_their_axes_in_order(network):
    """Others, which XLA leaves as they are there, take twenty times as long on a CPU."""
    side = 3 if network in ("convolve", "slide") else 4
    form = {"slide": lambda x, kernel: convolution.slide(x, kernel, 1)}.get(network)
    form = form or getattr(convolution, network)
    x, kernel = jnp.ones((2, 20, 20, 8)), jnp.ones((side, side, 8, 8))

    def step(total, shift):
        of = jax.grad(lambda *given: jnp.square(form(*given)).sum(), argnums=(0, 1))(
            x + shift, kernel
        )
        return jax.tree.map(jnp.add, total, of), None

    def summed(x, kernel):
        return jax.lax.scan(step, (x, kernel), jnp.arange(2.0))[0]

    program = jax.jit(summed).lower(x, kernel).compile().as_text()
    orders = set(re.findall(r"dim_labels=(\S+?)[, \n]", program))
    assert orders == {"b01f_01io->b01f"}


def test_tiles_round_like_products_do():
    """Beside the convolution in float64, to a few millionths of its standard deviation."""
    x, kernel, _ = given((2, 20, 12, 256, 128))
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    exact = sum(padded[:, i : i + 20, j : j + 12] @ np.asarray(kernel)[i, j] for i, j in shifts)
    assert np.abs(jax.jit(winograd.value)(x, kernel) - exact).max() < 1e-5 * exact.std()


@pytest.mark.parametrize("elements", [1, 2 * 4 * 4 * 2, 1 << 22])
def test_parts_of_a_picture_make_the_whole(monkeypatch, elements):
    """Two rows at once, or four and then two, or all."""
    monkeypatch.setattr(winograd, "PART", elements)
    x, kernel, gradient = given((2, 6, 8, 4, 6))
    right, exact = jax.vjp(convolution._by_xla, x, kernel)
    assert agree(jax.jit(winograd.value)(x, kernel), right)
    found = jax.jit(winograd.gradients)(x, kernel, gradient)
    for ours, theirs in zip(found, exact(gradient), strict=True):
        assert agree(ours, theirs)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 40, 12, 128, 128), "bfloat16"), ((1, 39, 12, 128, 128), "float32")],
)
def test_tiles_are_of_float32_and_whole(monkeypatch, shape, dtype):
    x, kernel, _ = (a.astype(dtype) for a in given(shape))
    monkeypatch.setattr(winograd, "value", None)
    assert convolution.convolve(x, kernel).shape == (*shape[:3], shape[4])


@pytest.mark.parametrize("shape", [MANY, HEAVY])
def test_elsewhere_they_are_xlas(shape):
    """Lowered for a GPU, nothing of the CPU's forms is left."""
    x, kernel, gradient = given(shape)

    def lowered(platform):
        traced = jax.jit(lambda g: jax.vjp(convolution.convolve, x, kernel)[1](g)).trace(gradient)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.convolution" not in lowered("cpu")
    assert "stablehlo.dot_general" not in lowered("cuda")


def test_on_cuda_kernels_keep_their_order_in_the_gradient():
    """Else all that is computed of it is brought into cuDNN's order, and back: the whole state."""
    x, kernel, gradient = given(NEITHER)

    def gradients(x, kernel, gradient):
        return jax.vjp(convolution.convolve, x, kernel)[1](gradient)

    def constrained(platform) -> bool:
        traced = jax.jit(gradients).trace(x, kernel, gradient)
        return "LayoutConstraint" in traced.lower(lowering_platforms=(platform,)).as_text()

    assert constrained("cuda") and not constrained("cpu") and not constrained("tpu")
    found = convolution._gradients_on_cuda(x, kernel, gradient)
    for ours, right in zip(found, gradients(x, kernel, gradient), strict=True):
        assert agree(ours, right)


@pytest.mark.parametrize("space", [(5, 6), (3, 4, 5)])
def test_a_convolution_of_one_pixel_is_that_of_flax(space):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *space, 7)), jnp.float32)
    size = (1,) * len(space)
    given = (7, 3, size)
    ours = convolution.Convolution1x1(*given, rngs=nnx.Rngs(0))
    theirs = nnx.Conv(*given, rngs=nnx.Rngs(0))
    assert ours.kernel.shape == (*size, 7, 3)
    ours.bias[...] = theirs.bias[...] = jnp.arange(3.0)
    assert agree(ours(x), theirs(x))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form of a CPU")
def test_tiles_are_not_kept_for_the_gradients():
    """A layer more holds its pictures and its kernel, and no tiles: four pictures in size."""
    rows, features = 32, convolution.MANY
    picture = jax.ShapeDtypeStruct((2, rows, rows, features), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, features, features), jnp.float32)

    def held(layers: int) -> int:
        def loss(kernels, x):
            for kernel in kernels:
                x = jax.nn.silu(convolution.convolve(x, kernel))
            return jnp.square(x).mean()

        lowered = jax.jit(jax.grad(loss)).lower([kernel] * layers, picture)
        options = compiling.options(meshes.local(1))
        return lowered.compile(compiler_options=options).memory_analysis().temp_size_in_bytes

    size = 4 * 2 * rows * rows * features
    assert held(6) - held(3) < 3 * 4 * size
