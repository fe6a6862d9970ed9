# SPDX-License-Identifier: Apache-2.0
"""Volumes: images of any format read into one orientation and written back on their own grid.

Arrays are [X, Y, Z] in closest-canonical RAS: +x towards the patient's right, +y anterior, +z
superior. An affine [4, 4] takes voxel indices to millimetres. What the file itself looked like
(axis order, flips, shape, geometry) is remembered in `NativeGrid`, so that a result goes back
exactly where its source came from.

The formats have a module each: nifti.py, dicom.py, itk.py (.mha, .nrrd) and pictures.py (.png,
.tif, .npy and others). Each opens files as an `Image`, which knows what the headers say and reads
the voxels on demand.
"""

import dataclasses
import errno
import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from contourdiff_jax.errors import InputError

RAS = np.array([[0, 1], [1, 1], [2, 1]])

# What a file's name must end with, by the module that reads it.
NIFTI = (".nii.gz", ".nii")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".npy")
DICOM = (".dcm", ".dicom", ".ima")
SUFFIXES = (*NIFTI, *ITK, *PICTURES, *DICOM)

# Words that tell what a file shows of a subject, not which subject it shows.
MODALITY = re.compile(
    r"(_(ct|mr|mri|t1|t2|t1w|t2w|flair|pd|labels?|seg|mask|0000))+$", re.IGNORECASE
)

# Slices whose places differ from even ones by less than this, of the distance between two, count
# as even: headers round to that much.
EVEN = 0.01


@dataclasses.dataclass(frozen=True)
class NativeGrid:
    """The grid of a file as it lies on disk.

    Attributes:
      shape: with the trailing axes of length 1 that the file has.
      affine: [4, 4] float64, file indices -> mm. Where slices are unevenly spaced it is their mean.
      header: of a NIfTI file: its geometry only (forms, codes, voxel sizes, units).
      offsets: [n] float64, where slices are unevenly spaced: the place of each along the third
        axis, in units of the affine's step, from 0 to n - 1.
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


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What pictures do not say themselves.

    Attributes:
      spacing: of their pixels and between them [mm]; None: 1 mm, and a note says so.
      range: what the darkest and the brightest value that a picture's integers can hold stand for;
        None: the numbers as they are.
    """

    spacing: float | None = None
    range: tuple[float, float] | None = None

    @classmethod
    def from_dict(cls, fields: dict) -> "Assumed":
        """The inverse of dataclasses.asdict after a way through JSON."""
        span = fields.get("range")
        return cls(fields.get("spacing"), None if span is None else tuple(map(float, span)))


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
        """Of unevenly spaced slices: the axis they follow and their places [n] along it, in voxels.

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
        array = _evened(self.to_native(self.array), self.native)
        return _canonical(array, native, self.path, self.notes, self.failed, self.span)

    def to_native(self, array: np.ndarray) -> np.ndarray:
        """An array [X, Y, Z] on this volume's grid in the axes of its file, [native.shape]."""
        turned = apply_orientation(array, ornt_transform(RAS, self.native.orientation))
        return turned.reshape(self.native.shape)


class BadSlices(InputError):
    """Some slices of a volume cannot be read: `failed` [(file, reason)] names them."""

    def __init__(self, failed: Sequence[tuple[Path, str]]):
        super().__init__(failed[0][1])
        self.failed = tuple(failed)


def spacing(affine: np.ndarray) -> np.ndarray:
    """[3] voxel sizes in mm along the array's own axes."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def suffix_of(path: str | Path) -> str | None:
    """The known suffix that the name ends with, in lower case; None where there is none."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def stem(path: str | Path) -> str:
    """The file's name without its known suffix."""
    name = Path(path).name
    return name[: len(name) - len(suffix_of(name) or "")]


def subject_of(path: str | Path) -> str:
    """Whose volume it is: the stem without trailing modality words (head01_ct.nii.gz -> head01)."""
    return MODALITY.sub("", stem(path))


def subject_digest(subject: str) -> str:
    """SHA-256 of a subject's name: enough to recognise the subject, not to name it."""
    return hashlib.sha256(subject.encode()).hexdigest()


def parts(path: Path) -> tuple[Path, ...]:
    """The files that one of a volume consists of: a header may have its voxels in another."""
    if suffix_of(path) not in ITK:
        return (path,)
    from contourdiff_jax.formats import itk

    return itk.parts(path)


