# SPDX-License-Identifier: Apache-2.0
"""Sampling: slices drawn from what is given of them, by one compiled function.

Shapes: N slices, B batch, *S space, H rows, W columns, c channels of a condition.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np

from contourdiff_jax import models
from contourdiff_jax.diffusion import coupling, guidance, noise, samplers, schedules, tiles
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.translation import samples


def check(config, names: tuple[str, ...]) -> None:
    """Raise InputError for a `sampler` section that cannot be followed.

    Args:
      names: of the conditions that the network sees.
    """
    for field, low, high in (
        ("coherence", 0, np.inf),
        ("coupling", 0, 1),
        ("neighbour_guidance", 0, np.inf),
        ("candidates", 1, np.inf),
        ("anchor", 0, np.inf),
        ("samples", 1, np.inf),
    ):
        if not low <= config[field] < high:
            below = f" and below {high}" if high < np.inf else ""
            raise InputError(f"--{field}: {config[field]} must be at least {low}{below}")
    if not 0 <= config.tiles <= 0.5:
        raise InputError(f"--tiles: {config.tiles} must lie between 0 and 0.5, a share of a tile")
    for field, known in (
        ("keep", samples.NAMES),
        ("candidate", ("lowest_mean", "best_contours")),
    ):
        if config[field] not in known:
            raise InputError(f"--{field}: {config[field]!r} is not one of {', '.join(known)}")
    if config.scgd and "neighbour" not in names:
        raise InputError(
            "--scgd: the run does not see neighbours; train with "
            "--config.model.conditions=\"('contour', 'neighbour')\""
        )
    if config.scgd and config.coupling:
        raise InputError("--scgd draws slice after slice, --coupling all at once; choose one")


def sampler(config, model: models.Model, schedule: schedules.Schedule, mesh, tile=None) -> Callable:
    """The compiled sampler of a run's `config`.

    (params, condition {name: [B, *S, c]}, knots, beside) -> x [B, *S, 1].
    All randomness of a slice comes from its own knots, so neither the others in the batch nor the
    number of devices change it. `beside` [B, 2] are the neighbours that estimates are coupled with,
    where B may be a multiple of the batch, or None. Pictures larger than `tile` pixels are drawn in
    tiles.
    """
    settings = config.sampler
    draw_from = samplers.build(settings, schedule.steps)

    def sample(params, condition, knots, beside):
        space = jax.tree.leaves(condition)[0].shape[1:-1]
        draws = noise.drawn(knots, (*space, 1))
        denoiser = functools.partial(
            guidance.denoiser,
            model.apply,
            params,
            schedule,
            config.diffusion.prediction,
            guidance=settings.guidance,
            neighbour=settings.neighbour_guidance if settings.scgd else 1.0,
        )
        if tile and max(space) > tile:
            denoiser = functools.partial(tiles.blended, denoiser, tile=tile, overlap=settings.tiles)
        if beside is None:
            denoise = denoiser(condition)
        else:
            denoise = coupling.in_parts(denoiser, condition, settings.batch)
            denoise = coupling.coupled(denoise, beside, settings.coupling)
        return draw_from(denoise, schedule, draws(settings.steps), draws).clip(-1, 1)

    lying = meshes.batch(mesh)
    return jax.jit(sample, in_shardings=(None, lying, lying, lying), out_shardings=lying)


def draw(compiled, params, sharding, batch: int, condition: dict, knots, beside=None) -> np.ndarray:
    """Samples [N, H, W] of conditions {name: [N, H, W, c]} and knots, in batches of one size.

    The first slice starts a new batch and the last is repeated to fill its own: what a slice
    becomes depends on nothing else. With `beside` [N, 2] all are one call.
    """
    count = len(knots.keys)
    size = batch if beside is None else -(-count // batch) * batch
    pictures = []
    for first in range(0, count, size):
        rows = np.minimum(np.arange(first, first + size), count - 1)
        given = meshes.put(sharding, _taken((condition, knots, beside), rows))
        pictures.append(np.asarray(compiled(params, *given)))
    return np.concatenate(pictures)[:count, ..., 0]


def _taken(tree, rows: np.ndarray):
    return jax.tree.map(lambda array: array[rows], tree)
