# SPDX-License-Identifier: Apache-2.0
"""The body mask: where the patient is, and the head holder, the table and the air are not.

The body is found on voxels of about 2 mm, where noise is averaged out, morphology in 3D is cheap
and memory is bounded; the skin is then drawn at full resolution, slice by slice.

Shapes: [X, Y, Z] volumes in closest-canonical RAS; [x, y, z] the same on coarse voxels.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from contourdiff_jax.volumes import geometry, intensity

CHANNELS = 128  # of a picture that OpenCV takes at once
SAMPLE = 1 << 18  # coarse voxels that the thresholds of MR rest on, at most
COARSE = 2.0  # [mm] voxels on which the body is found

# Half way from air (-1000 HU) to tissue lies -500 HU, but cushions, blankets and hair reach up to
# about -400 HU and fat begins at -150: at -300 the patient stays whole and the padding goes.
CT_THRESHOLD = -300.0

# In MR the air is noise and ghosts, up to 7% as bright as tissue in the volumes looked at (head,
# neck, abdomen; T1, T2, FLAIR). In those without air the dark tissue is 24% as bright or more.
NO_AIR = 0.15
# Body is what stands out of that air by so many standard deviations of its noise, and by this
# fraction of the tissue's signal: the scalp has little in T2, 15% of the brain's.
NOISE = 6.0
FAINT = 0.1

# What is thinner than twice this [mm] falls off: shells of holders and tables, tubes, wires.
OPENING = 4.0
# How far [mm] the body grows back into what the opening took: nose, ears, chin.
RECOVERY = 6.0
# Nostrils, ear canals and the like are closed up to twice this width [mm].
CLOSING = 8.0


def body_mask(array: np.ndarray, affine: np.ndarray, modality: str) -> np.ndarray:
    """Mask bool [X, Y, Z] of the body in a volume of modality 'ct' (HU) or 'mr' (any unit).

    The largest solid component counts as the body, with its cavities. Where no air or nothing solid
    is found (a part of the inside of a body, or noise) the whole field of view is returned: the
    mask then bounds nothing, which hides no anatomy.
    """
    spacing = geometry.spacing(affine)
    factors = np.maximum(1, np.floor(COARSE / spacing + 0.5)).astype(int)
    coarse = _block_means(array, factors)
    threshold = CT_THRESHOLD if modality == "ct" else _mr_threshold(coarse)
    solid = coarse > threshold
    if modality == "mr":  # bone is as dark as air there, and would part the scalp from the brain
        solid = _fill_planes(solid)
    if solid.all() or not solid.any():
        return np.ones(array.shape, bool)
    return _skin(array, threshold, _body(solid, spacing * factors), factors)


def extent(masks: np.ndarray) -> tuple[int, int]:
    """First and last slice of masks [N, H, W] that shows the body; all slices where none does."""
    shown = np.flatnonzero(masks.any((1, 2)))
    return (int(shown[0]), int(shown[-1])) if shown.size else (0, len(masks) - 1)


def _block_means(array: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Means of blocks of `factors` voxels, float32 [x, y, z]; blocks at the end may be smaller."""
    array = np.asarray(array, np.float32)
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        first = np.moveaxis(array, axis, 0)
        whole = len(first) // factor * factor
        # Sums of strided views are several times as fast as sums over a reshaped array.
        means = [sum(first[k:whole:factor] for k in range(factor)) / np.float32(factor)]
        if whole < len(first):
            means.append(first[whole:].mean(axis=0, keepdims=True))
        array = np.moveaxis(np.concatenate(means), 0, axis)
    return array


