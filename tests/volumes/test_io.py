# SPDX-License-Identifier: Apache-2.0
"""Volumes come back onto their file's own grid, and bad files are refused in one line."""

import dataclasses
import errno
import gzip
import itertools
import os

import cv2
import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames, geometry, io
from contourdiff_jax.volumes import volume as volumes_volume
from contourdiff_jax.volumes.formats import itk, nifti
from contourdiff_jax.volumes.geometry import NativeGrid

# All 48 ways in which the three axes of a file can be ordered and flipped.
ORDERS = list(itertools.permutations(range(3)))
FLIPS = list(itertools.product((1, -1), repeat=3))
SHAPE = (5, 6, 7)


def ramp(shape=SHAPE):
    """Every voxel has its own value."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def rotation(degrees):
    """[3, 3] a rotation about an axis that is none of the coordinates'."""
    angle, axis = np.deg2rad(degrees), np.array([1, 2, 3]) / np.sqrt(14)
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_of(order, flips, degrees=0.0, sizes=(0.5, 1.25, 3.0)):
    """[4, 4] axes in that order, flipped, rotated and of unequal spacing."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ (np.eye(3)[:, list(order)] * flips * sizes)
    affine[:3, 3] = -40, 25, 300
    return affine


def write_nifti(path, array=None, affine=None):
    image = nib.Nifti1Image(
        ramp() if array is None else array, np.eye(4) if affine is None else affine
    )
    nib.save(image, path)
    return path


def content(path):
    """The bytes of a file, out of its gzip."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def replace_content(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def header_of(path):
    """The header's fields as they lie in the file, which nibabel changes on reading and saving."""
    return np.frombuffer(content(path)[:348], nib.Nifti1Header.template_dtype)[0].copy()


def with_fields(path, **fields):
    """A file whose header says what nibabel would not write."""
    write_nifti(path)
    header = header_of(path)
    for name, value in fields.items():
        header[name] = value
    replace_content(path, header.tobytes() + content(path)[348:])
    return path


@pytest.mark.parametrize("degrees", [0.0, 20.0])
@pytest.mark.parametrize("order", ORDERS)
def test_every_orientation_comes_back_unchanged(tmp_path, order, degrees):
    """What is read in RAS and written again has the file's own shape, affine and voxels."""
    for flips in FLIPS:
        affine = affine_of(order, flips, degrees)
        source = write_nifti(tmp_path / "a.nii", affine=affine)
        volume = io.read(source)
        assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
        io.write(tmp_path / "b.nii", volume.array, volume, np.float32, overwrite=True)
        first, second = nib.load(source), nib.load(tmp_path / "b.nii")
        np.testing.assert_array_equal(second.affine, first.affine)
        np.testing.assert_array_equal(second.get_fdata(), first.get_fdata())
        for form in ("qform", "sform"):
            assert second.header[f"{form}_code"] == first.header[f"{form}_code"]


@pytest.mark.parametrize("order", ORDERS)
def test_reading_agrees_with_nibabel(tmp_path, order):
    for flips in FLIPS:
        source = write_nifti(tmp_path / "a.nii", affine=affine_of(order, flips, 20.0))
        volume, reference = io.read(source), nib.as_closest_canonical(nib.load(source))
        np.testing.assert_array_equal(volume.array, reference.get_fdata())
        np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-5)
        shape, affine = io.shape_and_affine(source)
        assert shape == volume.array.shape
        np.testing.assert_array_equal(affine, volume.affine)


def test_real_files_come_back_bit_for_bit(tmp_path, data_root):
    """Real headers have forms that disagree, form codes of 0, and odd axis orders."""
    for name in ("sct/t2.nii.gz", "open_ms/mni/patient07_T2.nii.gz", "stroke/T1.nii.gz"):
        first = nib.load(data_root / "nifti" / name)
        volume = io.read(data_root / "nifti" / name)
        io.write(tmp_path / "out.nii", volume.array, volume, np.float32, overwrite=True)
        second = nib.load(tmp_path / "out.nii")
        np.testing.assert_array_equal(second.get_fdata(), first.get_fdata())
        for code, fields in nifti.FORMS.items():
            for field in (code, *fields) if first.header[code] else (code,):
                np.testing.assert_array_equal(second.header[field], first.header[field], field)
        np.testing.assert_array_equal(second.affine, first.affine)
        np.testing.assert_array_equal(second.header["pixdim"][1:4], first.header["pixdim"][1:4])
        assert second.header.get_xyzt_units()[0] == first.header.get_xyzt_units()[0]


