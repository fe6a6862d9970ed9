# SPDX-License-Identifier: Apache-2.0
"""DICOM comes in as SimpleITK reads it, at its true places; what is broken is told in one line."""

import locale
import resource
import struct
import time
import tracemalloc
import warnings
import zlib

import cv2
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import (
    AXIAL,
    CORONAL,
    ORIENTATIONS,
    SAGITTAL,
    SECRETS,
    enhanced,
    header,
    picture,
    rotation,
    save,
    update,
    voxels,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, get_encoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import geometry, io
from contourdiff_jax.volumes.formats import decoding, dicom, frames, preamble

LPS = np.array([-1, -1, 1])
NATIVE = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]


def read(paths):
    """The volume, and its voxels [columns, rows, slices] in the file's axes."""
    volume = io.read(paths)
    return volume, volume.to_native(volume.array)


def check_places(volume, reference):
    """Every voxel has the value that an image of SimpleITK has at its place."""
    image = sitk.GetArrayFromImage(reference)
    assert volume.array.size == image.size
    for index in np.ndindex(volume.array.shape):
        place = LPS * (volume.affine @ (*index, 1))[:3]
        found = np.array(reference.TransformPhysicalPointToContinuousIndex(place.tolist()))
        np.testing.assert_allclose(found, np.rint(found), atol=1e-3)
        assert volume.array[index] == image[tuple(np.rint(found).astype(int)[::-1])]


