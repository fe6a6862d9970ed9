# SPDX-License-Identifier: Apache-2.0
"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr): a header of text, then the voxels.

Both are read here and written by SimpleITK, with which the tests compare every kind of file. It is
not used for reading: damaged headers crash the process, and damaged compressed voxels come back as
noise without a word.

Both formats place voxels in LPS: +x towards the patient's left, +y posterior, +z superior.
"""

import dataclasses
import math
import os
import re
import zlib
from pathlib import Path

import numpy as np

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames, geometry, volume
from contourdiff_jax.volumes.geometry import NativeGrid
from contourdiff_jax.volumes.volume import Image

LPS = np.diag((-1.0, -1.0, 1.0))  # LPS -> RAS, and back
DEFLATE = 1032  # bytes that one byte of zlib or gzip can become at most
HEADER = 1 << 18  # bytes that a header has at most: tools put all tags of a DICOM file into it
FARTHEST = 1e6  # mm: what claims to lie farther away is damaged

META_TYPES = {
    **{"MET_CHAR": "i1", "MET_SHORT": "i2", "MET_INT": "i4", "MET_LONG_LONG": "i8"},
    **{"MET_UCHAR": "u1", "MET_USHORT": "u2", "MET_UINT": "u4", "MET_ULONG_LONG": "u8"},
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
# After 'signed ' and ' int' are dropped, and '_t' of int16_t.
NRRD_TYPES = {
    **{"char": "i1", "int8": "i1", "uchar": "u1", "unsigned char": "u1", "uint8": "u1"},
    **{"short": "i2", "int16": "i2", "ushort": "u2", "unsigned short": "u2", "uint16": "u2"},
    **{"int": "i4", "int32": "i4", "uint": "u4", "unsigned": "u4", "uint32": "u4"},
    **{"longlong": "i8", "long long": "i8", "int64": "i8"},
    **{"ulonglong": "u8", "unsigned long long": "u8", "uint64": "u8"},
    **{"float": "f4", "double": "f8"},
}
# Signs that take the axes of a space to RAS.
NRRD_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
}


@dataclasses.dataclass(frozen=True)
class _Header:
    """What the text says.

    Attributes:
      shape: as it lies in the file, fastest axis first.
      dtype: of the voxels, with their byte order.
      axes: [3, 3] mm, a column for each axis, RAS; zeros for the third of a 2-D image.
      origin: [3] mm, the centre of the first voxel.
      data: the file that holds the voxels.
      skip: bytes before them; negative: they end the file.
      compressed: as zlib or gzip.
      notes: of an `Image`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: np.ndarray
    origin: np.ndarray
    data: Path
    skip: int
    compressed: bool
    notes: tuple[str, ...] = ()


def opened(path: Path) -> Image:
    """Opens the file and checks all that its header can tell."""
    header = _header(path)
    shape = header.shape
    if len(shape) < 2 or min(shape) < 1:
        raise InputError(f"{path}: shape {shape} holds no image")
    if any(n > 1 for n in shape[3:]):
        raise InputError(
            f"{path}: {len(shape)} axes {shape}; give one 3-D volume (split the series first)"
        )
    size = math.prod(shape) * header.dtype.itemsize
    stored = header.data.stat().st_size - max(header.skip, 0)
    # Before the memory is asked for that a damaged header claims.
    if size > stored * (DEFLATE if header.compressed else 1):
        raise InputError(f"{path}: the file is truncated or damaged; copy it again")
    native = NativeGrid(shape, _affine(path, header))

    def voxels():
        with disk.open_file(header.data) as file:
            file.seek(header.skip if header.skip >= 0 else stored - size)
            data = file.read() if header.compressed else file.read(size)
        if header.compressed:
            data = _inflated(data, size)
        if len(data) != size:
            raise InputError(f"{path}: the file is truncated or damaged; copy it again")
        array = np.frombuffer(data, header.dtype).reshape(shape, order="F")
        with np.errstate(all="ignore"):  # what float32 cannot hold becomes infinite
            return array.astype(np.float32)

    return Image(native, voxels, header.dtype.newbyteorder("="), _format(path), header.notes)