@pytest.mark.parametrize(("qform", "sform"), [(0, 0), (1, 0), (0, 4), (2, 1)])
def test_form_codes_are_kept(tmp_path, qform, sform):
    affine = affine_of((2, 0, 1), (1, -1, 1), 20.0)
    image = nib.Nifti1Image(ramp(), affine)
    image.set_qform(affine, qform)
    image.set_sform(affine, sform)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = io.read(tmp_path / "a.nii.gz")
    io.write(tmp_path / "b.nii.gz", volume.array, volume, np.int16)
    header = nib.load(tmp_path / "b.nii.gz").header
    assert (header["qform_code"], header["sform_code"]) == (qform, sform)
    np.testing.assert_array_equal(header.get_best_affine(), nib.load(tmp_path / "a.nii.gz").affine)


def test_sheared_affine_is_an_sform_only(tmp_path):
    """A quaternion cannot express shear: writing one would move the image silently."""
    affine = np.eye(4)
    affine[0, 2] = 0.3  # the tilted gantry of a CT scanner
    io.save(tmp_path / "a.nii.gz", ramp(), affine, np.float32)
    volume = io.read(tmp_path / "a.nii.gz")
    io.write(tmp_path / "b.nii.gz", volume.array, volume, np.float32)
    for name in ("a", "b"):
        image = nib.load(tmp_path / f"{name}.nii.gz")
        assert image.header["qform_code"] == 0 and image.header["sform_code"] > 0
        np.testing.assert_allclose(image.affine, affine, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 7, 1), (5, 6, 7, 1, 1), (5, 6, 1, 1)])
def test_shapes_with_fewer_or_more_axes_come_back(tmp_path, shape):
    """A slice is a volume, a series of one its only volume; both are written as they were."""
    source = write_nifti(tmp_path / "a.nii", ramp(shape), affine_of((0, 2, 1), (1, 1, -1)))
    volume = io.read(source)
    assert volume.array.ndim == 3 and volume.array.size == np.prod(shape)
    io.write(tmp_path / "b.nii", volume.array, volume, np.float32)
    first, second = nib.load(source), nib.load(tmp_path / "b.nii")
    assert second.shape == first.shape
    np.testing.assert_array_equal(second.get_fdata(), first.get_fdata())
    np.testing.assert_array_equal(second.affine, first.affine)


def test_nifti2_stays_nifti2(tmp_path):
    nib.save(nib.Nifti2Image(ramp(), affine_of((1, 0, 2), (1, 1, 1))), tmp_path / "a.nii.gz")
    volume = io.read(tmp_path / "a.nii.gz")
    io.write(tmp_path / "b.nii.gz", volume.array, volume, np.float32)
    second = nib.load(tmp_path / "b.nii.gz")
    assert isinstance(second, nib.Nifti2Image)
    np.testing.assert_array_equal(second.affine, nib.load(tmp_path / "a.nii.gz").affine)


def test_units_are_converted_to_millimetres(tmp_path):
    rows = dict(
        zip(("srow_x", "srow_y", "srow_z"), np.diag((0.002, 0.002, 0.003, 1)), strict=False)
    )
    source = with_fields(tmp_path / "a.nii", xyzt_units=nib.nifti1.unit_codes["meter"], **rows)
    volume = io.read(source)
    np.testing.assert_allclose(geometry.spacing(volume.affine), (2, 2, 3))
    io.write(tmp_path / "b.nii", volume.array, volume, np.float32)
    np.testing.assert_allclose(io.read(tmp_path / "b.nii").affine, volume.affine)


