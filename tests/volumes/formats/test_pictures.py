# SPDX-License-Identifier: Apache-2.0
"""Pictures keep every number and lie the right way round; what would lose some is refused."""

import errno
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from PIL import PngImagePlugin

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import geometry, io
from contourdiff_jax.volumes import volume as volumes_volume
from contourdiff_jax.volumes.formats import pictures
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.volume import BRAIN, TURNS, Assumed, BadSlices

ROWS, COLUMNS = 6, 5

# Anterior is above, the patient's right on the left, and nothing about it is symmetrical.
LETTER = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]], np.uint8)


def numbers(dtype=np.uint8, slices=1):
    """[slices, rows, columns] over the whole range of the type, each slice another."""
    dtype = np.dtype(dtype)
    generator = np.random.default_rng(0)
    shape = slices, ROWS, COLUMNS
    if dtype.kind == "b":
        return generator.random(shape) < 0.5
    if dtype.kind == "f":
        return generator.normal(0, 100, shape).astype(dtype)
    limits = np.iinfo(dtype)
    array = generator.integers(
        limits.min, limits.max, shape, dtype.newbyteorder("="), endpoint=True
    )
    array.flat[:2] = limits.min, limits.max
    return array.astype(dtype)


def save(path, array, **options):
    Pillow.fromarray(array).save(path, **options)
    return path