def parts(path: Path) -> tuple[Path, ...]:
    """The file, and that of its voxels where they lie in another."""
    return tuple(dict.fromkeys((path, _header(path).data)))


def _format(path: Path) -> str:
    return "MetaImage" if filenames.suffix_of(path) in (".mha", ".mhd") else "NRRD"


def _header(path: Path) -> _Header:
    name = _format(path)
    with disk.open_file(path) as file:
        text = file.read(HEADER)
    try:
        with np.errstate(all="ignore"):  # numbers out of range are reported where they are used
            return {"MetaImage": _meta, "NRRD": _nrrd}[name](path, text)
    except (ValueError, KeyError, OverflowError) as error:  # a number, a field, a line is wrong
        raise InputError(f"{path}: damaged, or no {name} file; convert it again") from error


def _affine(path: Path, header: _Header) -> np.ndarray:
    """[4, 4] file indices -> mm, RAS."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = header.axes, header.origin
    with np.errstate(all="ignore"):
        if np.abs(affine).max() > FARTHEST:
            raise InputError(f"{path}: voxels more than {FARTHEST:g} mm away; repair the header")
        if len(header.shape) == 2:  # a slice is 1 mm thick
            normal = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] = normal / np.linalg.norm(normal)
    geometry.check_affine(path, affine)
    return affine


def _inflated(data: bytes, size: int) -> bytes:
    """The data out of their zlib or gzip if these are whole, else none."""
    stream = zlib.decompressobj(wbits=47)  # 47: zlib finds out which of the two
    try:
        data = stream.decompress(data, size + 1)
    except zlib.error:
        return b""
    return data if stream.eof else b""  # only the end holds the checksum


def _detached(path: Path, name: str) -> Path:
    """The file beside a header that its text names, also as ./NAME."""
    name = re.sub(r"^(\./+)+", "", name)
    if "%" in name or re.match(r"LIST\b", name):
        raise InputError(f"{path}: its voxels lie in several files; convert it to one")
    if not name.isprintable() or len(name) > 255 or re.search(r"^\.{0,2}$|[/\\]", name):
        # A header must not make other folders' files be read.
        raise InputError(f"{path}: its voxels must lie in a file beside it; convert it to one file")
    data = path.with_name(name)
    if not os.path.isfile(data):
        raise InputError(f"{path}: its voxels, the file {name}, are missing; put it beside")
    return data


def _integers(text: str) -> tuple[int, ...]:
    if len(text) > 200:  # messages repeat them
        raise ValueError("too many")
    return tuple(int(word) for word in text.split())


def _floats(text: str, count: int) -> np.ndarray:
    numbers = np.array([float(word) for word in text.split()])
    if len(numbers) != count:
        raise ValueError("too many or too few numbers")
    return numbers


def _embedded(axes: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes [n, n] as columns, and origin [n], of any number of dimensions, as those of three."""
    n = min(len(origin), 3)
    axes3, origin3 = np.zeros((3, 3)), np.zeros(3)
    axes3[:n, : min(axes.shape[1], 3)], origin3[:n] = axes[:n, :3], origin[:n]
    return axes3, origin3