def test_scaled_integers_are_read_in_their_units(tmp_path):
    image = nib.Nifti1Image(ramp().astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / "a.nii.gz")
    reference = nib.load(tmp_path / "a.nii.gz").get_fdata()
    np.testing.assert_allclose(io.read(tmp_path / "a.nii.gz").array, reference)


def test_integers_are_rounded_and_clipped_and_not_rescaled(tmp_path):
    """Wrapped HU are a classic: -1000.4 must stay air, 40000 must not become negative."""
    volume = io.read(write_nifti(tmp_path / "a.nii"))
    array = volume.array.copy()
    array[0, 0, :4] = -1000.4, 12.6, 40000, -40000
    io.write(tmp_path / "b.nii", array, volume, np.int16)
    image = nib.load(tmp_path / "b.nii")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(image.dataobj[0, 0, :4], [-1000, 13, 32767, -32768])
    header = header_of(tmp_path / "b.nii")
    assert header["scl_slope"] == 1 and header["scl_inter"] == 0


def test_nothing_that_could_name_a_patient_is_copied(tmp_path):
    secret = b"DOE^JANE"
    image = nib.Nifti1Image(ramp(), np.eye(4))
    for field in ("descrip", "intent_name", "aux_file", "db_name"):
        image.header[field] = secret
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", secret))
    nib.save(image, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes().count(secret) == 5
    volume = io.read(tmp_path / "a.nii")
    io.write(tmp_path / "b.nii", volume.array, volume, np.float32)
    assert secret not in (tmp_path / "b.nii").read_bytes()


@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 1)])
def test_numbers_of_axes_that_are_not_kept_are_not_copied(tmp_path, shape):
    """Time between volumes, and whatever else a program has put there."""
    image = nib.Nifti1Image(ramp(shape), np.eye(4))
    image.header["pixdim"][4:] = 19570131, 47.11, 8.15, 3
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, tmp_path / "a.nii")
    volume = io.read(tmp_path / "a.nii")
    io.write(tmp_path / "b.nii", volume.array, volume, np.float32)
    header = header_of(tmp_path / "b.nii")
    np.testing.assert_array_equal(header["pixdim"][4:], 1)
    assert nib.load(tmp_path / "b.nii").header.get_xyzt_units() == ("mm", "unknown")


@pytest.mark.parametrize("code", ["qform_code", "sform_code"])
def test_of_a_header_nothing_travels_but_where_the_voxels_lie(tmp_path, code):
    """Every other byte is that of a new header, those of a form that is not in use too."""
    image = nib.Nifti1Image(ramp(), np.diag((2, 3, 4, 1)))
    image.header.set_qform(image.affine, code=1)
    image.header.set_sform(image.affine, code=1)
    nib.save(image, tmp_path / "a.nii")
    plain = header_of(tmp_path / "a.nii")
    kept = {"sizeof_hdr", "dim", "datatype", "bitpix", "vox_offset", "magic", "pixdim", code}
    kept |= {"scl_slope", "scl_inter", "xyzt_units", *nifti.FORMS[code]}
    changed = plain.copy()
    for name, (dtype, _) in plain.dtype.fields.items():
        if name not in kept:
            changed[name] = np.frombuffer(bytes(range(1, 1 + dtype.itemsize)), dtype)[0]
    changed["pixdim"][4:] = 19570131
    for other in nifti.FORMS.keys() - {code}:
        changed[other] = 0
    path = tmp_path / "b.nii"
    path.write_bytes(changed.tobytes() + (tmp_path / "a.nii").read_bytes()[348:])
    volume = io.read(path)
    io.write(tmp_path / "c.nii", volume.array, volume, np.float32)
    written, new = header_of(tmp_path / "c.nii"), nib.Nifti1Header().structarr
    for name in plain.dtype.names:
        expected = plain if name in kept else new
        np.testing.assert_array_equal(written[name], expected[name], err_msg=name)


def test_written_files_are_reproducible(tmp_path):
    """The same voxels give the same bytes, whenever they are written: no time stamp in the gzip."""
    volume = io.read(write_nifti(tmp_path / "a.nii"))
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
        io.write(tmp_path / name / "x.nii.gz", volume.array, volume, np.float32)
    assert disk.sha256(tmp_path / "b/x.nii.gz") == disk.sha256(tmp_path / "c/x.nii.gz")


