# SPDX-License-Identifier: Apache-2.0
"""Volumes: NIfTI files read into one orientation and written back on their own grid.

Arrays are [X, Y, Z] in closest-canonical RAS: +x towards the patient's right, +y anterior, +z
superior. An affine [4, 4] takes voxel indices to millimetres. What the file itself looked like
(axis order, flips, shape, header geometry) is remembered in `NativeGrid`, so that a result goes
back exactly where its source came from.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
import uuid
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from contourdiff_jax.errors import InputError

SUFFIXES = (".nii.gz", ".nii")
RAS = np.array([[0, 1], [1, 1], [2, 1]])

# Every header field that says where the voxels lie, and none that could name a patient.
GEOMETRY_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}

# Words that tell what a file shows of a subject, not which subject it shows.
MODALITY = re.compile(
    r"(_(ct|mr|mri|t1|t2|t1w|t2w|flair|pd|labels?|seg|mask|0000))+$", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class NativeGrid:
    """The grid of a file as it lies on disk."""

    shape: tuple[int, ...]  # with the trailing axes of length 1 that the file has
    affine: np.ndarray  # [4, 4] float64, file indices -> mm
    header: nib.Nifti1Header  # geometry only: forms, codes, voxel sizes, units

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


@dataclasses.dataclass(frozen=True)
class Volume:
    """One image volume in closest-canonical RAS."""

    array: np.ndarray  # [X, Y, Z] float32
    affine: np.ndarray  # [4, 4] float64, indices of `array` -> mm
    path: Path  # the file it was read from
    native: NativeGrid


def spacing(affine: np.ndarray) -> np.ndarray:
    """[3] voxel sizes in mm along the array's own axes."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def stem(path: str | Path) -> str:
    """The file's name without .nii or .nii.gz."""
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def subject_of(path: str | Path) -> str:
    """Whose volume it is: the stem without trailing modality words (head01_ct.nii.gz -> head01)."""
    return MODALITY.sub("", stem(path))


