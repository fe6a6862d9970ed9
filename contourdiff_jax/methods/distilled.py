# SPDX-License-Identifier: Apache-2.0
"""Networks for few steps: trained on the timesteps that sampling visits, alone or with a teacher.

A network that will be asked at n timesteps need not learn the others (Fast-DDPM, Jiang et al. 2024,
arXiv 2405.14802). And where another network has learnt them all, one step of ours can learn to lead
where several of its steps lead (progressive distillation, Salimans & Ho 2022, arXiv 2202.00512).

Shapes: B batch, *S space, C channels (last).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from contourdiff_jax import config as configuration
from contourdiff_jax.diffusion import process, samplers
from contourdiff_jax.diffusion.schedules import Schedule
from contourdiff_jax.errors import InputError

TIMESTEPS = ("all", "sampler")
# Fields of the `diffusion` section that change nothing of what a network's answer means.
TRAINING = ("weighting", "time_exponent", "timesteps", "gamma")


def check(config) -> None:
    """Raise InputError for a configuration whose few steps cannot be learnt."""
    if config.diffusion.timesteps not in TIMESTEPS:
        raise InputError(
            f"config.diffusion.timesteps: {config.diffusion.timesteps!r} is not one of "
            f"{', '.join(TIMESTEPS)}"
        )
    substeps, sampler = config.distillation.substeps, config.sampler
    if substeps < 0:
        raise InputError(f"config.distillation.substeps: {substeps} must not be negative")
    if substeps and (sampler.name != "ddim" or sampler.eta or sampler.fixed_stride):
        raise InputError(
            "config.distillation: what is learnt are steps of DDIM; let config.sampler.name be "
            "ddim, eta 0 and fixed_stride false"
        )
    if substeps and sampler.guidance != 1:
        raise InputError("config.distillation: guidance is not learnt; let config.sampler's be 1")
    if substeps * sampler.steps > config.diffusion.steps:
        raise InputError(
            f"config.distillation.substeps: {substeps} for each of {sampler.steps} steps are more "
            f"than the {config.diffusion.steps} of config.diffusion.steps"
        )


def learnt(config) -> np.ndarray:
    """The timesteps [n] that a network of this configuration learns, rising."""
    if config.diffusion.timesteps == "all" and not config.distillation.substeps:
        return np.arange(config.diffusion.steps)
    return np.sort(samplers.timesteps(config.sampler, config.diffusion.steps))


def check_visited(config, visited: np.ndarray, who: str) -> None:
    """Raise InputError where a network of this configuration has not learnt timesteps [n]."""
    known = learnt(config)
    if not np.isin(visited, known).all():
        raise InputError(
            f"{who}: learnt the timesteps of {config.sampler.name} with {len(known)} steps alone, "
            f"and is asked at others; take --steps={len(known)}, or train with "
            f"--config.diffusion.timesteps=all"
        )


def check_teacher(ours, theirs, who: str) -> None:
    """Raise InputError where a network cannot learn from that of another configuration."""
    free = [f"diffusion.{field}" for field in TRAINING]
    for name in configuration.differences(ours, theirs):
        if name.startswith(("model.", "diffusion.")) and name not in free:
            raise InputError(
                f"{who}: a teacher with another config.{name}; it must be as in the network that "
                f"it teaches"
            )
    asked = _paths(ours)
    check_visited(theirs, asked[asked >= 0], who)


def _paths(config) -> np.ndarray:
    """The timesteps [n, substeps + 1] of the teacher on each step of ours; -1 is clean data."""
    begins = samplers.timesteps(config.sampler, config.diffusion.steps)
    ends = np.append(begins[1:], -1)
    return np.round(np.linspace(begins, ends, config.distillation.substeps + 1, axis=1)).astype(int)


def teacher(apply: Callable, schedule: Schedule, config) -> Callable:
    """teach(params, z_t, t [B], condition) -> (x_0, eps), what a network should find in z_t.

    It is the pair with z_t = a_t x_0 + s_t eps from which one step of DDIM leads where
    config.distillation.substeps of the teacher's lead (Salimans & Ho 2022, algorithm 2).

    Args:
      apply: of the teacher, see models.Model.
      config: complete; t are timesteps that its sampler visits.
    """
    paths = _paths(config)
    path_from = np.zeros((schedule.steps, paths.shape[1]), np.int32)
    path_from[paths[:, 0]] = paths
    # Clean data at the end of the tables, where -1 points.
    signal, noise = (jnp.append(a, end) for a, end in ((schedule.signal, 1), (schedule.noise, 0)))

    def levels(t, like):
        return process.at(signal, t, like), process.at(noise, t, like)

    def teach(params, z_t, t, condition):
        def step(z, ends):
            begin, end = ends
            answer = apply(params, z, begin, condition)
            x_0 = process.to_x_0(schedule, config.diffusion.prediction, answer, z, begin)
            x_0 = jnp.clip(x_0, -1, 1) if config.sampler.clip else x_0
            (a, s), (a_end, s_end) = levels(begin, z), levels(end, z)
            return a_end * x_0 + s_end * (z - a * x_0) / s, None

        path = jnp.moveaxis(jnp.asarray(path_from)[t], 1, 0)
        z_r, _ = jax.lax.scan(step, z_t, (path[:-1], path[1:]))
        (a, s), (a_r, s_r) = levels(t, z_t), levels(path[-1], z_t)
        x_0 = (z_r - s_r / s * z_t) / (a_r - s_r / s * a)
        return jax.lax.stop_gradient((x_0, (z_t - a * x_0) / s))

    return teach
