# SPDX-License-Identifier: Apache-2.0
"""Batches: which slices a step trains on, and the examples made of them on the device.

Everything is a pure function of (seed, step), so resuming needs no iterator state,
and every process of a cluster can make its own part of the same global batch.

A store that fits is kept on the devices, as its uint16 slices and masks; one that does not is
streamed, read ahead in a thread. Either way the same compiled function makes of them what a step
sees: augmented images, their contours, neighbouring slices. The host only says which.

Shapes: B batch, K slices that go together (an image, or with it its neighbour), H rows,
W columns, N slices of the training split.

    example = {'x': [B, H, W, 1] in [-1, 1], 'condition': {name: [B, H, W, c]}}

The last channel of a condition is 1 where it is given. The null condition is zero in every
channel, so a slice of air, which has no contour either, is not mistaken for a missing one. How much
of that a network sees is its own matter (models/conditioning.py).
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from contourdiff_jax.contours import device, disturbance
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.data import augment
from contourdiff_jax.data.store import Store
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.volumes import warp
from contourdiff_jax.volumes.intensity import Preset

# Channels of each condition that an example can have: its values, and 1 where it is given.
CONDITIONS = {"contour": 2, "neighbour": 2}

ORDER, CHANGES, NEIGHBOURS = range(3)  # what a run's seed is used for here


class Raw(NamedTuple):
    """Slices as a store has them."""

    slices: jax.Array  # [B, K, H, W] uint16
    masks: jax.Array  # [B, K, H, W] uint8
    contours: jax.Array | None  # [B, K, H, W] uint8, where they are those of native pixels
    pictures: jax.Array | None  # [B, K, H, W] uint8, where contours are sought in these


class Choice(NamedTuple):
    """What a step trains on, or one process's share of it."""

    rows: np.ndarray  # [B, K] positions in the training split
    neighboured: np.ndarray  # [B] uint8, 1 where the second of them is to be shown
    keys: np.ndarray  # [B, 2, 2] uint32, raw keys of each image's augmentation and disturbance


# --------------------------------------------------------------------------------------------------
# Which
# --------------------------------------------------------------------------------------------------