# --------------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------------


def truncated(path):
    write_nifti(path)
    path.write_bytes(path.read_bytes()[:-12])


def something_else(path):
    replace_content(path, b"DICM" * 200)


def not_gzip(path):
    path.write_bytes(b"DICM" * 200)


def wrong_magic(path):
    with_fields(path, magic=b"abc")


def empty(path):
    path.touch()


def empty_inside(path):
    replace_content(path, b"")


def not_a_number(path):
    write_nifti(path, np.where(ramp() == 3, np.nan, ramp()))


def infinite(path):
    write_nifti(path, np.where(ramp() == 3, np.inf, ramp()))


def series(path):
    write_nifti(path, ramp((5, 6, 7, 2)))


def colour(path):
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), path)


def complex_numbers(path):
    write_nifti(path, ramp().astype(np.complex64))


def constant(path):
    write_nifti(path, np.full(SHAPE, 7, np.float32))


def no_voxels(path):
    write_nifti(path, np.zeros((4, 0, 4), np.float32))


def singular(path):
    with_fields(path, srow_z=0)


def not_finite_affine(path):
    with_fields(path, srow_x=np.nan)


def nearly_constant(path):
    write_nifti(path, (1000 + 1e-3 * (ramp() % 7)).astype(np.float32))


def without_contrast_in_float32(path):
    write_nifti(path, (1e-40 * ramp()).astype(np.float32))


def beyond_all_images(path):
    write_nifti(path, (1e34 * ramp()).astype(np.float32))


def metres(path):
    write_nifti(path, affine=np.diag((8e-4, 8e-4, 3e-3, 1)))


def thousandths(path):
    write_nifti(path, affine=np.diag((900, 900, 3000, 1)))


def one_axis_damaged(path):
    write_nifti(path, affine=np.diag((1, 1, 1e-20, 1)))


def all_axes_damaged(path):
    write_nifti(path, affine=np.diag((1e-9, 1e-9, 1e-9, 1)))


def huge(path):
    with_fields(path, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])


def header_only(path):
    replace_content(path, content(write_nifti(path))[:352])


