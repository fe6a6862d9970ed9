# SPDX-License-Identifier: Apache-2.0
"""The pixels of a DICOM file's frames, decoded and in their units."""

import hashlib
import itertools
import struct
from collections.abc import Mapping

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_modality_lut, get_decoder
from pydicom.uid import JPEGLSTransferSyntaxes, JPEGTransferSyntaxes, RLETransferSyntaxes

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes.formats import elements
from contourdiff_jax.volumes.formats.elements import Elements, Unusable
from contourdiff_jax.volumes.formats.frames import AIR, TAGS, Frame, Header

OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
WHOLE = (*TAGS, *elements.PIXELS, *(tag_for_keyword(keyword) for keyword in OFFSETS))


def read(header: Header, targets: Mapping[int, np.ndarray]) -> None:
    """Fills arrays [rows, columns] with frames, by their numbers, in their units.

    Raises InputError, naming the file, where they cannot be decoded.
    """
    elements.guarded(header.path, lambda: _fill(header, targets))


def digest(header: Header) -> bytes | None:
    """Digest of the pixels as they are encoded and of their scale; None where unreadable."""

    def of_pixels():
        file = elements.read(header.path, WHOLE, pixels=True)
        scales = [(frame.slope, frame.intercept) for frame in header.frames]
        return hashlib.sha256(repr(scales).encode() + file.dataset.get(file.pixels)).digest()

    try:
        return elements.guarded(header.path, of_pixels)
    except InputError:
        return None


def _fill(header: Header, targets: Mapping[int, np.ndarray]) -> None:
    file = elements.read(header.path, WHOLE, pixels=True)
    dataset, side = file.dataset, header.tiles
    count = 1 if side > 1 else len(header.frames)
    # The decoders need these elements, which may be missing; frames.py has checked their values.
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = file.syntax
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SamplesPerPixel = 1
    dataset.NumberOfFrames = count
    dataset.PixelRepresentation = int(header.dtype.kind == "i")
    dataset.BitsStored = elements.integer(dataset, "BitsStored", 8 * header.dtype.itemsize)
    if file.syntax.is_encapsulated:
        columns, rows = header.shape
        _check_codestreams(file, (columns * side, rows * side), count)
    decoded = get_decoder(file.syntax).iter_array(dataset, raw=True, allow_excess_frames=False)
    pictures = (picture for picture, _ in itertools.islice(decoded, count))
    if side > 1:
        pictures = (tile for picture in pictures for tile in _tiles(picture, side))
    left = set(targets)
    for index, stored in enumerate(itertools.islice(pictures, len(header.frames))):
        if index in left:
            targets[index][...] = _in_units(stored, dataset, header, header.frames[index])
            left.remove(index)
    if left:
        raise Unusable("the file is truncated or damaged; copy it again")


def _tiles(picture: np.ndarray, side: int) -> np.ndarray:
    """The tiles [side * side, rows, columns] of a picture, row by row."""
    rows, columns = (length // side for length in picture.shape)
    return picture.reshape(side, rows, side, columns).swapaxes(1, 2).reshape(-1, rows, columns)


def _in_units(stored: np.ndarray, dataset, header: Header, frame: Frame) -> np.ndarray:
    """The values [rows, columns] of a frame."""
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, dataset)
    values = stored.astype(np.float64) * frame.slope + frame.intercept
    if header.padding:
        low, high = header.padding
        # Where a header calls a number padding that tissue can have, tissue is what it may be.
        values[(stored >= low) & (stored <= high) & (values < AIR)] = AIR
    return values


def _check_codestreams(file: Elements, shape: tuple[int, int], count: int) -> None:
    """Unusable where compressed frames say another size than the header.

    The decoders take the memory that a frame asks for before they find that it is damaged.
    """
    if file.syntax in RLETransferSyntaxes:  # its frames say no size
        return
    tables = tuple(file.dataset.get(keyword) for keyword in OFFSETS)
    frames = generate_frames(
        file.dataset.PixelData,
        number_of_frames=count,
        extended_offsets=tables if all(tables) else None,
    )
    jpeg = file.syntax in JPEGTransferSyntaxes or file.syntax in JPEGLSTransferSyntaxes
    for frame in itertools.islice(frames, count):
        if (_size_of_jpeg if jpeg else _size_of_jpeg2000)(frame) != (*shape, 1):
            raise Unusable("its compressed pixels are damaged; copy it again")


def _size_of_jpeg2000(frame: bytes) -> tuple[int, int, int]:
    """Columns, rows and components by the SIZ marker (ISO/IEC 15444-1 A.5.1)."""
    at = frame.index(b"\xff\x4f\xff\x51")
    right, bottom, left, top = struct.unpack_from(">4L", frame, at + 8)
    (components,) = struct.unpack_from(">H", frame, at + 40)
    return right - left, bottom - top, components


def _size_of_jpeg(frame: bytes) -> tuple[int, int, int]:
    """Columns, rows and components by the frame header (ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2)."""
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker == 0xFFF7 or (0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8)):
            rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
            return columns, rows, components
        at += 2 + length
