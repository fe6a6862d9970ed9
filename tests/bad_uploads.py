# SPDX-License-Identifier: Apache-2.0
"""Uploads that cannot be used: {name of the file: (its bytes, a word of the line that refuses)}."""

import gzip
import io
import zipfile
from pathlib import Path

import dicom_series
import nibabel
import numpy as np
from PIL import Image
from pydicom.uid import RTStructureSetStorage


def bad_uploads(place: Path) -> dict[str, tuple[bytes, str]]:
    """All of them; `place` is an empty folder to make them in."""
    nifti = _nifti(np.random.default_rng(0).normal(0, 100, (12, 12, 4)))
    huge = nibabel.Nifti1Header()
    huge.set_data_shape((30000, 30000, 30000))
    series = _series(place / "series")
    structures = dicom_series.header("RTSTRUCT", SOPClassUID=RTStructureSetStorage)
    dicom_series.save(structures, place / "rtstruct.dcm")
    others = _series(place / "others", PatientID="ID-0815", SeriesInstanceUID="1.2.3.9")
    mixed = [(f"a/{i}", data) for i, data in enumerate(series)]
    mixed += [(f"b/{i}", data) for i, data in enumerate(others)]
    locked = bytearray(_zip([("a.dcm", series[0])]))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(mark) + at] |= 1
    picture = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(picture, "png")
    return {
        "empty.nii.gz": (b"", "empty"),
        "truncated.nii.gz": (gzip.compress(nifti)[:-200], "truncated"),
        "header_alone.nii": (nifti[:352], "truncated"),
        "text.nii.gz": (b"this is no image", "damaged"),
        "text.zip": (b"this is no zip", "not a zip"),
        "text.dcm": (b"this is no image", "DICOM"),
        "notes.zip": (_zip([("notes.txt", b"hello")]), "no DICOM"),
        "nifti.zip": (_zip([("a.nii", nifti)]), "no DICOM"),
        "nested.zip": (_zip([("inner.zip", _zip([("a.dcm", series[0])]))]), "no DICOM"),
        "nothing.zip": (_zip([]), "no DICOM"),
        "slip.zip": (_zip([("../../slipped.dcm", series[0])]), "outside itself"),
        "absolute.zip": (_zip([("/tmp/slipped.dcm", series[0])]), "outside itself"),
        "bomb.zip": (_zip([("a.dcm", bytes(40 << 20))]), "too large"),
        "many.zip": (_zip([(f"{i}.dcm", b"") for i in range(10_001)]), "10001 files"),
        "locked.zip": (bytes(locked), "password"),
        "half.zip": (_zip([("a.dcm", series[0])])[:300], "not a zip"),
        "rtstruct.zip": (_zip([("a.dcm", (place / "rtstruct.dcm").read_bytes())]), "no images"),
        "mixed.zip": (_zip(mixed), "images"),
        "series.nii": (_nifti(np.arange(576.0).reshape(6, 6, 4, 4)), "(6, 6, 4, 4)"),
        "nan.nii": (_nifti(np.full((6, 6, 4), np.nan)), "NaN"),
        "constant.nii": (_nifti(np.ones((6, 6, 4))), "constant"),
        "huge.nii": (huge.binaryblock + bytes(4), "truncated"),
        "picture.nii": (picture.getvalue(), "NIfTI"),
        "picture.png": (picture.getvalue()[:-30], "picture.png"),
        "setup.exe": (b"MZ" + bytes(100), "unsupported"),
        "pickled.npy": (_pickled(), "pickled.npy"),
        "large.nii": (_nifti(np.ones((256, 256, 80))), "MB"),
    }


def _nifti(array: np.ndarray) -> bytes:
    return nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)).to_bytes()


def _series(folder: Path, **elements) -> list[bytes]:
    array = np.random.default_rng(1).normal(0, 300, (8, 8, 6)).astype(np.int16)
    return [path.read_bytes() for path in dicom_series.write_series(folder, array, **elements)]


def _pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{}], object), allow_pickle=True)
    return stream.getvalue()


def _zip(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()
