# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax.diffusion import process, schedules

SCHEDULE = schedules.from_betas(schedules.cosine(100))
T = jnp.array([0, 3, 50, 98])
FIELDS = {"prediction": "v", "weighting": "none", "gamma": 5.0, "time_exponent": 1.0}


def pair():
    keys = jax.random.split(jax.random.key(0))
    shape = (len(T), 8, 8, 1)
    return jnp.clip(jax.random.normal(keys[0], shape), -1, 1), jax.random.normal(keys[1], shape)


@pytest.mark.parametrize("prediction", ("eps", "x0", "v"))
def test_a_perfect_prediction_gives_the_image_back(prediction):
    x_0, eps = pair()
    z_t = process.diffuse(SCHEDULE, x_0, eps, T)
    output = process.target(SCHEDULE, prediction, x_0, eps, T)
    # Dividing by a small amount of signal costs digits, for eps most of all.
    digits = 1e-3 if prediction == "eps" else 1e-5
    np.testing.assert_allclose(
        process.to_x_0(SCHEDULE, prediction, output, z_t, T), x_0, atol=digits
    )


def test_diffused_images_have_the_stated_moments():
    """q(z_t | x_0) has mean a_t x_0 and variance 1 - alpha_bar_t (Ho et al. 2020, equation 4)."""
    t = jnp.array([60])
    x_0 = jnp.full((1, 200, 200, 1), 0.7)
    z_t = process.diffuse(SCHEDULE, x_0, jax.random.normal(jax.random.key(1), x_0.shape), t)
    assert float(z_t.mean()) == pytest.approx(0.7 * float(SCHEDULE.signal[60]), abs=0.02)
    assert float(z_t.var()) == pytest.approx(1 - float(SCHEDULE.alpha_bar[60]), rel=0.03)


@pytest.mark.parametrize("prediction", ("eps", "x0", "v"))
@pytest.mark.parametrize("weighting", ["x0", "min_snr"])
def test_the_same_error_weighs_alike_however_it_is_predicted(prediction, weighting):
    """The weighted loss of one and the same wrong x_0 must not depend on the parameterisation."""
    x_0, eps = pair()
    wrong = x_0 + 0.1
    z_t = process.diffuse(SCHEDULE, x_0, eps, T)
    a, s = process.at(SCHEDULE.signal, T, z_t), process.at(SCHEDULE.noise, T, z_t)
    wrong_eps = (z_t - a * wrong) / s
    output = process.target(SCHEDULE, prediction, wrong, wrong_eps, T)
    error = jnp.square(output - process.target(SCHEDULE, prediction, x_0, eps, T)).mean((1, 2, 3))
    weighted = process.weight(SCHEDULE, prediction, weighting, 5.0, T) * error
    snr = SCHEDULE.alpha_bar[T] / (1 - SCHEDULE.alpha_bar[T])
    expected = 1.0 if weighting == "x0" else np.minimum(snr, 5.0)
    np.testing.assert_allclose(weighted, 0.01 * expected, rtol=2e-3)


def test_timesteps_are_uniform_and_spread_over_the_batch():
    drawn = jax.vmap(lambda k: process.timesteps(k, 10, jnp.arange(1000)))(
        jax.random.split(jax.random.key(2), 500)
    )
    drawn = np.asarray(drawn)
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    # Each batch has one timestep in each tenth of the range ...
    assert (np.sort(drawn // 100, axis=1) == np.arange(10)).all()
    # ... and each position, taken over many batches, is uniform.
    assert drawn[:, 3].mean() == pytest.approx(499.5, abs=50)


def test_an_exponent_below_one_favours_noisy_timesteps():
    """t = T sqrt(u): the density rises linearly with t, so its mean is 2 T / 3."""
    t = process.timesteps(jax.random.key(0), 10_000, jnp.arange(1000), 0.5)
    assert float(t.mean()) == pytest.approx(1000 * 2 / 3, abs=2)


def test_each_condition_is_dropped_by_itself():
    condition = {"contour": jnp.ones((4000, 2, 2, 2)), "other": jnp.ones((4000, 2, 2, 1))}
    dropped = process.drop(jax.random.key(0), condition, 0.3)
    missing = [np.asarray(value).max((1, 2, 3)) == 0 for value in dropped.values()]
    for one in missing:
        assert one.mean() == pytest.approx(0.3, abs=0.03)
    assert (missing[0] & missing[1]).mean() == pytest.approx(0.09, abs=0.02)


def test_dropping_for_scales_makes_whole_conditions_null_alone_and_together():
    condition = {"contour": jnp.ones((4000, 2, 2, 2)), "other": jnp.ones((4000, 2, 2, 1))}
    for names in (["contour"], ["contour", "other"]):
        dropped = process.drop_for_scales(jax.random.key(0), {n: condition[n] for n in names}, 0.2)
        missing = []
        for value in dropped.values():
            kept = np.asarray(value).reshape(4000, -1)
            assert (kept.min(1) == kept.max(1)).all()
            missing.append(kept[:, 0] == 0)
        # Each is missing alone as often as all are, which for one condition is the same.
        patterns, counts = np.unique(np.stack(missing, 1), axis=0, return_counts=True)
        assert len(patterns) == 2 ** len(names)
        for pattern, count in zip(patterns, counts, strict=True):
            expected = 0.2 if pattern.any() else 1 - 0.2 * (len(patterns) - 1)
            assert count / 4000 == pytest.approx(expected, abs=0.03)
