# SPDX-License-Identifier: Apache-2.0
"""The device that JAX takes by itself, whichever it is, gives the numbers that it should.

The reference is a CPU with XLA's own convolutions, so that the tests say something on a CPU too,
where ours have other forms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import setups

from contourdiff_jax import config, models
from contourdiff_jax.diffusion import samplers, schedules
from contourdiff_jax.models import blocks, convolution
from contourdiff_jax.runtime import mesh as meshes

pytestmark = pytest.mark.device

SIZE, BATCH = 8, 4


def settings(**fields):
    """The smallest network with convolutions and attention."""
    ours = config.default()
    ours.model.update(channels=(8,), attention=(True,), head_width=8, groups=4)
    ours.model.update(middle_attention=False, **fields)
    ours.train.update(images=64, batch=BATCH, warmup=0, clip=1e9)
    return ours


def example(rng):
    x = rng.uniform(-1, 1, (BATCH, SIZE, SIZE, 1)).astype(np.float32)
    contour = rng.integers(0, 2, (BATCH, SIZE, SIZE, 2)).astype(np.float32)
    return {"x": x, "condition": {"contour": contour}}


def on_a_cpu(function, *given):
    """A function's value there, with convolutions as XLA has them."""
    with pytest.MonkeyPatch.context() as patch, jax.default_device(jax.devices("cpu")[0]):
        patch.setattr(convolution, "convolve", convolution._by_xla)
        return jax.device_get(jax.jit(function)(*jax.device_get(given)))


def distance(found, expected) -> float:
    """Norm of the difference of two trees as a share of the norm of the second."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    squares = [(np.square(np.asarray(a) - b).sum(), np.square(b).sum()) for a, b in pairs]
    difference, size = np.sqrt(np.sum(squares, 0))
    assert size > 0
    return difference / size


def network(dtype):
    """-> ((params, z_t, t, condition) -> prediction and a gradient, and what these are)."""
    model = models.build(settings(dtype=dtype).model)
    params = setups.perturbed(jax.jit(model.init)(jax.random.key(0)))
    given = example(np.random.default_rng(0))
    t = np.arange(1, BATCH + 1) * 200

    def both(params, *given):
        value, pull = jax.vjp(lambda params: model.apply(params, *given), params)
        return value, pull(jnp.sin(value))

    return both, (params, given["x"], t, given["condition"])


@pytest.fixture(scope="module")
def expected():
    both, given = network("float32")
    return on_a_cpu(both, *given)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_outputs_and_gradients_are_those_of_a_cpu_in_float32(expected, dtype, most):
    both, given = network(dtype)
    with jax.default_matmul_precision("highest"):  # of float32, which else may be cut to 19 bits
        found = jax.jit(both)(*given)
    for ours, theirs in zip(found, expected, strict=True):
        assert distance(ours, theirs) < most
    assert dtype == "float32" or distance(found[0], expected[0]) > 1e-5


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp_2m"])
def test_samplers_go_the_way_that_they_go_on_a_cpu(rng, name):
    schedule, section = schedules.from_betas(schedules.cosine(1000)), config.default().sampler
    section.update(name=name, steps=5)
    walk = samplers.build(section, samplers.timesteps(section, schedule.steps))

    def drawn(z):
        def noise(i):
            return jax.random.normal(jax.random.fold_in(jax.random.key(1), i), z.shape)

        return walk(lambda z_t, t: jnp.tanh(z_t + jnp.sin(0.01 * t)), schedule, z, noise)

    z = rng.normal(size=(BATCH, SIZE, SIZE, 1)).astype(np.float32)
    assert distance(jax.jit(drawn)(z), on_a_cpu(drawn, z)) < 1e-4


@pytest.mark.parametrize("width", [8, 32, 64])
def test_fused_attention_is_attention(rng, width):
    """In one kernel where there is one, with its gradients, as in float32."""
    shape = (2, 64, 4, width)
    given = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(4)]

    def pulled(attend, *given):
        value, pull = jax.vjp(attend, *given[:3])
        return value, pull(given[3])

    found = jax.jit(lambda *given: pulled(blocks.attend_fused, *given))(*given)
    wide = [np.asarray(a, np.float32) for a in given]
    expected = on_a_cpu(lambda *given: pulled(jax.nn.dot_product_attention, *given), *wide)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert distance(np.asarray(ours, np.float32), theirs) < 0.02


def test_the_same_steps_again_are_the_same_bits(rng):
    plan, given = setups.setup(settings(dtype="bfloat16"), SIZE), example(rng)
    lying, ends = meshes.put(meshes.batch(plan.mesh), given), []
    for _ in range(2):
        state = plan.init(jax.random.key(0))
        for _ in range(4):
            state, metrics = plan.step(state, lying)
        ends.append(jax.device_get((state, metrics)))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert np.isfinite(ends[0][1]["loss"]) and ends[0][0].step == 4


def test_a_state_that_is_split_learns_the_same(rng, monkeypatch):
    """Over as many devices as there are: with one, the same program in another mesh."""
    monkeypatch.setattr(meshes, "SMALL", 0)
    given, moments, split = example(rng), [], []
    for fsdp in (1, -1):
        ours = settings()
        ours.mesh.update(data=1, fsdp=fsdp)
        plan = setups.setup(ours, SIZE)
        state = plan.init(jax.random.key(0))
        split.append([leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params)])
        with jax.default_matmul_precision("highest"):
            state, _ = plan.step(state, meshes.put(meshes.batch(plan.mesh), given))
        moments.append(jax.device_get(state.optimiser["network"][1][0].mu))
    assert distance(*moments) < 1e-3
    assert all(split[0]) and all(split[1]) == (jax.device_count() == 1)
