# SPDX-License-Identifier: Apache-2.0
"""Contours by OpenCV, on the host: all that crosses from the source modality to the target.

Shapes: N slices, H rows, W columns of the model's grid; values are in the preset's units (CT in HU,
MR as fraction of its volume's window). Contours are computed at the resolution of the model and
never resized, but for those of native pixels (settings.py).
"""

import dataclasses

import cv2
import numpy as np
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from contourdiff_jax.contours.settings import CONTOURS, PICTURES, SLICES, ContourSettings
from contourdiff_jax.volumes.grid import Resampling
from contourdiff_jax.volumes.intensity import Preset, Window


def contours(values: np.ndarray, mask: np.ndarray, settings: ContourSettings) -> np.ndarray:
    """Contours of one slice.

    Args:
      values: [H, W] float, in the preset's units.
      mask: [H, W] bool, the body; what lies outside becomes black.

    Returns:
      [H, W] uint8, 1 on a contour and 0 elsewhere.
    """
    return _edges([_grey(values, curve) for curve in settings.curves], mask, settings)


def _grey(values: np.ndarray, curve) -> np.ndarray:
    """8 bits of values: straight lines between the points of a curve, level beyond its ends."""
    return np.round(255 * np.interp(values, *zip(*curve, strict=True))).astype(np.uint8)


def _edges(greys, mask: np.ndarray, settings: ContourSettings) -> np.ndarray:
    """The united edges [H, W] uint8 of 8-bit images [H, W] inside a mask."""
    mask = np.asarray(mask, bool)
    united = np.zeros(mask.shape, np.uint8)
    for grey in greys:
        grey = grey * mask
        if settings.clean:
            grey = _cleaned(grey, *settings.clean)
        if settings.blur > 1:
            grey = cv2.GaussianBlur(grey, (settings.blur, settings.blur), 0)
        edges = cv2.Canny(grey, settings.low, settings.high, apertureSize=3, L2gradient=False) > 0
        if settings.apart:
            reach = 2 * settings.apart + 1
            edges &= cv2.dilate(united, np.ones((reach, reach), np.uint8)) == 0
        united |= edges.astype(np.uint8)
    return united


def stack(values: np.ndarray, masks: np.ndarray, settings: ContourSettings) -> np.ndarray:
    """`contours` of each slice: [N, H, W] values and masks -> [N, H, W] uint8."""
    return np.stack([contours(v, m, settings) for v, m in zip(values, masks, strict=True)])


def on_grid(
    values: np.ndarray,
    masks: np.ndarray,
    resampling: Resampling,
    preset: Preset,
    settings: ContourSettings,
    shown: Window | None = None,
) -> np.ndarray:
    """Contours of a whole volume, [N, H, W] uint8 on the model's grid.

    Args:
      values: [X, Y, Z] float32, in the units of `preset`.
      masks: [N, H, W] bool, the body.
      resampling: from the volume's voxels to the grid.
      shown: the values that are black and white in the volume's picture (Preset.shown); by default
        those of the model.
    """
    return of_basis(basis(values, resampling, preset, settings, shown), masks, settings)


def basis(
    values: np.ndarray,
    resampling: Resampling,
    preset: Preset,
    settings: ContourSettings,
    shown: Window | None = None,
) -> np.ndarray:
    """What contours of a whole volume are computed from on the grid, [N, H, W].

    The arguments are those of `on_grid`. Which of three it is, `settings.basis` says: slices
    float32 in the units of `preset`, pictures of 8 bits, or contours uint8 of 0 and 1.
    """
    if settings.basis == SLICES:
        return resampling.slices(values, preset.air)
    if settings.basis == PICTURES:
        return pictures(values, resampling, settings)
    planes = resampling.planes(values)
    everywhere = np.broadcast_to(True, planes.shape)
    return resampling.nearest(stack(planes, everywhere, settings.through(shown or preset.image)))


def of_basis(basis: np.ndarray, masks: np.ndarray, settings: ContourSettings) -> np.ndarray:
    """Contours [N, H, W] uint8 of their basis [N, H, W] inside masks [N, H, W]."""
    if settings.basis == CONTOURS:
        return basis
    if settings.basis == SLICES:
        return stack(basis, masks, settings)
    both = zip(basis, masks, strict=True)
    return np.stack([_edges([picture], mask, settings) for picture, mask in both])


def picture(basis: np.ndarray, settings: ContourSettings) -> np.ndarray:
    """The picture [N, H, W] float32 in [0, 1] in which contours of that basis are sought.

    For settings with one picture, see recast.check.
    """
    if settings.basis == SLICES:
        basis = _grey(basis, settings.curves[0])
    return basis.astype(np.float32) / 255


def pictures(values: np.ndarray, resampling: Resampling, settings: ContourSettings) -> np.ndarray:
    """The 8-bit pictures [N, H, W] in which contours with `thin` are sought.

    Args:
      values: [X, Y, Z] float32, in the preset's units.
      resampling: from the volume's voxels to the grid.

    A morphological opening with a rectangle removes what is brighter than both its sides and
    narrower than that (Serra 1982, Image Analysis and Mathematical Morphology).
    """
    sides = (2 * round((settings.thin / side - 1) / 2) + 1 for side in resampling.plane_spacing)
    rectangle = np.ones([max(1, side) for side in sides], np.uint8)
    planes = [
        cv2.morphologyEx(_grey(plane, settings.curve), cv2.MORPH_OPEN, rectangle)
        for plane in resampling.planes(values)
    ]
    return np.rint(resampling.shrink(np.stack(planes), 0)).astype(np.uint8)


def of_translations(pictures, body, preset: Preset, settings: ContourSettings) -> np.ndarray:
    """Contours [N, H, W] uint8 of translated slices [N, H, W] in [-1, 1], on the model's grid.

    Translations have no voxels but the grid's: settings that want others are followed as far as
    that goes.
    """
    settings = settings.through(preset.image)
    settings = dataclasses.replace(settings, thin=0.0, native=False, clean=())
    return stack(preset.image.inverse(pictures), body, settings)


def _cleaned(grey: np.ndarray, smallest_object: int, smallest_hole: int) -> np.ndarray:
    """A grey image [H, W] uint8, black but for large bright objects."""
    if grey.min() == grey.max():
        return grey
    bright = grey > threshold_multiotsu(grey, classes=2)
    kept = _without_small(ndimage.binary_erosion(bright, border_value=1), smallest_object)
    return grey * ~_without_small(~kept, smallest_hole)


def _without_small(mask: np.ndarray, area: int) -> np.ndarray:
    """A mask [H, W] bool without its parts of fewer pixels, connected by their sides."""
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=4
    )
    return mask & (statistics[parts, cv2.CC_STAT_AREA] >= area)
