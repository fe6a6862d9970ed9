# SPDX-License-Identifier: Apache-2.0
"""Overlays: one volume on the voxels of another, by the affines of both.

Values between voxels are linear. Where the other's voxels are larger the volume is first smoothed
to their size: with voxels f times as large, by a Gaussian whose full width at half maximum is
sqrt(f^2 - 1) of its own (Cardoso et al. 2015, Scale factor point spread function matching).

Shapes: [X, Y, Z] volumes in closest-canonical RAS, [4, 4] affines from voxels to mm.
"""

import functools

import numpy as np
from scipy import ndimage

from contourdiff_jax.volumes import geometry
from contourdiff_jax.volumes.volume import Volume

SAME = 0.1  # voxels between corners: more than headers lose by rounding, less than one sees
WIDTH = 2 * np.sqrt(2 * np.log(2))  # full width at half maximum of a Gaussian, in deviations
EDGE = 0.5  # voxels: so far beyond its centre the last voxel still reaches


class Overlay:
    """The way from the voxels of one volume to those of another.

    Attributes:
      onto: where it goes.
      is_identity: whether both have the same voxels already, so that values stay as they are.
    """

    def __init__(self, volume: Volume, onto: Volume, motion: np.ndarray | None = None):
        """
        Args:
          volume: with even slices.
          onto: whose slices may be uneven.
          motion: [4, 4] mm of `onto` -> mm of `volume`; without it both lie where they say.
        """
        move = np.eye(4) if motion is None else motion
        self.onto = onto
        self._path = np.linalg.inv(volume.affine) @ move @ onto.affine
        self._shape = volume.array.shape
        axis, offsets = onto.offsets or (2, np.arange(onto.array.shape[2], dtype=float))
        self._axis, self._offsets = axis, offsets
        self.is_identity = onto.offsets is None and motion is None and same_grid(onto, volume)

    def __call__(self, array: np.ndarray, fill: float) -> np.ndarray:
        """An array on the volume's voxels, on the other's: float32, `fill` outside."""
        array = np.asarray(array, np.float32)
        if self.is_identity:
            return array
        steps = np.abs(self._path[:3, :3]).max(1)  # of the volume's voxels, for one of the other's
        blur = np.sqrt(np.maximum(steps**2 - 1, 0)) / WIDTH
        if blur.any():
            array = ndimage.gaussian_filter(array, blur, mode="nearest")
        planes = []
        for at in self._planes():
            plane = ndimage.map_coordinates(array, at, order=1, mode="nearest")
            planes.append(np.where(self._is_inside(at), plane, np.float32(fill)))
        return np.stack(planes, axis=self._axis)

    @functools.cached_property
    def inside(self) -> np.ndarray:
        """Bool on the other's voxels: where the volume has any."""
        if self.is_identity:
            return np.ones(self.onto.array.shape, bool)
        return np.stack([self._is_inside(at) for at in self._planes()], axis=self._axis)

    def _planes(self):
        """Of every plane of the other, where its voxels lie among the volume's: [3, R, C]."""
        shape = list(self.onto.array.shape)
        shape.pop(self._axis)
        first, second = np.indices(shape, dtype=float)
        for offset in self._offsets:
            place = [first, second]
            place.insert(self._axis, np.full(shape, offset))
            yield np.tensordot(self._path[:3, :3], place, 1) + self._path[:3, 3, None, None]

    def _is_inside(self, at: np.ndarray) -> np.ndarray:
        last = np.array(self._shape)[:, None, None] - 1
        return ((at >= -EDGE) & (at <= last + EDGE)).all(0)


def same_grid(volume: Volume, other: Volume) -> bool:
    """Whether two volumes lie on one grid, voxel for voxel."""
    if other.array.shape != volume.array.shape:
        return False
    corners = np.array([[0, 0, 0, 1], [*volume.array.shape, 1]]).T
    shift = np.linalg.norm((volume.affine - other.affine)[:3] @ corners, axis=0).max()
    return shift <= SAME * geometry.spacing(volume.affine).min()
