# SPDX-License-Identifier: Apache-2.0
"""The optimiser step, on a loss whose gradient is known: no network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax import config
from contourdiff_jax.contracts import Player
from contourdiff_jax.training import state

TARGET = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


@pytest.fixture
def section():
    """A `train` section without decay, clipping and warm-up."""
    train = config.default().train
    train.update(images=800, batch=8, warmup=0, weight_decay=0.0, clip=1e9, learning_rate=0.1)
    return train


def model_init(key):
    return {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}


def quadratic(params, everyone, example, key, fixed, memory):
    """Mean over examples and features of (bias + sum of kernel - x)^2, however the batch is cut."""
    value = jnp.square(params["bias"][None] + params["kernel"].sum(0)[None] - example["x"]).mean()
    return value, ({"loss": value}, memory)


def players(section, loss=quadratic):
    optimiser, rate = state.optimiser(section), state.learning_rate(section)
    return {"network": Player(model_init, loss, optimiser, rate)}


def begin(section):
    return jax.jit(lambda key: state.init(players(section), key))(jax.random.key(0))


def run(section, loss=quadratic, examples=({"x": TARGET},)):
    """-> (state after the examples, metrics of each step)"""
    step, current, metrics = (
        jax.jit(state.step(section, players(section, loss))),
        begin(section),
        [],
    )
    for example in examples:
        current, measured = step(current, example)
        metrics.append(jax.device_get(measured))
    return jax.device_get(current), metrics


def gradient():
    """Of `quadratic` at the first parameters, by hand."""
    distance = 3.0 - TARGET
    bias = 2 * distance.mean(0) / 3
    return {"kernel": np.tile(bias, (2, 1)), "bias": bias}


def first_moment(current):
    """Adam's running mean of gradients, a tree like the parameters."""
    return next(
        leaf.mu
        for leaf in jax.tree.leaves(current.optimiser, is_leaf=lambda s: hasattr(s, "mu"))
        if hasattr(leaf, "mu")
    )


def test_the_gradient_is_that_of_the_loss(section):
    current, (metrics,) = run(section)
    expected = gradient()
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, 0.1 * theirs, rtol=1e-5),
        first_moment(current),
        expected,
    )
    norm = np.sqrt(sum(np.square(g).sum() for g in expected.values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["loss"] == pytest.approx(np.square(3 - TARGET).mean(), rel=1e-5)


@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_is_the_whole_batch(section, parts):
    """Gradients are averaged, so accumulation changes memory and nothing else."""
    whole, (measured,) = run(section)
    section.accumulate = parts
    cut, (measured_in_parts,) = run(section)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), cut, whole)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), measured_in_parts, measured
    )


def random_loss(params, everyone, example, key, fixed, memory):
    value = jax.random.uniform(key) + 0 * params["bias"].sum()
    return value, ({"loss": value}, memory)


def test_randomness_follows_run_and_step(section):
    """Every step its own; the same again for the same state, which is what resuming needs."""
    step, first = jax.jit(state.step(section, players(section, random_loss))), begin(section)
    second, metrics = step(first, {"x": TARGET})
    again = [step(s, {"x": TARGET})[1]["loss"] for s in (first, second)]
    assert again[0] == metrics["loss"]
    assert again[1] != again[0]
    other = first._replace(key=first.key + 1)
    assert step(other, {"x": TARGET})[1]["loss"] != again[0]
    # Each part of an accumulated batch has noise of its own.
    section.accumulate = 2
    _, cut = jax.jit(state.step(section, players(section, random_loss)))(first, {"x": TARGET})
    assert cut["loss"] != again[0]


@pytest.mark.parametrize("poison", [np.nan, 1e30])
def test_a_step_that_is_not_finite_changes_nothing(section, poison):
    """1e30 squared overflows. Parameters, average, optimiser and counter stay, bit for bit."""
    bad = {"x": np.where(np.arange(8)[:, None] == 5, np.float32(poison), TARGET)}
    good = {"x": TARGET}
    current, (_, metrics, _) = run(section, examples=(good, bad, good))
    assert not np.isfinite(metrics["loss"])
    expected, _ = run(section, examples=(good, good))
    jax.tree.map(np.testing.assert_array_equal, current, expected)
    assert current.step == 2


def test_a_gradient_that_is_not_finite_is_refused_too(section):
    """The square root of zero is finite, its slope is not."""

    def loss(params, everyone, example, key, fixed, memory):
        value = jnp.sqrt(jnp.square(params["bias"] - 1).sum())
        return value, ({"loss": value}, memory)

    current, (metrics,) = run(section, loss)
    assert metrics["loss"] == 0 and not np.isfinite(metrics["grad_norm"])
    jax.tree.map(np.testing.assert_array_equal, current, jax.device_get(begin(section)))


