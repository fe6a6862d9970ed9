# SPDX-License-Identifier: Apache-2.0
"""Examples: what a step learns from, made of a store's slices, on the devices.

    example = {'x': [B, H, W, 1] in [-1, 1], 'condition': {name: [B, H, W, c]}}

The last channel of a condition is 1 where it is given, see contracts.Condition. Where it is asked
for, there is 'mask' [B, H, W, 1] too: 1 in the body, 0 where the image is cut to air.

Shapes: B batch, K slices that go together (an image, or with it its neighbour), D slices of a patch
of a volume, H rows, W columns.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contourdiff_jax.contours import device, disturbance, recast
from contourdiff_jax.contours.settings import CONTOURS, SLICES, ContourSettings
from contourdiff_jax.contracts import CONTOUR, NEIGHBOUR, PICTURE, SOURCE, Example
from contourdiff_jax.data import augment
from contourdiff_jax.data.store import Store
from contourdiff_jax.volumes import warp
from contourdiff_jax.volumes.intensity import Preset


class Raw(NamedTuple):
    """Slices as a store has them."""

    slices: jax.Array  # [B, K, H, W] uint16
    masks: jax.Array  # [B, K, H, W] uint8
    kept: jax.Array | None  # [B, K, H, W] uint8, Store.kept: the basis of contours, but for slices
    sources: jax.Array | None = None  # [B, K, H, W] uint16, where they are seen
    source_masks: jax.Array | None = None  # [B, K, H, W] uint8


def given(values):
    """Values [B, H, W] of a condition -> the condition [B, H, W, 2], given everywhere."""
    xp = values.__array_namespace__()
    return xp.stack([values, xp.ones_like(values)], axis=-1).astype(xp.float32)


def conditions(values: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Conditions of these names: given with their values [B, H, W], missing where they have none.

    Of at least one there must be values, if there are names.
    """
    seen = {name: given(values[name]) for name in names if name in values}
    missing = np.zeros_like(next(iter(seen.values()), 0))
    return dict.fromkeys(names, missing) | seen


def make(
    raw: Raw,
    preset: Preset,
    settings: ContourSettings | None,
    *,
    source: Preset | None = None,
    transforms: augment.Transform | None = None,
    change: disturbance.Disturbance | None = None,
    recasting: recast.Recasting | None = None,
    neighboured=None,
    masked: bool = False,
) -> Example:
    """Slices -> example; to be jitted.

    Outside the body the image is air, so that head holders and background noise have no contours.
    Contours of native pixels have them, and the image shows them too.

    Args:
      settings: of contours; None where none are seen.
      source: preset of the sources, where they are seen.
      transforms: one for each image, or None.
      change: what disturbs their contours, or None.
      recasting: what makes pictures of another contrast of them, where those are seen.
      neighboured: [B] uint8, 1 where the second of an image's slices is its neighbour and shown.
      masked: whether the example has a mask.
    """
    values = preset.decode_on_device(raw.slices)
    masks = jnp.ones_like(raw.masks) if settings and settings.native else raw.masks
    if transforms is not None:
        values, masks = augment.apply(transforms, values, masks, preset.air)
    images, condition = preset.in_body(values, masks), {}
    if settings is not None:
        greys = _greys(raw, values[:, 0], settings, transforms)
        edges = _contours(raw, greys, masks[:, 0], settings, transforms, change)
        condition[CONTOUR.name] = given(edges)
        if recasting is not None:
            condition[PICTURE.name] = given(recasting(greys[:, 0], masks[:, 0]))
    if source is not None:
        condition[SOURCE.name] = given(_sources(raw, source, transforms))
    if neighboured is not None:
        shown = neighboured.astype(jnp.float32)[:, None, None, None]
        condition[NEIGHBOUR.name] = shown * given(images[:, 1])
    return _example(images[:, 0], condition, masks[:, 0] if masked else None)


def _example(images, condition, masks) -> Example:
    """An example of images and masks [B, H, W], the latter or None."""
    example = {"x": images[..., None], "condition": condition}
    if masks is not None:
        example["mask"] = (masks > 0)[..., None].astype(np.float32)
    return example


