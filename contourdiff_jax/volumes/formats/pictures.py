# SPDX-License-Identifier: Apache-2.0
"""Pictures: slices as .png, .tif, .jpg or .bmp files or as .npy arrays, and stacks of them.

A volume is a series of files with a slice each, or one TIFF of several pages, or one .npy array
[rows, columns] or [slices, rows, columns]. Pictures are seen radiologically, as are the slices of
`grid`: row 0 is anterior, column 0 the patient's right, and the slices are in order from inferior
to superior. Numbers are read as they are stored, in any depth that Pillow reads whole; what it
would cut to 8 bits, and what is not one number a pixel, is refused.
"""

import contextlib
import dataclasses
import logging
import math
import os
import re
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from scipy import ndimage

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames, volume
from contourdiff_jax.volumes.geometry import NativeGrid
from contourdiff_jax.volumes.volume import BRAIN, Assumed, BadSlices, Image, Volume

FORMATS = ("PNG", "TIFF", "JPEG", "BMP")
PIXELS = 1 << 26  # of one picture, 8192 x 8192: larger ones are no slices
PAGES = 10_000  # of one TIFF
PACKED = 1400  # bytes that one byte can become at most: by LZW 1340, by deflate 1032, by JPEG 512
SOFT = 0.2, 0.75  # of a head's brightest number: between these lies its brain
# A CT window that begins above the first of these [HU], but below 0, shows air and fat as black,
# which is taken for air, and one that also ends below the second shows bone as white, which is
# taken for bone: at the window's ends both would be soft tissue without a border.
HIDES_AIR, HIDES_BONE = -200.0, 300.0
BONE_HU = 1000.0
AIR_HU, BRAIN_HU = -1000.0, 35.0  # Kalender 2011, Computed Tomography, 3rd ed.: 30 to 40 HU
LEVELS = 32  # whole numbers that a window must hold to be worth rounding to

# Tags of TIFF.
BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT, ORIENTATION = 258, 259, 262, 277, 339, 274
DESCRIPTION, STRIPS, STRIP_SIZES = 270, 273, 279

# Formats that keep what is written, by suffix.
WRITTEN = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".npy": "NumPy"}


@dataclasses.dataclass(frozen=True)
class _File:
    """What the header of one file says.

    Attributes:
      size: (columns, rows) of its slices.
      slices: how many there are.
      axes: 2 or 3, as they lie in the file.
      dtype: of the numbers as they are stored.
      bits: of each that are used.
      format: 'PNG', 'TIFF', ...
      notes: of an `Image`.
      voxels: reads them: [slices, rows, columns].
    """

    size: tuple[int, int]
    slices: int
    axes: int
    dtype: np.dtype
    bits: int
    format: str
    notes: tuple[str, ...]
    voxels: Callable[[], np.ndarray]

    def __str__(self) -> str:
        columns, rows = self.size
        return f"{columns} x {rows} pixels of {self.bits} bits ({self.dtype})"


def opened(files: Sequence[Path], assumed: Assumed) -> Image:
    """Opens the slices of one volume, in their order, or the one file of a stack; headers only.

    Raises BadSlices with all that cannot be used or differ from the others in size or depth.
    """
    headers = _headers(files)
    path, first = headers[0]
    notes = dict.fromkeys(note for _, header in headers for note in header.notes)  # each once
    if assumed.spacing is None:
        notes["pixel spacing unknown, taken as 1 mm"] = None
    values = _values(path, first, assumed)
    span = None
    if first.dtype.kind in "bu" and first.bits <= 8 and assumed.range != BRAIN:
        span = assumed.range or (0.0, float(2**first.bits - 1))
    spacing = assumed.spacing or 1.0
    count = sum(header.slices for _, header in headers)
    flat = first.axes == 2 and len(files) == 1
    part = _part(path, first.size[0], assumed.half)
    size = (part.stop - part.start, first.size[1])
    shape = size if flat else (*size, count)
    native = NativeGrid(shape, _affine(size, spacing, assumed.rotate or 0))

    def voxels():
        stack, failed = np.empty((count, *size[::-1]), np.float32), []
        for number, (path, header) in enumerate(headers):
            try:
                # Each of several files has one slice; one file has them all.
                with np.errstate(all="ignore"):  # what float32 cannot hold becomes infinite
                    stack[number : number + header.slices] = header.voxels()[..., part]
            except InputError as error:
                failed.append((path, str(error)))
        if failed:
            raise BadSlices(failed)
        return values(stack).T.reshape(shape)

    return Image(native, voxels, first.dtype, first.format, tuple(notes), span)