def test_weight_decay_is_for_kernels(section):
    section.weight_decay = 0.1

    def flat_loss(params, everyone, example, key, fixed, memory):
        value = 0 * sum(p.sum() for p in params.values())
        return value, ({"loss": value}, memory)

    current, _ = run(section, flat_loss)
    np.testing.assert_allclose(current.params["network"]["kernel"], 1 - 0.1 * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(current.params["network"]["bias"], 1)


def test_gradients_are_clipped_together(section):
    section.clip = 0.01
    current, (metrics,) = run(section)
    moments = jax.tree.leaves(first_moment(current))
    norm = np.sqrt(sum(np.square(m).sum() for m in moments)) / 0.1
    assert norm == pytest.approx(0.01, rel=1e-4)
    assert metrics["grad_norm"] > 0.01  # what is reported is what was there


def test_the_average_is_its_own_copy(section):
    """Donation would otherwise hand the same memory over twice."""
    current = begin(section)
    jax.tree.map(np.testing.assert_array_equal, current.ema, current.params)
    ours, theirs = (
        {a.unsafe_buffer_pointer() for a in jax.tree.leaves(t)}
        for t in (current.ema, current.params)
    )
    assert not ours & theirs


# ----------------------------------------------------------------------------------------------
# Schedules, counted in images
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "batch", "steps"), [(800, 8, 100), (801, 8, 101), (1, 8, 1)])
def test_images_are_rounded_up_to_whole_batches(section, images, batch, steps):
    section.update(images=images, batch=batch)
    assert state.steps(section) == steps


@pytest.mark.parametrize("batch", [8, 16, 32])
def test_the_learning_rate_warms_up_and_ends_at_zero(section, batch):
    """As a function of images seen it is the same for every batch."""
    section.update(images=6400, batch=batch, warmup=1600)
    rate = state.learning_rate(section)
    assert rate(0) == 0
    assert rate(800 // batch) == pytest.approx(0.05)
    assert rate(1600 // batch) == pytest.approx(0.1)
    assert rate(4000 // batch) == pytest.approx(0.05)  # half-way down the cosine
    assert rate(6400 // batch) == pytest.approx(0, abs=1e-9)
    rates = np.array([rate(s) for s in range(6400 // batch)])
    rising, falling = np.split(np.diff(rates), [1600 // batch])
    assert (rising > 0).all() and (falling < 0).all()


def test_a_short_run_still_reaches_its_peak(section):
    """Warm-up takes at most half of it."""
    section.update(images=80, warmup=1_000_000)
    rates = [float(state.learning_rate(section)(s)) for s in range(11)]
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def decays(section, images):
    return np.asarray(state.ema_decay(section, np.asarray(images, np.float32)))


def test_the_average_forgets_half_in_its_half_life(section):
    """After the ramp-up: what a parameter was counts half `ema_halflife` images later."""
    section.update(ema_halflife=1000, batch=8)
    after_ramp = np.arange(50_000, 51_000, 8)
    assert np.prod(decays(section, after_ramp).astype(np.float64)) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("batch", [4, 16])
def test_the_first_parameters_do_not_linger_in_the_average(section, batch):
    """Half-lives grow with the images seen, so what is older than most of them is forgotten."""
    section.update(ema_halflife=100_000, ema_rampup=0.05, batch=batch)
    images = np.arange(batch, 2001, batch)
    decay = decays(section, images)
    assert decay[0] < 1e-5  # the first step follows the parameters
    assert (np.diff(decay) >= 0).all()
    # The half-life is a twentieth of the images seen: decay^(h / batch) = 1 / 2.
    np.testing.assert_allclose(decay[-1] ** (0.05 * 2000 / batch), 0.5, rtol=1e-4)
    # What was there at a tenth of the way is as good as gone.
    assert np.prod(decay[len(decay) // 10 :].astype(np.float64)) < 1e-6


def test_the_average_follows_the_parameters(section):
    """Step by step, as its decay says."""
    section.update(ema_halflife=100, ema_rampup=10.0)
    step, current = jax.jit(state.step(section, players(section, quadratic))), begin(section)
    average = np.ones(3)
    for number in range(1, 6):
        current, _ = step(current, {"x": TARGET})
        decay = float(decays(section, 8 * number))
        average = decay * average + (1 - decay) * np.asarray(current.params["network"]["bias"])
    np.testing.assert_allclose(current.ema["network"]["bias"], average, rtol=1e-5)
    assert np.abs(average - np.asarray(current.params["network"]["bias"])).max() > 0.01
