# SPDX-License-Identifier: Apache-2.0
"""The slices of a volume, translated: each on its own, or in view of one another.

What a method sees of the source its translator says: its contours, with them or without its image,
or with them the grey picture in which they are sought.

There is one compiled sampler (sampling.py). Slices depend on their neighbours by what it is given:

    noise          knots that slices share (diffusion/noise.py): all are drawn in parallel
    coupling       estimates that agree at every step (diffusion/coupling.py)
    volumes        a network of three dimensions draws all slices as one volume, to whose end
                   slices of air are added where it halves them, and taken away again
    SCGD           the translation of the slice before, as a condition. Chen et al. 2024 (arXiv
                   2403.10786) go through a volume from its first slice, of which they draw
                   several candidates and keep the darkest. Chains may also begin anew every few
                   slices, or in the middle. All volumes and all chains advance in one batch, a
                   slice at a time.

Shapes: N slices, H rows, W columns on the model's grid, K samples, B batch, [X, Y, Z] volumes in
closest-canonical RAS.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from contourdiff_jax.contours import opencv, recast
from contourdiff_jax.contracts import CONDITIONS, CONTOUR, NEIGHBOUR, PICTURE, SOURCE
from contourdiff_jax.data import examples
from contourdiff_jax.data.inspection import guesses
from contourdiff_jax.data.layouts import pairs, scans
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.diffusion import noise, tiles
from contourdiff_jax.errors import InputError
from contourdiff_jax.translation import chains, samples
from contourdiff_jax.translation.finishing import AIR, Finishing
from contourdiff_jax.translation.sidecars import Settings
from contourdiff_jax.volumes import masks
from contourdiff_jax.volumes.grid import KEPT_WHOLE, Resampling
from contourdiff_jax.volumes.intensity import Window
from contourdiff_jax.volumes.volume import Volume

APART = 1.1  # times: slices farther apart than that, or nearer, are not as they were learnt


class Plan(NamedTuple):
    """How every volume of a folder is translated."""

    settings: Settings
    window: Window  # of the translations, in native units
    masks: dict[str, Scan] | None  # of bodies, by the name of their scan, where a folder has them
    sampler: ConfigDict  # the section that is drawn with
    sees: frozenset[str]  # names of the conditions
    draw: Callable  # (seen {name: [N, H, W, c]}, knots, beside) -> slices [N, H, W] in [-1, 1]
    seed: int = 0
    maps: bool = False  # whether they are wanted
    unit: int = 1  # pixels that sides of pictures are a multiple of
    dims: int = 2  # of what is drawn at once: slices, or volumes
    depth_unit: int = 1  # slices that volumes are a multiple of
    slice_spacing: float | None = None  # mm from slice to slice of the volumes learnt, if known
    finishing: Finishing = Finishing()
    parameters: int = 0  # of all networks that are held


@dataclasses.dataclass(frozen=True)
class SourceVolume:
    """A volume to be translated, and all that is seen of it.

    Attributes:
      scan, volume: where it is from, and what it is.
      resampling: to the model's grid and back.
      contours: [N, H, W] uint8, asked for.
      body: [N, H, W] bool.
      seen: {condition: [N, H, W]}, what the method sees of it, by what it `sees`.
      basis: [N, H, W] what its contours are computed from, see contours.opencv.basis.
      said: warnings and notes about it, as they were printed.
    """

    scan: Scan
    volume: Volume
    resampling: Resampling
    contours: np.ndarray
    body: np.ndarray
    seen: dict[str, np.ndarray]
    basis: np.ndarray | None = None
    said: tuple[str, ...] = ()

    @property
    def air(self) -> np.ndarray:
        """[N] bool, slices with neither body nor contours: whatever is drawn there becomes air."""
        return ~(self.body | (self.seen.get(CONTOUR.name, self.body) > 0)).any((1, 2))


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def read(plan: Plan, scan: Scan) -> SourceVolume:
    """A scan on the model's grid, see `of`."""

    def mask(volume: Volume) -> np.ndarray | None:
        return pairs.companion(volume, scan, plan.masks, "masks")

    return of(plan, scan, scan.read(), mask)