def series_of(folder):
    """The series of a folder as SimpleITK finds, sorts and reads it."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


# --------------------------------------------------------------------------------------------------
# Places
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [3.0, -3.0], ids=["along the normal", "against it"])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_reading_agrees_with_simpleitk(tmp_path, rng, name, step):
    """Whichever way slices lie and whatever their files are called and numbered."""
    paths = write_series(
        tmp_path,
        axes=ORIENTATIONS[name],
        step=step,
        names=["c.dcm", "a", "d.IMA", "b.dcm"],
        numbers=[7, 3, 11, 1],
        RescaleSlope=2,
        RescaleIntercept=-1024,
    )
    volume = io.read(list(rng.permutation(paths)))
    assert volume.notes == () and volume.native.offsets is None
    check_places(volume, series_of(tmp_path))
    shape, affine = io.shape_and_affine(paths)
    assert shape == volume.array.shape
    np.testing.assert_array_equal(affine, volume.affine)


def test_real_tilted_head_lies_where_simpleitk_says(data_root):
    """A GE head CT: gantry tilted by 18.5 degrees, slices 4 and then 7 mm apart, and once 1 mm."""
    paths = sorted((data_root / "dicom" / "ge_head_ct").iterdir())
    volume, array = read(paths[::-1])
    assert volume.notes[-2:] == (
        "gantry tilt of 18.5 degrees",
        "uneven slice gaps 1.1 to 7.0 mm",
    )
    order = np.argsort([pydicom.dcmread(path).ImagePositionPatient[2] for path in paths])
    for k, index in enumerate(order):
        image = sitk.ReadImage(str(paths[index]))
        values = sitk.GetArrayFromImage(image)[0]
        padded = np.where(values == -1500, -1000, values)  # beyond the round field of view
        np.testing.assert_array_equal(array[:, :, k].T, padded)
        for corner in ((0, 0), (511, 0), (511, 511)):
            place = volume.native.affine @ (*corner, volume.native.offsets[k], 1)
            truth = image.TransformIndexToPhysicalPoint((*corner, 0))
            np.testing.assert_allclose(LPS * place[:3], truth, atol=1e-4)


def test_tilt_is_shear(tmp_path):
    """The table moves along the body, not along the normal of tilted slices."""
    angle = np.deg2rad(18.5)
    axes = ((1, 0, 0), (0, np.cos(angle), -np.sin(angle)))
    volume = io.read(write_series(tmp_path, axes=axes, step=(0, 0, 4)))
    assert volume.notes == ("gantry tilt of 18.5 degrees",)
    np.testing.assert_allclose(volume.affine[:3, 2], (0, 0, 4), atol=1e-9)


def test_uneven_gaps_keep_their_places(tmp_path):
    heights = np.array([0, 4, 8, 15, 22.0])
    values = np.broadcast_to(heights, (3, 4, 5)).astype(np.int16)
    volume = io.read(write_series(tmp_path, values, places=heights[:, None] * (0, 0, 1)))
    assert volume.notes == ("uneven slice gaps 4.0 to 7.0 mm",)
    axis, offsets = volume.offsets
    assert axis == 2
    np.testing.assert_allclose(offsets * volume.affine[2, 2] + volume.affine[2, 3], heights)
    even = volume.even()
    z = even.affine[2, 2] * np.arange(even.array.shape[2]) + even.affine[2, 3]
    np.testing.assert_allclose(even.array[0, 0], z, atol=1e-5)


def test_gaps_that_drift_are_uneven(tmp_path):
    """No gap differs much from another, but the slices from even ones by more than a third."""
    heights = np.concatenate([np.arange(50), 50 + 1.015 * np.arange(50)])
    places = heights[:, None] * (0, 0, 1)
    volume = io.read(write_series(tmp_path, voxels((3, 4, 100)), places=places))
    assert volume.notes == ("uneven slice gaps 1.000 to 1.015 mm",)
    offsets = volume.native.offsets * volume.native.affine[2, 2]
    np.testing.assert_allclose(offsets, heights, atol=1e-9)


def write_rounded(folder, step, digits, count=40, axes=AXIAL, first=(-40.0, 25, 300), **elements):
    """A series whose header says places in this many digits behind the point."""
    places = np.array(first) + np.arange(count)[:, None] * step * np.cross(*axes)
    paths = write_series(folder, voxels((6, 5, count)), axes=axes, places=places)
    for path, place in zip(paths, places, strict=True):
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = [f"{number:.{digits}f}" for number in place]
        dataset.save_as(path)
    for path in paths if elements else ():
        update(dataset := pydicom.dcmread(path), elements).save_as(path)
    return paths, places


@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, ORIENTATIONS["oblique"]])
@pytest.mark.parametrize(
    ("step", "digits", "elements"),
    [
        (1.25, 1, {}),
        (1.25, 1, {"SpacingBetweenSlices": 1.25}),
        (1.25, 1, {"SliceThickness": 3}),
        (0.625, 2, {}),
        (0.7, 1, {}),
        (3.4, 0, {}),
        (1.5, 0, {"SpacingBetweenSlices": 1.5}),
        (-2.55, 1, {}),
    ],
)
def test_places_rounded_to_the_digits_written_are_even(tmp_path, axes, step, digits, elements):
    if digits == 0 and axes not in (AXIAL, SAGITTAL):
        pytest.skip("the slices would lie beside one another by more than a pixel")
    paths, places = write_rounded(tmp_path, step, digits, axes=axes, **elements)
    volume, array = read(paths)
    assert volume.notes == () and volume.native.offsets is None
    assert array.shape == (6, 5, 40) and volume.even() is volume
    np.testing.assert_array_equal(array, voxels((6, 5, 40))[:, :, :: np.sign(step).astype(int)])
    size = geometry.spacing(volume.native.affine)[2]
    np.testing.assert_allclose(size, abs(step), atol=10.0**-digits / 39)
    for k, place in enumerate(places[:: np.sign(step).astype(int)]):
        found = LPS * (volume.native.affine @ (0, 0, k, 1))[:3]
        np.testing.assert_allclose(found, place, atol=2 * 10.0**-digits)


def test_slices_missing_between_rounded_places_are_told_and_the_rest_is_even(tmp_path):
    paths, _ = write_rounded(tmp_path, 1.25, 1)
    volume = io.read([path for k, path in enumerate(paths) if k not in (7, 20, 21)])
    (note,) = volume.notes
    assert note.startswith("3 slices missing in 2 places")
    assert volume.even().array.shape[2] == 40


@pytest.mark.parametrize(
    "heights",
    [(0, 4, 8, 15, 22), (0, 3, 6, 10, 14), (0, 1, 2, 4, 5), (0, 5, 10, 15, 25, 35), (0, 3, 9, 12)],
)
def test_whole_numbers_are_not_taken_for_rounded_ones(tmp_path, heights):
    """Gaps that differ by more than rounding makes, or as missing slices make them, are kept."""
    paths = write_series(tmp_path, voxels((3, 4, len(heights))))
    for path, height in zip(paths, heights, strict=True):
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = ["0", "0", str(height)]
        dataset.save_as(path)
    volume = io.read(paths)
    assert len(volume.notes) == 1
    offsets = volume.native.offsets * volume.native.affine[2, 2]
    np.testing.assert_allclose(offsets, heights, atol=1e-9)


@pytest.mark.parametrize(
    ("left_out", "note"),
    [
        ((3,), "1 slice missing between z = 306.0 and 312.0 mm"),
        ((3, 4), "2 slices missing between z = 306.0 and 315.0 mm"),
        ((2, 5, 6), "3 slices missing in 2 places, the first between z = 303.0 and 309.0 mm"),
    ],
)
def test_missing_slices_are_told(tmp_path, left_out, note):
    paths = write_series(tmp_path, voxels((4, 3, 10)))
    volume, array = read([path for k, path in enumerate(paths) if k not in left_out])
    assert volume.notes == (note,)
    kept = np.delete(np.arange(10), left_out)
    np.testing.assert_array_equal(array, voxels((4, 3, 10))[:, :, kept])
    np.testing.assert_allclose(volume.native.offsets * volume.native.affine[2, 2], 3 * kept)


def test_duplicated_slices_are_left_out(tmp_path):
    """Copies of a file are one slice; of different slices in one place the first counts."""
    paths = write_series(tmp_path / "a")
    copies = write_series(tmp_path / "b", numbers=range(11, 15))
    other = write_series(tmp_path / "c", voxels() + 1, numbers=range(21, 25))
    volume, array = read([*other[:1], *copies, *paths])
    assert volume.notes == (
        "4 duplicated slices left out",
        "1 slice left out: others in the same place differ",
    )
    np.testing.assert_array_equal(array, voxels())


@pytest.mark.parametrize(
    ("elements", "thickness", "notes"),
    [
        ({"SpacingBetweenSlices": 2.5, "SliceThickness": 5}, 2.5, 0),
        ({"SliceThickness": 5}, 5, 0),
        ({"SpacingBetweenSlices": 0}, 1, 1),
        ({"SliceThickness": 650}, 1, 1),  # of an overview, as wide as the body
    ],
)
def test_a_single_slice_is_as_thick_as_its_header_says(tmp_path, elements, thickness, notes):
    volume = io.read(write_series(tmp_path, axes=SAGITTAL, **elements)[0])
    np.testing.assert_allclose(geometry.spacing(volume.affine), (thickness, 0.5, 0.75))
    assert len(volume.notes) == notes


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing", None])
def test_pictures_without_a_place_are_stacked_by_number(tmp_path, keyword):
    """Secondary captures and projections say at most how large their pixels are."""
    nowhere = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    if keyword is not None:
        nowhere[keyword] = [0.75, 0.5]
    paths = write_series(tmp_path, numbers=[3, 1, 4, 2], **nowhere)
    volume, array = read(paths)
    np.testing.assert_array_equal(array, voxels()[:, :, [1, 3, 0, 2]])
    sizes = (0.5, 0.75, 1) if keyword else (1, 1, 1)
    np.testing.assert_allclose(geometry.spacing(volume.affine), sizes)
    assert len(volume.notes) == (1 if keyword else 2)
    assert "in the order of their numbers" in volume.notes[-1]


# --------------------------------------------------------------------------------------------------
# Numbers
# --------------------------------------------------------------------------------------------------


def can_encode(syntax):
    try:
        return get_encoder(syntax).is_available
    except NotImplementedError:
        return False


@pytest.mark.parametrize(
    "syntax",
    [*NATIVE, RLELossless, JPEG2000Lossless, JPEGLSLossless],
    ids=lambda syntax: syntax.keyword,
)
@pytest.mark.parametrize("signed", [False, True])
def test_transfer_syntaxes(tmp_path, rng, syntax, signed):
    if syntax.is_encapsulated and not (can_encode(syntax) and get_decoder(syntax).is_available):
        pytest.skip(f"nothing here encodes and decodes {syntax.name}")
    array = rng.integers(-2000 if signed else 0, 3000, (40, 50, 3))
    array = array.astype(np.int16 if signed else np.uint16)
    paths = write_series(tmp_path, array, syntax=syntax, RescaleSlope=1, RescaleIntercept=-24)
    assert pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read(paths)[1], array - 24.0)


@pytest.fixture
def same_locale():
    """GDCM's encoders leave the whole process in the C locale."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_files_that_gdcm_compressed(tmp_path, rng, same_locale, compressor):
    """An encoder that shares nothing with the decoders here."""
    plain = write_series(tmp_path, rng.integers(-1000, 3000, (40, 50, 1)).astype(np.int16))[0]
    writer, path = sitk.ImageFileWriter(), tmp_path / "compressed.dcm"
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.ReadImage(str(plain)))
    syntax = pydicom.dcmread(path).file_meta.TransferSyntaxUID
    assert syntax == {"JPEG": JPEGLosslessSV1, "JPEG2000": JPEG2000Lossless}[compressor]
    if not get_decoder(syntax).is_available:
        pytest.skip(f"nothing here decodes {syntax.name}")
    np.testing.assert_array_equal(read(path)[1], read(plain)[1])
    check_places(io.read(path), sitk.ReadImage(str(path)))


def without_delimiter(path):
    """Cuts off the item that ends compressed pixels, which some archives leave out."""
    data = path.read_bytes()
    assert data.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
    path.write_bytes(data[:-8])
    return path


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda one: one.keyword)
def test_compressed_files_without_their_last_delimiter_are_read(tmp_path, rng, syntax):
    """As ITK, GDCM and pydicom read them; but not if a frame is cut short by a byte."""
    if not (can_encode(syntax) and get_decoder(syntax).is_available):
        pytest.skip(f"nothing here encodes and decodes {syntax.name}")
    array = rng.integers(0, 3000, (40, 50, 3)).astype(np.int16)
    for path in write_series(tmp_path / "a", array, syntax=syntax):
        check_places(io.read(without_delimiter(path)), sitk.ReadImage(str(path)))
    places = np.arange(3)[:, None] * (0, 0, 3.0)
    path = without_delimiter(save(enhanced(array, places), tmp_path / "b.dcm", syntax))
    np.testing.assert_array_equal(read(path)[1], array)
    for rest in (b"", b"\xfe\xff\xdd\xe0\0\0\0\0", b"\0\0", bytes(20)):
        whole = tmp_path / "c.dcm"
        whole.write_bytes(path.read_bytes() + rest)
        np.testing.assert_array_equal(read(whole)[1], array)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        io.read(path)


