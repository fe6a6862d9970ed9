# SPDX-License-Identifier: Apache-2.0
"""Examples: what a step learns from, made of a store's slices, on the devices.

    example = {'x': [B, H, W, 1] in [-1, 1], 'condition': {name: [B, H, W, c]}}

The last channel of a condition is 1 where it is given, see contracts.Condition.

Shapes: B batch, K slices that go together (an image, or with it its neighbour), H rows,
W columns.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contourdiff_jax.contours import device, disturbance
from contourdiff_jax.contours.settings import CONTOURS, SLICES, ContourSettings
from contourdiff_jax.contracts import CONTOUR, NEIGHBOUR, Example
from contourdiff_jax.data import augment
from contourdiff_jax.data.store import Store
from contourdiff_jax.volumes import warp
from contourdiff_jax.volumes.intensity import Preset


class Raw(NamedTuple):
    """Slices as a store has them."""

    slices: jax.Array  # [B, K, H, W] uint16
    masks: jax.Array  # [B, K, H, W] uint8
    kept: jax.Array | None  # [B, K, H, W] uint8, Store.kept: the basis of contours, but for slices


def given(values):
    """Values [B, H, W] of a condition -> the condition [B, H, W, 2], given everywhere."""
    xp = values.__array_namespace__()
    return xp.stack([values, xp.ones_like(values)], axis=-1).astype(xp.float32)


def contours_alone(edges: np.ndarray, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Conditions of these names: the contours [B, H, W], and all others missing."""
    contour = given(edges)
    return dict.fromkeys(names, np.zeros_like(contour)) | {CONTOUR.name: contour}


def make(
    raw: Raw,
    preset: Preset,
    settings: ContourSettings,
    *,
    transforms: augment.Transform | None = None,
    change: disturbance.Disturbance | None = None,
    neighboured=None,
) -> Example:
    """Slices -> example; to be jitted.

    Outside the body the image is air, so that head holders and background noise have no contours.
    Contours of native pixels have them, and the image shows them too.

    Args:
      transforms: one for each image, or None.
      change: what disturbs their contours, or None.
      neighboured: [B] uint8, 1 where the second of an image's slices is its neighbour and shown.
    """
    values = preset.decode_on_device(raw.slices)
    masks = jnp.ones_like(raw.masks) if settings.native else raw.masks
    if transforms is not None:
        values, masks = augment.apply(transforms, values, masks, preset.air)
    edges = _contours(raw, values[:, 0], masks[:, 0], settings, transforms, change)
    images = preset.in_body(values, masks)
    condition = {CONTOUR.name: given(edges)}
    if neighboured is not None:
        shown = neighboured.astype(jnp.float32)[:, None, None, None]
        condition[NEIGHBOUR.name] = shown * given(images[:, 1])
    return {"x": images[:, 0, ..., None], "condition": condition}


def _contours(raw: Raw, values, masks, settings, transforms, change):
    """Contours [B, H, W] of the first of an image's slices; values and masks are augmented."""
    if settings.basis == CONTOURS:
        edges = raw.kept[:, 0]
        return edges if transforms is None else augment.apply_to_contours(transforms, edges)
    if settings.basis == SLICES:
        greys = device.greys(values, settings)
    else:
        greys = raw.kept[:, :1].astype(jnp.float32) / 255
        if transforms is not None:
            greys = warp.linear(greys, *transforms.sources(*greys.shape[-2:]), 0.0)
    return device.contours(greys, masks, settings, change)


def at_rest(
    store: Store, rows, settings: ContourSettings, names: Iterable[str] = (CONTOUR.name,)
) -> Example:
    """Examples of the slices of a store with these numbers, not augmented, without neighbours.

    They are made on the host, where nothing has to be compiled for the few that are looked at.

    Args:
      names: of the conditions to have.
    """
    masks = store.masks[rows]
    body = np.ones_like(masks) if settings.native else masks
    images = store.preset.in_body(store.values(rows), body)
    condition = contours_alone(store.contours_of(rows, settings), names)
    return {"x": images[..., None], "condition": condition}


def read(store: Store, settings: ContourSettings, rows: np.ndarray) -> Raw:
    """The slices of a store with the numbers [B, K]."""
    kept = store.kept(settings)
    return Raw(store.slices[rows], store.masks[rows], None if kept is None else kept[rows])
