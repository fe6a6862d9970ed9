# SPDX-License-Identifier: Apache-2.0
"""Feeds of volumes: what a network of three dimensions learns from.

An example is a patch: D slices, whole or cut to a square, of a volume whose slices are even.

    {'x': [B, D, H, W, 1] in [-1, 1], 'condition': {name: [B, D, H, W, c]}}

It is made as slices are (feeds.py, examples.py), of D at a time that are moved alike. Along the
slicing axis it is scaled by what the host draws: a slice of a patch lies between two of the store,
whose codes are interpolated; masks and kept contours are those of the nearer one. Contours are
sought in whole slices and cut afterwards, so that those of a patch are those of its slices.

Shapes: B batch, D slices of a patch, H rows, W columns, n slices of a volume.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax.contours.settings import CONTOURS, ContourSettings
from contourdiff_jax.contracts import CONDITIONS, Example
from contourdiff_jax.data import examples
from contourdiff_jax.data.examples import Raw
from contourdiff_jax.data.feeds import PATCHES, Slices, Targets, spread, summary
from contourdiff_jax.data.store import Store
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.volumes import geometry

NOTHING = -1  # in place of a slice, where a patch reaches beyond its volume
OWN = ("noise", "missing")  # of a disturbance or a recasting: what each slice has of its own


def feed(
    config: ConfigDict,
    store: Store,
    contours: ContourSettings,
    conditions: tuple[str, ...],
    mesh: Mesh,
    **how,
) -> Targets:
    """The feed of a store as a whole configuration says, by its `model.dims`.

    Args:
      how: fields of the feed that are to be others, see Targets.under.

    Raises:
      InputError: see the feeds; patches that the network cannot halve often enough.
    """
    if config.model.dims == 2:
        return Slices.under(config, store, contours, conditions, mesh, **how)
    how = {"unit": configuration.depth_unit(config.model)} | how
    volumes = Volumes.under(config, store, contours, conditions, mesh, **how)
    configuration.check_size(config, volumes.side, depth=volumes.depth)
    return volumes


class Patches(NamedTuple):
    """What a step learns from, or one process's share of it."""

    rows: np.ndarray  # [B, D, 2] positions in the training split, of the slices on either side
    weights: np.ndarray  # [B, D] float32, of the second of them
    there: np.ndarray  # [B, D] uint8, 0 where the patch reaches beyond the volume
    corners: np.ndarray  # [B, 2] int32, first row and column
    keys: np.ndarray  # [B, 2, 2] uint32, raw keys of each patch's augmentation and disturbance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Volumes(Targets):
    """Patches of volumes of the target with their conditions.

    An epoch is as long as there are slices: each is once what a patch is drawn for, from its
    volume, so that a volume is seen as often as it has slices. Where in the volume the patch begins
    is uniform over all places where it lies within; a volume shorter than the patch lies anywhere
    within that, and beside it is air. Where slices are missing, a volume is several; a slice alone
    is none.

    Attributes:
      volume: section of the configuration.
      unit: slices that those of a patch are a multiple of, where it is to hold whole volumes.

    Raises:
      InputError: slices that are not even; no volumes of several slices; patches wider than slices.
    """

    volume: ConfigDict
    unit: int = 1

    SECTIONS: ClassVar = (*Targets.SECTIONS, "volume")
    HELD_OUT: ClassVar = 8

    def __post_init__(self):
        super().__post_init__()
        if self.volume.side > self.store.grid.size:
            raise InputError(
                f"config.volume.side: {self.volume.side} px, where slices of {self.store.path} "
                f"have {self.store.grid.size}; take 0 for whole slices"
            )
        if not self._volumes:
            raise InputError(
                f"{self.store.path}: no training volume has two slices beside one another, and "
                "config.model.dims=3 learns from volumes; let it be 2"
            )
        _check_even(self.store, self._volumes, self._numbers)

    @functools.cached_property
    def depth(self) -> int:
        """Slices of a patch."""
        longest = max(len(rows) for rows in self._volumes)
        return self.volume.depth or -(-longest // self.unit) * self.unit

    @property
    def side(self) -> int:
        """Pixels a side of a patch."""
        return self.volume.side or self.store.grid.size

    @property
    def space(self) -> tuple[int, ...]:
        """See Targets."""
        return (self.depth, self.side, self.side)

    @property
    def summary(self) -> str:
        """See contracts.Feed."""
        patches = " x ".join(map(str, self.space))
        count = len(self._volumes)
        return f"{summary(self.store)}; patches of {patches} voxels from {count} volumes"

    def named(self, step: int) -> str:
        """See contracts.Feed."""
        names, index, chosen = [], self.store.index, self.choose(step - 1)
        for rows, weights, there in zip(*chosen[:3], strict=True):
            shares = np.stack([1 - weights, weights], 1) * there[:, None]
            seen = self._numbers[np.unique(rows[shares > 0])]
            first, last = (index["slice"][row] for row in seen[[0, -1]])
            names.append(f"{index['subject'][seen[0]]} slices {first} to {last}")
        return "; ".join(names)

    def at_hand(self, split: str, count: int) -> np.ndarray:
        """Numbers [n, D] in the store of the slices of patches, or NOTHING; see Targets.

        The middles of patches are evenly spread over all slices; none comes twice.
        """
        numbers = self.store.rows(split)
        volumes = [numbers[rows] for rows in _volumes(self.store, numbers)]
        places = [(v, i) for v, rows in enumerate(volumes) for i in range(len(rows))]
        middles = spread(np.array(places, int).reshape(-1, 2), count)
        starts = [
            (v, _within(i - self.depth // 2, len(volumes[v]), self.depth)) for v, i in middles
        ]
        patches = np.full((len({*starts}), self.depth), NOTHING)
        for patch, (v, start) in zip(patches, sorted({*starts}), strict=True):
            at = np.arange(self.depth) + start
            inside = (at >= 0) & (at < len(volumes[v]))
            patch[inside] = volumes[v][at[inside]]
        return patches

    def at_rest(self, images: np.ndarray) -> Example:
        """Examples on the host of the middles of those patches, neither moved nor disturbed."""
        there = images != NOTHING
        rows = np.where(there, images, images.max(1, keepdims=True)).ravel()
        made = examples.at_rest(
            self.store, rows, self.contours, self.conditions, masked=self.masked
        )
        corner = (self.store.grid.size - self.side) // 2
        cut = np.s_[..., corner : corner + self.side, corner : corner + self.side, :]
        return _only_there(
            jax.tree.map(lambda a: a.reshape(*there.shape, *a.shape[1:])[cut], made), there
        )

    def choose(self, step: int, process: tuple[int, int] = (0, 1)) -> Patches:
        """See Targets."""
        positions = self._share(process)
        belongs = np.repeat(np.arange(len(self._volumes)), [len(v) for v in self._volumes])
        chosen = belongs[self._drawn(step, positions, len(belongs))]
        patches = [
            self._patch(step, i, self._volumes[v]) for i, v in zip(positions, chosen, strict=True)
        ]
        rows, weights, there, corners = map(np.stack, zip(*patches, strict=True))
        return Patches(rows, weights, there, corners, self._keys(step, positions))

    def _patch(self, step: int, position: int, volume: np.ndarray):
        """Of one of a step's patches rows, weights, whether they are there, and its corner."""
        rng = np.random.default_rng((self.seed, PATCHES, step, int(position)))
        moved, scale, start, *corner = rng.random(5)
        n, depth = len(volume), self.depth
        most = self.augment.depth if moved < self.augment.probability else 0.0
        by = np.exp((2 * scale - 1) * np.log1p(most))
        # Slices by which the patch can be moved and lies within; below 0: and lies around.
        room = n - 1 - (depth - 1) / by
        # Where nothing is scaled, it begins at a slice, so that none has to be made up.
        begin = start * room if most else np.sign(room) * int(start * (abs(room) + 1))
        at = begin + np.arange(depth) / by
        there = (at > -0.5) & (at < n - 0.5)
        at = at.clip(0, n - 1)
        below = np.floor(at).astype(int)
        rows = np.stack([below, np.minimum(below + 1, n - 1)], 1)
        reach = self.store.grid.size - self.side + 1
        corner = (np.array(corner) * reach).astype(np.int32)
        return volume[rows], (at - below).astype(np.float32), there.astype(np.uint8), corner

    def maker(self) -> Callable[[tuple[Raw, None], Patches], Example]:
        """See Targets."""
        size, side = self.store.grid.size, self.side

        def local(read, weights, there, corners, key_data):
            raw, _ = read
            slices = self._between(raw, weights)
            each = functools.partial(_of_slices, depth=self.depth)
            made = self.made(slices, key_data, (self.depth, size, size), each=each)
            patches = jax.tree.map(lambda a: a.reshape(*there.shape, *a.shape[1:]), made)
            return _only_there(jax.tree.map(lambda a: _cut(a, corners, side), patches), there)

        compiled = self.compiled(local, arguments=5)
        put = functools.partial(meshes.put, meshes.batch(self.mesh))

        def made(read: tuple[Raw, None], choice: Patches) -> Example:
            return compiled(read, *put(choice[1:]))

        return made

    def _between(self, raw: Raw, weights: Array) -> Raw:
        """Raw slices [B D, 1, H, W] between those on either side, raw [B, D, 2, H, W]."""
        weights = weights.reshape(-1, 1, 1, 1)

        def both(stack):
            return jnp.split(stack.reshape(-1, *stack.shape[2:]), 2, axis=1)

        def linear(codes):
            low, high = both(codes)
            mixed = (1 - weights) * low + weights * high
            return jnp.round(mixed).astype(codes.dtype)

        def nearest(masks):
            low, high = both(masks)
            return jnp.where(weights < 0.5, low, high)

        kept = nearest if self.contours.basis == CONTOURS else linear
        ways = Raw(linear, nearest, kept, linear, nearest)
        return Raw(*(a if a is None else way(a) for way, a in zip(ways, raw, strict=True)))

    @functools.cached_property
    def _volumes(self) -> list[np.ndarray]:
        """Positions [n] in the training split of the slices of each volume."""
        return _volumes(self.store, self._numbers)


# --------------------------------------------------------------------------------------------------
# Volumes of a store
# --------------------------------------------------------------------------------------------------


def _volumes(store: Store, numbers: np.ndarray) -> list[np.ndarray]:
    """Of slices with those numbers, positions [n] among them of those of each volume.

    A volume ends where a slice is missing, and where the next lies farther away than usual.
    """
    volume, number, position = (
        store.index[name][numbers] for name in ("volume", "slice", "position")
    )
    found = []
    for one in np.unique(volume):
        rows = np.flatnonzero(volume == one)
        whole = np.split(rows, np.flatnonzero(np.diff(number[rows]) != 1) + 1)
        found += [part[run] for part in whole for run in geometry.runs(position[part])]
    return [rows for rows in found if len(rows) > 1]


def _check_even(store: Store, volumes: list[np.ndarray], numbers: np.ndarray) -> None:
    """Raise InputError for volumes whose slices lie differently far apart, one's or several'."""
    if store.grid.slice_spacing:  # positions of an oblique volume are closer than its slices
        return
    position = store.index["position"][numbers]
    steps = np.concatenate([np.diff(position[rows]) for rows in volumes])
    usual = float(np.median(steps))
    if np.abs(steps - usual).max() > geometry.EVEN * usual:
        raise InputError(
            f"{store.path}: its slices lie {steps.min():.3g} to {steps.max():.3g} mm apart, and "
            f"config.model.dims=3 learns from even ones; "
            f"`prepare --slice_spacing={usual:.3g}` again"
        )


def _within(start: int, n: int, depth: int) -> int:
    """Where a patch begins that is to begin at `start`, and to lie within n slices or around."""
    return -((depth - n) // 2) if n < depth else int(np.clip(start, 0, n - depth))


# --------------------------------------------------------------------------------------------------
# Patches
# --------------------------------------------------------------------------------------------------


def _of_slices(drawn, depth: int):
    """What is drawn for B patches, a NamedTuple of arrays or None, for each of their B D slices."""
    if drawn is None:
        return None
    given = {name: array for name, array in drawn._asdict().items() if array is not None}
    own = {name: given[name].reshape(-1, *given[name].shape[2:]) for name in OWN if name in given}
    shared = {name: array.repeat(depth, axis=0) for name, array in given.items() if name not in own}
    return drawn._replace(**own, **shared)


def _cut(patches, corners, side: int):
    """Squares [B, D, side, side, c] of patches [B, D, H, W, c] with those corners [B, 2]."""

    def one(patch, corner):
        shape = (len(patch), side, side, patch.shape[-1])
        return jax.lax.dynamic_slice(patch, (0, *corner, 0), shape)

    return jax.vmap(one)(patches, corners)


def _only_there(example: Example, there) -> Example:
    """Patches with air, and what is seen of it, where there [B, D] is no slice."""
    there = there[..., None, None, None] > 0
    xp = there.__array_namespace__()

    def only(array, *empty):
        return xp.where(there, array, xp.asarray(empty, dtype=array.dtype).reshape(1, 1, 1, 1, -1))

    # The last channel says that the condition is given, which air is, too.
    condition = {
        name: only(array, *(CONDITIONS[name].empty,) * CONDITIONS[name].channels, 1.0)
        for name, array in example["condition"].items()
    }
    outside = {"x": -1.0, "mask": 0.0}
    images = {name: only(example[name], outside[name]) for name in outside if name in example}
    return {**images, "condition": condition}