def _mr_threshold(coarse: np.ndarray) -> float:
    """A signal between the air's and the darkest tissue's; -inf where the volume holds no air.

    Otsu's threshold parts bright tissue from the rest, the same on the rest parts most of the dim
    tissue from air. The air left is uniform up to noise, so that all that stands out of it is body.
    """
    # One axis only: three or four planes would be taken for the channels of a colour picture.
    values = coarse.ravel()
    values = values[:: -(-values.size // SAMPLE)]
    bright = _otsu(values)
    rest = values[values < bright]
    if not rest.size:  # nothing but texture finer than the coarse voxels
        return -np.inf
    dim = _otsu(rest)
    outside = values[values <= dim]
    tissue, air = np.median(values[values > dim]), np.median(outside)
    if air > NO_AIR * tissue:
        return -np.inf
    noise = 1.4826 * np.median(np.abs(outside - air))
    return float(air + max(NOISE * noise, FAINT * (tissue - air)))


def _otsu(values: np.ndarray) -> float:
    """Otsu's threshold of values [n]; the lowest where they are too alike for a histogram."""
    low, high = float(values.min()), float(values.max())
    return low if intensity.is_flat(low, high) else threshold_otsu(values)


def _body(solid: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The body, bool [x, y, z]: of all that is solid, what is thick and connected, holes filled."""
    for radius in (OPENING, OPENING / 2, 0):  # the last for bodies that are thin themselves
        core = _erode(solid, radius, spacing)
        if core.any():
            break
    grown = solid & dilate(_largest(core), radius + RECOVERY, spacing)
    return ndimage.binary_fill_holes(_close(_largest(grown), CLOSING, spacing))


def _skin(array: np.ndarray, threshold: float, body: np.ndarray, factors) -> np.ndarray:
    """The body at full resolution, bool [X, Y, Z], from the coarse one [x, y, z].

    One coarse voxel inside its border all is body, one outside nothing is; between, what is solid.
    """
    neighbours = [np.ones((3, 3), np.uint8)] * 2
    inside, near = ~_grow(~body, neighbours), _grow(body, neighbours)
    # Plane by plane in memory, which is how they are worked on.
    solid = np.ascontiguousarray(np.moveaxis(array > threshold, 2, 0))
    for k, plane in enumerate(solid):
        plane &= _enlarged(near[:, :, k // factors[2]], factors, plane.shape)
        plane |= _enlarged(inside[:, :, k // factors[2]], factors, plane.shape)
        plane[:] = _fill_holes(cv2.medianBlur(plane.view(np.uint8), 3))
    return np.ascontiguousarray(np.moveaxis(solid, 0, 2))


def _enlarged(plane: np.ndarray, factors: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A coarse plane [x, y] on the voxels [X, Y]."""
    return plane.repeat(factors[0], 0)[: shape[0]].repeat(factors[1], 1)[:, : shape[1]]


def _fill_planes(mask: np.ndarray) -> np.ndarray:
    """The mask [x, y, z] with the holes of its planes across every axis filled."""
    filled = mask.astype(np.uint8)
    for axis in range(3):
        for plane in np.moveaxis(filled, axis, 0):
            plane[:] = _fill_holes(plane)
    return filled.astype(bool)


def _fill_holes(plane: np.ndarray) -> np.ndarray:
    """The mask [X, Y] uint8 with everything that its outside cannot reach, bool."""
    outside = cv2.copyMakeBorder(plane, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(outside, None, (0, 0), 2)
    return outside[1:-1, 1:-1] != 2


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of a mask that is not empty."""
    components, _ = ndimage.label(mask)
    return components == np.bincount(components.ravel())[1:].argmax() + 1


def _erode(mask: np.ndarray, radius: float, spacing: np.ndarray) -> np.ndarray:
    """Erosion by a ball of `radius` mm; what lies outside the field of view counts as solid."""
    return ~dilate(~mask, radius, spacing)


def dilate(mask: np.ndarray, radius: float, spacing: np.ndarray) -> np.ndarray:
    """Dilation by a ball of `radius` mm."""
    heights = spacing[2] * np.arange(int(radius / spacing[2]) + 1)
    return _grow(mask, [_disc(np.sqrt(radius**2 - up**2), spacing[:2]) for up in heights])


def _grow(mask: np.ndarray, cuts: Sequence[np.ndarray]) -> np.ndarray:
    """Dilation of a mask [x, y, z] by a body whose cut `k` voxels up and down is `cuts[k]`, uint8.

    The planes [x, y] are the channels of one picture: OpenCV dilates them by one cut at a time,
    several times as fast as distances are measured in 3D.
    """
    planes = np.ascontiguousarray(mask, np.uint8)
    depth = planes.shape[2]
    parts = [
        np.ascontiguousarray(part)
        for part in np.split(planes, range(CHANNELS, depth, CHANNELS), axis=2)
    ]
    grown = np.zeros_like(planes)
    for up, cut in enumerate(cuts[:depth]):
        wide = [cv2.dilate(part, cut).reshape(part.shape) for part in parts]
        wide = np.concatenate(wide, axis=2)
        grown[:, :, up:] |= wide[:, :, : depth - up]
        grown[:, :, : depth - up] |= wide[:, :, up:]
    return grown.astype(bool)


def _disc(radius: float, spacing: np.ndarray) -> np.ndarray:
    """Disc of `radius` mm, uint8, on pixels of `spacing` mm."""
    x, y = (s * np.arange(-int(radius / s), int(radius / s) + 1) for s in spacing)
    return (x[:, None] ** 2 + y**2 <= radius**2).astype(np.uint8)


def _close(mask: np.ndarray, radius: float, spacing: np.ndarray) -> np.ndarray:
    """Closing by a ball of `radius` mm; the mask goes on beyond its borders as it is there."""
    width = [(int(np.ceil(2 * radius / size)),) * 2 for size in spacing]
    wide = np.pad(mask, width, mode="edge")
    closed = _erode(dilate(wide, radius, spacing), radius, spacing)
    inner = tuple(slice(w, w + n) for (w, _), n in zip(width, mask.shape, strict=True))
    return closed[inner] | mask