BAD = {
    truncated: "truncated",
    header_only: "truncated",
    something_else: "not a NIfTI file",
    not_gzip: "not a NIfTI file",
    wrong_magic: "not a NIfTI file",
    empty: "empty",
    empty_inside: "empty|not a NIfTI file",
    not_a_number: "1 voxels are NaN or infinite",
    infinite: "1 voxels are NaN or infinite",
    series: "4 axes",
    colour: "colour",
    complex_numbers: "complex",
    constant: "constant volume, every voxel is 7",
    no_voxels: "holds no image",
    singular: "singular",
    not_finite_affine: "NaN or infinity",
    huge: "not enough memory|truncated",
    nearly_constant: "constant volume but for rounding, all voxels are 1000",
    without_contrast_in_float32: "constant volume but for rounding",
    beyond_all_images: r"values from 0 to .*e\+\d+, as no image has",
    metres: "voxels of 0.0008 x 0.0008 x 0.003 mm, likely in metres",
    thousandths: "voxels of 900 x 900 x 3e[+]03 mm, likely in micrometres",
    one_axis_damaged: "voxels of 1 x 1 x 1e-20 mm, damaged",
    all_axes_damaged: "voxels of 1e-09 x 1e-09 x 1e-09 mm, damaged",
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_files_are_refused_in_one_line(tmp_path, capfd, caplog, make, suffix):
    """The message names the file and the reason; nibabel adds no warning and no log line."""
    path = tmp_path / f"bad{suffix}"
    make(path)
    capfd.readouterr()  # what making the file has printed
    caplog.clear()
    with pytest.raises(InputError, match=BAD[make]) as caught:
        io.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert message.count(str(path)) == 1
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_a_damaged_header_never_gives_another_error(tmp_path):
    """Whatever a broken copy did to a header, there is a volume or an InputError."""
    good = write_nifti(tmp_path / "a.nii", ramp().astype(np.int16)).read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for place in generator.integers(40, 348, 3):
            data[place] = generator.integers(256)
        (tmp_path / "b.nii").write_bytes(data)
        try:
            assert io.read(tmp_path / "b.nii").array.ndim == 3
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50, "the damage must matter"


@pytest.mark.parametrize("suffix", [".nii", ".mha", ".nrrd", ".png", ".npy", ".dcm"])
@pytest.mark.parametrize("size", [1e-9, 0.009, 101.0])
def test_voxels_of_no_plausible_size_are_refused_in_every_format(tmp_path, suffix, size):
    path, assumed = tmp_path / f"a{suffix}", volumes_volume.UNKNOWN
    if suffix in (".png", ".npy"):
        assumed = volumes_volume.Assumed(spacing=size)
        plane = ramp()[:, :, 0].astype(np.uint8)
        np.save(path, plane) if suffix == ".npy" else cv2.imwrite(str(path), plane)
    elif suffix == ".dcm":
        [path] = write_series(
            tmp_path, ramp()[:, :, :1].astype(np.int16), spacing=(size, size), names=["a.dcm"]
        )
    elif suffix == ".nii":
        write_nifti(path, affine=np.diag((size, 1, 1, 1)))
    else:
        itk.write(path, ramp(), NativeGrid(SHAPE, np.diag((size, 1, 1, 1))), np.float32, False)
    for action in (io.read, io.opened, io.shape_and_affine):
        with pytest.raises(InputError, match=r"voxels of|PixelSpacing is damaged") as caught:
            action(path, assumed=assumed)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 63.5 TiB"),
        ValueError("Maximum allowed dimension exceeded"),
        ValueError("array is too big; `arr.size * arr.dtype.itemsize` is larger"),
    ],
)
def test_what_does_not_fit_into_memory_is_the_files_failure(tmp_path, monkeypatch, error):
    def fail():
        raise error

    path = write_nifti(tmp_path / "a.nii")
    image = nifti.opened(path)
    monkeypatch.setattr(nifti, "opened", lambda _: dataclasses.replace(image, voxels=fail))
    with pytest.raises(InputError, match=r"a\.nii: not enough memory"):
        io.read(path)


def test_missing_files_and_other_types_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("not an image")
    for name, match in (("none.nii", "no such"), ("a.txt", "unsupported"), (".", "a folder")):
        with pytest.raises(InputError, match=match):
            io.read(tmp_path / name)


def test_forbidden_files_are_refused(tmp_path, monkeypatch):
    """Permission bits mean nothing to root, so the refusal itself is simulated."""
    path = write_nifti(tmp_path / "a.nii.gz")

    def forbid(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(type(path), "open", forbid)
    for action in (io.read, disk.sha256):
        with pytest.raises(InputError, match=r"a\.nii\.gz: cannot be read: Permission denied"):
            action(path)


def test_label_maps_may_be_constant_but_hold_whole_numbers(tmp_path):
    """A healthy subject's lesion map is all zeros; a probability map is no label map."""
    path = write_nifti(tmp_path / "a.nii", np.zeros(SHAPE, np.uint8))
    assert not io.read(path, labels=True).array.any()
    for value in (0.5, -1, 70000):
        write_nifti(path, np.where(ramp() == 3, value, 0).astype(np.float32))
        with pytest.raises(InputError, match="whole numbers"):
            io.read(path, labels=True)


# --------------------------------------------------------------------------------------------------
# Writing goes wrong
# --------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz")
    before = path.read_bytes()
    volume = io.read(path)
    with pytest.raises(InputError, match="exists already"):
        io.write(path, volume.array + 1, volume, np.float32)
    assert path.read_bytes() == before
    io.write(path, volume.array + 1, volume, np.float32, overwrite=True)
    np.testing.assert_array_equal(io.read(path).array, volume.array + 1)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    volume = io.read(write_nifti(tmp_path / "a.nii.gz"))

    def half(_, path):
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(nib, "save", half)
    with pytest.raises(InputError, match=r"b\.nii\.gz: cannot be written: no space left"):
        io.write(tmp_path / "b.nii.gz", volume.array, volume, np.float32)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_target_that_cannot_exist_is_refused(tmp_path):
    volume = io.read(write_nifti(tmp_path / "a.nii.gz"))
    for path, match in (
        (tmp_path / "a.nii.gz" / "b.nii.gz", "written"),
        (tmp_path / "b.png", "type"),
    ):
        with pytest.raises(InputError, match=match):
            io.write(path, volume.array, volume, np.float32)
    with pytest.raises(InputError, match="singular"):
        io.save(tmp_path / "c.nii", ramp(), np.diag([1, 1, 0, 1]), np.float32)


# --------------------------------------------------------------------------------------------------
# Names
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("head01_ct.nii.gz", "head01"),
        ("head01_T1w.nii", "head01"),
        ("case_03_0000.nii.gz", "case_03"),
        ("case_03_ct_labels.nii.gz", "case_03"),
        ("sub-01_ses-2_flair.nii.gz", "sub-01_ses-2"),
        ("ct.nii.gz", "ct"),
        ("contact.nii.gz", "contact"),
        ("a.b_mr.NII.GZ", "a.b"),
    ],
)
def test_subjects_are_named_by_their_files(name, subject):
    assert filenames.subject_of(f"folder_ct/{name}") == subject


