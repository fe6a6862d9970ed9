# SPDX-License-Identifier: Apache-2.0
"""Batches: which slices a step trains on, and the examples made of them.

Everything is a pure function of (seed, step), so resuming needs no iterator state,
and every process of a cluster can make its own part of the same global batch.

Shapes: B batch, H rows, W columns, N slices of the store.

    example = {'x': [B, H, W, 1] in [-1, 1], 'condition': {name: [B, H, W, c]}}

The last channel of a condition is 1 where it is given. The null condition is zero in every
channel, so a slice of air, which has no contour either, is not mistaken for a missing one. How much
of that a network sees is its own matter (models/conditioning.py).
"""

import functools
from collections.abc import Iterator

import grain
import numpy as np

from contourdiff_jax.data import augment
from contourdiff_jax.data.contours import ContourSettings, contours
from contourdiff_jax.data.intensity import Preset
from contourdiff_jax.data.store import Store

# Channels of each condition that an example can have: its values, and 1 where it is given.
CONDITIONS = {"contour": 2, "neighbour": 2}


def indices(seed: int, step: int, batch: int, total: int) -> np.ndarray:
    """Positions [B] in [0, total) of the global batch of a step.

    Epoch follows epoch, each in its own order.
    """
    flat = step * batch + np.arange(batch)
    return np.array([_permutation(seed, i // total, total)[i % total] for i in flat.tolist()])


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, total: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(total)


def given(edges: np.ndarray) -> np.ndarray:
    """Contours [B, H, W] of 0 and 1 -> the condition [B, H, W, 2] that states them."""
    return np.stack([edges, np.ones_like(edges)], -1).astype(np.float32)


def make(
    values, masks, preset: Preset, settings: ContourSettings, transforms=None, native=None
) -> dict:
    """Slices -> example.

    Args:
      values: [B, H, W] float32 in the preset's units.
      masks: [B, H, W] uint8, the body.
      transforms: one augment.Transform per slice, or None.
      native: [B, H, W] uint8, contours taken at native pixels, where `settings` want those.

    Outside the body the image is air: head holders and background noise have no contour. Contours
    of native pixels show them, and so does the image.
    """
    if native is not None:
        masks = np.ones_like(masks)
    images, edges = [], []
    for i, (value, mask) in enumerate(zip(values, masks, strict=True)):
        edge = None if native is None else native[i]
        if transforms is not None:
            value, mask = augment.apply(transforms[i], value, mask, preset.air)
            edge = None if edge is None else augment.apply_to_contours(transforms[i], edge)
        images.append(preset.image.unit(np.where(mask > 0, value, preset.air)))
        edges.append(contours(value, mask, settings) if edge is None else edge)
    return {
        "x": np.stack(images)[..., None].astype(np.float32),
        "condition": {"contour": given(np.stack(edges))},
    }


def examples(store: Store, rows, settings: ContourSettings, transforms=None) -> dict:
    """`make` of the slices of a store with those numbers."""
    native = store.contours[rows] if settings.native else None
    return make(
        store.values(rows), store.masks[rows], store.preset, settings, transforms, native=native
    )


def training(
    store: Store,
    settings: ContourSettings,
    config,
    *,
    start: int,
    stop: int,
    process: tuple[int, int] = (0, 1),
) -> Iterator[dict]:
    """Examples of steps start, start + 1, .. stop - 1, made in a thread ahead of their use.

    Args:
      config: the whole configuration; its seed, train.batch and augment sections are used.
      process: (index, count) of this process; it gets its share of each global batch, in order.
    """
    rows = store.rows("train")
    batch = config.train.batch
    share = batch // process[1]
    mine = slice(process[0] * share, (process[0] + 1) * share)

    def example(step):
        step = int(step)
        chosen = rows[indices(config.seed, step, batch, len(rows))][mine]
        generators = (
            np.random.default_rng((config.seed, 1, step, i)) for i in range(mine.start, mine.stop)
        )
        transforms = [augment.draw(rng, config.augment) for rng in generators]
        return examples(store, chosen, settings, transforms)

    steps = grain.MapDataset.range(start, stop).map(example)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