def series(folder, suffix=".png", dtype=np.uint8, slices=4):
    """Files of a slice each, in their order, and their numbers."""
    array = numbers(dtype, slices)
    return [save(folder / f"s{number}{suffix}", a) for number, a in enumerate(array)], array


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, bits, colour, rows, size=(COLUMNS, ROWS), chunks=b"", end=b""):
    """A PNG of packed rows, which Pillow might not write."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    body = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", data)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + end + chunk(b"IEND", b""))


def plain(path):
    """What Pillow reads."""
    with Pillow.open(path) as image:
        return np.asarray(image)


def stored(path, assumed=volumes_volume.UNKNOWN):
    """[slices, rows, columns] what the files hold, before it becomes a volume."""
    image = io.opened(path, assumed)
    array = image.voxels()
    assert array.shape == image.native.shape
    return array.reshape(image.native.shape3).T


# --------------------------------------------------------------------------------------------------
# The right way round
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".npy"])
def test_pictures_come_out_of_the_grid_unturned_and_in_order(tmp_path, suffix):
    """What a person sees of a picture is what an axial slice of the volume shows."""
    files = [tmp_path / f"{number}{suffix}" for number in range(3)]
    planes = [LETTER * value for value in (10, 20, 30)]
    for path, plane in zip(files, planes, strict=True):
        np.save(path, plane) if suffix == ".npy" else save(path, plane)
    volume = io.read(files, assumed=Assumed(spacing=0.5))
    assert volume.array.shape == (4, 5, 3)
    np.testing.assert_allclose(geometry.spacing(volume.affine), 0.5)
    resampling = Grid("axial", 0.5, 5).fit(volume.array.shape, volume.affine)
    assert (np.diff(resampling.positions) > 0).all(), "the first picture is the lowest"
    for plane, whole in zip(planes, resampling.planes(volume.array), strict=True):
        np.testing.assert_array_equal(whole, plane)
    np.testing.assert_array_equal(
        resampling.slices(volume.array, 0)[:, :, :4], np.array(planes) / 2 + _shifted(planes) / 2
    )


def _shifted(planes):
    """Four columns have their middle between two of five: half a pixel to the left."""
    return np.pad(planes, ((0, 0), (0, 0), (1, 0)))[:, :, :4]


@pytest.mark.parametrize(
    ("dtype", "assumed", "span"),
    [
        (np.uint8, volumes_volume.UNKNOWN, (0, 255)),
        (np.uint8, Assumed(range=(-1000.0, 1000.0)), (-1000, 1000)),
        (bool, volumes_volume.UNKNOWN, (0, 1)),
        (np.uint16, volumes_volume.UNKNOWN, None),
        (np.int8, volumes_volume.UNKNOWN, None),
        (np.float32, volumes_volume.UNKNOWN, None),
    ],
)
def test_of_8_bits_it_is_known_what_black_and_white_are(tmp_path, dtype, assumed, span):
    np.save(tmp_path / "a.npy", numbers(dtype)[0])
    assert io.opened(tmp_path / "a.npy", assumed).span == span
    assert io.read(tmp_path / "a.npy", assumed=assumed).span == span


@pytest.mark.parametrize("size", [4, 7])
def test_a_picture_on_its_own_grid_is_the_picture(tmp_path, size):
    plane = np.pad(LETTER[:4], ((0, 3), (0, 3)))[:size, :size] * np.uint8(9)
    volume = io.read(save(tmp_path / "a.png", plane))
    [cut] = Grid("axial", 1, size).fit(volume.array.shape, volume.affine).slices(volume.array, 0)
    np.testing.assert_array_equal(cut, plane)


def test_real_pictures_are_what_pillow_reads_and_come_back(tmp_path, data_root):
    files = sorted((data_root / "png2d" / "harvard_ct").glob("16*.png"))
    volume = io.read(files)
    reference = np.stack([plain(path) for path in files])
    resampling = Grid("axial", 1, 256).fit(volume.array.shape, volume.affine)
    np.testing.assert_array_equal(resampling.slices(volume.array, 0), reference)
    written = pictures.write(tmp_path, pictures.names(files), volume.array, volume, (0, 255))
    assert [path.name for path in written] == [path.name for path in files]
    for path, plane in zip(written, reference, strict=True):
        assert plain(path).dtype == np.uint8
        np.testing.assert_array_equal(plain(path), plane)


def test_spacing_is_assumed_and_said(tmp_path):
    files, _ = series(tmp_path)
    image = io.opened(files)
    assert image.notes == ("pixel spacing unknown, taken as 1 mm",)
    np.testing.assert_allclose(geometry.spacing(image.native.affine), 1)
    assert io.opened(files, Assumed(spacing=2.5)).notes == ()


# --------------------------------------------------------------------------------------------------
# Every number
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        *((suffix, dtype) for suffix in (".png", ".tif", ".bmp") for dtype in (bool, np.uint8)),
        *((suffix, np.uint16) for suffix in (".png", ".tif")),
        (".jpg", np.uint8),
    ],
)
def test_files_of_pillow_are_read_as_pillow_reads_them(tmp_path, suffix, dtype):
    array = numbers(dtype)[0]
    path = save(tmp_path / f"a{suffix}", array)
    np.testing.assert_array_equal(stored(path)[0], plain(path))
    image = io.opened(path)
    assert image.dtype == dtype and image.native.shape == (COLUMNS, ROWS)
    if suffix == ".jpg":
        assert "lossy JPEG" in image.notes
    else:
        np.testing.assert_array_equal(stored(path)[0], array)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "u4", "f4"])
def test_tiffs_are_read_as_tifffile_reads_them(tmp_path, dtype, compression, order):
    """Or refused: of compressed big-endian ones Pillow mixes up the bytes."""
    array = numbers(dtype, 3)
    path = tmp_path / "a.tif"
    options = {"compression": compression, "byteorder": order, "photometric": "minisblack"}
    tifffile.imwrite(path, array, **options)
    if order == ">" and (dtype == "u4" or (compression and dtype in ("i2", "i4", "f4"))):
        with pytest.raises(InputError, match=r"big-endian|can be read"):
            io.opened(path)
        return
    image = io.opened(path)
    assert image.dtype == dtype and image.native.shape == (COLUMNS, ROWS, 3)
    np.testing.assert_array_equal(stored(path), tifffile.imread(path).astype(np.float32))


@pytest.mark.parametrize("options", [{"imagej": True}, {}], ids=["imagej", "tifffile"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_stacks_with_one_directory_are_read_whole(tmp_path, dtype, options):
    """As ImageJ writes them above 4 GB."""
    array = numbers(dtype, 7)
    options |= {"truncate": True, "photometric": "minisblack"}
    for order in ("<", ">"):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, array, **options, byteorder=order)
        with Pillow.open(path) as image:
            assert image.n_frames == 1
        image = io.opened(path)
        assert image.dtype == dtype and image.native.shape == (COLUMNS, ROWS, 7)
        np.testing.assert_array_equal(stored(path), array.astype(np.float32))
        path.write_bytes(path.read_bytes()[: -ROWS * COLUMNS * array.itemsize])
        with pytest.raises(InputError, match="says 7 images, and holds one page"):
            io.opened(path)


@pytest.mark.parametrize("axes", ["ZYX", "TYX", "CYX"])
def test_one_axis_beside_the_plane_is_that_of_the_slices(tmp_path, axes):
    array = numbers(np.uint16, 7)
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": axes})
    np.testing.assert_array_equal(stored(tmp_path / "a.tif"), array)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_depths_are_not_spread(tmp_path, bits):
    """Pillow makes 0, 85, 170, 255 of the 0, 1, 2, 3 of two bits: labels would be others."""
    values = np.arange(8 * ROWS).reshape(ROWS, 8) % 2**bits
    planes = (values[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(planes.reshape(ROWS, -1), axis=1)
    png(tmp_path / "a.png", bits, 0, rows, size=(8, ROWS))
    np.testing.assert_array_equal(stored(tmp_path / "a.png")[0], values)


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", ">u2", "i4", "u8", "f2", ">f4", "f8"])
def test_arrays_of_any_real_type_are_read(tmp_path, dtype):
    array = numbers(dtype, 3)
    path = tmp_path / "a.npy"
    np.save(path, array)
    np.testing.assert_array_equal(stored(path), array.astype(np.float32))
    np.save(path, np.asfortranarray(array[0]))
    assert io.opened(path).native.shape == (COLUMNS, ROWS)
    np.testing.assert_array_equal(stored(path)[0], array[0].astype(np.float32))


def test_what_float32_cannot_hold_is_not_finite(tmp_path):
    np.save(tmp_path / "a.npy", numbers("f8") * 1e300)
    with pytest.raises(InputError, match="NaN or infinite"):
        io.read(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".tif"])
def test_grey_stored_as_colour_is_grey(tmp_path, suffix):
    grey = save(tmp_path / f"grey{suffix}", numbers()[0])
    colour = tmp_path / f"colour{suffix}"
    Pillow.fromarray(plain(grey)).convert("RGB").save(colour, quality=100)
    assert "grey stored as RGB" in io.opened(colour).notes
    difference = np.abs(stored(colour) - stored(grey)).max()
    assert difference == 0 or (suffix == ".jpg" and difference < 20)


def test_grey_stored_as_a_palette_is_grey(tmp_path):
    """Whatever the order of the palette: programs that shrink files choose their own."""
    image = Pillow.fromarray(numbers()[0] % 4)
    image.putpalette(np.repeat([200, 0, 90, 255], 3).astype(np.uint8).tobytes())
    image.save(tmp_path / "a.png")
    assert "grey stored as a palette" in io.opened(tmp_path / "a.png").notes
    np.testing.assert_array_equal(
        stored(tmp_path / "a.png")[0], np.array([200, 0, 90, 255])[numbers()[0] % 4]
    )


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535)])
@pytest.mark.parametrize("suffix", [".png", ".npy", ".tif"])
def test_a_range_is_that_of_all_that_the_integers_can_hold(tmp_path, dtype, full, suffix):
    path, array = tmp_path / f"a{suffix}", numbers(dtype)[0]
    np.save(path, array) if suffix == ".npy" else save(path, array)
    values = stored(path, Assumed(range=(-1000.0, 2000.0)))[0]
    np.testing.assert_allclose(values, -1000 + array / full * 3000, atol=1e-3)
    assert values.min() == -1000 and values.max() == 2000


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 40_000)])
@pytest.mark.parametrize("brightest", [1200, 3000])
def test_the_range_of_a_head_is_found_by_its_brain(tmp_path, dtype, full, brightest):
    """A head of air, skin, bone and brain, scaled to its own brightest voxel: HU come back."""
    rows, columns = np.mgrid[:128, :128] - 64
    radius = np.hypot(rows, columns)
    hu = np.select([radius < 45, radius < 50, radius < 55], [35.0, 900.0, -80.0], -1000.0)
    hu += np.random.default_rng(0).normal(0, 5, hu.shape) * (radius < 45)
    hu[64, 17] = brightest
    scaled = np.round((hu + 1000) / (brightest + 1000) * full).astype(dtype)
    save(tmp_path / "head.png", scaled)
    values = stored(tmp_path / "head.png", Assumed(range=BRAIN))[0]
    step = (brightest + 1000) / full
    assert np.abs(values - hu).max() < max(2 * step, 0.01 * brightest)
    assert abs(np.median(values[radius < 45]) - 35) < max(step, 3)


def test_a_picture_without_greys_has_no_brain(tmp_path):
    save(tmp_path / "a.png", np.uint8([[0, 255]] * 2))
    with pytest.raises(InputError, match="nothing between black and white that could be brain"):
        stored(tmp_path / "a.png", Assumed(range=BRAIN))


def test_a_narrow_window_hides_air_and_bone(tmp_path):
    save(tmp_path / "a.png", np.uint8([[0, 1, 254, 255]] * 4))
    for (low, high), (black, white) in {
        (-25.0, 115.0): (-1000, 1000),
        (-100.0, 400.0): (-1000, 400),
        (-1000.0, 200.0): (-1000, 200),
        (0.0, 255.0): (0, 255),  # no window of CT
    }.items():
        values = stored(tmp_path / "a.png", Assumed(range=(low, high)))[0][0]
        step = (high - low) / 255
        np.testing.assert_allclose(values, [black, low + step, high - step, white], rtol=1e-5)


def test_a_range_is_only_for_pictures_that_fill_one(tmp_path):
    for name, array in (("a", numbers(np.int16)), ("b", numbers(np.float32)), ("c", numbers("?"))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(InputError, match="a range of values is for 8- and 16-bit unsigned"):
            io.opened(tmp_path / f"{name}.npy", Assumed(range=(0.0, 1.0)))


def test_interlaced_pictures_are_read(tmp_path):
    """Seven passes over 8 x 8 pixels, of which each holds its own rows."""
    array = np.arange(64, dtype=np.uint8).reshape(8, 8)
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]
    passes = [array[y::dy, x::dx] for y, x, dy, dx in [*starts, (1, 0, 2, 1)]]
    data = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    np.testing.assert_array_equal(stored(tmp_path / "a.png")[0], array)


# --------------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------------


def mode(name):
    """Random pixels of a mode of Pillow."""

    def write(path):
        count = len(Pillow.new(name, (1, 1)).getbands())
        data = np.random.default_rng(0).integers(0, 256, (ROWS, COLUMNS, count), np.uint8)
        Pillow.frombytes(name, (COLUMNS, ROWS), data.tobytes()).save(path)

    write.__name__ = f"mode_{name}"
    return write


def palette_of_colours(path):
    image = Pillow.fromarray(numbers()[0])
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(path)


def deep_colour(path):
    png(path, 16, 2, np.zeros((ROWS, COLUMNS * 6), np.uint8))


def deep_alpha(path):
    png(path, 16, 4, np.zeros((ROWS, COLUMNS * 4), np.uint8))


def transparent_grey(path):
    Pillow.fromarray(numbers()[0]).save(path, transparency=3)


def deep_colour_tiff(path):
    tifffile.imwrite(path, np.zeros((ROWS, COLUMNS, 3), np.uint16), photometric="rgb")


def two_numbers_a_pixel(path):
    data = np.zeros((ROWS, COLUMNS, 2), np.uint8)
    tifffile.imwrite(path, data, photometric="minisblack", extrasamples=["unspecified"])


def inverted(path):
    tifffile.imwrite(path, numbers(np.uint16)[0], photometric="miniswhite")


def doubles(path):
    tifffile.imwrite(path, numbers(np.float64)[0])


def unlike_pages(path):
    first, second = (Pillow.fromarray(array) for array in (numbers()[0], numbers()[0, :4]))
    first.save(path, save_all=True, append_images=[second])


def animation(path):
    first, second = (Pillow.fromarray(array) for array in numbers(slices=2))
    first.save(path, save_all=True, append_images=[second])


def turned(path):
    exif = Pillow.Exif()
    exif[pictures.ORIENTATION] = 6
    save(path, numbers()[0], exif=exif)


def truncated(path):
    save(path, numbers()[0])
    path.write_bytes(path.read_bytes()[:-30])


def truncated_tiff(path):
    save(path, numbers(np.uint16)[0], compression="tiff_lzw")
    data = path.read_bytes()
    path.write_bytes(data[:9] + b"\xff" * 20 + data[29:])


def wrong_checksum(path):
    save(path, numbers()[0])
    data = bytearray(path.read_bytes())
    data[-14] ^= 1
    path.write_bytes(data)


def missing_rows(path):
    """All is as it should be but for the pixels, which end early: Pillow fills up with black."""
    png(path, 8, 0, numbers()[0, :3])


def bomb(path):
    png(path, 8, 0, numbers()[0], size=(8000, 8000))


def large(path):
    png(path, 8, 0, numbers()[0], size=(12000, 12000))


def enormous(path):
    png(path, 8, 0, numbers()[0], size=(60000, 60000))


def text_bomb(path):
    data = b"Comment\0\0" + zlib.compress(bytes(1 << 24))
    png(path, 8, 0, numbers()[0], chunks=chunk(b"zTXt", data))


def something_else(path):
    path.write_bytes(b"GIF89a" + bytes(100))


def empty(path):
    path.touch()


def constant(path):
    save(path, np.full((ROWS, COLUMNS), 7, np.uint8))


def objects(path):
    np.save(path, np.array([[None, 1], [2, 3]]), allow_pickle=True)


def complex_numbers(path):
    np.save(path, numbers("f4")[0].astype(np.complex64))


def records(path):
    np.save(path, np.zeros((4, 4), [("a", "f4"), ("b", "i2")]))


def colour_array(path):
    np.save(path, np.zeros((ROWS, COLUMNS, 3), np.uint8))


def four_axes(path):
    np.save(path, numbers(slices=3)[None])


def one_axis(path):
    np.save(path, numbers().ravel())


def no_numbers(path):
    np.save(path, np.zeros((0, 4, 5)))


def truncated_array(path):
    np.save(path, numbers()[0])
    path.write_bytes(path.read_bytes()[:-1])


def archive(path):
    with path.open("wb") as file:
        np.savez(file, a=numbers()[0])


def not_a_number(path):
    np.save(path, np.where(numbers() == 255, np.nan, 1.0))


def several_axes(**options):
    """Pages of which every second is of another channel or time."""

    def write(path):
        array = numbers(np.uint16, 6).reshape(3, 2, ROWS, COLUMNS)
        tifffile.imwrite(path, array, photometric="minisblack", **options)

    return write


BAD = [
    (several_axes(imagej=True, metadata={"axes": "ZCYX"}), ".tif", "2 x 3 slices, channels or"),
    (several_axes(imagej=True, metadata={"axes": "TZYX"}), ".tif", "2 x 3 slices, channels or"),
    (several_axes(ome=True, metadata={"axes": "ZCYX"}), ".tif", "2 x 3 slices, channels or"),
    (several_axes(), ".tif", "3 x 2 slices, channels or times in one stack"),
    (mode("RGB"), ".png", "colour; save it as greyscale"),
    (mode("RGB"), ".bmp", "colour; save it as greyscale"),
    (mode("RGB"), ".jpg", "colour; save it as greyscale"),
    (mode("CMYK"), ".jpg", "colour of mode CMYK"),
    (mode("CMYK"), ".tif", "colour of mode CMYK"),
    (mode("LAB"), ".tif", "colour of mode LAB"),
    (mode("LA"), ".png", "transparency"),
    (mode("RGBA"), ".png", "transparency"),
    (mode("RGBA"), ".tif", "transparency"),
    (palette_of_colours, ".png", "colour; save it as greyscale"),
    (palette_of_colours, ".bmp", "colour; save it as greyscale"),
    (deep_colour, ".png", "16-bit colour"),
    (deep_colour_tiff, ".tif", "16-bit colour"),
    (deep_alpha, ".png", "transparency"),
    (transparent_grey, ".png", "transparency"),
    (two_numbers_a_pixel, ".tif", "2 numbers a pixel"),
    (inverted, ".tif", "white is zero"),
    (doubles, ".tif", "save it as greyscale of 8 or 16 bits, or of 32-bit float"),
    (unlike_pages, ".tif", "pages differ"),
    (animation, ".png", "several frames"),
    (turned, ".jpg", "EXIF"),
    (turned, ".png", "EXIF"),
    (truncated, ".png", "truncated or damaged"),
    (truncated, ".jpg", "truncated or damaged"),
    (truncated, ".bmp", "truncated or damaged"),
    (truncated_tiff, ".tif", "truncated or damaged"),
    (wrong_checksum, ".png", "truncated or damaged"),
    (missing_rows, ".png", "truncated or damaged"),
    (bomb, ".png", "truncated or damaged"),
    (large, ".png", "12000 x 12000 pixels"),
    (enormous, ".png", "damaged"),
    (text_bomb, ".png", "damaged"),
    (something_else, ".png", "not a PNG, TIFF, JPEG or BMP"),
    (empty, ".png", "empty"),
    (constant, ".png", "constant"),
    (objects, ".npy", "not a .npy file of numbers"),
    (complex_numbers, ".npy", "complex64"),
    (records, ".npy", "one real number a pixel"),
    (colour_array, ".npy", "colour channels"),
    (four_axes, ".npy", "none of"),
    (one_axis, ".npy", "none of"),
    (no_numbers, ".npy", "none of|damaged"),
    (truncated_array, ".npy", "damaged"),
    (archive, ".npy", "not a .npy file"),
    (something_else, ".npy", "not a .npy file"),
    (not_a_number, ".npy", "1 voxels are NaN"),
]


@pytest.mark.parametrize(
    ("make", "suffix", "match"), BAD, ids=[f"{make.__name__}{suffix}" for make, suffix, _ in BAD]
)
def test_bad_files_are_refused_in_one_line(tmp_path, capfd, caplog, make, suffix, match):
    """The message names the file and the reason, and no library adds a word."""
    path = tmp_path / f"bad{suffix}"
    make(path)
    capfd.readouterr()
    with pytest.raises(InputError, match=match) as caught:
        io.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert message.count(str(path)) == 1
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_slices_that_cannot_be_read_are_all_named(tmp_path):
    """By their headers at first, then by their pixels."""
    files, array = series(tmp_path, slices=8)
    mode("LA")(files[1])
    something_else(files[2])
    truncated(files[4])
    wrong_checksum(files[6])
    with pytest.raises(BadSlices) as caught:
        io.opened(files)
    assert [path for path, _ in caught.value.failed] == [files[1], files[2]]
    files = [path for path in files if path not in (files[1], files[2])]
    image = io.opened(files)
    with pytest.raises(BadSlices) as caught:
        image.voxels()
    assert [path.name for path, _ in caught.value.failed] == ["s4.png", "s6.png"]
    for path, reason in caught.value.failed:
        assert reason.startswith(f"{path}: ")
    volume = io.read(files)
    assert volume.failed == caught.value.failed
    planes = Grid("axial", 1, 8).fit(volume.array.shape, volume.affine).planes(volume.array)
    np.testing.assert_array_equal(planes, array[[0, 3, 5, 7]])


def test_slices_unlike_the_others_are_named(tmp_path):
    files, _ = series(tmp_path, slices=6)
    save(files[0], numbers()[0, :4])
    save(files[3], numbers(np.uint16)[0])
    with pytest.raises(
        BadSlices, match=r"5 x 4 pixels of 8 bits .* where most slices are 5 x 6"
    ) as caught:
        io.opened(files)
    assert [path for path, _ in caught.value.failed] == [files[0], files[3]]
    assert len(io.read(files).failed) == 2


def test_a_stack_is_given_alone(tmp_path):
    files, _ = series(tmp_path, ".tif", slices=3)
    pages = [Pillow.fromarray(array) for array in numbers(slices=3)]
    pages[0].save(files[1], save_all=True, append_images=pages[1:])
    with pytest.raises(BadSlices, match="several slices in one of several files"):
        io.opened(files)


def test_headers_alone_are_read_to_open(tmp_path):
    """A thousand slices are looked through before the first is decoded."""
    files, _ = series(tmp_path)
    wrong_checksum(files[2])
    assert io.shape_and_affine(files)[0] == (COLUMNS, ROWS, 4)


def test_texts_of_headers_go_nowhere(tmp_path):
    """Names of patients are planted where programs put them."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "DOE^JANE")
    good = save(tmp_path / "a.png", numbers()[0], pnginfo=text)
    bad = tmp_path / "b.tif"
    tifffile.imwrite(bad, numbers(np.float64)[0], description="DOE^JANE")
    volume = io.read(good)
    [written] = pictures.write(tmp_path / "out", ["a.png"], volume.array, volume, (0, 255))
    with pytest.raises(InputError) as caught:
        io.read(bad)
    assert b"JANE" in good.read_bytes() and b"JANE" in bad.read_bytes()
    assert b"JANE" not in written.read_bytes()
    assert "JANE" not in f"{caught.value} {volume.notes} {volume.native}"


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".npy"])
@pytest.mark.parametrize(("dtype", "high"), [(np.uint8, 255), (np.uint16, 65535)])
def test_series_come_back_number_for_number(tmp_path, suffix, dtype, high):
    array = numbers(dtype, 4)
    files = [tmp_path / f"s{number}{suffix}" for number in range(4)]
    for path, plane in zip(files, array, strict=True):
        np.save(path, plane) if suffix == ".npy" else save(path, plane)
    volume = io.read(files)
    written = pictures.write(
        tmp_path / "out", pictures.names(files), volume.array, volume, (0, high)
    )
    assert [path.name for path in written] == [path.name for path in files]
    for path, plane in zip(written, array, strict=True):
        again = np.load(path) if suffix == ".npy" else plain(path)
        assert again.dtype == (np.float32 if suffix == ".npy" else dtype)
        np.testing.assert_array_equal(again, plane)
    assert sorted((tmp_path / "out").iterdir()) == sorted(written), "nothing else is left"