# --------------------------------------------------------------------------------------------------
# Unevenly spaced slices
# --------------------------------------------------------------------------------------------------

PLACES = np.array([0, 4, 8, 15, 22, 29.0])  # mm


def uneven(order=(0, 1, 2), flips=(1, 1, 1)):
    """A volume of slices at PLACES mm along the file's third axis, its values linear in place."""
    shape = (5, 4, len(PLACES))
    step = PLACES[-1] / (len(PLACES) - 1)
    grid = geometry.NativeGrid(
        shape, affine_of(order, flips, sizes=(1, 2, step)), offsets=PLACES / step
    )
    i, j = np.ogrid[:5, :4]
    array = (100 * i + 10 * j)[..., None] + PLACES
    return volumes_volume.canonical(array.astype(np.float32), grid, "uneven", (), ())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_uneven_slices_become_even_without_moving(order, flips):
    volume = uneven(order, flips)
    even = volume.even()
    # Slices 4 mm apart or a little less, from the first to the last; linear values stay linear.
    assert even.native.shape == (5, 4, 9)
    axis = even.native.orientation[2, 0].astype(int)
    assert geometry.spacing(even.affine)[axis] == pytest.approx(29 / 8)
    middle = even.to_native(even.array)[2, 1]
    np.testing.assert_allclose(middle, 210 + np.linspace(0, 29, 9), atol=1e-4)
    for corner in (0, -1):
        np.testing.assert_array_equal(
            even.to_native(even.array)[..., corner], volume.to_native(volume.array)[..., corner]
        )
    assert even.even() is even


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_uneven_slices_are_known_where_they_are(order, flips):
    volume = uneven(order, flips)
    axis, offsets = volume.offsets
    assert np.all(np.diff(offsets) > 0)
    # The place of each slice along the axis, read from the values, is where its offset says.
    line = np.moveaxis(volume.array, axis, -1)[0, 0]
    start = np.eye(4)[3]
    for offset, value in zip(offsets, line - line.min(), strict=True):
        start[axis] = offset
        place = (volume.affine @ start - volume.native.affine[:, 3])[:3]
        expected = volume.native.affine[:3, 2] / geometry.spacing(volume.native.affine)[2]
        assert place @ expected == pytest.approx(value, abs=1e-4)


def test_uneven_slices_are_written_even(tmp_path):
    volume = uneven()
    io.write(tmp_path / "x.nii.gz", volume.array, volume, np.float32)
    back = io.read(tmp_path / "x.nii.gz")
    np.testing.assert_allclose(back.array, volume.even().array, atol=1e-4)
    np.testing.assert_allclose(back.affine, volume.even().affine, atol=1e-4)


def test_two_slices_that_almost_coincide_do_not_make_thousands():
    offsets = np.array([0, 1, 2, 2.001, 3, 4.0])
    grid = geometry.NativeGrid((5, 4, 6), np.eye(4), offsets=offsets * 5 / 4)
    assert grid.even().shape[2] < 30