def subject_digest(subject: str) -> str:
    """SHA-256 of a subject's name: enough to recognise the subject, not to name it."""
    return hashlib.sha256(subject.encode()).hexdigest()


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with _open(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(path: str | Path) -> list[Path]:
    """The file itself, or every volume directly inside the folder, sorted by name.

    Raises InputError where there is none.
    """
    path = Path(path)
    if not os.path.isdir(path):
        _check_is_volume(path)
        return [path]
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise InputError(f"{path}: cannot be listed: {reason(error)}") from error
    found = [entry for entry in entries if _is_volume_name(entry.name) and entry.is_file()]
    if not found:
        raise InputError(f"{path}: no .nii or .nii.gz file in this folder")
    return found


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def read(path: str | Path, *, labels: bool = False) -> Volume:
    """Reads a volume into closest-canonical RAS, float32.

    Args:
      path: a .nii or .nii.gz file with one volume; trailing axes of length 1 are dropped, a single
        2-D slice is [X, Y, 1].
      labels: the file is a label map or mask: it may be constant, but must hold whole numbers.

    Raises InputError, naming the file, for anything that cannot be used as an image.
    """
    path = Path(path)
    image, native = _load(path)
    array = _quietly(path, lambda: image.get_fdata(dtype=np.float32, caching="unchanged"))
    array = array.reshape(native.shape3)
    if not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise InputError(f"{path}: {count} voxels are NaN or infinite; replace them first")
    if labels and (array.min() < 0 or array.max() > 65535 or (array != np.rint(array)).any()):
        raise InputError(f"{path}: a label map must hold whole numbers from 0 to 65535")
    if not labels and array.min() == array.max():
        raise InputError(f"{path}: constant volume, every voxel is {array.flat[0]:g}")
    array = np.ascontiguousarray(apply_orientation(array, native.orientation))
    _, affine = native.canonical()
    return Volume(array, affine, path, native)


def geometry(path: str | Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine [4, 4] of a file in closest-canonical RAS, from its header alone."""
    _, native = _load(Path(path))
    return native.canonical()


def _load(path: Path) -> tuple[nib.Nifti1Image, NativeGrid]:
    """Opens the file and checks all that its header can tell."""
    _check_is_volume(path)
    with _open(path) as file:
        if not file.read(1):
            raise InputError(f"{path}: the file is empty")
    image = _quietly(path, lambda: nib.load(path, mmap=False))
    if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 is a subclass; Analyze and others are not
        raise InputError(f"{path}: not a NIfTI file")
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iuf":
        raise InputError(
            f"{path}: voxels of type {dtype} (colour or complex); give one number a voxel"
        )
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 2 or 0 in shape:
        raise InputError(f"{path}: shape {shape} holds no image")
    if any(n > 1 for n in shape[3:]):
        raise InputError(
            f"{path}: {len(shape)} axes {shape}; give one 3-D volume (split the series first)"
        )
    affine = np.array(image.affine, np.float64)
    affine[:3] *= MILLIMETRES.get(_quietly(path, image.header.get_xyzt_units)[0], 1.0)
    _check_affine(path, affine)
    header = type(image.header)()
    header.set_data_shape(shape)
    for field in GEOMETRY_FIELDS:
        header[field] = image.header[field]
    return image, NativeGrid(shape, affine, header)


def _quietly(path: Path, action):
    """What `action` returns; nibabel's warnings and log are silenced, its errors told in one line.

    Its own texts are left out: they name the file in ways of their own, or only an internal state.
    """
    try:
        with warnings.catch_warnings(), LoggingOutputSuppressor(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return action()
    except MemoryError as error:
        raise InputError(f"{path}: not enough memory for the volume its header claims") from error
    except (EOFError, OSError) as error:
        raise InputError(f"{path}: the file is truncated or damaged; copy it again") from error
    except Exception as error:  # a damaged header can make a parser fail in any way
        raise InputError(f"{path}: not a NIfTI file, or damaged; convert it again") from error


def _check_affine(path: Path, affine: np.ndarray) -> None:
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: the affine holds NaN or infinity; repair the header")
    sizes = spacing(affine)
    # The determinant of the unit axes is the volume they span: at zero they lie in one plane.
    if not sizes.all() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-4:
        raise InputError(f"{path}: the affine is singular; repair the header")


def _is_volume_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _check_is_volume(path: Path) -> None:
    # Unlike Path.exists, os.path.exists takes names that are too long, and forbidden folders.
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file or folder")
    if os.path.isdir(path):
        raise InputError(f"{path}: a folder, where a volume is expected")
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: unsupported file type; give .nii or .nii.gz")


def _open(path: Path):
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
    """Writes an array [X, Y, Z] on `like`'s RAS grid as NIfTI on the grid of `like`'s file.

    Axis order, flips, shape, affine and form codes are the file's; nothing else of its header is
    kept. Integer types are rounded and clipped to their range. The file appears whole under its
    name or not at all.
    """
    if array.shape != like.array.shape:
        raise ValueError(f"array of shape {array.shape} for a volume of shape {like.array.shape}")
    native = like.native
    array = apply_orientation(array, ornt_transform(RAS, native.orientation))
    _write(Path(path), array.reshape(native.shape), native.header, dtype, overwrite)


def save(path, array: np.ndarray, affine: np.ndarray, dtype, overwrite: bool = False) -> None:
    """Writes an array [X, Y, Z] with its affine [4, 4] (mm) as a new NIfTI file."""
    path = Path(path)
    _check_affine(path, np.asarray(affine, np.float64))
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_sform(affine, code="scanner")
    try:
        header.set_qform(affine, code="scanner", strip_shears=False)
    except nib.spatialimages.HeaderDataError:  # a quaternion cannot say shear: the sform alone does
        header.set_zooms(spacing(affine))
        header["qform_code"] = 0
    header.set_xyzt_units("mm")
    _write(path, array, header, dtype, overwrite)


def _write(path: Path, array, header: nib.Nifti1Header, dtype, overwrite: bool) -> None:
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: unsupported file type; name it .nii or .nii.gz")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; pass --overwrite to replace it")
    header = header.copy()
    header.set_data_dtype(dtype)
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(_cast(array, np.dtype(dtype)), None, header)
    partial = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with LoggingOutputSuppressor():
            nib.save(image, partial)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in the type it is stored in: integers rounded and clipped, never wrapped."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array.astype(np.float64)), limits.min, limits.max)
    return array.astype(dtype)