def sha256(*files: str | Path) -> str:
    """Hexadecimal SHA-256 of the bytes of the files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with open_file(Path(path)) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def opened(files: Path | Sequence[Path], assumed: Assumed = UNKNOWN) -> Image:
    """Opens one file, or the slices of one volume in any order; reads headers only.

    Raises InputError, naming the file, for what is none, or holds no image.
    """
    # Imported here: they need what stands above, and some of them half a second.
    files = _listed(files)
    for path in files:
        check_is_file(path)
    suffix = suffix_of(files[0])
    if suffix in NIFTI:
        from contourdiff_jax.formats import nifti

        return nifti.opened(files[0])
    if suffix in ITK:
        from contourdiff_jax.formats import itk

        return itk.opened(files[0])
    if suffix in PICTURES:
        from contourdiff_jax.formats import pictures

        return pictures.opened(files, assumed)
    from contourdiff_jax.formats import dicom

    if suffix in DICOM or dicom.is_dicom(files[0]):
        return dicom.opened(files)
    raise InputError(
        f"{files[0]}: unsupported file type; known are DICOM and {', '.join(SUFFIXES)}"
    )


def read(
    files: Path | Sequence[Path],
    *,
    labels: bool = False,
    path: Path | None = None,
    assumed: Assumed = UNKNOWN,
) -> Volume:
    """Reads a volume into closest-canonical RAS, float32.

    Args:
      files: one file, or the slices of one volume. Of NIfTI, trailing axes of length 1 are dropped;
        a single 2-D slice is [X, Y, 1]. Slices that cannot be read are left out.
      labels: the file is a label map or mask: it may be constant, but must hold whole numbers.
      path: what to call it; by default the first file.
      assumed: what pictures do not say themselves.

    Raises InputError, naming the file, for anything that cannot be used as an image.
    """
    path = _listed(files)[0] if path is None else path
    (image, array), failed = _without_bad_slices(
        files, lambda good: ((image := opened(good, assumed)), image.voxels())
    )
    array = np.asarray(array, np.float32).reshape(image.native.shape)
    if not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise InputError(f"{path}: {count} voxels are NaN or infinite; replace them first")
    if labels and (array.min() < 0 or array.max() > 65535 or (array != np.rint(array)).any()):
        raise InputError(f"{path}: a label map must hold whole numbers from 0 to 65535")
    if not labels and array.min() == array.max():
        raise InputError(f"{path}: constant volume, every voxel is {array.flat[0]:g}")
    return _canonical(array, image.native, path, image.notes, failed, image.span)


def geometry(
    files: Path | Sequence[Path], assumed: Assumed = UNKNOWN
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine [4, 4] of a volume in closest-canonical RAS, from its headers alone."""
    image, _ = _without_bad_slices(files, lambda good: opened(good, assumed))
    return image.native.canonical()


def _listed(files: Path | Sequence[Path]) -> list[Path]:
    return [Path(files)] if isinstance(files, str | Path) else list(files)


def _without_bad_slices(files: Path | Sequence[Path], action: Callable):
    """What `action` makes of the files that it does not call bad, and [(file, reason)] of those."""
    files, failed = _listed(files), ()
    while True:
        try:
            return action(files), failed
        except BadSlices as error:
            failed += error.failed
            bad = {file for file, _ in failed}
            files = [file for file in files if file not in bad]
            if not files:
                raise


def _canonical(array, native: NativeGrid, path, notes, failed, span=None) -> Volume:
    """The volume of an array [native.shape]."""
    array = apply_orientation(array.reshape(native.shape3), native.orientation)
    _, affine = native.canonical()
    return Volume(np.ascontiguousarray(array), affine, path, native, notes, failed, span)


def _evened(array: np.ndarray, native: NativeGrid) -> np.ndarray:
    """An array [native.shape] of uneven slices, linearly interpolated to `native.even()`."""
    count = native.even().shape[2]
    places = np.linspace(0, native.offsets[-1], count)
    upper = np.searchsorted(native.offsets, places, side="left").clip(1, len(native.offsets) - 1)
    low, high = native.offsets[upper - 1], native.offsets[upper]
    weight = ((places - low) / (high - low)).astype(np.float32)
    return array[..., upper - 1] * (1 - weight) + array[..., upper] * weight


def check_affine(path: Path, affine: np.ndarray) -> None:
    """InputError where an affine [4, 4] places no voxels."""
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: the affine holds NaN or infinity; repair the header")
    sizes = spacing(affine)
    # The determinant of the unit axes is the volume they span: at zero they lie in one plane.
    if not sizes.all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-4:
        raise InputError(f"{path}: the affine is singular; repair the header")


def check_is_file(path: Path) -> None:
    """InputError where there is no file with something in it."""
    # Unlike Path.exists, os.path.exists takes names that are too long, and forbidden folders.
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file or folder")
    if os.path.isdir(path):
        raise InputError(f"{path}: a folder, where a volume is expected")
    with open_file(path) as file:
        if not file.read(1):
            raise InputError(f"{path}: the file is empty")


def open_file(path: Path):
    """The file, opened to read its bytes; InputError where it cannot be."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Why an operation failed, in one line without the file's name."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space left on the device"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def write(path, array: np.ndarray, like: Volume, dtype, overwrite: bool = False) -> None:
    """Writes an array [X, Y, Z] on `like`'s RAS grid to one file on the grid of `like`'s file.

    The name says whether it is NIfTI, .mha or .nrrd. Axis order, flips, shape, affine and form
    codes are the source's; nothing else of its header is kept. Unevenly spaced slices, which no
    such file can say, are interpolated to even ones. Integer types are rounded and clipped to their
    range. The file appears whole under its name or not at all.
    """
    from contourdiff_jax.formats import itk, nifti

    if array.shape != like.array.shape:
        raise ValueError(f"array of shape {array.shape} for a volume of shape {like.array.shape}")
    array, native = like.to_native(array), like.native
    if native.offsets is not None:
        array, native = _evened(array, native), native.even()
    module = itk if suffix_of(path) in ITK else nifti
    module.write(Path(path), array, native, dtype, overwrite)


def save(path, array: np.ndarray, affine: np.ndarray, dtype, overwrite: bool = False) -> None:
    """Writes an array [X, Y, Z] with its affine [4, 4] (mm) as a new NIfTI file."""
    from contourdiff_jax.formats import nifti

    affine = np.asarray(affine, np.float64)
    check_affine(Path(path), affine)
    nifti.write(Path(path), array, NativeGrid(array.shape, affine), dtype, overwrite)


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in the type it is stored in: integers rounded and clipped, never wrapped."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array.astype(np.float64)), limits.min, limits.max)
    return array.astype(dtype)
