# SPDX-License-Identifier: Apache-2.0
"""NIfTI: .nii and .nii.gz, versions 1 and 2, one volume a file."""

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import imageglobals

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames, geometry, volume
from contourdiff_jax.volumes.geometry import NativeGrid
from contourdiff_jax.volumes.volume import Image

# The header fields that say where the voxels lie, by the code that says that they do. Others, and
# these under a code of 0, may say anything of a patient.
FORMS = {
    "qform_code": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    "sform_code": ("srow_x", "srow_y", "srow_z"),
}
SPATIAL_UNITS = 0x07  # the bits of xyzt_units that say what lengths are in
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
DEFLATE = 1032  # bytes that one byte of gzip can become at most

imageglobals.logger.disabled = True  # it reports oddities of headers in many lines


def opened(path: Path) -> Image:
    """Opens the file and checks all that its header can tell."""
    image = _quietly(path, lambda: nib.load(path, mmap=False))
    if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 is a subclass; Analyze and others are not
        raise InputError(f"{path}: not a NIfTI file")
    # Before the memory is asked for that a damaged header claims.
    possible = path.stat().st_size * (DEFLATE if path.name.lower().endswith(".gz") else 1)
    if np.prod(image.shape, dtype=float) * image.get_data_dtype().itemsize > possible:
        raise InputError(f"{path}: the file is truncated or damaged; copy it again")
    return of(image, path)


def of(image: nib.Nifti1Image, path: Path) -> Image:
    """What the header of an image tells, checked; `path` is what messages call it."""
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
    geometry.check_affine(path, affine)
    header = type(image.header)()
    header.set_data_shape(shape)
    for code, fields in FORMS.items():
        for field in (code, *fields) if image.header[code] > 0 else ():
            header[field] = image.header[field]
    # Of axes that are not kept the fourth is time, and others may be anything.
    header["pixdim"][:4] = image.header["pixdim"][:4]
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    header["xyzt_units"] = image.header["xyzt_units"] & SPATIAL_UNITS

    def voxels():
        return _quietly(path, lambda: image.get_fdata(dtype=np.float32, caching="unchanged"))

    return Image(NativeGrid(shape, affine, header), voxels, dtype, "NIfTI")


def _quietly(path: Path, action):
    """What `action` returns; nibabel's warnings and log are silenced, its errors become one line.

    Its own texts are left out: they name the file in other ways, or only an internal state.
    """
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return action()
    except MemoryError as error:
        raise InputError(f"{path}: not enough memory for the volume its header claims") from error
    except (EOFError, OSError) as error:
        raise InputError(f"{path}: the file is truncated or damaged; copy it again") from error
    except Exception as error:  # a damaged header can make a parser fail in any way
        raise InputError(f"{path}: not a NIfTI file, or damaged; convert it again") from error


def write(
    path: Path, array: np.ndarray, native: NativeGrid, dtype, overwrite: bool, notice: str = ""
) -> None:
    """Writes an array [native.shape]; the file appears whole under its name or not at all.

    Args:
      notice: what the header says of the image, 80 letters at most.
    """
    if not path.name.lower().endswith(filenames.NIFTI):
        raise InputError(f"{path}: unsupported file type; name it .nii or .nii.gz")
    disk.check_is_new(path, overwrite)
    with disk.file(path) as partial:
        nib.save(_made(array, native, dtype, notice), partial)


def image(array: np.ndarray, native: NativeGrid, dtype, notice: str = "") -> nib.Nifti1Image:
    """The image that is read of the file that `write` makes."""
    made = _made(array, native, dtype, notice)
    return type(made).from_bytes(made.to_bytes())


def _made(array: np.ndarray, native: NativeGrid, dtype, notice: str) -> nib.Nifti1Image:
    header = _header(native) if native.header is None else native.header.copy()
    header.set_data_dtype(dtype)
    header["descrip"] = notice
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(volume.cast(array, np.dtype(dtype)), None, header)


def _header(native: NativeGrid) -> nib.Nifti1Header:
    """A new header for a grid."""
    header = nib.Nifti1Header()
    header.set_data_shape(native.shape)
    header.set_sform(native.affine, code="scanner")
    try:
        header.set_qform(native.affine, code="scanner", strip_shears=False)
    except nib.spatialimages.HeaderDataError:  # a quaternion cannot say shear: the sform alone does
        header.set_zooms(geometry.spacing(native.affine)[: len(native.shape)])
        header["qform_code"] = 0
    header.set_xyzt_units("mm")
    return header