def indices(seed: int, step: int, batch: int, total: int) -> np.ndarray:
    """Positions [B] in [0, total) of the global batch of a step.

    Epoch follows epoch, each in its own order.
    """
    flat = step * batch + np.arange(batch)
    return np.array([_permutation(seed, i // total, total)[i % total] for i in flat.tolist()])


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, total: int) -> np.ndarray:
    return np.random.default_rng((seed, ORDER, epoch)).permutation(total)


def choose(config, volumes: np.ndarray, step: int, process: tuple[int, int] = (0, 1)) -> Choice:
    """What a step trains on.

    Args:
      config: the whole configuration.
      volumes: [N], the volume that each slice of the training split belongs to, in order.
      process: (index, count) of this process; it gets its share of the global batch, in order.
    """
    share = config.train.batch // process[1]
    positions = np.arange(process[0] * share, (process[0] + 1) * share)
    rows = indices(config.seed, step, config.train.batch, len(volumes))[positions]
    seeds = (np.random.SeedSequence((config.seed, CHANGES, step, i)) for i in positions.tolist())
    keys = np.stack([seed.generate_state(4).reshape(2, 2) for seed in seeds])
    if "neighbour" not in config.model.conditions:
        return Choice(rows[:, None], np.zeros(share, np.uint8), keys)
    generators = (
        np.random.default_rng((config.seed, NEIGHBOURS, step, i)) for i in positions.tolist()
    )
    u = np.stack([generator.random(2) for generator in generators])
    beside = rows + np.where(u[:, 1] < 0.5, -1, 1)
    inside = np.clip(beside, 0, len(volumes) - 1)
    there = (beside == inside) & (volumes[inside] == volumes[rows])
    shown = there & (u[:, 0] < config.train.neighbour)
    pairs = np.stack([rows, np.where(shown, inside, rows)], 1)
    return Choice(pairs, shown.astype(np.uint8), keys)


# --------------------------------------------------------------------------------------------------
# What becomes of them
# --------------------------------------------------------------------------------------------------


def given(values):
    """What a condition [B, H, W] says -> the condition [B, H, W, 2] that states it."""
    xp = values.__array_namespace__()
    return xp.stack([values, xp.ones_like(values)], axis=-1).astype(xp.float32)


def without_neighbours(edges: np.ndarray, names) -> dict[str, np.ndarray]:
    """The conditions of those names, of contours [B, H, W]; all others are missing."""
    contour = given(edges)
    return dict.fromkeys(names, np.zeros_like(contour)) | {"contour": contour}


def make(
    raw: Raw,
    preset: Preset,
    settings: ContourSettings,
    *,
    transforms: augment.Transform | None = None,
    change: disturbance.Disturbance | None = None,
    neighboured=None,
) -> dict:
    """Slices -> example; to be jitted.

    Args:
      transforms: one for each image, or None.
      change: what disturbs their contours, or None.
      neighboured: [B] uint8, 1 where the second of an image's slices is its neighbour and shown.

    Outside the body the image is air: head holders and background noise have no contour. Contours
    of native pixels show them, and so does the image.
    """
    storage, window = preset.storage, preset.image
    values = storage.low + (storage.high - storage.low) / 65535 * raw.slices.astype(jnp.float32)
    masks = raw.masks if raw.contours is None else jnp.ones_like(raw.masks)
    if transforms is not None:
        values, masks = augment.apply(transforms, values, masks, preset.air)
    taken = _contours(raw, values[:, 0], masks[:, 0], settings, transforms, change)
    fraction = (jnp.where(masks > 0, values, preset.air) - window.low) / (window.high - window.low)
    images = 2 * jnp.clip(fraction, 0, 1) - 1
    condition = {"contour": given(taken)}
    if neighboured is not None:
        shown = neighboured.astype(jnp.float32)[:, None, None, None]
        condition["neighbour"] = shown * given(images[:, 1])
    return {"x": images[:, 0, ..., None], "condition": condition}


def _contours(raw: Raw, values, masks, settings, transforms, change):
    """Contours [B, H, W] of the first of an image's slices; values and masks are augmented."""
    if raw.contours is not None:
        kept = raw.contours[:, 0]
        return kept if transforms is None else augment.apply_to_contours(transforms, kept)
    if raw.pictures is None:
        greys = device.greys(values, settings)
    else:
        greys = raw.pictures[:, :1].astype(jnp.float32) / 255
        if transforms is not None:
            greys = warp.linear(greys, *transforms.sources(*greys.shape[-2:]), 0.0)
    return device.contours(greys, masks, settings, change)


def examples(store: Store, rows, settings: ContourSettings, names=("contour",)) -> dict:
    """Examples of the slices of a store with those numbers, at rest, without neighbours.

    On the host, for the few that are looked at: nothing has to be compiled.

    Args:
      names: of the conditions to have.
    """
    preset, masks = store.preset, store.masks[rows]
    body = np.ones_like(masks) if settings.native else masks
    images = preset.image.unit(np.where(body > 0, store.values(rows), preset.air))
    condition = without_neighbours(store.contours_of(rows, settings), names)
    return {"x": images[..., None], "condition": condition}


def _read(store: Store, settings: ContourSettings, rows: np.ndarray) -> Raw:
    """The slices of a store with the numbers [B, K]."""
    return Raw(
        store.slices[rows],
        store.masks[rows],
        store.contours[rows] if settings.native else None,
        store.pictures[rows] if settings.thin else None,
    )


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def training(
    store: Store, settings: ContourSettings, config, mesh, *, start: int, stop: int
) -> Iterator[dict]:
    """Examples of steps start, start + 1, .. stop - 1, on the devices of a mesh.

    Args:
      config: the whole configuration.
      mesh: see mesh.py; each process gives its share of a batch to its devices.
    """
    numbers = store.rows("train")
    process = (jax.process_index(), jax.process_count())
    volumes = store.index["volume"][numbers]
    put = functools.partial(meshes.put, meshes.batch(mesh))
    made = maker(store.preset, settings, config, mesh)

    def chosen(step) -> Choice:
        return choose(config, volumes, int(step), process)

    if is_resident(store, settings, config):
        table = meshes.put(meshes.replicated(mesh), _read(store, settings, numbers))
        take = jax.jit(
            lambda table, rows: jax.tree.map(lambda a: a[rows], table),
            in_shardings=(meshes.replicated(mesh), meshes.batch(mesh)),
            out_shardings=meshes.batch(mesh),
        )
        for choice in map(chosen, range(start, stop)):
            yield made(take(table, put(choice.rows)), choice)
        return

    def read(step):
        choice = chosen(step)
        return choice, _read(store, settings, numbers[choice.rows])

    steps = grain.MapDataset.range(start, stop).map(read)
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    for choice, raw in steps.to_iter_dataset(ahead):
        yield made(put(raw), choice)


def is_resident(store: Store, settings: ContourSettings, config) -> bool:
    """Whether the training slices of a store are kept on the devices."""
    slices = len(store.rows("train")) * store.grid.size**2
    bytes_each = store.slices.itemsize + store.masks.itemsize + settings.of_voxels
    return slices * bytes_each <= config.train.resident * 2**30


def maker(preset: Preset, settings: ContourSettings, config, mesh) -> Callable:
    """The compiled (raw, choice) -> example of training; raw and example lie over the mesh."""
    with_neighbour = "neighbour" in config.model.conditions

    def local(raw, neighboured, key_data):
        moves, changes = jnp.unstack(jax.random.wrap_key_data(key_data), axis=1)
        return make(
            raw,
            preset,
            settings,
            transforms=augment.draw(moves, config.augment),
            change=disturbance.draw(changes, config.disturbance, raw.slices.shape[-2:]),
            neighboured=neighboured if with_neighbour else None,
        )

    # Each device makes its own part. Left to the compiler, the search for connected edges would
    # ask all devices after every round whether they are done.
    parts = PartitionSpec(meshes.AXES)
    compiled = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(parts,) * 3, out_specs=parts))
    put = functools.partial(meshes.put, meshes.batch(mesh))

    def made(raw: Raw, choice: Choice) -> dict:
        return compiled(raw, *put((choice.neighboured, choice.keys)))

    return made
