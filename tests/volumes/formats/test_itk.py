# SPDX-License-Identifier: Apache-2.0
"""MetaImage and NRRD are read as SimpleITK reads them, but for what it reads wrongly."""

import gzip
import itertools
import subprocess
import sys
import zlib

import numpy as np
import pytest
import SimpleITK

from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.formats import itk
from contourdiff_jax.volumes.geometry import NativeGrid

ORDERS = list(itertools.permutations(range(3)))
FLIPS = list(itertools.product((1, -1), repeat=3))
SHAPE = (5, 6, 7)
TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")


def ramp(dtype=np.int16):
    """Every voxel has its own value."""
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def rotation(degrees):
    """[3, 3] a rotation about an axis that is none of the coordinates'."""
    angle, axis = np.deg2rad(degrees), np.array([1, 2, 3]) / np.sqrt(14)
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_of(order=(0, 1, 2), flips=(1, 1, 1), degrees=0.0):
    """[4, 4] axes in that order, flipped, rotated and of unequal spacing."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ (np.eye(3)[:, list(order)] * flips * (0.5, 1.25, 3.0))
    affine[:3, 3] = -40, 25, 300
    return affine


def affine_by_itk(image):
    """[4, 4] indices -> mm in RAS, as SimpleITK transforms points."""
    affine = np.eye(4)
    corner = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
    for axis in range(3):
        step = [int(axis == other) for other in range(3)]
        affine[:3, axis] = np.array(image.TransformIndexToPhysicalPoint(step)) - corner
    affine[:3, 3] = corner
    return np.diag((-1, -1, 1, 1)) @ affine


def write_by_itk(path, array=None, degrees=20.0, compressed=False):
    array = ramp() if array is None else array
    image = SimpleITK.GetImageFromArray(array.T)
    if array.ndim == 3:
        image.SetSpacing((0.5, 1.25, 3.0))
        image.SetOrigin((-40.1, 1 / 3, 300))
        image.SetDirection(rotation(degrees).ravel())
    SimpleITK.WriteImage(image, str(path), useCompression=compressed)
    return path


def write_text(path, *lines, data=None):
    """A header and what follows it."""
    data = ramp().tobytes("F") if data is None else data
    path.write_bytes("\n".join(lines).encode() + data)
    return path


def meta(path, data=None, last="ElementDataFile = LOCAL", **fields):
    """A MetaImage with these fields, None being left out."""
    fields = {
        **{"ObjectType": "Image", "NDims": 3, "BinaryData": True, "DimSize": "5 6 7"},
        **{"ElementSpacing": "1 2 3", "ElementType": "MET_SHORT", **fields},
    }
    lines = [f"{key} = {value}" for key, value in fields.items() if value is not None]
    return write_text(path, *lines, last, "", data=data)


def nrrd(path, data=None, **fields):
    """An NRRD with these fields, None being left out and _ a blank."""
    fields = {
        **{"type": "short", "dimension": 3, "sizes": "5 6 7", "space": "left-posterior-superior"},
        **{"space_directions": "(1,0,0) (0,2,0) (0,0,3)", "endian": "little", "encoding": "raw"},
        **fields,
    }
    fields = {key.replace("_", " "): value for key, value in fields.items() if value is not None}
    lines = [f"{key}: {value}" for key, value in fields.items()]
    return write_text(path, "NRRD0004", "# a comment", *lines, "", "", data=data)


def agrees_with_itk(path):
    image, reference = io.opened(path), SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(image.voxels().T, SimpleITK.GetArrayFromImage(reference))
    np.testing.assert_allclose(image.native.affine, affine_by_itk(reference), atol=1e-9)
    return image


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_simpleitk_are_read_as_it_reads_them(tmp_path, suffix, compressed):
    for dtype in TYPES:
        path = write_by_itk(tmp_path / f"a{suffix}", ramp(dtype), compressed=compressed)
        assert agrees_with_itk(path).dtype == dtype


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_of_fewer_and_more_axes_are_read(tmp_path, suffix):
    plane = write_by_itk(tmp_path / f"a{suffix}", ramp()[:, :, 0])
    image = io.opened(plane)
    assert image.native.shape == (5, 6)
    np.testing.assert_array_equal(image.voxels(), ramp()[:, :, 0])
    np.testing.assert_array_equal(image.native.affine, np.diag((-1, -1, 1, 1)))
    series = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(ramp().T)])
    SimpleITK.WriteImage(series, str(tmp_path / f"b{suffix}"))
    volume = io.read(tmp_path / f"b{suffix}")
    assert volume.native.shape == (5, 6, 7, 1)
    np.testing.assert_array_equal(volume.array, ramp()[::-1, ::-1])


@pytest.mark.parametrize(
    "fields",
    [
        {"Position": "1 2 3", "Orientation": "0 1 0 0 0 1 1 0 0", "Comment": "a: b = c"},
        {"Origin": "1 2 3", "Rotation": "0 1 0 -1 0 0 0 0 1", "Name": "\u00c5"},
        {"ElementByteOrderMSB": True},
        {"BinaryDataByteOrderMSB": "False", "ElementSize": "9 9 9", "Modality": "MET_MOD_CT"},
        {"ElementSpacing": None, "ElementSize": "3 2 1"},
        {"ElementType": "MET_USHORT", "CompressedData": False, "ElementNumberOfChannels": 1},
        {"BinaryData": None},
        {"BinaryData": None, "ObjectType": None, "ElementSpacing": None},
        {"BinaryData": "T", "ElementByteOrderMSB": "F"},
    ],
)
def test_metaimages_of_other_programs_are_read(tmp_path, fields):
    agrees_with_itk(meta(tmp_path / "a.mha", **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"space": "right-anterior-superior", "space_origin": "(1,2,3)"},
        {"space": "LAS", "space_origin": "(1,2,3)", "kinds": "domain domain domain"},
        {"space": "LPS", "type": "unsigned short int", "content": "a:b"},
        {"type": "int16_t", "endian": "big"},
        {"type": "uint16", "space_directions": "(0,0,-1) (0.5, 0, 0) (0,2,0)"},
        {"space_units": '"mm" "mm" "mm"', "centerings": "cell cell cell"},
        {"space": None, "space_directions": None, "spacings": "1 2 3"},
        {"space": None, "space_directions": None},
        {"measurement_frame": "(1,0,0) (0,1,0) (0,0,1)", "key:=value": "="},
        {"endian": None, "type": "uchar"},
        {"space": None, "space_directions": None, "spacings": "1 2 nan"},
        {"space": None, "space_directions": None, "spacings": "1 2 3", "axis_mins": "10 20 30"},
        {
            **{"space": None, "space_directions": None, "spacings": "1 2 3"},
            **{"axismins": "10 20 30", "centers": "node cell ???"},
        },
    ],
)
def test_nrrds_of_other_programs_are_read(tmp_path, fields):
    image = agrees_with_itk(nrrd(tmp_path / "a.nrrd", **fields))
    assert bool(image.notes) == (fields.get("space", "") is None)


def test_numbers_before_the_voxels_are_skipped(tmp_path):
    """Headers are written for raw files of other programs."""
    data = ramp().tobytes("F")
    (tmp_path / "a.raw").write_bytes(b"x" * 11 + data)
    for value in (11, -1):
        agrees_with_itk(meta(tmp_path / "a.mhd", b"", "ElementDataFile = a.raw", HeaderSize=value))
        path = nrrd(tmp_path / "a.nhdr", b"", byte_skip=value, data_file="a.raw")
        np.testing.assert_array_equal(agrees_with_itk(path).voxels(), ramp())


def test_voxels_beside_a_header_may_be_named_from_its_folder(tmp_path):
    (tmp_path / "a.raw").write_bytes(ramp().tobytes("F"))
    agrees_with_itk(meta(tmp_path / "a.mhd", b"", "ElementDataFile = ./a.raw"))
    agrees_with_itk(nrrd(tmp_path / "a.nhdr", b"", data_file="./a.raw"))
    assert io.parts(tmp_path / "a.mhd") == (tmp_path / "a.mhd", tmp_path / "a.raw")


def test_fields_of_an_nrrd_have_two_spellings(tmp_path):
    """Skipped unread, they would shift every voxel without a word."""
    path = nrrd(tmp_path / "a.nrrd", b"text\n\n" + ramp().tobytes("F"), byteskip=6)
    np.testing.assert_array_equal(agrees_with_itk(path).voxels(), ramp())
    path = nrrd(tmp_path / "b.nrrd", b"text\n" + ramp().tobytes("F"), lineskip=1)
    with pytest.raises(InputError, match="text before its voxels"):
        io.opened(path)


@pytest.mark.parametrize("centers", ["cell cell cell", "node node node"])
def test_the_ends_of_an_axis_say_how_large_its_voxels_are(tmp_path, centers):
    """As the format's definition has it; SimpleITK takes 1 mm."""
    ends = " ".join(
        str(size * (n - (centers[0] == "n"))) for size, n in zip((1, 2, 3), SHAPE, strict=True)
    )
    fields = {"space": None, "space_directions": None, "centerings": centers}
    image = io.opened(nrrd(tmp_path / "a.nrrd", axis_mins="0 0 0", axis_maxs=ends, **fields))
    np.testing.assert_allclose(np.diag(image.native.affine), (-1, -2, 3, 1))
    first = np.zeros(3) if centers[0] == "n" else (-0.5, -1, 1.5)
    np.testing.assert_allclose(image.native.affine[:3, 3], first)