def _affine(size: tuple[int, int], spacing: float, turn: int) -> np.ndarray:
    """[4, 4] of pictures of (columns, rows), which stand upright when turned clockwise.

    So nothing is turned: volumes have one orientation anyway, and are written as they were read.
    """
    columns, rows = size
    upright = {  # (column, row) as stored -> as seen upright
        0: np.eye(3),
        90: [[0, -1, rows - 1], [1, 0, 0], [0, 0, 1]],
        180: [[-1, 0, columns - 1], [0, -1, rows - 1], [0, 0, 1]],
        270: [[0, 1, 0], [-1, 0, columns - 1], [0, 0, 1]],
    }[turn]
    affine = np.diag((-spacing, -spacing, spacing, 1.0))
    affine[:2, [0, 1, 3]] = -spacing * np.asarray(upright, float)[:2]
    return affine


def _part(path: Path, columns: int, half: str | None) -> slice:
    """The columns of an image in a picture: all, or those of its half."""
    if half is None:
        return slice(0, columns)
    if columns % 2:
        raise InputError(f"{path}: {columns} pixels wide, so it has no halves of one width")
    return slice(0, columns // 2) if half == "left" else slice(columns // 2, columns)


def _headers(files: Sequence[Path]) -> list[tuple[Path, _File]]:
    """The headers of files that must all be alike; BadSlices names the others."""
    headers, failed = [], []
    for path in files:
        try:
            header = _array(path) if filenames.suffix_of(path) == ".npy" else _picture(path)
            if header.slices > 1 and len(files) > 1:
                raise InputError(f"{path}: several slices in one of several files; split it")
            headers.append((path, header))
        except InputError as error:
            failed.append((path, str(error)))
    if headers:
        [(common, _)] = Counter(str(header) for _, header in headers).most_common(1)
        failed += [
            (path, f"{path}: {header}, where most slices are {common}; remove or convert it")
            for path, header in headers
            if str(header) != common
        ]
    if failed:
        raise BadSlices(failed)
    return headers


def _values(path: Path, header: _File, assumed: Assumed) -> Callable[[np.ndarray], np.ndarray]:
    """What turns stored numbers into those they stand for."""
    if assumed.range is None:
        return lambda stored: stored
    if header.dtype.kind != "u" or header.bits not in (8, 16):
        raise InputError(
            f"{path}: a range of values is for 8- and 16-bit unsigned numbers, and these are "
            f"{header.bits}-bit {header.dtype}; leave it out"
        )
    if assumed.range == BRAIN:
        return lambda stored: _by_brain(path, stored)
    low, high = assumed.range
    white = 2**header.bits - 1
    step = (high - low) / white

    def values(stored):
        shown = stored * step + low
        if HIDES_AIR < low < 0:
            shown = np.where(stored > 0, shown, np.float32(AIR_HU))
        if HIDES_AIR < low < 0 and high < HIDES_BONE:
            shown = np.where(stored < white, shown, np.float32(BONE_HU))
        return shown

    return values


def _by_brain(path: Path, stored: np.ndarray) -> np.ndarray:
    """HU of a CT of the head [N, H, W] whose numbers rise with HU, nobody remembers how steeply.

    Two points are enough: black is air, and the commonest of what is neither air nor bone is brain,
    wherever half of the brightest number lies. Skin and fat are darker and rarer, bone is brighter
    and has no number of its own.
    """
    top = float(stored.max())
    greys = np.int64(stored if top <= 255 else stored * (255 / top))
    counts = ndimage.gaussian_filter1d(np.bincount(greys.ravel()).astype(float), 1)
    soft = counts[round(SOFT[0] * greys.max()) + 1 : round(SOFT[1] * greys.max())]
    if not soft.any():
        raise InputError(f"{path}: nothing between black and white that could be brain")
    peak = round(SOFT[0] * greys.max()) + 1 + np.argmax(soft)
    brain = stored[abs(greys - peak) <= 1].mean()
    return stored * np.float32((BRAIN_HU - AIR_HU) / brain) + np.float32(AIR_HU)


# --------------------------------------------------------------------------------------------------
# Arrays
# --------------------------------------------------------------------------------------------------


def _array(path: Path) -> _File:
    """The header of a .npy file."""

    def mapped():
        # Unlike np.load it takes no other kind of file, and nothing pickled.
        return np.lib.format.open_memmap(path, mode="r")

    array = _quietly(
        path, mapped, "not a .npy file of numbers, or damaged; save it with numpy.save"
    )
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: an array of type {array.dtype}; give one real number a pixel")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(
            f"{path}: shape {array.shape} is none of [rows, columns], [slices, rows, columns]"
        )
    if array.ndim == 3 and array.shape[2] <= 4:
        raise InputError(
            f"{path}: shape {array.shape} looks like colour channels; store [slices, rows, columns]"
        )
    rows, columns = array.shape[-2:]
    slices = array.size // (rows * columns)
    bits = 1 if array.dtype == bool else 8 * array.dtype.itemsize

    def voxels():
        return _quietly(path, lambda: np.reshape(mapped(), (slices, rows, columns)))

    return _File((columns, rows), slices, array.ndim, array.dtype, bits, "NumPy", (), voxels)