def test_a_deflated_file_without_its_last_byte_is_read_if_its_pixels_are_there(tmp_path, rng):
    array = rng.integers(0, 3000, (40, 50, 1)).astype(np.int16)
    [path] = write_series(tmp_path, array, syntax=DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    path.write_bytes(data.rstrip(b"\0")[:-1])  # of the marker that ends the stream
    np.testing.assert_array_equal(read(path)[1], array)
    path.write_bytes(data[:-40])
    with pytest.raises(InputError, match="truncated"):
        io.read(path)


def test_jpeg_of_8_bits(tmp_path):
    """Lossy, as ultrasound and photographs are: near enough, and by Pillow alone."""
    array = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint8)[:, :, None] * 2
    dataset = pydicom.dcmread(write_series(tmp_path, array)[0])
    _, jpeg = cv2.imencode(".jpg", array[:, :, 0].T, [cv2.IMWRITE_JPEG_QUALITY, 95])
    dataset.PixelData = encapsulate([jpeg.tobytes()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.save_as(tmp_path / "jpeg.dcm")
    assert np.abs(read(tmp_path / "jpeg.dcm")[1] - array).max() <= 3


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
@pytest.mark.parametrize("syntax", NATIVE[1:3], ids=["little", "big"])
def test_types_of_numbers(tmp_path, dtype, syntax):
    array = voxels((5, 3, 2), np.dtype(dtype)) * np.dtype(dtype).type(3)
    if array.dtype.kind != "u":
        array -= array.dtype.type(40)
    paths = write_series(tmp_path, array, syntax=syntax)
    assert io.opened(paths).dtype == array.dtype
    np.testing.assert_array_equal(read(paths)[1], array)


@pytest.mark.parametrize("signed", [0, 1])
def test_bits_that_are_not_stored_do_not_count(tmp_path, signed):
    """Old files keep overlays above the stored bits, and signs must be spread over them."""
    values = voxels() * 17 % 4096
    stored = (values | 0x5000).astype(np.uint16)
    elements = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": signed}
    expected = np.where(values >= 2048, values - 4096, values) if signed else values
    np.testing.assert_array_equal(read(write_series(tmp_path, stored, **elements))[1], expected)


def test_every_slice_has_its_own_scale(tmp_path):
    """As in PET: a slope for the series would be wrong in all slices but one."""
    paths = write_series(tmp_path)
    for k, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 * (k + 1), -k
        dataset.save_as(path)
    slopes, intercepts = 0.5 * np.arange(1, 5), -np.arange(4)
    np.testing.assert_allclose(read(paths)[1], voxels() * slopes + intercepts)
    check_places(io.read(paths[2]), sitk.ReadImage(str(paths[2])))


def test_lookup_tables_are_applied(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [120, 0, 16]
    table.LUTData = (np.arange(120, dtype="<u2") * 7 % 1000).tobytes()
    table.ModalityLUTType = "US"
    paths = write_series(tmp_path, voxels(dtype=np.uint16), ModalityLUTSequence=[table])
    np.testing.assert_array_equal(read(paths)[1], voxels() * 7 % 1000)


@pytest.mark.parametrize("syntax", NATIVE[:2], ids=["implicit", "explicit"])
@pytest.mark.parametrize("told", [-2000, 63536], ids=["signed", "as if unsigned"])
def test_padding_of_ct_becomes_air(tmp_path, syntax, told):
    """Beyond the round field of view scanners write any number far below air."""
    array = voxels()
    array[:2] = -2000
    elements = {"PixelPaddingValue": told} if told < 0 else {}
    paths = write_series(tmp_path, array, syntax=syntax, **elements)
    if told > 0:
        for path in paths:
            dataset = pydicom.dcmread(path)
            dataset.add_new("PixelPaddingValue", "US", told)
            dataset.save_as(path)
    volume, read_back = read(paths)
    assert volume.notes == ("padding outside the field of view is set to -1000",)
    np.testing.assert_array_equal(read_back, np.where(array == -2000, -1000, array))


def test_other_padding_is_kept(tmp_path):
    """What is called padding may be water by a wrong header; and MR has no air to set it to."""
    for name, elements in (
        ("water", {"PixelPaddingValue": 0}),
        ("mr", {"PixelPaddingValue": -2000, "Modality": "MR"}),
        ("not told", {}),
    ):
        array = voxels()
        array[:2] = -2000
        array[2] = 0
        volume, read_back = read(write_series(tmp_path / name, array, **elements))
        assert volume.notes == ()
        np.testing.assert_array_equal(read_back, array)


def test_monochrome1_is_kept_and_told(tmp_path):
    paths = write_series(tmp_path, PhotometricInterpretation="MONOCHROME1")
    volume, array = read(paths)
    assert [note.split(":")[0] for note in volume.notes] == ["MONOCHROME1"]
    np.testing.assert_array_equal(array, voxels())


# --------------------------------------------------------------------------------------------------
# Files of many frames
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=["plain", "rle"])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_enhanced_files(tmp_path, name, syntax):
    """Frames are sorted by the places that each of them says, with their own slopes."""
    axes, order = ORIENTATIONS[name], [2, 0, 3, 1]
    places = np.arange(4)[:, None] * 3.0 * np.cross(*axes) + (1, 2, 3)
    slopes = np.array([1.0, 2, 3, 4])
    dataset = enhanced(voxels()[:, :, order], places[order], axes, slopes=slopes[order])
    volume, array = read(save(dataset, tmp_path / "a.dcm", syntax))
    np.testing.assert_array_equal(array, voxels() * slopes)
    np.testing.assert_allclose(LPS * volume.native.affine[:3, 3], places[0])
    assert volume.notes == ()


def test_enhanced_files_agree_with_simpleitk(tmp_path):
    places = np.arange(4)[:, None] * (0, 0, 3.0) + (1, 2, 3)
    path = save(enhanced(voxels(), places), tmp_path / "a.dcm")
    check_places(io.read(path), sitk.ReadImage(str(path)))


def test_files_of_many_frames_with_one_place(tmp_path):
    dataset = picture(header(), voxels().transpose(2, 1, 0))
    dataset.ImagePositionPatient = [1, 2, 3]
    dataset.ImageOrientationPatient = [*CORONAL[0], *CORONAL[1]]
    dataset.PixelSpacing = [0.75, 0.5]
    dataset.SpacingBetweenSlices = 2
    volume, array = read(save(dataset, tmp_path / "a.dcm"))
    np.testing.assert_array_equal(array, voxels())
    np.testing.assert_allclose(volume.native.affine[:3, 2], 2 * LPS * np.cross(*CORONAL))
    assert volume.notes == ("the header places the first frame only: 2 mm to the next is assumed",)


def grouped_frames(names, order, dimensions=True):
    """A file of frames of several volumes, whose order in it means nothing; the volumes by name.

    Args:
      names: of the volumes: {name: functional groups, as {sequence: {keyword: value}}}.
      order: random, of the frames.
      dimensions: whether there are dimension indices.
    """
    volumes = {name: voxels() + 1000 * k for k, name in enumerate(names)}
    told = [(name, k) for name in names for k in range(4)]
    order.shuffle(told)
    frames = np.stack([volumes[name][:, :, k] for name, k in told], 2)
    places = np.array([(1, 2, 3 + 3.0 * k) for _, k in told])
    dataset = enhanced(frames, places, SOPClassUID=EnhancedMRImageStorage, Modality="MR")
    for group, (name, k) in zip(dataset.PerFrameFunctionalGroupsSequence, told, strict=True):
        content = Dataset()
        content.FrameReferenceDateTime = f"2020010100{order.integers(60):02}"
        if dimensions:
            content.DimensionIndexValues = [1, k + 1, list(names).index(name) + 1]
            content.InStackPositionNumber = k + 1
        group.FrameContentSequence = [content]
        for sequence, fields in names[name].items():
            item = Dataset()
            setattr(group, sequence, [update(item, fields)])
    return dataset, volumes


def echoes(times):
    return {time: {"MREchoSequence": {"EffectiveEchoTime": time}} for time in times}


DIFFERENT = {
    "echoes": echoes([9.5, 10.5, 90.0]),
    "kinds": {
        kind: {"MRImageFrameTypeSequence": {"ComplexImageComponent": kind}}
        for kind in ("MAGNITUDE", "PHASE")
    },
    "phases": {
        time: {"CardiacSynchronizationSequence": {"NominalCardiacTriggerDelayTime": time}}
        for time in (0.0, 50.0, 100.0, 1000.0)
    },
    "times": {
        time: {"TemporalPositionSequence": {"TemporalPositionTimeOffset": time}}
        for time in (0.0, 5.0)
    },
    "b-values": {b: {"MRDiffusionSequence": {"DiffusionBValue": b}} for b in (0.0, 500.0, 1000.0)},
    "kernels": {
        kernel: {"CTReconstructionSequence": {"ConvolutionKernel": kernel}}
        for kernel in ("B30", "B70")
    },
}


@pytest.mark.parametrize("dimensions", [True, False], ids=["indexed", "by groups alone"])
@pytest.mark.parametrize("syntax", NATIVE[:2], ids=["implicit", "explicit"])
@pytest.mark.parametrize("what", DIFFERENT)
def test_frames_of_several_volumes_are_parted(tmp_path, rng, what, syntax, dimensions):
    """By dimension indices or functional groups, whatever the order of the frames."""
    dataset, volumes = grouped_frames(DIFFERENT[what], rng, dimensions=dimensions)
    path = save(dataset, tmp_path / "a.dcm", syntax)
    series, failed = dicom.group([path])
    assert not failed and [one.files for one in series] == [(path,)] * len(volumes)
    for one, array in zip(series, volumes.values(), strict=True):
        volume = io.read(one.files, frames=one.frames)
        assert volume.notes == ()
        np.testing.assert_array_equal(volume.to_native(volume.array), array)
        shape, _ = io.shape_and_affine(one.files, frames=one.frames)
        assert shape == volume.array.shape
    with pytest.raises(InputError, match=f"{len(volumes)} volumes in one file"):
        io.read(path)


def test_echoes_of_several_times_in_one_file_are_parted_twice(tmp_path, rng):
    names = {
        (echo, kind): {
            "MREchoSequence": {"EffectiveEchoTime": echo},
            "MRImageFrameTypeSequence": {"ComplexImageComponent": kind},
        }
        for echo in (10.0, 90.0)
        for kind in ("MAGNITUDE", "PHASE")
    }
    dataset, volumes = grouped_frames(names, rng, dimensions=False)
    series, _ = dicom.group([save(dataset, tmp_path / "a.dcm")])
    arrays = [io.read(one.files, frames=one.frames) for one in series]
    for volume, array in zip(arrays, volumes.values(), strict=True):
        np.testing.assert_array_equal(volume.to_native(volume.array), array)


def test_stacks_of_several_directions_in_one_file_are_parted(tmp_path):
    """As of a localizer."""
    places = np.arange(4)[:, None] * (0, 0, 3.0)
    dataset, other = enhanced(voxels(), places), enhanced(voxels(), places, axes=CORONAL)
    for one in (dataset, other):
        shared = one.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        for group in one.PerFrameFunctionalGroupsSequence:
            group.PlaneOrientationSequence = shared
        del one.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for k, group in enumerate(other.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 3.0 * k, 0]
    dataset.PerFrameFunctionalGroupsSequence.extend(other.PerFrameFunctionalGroupsSequence)
    dataset.PixelData += other.PixelData
    dataset.NumberOfFrames = 8
    series, _ = dicom.group([save(dataset, tmp_path / "a.dcm")])
    assert [one.frames for one in series] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    for one in series:
        assert io.read(one.files, frames=one.frames).array.size == 120


def test_frames_in_one_place_that_nothing_tells_apart_are_refused(tmp_path):
    places = np.array([0, 1, 2, 0])[:, None] * (0, 0, 3.0)
    path = save(enhanced(voxels(), places), tmp_path / "a.dcm")
    with pytest.raises(InputError, match="does not tell apart; split it first"):
        io.read(path)


@pytest.mark.parametrize("vector", ["EnergyWindowVector", "DetectorVector", "PhaseVector"])
def test_frames_of_several_detectors_or_phases_are_refused(tmp_path, vector):
    dataset = picture(header(kind="NM"), voxels().transpose(2, 1, 0))
    setattr(dataset, vector, [1, 1, 1, 1])
    assert io.read(save(dataset, tmp_path / "a.dcm")).array.size == 120
    setattr(dataset, vector, [1, 2, 1, 2])
    with pytest.raises(InputError, match="several detectors, phases or times"):
        io.read(save(dataset, tmp_path / "b.dcm"))


# --------------------------------------------------------------------------------------------------
# Mosaics
# --------------------------------------------------------------------------------------------------


def csa(**elements):
    """A CSA header of Siemens' second version (nibabel.org, dicom/siemens_csa)."""
    data = b"SV10\4\3\2\1" + struct.pack("<2I", len(elements), 77)
    for name, values in elements.items():
        kind = {str: b"SH", int: b"US"}.get(type(values[0]), b"FD")
        data += struct.pack("<64si4s3i", name.encode(), len(values), kind, 0, len(values), 77)
        for value in values:
            text = f"{value:.8f}" if kind == b"FD" else str(value)
            text = text.encode() + b"\0"
            data += struct.pack("<4i", len(text), len(text), 77, len(text))
            data += text + b"\0" * (-len(text) % 4)
    return data


def write_mosaic(path, array, axes=AXIAL, direction=1, told=True, syntax=ExplicitVRLittleEndian):
    """Slices [columns, rows, slices] side by side; the first lies at (1, 2, 3) in its middle."""
    count = array.shape[2]
    side = int(np.ceil(np.sqrt(count)))
    tiles = np.zeros((side * side, *array.shape[1::-1]), array.dtype)
    tiles[:count] = array.transpose(2, 1, 0)
    rows = [np.concatenate(tiles[k : k + side], 1) for k in range(0, side * side, side)]
    dataset = picture(header(kind="MR"), np.concatenate(rows, 0)[None])
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    dataset.Manufacturer = "SIEMENS"
    dataset.PixelSpacing, dataset.SliceThickness = [0.75, 0.5], 2.0
    dataset.SpacingBetweenSlices = 2.5
    dataset.ImageOrientationPatient = [f"{number:.12f}" for number in np.ravel(axes)]
    dataset.ImagePositionPatient = [1, 2, 3]
    if told:
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        normal = direction * np.cross(*axes)
        elements = {"NumberOfImagesInMosaic": [count], "SliceNormalVector": normal}
        block.add_new(0x10, "OB", csa(AcquisitionMatrixText=["5p*6"], **elements))
    return save(dataset, path, syntax)


@pytest.mark.parametrize("syntax", [*NATIVE[:2], RLELossless], ids=lambda one: one.keyword)
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_mosaics_are_split_as_nibabel_splits_them(tmp_path, name, direction, syntax):
    array = voxels((6, 5, 7), np.uint16)
    path = write_mosaic(tmp_path / "a.dcm", array, ORIENTATIONS[name], direction, syntax=syntax)
    volume = io.read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom import dicomwrappers

        reference = dicomwrappers.wrapper_from_file(path)
        values, affine = reference.get_data(), reference.affine
    for index in np.ndindex(volume.array.shape):
        place = LPS * (volume.affine @ (*index, 1))[:3]
        found = np.linalg.solve(affine, (*place, 1))[:3]
        np.testing.assert_allclose(found, np.rint(found), atol=1e-3)
        assert volume.array[index] == values[tuple(np.rint(found).astype(int))]
    assert volume.notes == ()


def test_mosaics_of_a_series_are_volumes_of_their_own(tmp_path):
    for k in range(3):
        write_mosaic(tmp_path / f"{k}.dcm", voxels((6, 5, 4), np.uint16) + k)
    series, _ = dicom.group(tmp_path.iterdir())
    for k, one in enumerate(series):
        np.testing.assert_array_equal(read(one.files)[1], voxels((6, 5, 4))[:, :, ::1] + k)


def test_mosaics_that_do_not_say_how_they_are_made_are_refused(tmp_path):
    path = write_mosaic(tmp_path / "a.dcm", voxels((6, 5, 4), np.uint16), told=False)
    dataset = pydicom.dcmread(path)
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    normal = {"SliceNormalVector": [0, 0, 1]}
    for number, content in enumerate(
        (
            None,
            b"",
            b"SV10 and noise",
            csa(**normal),
            csa(NumberOfImagesInMosaic=[9]),
            csa(NumberOfImagesInMosaic=[50], **normal),
            csa(NumberOfImagesInMosaic=[-1], **normal),
            csa(NumberOfImagesInMosaic=[4], SliceNormalVector=[1, 0, 0]),
        )
    ):
        if content is not None:
            block.add_new(0x10, "OB", content)
        bad = tmp_path / f"{number}.dcm"
        dataset.save_as(bad)
        with pytest.raises(InputError, match="a mosaic of many slices in one picture; convert it"):
            io.read(bad)
        assert len(dicom.group([bad])[0]) == 1


# --------------------------------------------------------------------------------------------------
# Series
# --------------------------------------------------------------------------------------------------


def grouped(folder):
    """Names of the files of every series, and of those that failed."""
    series, failed = dicom.group(folder.rglob("*.*"))
    return [[path.name for path in one.files] for one in series], [path.name for path, _ in failed]


def test_a_folder_of_everything(tmp_path):
    """Two series, a localizer of two directions, a report, a dose, and three broken files."""
    write_series(tmp_path / "a", names=["3.dcm", "1.dcm", "0.dcm", "2.dcm"])
    elements = {"SeriesInstanceUID": "1.2.3.2", "SeriesNumber": 2}
    write_series(tmp_path / "b", voxels() + 100, **elements)
    for name, axes in (("c", AXIAL), ("d", CORONAL)):
        elements = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "Modality": "MR"}
        write_series(
            tmp_path / name,
            voxels((6, 5, 1)),
            axes=axes,
            names=[f"{name}.dcm"],
            **elements,
            SeriesInstanceUID="1.2.3.3",
            SeriesNumber=3,
        )
    save(header(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"), tmp_path / "report.dcm")
    dose = picture(header(SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2"), np.ones((2, 3, 4), "u2"))
    save(dose, tmp_path / "dose.dcm")
    (tmp_path / "text.dcm").write_text("nothing like it" * 100)
    (tmp_path / "short.dcm").write_bytes((tmp_path / "a" / "0.dcm").read_bytes()[:-10])
    (tmp_path / "empty.dcm").touch()

    series, failed = dicom.group(tmp_path.rglob("*.dcm"))
    assert [len(one.files) for one in series] == [4, 4, 1, 1]
    assert [one.number for one in series] == [1, 2, 3, 4]
    assert [one.kind for one in series] == ["CT", "CT", "MR", "MR"]
    assert [one.localizer for one in series] == [False, False, True, True]
    assert {one.patient for one in series} == {1}
    assert {path.name for path, _ in failed} == {"text.dcm", "short.dcm", "empty.dcm"}
    for path, reason in failed:
        assert reason.startswith(f"{path}: ") and "\n" not in reason
    for one, least in zip(series[:2], (0, 100), strict=True):
        array = io.read(one.files).array
        np.testing.assert_array_equal(np.sort(array, None), least + np.arange(120))
    assert dicom.group(sorted(tmp_path.rglob("*.dcm"), reverse=True)) == (series, failed)


def test_patients_are_counted_and_not_named(tmp_path):
    """A patient keeps the number whatever the files are called; none is in what is returned."""
    for name, patient in (("x", "ID-1"), ("y", "ID-2"), ("z", "ID-1"), ("w", None)):
        elements = {"PatientID": patient, "SeriesInstanceUID": f"1.2.{ord(name)}"}
        write_series(tmp_path / name, **elements)
    series, _ = dicom.group(tmp_path.rglob("*.dcm"))
    numbers = {one.files[0].parent.name: one.patient for one in series}
    assert sorted(set(numbers.values())) == [1, 2, 3]
    assert numbers["x"] == numbers["z"] != numbers["y"]
    for name in "xyzw":
        (tmp_path / name).rename(tmp_path / f"{ord(name) * 7 % 10}{name}")
    series, _ = dicom.group(tmp_path.rglob("*.dcm"))
    assert {one.files[0].parent.name[-1]: one.patient for one in series} == numbers


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("EchoTime", ["10", "90"]),
        ("TemporalPositionIdentifier", ["1", "2"]),
        ("AcquisitionNumber", ["1", "2"]),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]),
    ],
)
def test_images_of_one_place_are_parted(tmp_path, keyword, values):
    """Echoes and phases under one series number are volumes of their own."""
    write_series(tmp_path / "a", **{keyword: values[0]})
    # The second covers a part of the first.
    second = write_series(tmp_path / "b", numbers=range(5, 9), **{keyword: values[1]})
    second[0].unlink()
    series, _ = dicom.group(tmp_path.rglob("*.dcm"))
    assert [len(one.files) for one in series] == [4, 3]
    for one in series:
        assert io.read(one.files).notes == ()


def test_echoes_at_several_times_are_parted_twice(tmp_path):
    for echo in (1, 2):
        for phase in (1, 2):
            elements = {"EchoTime": echo, "TemporalPositionIdentifier": phase}
            write_series(tmp_path / f"{echo}{phase}", **elements)
    series, _ = dicom.group(tmp_path.rglob("*.dcm"))
    folders = [{path.parent.name for path in one.files} for one in series]
    assert folders == [{"11"}, {"12"}, {"21"}, {"22"}]


def test_what_differs_from_slice_to_slice_parts_nothing(tmp_path):
    """Slices of one volume are triggered one after the other; volumes are told otherwise."""
    for phase in (1, 2):
        for k, path in enumerate(write_series(tmp_path / f"{phase}", AcquisitionNumber=phase)):
            dataset = pydicom.dcmread(path)
            dataset.TriggerTime = 100 * phase + k
            dataset.save_as(path)
    series, _ = dicom.group(tmp_path.rglob("*.dcm"))
    assert [{path.parent.name for path in one.files} for one in series] == [{"1"}, {"2"}]


def test_acquisitions_that_follow_one_another_are_not_parted(tmp_path):
    """A CT in steps has an acquisition for each, and may show a place twice where they meet."""
    places = (300 + 3.0 * np.array([0, 1, 2, 2, 3, 4]))[:, None] * (0, 0, 1)
    array = voxels((4, 3, 6))
    array[:, :, 3] = array[:, :, 2]
    for k, path in enumerate(write_series(tmp_path, array, places=places)):
        dataset = pydicom.dcmread(path)
        dataset.AcquisitionNumber = k // 3
        dataset.TriggerTime = 17 * k  # of every slice its own
        dataset.save_as(path)
    series, _ = dicom.group(tmp_path.iterdir())
    assert len(series) == 1
    volume = io.read(series[0].files)
    assert volume.array.shape == (4, 3, 5)
    assert volume.notes == ("1 duplicated slice left out",)


def test_grouping_is_quick(tmp_path):
    """Of a thousand slices only headers are read: a few seconds on any machine."""
    paths = write_series(tmp_path, voxels((8, 8, 4)))
    many = []
    for k in range(1000):
        many.append(tmp_path / f"x{k}.dcm")
        many[-1].hardlink_to(paths[k % 4])
    began = time.perf_counter()
    series, _ = dicom.group(many)
    assert time.perf_counter() - began < 15
    assert [len(one.files) for one in series] == [1000]


# --------------------------------------------------------------------------------------------------
# What is DICOM
# --------------------------------------------------------------------------------------------------


def test_files_that_lost_their_preamble_or_more(tmp_path):
    """Archives and old tools strip what stands before the data set; the rest says enough."""
    for name, syntax in zip(("implicit", "explicit"), NATIVE[:2], strict=True):
        path = write_series(tmp_path / name, syntax=syntax)[0]
        expected = read(path)[1]
        data = path.read_bytes()
        bare = tmp_path / f"{name}.bin"
        for start in (132, 144 + int.from_bytes(data[140:144], "little")):
            bare.write_bytes(data[start:])
            assert preamble.is_dicom(bare)
            np.testing.assert_array_equal(read(bare)[1], expected)


def test_other_files_are_not_dicom(tmp_path, rng):
    image = rng.integers(0, 255, (16, 16), np.uint8)
    for suffix in ("png", "tif", "jpg"):
        assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), image)
    io.save(tmp_path / "a.nii", np.zeros((4, 4, 4)), np.eye(4), np.float32)
    np.save(tmp_path / "a.npy", image)
    (tmp_path / "text").write_text("DICM " * 100)
    (tmp_path / "zeros").write_bytes(bytes(1000))
    (tmp_path / "eights").write_bytes(b"\x08\x00" * 500)
    (tmp_path / "empty").touch()
    for k in range(50):
        (tmp_path / f"noise{k}").write_bytes(rng.bytes(2000))
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "none"):
        assert not preamble.is_dicom(path), path