def _meta(path: Path, head: bytes) -> _Header:
    """Of a MetaImage: 'Key = value' lines, the last of which is ElementDataFile."""
    last = re.search(rb"^ElementDataFile[ \t]*[=:][ \t]*([^\r\n]*)(\r?\n|\Z)", head, re.MULTILINE)
    if last is None:
        raise ValueError("no such line")
    lines = re.findall(
        r"^([^=:\n]*)[=:](.*)$", head[: last.start()].decode("latin-1"), re.MULTILINE
    )
    fields = {key.strip(): value.strip() for key, value in lines}

    def yes(*keys):  # MetaIO looks at the first letter alone
        return any(fields.get(key, "")[:1] in ("T", "t", "1") for key in keys)

    def numbers(*keys, count, default):
        text = next((fields[key] for key in keys if key in fields), None)
        return np.asarray(default, float) if text is None else _floats(text, count)

    shape = _integers(fields["DimSize"])
    n = len(shape)
    if n != int(fields["NDims"]):
        raise ValueError("sizes of other than all dimensions")
    if int(fields.get("ElementNumberOfChannels", 1)) != 1 or "ARRAY" in fields["ElementType"]:
        raise InputError(f"{path}: several numbers a voxel (colour, vectors); give one")
    if "BinaryData" in fields and not yes("BinaryData"):  # ITK takes binary for the default
        raise InputError(f"{path}: voxels as text; convert it to binary")
    scale = numbers("ElementToIntensityFunctionSlope", count=1, default=[1])
    shift = numbers("ElementToIntensityFunctionOffset", count=1, default=[0])
    if scale != 1 or shift != 0:
        raise InputError(f"{path}: rescaled voxels, which programs read differently; convert it")
    # A row for each axis of the file.
    turn = numbers("TransformMatrix", "Rotation", "Orientation", count=n * n, default=np.eye(n))
    sizes = numbers("ElementSpacing", "ElementSize", count=n, default=np.ones(n))
    origin = numbers("Offset", "Position", "Origin", count=n, default=np.zeros(n))
    axes, origin = _embedded(turn.reshape(n, n).T * sizes, origin)

    msb = yes("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    dtype = np.dtype(META_TYPES[fields["ElementType"]]).newbyteorder(">" if msb else "<")
    name = last[1].decode().strip()
    if name.upper() == "LOCAL":
        data, skip = path, last.end()
    else:
        data, skip = _detached(path, name), int(fields.get("HeaderSize", 0))
        if skip < 0 and yes("CompressedData"):
            raise ValueError("no end to count from")
    return _Header(shape, dtype, LPS @ axes, LPS @ origin, data, skip, yes("CompressedData"))


def _nrrd(path: Path, head: bytes) -> _Header:
    """Of an NRRD: 'field: value' lines up to an empty one."""
    last = re.search(rb"\r?\n\r?\n|\Z", head)
    magic, *lines = head[: last.start()].decode("latin-1").rstrip().split("\n")
    if not re.fullmatch(r"NRRD(000[1-5]|00\.01)\s*", magic):
        raise ValueError("no NRRD")
    fields = {}
    for line in lines:
        # 'key:=value' and '#' are free text.
        if field := re.match(r"([\w ]+): *(?!=)(.*)", line):
            name = field[1].lower().replace(" ", "")  # most fields have two spellings
            fields[{"centers": "centerings"}.get(name, name)] = field[2].strip()
        elif not re.match(r"#|[^:]+:=", line):
            raise ValueError("no field")

    shape = _integers(fields["sizes"])
    if len(shape) != int(fields["dimension"]):
        raise ValueError("sizes of other than all dimensions")
    kinds = fields.get("kinds", "").lower().split()[:3]
    vectors = re.findall(r"none|\(([^()]*)\)", fields.get("spacedirections", ""))
    if not all(vectors[:3]) or not set(kinds) <= {"domain", "space", "none", "???"}:
        raise InputError(f"{path}: several numbers a voxel (colour, vectors); give one")
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise InputError(f"{path}: its encoding is neither raw nor gzip; convert it to one of them")
    compressed = encoding != "raw"
    line_skip, skip = int(fields.get("lineskip", 0)), int(fields.get("byteskip", 0))
    if line_skip or (compressed and skip):
        raise InputError(f"{path}: text before its voxels; convert it to one file")
    units = f"{fields.get('spaceunits', '')} {fields.get('units', '')}"
    if set(re.findall(r'"([^"]*)"', units)) - {"mm", "millimeter", "millimeters", "???", ""}:
        raise InputError(f"{path}: lengths in other units than mm; convert it")

    notes = []
    space = fields.get("space", "lps").lower()
    if space not in NRRD_SPACES:
        raise InputError(f"{path}: its space is none of {', '.join(NRRD_SPACES)}; convert it")
    if "space" not in fields:
        notes.append("no anatomical space in the header, taken as left-posterior-superior")
    if vectors:
        count = len(vectors[0].split(","))
        axes = np.array([_floats(vector.replace(",", " "), count) for vector in vectors[:3]]).T
        if len(vectors) != len(shape):
            raise ValueError("directions of other than all dimensions")
        origin = np.zeros(count)
    else:
        sizes, origin = _axis_by_axis(fields, shape)
        axes = np.diag(np.where(np.isnan(sizes), 1.0, sizes))
        if np.isnan(sizes).any():
            notes.append("no voxel sizes in the header, taken as 1 mm")
    if "spaceorigin" in fields:
        origin = _floats(fields["spaceorigin"].strip("()").replace(",", " "), len(axes))
    axes, origin = _embedded(axes, origin)
    signs = np.diag(NRRD_SPACES[space])

    name = re.sub(" int$|_t$", "", re.sub("^signed ", "", fields["type"].lower()))
    dtype = np.dtype(NRRD_TYPES[name])
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder({"little": "<", "big": ">"}[fields["endian"].lower()])
    detached = fields.get("datafile")
    if detached is None:
        data, skip = path, skip if skip < 0 else last.end() + skip
    else:
        data = _detached(path, detached)
    return _Header(shape, dtype, signs @ axes, signs @ origin, data, skip, compressed, tuple(notes))


def _axis_by_axis(fields: dict[str, str], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Sizes [n] and origin [n] of up to three axes that an NRRD describes one by one.

    A size is NaN where nothing says it. Minimum and maximum are the ends of an axis, or with
    centring `node` its first and last sample (teem.sourceforge.net/nrrd/format.html).
    """
    n, unknown = min(len(shape), 3), np.full(len(shape), np.nan)
    sizes, low, high = (
        _floats(fields[name], len(shape))[:n] if name in fields else unknown[:n]
        for name in ("spacings", "axismins", "axismaxs")
    )
    nodes = np.array([*fields.get("centerings", "").lower().split(), *["???"] * n])[:n] == "node"
    steps = np.array(shape[:n]) - nodes
    sizes = np.where(np.isnan(sizes) & (steps > 0), (high - low) / np.maximum(steps, 1), sizes)
    first = np.where(nodes, low, low + np.where(np.isnan(sizes), 1.0, sizes) / 2)
    return sizes, np.nan_to_num(first)


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def write(path: Path, array: np.ndarray, native: NativeGrid, dtype, overwrite: bool) -> None:
    """Writes an array [native.shape], compressed, with three axes.

    The file appears whole under its name or not at all. Integers are rounded and clipped.
    """
    import SimpleITK  # here: it takes a third of a second

    if filenames.suffix_of(path) not in (".mha", ".nrrd"):
        raise InputError(f"{path}: unsupported file type; name it .mha or .nrrd")
    disk.check_is_new(path, overwrite)
    affine = native.affine.copy()
    affine[:3] = LPS @ affine[:3]
    sizes = geometry.spacing(affine)
    direction = affine[:3, :3] / sizes
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-4:
        raise InputError(
            f"{path}: the axes of its grid are not at right angles; write NIfTI instead"
        )
    array = volume.cast(array.reshape(native.shape3), np.dtype(dtype))
    image = SimpleITK.GetImageFromArray(array.T)
    image.SetSpacing(sizes)
    image.SetDirection(direction.ravel())
    image.SetOrigin(affine[:3, 3])
    with disk.file(path) as partial:
        try:
            SimpleITK.WriteImage(image, os.fspath(partial), useCompression=True)
        except RuntimeError as error:  # of which it says no more
            text = f"{path}: cannot be written; is there space, and permission?"
            raise InputError(text) from error
