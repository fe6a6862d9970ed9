# SPDX-License-Identifier: Apache-2.0
"""Derived series lie where their source does, hold its values, and say nothing of the patient."""

import errno
import os

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import ORIENTATIONS, SECRETS, enhanced, save, voxels, write_series
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes import volume as volumes_volume
from contourdiff_jax.volumes.formats import derived

LPS = np.array([-1, -1, 1])

# Elements of the CT and MR Image objects (PS3.3 A.3 and A.4, modules that are mandatory) that must
# have a value (type 1), and that must be there (type 2), with those of type 1C and 2C that apply.
FILLED = (
    *("SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet", "StudyInstanceUID", "Modality"),
    *("SeriesInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient", "PixelSpacing"),
    *("ImageOrientationPatient", "SamplesPerPixel", "PhotometricInterpretation", "Rows"),
    *("Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
    *("ImageType", "RescaleIntercept", "RescaleSlope", "RescaleType", "WindowCenter"),
    *("WindowWidth", "InstanceNumber", "SliceThickness", "PatientName", "PatientID"),
)
PRESENT = (
    *("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"),
    *("ReferringPhysicianName", "SeriesNumber", "PatientPosition", "PositionReferenceIndicator"),
    *("Manufacturer",),
)
FILLED_OF = {"ct": (), "mr": ("ScanningSequence", "SequenceVariant")}
PRESENT_OF = {
    "ct": ("KVP", "AcquisitionNumber"),
    "mr": ("ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"),
}


def write(folder, volume, array=None, modality="ct", **changes):
    """Writes a series; returns its files in order."""
    settings = {
        "subject": "head01",
        "notice": "Synthetic image, not for diagnosis.",
        "software": "contourdiff-jax 1.0",
        "window": (-100, 200),
    }
    array = volume.array if array is None else array
    derived.write(folder, array, volume, modality, **settings | changes)
    return sorted(folder.iterdir())


def nifti(path, array, affine):
    nib.save(nib.Nifti1Image(array, affine), path)
    return io.read(path)


def check_against_simpleitk(folder, volume, atol=0.0):
    """Every slice, read alone by SimpleITK, has the volume's values at the volume's places."""
    inverse = np.linalg.inv(volume.native.affine)
    stored = volume.to_native(volume.array).reshape(volume.native.shape3)
    offsets = volume.native.offsets
    offsets = np.arange(stored.shape[2]) if offsets is None else offsets
    seen = set()
    for path in folder.iterdir():
        image = sitk.ReadImage(str(path))
        pixels = sitk.GetArrayFromImage(image)[0]
        corners = [(0, 0, 0), (image.GetWidth() - 1, 0, 0), (0, image.GetHeight() - 1, 0)]
        places = [LPS * image.TransformIndexToPhysicalPoint(corner) for corner in corners]
        found = np.array([inverse[:3] @ (*place, 1) for place in places])
        k = int(np.argmin(np.abs(offsets - found[0, 2])))
        expected = np.array([(*corner[:2], offsets[k]) for corner in corners])
        np.testing.assert_allclose(found, expected, atol=1e-3)
        np.testing.assert_allclose(pixels.T, stored[:, :, k], atol=atol)
        seen.add(k)
    assert len(seen) == stored.shape[2]


# --------------------------------------------------------------------------------------------------
# Places and values
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [3.0, -3.0], ids=["along the normal", "against it"])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_dicom_goes_round(tmp_path, name, step):
    """DICOM in, DICOM out: SimpleITK and we read the same voxels at the same places again."""
    source = write_series(tmp_path / "in", axes=ORIENTATIONS[name], step=step)
    first = io.read(source)
    files = write(tmp_path / "out", first)
    check_against_simpleitk(tmp_path / "out", first)
    second = io.read(files)
    np.testing.assert_array_equal(second.array, first.array)
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-6)
    assert second.notes == ()

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "out")))
    whole = reader.Execute()
    image = sitk.GetArrayFromImage(whole)
    for index in np.ndindex(first.array.shape):
        place = LPS * (first.affine @ (*index, 1))[:3]
        found = np.array(whole.TransformPhysicalPointToContinuousIndex(place.tolist()))
        np.testing.assert_allclose(found, np.rint(found), atol=1e-3)
        assert first.array[index] == image[tuple(np.rint(found).astype(int)[::-1])]