def test_nothing_of_a_header_is_told(tmp_path, capfd, caplog):
    """Names, numbers and dates stay where they are, also in what is said of bad files."""
    good = write_series(tmp_path / "good", PixelPaddingValue=-2000)
    odd = [
        write_series(tmp_path / str(k), voxels((4, 4, 1)), **elements)[0]
        for k, elements in enumerate(
            (
                {"PixelSpacing": None, "ImagePositionPatient": None},
                {"PhotometricInterpretation": SECRETS["PatientID"]},
                {"Modality": SECRETS["PatientID"], "ImageType": [SECRETS["PatientID"]] * 3},
                {"PixelRepresentation": 7},
            )
        )
    ]
    for keyword in ("ImagePositionPatient", "RescaleSlope", "InstanceNumber"):
        odd.append(tmp_path / f"{keyword}.dcm")
        odd[-1].write_bytes(damaged(good[0].read_bytes(), keyword, b"Doe^Jane"))
    capfd.readouterr()
    caplog.clear()
    told = [dicom.group([*good, *odd]), io.opened(good), io.read(good)]
    for path in odd:
        try:
            told.append(io.read(path))
        except InputError as error:
            told.append(error)
    assert sum(isinstance(one, InputError) for one in told) == 5
    text = repr(told) + repr([vars(one) for one in told if hasattr(one, "__dict__")])
    text += "".join(capfd.readouterr()) + caplog.text
    for secret in (*SECRETS.values(), "1.2.3"):
        assert secret not in text