def _sources(raw: Raw, preset: Preset, transforms):
    """The source [B, H, W] in [-1, 1] of the first of an image's slices, moved as that is."""
    values, masks = preset.decode_on_device(raw.sources[:, :1]), raw.source_masks[:, :1]
    if transforms is not None:
        values, masks = augment.apply(transforms, values, masks, preset.air)
    return preset.in_body(values, masks)[:, 0]


def _greys(raw: Raw, values, settings, transforms):
    """Pictures [B, n, H, W] in which contours are sought; None where contours are kept.

    Of the first of an image's slices, whose values [B, H, W] are augmented.
    """
    if settings.basis == CONTOURS:
        return None
    if settings.basis == SLICES:
        return device.greys(values, settings)
    greys = raw.kept[:, :1].astype(jnp.float32) / 255
    if transforms is None:
        return greys
    return warp.linear(greys, *transforms.sources(*greys.shape[-2:]), 0.0)


def _contours(raw: Raw, greys, masks, settings, transforms, change):
    """Contours [B, H, W] of the first of an image's slices; greys and masks are augmented."""
    if greys is None:
        edges = raw.kept[:, 0]
        return edges if transforms is None else augment.apply_to_contours(transforms, edges)
    return device.contours(greys, masks, settings, change)


def at_rest(
    store: Store,
    rows,
    settings: ContourSettings,
    names: Iterable[str] = (CONTOUR.name,),
    *,
    masked: bool = False,
) -> Example:
    """Examples of the slices of a store with these numbers, not augmented, without neighbours.

    They are made on the host, where nothing has to be compiled for the few that are looked at.

    Args:
      names: of the conditions to have.
      masked: whether to have a mask.
    """
    body, values = store.masks[rows], {}
    if CONTOUR.name in names:
        values[CONTOUR.name] = store.contours_of(rows, settings)
        body = np.ones_like(body) if settings.native else body
    images = store.preset.in_body(store.values(rows), body)
    if SOURCE.name in names:
        values[SOURCE.name] = store.source_images(rows)
    if PICTURE.name in names:
        values[PICTURE.name] = recast.shown(store.greys_of(rows, settings), body)
    return _example(images, conditions(values, names), body if masked else None)


def picture(shown: Example, drawn: np.ndarray) -> np.ndarray:
    """Examples on the host to look at: rows of truth | what is seen | what is drawn.

    Returns [rows, columns] uint8 of as many examples as `drawn` [B, *S, 1] in [-1, 1] has. Of
    volumes there are planes, see `planes`.
    """
    seen, columns = shown["condition"], [shown["x"]]
    if CONTOUR.name in seen:
        columns.append(2 * seen[CONTOUR.name] - 1)
    columns += [seen[name] for name in (SOURCE.name, PICTURE.name) if name in seen]
    columns.append(drawn)
    shown = [column[: len(drawn), ..., 0] for column in columns]
    if drawn.ndim == 5:
        shown = [planes(volumes) for volumes in shown]
    return grey(np.concatenate(np.concatenate(shown, axis=2)))


def planes(volumes: np.ndarray) -> np.ndarray:
    """The planes through the middle of volumes [B, D, H, W], side by side: [B, H, 2 W + H].

    The slice, and across the slices that along the rows and that along the columns: their last
    slice is on top, and each of their D lines is repeated until they are as high as the slice.
    """
    _, depth, height, width = volumes.shape
    across = volumes[:, ::-1][:, np.arange(height) * depth // height]
    return np.concatenate(
        [volumes[:, depth // 2], across[:, :, height // 2], across[..., width // 2]], axis=2
    )


def grey(images: np.ndarray) -> np.ndarray:
    """Values in [-1, 1] as uint8."""
    return np.uint8(np.round((images + 1) * 127.5))


def read(
    store: Store,
    settings: ContourSettings,
    rows: np.ndarray,
    names: Iterable[str] = (CONTOUR.name,),
) -> Raw:
    """The slices of a store with the numbers [B, K].

    Args:
      names: of the conditions to have.
    """
    kept = store.kept(settings) if CONTOUR.name in names else None
    stacks = [store.slices, store.masks, kept]
    if SOURCE.name in names:
        stacks += [store.sources, store.source_masks]
    return Raw(*(None if stack is None else stack[rows] for stack in stacks))