# --------------------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------------------


def _picture(path: Path) -> _File:
    """The header of a picture of any format."""

    def header():
        with Pillow.open(path, formats=FORMATS) as image:
            return _checked(path, image)

    return _quietly(
        path,
        header,
        "not a PNG, TIFF, JPEG or BMP picture of a kind that can be read, or damaged; save it as "
        "greyscale of 8 or 16 bits, or of 32-bit float",
    )


def _checked(path: Path, image: Pillow.Image) -> _File:
    """The header of an open picture; InputError where it is not one number a pixel, read whole."""
    mode, (columns, rows) = image.mode, image.size
    if columns * rows > PIXELS:
        raise InputError(f"{path}: {columns} x {rows} pixels, more than a slice has; crop it")
    if "transparency" in image.info or mode.upper() in ("LA", "PA", "RGBA"):
        raise InputError(
            f"{path}: has transparency (an alpha channel); save it as greyscale without"
        )
    kind, bits, samples = _depth(path, image)
    if mode not in ("1", "L", "P", "RGB", "I", "F") and not mode.startswith("I;16"):
        raise InputError(f"{path}: colour of mode {mode}; save it as greyscale")
    if mode == "RGB" and bits > 8:
        # Pillow would drop the lower half of every number without a word.
        raise InputError(f"{path}: {bits}-bit colour; save it as {bits}-bit greyscale")
    if samples != (3 if mode == "RGB" else 1):
        raise InputError(f"{path}: {samples} numbers a pixel; save it as greyscale")
    if "exif" in image.info and image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) != 1:
        raise InputError(f"{path}: its EXIF data say to turn it; save it turned")
    pages = _pages(path, image)
    slices = _stacked(path, image, pages)
    # Before the memory is asked for that a damaged header claims.
    packed = 1 if image.info.get("compression") == "raw" else PACKED
    if slices * rows * columns * samples * bits // 8 > path.stat().st_size * packed:
        raise InputError(f"{path}: the file is truncated or damaged; copy it again")

    notes = {
        "lossy JPEG": "jpeg" in f"{image.format} {image.info.get('compression')}".lower(),
        "grey stored as RGB": mode == "RGB",
        "grey stored as a palette": mode == "P",
    }
    if mode in ("P", "RGB"):  # if that is grey, which the voxels show
        bits = 8
    dtype = np.dtype(bool if bits == 1 else f"{kind}{(bits + 7) // 8}")

    shape = slices, rows, columns
    read = _undivided(path, image, dtype, shape) if slices > pages else None

    def voxels():
        return _quietly(
            path, lambda: (read() if read else _decoded(path, shape, bits)).astype(dtype)
        )

    return _File(
        image.size,
        slices,
        2 if slices == 1 else 3,
        dtype,
        bits,
        image.format,
        tuple(note for note, holds in notes.items() if holds),
        voxels,
    )