# --------------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------------


def damaged(data, keyword, value):
    """The bytes of an explicit little-endian file with other bytes in the place of a value."""
    tag = pydicom.datadict.tag_for_keyword(keyword)
    element = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    at = data.find(element)
    if at < 0:  # then at its place in the order
        dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(data), stop_before_pixels=True)
        after = [e.tag for e in dataset if e.tag > tag]
        following = after[0] if after else 0x7FE00010
        head = (following >> 16).to_bytes(2, "little") + (following & 0xFFFF).to_bytes(2, "little")
        at = data.index(head, 300)
        length = -8
    else:
        length = int.from_bytes(data[at + 6 : at + 8], "little")
    vr = pydicom.datadict.dictionary_VR(tag).encode()
    value += b" " * (len(value) % 2)
    new = element + vr + len(value).to_bytes(2, "little") + value
    return data[:at] + new + data[at + 8 + length :]


def with_elements(**elements):
    def make(path):
        write_series(path.parent, voxels((6, 5, 1)), names=[path.name], **elements)

    return make


def with_bytes(keyword, value):
    def make(path):
        with_elements()(path)
        path.write_bytes(damaged(path.read_bytes(), keyword, value))

    return make


def with_syntax(uid, **elements):
    def make(path):
        with_elements(**elements)(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            dataset.file_meta.TransferSyntaxUID = uid
            dataset.PixelData = encapsulate([dataset.PixelData])
            dataset["PixelData"].is_undefined_length = True
            dataset.save_as(path, implicit_vr=False, little_endian=True)

    return make


def cut(*ends):
    def make(path):
        with_elements()(path)
        path.write_bytes(path.read_bytes()[slice(*ends)])

    return make


def colour(path):
    dataset = header()
    picture(dataset, np.zeros((1, 5, 18), np.uint8))
    update(dataset, {"SamplesPerPixel": 3, "Columns": 6, "PlanarConfiguration": 0})
    save(update(dataset, {"PhotometricInterpretation": "RGB"}), path)


def palette(path):
    with_elements(PhotometricInterpretation="PALETTE COLOR")(path)


def two_orientations(path):
    write_series(path)
    write_series(path, axes=CORONAL, names=[f"c{k}.dcm" for k in range(4)])


def two_sizes(path):
    write_series(path)
    write_series(path, voxels((5, 6, 2)), names=["c.dcm", "d.dcm"])


def two_series(path):
    write_series(path)
    write_series(path, names=[f"c{k}.dcm" for k in range(4)], SeriesInstanceUID="1.2.3.9")


def beside_one_another(path):
    write_series(path, places=[(0, 0, 0), (1, 0, 3), (0, 0, 6), (0, 0, 9)])


def shelf(path):
    write_series(path, places=[(0, 0, 0), (5, 0, 0), (10, 0, 0), (15, 0, 0)])


def almost_in_one_plane(path):
    write_series(path, places=[(0, 0, 0), (5, 0, 0.1), (10, 0, 0.2), (15, 0, 0.3)])


def other_count(path):
    places = np.arange(4)[:, None] * (0, 0, 3.0)
    dataset = enhanced(voxels(), places)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        list(dataset.PerFrameFunctionalGroupsSequence)[:3]
    )
    save(dataset, path)