def test_a_real_tilted_head_goes_round(tmp_path, data_root):
    """Every slice of the GE head CT keeps its own place: shear and uneven gaps are not lost."""
    first = io.read(sorted((data_root / "dicom" / "ge_head_ct").iterdir()))
    files = write(tmp_path / "out", first)
    check_against_simpleitk(tmp_path / "out", first)
    second = io.read(files)
    np.testing.assert_array_equal(second.array, first.array)
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-6)
    np.testing.assert_allclose(second.native.offsets, first.native.offsets, atol=1e-6)
    assert second.notes == first.notes[1:], "all but that padding is set to air"


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_nifti_of_any_orientation_becomes_dicom(tmp_path, order, flips):
    """Left-handed axes too: slices are counted along the normal of rows and columns."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(order)] * flips * (0.5, 1.25, 3.0)
    affine[:3, 3] = -40, 25, 300
    volume = nifti(tmp_path / "a.nii", voxels(), affine)
    files = write(tmp_path / "out", volume)
    check_against_simpleitk(tmp_path / "out", volume)
    again = io.read(files)
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-6)
    datasets = [pydicom.dcmread(path) for path in files]
    assert [dataset.InstanceNumber for dataset in datasets] == [1, 2, 3, 4]
    cosines = np.array(datasets[0].ImageOrientationPatient, float).reshape(2, 3)
    np.testing.assert_allclose(cosines @ cosines.T, np.eye(2), atol=1e-9)
    heights = [np.cross(*cosines) @ dataset.ImagePositionPatient for dataset in datasets]
    np.testing.assert_allclose(np.diff(heights), 3)


def test_a_single_slice_keeps_its_thickness(tmp_path):
    volume = nifti(tmp_path / "a.nii", voxels((6, 5, 1)), np.diag([1, 1, 4, 1]))
    again = io.read(write(tmp_path / "out", volume))
    np.testing.assert_allclose(again.affine, volume.affine)
    assert again.notes == ()


def test_enhanced_files_become_a_series(tmp_path):
    places = np.array([0, 3.0, 6, 13])[:, None] * (0, 0, 1)
    volume = io.read(save(enhanced(voxels(), places), tmp_path / "a.dcm"))
    again = io.read(write(tmp_path / "out", volume))
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.native.offsets, volume.native.offsets)


def test_hounsfield_units_are_rounded_and_clipped_and_not_wrapped(tmp_path):
    volume = nifti(tmp_path / "a.nii", voxels(), np.eye(4))
    array = volume.array.copy()
    array[0, 0] = -1000.4, 12.6, 40000, -40000
    again = io.read(write(tmp_path / "out", volume, array))
    np.testing.assert_array_equal(again.array[0, 0], [-1000, 13, 32767, -32768])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("least", [0.0, -1.0])
def test_mr_keeps_its_precision(tmp_path, rng, scale, least):
    """One scale for the volume, of 65,535 steps: a fraction of a thousandth everywhere."""
    volume = nifti(tmp_path / "a.nii", voxels(), np.eye(4))
    array = (scale * rng.uniform(least, 3, volume.array.shape)).astype(np.float32)
    files = write(tmp_path / "out", volume, array, "mr")
    assert len({pydicom.dcmread(path).RescaleSlope for path in files}) == 1
    again = io.read(files)
    half = 0.51 * (array.max() - min(array.min(), 0)) / 65535
    np.testing.assert_allclose(again.array, array, rtol=0, atol=half)
    expected = volumes_volume.Volume(array, volume.affine, volume.path, volume.native)
    check_against_simpleitk(tmp_path / "out", expected, atol=half)


@pytest.mark.parametrize("least", [0, -50])
def test_whole_numbers_of_mr_stay_what_they_are(tmp_path, least):
    volume = nifti(tmp_path / "a.nii", voxels() + np.int16(least), np.eye(4))
    again = io.read(write(tmp_path / "out", volume, modality="mr"))
    np.testing.assert_array_equal(again.array, volume.array)


def test_the_window_shows_its_ends_black_and_white(tmp_path):
    """By the function that viewers use (PS3.3 C.11.2.1.2.1)."""
    volume = nifti(tmp_path / "a.nii", voxels(), np.eye(4))
    for window in ((-100, 200), (0, 1), (-1000.0, 1000.0)):
        files = write(tmp_path / f"out{window}", volume, window=window)
        dataset = pydicom.dcmread(files[0])
        centre, width = dataset.WindowCenter, dataset.WindowWidth
        shown = [(x - (centre - 0.5)) / (width - 1) + 0.5 for x in window]
        np.testing.assert_allclose(shown, [0, 1], atol=1e-9)
        assert width >= 1


# --------------------------------------------------------------------------------------------------
# What the headers say
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_headers_are_what_the_standard_requires(tmp_path, modality):
    volume = io.read(write_series(tmp_path / "in"))
    files = write(tmp_path / "out", volume, modality=modality, window=(0, 100))
    instances = set()
    # Every value is checked against the rules of its kind.
    with pydicom.config.strict_reading():
        for path in files:
            dataset = pydicom.dcmread(path)
            for element in dataset:
                assert not element.tag.is_private
                assert element.VR not in ("DA", "TM", "DT") or not element.value
                if element.VR == "DS":
                    values = element.value if element.VM > 1 else [element.value]
                    assert all(len(str(value)) <= 16 for value in values)
            for keyword in (*FILLED, *FILLED_OF[modality]):
                assert dataset.get(keyword) not in (None, "", []), keyword
            for keyword in (*PRESENT, *PRESENT_OF[modality]):
                assert keyword in dataset, keyword
            instances.add(dataset.SOPInstanceUID)
            assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
            assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
            assert dataset.file_meta.MediaStorageSOPClassUID == dataset.SOPClassUID
            kind = {"ct": CTImageStorage, "mr": MRImageStorage}[modality]
            assert dataset.SOPClassUID == kind and dataset.Modality == modality.upper()
            assert dataset.ImageType[:2] == ["DERIVED", "SECONDARY"]
            assert dataset.SyntheticData == "YES"
            assert dataset.DerivationDescription == "Synthetic image, not for diagnosis."
            assert dataset.PatientName == dataset.PatientID == "head01"
    assert len(instances) == len(files)
    assert [path.name for path in files] == [f"{k:04}.dcm" for k in (1, 2, 3, 4)]


def test_nothing_of_the_source_is_carried_over(tmp_path):
    source = write_series(tmp_path / "in")
    for path in write(tmp_path / "out", io.read(source)):
        data = path.read_bytes()
        for secret in (*SECRETS.values(), "1.2.3."):
            assert secret.encode() not in data


def test_series_are_reproducible_and_their_own(tmp_path):
    """The same array gives the same bytes; another array, subject or kind other identifiers."""
    volume = nifti(tmp_path / "a.nii", voxels(), np.eye(4))
    other = volume.array.copy()
    other[2, 2, 2] += 1
    variants = {
        "a": {},
        "b": {},
        "array": {"array": other},
        "subject": {"subject": "head02"},
        "kind": {"modality": "mr"},
        "notice": {"notice": "Synthetic."},
    }
    written = {name: write(tmp_path / name, volume, **it) for name, it in variants.items()}
    for first, second in zip(written["a"], written["b"], strict=True):
        assert first.read_bytes() == second.read_bytes()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        uids = [pydicom.dcmread(files[0])[keyword].value for files in written.values()]
        assert len(set(uids)) == len(variants) - 1


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        ("Kopf 01 äöü", "Kopf 01 äöü"),
        ("a^b=c\\d\ne", "a_b_c_d_e"),
        ("", "unnamed"),
        ("x\udcff", "x?"),
    ],
)
def test_any_name_of_a_subject_can_be_told(tmp_path, subject, told):
    volume = nifti(tmp_path / "a.nii", voxels(), np.eye(4))
    dataset = pydicom.dcmread(write(tmp_path / "out", volume, subject=subject)[0])
    assert dataset.PatientName == told and dataset.PatientID == told


def test_long_names_stay_different(tmp_path):
    volume = nifti(tmp_path / "a.nii", voxels(), np.eye(4))
    told = set()
    for name in ("a", "b"):
        files = write(tmp_path / name, volume, subject=80 * "x" + name, notice=2000 * "n")
        with pydicom.config.strict_reading():
            dataset = pydicom.dcmread(files[0])
            assert len(dataset.PatientID) == 64 and len(dataset.DerivationDescription) == 1024
            told.add(dataset.PatientID)
    assert len(told) == 2


# --------------------------------------------------------------------------------------------------
# Writing goes wrong
# --------------------------------------------------------------------------------------------------


def test_sheared_pictures_are_refused(tmp_path):
    """DICOM has no way to say them; shear between slices, as of a tilted gantry, it has."""
    affine = np.eye(4)
    affine[0, 1] = 0.2
    with pytest.raises(InputError, match=r"out: rows and columns are not at right angles"):
        write(tmp_path / "out", nifti(tmp_path / "a.nii", voxels(), affine))
    affine = np.eye(4)
    affine[0, 2] = 0.2
    volume = nifti(tmp_path / "b.nii", voxels(), affine)
    again = io.read(write(tmp_path / "out", volume))
    np.testing.assert_allclose(again.affine, affine, atol=1e-6)


def test_nothing_is_overwritten_unasked(tmp_path):
    volume = nifti(tmp_path / "a.nii", voxels(), np.eye(4))
    files = write(tmp_path / "out", volume)
    before = [path.read_bytes() for path in files]
    with pytest.raises(InputError, match="out: cannot be written: Directory not empty"):
        write(tmp_path / "out", volume, volume.array + 1)
    with pytest.raises(InputError, match=r"a\.nii: cannot be written"):
        write(tmp_path / "a.nii", volume)
    assert [path.read_bytes() for path in files] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "out"]
    (tmp_path / "empty").mkdir()
    assert len(write(tmp_path / "empty", volume)) == 4


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    volume = nifti(tmp_path / "a.nii", voxels(), np.eye(4))
    files = write(tmp_path / "out", volume)
    before = [path.read_bytes() for path in files]

    def half(_, path, **__):
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pydicom.Dataset, "save_as", half)
    for name in ("out", "new"):
        with pytest.raises(InputError, match=rf"{name}: cannot be written: no space left"):
            write(tmp_path / name, volume)
    assert [path.read_bytes() for path in files] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "out"]


def test_a_folder_that_cannot_exist_is_refused(tmp_path):
    volume = nifti(tmp_path / "a.nii", voxels(), np.eye(4))
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "a.nii" / "out", volume)
    with pytest.raises(ValueError, match="shape"):
        write(tmp_path / "out", volume, np.zeros((2, 2, 2)))