def _depth(path: Path, image: Pillow.Image) -> tuple[str, int, int]:
    """What Pillow's modes do not tell: kind of number ('u', 'i', 'f'), bits, numbers a pixel."""
    if image.format == "PNG":
        bits, colour, _ = _ihdr(path)
        return "u", bits, 3 if colour == 2 else 1
    if image.format == "TIFF":
        tags = image.tag_v2
        kind, bits = " uif"[tags.get(SAMPLE_FORMAT, (1,))[0]], tags.get(BITS, (1,))[0]
        if bits > 8 and tags.get(PHOTOMETRIC) == 0:
            # Pillow turns these over in 8 bits and less, but not in more.
            raise InputError(f"{path}: stored inverted (white is zero); save it with black as zero")
        packed = image.info["compression"] != "raw"
        if bits > 8 and kind != "u" and packed and tags.prefix == b"MM":
            # Of these, Pillow mixes up the bytes without a word.
            raise InputError(f"{path}: compressed big-endian {bits}-bit numbers; save uncompressed")
        return kind, bits, tags.get(SAMPLES, 1)
    return "u", 1 if image.mode == "1" else 8, len(image.getbands())


def _pages(path: Path, image: Pillow.Image) -> int:
    """How many pages an open TIFF has, all alike; 1 of other pictures."""
    if image.format != "TIFF":
        if getattr(image, "n_frames", 1) > 1:
            raise InputError(f"{path}: several frames (an animation); save each as a file")
        return 1

    def kind():
        tags = (BITS, SAMPLE_FORMAT, PHOTOMETRIC, COMPRESSION)
        return image.size, image.mode, *(image.tag_v2.get(tag) for tag in tags)

    first = kind()
    for page in range(1, PAGES):
        try:
            image.seek(page)
        except EOFError:
            image.seek(0)
            return page
        if kind() != first:
            raise InputError(f"{path}: its pages differ in size or depth; save each as a file")
    raise InputError(f"{path}: {PAGES} pages or more; split it")


def _stacked(path: Path, image: Pillow.Image, pages: int) -> int:
    """How many slices an open picture of so many pages holds.

    Some programs write all of a stack behind the directory of its first page, and say in a text how
    many images there are: ImageJ from 4 GB on, and tifffile if it is asked to. The same texts say
    where pages are of several channels or times, whose slices make no volume.
    """
    axes, behind = _axes_told(image) if image.format == "TIFF" else ((), False)
    if len(axes) > 1:
        told = " x ".join(map(str, axes))
        raise InputError(
            f"{path}: {told} slices, channels or times in one stack; save each volume as a file"
        )
    return axes[0] if axes and behind and pages == 1 else pages


def _undivided(path: Path, image: Pillow.Image, dtype, shape) -> Callable[[], np.ndarray]:
    """What reads slices [slices, rows, columns] that follow one another behind one directory."""
    tags = image.tag_v2
    stored = dtype.newbyteorder("<" if tags.prefix == b"II" else ">")
    starts, sizes = tags[STRIPS], tags[STRIP_SIZES]
    whole = all(
        start + size == after for start, size, after in zip(starts, sizes, starts[1:], strict=False)
    )
    plain = image.info["compression"] == "raw" and tags.get(PHOTOMETRIC) == 1
    end = starts[0] + stored.itemsize * math.prod(shape)
    if not (
        whole and plain and tags[BITS][0] == 8 * stored.itemsize and end <= path.stat().st_size
    ):
        raise InputError(
            f"{path}: says {shape[0]} images, and holds one page; save each as a page or a file"
        )
    return lambda: np.fromfile(path, stored, math.prod(shape), offset=starts[0]).reshape(shape)


