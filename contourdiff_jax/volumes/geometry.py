# SPDX-License-Identifier: Apache-2.0
"""Geometry: where the voxels of a file lie, and how that is undone.

Arrays are [X, Y, Z] in closest-canonical RAS: +x towards the patient's right, +y anterior, +z
superior. An affine [4, 4] takes voxel indices to millimetres.
"""

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation

from contourdiff_jax.errors import InputError

RAS = np.array([[0, 1], [1, 1], [2, 1]])


# Slices that lie off even ones by less than this, of the distance between two, count as even:
# headers round to that much.
EVEN = 0.01

GAP = 1.5  # times the usual distance: slices farther apart are no neighbours

# [mm] Voxels of medical images are larger than the first and smaller than the second along any
# axis; what is not has its lengths in another unit, or a damaged header.
SMALLEST, LARGEST = 0.01, 100.0
UNITS = {"metres": 1000.0, "micrometres": 0.001}


@dataclasses.dataclass(frozen=True)
class NativeGrid:
    """The grid of a file as it lies on disk.

    Attributes:
      shape: with the trailing axes of length 1 that the file has.
      affine: [4, 4] float64, file indices -> mm. Where slices are unevenly spaced it is their mean.
      header: of a NIfTI file: its geometry only (forms, codes, voxel sizes, units).
      offsets: [n] float64, where slices are unevenly spaced: how far along the third axis each
        lies, in units of the affine's step, from 0 to n - 1.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    header: nib.Nifti1Header | None = None
    offsets: np.ndarray | None = None

    @property
    def orientation(self) -> np.ndarray:
        """[3, 2] which RAS axis each file axis runs along, and in which direction (+1, -1)."""
        return io_orientation(self.affine)

    @property
    def shape3(self) -> tuple[int, int, int]:
        """The shape as three axes: a single 2-D slice counts as [X, Y, 1]."""
        return (*self.shape, 1)[:3]

    def canonical(self) -> tuple[tuple[int, int, int], np.ndarray]:
        """Shape and affine [4, 4] of the same voxels in closest-canonical RAS."""
        orientation = self.orientation
        shape = tuple(int(self.shape3[axis]) for axis in np.argsort(orientation[:, 0]))
        return shape, self.affine @ inv_ornt_aff(orientation, self.shape3)

    def even(self) -> "NativeGrid":
        """The grid with slices as far apart as where they are dense in it, over the same extent."""
        if self.offsets is None:
            return self
        # A quarter of the gaps are no wider: two slices that almost coincide make no others.
        step = np.quantile(np.diff(self.offsets), 0.25, method="lower")
        count = int(np.ceil(self.offsets[-1] / step - EVEN)) + 1
        affine = self.affine @ np.diag((1, 1, self.offsets[-1] / (count - 1), 1))
        return NativeGrid((*self.shape[:2], count), affine)


def spacing(affine: np.ndarray) -> np.ndarray:
    """[3] voxel sizes in mm along the array's own axes."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def runs(positions: np.ndarray) -> list[np.ndarray]:
    """Numbers of the slices at [n] mm, in runs without a gap: GAP times the usual distance."""
    steps = np.abs(np.diff(positions))
    gaps = np.flatnonzero(steps > GAP * np.median(steps)) if len(steps) else []
    return np.split(np.arange(len(positions)), np.asarray(gaps, int) + 1)


def check_affine(path: Path, affine: np.ndarray) -> None:
    """InputError where an affine [4, 4] places no voxels."""
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: the affine holds NaN or infinity; repair the header")
    sizes = spacing(affine)
    # The determinant of the unit axes is the volume they span: at zero they lie in one plane.
    if not sizes.all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-4:
        raise InputError(f"{path}: the affine is singular; repair the header")


def check_sizes(path: Path, affine: np.ndarray, remedy: str = "repair the header") -> None:
    """InputError where an affine [4, 4] makes voxels of a size that no medical image has."""
    sizes = spacing(affine)
    odd = sizes[(sizes < SMALLEST) | (sizes > LARGEST)]
    if not odd.size:
        return
    likely = "damaged"
    for unit, factor in UNITS.items():
        if odd.min() * factor >= SMALLEST and odd.max() * factor <= LARGEST:
            likely = f"likely in {unit}"
    raise InputError(
        f"{path}: voxels of {' x '.join(f'{size:.3g}' for size in sizes)} mm, {likely}: "
        f"{SMALLEST:g} to {LARGEST:g} mm is plausible; {remedy}"
    )
