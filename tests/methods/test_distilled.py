# SPDX-License-Identifier: Apache-2.0
"""Networks for few steps: what they are asked, and what a teacher tells them.

The teacher is a denoiser written down, which bends its estimate so that no step undoes another.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax import config
from contourdiff_jax.diffusion import process, samplers, schedules
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import diffusion, distilled


def settings(steps=2, substeps=4, timesteps="all", **sampler):
    ours = config.default()
    ours.sampler.update(name="ddim", steps=steps, **sampler)
    ours.distillation.substeps = substeps
    ours.diffusion.timesteps = timesteps
    return ours


SCHEDULE = schedules.build(config.default().diffusion)
WEIGHTS = jnp.float32(0.8)
TEACHER = {"teacher": WEIGHTS}


def bent(weights, z_t, t, condition, *, key=None):
    """v of an estimate of x_0 that is not linear, and leaves the range of images."""
    a, s = process.at(SCHEDULE.signal, t, z_t), process.at(SCHEDULE.noise, t, z_t)
    x_0 = weights * jnp.sin(3 * z_t) + a * z_t + condition["contour"]
    return a * (z_t - a * x_0) / s - s * x_0


def bound(fixed):
    """The network as the method asks for it: nothing that is fixed is its."""
    return bent


def images(key, count=6):
    return jax.random.normal(jax.random.key(key), (count, 4, 4, 1))


CONDITION = {"contour": 0.3 * images(9)}


@pytest.mark.parametrize(("steps", "substeps"), [(1, 8), (4, 2), (2, 1)])
@pytest.mark.parametrize("clip", [True, False])
def test_who_has_learnt_all_of_it_draws_in_few_steps_what_the_teacher_draws_in_many(
    steps, substeps, clip
):
    """Steps of DDIM with the teacher's answers end where its own, `substeps` times as many, do."""
    ours = settings(steps, substeps, clip=clip)
    teach = distilled.teaching(bound, SCHEDULE, ours)
    z_T = images(0)

    def pupil(z_t, t):
        return teach(TEACHER, z_t, jnp.full(len(z_t), t), CONDITION)[0]

    def alone(z_t, t):
        t = jnp.full(len(z_t), t)
        return process.to_x_0(SCHEDULE, "v", bent(WEIGHTS, z_t, t, CONDITION), z_t, t)

    t = samplers.timesteps(ours.sampler, 1000)
    drawn = samplers.ddim(pupil, SCHEDULE, z_T, None, t, clip=False)
    ours.sampler.steps = steps * substeps
    t = samplers.timesteps(ours.sampler, 1000)
    expected = samplers.ddim(alone, SCHEDULE, z_T, None, t, clip=clip)
    np.testing.assert_allclose(drawn, expected, atol=2e-4)


def test_what_is_found_in_an_image_with_noise_makes_it_up():
    ours = settings(4, 2)
    t = jnp.asarray([999, 749, 499, 249, 999, 249])
    z_t = images(1)
    x_0, eps = distilled.teaching(bound, SCHEDULE, ours)(TEACHER, z_t, t, CONDITION)
    np.testing.assert_allclose(process.diffuse(SCHEDULE, x_0, eps, t), z_t, atol=1e-5)


def test_the_loss_is_the_distance_from_the_teacher():
    """A network that answers as its teacher, step for step, has nothing to learn from it."""
    ours = settings(4, 1, clip=False)
    example = {"x": images(2), "condition": CONDITION}
    loss = diffusion.loss(
        bound,
        SCHEDULE,
        ours.diffusion,
        learnt=diffusion.timesteps(ours),
        teach=distilled.teaching(bound, SCHEDULE, ours),
    )
    key = jax.random.key(0)
    assert float(loss(WEIGHTS, None, example, key, TEACHER, ())[0]) < 1e-9
    # What the images are does not enter but through the noisy ones.
    assert float(loss(WEIGHTS, None, example | {"x": images(3)}, key, TEACHER, ())[0]) < 1e-9
    assert float(loss(WEIGHTS, None, example, key, {"teacher": WEIGHTS / 2}, ())[0]) > 1e-3


def test_a_teacher_is_not_taught():
    ours = settings(4, 2)
    teach = distilled.teaching(bound, SCHEDULE, ours)
    loss = diffusion.loss(
        bound, SCHEDULE, ours.diffusion, learnt=diffusion.timesteps(ours), teach=teach
    )
    example = {"x": images(2), "condition": CONDITION}
    key = jax.random.key(0)
    gradient = jax.grad(lambda fixed: loss(WEIGHTS, None, example, key, fixed, ())[0])(TEACHER)
    assert float(gradient["teacher"]) == 0


def test_a_teacher_must_be_of_the_same_kind():
    ours = settings(2, 2)
    distilled.check_teacher(ours, settings(10, 0), "runs/t")
    other = settings(10, 0)
    other.diffusion.prediction = "eps"
    with pytest.raises(InputError, match=r"runs/t: .*config\.diffusion\.prediction"):
        distilled.check_teacher(ours, other, "runs/t")
    other = settings(10, 0)
    other.model.channels = (8, 16, 32, 64)
    with pytest.raises(InputError, match=r"config\.model\.channels"):
        distilled.check_teacher(ours, other, "runs/t")
    # How it was trained does not matter, but for the timesteps that it knows.
    other = settings(4, 2)
    other.diffusion.weighting = "min_snr"
    distilled.check_teacher(ours, other, "runs/t")
    with pytest.raises(InputError, match="learnt the timesteps of ddim with 3 steps"):
        distilled.check_teacher(ours, settings(3, 2), "runs/t")