def test_a_detached_header_needs_no_newline_at_its_end(tmp_path):
    (tmp_path / "a.raw").write_bytes(ramp().tobytes("F"))
    path = meta(tmp_path / "a.mhd", b"", "ElementDataFile = a.raw")
    path.write_bytes(path.read_bytes().rstrip())
    agrees_with_itk(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    agrees_with_itk(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_digest_of_a_scan_is_of_its_voxels_too(tmp_path, suffix):
    """SimpleITK puts those of .mhd and .nhdr into a file beside the header."""

    def digest():
        return Scan("a", "a", (path,), path, "a").sha256

    path = write_by_itk(tmp_path / f"a{suffix}")
    before = digest()
    assert digest() == before
    write_by_itk(path, ramp()[::-1])
    assert digest() != before


def test_reading_does_not_need_simpleitk(tmp_path):
    """It takes a third of a second to import."""
    path = write_by_itk(tmp_path / "a.mha")
    code = f"""
import sys
from contourdiff_jax.volumes import io
io.read({str(path)!r})
assert 'SimpleITK' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0.0, 20.0])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_every_orientation_is_that_of_the_nifti_file(tmp_path, suffix, degrees):
    """All 48 orders and directions of axes, read again here and by SimpleITK."""
    path, nifti = tmp_path / f"a{suffix}", tmp_path / "a.nii"
    for order, flips in itertools.product(ORDERS, FLIPS):
        io.save(nifti, ramp(), affine_of(order, flips, degrees), np.int16, overwrite=True)
        first = io.opened(nifti)
        itk.write(path, first.voxels(), first.native, np.int16, overwrite=True)
        second = io.opened(path)
        np.testing.assert_array_equal(second.voxels(), ramp())
        np.testing.assert_allclose(second.native.affine, first.native.affine, atol=1e-9)
        one, two = io.read(nifti), io.read(path)
        np.testing.assert_array_equal(one.array, two.array)
        np.testing.assert_allclose(one.affine, two.affine, atol=1e-9)
        one, two = (SimpleITK.ReadImage(str(name)) for name in (nifti, path))
        np.testing.assert_allclose(affine_by_itk(one), affine_by_itk(two), atol=1e-4)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_files_come_back_on_their_own_grid(tmp_path, suffix):
    first = io.opened(write_by_itk(tmp_path / f"a{suffix}"))
    itk.write(tmp_path / f"b{suffix}", first.voxels(), first.native, np.int16, overwrite=False)
    second = agrees_with_itk(tmp_path / f"b{suffix}")
    np.testing.assert_allclose(second.native.affine, first.native.affine, atol=1e-12)
    np.testing.assert_array_equal(second.voxels(), first.voxels())


def test_integers_are_rounded_and_clipped(tmp_path):
    array = ramp(np.float32)
    array.flat[:3] = -1000.4, 40000, 0.6
    itk.write(tmp_path / "a.mha", array, NativeGrid(SHAPE, np.eye(4)), np.int16, False)
    again = io.opened(tmp_path / "a.mha").voxels()
    np.testing.assert_array_equal(again.flat[:3], [-1000, 32767, 1])


def test_voxels_are_compressed_and_the_same_twice(tmp_path):
    array = np.zeros((50, 50, 50), np.float32)
    for suffix in (".mha", ".nrrd"):
        paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
        for path in paths:
            itk.write(path, array, NativeGrid(array.shape, np.eye(4)), np.float32, False)
            assert path.stat().st_size < 2000
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_sheared_grids_are_refused(tmp_path):
    """ITK's directions are at right angles: a tilted gantry would be straightened silently."""
    affine = np.eye(4)
    affine[0, 2] = 0.3
    with pytest.raises(InputError, match=r"a\.mha: the axes .* right angles; write NIfTI"):
        itk.write(tmp_path / "a.mha", ramp(), NativeGrid(SHAPE, affine), np.int16, False)


def test_nothing_is_overwritten_unasked(tmp_path):
    path = write_by_itk(tmp_path / "a.nrrd")
    before, grid = path.read_bytes(), NativeGrid(SHAPE, np.eye(4))
    with pytest.raises(InputError, match="exists already"):
        itk.write(path, ramp(), grid, np.int16, overwrite=False)
    assert path.read_bytes() == before
    itk.write(path, ramp() + 1, grid, np.int16, overwrite=True)
    np.testing.assert_array_equal(io.opened(path).voxels(), ramp() + 1)


def test_other_names_are_refused(tmp_path):
    for name, match in (("a.mhd", "name it .mha or .nrrd"), ("b.mha/a.mha", "cannot be written")):
        (tmp_path / "b.mha").touch()
        with pytest.raises(InputError, match=match):
            itk.write(tmp_path / name, ramp(), NativeGrid(SHAPE, np.eye(4)), np.int16, False)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def half(_, path, useCompression):
        with open(path, "wb") as file:
            file.write(b"half a file")
        raise RuntimeError("Exception thrown in SimpleITK\n by ITK")

    monkeypatch.setattr(SimpleITK, "WriteImage", half)
    with pytest.raises(InputError, match=r"a\.mha: cannot be written") as caught:
        itk.write(tmp_path / "a.mha", ramp(), NativeGrid(SHAPE, np.eye(4)), np.int16, False)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------------


def zipped(path, damage):
    """Compressed voxels, damaged."""
    if path.suffix == ".mha":
        return meta(path, damage(zlib.compress(ramp().tobytes("F"))), CompressedData=True)
    return nrrd(path, damage(gzip.compress(ramp().tobytes("F"))), encoding="gzip")


def flipped(data):
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


EVERY = {
    "truncated": (lambda path: write_by_itk(path).write_bytes(path.read_bytes()[:-1]), "truncated"),
    "truncated_packed": (lambda path: zipped(path, lambda data: data[:-1]), "truncated or damaged"),
    "damaged_packed": (lambda path: zipped(path, flipped), "truncated or damaged"),
    "missing_packed": (lambda path: zipped(path, lambda data: b""), "truncated or damaged"),
    "empty": (lambda path: path.touch(), "empty"),
    "something_else": (lambda path: path.write_bytes(b"DICM" * 99), "no (MetaImage|NRRD) file"),
    "vectors": (lambda path: write_vectors(path), "several numbers a voxel"),
    "series": (lambda path: write_series(path), "4 axes"),
    "constant": (lambda path: write_by_itk(path, ramp() * 0), "constant"),
    "not_a_number": (lambda path: write_by_itk(path, 1 / ramp("f4")[::-1]), "NaN or infinite"),
    "too_large_for_float32": (lambda path: write_by_itk(path, ramp("f8") * 1e300), "infinite"),
}


def write_vectors(path):
    image = SimpleITK.GetImageFromArray(np.zeros((*SHAPE, 3), np.uint8), isVector=True)
    SimpleITK.WriteImage(image, str(path))


def write_series(path):
    image = SimpleITK.GetImageFromArray(ramp().T)
    SimpleITK.WriteImage(SimpleITK.JoinSeries([image, image]), str(path))


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("name", EVERY)
def test_bad_files_are_refused_in_one_line(tmp_path, capfd, name, suffix):
    """Damaged voxels among them, which SimpleITK reads as if they were whole."""
    path = tmp_path / f"bad{suffix}"
    make, match = EVERY[name]
    make(path)
    refused(path, match, capfd)


def refused(path, match, capfd):
    capfd.readouterr()
    with pytest.raises(InputError, match=match) as caught:
        io.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert message.count(str(path)) == 1 and "DOE" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"DimSize": "5 6 8"}, "truncated"),
        ({"DimSize": "99999 99999 99999"}, "truncated"),
        ({"DimSize": "5 0 7"}, "holds no image"),
        ({"DimSize": "5 6"}, "no MetaImage file"),
        ({"NDims": 93}, "no MetaImage file"),
        ({"NDims": 1, "DimSize": 210, "ElementSpacing": 1}, "holds no image"),
        ({"NDims": None}, "no MetaImage file"),
        ({"ElementType": "DOE"}, "no MetaImage file"),
        ({"ElementType": "MET_SHORT_ARRAY"}, "several numbers a voxel"),
        ({"ElementNumberOfChannels": 3}, "several numbers a voxel"),
        ({"BinaryData": "False"}, "voxels as text"),
        ({"BinaryData": "yes"}, "voxels as text"),
        ({"ElementToIntensityFunctionSlope": 2}, "rescaled"),
        ({"ElementSpacing": "1 2"}, "no MetaImage file"),
        ({"ElementSpacing": "1 2 DOE"}, "no MetaImage file"),
        ({"ElementSpacing": "1 0 3"}, "singular"),
        ({"ElementSpacing": "1 nan 3"}, "NaN"),
        ({"ElementSpacing": "1 1e300 3"}, "voxels more than 1e[+]06 mm away"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "singular"),
        ({"last": "ElementDataFile = none.raw"}, r"the file none\.raw, are missing"),
        ({"last": "ElementDataFile = /etc/passwd"}, "in a file beside it"),
        ({"last": "ElementDataFile = ../DOE/a.raw"}, "in a file beside it"),
        ({"last": "ElementDataFile = LIST"}, "in several files"),
        ({"last": "ElementDataFile = a%03d.raw 1 7 1"}, "in several files"),
        ({"last": ""}, "no MetaImage file"),
    ],
)
def test_bad_metaimages_are_refused(tmp_path, capfd, fields, match):
    refused(meta(tmp_path / "bad.mha", PatientName="DOE^JANE", **fields), match, capfd)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"sizes": "5 6 8"}, "truncated"),
        ({"sizes": "99999 99999 99999"}, "truncated"),
        ({"sizes": "5 6"}, "no NRRD file"),
        ({"sizes": "9" * 300}, "no NRRD file"),
        ({"dimension": "DOE"}, "no NRRD file"),
        ({"type": "block"}, "no NRRD file"),
        ({"endian": None}, "no NRRD file"),
        ({"kinds": "RGB-color domain domain"}, "several numbers a voxel"),
        ({"space_directions": "none (0,2,0) (0,0,3)"}, "several numbers a voxel"),
        ({"space_directions": "(1,0,0) (0,2,0)"}, "no NRRD file"),
        ({"space_directions": "(1,0,0) (2,0,0) (0,0,3)"}, "singular"),
        ({"space_directions": "(1,0,0) (0,nan,0) (0,0,3)"}, "NaN"),
        ({"space_origin": "(0,0,inf)"}, "NaN or infinity"),
        ({"space": "scanner-xyz"}, "its space is none of"),
        ({"space_units": '"DOE" "mm" "mm"'}, "other units than mm"),
        ({"space_directions": None, "spacings": "1 2 3", "units": '"cm" "cm" "cm"'}, "other units"),
        ({"encoding": "ascii"}, "neither raw nor gzip"),
        ({"encoding": "bzip2"}, "neither raw nor gzip"),
        ({"line_skip": 1}, "text before its voxels"),
        ({"byte_skip": 10**30}, "truncated"),
        ({"data_file": "none.raw"}, r"the file none\.raw, are missing"),
        ({"data_file": "/etc/passwd"}, "in a file beside it"),
        ({"data_file": "..\\DOE.raw"}, "in a file beside it"),
        ({"data_file": "LIST"}, "in several files"),
        ({"DOE": "(", "no field": "", "": ""}, "no NRRD file"),
    ],
)
def test_bad_nrrds_are_refused(tmp_path, capfd, fields, match):
    refused(nrrd(tmp_path / "bad.nrrd", **{"Patient_name:=": "DOE^JANE", **fields}), match, capfd)


def test_a_small_file_never_asks_for_much_memory(tmp_path):
    """What is packed into a few kB may be a thousand times as much, not a million times."""
    zeros = zlib.compress(bytes(1 << 24))
    path = meta(tmp_path / "a.mha", zeros, CompressedData=True, DimSize="9999 9999 9999")
    with pytest.raises(InputError, match="truncated"):
        io.opened(path)
    # Its header says less than is there: not all of it is unpacked.
    path = meta(tmp_path / "b.mha", zeros, CompressedData=True)
    with pytest.raises(InputError, match="truncated"):
        io.read(path)