def of(
    plan: Plan, scan: Scan, volume: Volume, masked: Callable[[Volume], np.ndarray | None]
) -> SourceVolume:
    """A scan's volume on the model's grid; warnings about it are printed.

    Args:
      masked: volume -> mask [X, Y, Z] of its body, or None, where it is to be computed.

    Raises InputError, naming the file, where nothing of it is there to be drawn.
    """
    preset, grid = plan.settings.source, plan.settings.grid
    if not plan.settings.contours["source"].suits_any or SOURCE.name in plan.sees:
        scans.check_unit(scan, volume, preset)
    window = preset.window_of(volume)
    volume, resampling = grid.fit_volume(volume)
    said = [f"note: {scan.path}: {note}" for note in volume.notes]
    mask = masked(volume)
    if mask is None:
        mask = masks.body_mask(volume.array, volume.affine, preset.modality)
    inside = mask > 0
    kept = resampling.kept_of(inside)
    if kept < KEPT_WHOLE and plan.sampler.tiles:
        side = tiles.side(resampling.needed, grid.size, plan.unit)
        _, resampling = dataclasses.replace(grid, size=side).fit_volume(volume)
    elif kept < KEPT_WHOLE:
        said.append(
            f"warning: {scan.path}: its body is larger than the run's grid of {grid.size} px of "
            f"{grid.spacing:g} mm: {kept:.0%} of it is translated, the rest becomes air; --tiles "
            f"translates all of it"
        )
    doubts = guesses.doubts(preset, scan.assumed, volume, window, inside)
    if plan.dims == 3 and (doubt := _uneven(resampling, plan.slice_spacing)):
        doubts.append(doubt)
    said += [f"warning: {scan.path}: {doubt}" for doubt in doubts]
    for line in said:
        _say(line)
    tiled = plan.sampler.tiles or kept >= KEPT_WHOLE
    remedy = "use a run with another axis or spacing" if tiled else "use --tiles"
    body = resampling.body(inside, scan.path, f"{remedy}, or give a mask by --masks")
    values = preset.values(volume.array, window)
    settings = plan.settings.contours["source"]
    basis = opencv.basis(values, resampling, preset, settings, preset.shown(volume, window))
    edges = opencv.of_basis(basis, body, settings)
    seen = {}
    if CONTOUR.name in plan.sees:
        seen[CONTOUR.name] = edges
    if SOURCE.name in plan.sees:  # as a paired store has it, but on its own slices
        seen[SOURCE.name] = preset.in_body(resampling.slices(values, preset.air), body)
    if PICTURE.name in plan.sees:
        seen[PICTURE.name] = recast.shown(opencv.picture(basis, settings), body)
    if CONTOUR.name in seen and not edges.any():
        raise InputError(
            f"{scan.path}: no contour in any slice, so there is nothing to draw from; see whether "
            f"--preset and --contours suit it"
        )
    return SourceVolume(scan, volume, resampling, edges, body, seen, basis, tuple(said))


def _uneven(resampling: Resampling, learnt: float | None) -> str:
    """What is wrong with a volume's slices for who learnt volumes with `learnt` mm; "": nothing."""
    steps = np.abs(np.diff(resampling.positions))
    if resampling.grid.slice_spacing or not len(steps):
        return ""
    # Of an oblique volume steps along the axis are shorter than from slice to slice.
    usual, remedy = resampling.gap, "`prepare --slice_spacing` the training data"
    if steps.max() > APART * steps.min():
        low, high = (step * usual / steps.mean() for step in (steps.min(), steps.max()))
        return f"its slices are uneven, {low:.3g} to {high:.3g} mm apart; {remedy}"
    if learnt and not 1 / APART <= usual / learnt <= APART:
        return f"its slices are {usual:.3g} mm apart, and those learnt {learnt:.3g} mm; {remedy}"
    return ""


