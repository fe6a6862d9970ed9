# SPDX-License-Identifier: Apache-2.0
"""The slices of a volume, translated: each for itself, or knowing of one another.

There is one compiled sampler. What a slice has of its neighbours is said by what it is given:

    noise          knots that slices share (diffusion/noise.py): all are drawn in parallel
    coupling       estimates that agree at every step (diffusion/coupling.py)
    SCGD           the translation of the slice before, as a condition. Chen et al. 2024 (arXiv
                   2403.10786) go through a volume from its first slice, of which they draw
                   several candidates and keep the darkest. Chains may also begin anew every few
                   slices, or in the middle. What they have come to is drawn together: all
                   volumes and all chains advance in one batch.

Shapes: N slices, H rows, W columns on the model's grid, K samples, B batch, [X, Y, Z] volumes in
closest-canonical RAS.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from contourdiff_jax import mesh as meshes
from contourdiff_jax import models, selection
from contourdiff_jax.data import batches
from contourdiff_jax.data.grid import Resampling
from contourdiff_jax.data.volumes import Volume
from contourdiff_jax.diffusion import coupling, guidance, noise, samplers, schedules, tiles
from contourdiff_jax.errors import InputError
from contourdiff_jax.layouts.scans import Scan

GAP = 1.5  # times the usual distance: slices farther apart are no neighbours
NONE = -1  # in place of the slice before


@dataclasses.dataclass(frozen=True)
class Source:
    """A volume to be translated, and all that is seen of it.

    Attributes:
      scan, volume: where it is from, and what it is.
      resampling: to the model's grid and back.
      contours: [N, H, W] uint8, asked for.
      body: [N, H, W] bool.
    """

    scan: Scan
    volume: Volume
    resampling: Resampling
    contours: np.ndarray
    body: np.ndarray


def check(config, names: tuple[str, ...]) -> None:
    """Raise InputError for a `sampler` section that cannot be followed.

    Args:
      names: of the conditions that the network sees.
    """
    for field, low, high in (
        ("coherence", 0, np.inf),
        ("coupling", 0, 1),
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
        ("keep", selection.NAMES),
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


# --------------------------------------------------------------------------------------------------
# Sampling
# --------------------------------------------------------------------------------------------------


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
        given = meshes.put(sharding, jax.tree.map(lambda a: a[rows], (condition, knots, beside)))  # noqa: B023
        pictures.append(np.asarray(compiled(params, *given)))
    return np.concatenate(pictures)[:count, ..., 0]


# --------------------------------------------------------------------------------------------------
# Slices beside one another
# --------------------------------------------------------------------------------------------------


def runs(positions: np.ndarray) -> list[np.ndarray]:
    """Numbers of slices at `positions` [N] mm, parted where a gap is wider than GAP times usual."""
    steps = np.abs(np.diff(positions))
    gaps = np.flatnonzero(steps > GAP * np.median(steps)) if len(steps) else []
    return np.split(np.arange(len(positions)), np.asarray(gaps, int) + 1)


def neighbours(positions: np.ndarray) -> np.ndarray:
    """[N, 2] the slices on either side of each; at the ends of a run twice the only one."""
    beside = []
    for run in runs(positions):
        below, above = run - 1, run + 1
        below[0], above[-1] = run[1 % len(run)], run[-2 % len(run)]
        beside.append(np.stack([below, above], 1))
    return np.concatenate(beside).astype(np.int32)


def chains(positions: np.ndarray, *, anchor: int = 0, middle: bool = False):
    """The order in which slices are translated from one another.

    Args:
      positions: [N] mm along the slicing axis.
      anchor: slices after which a new chain begins; 0 for never, but behind gaps.
      middle: chains begin in their middle, and go both ways.

    Returns:
      ([N] the slice whose translation each is shown, NONE where a chain begins, [N] how far from
      there it lies: what is equally far is drawn together).
    """
    before, distance = (np.empty(len(positions), int) for _ in range(2))
    for run in runs(positions):
        for first in range(0, len(run), anchor or len(run)):
            chain = run[first : first + (anchor or len(run))]
            start = chain[len(chain) // 2 if middle else 0]
            distance[chain] = np.abs(chain - start)
            before[chain] = chain - np.sign(chain - start)
            before[start] = NONE
    return before, distance


# --------------------------------------------------------------------------------------------------
# Volumes
# --------------------------------------------------------------------------------------------------


def knots(config, seed: int, source: Source, sample: int) -> noise.Knots:
    """What the noise of a volume's slices is made of; sample 0 is the usual one."""
    name, positions = source.scan.name, source.resampling.positions
    if config.coherence:
        return noise.along(seed, name, positions, config.coherence, sample)
    return noise.independent(seed, name, len(positions), sample)


def at_once(drawn: Callable, config, names, seed: int, source: Source) -> np.ndarray:
    """Samples [K, N, H, W] in [-1, 1] of a volume, all slices in parallel.

    Args:
      drawn: (condition, knots, beside) -> pictures [N, H, W].
      config: a `sampler` section.
      names: of the conditions that the network sees.
    """
    contour = batches.given(source.contours)
    condition = dict.fromkeys(names, np.zeros_like(contour)) | {"contour": contour}
    beside = neighbours(source.resampling.positions) if config.coupling else None
    return np.stack(
        [
            drawn(condition, knots(config, seed, source, sample), beside)
            for sample in range(config.samples)
        ]
    )


def chained(
    drawn: Callable, config, names, seed: int, sources: list[Source], found: Callable
) -> list[np.ndarray]:
    """Samples [K, N, H, W] in [-1, 1] of each volume, by SCGD.

    Where a chain begins, candidates are drawn without a neighbour and one is kept: candidate c of
    sample k is keyed as sample k times their number + c, so the first is the usual one.

    Args:
      found: (pictures [n, H, W], body [n, H, W]) -> the contours that they show.
    """
    planned = [
        chains(source.resampling.positions, anchor=config.anchor, middle=config.middle)
        for source in sources
    ]
    results = [np.empty((config.samples, *s.contours.shape), np.float32) for s in sources]
    farthest = max(distance.max() for _, distance in planned)
    for k in range(config.samples):
        numbers = range(k * config.candidates, (k + 1) * config.candidates)
        of = [[knots(config, seed, source, number) for source in sources] for number in numbers]
        for far in range(farthest + 1):
            rows = [(v, i) for v, (_, d) in enumerate(planned) for i in np.flatnonzero(d == far)]
            asked = _stacked([source.contours for source in sources], rows)
            contour = batches.given(asked)
            condition = dict.fromkeys(names, np.zeros_like(contour)) | {"contour": contour}
            if far:
                before = [(v, planned[v][0][i]) for v, i in rows]
                shown = _stacked([result[k] for result in results], before)
                condition["neighbour"] = batches.given(shown)
            candidates = [
                drawn(condition, jax.tree.map(lambda *a: _stacked(a, rows), *each), None)  # noqa: B023
                for each in of[: 1 if far else None]
            ]
            pictures = candidates[0]
            if len(candidates) > 1:
                body = _stacked([source.body for source in sources], rows)
                edges = [found(candidate, body) for candidate in candidates]
                pictures = selection.chosen(config.candidate, np.stack(candidates), edges, asked)
            for (v, i), picture in zip(rows, pictures, strict=True):
                results[v][k, i] = picture
    return results


def _stacked(arrays, rows: list[tuple[int, int]]) -> np.ndarray:
    """Entries (v, i): the i-th of the v-th array."""
    return np.stack([arrays[v][i] for v, i in rows])