def _axes_told(image: Pillow.Image) -> tuple[tuple[int, ...], bool]:
    """Lengths above 1 of the axes beside rows and columns, as a TIFF's text says them.

    And whether images without a page of their own may lie behind the last one's.
    """
    text = str(image.tag_v2.get(DESCRIPTION, ""))
    lengths, behind = [], True
    if text.startswith("ImageJ="):
        told = dict(re.findall(r"^(\w+)=(\d+)\s*$", text, re.MULTILINE))
        lengths = [int(told.get(axis, 1)) for axis in ("channels", "slices", "frames")]
        if max(lengths) == 1:
            lengths = [int(told.get("images", 1))]
    elif shape := re.match(r'\{"shape": \[([\d, ]+)\]', text):  # tifffile's
        shape = [int(length) for length in shape[1].split(",")]
        lengths = shape[:-2] if tuple(shape[-2:]) == image.size[::-1] else []
    elif "<OME" in text:  # whose images may lie in other files
        told, behind = re.search(r"<Pixels\s[^>]*>", text), False
        lengths = [int(n) for n in re.findall(r'\bSize[CZT]="(\d+)"', told[0])] if told else []
    return tuple(length for length in lengths if length > 1), behind


def _decoded(path: Path, shape: tuple[int, int, int], bits: int) -> np.ndarray:
    """The numbers of a picture, [slices, rows, columns], in a type that holds them."""
    stack = []
    with Pillow.open(path, formats=FORMATS) as image:
        if image.format == "PNG":
            _check_png(path, *image.size)
        for page in range(shape[0]):
            image.seek(page)
            with _silent_libtiff() if image.format == "TIFF" else contextlib.nullcontext():
                image.load()
            if image.mode in ("P", "RGB"):
                array = np.asarray(image.convert("RGB"))
                if (array != array[..., :1]).any():
                    raise InputError(f"{path}: colour; save it as greyscale")
                array = array[..., 0]
            else:
                array = np.asarray(image)
            stack.append(array)
    stack = np.stack(stack)
    if stack.shape != shape:
        raise ValueError("the file is not what its header was")
    if bits in (2, 4):  # Pillow has spread these over 8 bits
        stack = stack // (255 // (2**bits - 1))
    return stack


def _ihdr(path: Path) -> tuple[int, int, int]:
    """Bit depth, colour type and interlacing of a PNG file."""
    with disk.open_file(path) as file:
        return struct.unpack(">24xBBxxB", file.read(29))


