# SPDX-License-Identifier: Apache-2.0
"""Networks for few steps, taught by a network for many.

Where a network has learnt all timesteps, another can learn to go in one step where the first goes
in several (progressive distillation, Salimans & Ho 2022, arXiv 2202.00512).

Shapes: B batch, *S space, C channels, last.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from contourdiff_jax import config as configuration
from contourdiff_jax import models
from contourdiff_jax.data.store import Store
from contourdiff_jax.diffusion import process, samplers, schedules
from contourdiff_jax.diffusion.schedules import Schedule
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import codecs, diffusion
from contourdiff_jax.methods.diffusion import NETWORK, Diffusion
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.training.run import Run

ABOUT = diffusion.ABOUT
# Fields of the `diffusion` section that do not change the meaning of a network's prediction.
TRAINING = ("weighting", "time_exponent", "timesteps", "gamma")


def build(
    ours: Run, *, store: Store | None = None, teacher: Path | None = None, **how
) -> Diffusion:
    """The method of a run.

    Args:
      store: to learn from; without it the method can only draw, and needs no teacher.
      teacher: the run to learn from.
      how: see diffusion.build.

    Raises:
      InputError: a teacher that cannot teach this run.
    """
    if store is None:
        return diffusion.build(ours, **how)
    theirs = run.load(teacher)
    check_teacher(ours.config, theirs.config, str(teacher))
    if (theirs.grid, theirs.contours) != (ours.grid, ours.contours):
        raise InputError(f"{teacher}: a teacher of another grid or other contours than the store's")
    if theirs.source_preset != ours.source_preset:
        raise InputError(
            f"{teacher}: a teacher that saw sources of another preset than the store's"
        )
    if theirs.codec != ours.codec:
        raise InputError(f"{teacher}: a teacher of other latents than those of --codec")
    space, schedule = codecs.of(ours), schedules.build(ours.config.diffusion)
    model = models.build(ours.config.model, channels=space.channels, side=space.side)
    teach = teaching(diffusion.network_of(model).bound, schedule, ours.config)
    method = diffusion.build(ours, store=store, teach=teach, **how)
    weights = checkpoint.averages(teacher, method.players, method.mesh)[1]
    own = method.parts

    def parts():
        return own() | {"teacher": weights[NETWORK]}

    return dataclasses.replace(method, parts=parts, begun=lambda: weights)


def check_teacher(ours, theirs, who: str) -> None:
    """Raise InputError where a network cannot be taught by that of another configuration.

    Args:
      ours, theirs: the network's configuration, and the teacher's.
      who: the teacher's name, for the message.
    """
    free = [f"diffusion.{field}" for field in TRAINING]
    for name in configuration.differences(ours, theirs):
        if name.startswith(("model.", "diffusion.")) and name not in free:
            raise InputError(
                f"{who}: a teacher with another config.{name}; it must be as in the network that "
                f"it teaches"
            )
    asked = _paths(ours)
    diffusion.check_visited(theirs, asked[asked >= 0], who)


def _paths(config) -> np.ndarray:
    """The timesteps [n, substeps + 1] that a teacher visits in each step; -1 is clean data."""
    begins = samplers.timesteps(config.sampler, config.diffusion.steps)
    ends = np.append(begins[1:], -1)
    return np.round(np.linspace(begins, ends, config.distillation.substeps + 1, axis=1)).astype(int)


def teaching(bound: Callable, schedule: Schedule, config) -> Callable:
    """teach(fixed, z_t, t [B], condition) -> (x_0, eps) that a network should find in z_t.

    With z_t = a_t x_0 + s_t eps, they are the pair from which one step of DDIM arrives where
    config.distillation.substeps steps of the teacher arrive (Salimans & Ho 2022, algorithm 2).

    Args:
      bound: of the teacher, see diffusion.Network; its parameters are `fixed["teacher"]`.
      config: the whole configuration; t must be timesteps that its sampler visits.
    """
    paths = _paths(config)
    path_from = np.zeros((schedule.steps, paths.shape[1]), np.int32)
    path_from[paths[:, 0]] = paths
    # Clean data at the end of the tables, where -1 points.
    signal, noise = (jnp.append(a, end) for a, end in ((schedule.signal, 1), (schedule.noise, 0)))

    def levels(t, like):
        return process.at(signal, t, like), process.at(noise, t, like)

    def teach(fixed, z_t, t, condition):
        apply, params = bound(fixed), fixed["teacher"]

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
