# SPDX-License-Identifier: Apache-2.0
"""The slices of a volume, translated: each for itself, or knowing of one another.

There is one compiled sampler (sampling.py). What a slice has of its neighbours is said by what it
is given:

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
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from contourdiff_jax.contours import opencv
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.contracts import NEIGHBOUR
from contourdiff_jax.data import batches
from contourdiff_jax.data.inspection import guesses
from contourdiff_jax.data.layouts import pairs
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.diffusion import noise, tiles
from contourdiff_jax.training import run
from contourdiff_jax.translation import chains
from contourdiff_jax.translation import samples as selection
from contourdiff_jax.volumes import intensity, masks
from contourdiff_jax.volumes.grid import KEPT_WHOLE, Resampling
from contourdiff_jax.volumes.volume import Volume

AIR = -1.0  # in the model's range
CLIPPED = 0.01  # more of the body than this outside the preset's range is worth a warning


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

    @property
    def air(self) -> np.ndarray:
        """[N] bool, slices without body and contours: they are air, and nothing is guessed."""
        return ~(self.body | (self.contours > 0)).any((1, 2))


class Plan(NamedTuple):
    """How every volume of a folder is translated."""

    trained: run.Run
    sampler: ConfigDict  # the section
    preset: intensity.Preset  # of the source, as are the contours
    contours: ContourSettings
    masks: dict[str, Scan] | None
    drawn: Callable  # (condition, knots, beside) -> pictures
    parameters: int  # of the network
    seed: int
    maps: bool


def read(plan: Plan, scan: Scan) -> Source:
    """A scan as it goes into the sampler."""
    volume = scan.read()
    window = plan.preset.window_of(volume)
    volume, resampling = plan.trained.grid.fit_volume(volume)
    if resampling.kept < KEPT_WHOLE and plan.sampler.tiles:
        grid = plan.trained.grid
        side = tiles.side(resampling.needed, grid.size)
        _, resampling = dataclasses.replace(grid, size=side).fit_volume(volume)
    elif resampling.kept < KEPT_WHOLE:
        _say(
            f"warning: {scan.path} is larger than the run's grid: {resampling.kept:.0%} of its "
            f"field of view is translated, the rest is air; --tiles translates all of it"
        )
    for note in volume.notes:
        _say(f"note: {scan.path}: {note}")
    mask = pairs.companion(volume, scan, plan.masks, "masks")
    if mask is None:
        mask = masks.body_mask(volume.array, volume.affine, plan.preset.modality)
    _check_intensities(plan.preset, scan, volume, window, mask > 0)
    body = resampling.masks(mask > 0)
    edges = opencv.on_grid(
        plan.preset.values(volume.array, window),
        body,
        resampling,
        plan.preset,
        plan.contours,
        plan.preset.shown(volume, window),
    )
    return Source(scan, volume, resampling, edges, body)


def _check_intensities(preset, scan: Scan, volume, window, inside) -> None:
    """Says of a volume whose values can hardly be what its preset takes them for."""
    guess = guesses.guess(volume.array, volume.array.dtype, None, scan.assumed)
    if guess.preset != preset.name or guess.offset:
        _say(
            f"warning: {scan.path}: taken for {preset.name}, but its values look like "
            f"{guess.modality} ({guess.reason}); see `contourdiff inspect`"
        )
    if preset.percentiles is not None:  # MR is clipped at its own, by design
        return
    values = preset.values(volume.array[inside], window)
    outside = (values < preset.storage.low) | (values > preset.storage.high)
    if outside.sum() > CLIPPED * outside.size:
        _say(
            f"warning: {scan.path}: {outside.mean():.1%} of the body lies outside "
            f"{preset.storage.low:g} to {preset.storage.high:g} and is clipped"
        )


# --------------------------------------------------------------------------------------------------
# Samples
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
    condition = batches.contours_alone(source.contours, names)
    beside = chains.neighbours(source.resampling.positions) if config.coupling else None
    own = (knots(config, seed, source, sample) for sample in range(config.samples))
    pictures = np.stack([drawn(condition, of_sample, beside) for of_sample in own])
    pictures[:, source.air] = AIR
    return pictures


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
        chains.chains(source.resampling.positions, anchor=config.anchor, middle=config.middle)
        for source in sources
    ]
    results = [np.empty((config.samples, *s.contours.shape), np.float32) for s in sources]
    air = [source.air for source in sources]
    farthest = max(distance.max() for _, distance in planned)
    for k in range(config.samples):
        numbers = range(k * config.candidates, (k + 1) * config.candidates)
        of = [[knots(config, seed, source, number) for source in sources] for number in numbers]
        for far in range(farthest + 1):
            rows = [(v, i) for v, (_, d) in enumerate(planned) for i in np.flatnonzero(d == far)]
            asked = _gathered([source.contours for source in sources], rows)
            condition = batches.contours_alone(asked, names)
            if far:
                before = [(v, planned[v][0][i]) for v, i in rows]
                shown = _gathered([result[k] for result in results], before)
                condition[NEIGHBOUR.name] = batches.given(shown)
            candidates = [
                drawn(condition, _gathered(each, rows), None) for each in of[: 1 if far else None]
            ]
            pictures = candidates[0]
            if len(candidates) > 1:
                body = _gathered([source.body for source in sources], rows)
                edges = [found(candidate, body) for candidate in candidates]
                pictures = selection.chosen(config.candidate, np.stack(candidates), edges, asked)
            for (v, i), picture in zip(rows, pictures, strict=True):
                results[v][k, i] = AIR if air[v][i] else picture
    return results


def _gathered(trees, rows: list[tuple[int, int]]):
    """Of trees of arrays, entries (v, i): the i-th of the v-th."""
    return jax.tree.map(lambda *arrays: np.stack([arrays[v][i] for v, i in rows]), *trees)


def samples(plan: Plan, sources: list[Source]) -> Iterable[np.ndarray]:
    """Samples [K, N, H, W] in [-1, 1] of each source."""
    how = plan.drawn, plan.sampler, plan.trained.config.model.conditions, plan.seed
    if plan.sampler.scgd:
        return chained(*how, sources, functools.partial(_edges, plan))
    return [at_once(*how, source) for source in sources]


def finished(plan: Plan, source: Source, drawn) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """-> (the translation [X, Y, Z] in native units, its maps likewise)."""
    target, window = plan.trained.preset, plan.trained.window
    found = None
    if plan.maps or plan.sampler.keep == "best_contours":
        found = np.stack([_edges(plan, sample, source.body) for sample in drawn])
    kept = selection.chosen(plan.sampler.keep, drawn, found, source.contours)
    translated = source.resampling.volume(target.image.inverse(kept), target.air)
    maps = {}
    if plan.maps:
        maps = selection.maps(drawn, found, source.contours, source.resampling, target, window)
    return target.native(translated, window), maps


def _edges(plan: Plan, pictures, body) -> np.ndarray:
    return opencv.of_translations(pictures, body, plan.trained.preset, plan.trained.contours)


def _say(text: str) -> None:
    """A line above the progress bar."""
    tqdm.write(text, file=sys.stderr)