@pytest.mark.parametrize("name", ["a.tif", "a.npy"])
def test_stacks_come_back_as_stacks(tmp_path, name):
    array = numbers(np.uint16, 3)
    if name == "a.npy":
        np.save(tmp_path / name, array)
    else:
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack")
    volume = io.read(tmp_path / name)
    [path] = pictures.write(tmp_path / "out", [name], volume.array, volume, (0, 65535))
    again = np.load(path) if name == "a.npy" else tifffile.imread(path)
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (1, ROWS, COLUMNS)])
def test_arrays_keep_their_axes(tmp_path, shape):
    array = numbers("f4").reshape(shape)
    np.save(tmp_path / "a.npy", array)
    volume = io.read(tmp_path / "a.npy")
    [path] = pictures.write(tmp_path / "out", ["a.npy"], volume.array, volume, (-500, 500))
    np.testing.assert_array_equal(np.load(path), array)


@pytest.mark.parametrize("turn", TURNS)
def test_pictures_on_their_side_are_read_upright_and_written_as_they_lay(tmp_path, turn):
    upright = np.random.default_rng(0).integers(0, 255, (20, 33), np.uint8)
    lying = np.rot90(upright, turn // 90)  # counter-clockwise, as `turn` is clockwise
    for name, array in (("upright", upright), ("lying", lying)):
        Pillow.fromarray(np.ascontiguousarray(array)).save(tmp_path / f"{name}.png")
    expected = io.read(tmp_path / "upright.png", assumed=Assumed(2.0))
    read = io.read(tmp_path / "lying.png", assumed=Assumed(2.0, rotate=turn))
    np.testing.assert_array_equal(read.array, expected.array)
    np.testing.assert_allclose(read.affine, expected.affine)
    pictures.write(tmp_path / "out", ["a.png"], read.array, read, (0, 255))
    np.testing.assert_array_equal(np.asarray(Pillow.open(tmp_path / "out/a.png")), lying)


def test_lossy_formats_become_png(tmp_path):
    files, _ = series(tmp_path, ".jpg")
    files.append(save(tmp_path / "t.BMP", numbers()[0]))
    volume = io.read(files)
    names = pictures.names(files)
    assert names == ["s0.png", "s1.png", "s2.png", "s3.png", "t.png"]
    written = pictures.write(tmp_path / "out", names, volume.array, volume, (0, 300))
    np.testing.assert_array_equal(stored(written), stored(files))
    assert plain(written[0]).dtype == np.uint16, "300 takes more than 8 bits"


def test_values_are_rounded_and_clipped_and_not_rescaled(tmp_path):
    volume = io.read(save(tmp_path / "a.png", numbers()[0]))
    array = np.full(volume.array.shape, 7.4, np.float32)
    array.flat[:3] = 7.6, -20, 999
    [path] = pictures.write(tmp_path / "out", ["a.png"], array, volume, (0, 200))
    assert sorted(set(plain(path).flat)) == [0, 7, 8, 255]


@pytest.mark.parametrize("window", [(-1000, 2000), (0, 70000), (0, 1), (100, 120), (0, np.nan)])
def test_values_that_pictures_cannot_hold_are_refused(tmp_path, window):
    """Neither is anything clipped without a word, nor a fraction rounded to black and white."""
    volume = io.read(save(tmp_path / "a.png", numbers()[0]))
    assert not pictures.holds(*window) and pictures.holds(0, 255)
    with pytest.raises(InputError, match=r"pictures hold whole numbers .* write NIfTI"):
        pictures.write(tmp_path / "out", ["a.png"], volume.array, volume, window)
    assert not (tmp_path / "out").exists()


def test_two_slices_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg: a\.png would be written for a\.bmp too"):
        pictures.names([tmp_path / "a.bmp", tmp_path / "a.jpg"])


def test_nothing_is_overwritten_unasked(tmp_path):
    files, array = series(tmp_path)
    volume = io.read(files)
    names = pictures.names(files)
    before = files[3].read_bytes()
    for path in files[:3]:
        path.unlink()
    with pytest.raises(InputError, match=r"s3\.png: exists already"):
        pictures.write(tmp_path, names, volume.array, volume, (0, 255))
    assert list(tmp_path.iterdir()) == [files[3]] and files[3].read_bytes() == before
    pictures.write(tmp_path, names, 255 - volume.array, volume, (0, 255), overwrite=True)
    np.testing.assert_array_equal(stored(files), 255 - array)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    """Nor the slices that were written before it was full."""
    files, _ = series(tmp_path)
    volume = io.read(files)
    save_picture = Pillow.Image.save

    def until_full(image, file, *args, **kwargs):
        if len(list((tmp_path / "out").rglob("*.png"))) == 3:
            file.write(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_picture(image, file, *args, **kwargs)

    monkeypatch.setattr(Pillow.Image, "save", until_full)
    with pytest.raises(InputError, match=r"s2\.png: cannot be written: no space left"):
        pictures.write(tmp_path / "out", pictures.names(files), volume.array, volume, (0, 255))
    assert not list((tmp_path / "out").iterdir())


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    files, _ = series(tmp_path, ".tif")
    volume = io.read(files)
    one, two = (
        pictures.write(tmp_path / name, pictures.names(files), volume.array, volume, (0, 255))
        for name in ("one", "two")
    )
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_pictures_are_checked_before_they_are_decoded(tmp_path, monkeypatch):
    """A picture of a few kB never makes Pillow ask for the memory of 8000 x 8000 pixels."""
    bomb(tmp_path / "a.png")

    def load(_):
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(InputError, match="truncated or damaged"):
        io.read(tmp_path / "a.png")
    with Pillow.open(tmp_path / "a.png") as image:
        assert image.size == (8000, 8000), "Pillow itself would have"
