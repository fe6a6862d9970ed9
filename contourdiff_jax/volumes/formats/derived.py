# SPDX-License-Identifier: Apache-2.0
"""Derived DICOM series: volumes written as CT or MR images where their source lies.

One file a slice, Explicit VR Little Endian, with the elements that the CT and MR Image objects
require (PS3.3 A.3 and A.4) and no others: identifiers are new, and nothing of a source's header is
carried over. The images say that they are derived, and that they are synthetic.
"""

import dataclasses
import hashlib
import os
import re
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames, geometry, volume
from contourdiff_jax.volumes.formats.dicom import LPS
from contourdiff_jax.volumes.geometry import NativeGrid
from contourdiff_jax.volumes.volume import Volume

STORAGE = {"ct": CTImageStorage, "mr": MRImageStorage}
# Required by the standard, but they may be empty (type 2): nothing true can be said.
EMPTY = (
    *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "PatientPosition", "PositionReferenceIndicator", "Manufacturer"),
)
EMPTY_OF = {
    "ct": ("KVP", "AcquisitionNumber"),
    "mr": ("ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"),
}
LONGEST = {"LO": 64, "ST": 1024}  # characters of a value
SEPARATORS = re.compile(r"[\\^=\x00-\x1f\x7f]")  # what parts names and values
FULL = 65535  # the highest number in 16 bits
RIGHT_ANGLE = 1e-3  # cosine between rows and columns that rounded headers make


def write(
    folder: str | Path,
    array: np.ndarray,
    like: Volume,
    modality: str,
    subject: str,
    notice: str,
    software: str,
    window: tuple[float, float],
) -> None:
    """Writes an array [X, Y, Z] on `like`'s RAS grid as a DICOM series on the grid of its file.

    The slices are those of the file's third axis, each at its true position, also where gaps are
    uneven or the gantry was tilted. CT is stored as int16 HU, other than whole numbers rounded; MR
    as uint16 with one scale for the volume, which keeps 1/65535 of its range. The same array gives
    the same bytes, identifiers included. The folder appears whole under its name or not at all.

    Args:
      folder: where 0001.dcm, 0002.dcm, ... go, in the order of their positions.
      array: [X, Y, Z] in HU, or in units of MR.
      like: the volume that was translated.
      modality: 'ct' or 'mr'.
      subject: what the patient is called.
      notice: what the images say of themselves.
      software: that made them.
      window: the lowest and highest value to show.

    Raises InputError where the folder cannot be written or holds something, or rows and columns are
    not at right angles, which DICOM cannot say.
    """
    folder, array = Path(folder), np.asarray(array)
    if array.shape != like.array.shape:
        raise ValueError(f"array of shape {array.shape} for a volume of shape {like.array.shape}")
    volume.check_finite(folder, array)
    planes = _planes(folder, like.native)
    stored = like.to_native(array).reshape(like.native.shape3)
    stored, slope, intercept = _stored(stored, modality)
    common = _common(modality, subject, notice, software)
    _describe_pixels(common, stored, slope, intercept, window)
    _describe_planes(common, planes)
    identity = _identify(common, planes, stored)

    with disk.staged(folder) as partial:
        digits = max(4, len(str(len(planes.origins))))
        for number, index in enumerate(np.argsort(planes.positions), start=1):
            common.InstanceNumber = number
            common.SOPInstanceUID = _uid(identity, str(number))
            common.file_meta.MediaStorageSOPInstanceUID = common.SOPInstanceUID
            common.ImagePositionPatient = _decimals(planes.origins[index])
            common.SliceLocation = _decimals(planes.positions[[index]])[0]
            common.PixelData = np.ascontiguousarray(stored[:, :, index].T).tobytes()
            common.save_as(partial / f"{number:0{digits}}.dcm", enforce_file_format=True)
        os.rename(partial, folder.resolve())  # an error where anything is


@dataclasses.dataclass(frozen=True)
class _Planes:
    """Where slices lie, in DICOM's coordinates [mm].

    Attributes:
      axes: [2, 3] unit vectors along rows and along columns.
      sizes: [2] of pixels along them.
      origins: [n, 3] of the first pixel of every slice.
      gap: the usual one between slices, or the thickness of a single one.
    """

    axes: np.ndarray
    sizes: np.ndarray
    origins: np.ndarray
    gap: float

    @property
    def positions(self) -> np.ndarray:
        """[n] mm along the slices' normal."""
        return self.origins @ np.cross(*self.axes)


def _planes(folder: Path, native: NativeGrid) -> _Planes:
    """The slices of a file's grid."""
    affine = LPS @ native.affine
    sizes = geometry.spacing(affine)[:2]
    rows, columns = (affine[:3, :2] / sizes).T
    if abs(rows @ columns) > RIGHT_ANGLE:
        raise InputError(
            f"{folder}: rows and columns are not at right angles, which DICOM cannot say; "
            "write NIfTI"
        )
    columns = columns - (rows @ columns) * rows
    axes = np.stack([rows, columns / np.linalg.norm(columns)])
    step = affine[:3, 2]
    offsets = np.arange(native.shape3[2]) if native.offsets is None else native.offsets
    gaps = np.diff(offsets) if len(offsets) > 1 else [1.0]
    gap = np.median(gaps) * abs(step @ np.cross(*axes))
    return _Planes(axes, sizes, affine[:3, 3] + offsets[:, None] * step, float(gap))


