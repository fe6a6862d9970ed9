# SPDX-License-Identifier: Apache-2.0
"""Reading volumes of any format into one orientation, and writing them back on their own grid.

Arrays are [X, Y, Z] in closest-canonical RAS: +x towards the patient's right, +y anterior, +z
superior. What the file itself looked like (axis order, flips, shape, geometry) is remembered in
`NativeGrid`, so that a result goes back exactly where its source came from.

The formats have a module each: nifti.py, dicom.py, itk.py (.mha, .nrrd) and pictures.py (.png,
.tif, .npy and others). Each opens files as an `Image`, which knows what the headers say and reads
the voxels on demand.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames, geometry, intensity, volume
from contourdiff_jax.volumes.filenames import DICOM, ITK, NIFTI, PICTURES, SUFFIXES
from contourdiff_jax.volumes.formats import preamble
from contourdiff_jax.volumes.geometry import NativeGrid
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed, BadSlices, Image, Volume

# How NumPy refuses arrays that no memory could hold.
TOO_LARGE = ("array is too big", "Maximum allowed dimension exceeded")


def parts(path: Path) -> tuple[Path, ...]:
    """The files that one file of a volume needs: a header may have its voxels in another."""
    if filenames.suffix_of(path) not in ITK:
        return (path,)
    from contourdiff_jax.volumes.formats import itk

    return itk.parts(path)


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def opened(
    files: Path | Sequence[Path],
    assumed: Assumed = UNKNOWN,
    frames: Sequence[int] | None = None,
) -> Image:
    """Opens one file, or the slices of one volume in any order; reads headers only.

    Args:
      files: one file, or the slices of one volume.
      assumed: what pictures do not say themselves.
      frames: of a DICOM file that holds several volumes, which frames are this one's.

    Raises InputError, naming the file, for what is none, or holds no image, or has voxels of a size
    that no medical image has.
    """
    files = _listed(files)
    for path in files:
        disk.check_is_file(path)
    image = _opened(files, assumed, frames)
    path = files[0] if len(files) == 1 else files[0].parent
    picture = filenames.suffix_of(files[0]) in PICTURES
    remedy = "give another --pixel_spacing" if picture else "repair the header"
    geometry.check_sizes(path, image.native.affine, remedy)
    return image


def _opened(files: list[Path], assumed: Assumed, frames: Sequence[int] | None) -> Image:
    """`opened` by the format's own module."""
    # Formats are imported when they are needed: some take half a second.
    suffix = filenames.suffix_of(files[0])
    if suffix in NIFTI:
        from contourdiff_jax.volumes.formats import nifti

        return nifti.opened(files[0])
    if suffix in ITK:
        from contourdiff_jax.volumes.formats import itk

        return itk.opened(files[0])
    if suffix in PICTURES:
        from contourdiff_jax.volumes.formats import pictures

        return pictures.opened(files, assumed)
    if suffix in DICOM or preamble.is_dicom(files[0]):
        from contourdiff_jax.volumes.formats import dicom

        return dicom.opened(files, frames)
    raise InputError(
        f"{files[0]}: unsupported file type; known are DICOM and {', '.join(SUFFIXES)}"
    )


def read(
    files: Path | Sequence[Path],
    *,
    labels: bool = False,
    path: Path | None = None,
    assumed: Assumed = UNKNOWN,
    frames: Sequence[int] | None = None,
) -> Volume:
    """Reads a volume into closest-canonical RAS, float32.

    Args:
      files: one file, or the slices of one volume. Of NIfTI, trailing axes of length 1 are dropped;
        a single 2-D slice is [X, Y, 1]. Slices that cannot be read are left out.
      labels: the file is a label map or mask: it may be constant, but must hold whole numbers.
      path: what to call it; by default the first file.
      assumed, frames: as in `opened`.

    Raises InputError, naming the file, for anything that cannot be used as an image.
    """
    path = _listed(files)[0] if path is None else path
    with blamed(path):
        (image, array), failed = _without_bad_slices(
            files, lambda good: ((image := opened(good, assumed, frames)), image.voxels())
        )
        return usable(image, array, path, labels=labels, failed=failed)