def _say(text: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(text, file=sys.stderr)


# --------------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------------


def draw(plan: Plan, sources: Sequence[SourceVolume]) -> list[np.ndarray]:
    """Samples [K, N, H, W] in [-1, 1] of each source."""
    if plan.sampler.scgd:
        return chained(plan, sources)
    return [at_once(plan, source) for source in sources]


def knots(plan: Plan, source: SourceVolume, sample: int) -> noise.Knots:
    """The noise of a volume's slices, in the sample of that number; and of those added to it."""
    name, positions = source.scan.name, source.resampling.positions
    if plan.sampler.coherence:
        return noise.along(plan.seed, name, positions, plan.sampler.coherence, sample)
    count = len(positions)
    return noise.independent(plan.seed, name, count + _added(plan, count), sample)


def _added(plan: Plan, count: int) -> int:
    """How many slices are added to so many."""
    return -count % plan.depth_unit


def _lengthened(plan: Plan, seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is seen of a volume, {name: [N, H, W]}, and after it of the slices of air added."""
    return {
        name: np.pad(
            array,
            ((0, _added(plan, len(array))), (0, 0), (0, 0)),
            constant_values=array.dtype.type(CONDITIONS[name].empty),
        )
        for name, array in seen.items()
    }


def at_once(plan: Plan, source: SourceVolume) -> np.ndarray:
    """Samples [K, N, H, W] in [-1, 1] of a volume, all slices in parallel."""
    seen = examples.conditions(_lengthened(plan, source.seen), plan.sees)
    beside = chains.neighbours(source.resampling.positions) if plan.sampler.coupling else None
    numbers = range(plan.sampler.samples)
    drawn = np.stack([plan.draw(seen, knots(plan, source, k), beside) for k in numbers])
    drawn = drawn[:, : len(source.contours)]
    drawn[:, source.air] = AIR
    return drawn


def chained(plan: Plan, sources: Sequence[SourceVolume]) -> list[np.ndarray]:
    """Samples [K, N, H, W] in [-1, 1] of each volume, by SCGD.

    Where a chain begins, n candidates are drawn without a neighbour and one is kept. Candidate c of
    sample k has the noise of sample k n + c, so the first is what is drawn without SCGD; the slices
    after it have the noise of sample k n.
    """
    sampler, contours = plan.sampler, [source.contours for source in sources]
    orders = [
        chains.chains(source.resampling.positions, anchor=sampler.anchor, middle=sampler.middle)
        for source in sources
    ]
    drawn = [np.empty((sampler.samples, *edges.shape), np.float32) for edges in contours]
    air = [source.air for source in sources]
    farthest = max(distances.max() for _, distances in orders)
    for k in range(sampler.samples):
        numbers = range(k * sampler.candidates, (k + 1) * sampler.candidates)
        noises = [[knots(plan, source, number) for source in sources] for number in numbers]
        for far in range(farthest + 1):
            rows = [(v, i) for v, (_, d) in enumerate(orders) for i in np.flatnonzero(d == far)]
            asked = _gathered(contours, rows)
            shown = _gathered([source.seen for source in sources], rows)
            seen = examples.conditions(shown, plan.sees)
            if far:
                before = [(v, orders[v][0][i]) for v, i in rows]
                seen[NEIGHBOUR.name] = examples.given(_gathered([of[k] for of in drawn], before))
            tried = noises[:1] if far else noises
            candidates = np.stack([plan.draw(seen, _gathered(each, rows), None) for each in tried])
            slices = candidates[0]
            if len(candidates) > 1:
                body = _gathered([source.body for source in sources], rows)
                slices = _kept(plan, sampler.candidate, candidates, body, asked)
            for (v, i), one in zip(rows, slices, strict=True):
                drawn[v][k, i] = AIR if air[v][i] else one
    return drawn


def _gathered(trees, rows: list[tuple[int, int]]):
    """Of trees of arrays, one a volume, the entries (v, i): the i-th of the v-th."""
    return jax.tree.map(lambda *arrays: np.stack([arrays[v][i] for v, i in rows]), *trees)


# --------------------------------------------------------------------------------------------------
# From samples to a translation
# --------------------------------------------------------------------------------------------------


def finish(plan: Plan, source: SourceVolume, drawn) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The translation [X, Y, Z] that samples [K, N, H, W] give, in native units, and its maps."""
    target, resampling, asked = plan.settings.target, source.resampling, source.contours
    kept = _kept(plan, plan.sampler.keep, drawn, source.body, asked)
    kept = plan.finishing(kept, source.body, plan.dims)
    translated = resampling.volume(target.image.inverse(kept), target.air)
    maps = {}
    if plan.maps:
        shown = _contours(plan, drawn, source.body)
        maps = samples.maps(drawn, shown, asked, resampling, target, plan.window)
    return target.native(translated, plan.window), maps


def _kept(plan: Plan, rule: str, drawn, body, asked) -> np.ndarray:
    """The slices [N, H, W] that a rule keeps of samples [K, N, H, W]."""
    shown = _contours(plan, drawn, body) if rule in samples.OF_CONTOURS else None
    return samples.chosen(rule, drawn, shown, asked)


def _contours(plan: Plan, drawn, body) -> np.ndarray:
    """Contours [K, N, H, W] of samples [K, N, H, W] in a body [N, H, W]."""
    target, settings = plan.settings.target, plan.settings.contours["target"]
    return np.stack([opencv.of_translations(slices, body, target, settings) for slices in drawn])