def _stored(array: np.ndarray, modality: str) -> tuple[np.ndarray, float, float]:
    """The array in 16 bits, and the slope and intercept that lead back to its units."""
    if modality == "ct":
        return volume.cast(array, np.dtype("<i2")), 1.0, 0.0
    # Whole numbers stay as they are. A scale is rounded as the header holds it, before it is used.
    low, high = min(float(array.min()), 0.0), float(array.max())
    whole = high - low <= FULL and (array == np.rint(array)).all()
    slope, intercept = (1.0 if whole else _decimal((high - low) / FULL)), _decimal(low)
    numbers = (array.astype(np.float64) - intercept) / slope
    return volume.cast(numbers, np.dtype("<u2")), slope, intercept


def _common(modality: str, subject: str, notice: str, software: str) -> Dataset:
    """What all slices say about patient, study, series and how they were made."""
    common = Dataset()
    common.file_meta = FileMetaDataset()
    common.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    common.file_meta.MediaStorageSOPClassUID = STORAGE[modality]
    common.SOPClassUID = STORAGE[modality]
    common.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
    for keyword in (*EMPTY, *EMPTY_OF[modality]):
        setattr(common, keyword, None)
    common.PatientName = common.PatientID = _name(subject)
    common.Modality = modality.upper()
    common.SeriesNumber = 1
    common.SeriesDescription = f"Synthetic {modality.upper()}"
    common.SoftwareVersions = _text(software, "LO")
    common.DerivationDescription = common.ImageComments = _text(notice, "ST")
    common.SyntheticData = "YES"
    common.BurnedInAnnotation = "NO"
    # A CT that is no localizer is AXIAL whichever way it is cut (PS3.3 C.8.2.1.1.1).
    common.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if modality == "ct" else "OTHER"]
    if modality == "mr":
        common.ScanningSequence = "RM"  # research mode: none of those that scanners have
        common.SequenceVariant = "NONE"
    return common


def _describe_pixels(common: Dataset, stored, slope, intercept, window) -> None:
    common.SamplesPerPixel = 1
    common.PhotometricInterpretation = "MONOCHROME2"
    common.Columns, common.Rows = stored.shape[:2]
    common.BitsAllocated = common.BitsStored = 16
    common.HighBit = 15
    common.PixelRepresentation = int(stored.dtype.kind == "i")
    common.RescaleSlope, common.RescaleIntercept = _decimals([slope, intercept])
    common.RescaleType = "HU" if common.Modality == "CT" else "US"  # unspecified
    # From low, shown black, to high, shown white (PS3.3 C.11.2.1.2.1).
    low, high = window
    common.WindowCenter, common.WindowWidth = _decimals([(low + high + 1) / 2, high - low + 1])


def _describe_planes(common: Dataset, planes: _Planes) -> None:
    common.ImageOrientationPatient = _decimals(planes.axes.ravel())
    common.PixelSpacing = _decimals(planes.sizes[::-1])
    (common.SliceThickness,) = _decimals([planes.gap])
    gaps = np.abs(np.diff(planes.positions))
    if np.abs(gaps - planes.gap).max(initial=0) <= geometry.EVEN * planes.gap:
        common.SpacingBetweenSlices = common.SliceThickness


def _identify(common: Dataset, planes: _Planes, stored: np.ndarray) -> str:
    """Sets the identifiers of study, series and frame of reference; returns the seed of slices'.

    They are made of all that is written: the same series has the same, others have others.
    """
    text = [f"{element.keyword} {element.value}" for element in common]
    digest = hashlib.sha256("\n".join(text).encode())
    for array in (planes.origins, stored):
        digest.update(np.ascontiguousarray(array))
    identity = digest.hexdigest()
    common.StudyInstanceUID = _uid(identity, "study")
    common.SeriesInstanceUID = _uid(identity, "series")
    common.FrameOfReferenceUID = _uid(identity, "frame of reference")
    return identity


def _name(subject: str) -> str:
    """A subject's name as DICOM can hold it; one cut short stays its own by a digest."""
    name = SEPARATORS.sub("_", subject.encode("utf-8", "replace").decode()).strip() or "unnamed"
    if len(name) <= LONGEST["LO"]:
        return name
    return f"{name[: LONGEST['LO'] - 9]}-{filenames.subject_digest(name)[:8]}"


def _text(text: str, kind: str) -> str:
    return SEPARATORS.sub(" ", text).strip()[: LONGEST[kind]]


def _uid(*sources: str) -> str:
    """An identifier made of what it identifies."""
    return generate_uid(entropy_srcs=list(sources))


def _decimals(numbers) -> list[str]:
    """Numbers in the 16 characters that DICOM has for one, without a negative zero."""
    return [format_number_as_ds(float(number) + 0.0) for number in numbers]


def _decimal(number: float) -> float:
    """A number rounded as the header will hold it."""
    return float(_decimals([number])[0])
