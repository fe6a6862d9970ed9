# SPDX-License-Identifier: Apache-2.0
"""One volume: its voxels in closest-canonical RAS, and the grid of the file that it came from.

Arrays are [X, Y, Z]; an affine [4, 4] takes voxel indices to millimetres.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, ornt_transform

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes.geometry import RAS, NativeGrid


@dataclasses.dataclass(frozen=True)
class Image:
    """What the headers of the file or files of one volume say.

    Attributes:
      native: the grid of the voxels.
      voxels: reads them: [native.shape] in the file's axes and units.
      dtype: of the numbers as they are stored.
      format: 'NIfTI', 'DICOM', ...
      notes: what is odd about it and was dealt with, one line each, without the file's name.
      span: of pictures of 8 bits and fewer, what their darkest and brightest number stand for.
    """

    native: NativeGrid
    voxels: Callable[[], np.ndarray]
    dtype: np.dtype
    format: str
    notes: tuple[str, ...] = ()
    span: tuple[float, float] | None = None


HALVES = ("left", "right")  # of a picture
TURNS = (90, 180, 270)  # degrees clockwise
BRAIN = "brain"  # what a range may be called, see Assumed


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What pictures do not say themselves.

    Attributes:
      spacing: of their pixels and between them [mm]; None: 1 mm, and a note says so.
      range: what the darkest and the brightest value that a picture's integers can hold stand for;
        BRAIN: they are of a CT of the head that was scaled by itself, see pictures.py; None: the
        numbers as they are.
      half: 'left' or 'right', which half of pictures that show two images side by side.
      rotate: degrees clockwise, one of TURNS, by which pictures, or halves, come to stand upright.
    """

    spacing: float | None = None
    range: tuple[float, float] | str | None = None
    half: str | None = None
    rotate: int | None = None

    def __post_init__(self):
        if self.half not in (None, *HALVES):
            raise InputError(f"--half={self.half}: give {' or '.join(HALVES)}")
        if self.rotate not in (None, *TURNS):
            raise InputError(f"--rotate={self.rotate}: give {', '.join(map(str, TURNS))}")
        if isinstance(self.range, str) and self.range != BRAIN:
            raise InputError(f"--range={self.range}: give two numbers, LOW,HIGH, or {BRAIN}")
        low, high = (0, 1) if self.range in (None, BRAIN) else self.range
        if not -1e6 < low < high < 1e6:
            raise InputError(f"--range={low:g},{high:g}: give two numbers, LOW,HIGH")
        if not 0 < (1 if self.spacing is None else self.spacing) < 1e6:
            raise InputError(f"--pixel_spacing={self.spacing:g} must be a positive number of mm")

    def to_dict(self) -> dict:
        """As JSON; `half` and `rotate` only where given, as in files of before they were known."""
        fields = dataclasses.asdict(self)
        return {n: v for n, v in fields.items() if v is not None or n not in ("half", "rotate")}

    @property
    def of_companions(self) -> "Assumed":
        """What pictures beside these do not say: masks, label maps and translations."""
        return Assumed(self.spacing, rotate=self.rotate)


UNKNOWN = Assumed()


@dataclasses.dataclass(frozen=True)
class Volume:
    """One image volume in closest-canonical RAS.

    Attributes:
      array: [X, Y, Z] float32.
      affine: [4, 4] float64, indices of `array` -> mm.
      path: the file it was read from, or the folder of its slices.
      native: the grid of the file.
      notes, span: of the `Image`.
      failed: slices that could not be read and are left out, with the reason.
    """

    array: np.ndarray
    affine: np.ndarray
    path: Path
    native: NativeGrid
    notes: tuple[str, ...] = ()
    failed: tuple[tuple[Path, str], ...] = ()
    span: tuple[float, float] | None = None

    @functools.cached_property
    def offsets(self) -> tuple[int, np.ndarray] | None:
        """Of unevenly spaced slices: their axis, and where along it each lies, [n] in voxels.

        None where the slices are even.
        """
        if self.native.offsets is None:
            return None
        axis, direction = self.native.orientation[2].astype(int)
        offsets = self.native.offsets
        return axis, offsets if direction > 0 else offsets[-1] - offsets[::-1]

    def even(self) -> "Volume":
        """The volume with evenly spaced slices: itself, or interpolated between its own."""
        if self.native.offsets is None:
            return self
        native = self.native.even()
        array = evened(self.to_native(self.array), self.native)
        return canonical(array, native, self.path, self.notes, self.failed, self.span)

    def to_native(self, array: np.ndarray) -> np.ndarray:
        """An array [X, Y, Z] on this volume's grid in the axes of its file, [native.shape]."""
        turned = apply_orientation(array, ornt_transform(RAS, self.native.orientation))
        return turned.reshape(self.native.shape)


class BadSlices(InputError):
    """Some slices of a volume cannot be read: `failed` [(file, reason)] names them."""

    def __init__(self, failed: Sequence[tuple[Path, str]]):
        super().__init__(failed[0][1])
        self.failed = tuple(failed)


def canonical(array, native: NativeGrid, path, notes, failed, span=None) -> Volume:
    """The volume of an array [native.shape]."""
    array = apply_orientation(array.reshape(native.shape3), native.orientation)
    _, affine = native.canonical()
    return Volume(np.ascontiguousarray(array), affine, path, native, notes, failed, span)


def evened(array: np.ndarray, native: NativeGrid) -> np.ndarray:
    """An array [native.shape] of uneven slices, linearly interpolated to `native.even()`."""
    count = native.even().shape[2]
    offsets = np.linspace(0, native.offsets[-1], count)
    upper = np.searchsorted(native.offsets, offsets, side="left").clip(1, len(native.offsets) - 1)
    low, high = native.offsets[upper - 1], native.offsets[upper]
    weight = ((offsets - low) / (high - low)).astype(np.float32)
    return array[..., upper - 1] * (1 - weight) + array[..., upper] * weight


def check_finite(path: Path, array: np.ndarray) -> None:
    """InputError for an array with NaN or infinity, which no file `path` is to hold."""
    count = array.size - np.count_nonzero(np.isfinite(array))
    if count:
        raise InputError(f"{path}: not written: {count} of its voxels would be NaN or infinite")


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in the type it is stored in: integers rounded and clipped, never wrapped."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array.astype(np.float64)), limits.min, limits.max)
    return array.astype(dtype)
