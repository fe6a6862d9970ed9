# SPDX-License-Identifier: Apache-2.0
"""DICOM files for tests, as scanners write them: with the name of a patient in every one."""

import warnings

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

# What must never leave a header.
SECRETS = {
    "PatientName": "Doe^Jane",
    "PatientID": "ID-4711",
    "PatientBirthDate": "19570131",
    "StudyDate": "20010203",
    "AccessionNumber": "ACC-0815",
    "StudyDescription": "Grandmother of the mayor",
    "SeriesDescription": "Second try",
    "InstitutionName": "St Elsewhere",
    "ReferringPhysicianName": "Craig^Mark",
}

# Directions [2, 3] along rows and columns of pictures as they are hung, in LPS.
AXIAL = ((1.0, 0, 0), (0, 1.0, 0))
CORONAL = ((1.0, 0, 0), (0, 0, -1.0))
SAGITTAL = ((0, 1.0, 0), (0, 0, -1.0))
ORIENTATIONS = {"axial": AXIAL, "coronal": CORONAL, "sagittal": SAGITTAL}


def rotation(degrees=25.0):
    """[3, 3] a rotation about an axis that is none of the coordinates'."""
    angle, axis = np.deg2rad(degrees), np.array([1, 2, 3]) / np.sqrt(14)
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


ORIENTATIONS["oblique"] = tuple(map(tuple, AXIAL @ rotation().T))


def voxels(shape=(6, 5, 4), dtype=np.int16):
    """[columns, rows, slices] with a value of its own for every voxel."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def header(kind="CT", series="1", instance=1, **elements):
    """A data set with everything but a picture and its place; elements of None are left out."""
    dataset = Dataset()
    for keyword, value in SECRETS.items():
        setattr(dataset, keyword, value)
    dataset.Modality = kind
    dataset.SOPClassUID = MRImageStorage if kind == "MR" else CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID = f"1.2.3.{series}"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = instance
    return update(dataset, elements)


def update(dataset, elements):
    for keyword, value in elements.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    return dataset


def picture(dataset, frames):
    """The data set with frames [n, rows, columns]."""
    if frames.dtype.kind == "f":
        keyword = "FloatPixelData" if frames.dtype.itemsize == 4 else "DoubleFloatPixelData"
    else:
        keyword = "PixelData"
        dataset.PixelRepresentation = int(frames.dtype.kind == "i")
        dataset.BitsStored = 8 * frames.dtype.itemsize
        dataset.HighBit = dataset.BitsStored - 1
    dataset.BitsAllocated = 8 * frames.dtype.itemsize
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = frames.shape[1:]
    if len(frames) > 1:
        dataset.NumberOfFrames = len(frames)
    data = frames.tobytes()
    setattr(dataset, keyword, data + b"\0" * (len(data) % 2))
    return dataset


def save(dataset, path, syntax=ExplicitVRLittleEndian):
    """Writes a data set, also one that breaks the rules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if syntax.is_encapsulated:
            save(dataset, path)
            dataset.compress(syntax, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
                if keyword in dataset:
                    numbers = np.frombuffer(
                        dataset[keyword].value, f"u{dataset.BitsAllocated // 8}"
                    )
                    setattr(dataset, keyword, numbers.byteswap().tobytes())
        dataset.file_meta = getattr(dataset, "file_meta", FileMetaDataset())
        dataset.file_meta.TransferSyntaxUID = syntax
        if "PixelData" in dataset:
            wide = dataset.BitsAllocated > 8 and not syntax.is_encapsulated
            dataset["PixelData"].VR = "OW" if wide else "OB"
        dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder,
    array=None,
    *,
    axes=AXIAL,
    spacing=(0.5, 0.75),
    step=3.0,
    places=None,
    names=None,
    numbers=None,
    syntax=ExplicitVRLittleEndian,
    **elements,
):
    """Writes slices [columns, rows, slices] as files; returns their paths in the slices' order.

    Args:
      folder: where they go.
      array: the voxels.
      axes: [2, 3] along rows and columns, LPS.
      spacing: mm between columns and between rows.
      step: [3] mm from a slice to the next, or how far that is along their normal.
      places: [n, 3] of the slices, where they are not one step apart.
      names: of the files.
      numbers: of the instances.
      syntax: the transfer syntax.
      elements: of every header.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _write_series(
            folder, array, axes, spacing, step, places, names, numbers, syntax, elements
        )


def _write_series(folder, array, axes, spacing, step, places, names, numbers, syntax, elements):
    array = voxels() if array is None else array
    count = array.shape[2]
    folder.mkdir(exist_ok=True)
    if places is None:
        step = step * np.cross(*axes) if np.isscalar(step) else np.asarray(step)
        places = np.array([-40.0, 25, 300]) + np.arange(count)[:, None] * step
    paths = []
    for k in range(count):
        dataset = header(instance=(numbers or range(1, count + 1))[k])
        dataset.ImagePositionPatient = [f"{number:.9f}" for number in places[k]]
        dataset.ImageOrientationPatient = [f"{number:.12f}" for number in np.ravel(axes)]
        dataset.PixelSpacing = [spacing[1], spacing[0]]
        picture(dataset, array[:, :, k].T[None])
        update(dataset, elements)
        paths.append(folder / (names[k] if names else f"{k:03}.dcm"))
        save(dataset, paths[-1], syntax)
    return paths


def enhanced(array, places, axes=AXIAL, spacing=(0.5, 0.75), slopes=None, **elements):
    """A data set of many frames [columns, rows, frames], each of which says where it lies."""
    dataset = picture(header(SOPClassUID=EnhancedCTImageStorage), array.transpose(2, 1, 0))
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [f"{number:.12f}" for number in np.ravel(axes)]
    measures.PixelSpacing = [spacing[1], spacing[0]]
    measures.SliceThickness = 3.0
    shared = Dataset()
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for k, place in enumerate(places):
        position, values, group = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [f"{number:.9f}" for number in place]
        values.RescaleSlope = 1 if slopes is None else slopes[k]
        values.RescaleIntercept = 0
        values.RescaleType = "HU"
        group.PlanePositionSequence = [position]
        group.PixelValueTransformationSequence = [values]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return update(dataset, elements)