def many_frames(path):
    with_elements(NumberOfFrames=2_000_000_000)(path)


def report(path):
    save(header(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"), path)


def stripped(path):
    dataset = picture(header(), np.zeros((1, 5, 6), np.int16))
    del dataset.PixelData
    save(dataset, path)


def not_numbers(path):
    array = voxels((6, 5, 1), np.float32)
    array[2, 2] = np.nan
    write_series(path.parent, array, names=[path.name])


def bomb(path):
    """A deflated file of a few kilobytes that would become more than can be held."""
    with_elements()(path)
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    plain, deflated = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
    meta = data[:start].replace(b"\x14\x00" + plain, b"\x16\x00" + deflated)
    meta = meta[:140] + (start - 144 + 2).to_bytes(4, "little") + meta[144:]
    deflation = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflation.compress(data[start:])
    body += b"".join(deflation.compress(bytes(1 << 20)) for _ in range(140))
    path.write_bytes(meta + body + deflation.flush())


def huge_jpeg2000(path):
    """Decoders ask for what a frame claims, here 7 GB, before they find that it does not."""
    size = (60000).to_bytes(4, "big")
    frame = bytes.fromhex("ff4fff510029") + b"\0\0" + 2 * size + bytes(8) + 2 * size + bytes(8)
    with_syntax(JPEG2000Lossless)(path)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([frame + b"\0\x01\x0f\x01\x01" + bytes(100)])
    dataset.save_as(path)


def huge_jpeg(path):
    frame = bytes.fromhex("ffd8ffc3000b10ea60ea6001011100") + bytes(100)
    with_syntax(JPEGLosslessSV1)(path)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([frame])
    dataset.save_as(path)


def long_element(path):
    """An element that claims 4 GiB, which a reader might reserve."""
    with_elements()(path)
    data = path.read_bytes()
    at = data.index(b"\x10\x00\x10\x00PN")
    path.write_bytes(data[:at] + b"\x08\x00\x08\x00UN\0\0\xf0\xff\xff\xff" + data[at:])


def nested(path):
    """Sequences within sequences, more than any parser's stack."""
    with_elements()(path)
    data = path.read_bytes()
    at = data.index(b"\x10\x00\x10\x00PN")
    opening = b"\x09\x00\x10\x00SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(data[:at] + opening * 50_000 + data[at:])


GARBAGE = "is damaged"
BAD = {
    "empty": (lambda path: path.touch(), "empty"),
    "text": (lambda path: path.write_text("no image " * 99), "not a DICOM file"),
    "preamble alone": (cut(0, 132), "damaged|without rows"),
    "cut in the header": (cut(0, 700), "without rows|damaged|holds no pixels"),
    "cut in the pixels": (cut(0, -20), "truncated"),
    "no pixels": (stripped, "holds no pixels"),
    "report": (report, "no image"),
    "colour": (colour, r"a colour image \(RGB\)"),
    "palette": (palette, r"a colour image \(PALETTE COLOR\)"),
    "other colours": (with_elements(PhotometricInterpretation="HUE"), "no known colours"),
    "one bit": (with_elements(BitsAllocated=1, BitsStored=1, HighBit=0), "one bit"),
    "odd bits": (with_elements(BitsAllocated=12), "no known type"),
    "high bit": (with_elements(BitsStored=12, HighBit=15), "HighBit"),
    "too many bits": (with_elements(BitsStored=20, HighBit=19), "damaged"),
    "no rows": (with_elements(Rows=0), "without rows"),
    "many rows": (with_elements(Rows=60000, Columns=60000), "truncated"),
    "many frames": (many_frames, "truncated"),
    "no frames": (with_elements(NumberOfFrames=0), "truncated"),
    "frames of another count": (other_count, "NumberOfFrames is damaged|truncated"),
    "slope of 0": (with_elements(RescaleSlope=0), "RescaleSlope is 0"),
    "slope of letters": (with_bytes("RescaleSlope", b"one"), f"RescaleSlope {GARBAGE}"),
    "slope of nan": (with_bytes("RescaleSlope", b"nan"), f"RescaleSlope {GARBAGE}"),
    "slope of two": (with_bytes("RescaleSlope", b"1\\2"), f"RescaleSlope {GARBAGE}"),
    "place of letters": (
        with_bytes("ImagePositionPatient", b"a\\b\\c"),
        f"ImagePositionPatient {GARBAGE}",
    ),
    "place of two": (with_bytes("ImagePositionPatient", b"1\\2"), GARBAGE),
    "place far away": (with_bytes("ImagePositionPatient", b"1e30\\0\\0"), GARBAGE),
    "spacing with a comma": (with_bytes("PixelSpacing", b"0,5\\0,5"), f"PixelSpacing {GARBAGE}"),
    "spacing of 0": (with_bytes("PixelSpacing", b"0\\0"), f"PixelSpacing {GARBAGE}"),
    "number of letters": (with_bytes("InstanceNumber", b"third"), f"InstanceNumber {GARBAGE}"),
    "no directions": (
        with_bytes("ImageOrientationPatient", b"0\\0\\0\\0\\0\\0"),
        "no pair of directions",
    ),
    "parallel directions": (
        with_bytes("ImageOrientationPatient", b"1\\0\\0\\1\\0\\0"),
        "no pair of directions",
    ),
    "nan": (not_numbers, "NaN"),
    "constant": (with_elements(RescaleSlope=1e-60), "constant"),
    "two orientations": (two_orientations, "several sizes or orientations"),
    "two sizes": (two_sizes, "several sizes or orientations"),
    "two series": (two_series, "several series"),
    "beside one another": (beside_one_another, "do not lie behind one another"),
    "in one plane": (shelf, "do not lie behind one another"),
    "almost in one plane": (almost_in_one_plane, "do not lie behind one another"),
    "unknown syntax": (with_syntax("1.2.3.4.5"), "a transfer syntax that is not known"),
    "video": (with_syntax("1.2.840.10008.1.2.4.102"), "encoded as MPEG-4"),
    "no codestream": (with_syntax(JPEG2000Lossless), "damaged"),
    "no JPEG": (with_syntax(JPEGLosslessSV1), "damaged"),
    "no RLE": (with_syntax(RLELossless), "damaged|truncated"),
    "huge JPEG 2000": (huge_jpeg2000, "compressed pixels are damaged"),
    "huge JPEG": (huge_jpeg, "compressed pixels are damaged"),
    "huge claim of a small file": (
        with_syntax(RLELossless, Rows=60000, Columns=60000),
        "truncated",
    ),
    "deflated bomb": (bomb, "deflated file of more than"),
    "element of 4 GiB": (long_element, "without rows|truncated|holds no pixels"),
    "nested sequences": (nested, "damaged|without rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(tmp_path, capfd, caplog, name):
    """The message names the file or folder and the reason, and nothing else is said or reserved."""
    make, match = BAD[name]
    folders = (two_orientations, two_sizes, two_series, beside_one_another, shelf)
    folder = make in (*folders, almost_in_one_plane)
    path = tmp_path / ("bad" if folder else "bad.dcm")
    make(path)
    capfd.readouterr()
    caplog.clear()
    # Compressed files are refused before that for the want of a decoder, where there is none.
    if "JPEG" in name or name == "no codestream":
        for syntax in (JPEG2000Lossless, JPEGLosslessSV1):
            if not get_decoder(syntax).is_available:
                pytest.skip(f"nothing here decodes {syntax.name}")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=match) as caught:
            io.read(sorted(path.iterdir()) if folder else path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < (280 << 20 if name == "deflated bomb" else 64 << 20)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_some_bad_slices_leave_the_rest(tmp_path):
    """A series with holes is better than none, and the holes are told."""
    paths = write_series(tmp_path, voxels((6, 5, 8)))
    paths[2].write_bytes(paths[2].read_bytes()[:-10])
    paths[5].write_text("no image")
    paths[6].write_bytes(damaged(paths[6].read_bytes(), "RescaleSlope", b"?"))
    volume, array = read(paths)
    np.testing.assert_array_equal(array, voxels((6, 5, 8))[:, :, [0, 1, 3, 4, 7]])
    assert [path for path, _ in volume.failed] == [paths[2], paths[5], paths[6]]
    for path, reason in volume.failed:
        assert reason.startswith(f"{path}: ")
    assert volume.notes == (
        "3 slices missing in 2 places, the first between z = 303.0 and 309.0 mm",
    )


def test_slices_that_cannot_be_decoded_leave_the_rest(tmp_path):
    """That pixels are damaged shows only when they are decoded."""
    paths = write_series(tmp_path, syntax=RLELossless)
    data = paths[1].read_bytes()
    at = data.rindex(b"\xe0\x7f\x10\x00") + 28
    paths[1].write_bytes(data[:at] + b"\xff" * 20 + data[at + 20 :])
    volume, array = read(paths)
    np.testing.assert_array_equal(array, voxels()[:, :, [0, 2, 3]])
    assert [path for path, _ in volume.failed] == [paths[1]]


def test_missing_decoders_are_named(tmp_path, monkeypatch):
    with_syntax(JPEG2000Lossless)(tmp_path / "a.dcm")
    decoder = get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(type(decoder), "is_available", False)
    with pytest.raises(InputError, match=r"compressed as JPEG 2000.*; run pip install pylibjpeg"):
        io.read(tmp_path / "a.dcm")


# --------------------------------------------------------------------------------------------------
# Damage at random
# --------------------------------------------------------------------------------------------------


def sound_files(folder, rng):
    """Files of all kinds, to be damaged."""
    array = rng.integers(0, 2000, (40, 36, 1)).astype(np.int16)
    elements = {"RescaleSlope": 2, "RescaleIntercept": -1000, "PixelPaddingValue": -2000}
    files = [
        write_series(folder / f"{k}", array, syntax=syntax, **elements)[0].read_bytes()
        for k, syntax in enumerate((*NATIVE, RLELossless, JPEG2000Lossless))
        if not syntax.is_encapsulated or can_encode(syntax)
    ]
    places = np.arange(4)[:, None] * (0, 0, 3.0)
    many = save(enhanced(voxels(), places), folder / "many.dcm")
    capture = write_series(
        folder / "capture",
        array.astype(np.uint8),
        ImagePositionPatient=None,
        SOPClassUID=SecondaryCaptureImageStorage,
    )[0]
    return [*files, many.read_bytes(), capture.read_bytes()]


def mutated(data, rng):
    """The bytes of a file with a few others in its header, or with a piece cut out or doubled."""
    header_end = max(data.rfind(b"\xe0\x7f\x10\x00"), len(data) // 2) + 12
    data = bytearray(data)
    kind = rng.integers(8)
    at = int(rng.integers(128, header_end))
    size = int(rng.integers(1, 40))
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        return bytes(data[:at] + data[at + size :])
    if kind == 2:
        return bytes(data[: at + size] + data[at:])
    if kind == 3:
        data[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x10"])
        return bytes(data)
    for place in rng.integers(128, header_end, rng.integers(1, 6)):
        data[place] = rng.integers(256)
    return bytes(data)


def check_damage(folder, rng, count):
    """A volume or an InputError, in bounded time and memory, whatever happened to the file."""
    sound = sound_files(folder, rng)
    path, refused = folder / "x.dcm", 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        for k in range(count):
            path.write_bytes(mutated(sound[k % len(sound)], rng))
            tracemalloc.reset_peak()
            began = time.process_time()
            try:
                assert io.read(path).array.ndim == 3
            except InputError as error:
                refused += 1
                assert "\n" not in str(error) and str(error).startswith(f"{path}: ")
            dicom.group([path])
            assert time.process_time() - began < 10
            assert tracemalloc.get_traced_memory()[1] < 256 << 20
    finally:
        tracemalloc.stop()
    # Decoders reserve memory that Python does not see.
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < 256 << 20
    assert count / 10 < refused < count * 9 / 10, "the damage must matter, and not always"


def test_damage_never_gives_another_error(tmp_path, rng):
    check_damage(tmp_path, rng, 300)


@pytest.mark.slow
def test_much_damage_never_gives_another_error(tmp_path):
    check_damage(tmp_path, np.random.default_rng(1), 2000)


def test_sizes_of_compressed_frames(rng):
    """As the encoders of others write them."""
    image = rng.integers(0, 255, (48, 40), np.uint8)
    for suffix, size_of in ((".jpg", decoding._size_of_jpeg), (".jp2", decoding._size_of_jpeg2000)):
        _, frame = cv2.imencode(suffix, image)
        assert size_of(frame.tobytes()) == (40, 48, 1)
        _, frame = cv2.imencode(suffix, np.stack([image] * 3, 2))
        assert size_of(frame.tobytes()) == (40, 48, 3)


def test_positions_are_those_of_the_header(tmp_path):
    """The header pass knows DICOM's own coordinates before they are turned into RAS."""
    axes = AXIAL @ rotation(40).T
    paths = write_series(tmp_path, axes=axes)
    frame = frames.header(paths[1]).frames[0]
    np.testing.assert_allclose(frame.axes, axes, atol=1e-9)
    np.testing.assert_allclose(frame.origin, np.array([-40, 25, 300]) + 3 * np.cross(*axes))
    assert frame.spacing == (0.5, 0.75)