def _check_png(path: Path, columns: int, rows: int) -> None:
    """ValueError for wrong checksums and missing data of a PNG, both of which Pillow overlooks."""
    bits, colour, interlaced = _ihdr(path)
    samples = {2: 3}.get(colour, 1)
    # Every row begins with a byte for its filter. Interlaced, there are some more.
    needed = rows * ((columns * samples * bits + 7) // 8 + (not interlaced))
    with disk.open_file(path) as file:
        data = memoryview(file.read())
    at, kind, stream = 8, None, zlib.decompressobj()
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        [checksum] = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(data[at + 4 : at + 8 + length]) != checksum:
            raise ValueError("wrong checksum")
        if kind == b"IDAT" and needed > 0:
            body = stream.unconsumed_tail + data[at + 8 : at + 8 + length]
            needed -= len(stream.decompress(body, needed))
        at += 12 + length
    if needed > 0:
        raise ValueError("missing data")


def _quietly(
    path: Path,
    action: Callable,
    damaged: str = "the file is truncated or damaged; copy it again",
):
    """What `action` returns, without Pillow's warnings and log; errors become one line."""
    log = logging.getLogger("PIL")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return action()
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: not enough memory for its pixels") from error
    except Exception as error:  # a damaged header can make a parser fail in any way
        raise InputError(f"{path}: {damaged}") from error
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _silent_libtiff():
    """Silences libtiff, which reports damage on the standard error of the process."""
    with open(os.devnull, "wb") as nowhere:
        stderr = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def names(files: Sequence[Path]) -> list[str]:
    """The file names under which translations of these files are written.

    Formats that lose something, or cannot hold 16 bits, become PNG. Raises InputError where two
    files get the same name.
    """
    source_of = {}
    for path in files:
        kept = filenames.suffix_of(path) in WRITTEN
        name = path.name if kept else f"{filenames.stem(path)}.png"
        if name in source_of:
            raise InputError(
                f"{path}: {name} would be written for {source_of[name]} too; rename one"
            )
        source_of[name] = path.name
    return list(source_of)


def holds(low: float, high: float) -> bool:
    """Whether pictures can hold values between these: whole numbers, and enough of them."""
    return low >= 0 and high <= 65535 and high - low >= LEVELS - 1


def write(
    folder: Path,
    names: Sequence[str],
    array: np.ndarray,
    like: Volume,
    window: tuple[float, float],
    overwrite: bool = False,
) -> list[Path]:
    """Writes an array [X, Y, Z] on `like`'s RAS grid as slices of the size and sides of its own.

    Args:
      folder: where they go; it is made.
      names: of the slices in their order, by `names`; one name for all is a TIFF of pages or an
        array [slices, rows, columns], and [rows, columns] where the source was one.
      array: goes as float32 into .npy; rounded to whole numbers, not rescaled, into pictures.
      like: the volume of the source.
      window: (low, high), where the values lie: up to 255, 8-bit pictures are written, up to 65535,
        16-bit ones.
      overwrite: replace files of these names.

    Returns the files, which appear all under their names or not at all. Raises InputError where
    pictures cannot hold the values.
    """
    folder, targets = Path(folder), [Path(folder) / name for name in names]
    volume.check_finite(targets[0], array)
    native = like.to_native(array).reshape(like.native.shape3)
    if len(targets) not in (1, len(native.T)):
        raise ValueError(f"{len(targets)} names for {len(native.T)} slices")
    low, high = window
    if not holds(low, high) and any(target.suffix.lower() != ".npy" for target in targets):
        raise InputError(
            f"{folder}: pictures hold whole numbers from 0 to 65535, {LEVELS} of them at least, "
            f"and the values lie between {low:g} and {high:g}; write NIfTI"
        )
    for target in targets:
        disk.check_is_new(target, overwrite)
    dtype = np.dtype(np.uint8 if high <= 255 else np.uint16)
    flat = len(targets) > 1 or len(like.native.shape) == 2
    with disk.writing(folder), disk.part(folder / "pictures") as partial:  # until all are whole
        partial.mkdir()
        for target, pages in zip(targets, np.split(native.T, len(targets)), strict=True):
            with disk.writing(target), (partial / target.name).open("w+b") as file:
                _save(file, WRITTEN[target.suffix.lower()], pages, dtype, flat)
        for target in targets:
            os.replace(partial / target.name, target)
    return targets


def _save(file, format: str, pages: np.ndarray, dtype: np.dtype, flat: bool) -> None:
    """Writes [slices, rows, columns] into an open file."""
    if format == "NumPy":
        np.save(file, np.ascontiguousarray(pages[0] if flat else pages, np.float32))
        return
    first, *others = (Pillow.fromarray(page) for page in volume.cast(pages, dtype))
    if format == "TIFF":
        first.save(
            file, format, compression="tiff_adobe_deflate", save_all=True, append_images=others
        )
    elif others:
        raise ValueError(f"{len(pages)} slices for one {format}")
    else:
        first.save(file, format)
