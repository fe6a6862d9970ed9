# SPDX-License-Identifier: Apache-2.0
"""Samplers against a denoiser that is known exactly.

If x_0 ~ N(mu, tau^2), the posterior mean given z_t = a x_0 + s eps is linear in z_t, so the
best possible denoiser is known and every sampler must bring z_T ~ N(0, 1) to N(mu, tau^2).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from contourdiff_jax.diffusion import guidance, samplers, schedules
from contourdiff_jax.errors import InputError

SCHEDULE = schedules.cosine(1000)
MU, TAU = 0.2, 0.25


def denoise(z_t, t):
    a, s = SCHEDULE.signal[t], SCHEDULE.noise[t]
    return MU + a * TAU**2 / (a**2 * TAU**2 + s**2) * (z_t - a * MU)


def noise(i):
    return jax.random.normal(jax.random.fold_in(jax.random.key(7), i), (20_000, 1, 1, 1))


def sample(name, steps, **options):
    z_T = jax.random.normal(jax.random.key(3), (20_000, 1, 1, 1))
    draw = jax.jit(lambda z: samplers.SAMPLERS[name](denoise, SCHEDULE, z, noise, steps, **options))
    return np.asarray(draw(z_T)), np.asarray(z_T)


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [("ddpm", {}, 250), ("ddim", {}, 250), ("ddim", {"eta": 1.0}, 250), ("dpmpp_2m", {}, 50)],
)
def test_samples_have_the_distribution_of_the_data(name, options, steps):
    drawn, _ = sample(name, steps, clip=False, **options)
    assert drawn.mean() == pytest.approx(MU, abs=0.01)
    assert drawn.std() == pytest.approx(TAU, rel=0.04)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_deterministic_samplers_follow_the_probability_flow(name):
    """For Gaussian data the flow is a map of quantiles: x_0 = mu + tau z_T.

    Almost: alpha_bar_T is not quite 0.
    """
    drawn, z_T = sample(name, 250, clip=False)
    np.testing.assert_allclose(drawn, MU + TAU * z_T, atol=0.03)


def test_dpm_solver_is_of_higher_order_than_ddim():
    """Twice the steps halve the error of DDIM and at least quarter that of the other."""
    error = {}
    for name in ("ddim", "dpmpp_2m"):
        for steps in (20, 40):
            drawn, z_T = sample(name, steps, clip=False)
            error[name, steps] = np.abs(drawn - (MU + TAU * z_T)).mean()
    assert 1.5 < error["ddim", 20] / error["ddim", 40] < 2.5
    assert error["dpmpp_2m", 20] / error["dpmpp_2m", 40] > 4


def test_ddim_at_eta_one_is_ancestral_sampling():
    """Song et al. 2021, section 4.1: with the same noise, step for step."""
    ddpm, _ = sample("ddpm", 20)
    ddim, _ = sample("ddim", 20, eta=1.0)
    np.testing.assert_allclose(ddim, ddpm, atol=2e-5)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_one_step_gives_the_denoised_image(name):
    drawn, z_T = sample(name, 1)
    expected = jnp.clip(denoise(jnp.asarray(z_T), 999), -1, 1)
    np.testing.assert_allclose(drawn, expected, atol=1e-6)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_clipping_keeps_the_last_estimate_in_range(name):
    z_T = jax.random.normal(jax.random.key(0), (100, 1, 1, 1))
    drawn = samplers.SAMPLERS[name](
        lambda z, t: 3 * z, SCHEDULE, z_T, lambda i: jnp.zeros_like(z_T), 8
    )
    assert np.abs(drawn).max() <= 1


def test_timesteps_start_at_the_noisiest_and_are_evenly_spaced():
    assert samplers.timesteps(1000, 4).tolist() == [999, 749, 499, 249]
    assert samplers.timesteps(10, 10).tolist() == list(range(9, -1, -1))
    for steps in (1, 3, 7, 50, 999):
        t = samplers.timesteps(1000, steps)
        assert len(t) == steps
        assert t[0] == 999
        assert (np.diff(t) < 0).all()
        assert t[-1] >= 0


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_named(steps):
    with pytest.raises(InputError, match=str(steps)):
        samplers.timesteps(1000, steps)


@pytest.mark.parametrize(("name", "eta", "named"), [("euler", 0.0, "euler"), ("ddpm", 0.5, "eta")])
def test_bad_settings_are_named(name, eta, named):
    with pytest.raises(InputError, match=named):
        samplers.build(ConfigDict({"name": name, "steps": 5, "eta": eta, "clip": True}))


def test_guidance_moves_from_the_null_to_beyond_the_conditional():
    """A network that answers with its condition shows the weights of classifier-free guidance."""

    def apply(params, z_t, t, condition, *, key=None):
        return condition["contour"][..., :1]

    schedule = schedules.linear(10)
    z_t = jnp.zeros((2, 4, 4, 1))
    condition = {"contour": jnp.full((2, 4, 4, 2), 0.5)}
    for scale in (0.0, 1.0, 2.0):
        predict = guidance.denoiser(apply, {}, schedule, "x0", condition, guidance=scale)
        np.testing.assert_allclose(predict(z_t, 5), 0.5 * scale, atol=1e-6)