def usable(
    image: Image,
    array: np.ndarray,
    path: Path,
    *,
    labels: bool = False,
    failed: Sequence[tuple[Path, str]] = (),
) -> Volume:
    """The volume of an opened image and its voxels.

    Args:
      path: what to call it.
      labels: whether it is a label map or mask.
      failed: slices that could not be read, and why.

    Raises InputError for voxels that cannot be an image's.
    """
    array = np.asarray(array, np.float32).reshape(image.native.shape)
    if not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise InputError(f"{path}: {count} voxels are NaN or infinite; replace them first")
    low, high = float(array.min()), float(array.max())
    if labels and (low < 0 or high > 65535 or (array != np.rint(array)).any()):
        raise InputError(f"{path}: a label map must hold whole numbers from 0 to 65535")
    if max(-low, high) > intensity.BRIGHTEST:
        raise InputError(f"{path}: values from {low:g} to {high:g}, as no image has; repair it")
    if not labels and low == high:
        raise InputError(f"{path}: constant volume, every voxel is {low:g}")
    if not labels and intensity.is_flat(low, high):
        raise InputError(f"{path}: constant volume but for rounding, all voxels are {low:g}")
    return volume.canonical(array, image.native, path, image.notes, failed, image.span)


@contextlib.contextmanager
def failures(path: Path, failed: list[tuple[Path, str]]) -> Iterator[None]:
    """Adds to `failed` what fails within because of a volume's file, so that others go on."""
    try:
        with blamed(path):
            yield
    except InputError as error:
        failed.append((path, str(error)))


@contextlib.contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Makes it the failure of a volume's file that it cannot be read or held in memory."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be used: {disk.reason(error)}") from error
    except (MemoryError, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith(TOO_LARGE):
            raise
        raise InputError(f"{path}: not enough memory for a volume of this size") from error


def shape_and_affine(
    files: Path | Sequence[Path],
    assumed: Assumed = UNKNOWN,
    frames: Sequence[int] | None = None,
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine [4, 4] of a volume in closest-canonical RAS, from its headers alone."""
    image, _ = _without_bad_slices(files, lambda good: opened(good, assumed, frames))
    return image.native.canonical()


def _listed(files: Path | Sequence[Path]) -> list[Path]:
    return [Path(files)] if isinstance(files, str | Path) else list(files)


def _without_bad_slices(files: Path | Sequence[Path], action: Callable):
    """The result of `action` on all files but the bad ones, and [(file, reason)] of these.

    Bad are those that it names by BadSlices.
    """
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


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def write(
    path, array: np.ndarray, like: Volume, dtype, overwrite: bool = False, notice: str = ""
) -> None:
    """Writes an array [X, Y, Z] on `like`'s RAS grid to one file on the grid of `like`'s file.

    The name says whether it is NIfTI, .mha or .nrrd. Axis order, flips, shape, affine and form
    codes are the source's; nothing else of its header is kept, and NIfTI's says the `notice`.
    Unevenly spaced slices, which no such file can say, are interpolated to even ones. Integer types
    are rounded and clipped to their range. The file appears whole under its name or not at all.
    """
    from contourdiff_jax.volumes.formats import itk, nifti

    if array.shape != like.array.shape:
        raise ValueError(f"array of shape {array.shape} for a volume of shape {like.array.shape}")
    volume.check_finite(path, array)
    array, native = like.to_native(array), like.native
    if native.offsets is not None:
        array, native = volume.evened(array, native), native.even()
    if filenames.suffix_of(path) in ITK:
        itk.write(Path(path), array, native, dtype, overwrite)
    else:
        nifti.write(Path(path), array, native, dtype, overwrite, notice)


def save(path, array: np.ndarray, affine: np.ndarray, dtype, overwrite: bool = False) -> None:
    """Writes an array [X, Y, Z] with its affine [4, 4] (mm) as a new NIfTI file."""
    from contourdiff_jax.volumes.formats import nifti

    affine = np.asarray(affine, np.float64)
    geometry.check_affine(Path(path), affine)
    volume.check_finite(path, array)
    nifti.write(Path(path), array, NativeGrid(array.shape, affine), dtype, overwrite)
