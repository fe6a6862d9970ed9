# SPDX-License-Identifier: Apache-2.0
"""ContourDiff: its loss, the timesteps that it learns, and those that it is asked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax.diffusion import process, samplers, schedules
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import diffusion

SCHEDULE = schedules.build(configuration.default().diffusion)
FIELDS = {"prediction": "eps", "weighting": "none", "gamma": 5.0, "time_exponent": 1.0}


def test_the_loss_of_a_perfect_network_is_zero_and_of_a_silent_one_the_power_of_its_target():
    config = ConfigDict(FIELDS)
    x_0 = jnp.zeros((64, 8, 8, 1))
    example = {"x": x_0, "condition": {}}

    def knows(params, z_t, t, condition, *, key=None):
        return z_t / process.at(SCHEDULE.noise, t, z_t)  # x_0 is 0, so z_t = s_t eps

    def silent(params, z_t, t, condition, *, key=None):
        return jnp.zeros_like(z_t)

    def loss_of(apply):
        loss = diffusion.loss(lambda fixed: apply, SCHEDULE, config)
        return loss({}, None, example, jax.random.key(0), (), ())[0]

    assert float(loss_of(knows)) < 1e-9
    assert float(loss_of(silent)) == pytest.approx(1, abs=0.1)


def settings(steps=2, substeps=4, timesteps="all", **sampler):
    ours = configuration.default()
    ours.sampler.update(name="ddim", steps=steps, **sampler)
    ours.distillation.substeps = substeps
    ours.diffusion.timesteps = timesteps
    return ours


def test_the_timesteps_that_sampling_visits_are_learnt_and_no_others():
    ours = settings(5, 0, "sampler", spacing="leading", offset=1)
    known = diffusion.timesteps(ours)
    assert known.tolist() == [1, 201, 401, 601, 801]
    drawn = process.timesteps(jax.random.key(0), 10_000, jnp.asarray(known), 0.5)
    found, counts = np.unique(np.asarray(drawn), return_counts=True)
    assert found.tolist() == known.tolist()
    # u^0.5 lies in a fifth of its range with these odds.
    np.testing.assert_allclose(counts / 10_000, np.diff((np.arange(6) / 5) ** 2), atol=1e-3)


def test_all_timesteps_are_learnt_by_default():
    ours = configuration.default()
    assert diffusion.timesteps(ours).tolist() == list(range(1000))
    diffusion.check_visited(ours, samplers.timesteps(ours.sampler, 1000))


def test_a_network_of_few_steps_is_not_asked_at_others():
    """Half as many evenly spaced ones are among them; twice as many are not."""
    ours = settings(4, 0, "sampler")
    for steps, known in ((4, True), (2, True), (1, True), (8, False), (3, False)):
        visited = samplers.timesteps(settings(steps).sampler, 1000)
        if known:
            diffusion.check_visited(ours, visited)
        else:
            with pytest.raises(InputError, match="--steps=4"):
                diffusion.check_visited(ours, visited)
