# SPDX-License-Identifier: Apache-2.0
"""The elements of a DICOM file, whatever is in it.

Files come from scanners, archives and damaged disks. No length that one claims makes us ask for
memory that its bytes do not fill, and whatever makes the parser fail ends in one line. Headers also
name patients: no text of theirs gets into a message.
"""

import contextlib
import dataclasses
import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk

# Where the numbers of an image may stand.
PIXELS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
UNDEFINED = 0xFFFFFFFF  # length of an element that ends with a delimiter
ITEM = b"\xfe\xff\x00\xe0"
INFLATED = 1 << 27  # bytes that a deflated file may become
LOGGERS = ("pydicom", "pylibjpeg", "openjpeg")


class Unusable(Exception):
    """Why a file cannot be used, without its name."""


@dataclasses.dataclass(frozen=True)
class Elements:
    """What was read of a file.

    Attributes:
      dataset: the elements.
      syntax: how its pixels are encoded.
      pixels: the keyword of the element that holds them; None where there is none.
      size: bytes of them that there are.
    """

    dataset: pydicom.Dataset
    syntax: UID
    pixels: str | None
    size: int


def read(path: Path, tags: Sequence[int], *, pixels: bool) -> Elements:
    """The elements of a file that have these tags; call it within `guarded`.

    Args:
      path: the file.
      tags: of elements to keep.
      pixels: whether to read on where the pixels begin.
    """
    with _Bounded(path) as file:
        file.seek(132 if file.read(132)[128:] == b"DICM" else 0)
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        # Without one it is little endian; pydicom finds out itself whether elements say their type.
        syntax = UID(meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian)
        if syntax.is_private or not syntax.is_transfer_syntax:
            raise Unusable("a transfer syntax that is not known; convert it first")
        stream, end = file, file.size
        if syntax == DeflatedExplicitVRLittleEndian:
            stream = io.BytesIO(_inflated(file.read()))
            syntax, end = ExplicitVRLittleEndian, len(stream.getbuffer())
        packed = syntax.is_encapsulated
        spans = {}

        def at_pixels(tag, vr, length):
            if tag in PIXELS:
                spans[PIXELS[tag]] = stream.tell(), length
            return tag in PIXELS and (packed or not pixels)

        dataset = read_dataset(
            stream,
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            stop_when=at_pixels,
            specific_tags=list(tags),
        )
        keyword, (start, length) = next(reversed(spans.items()), (None, (end, 0)))
        if pixels and packed and keyword is not None:
            stream.seek(start)
            value = _items(stream.read(-1 if length == UNDEFINED else length))
            dataset.add_new(tag_for_keyword(keyword), "OB", value)
    if "SOPClassUID" not in dataset:
        dataset.SOPClassUID = meta.get("MediaStorageSOPClassUID", "")
    return Elements(dataset, syntax, keyword, min(length, max(end - start, 0)))


def _items(data: bytes) -> bytes:
    """The items that encapsulated pixels consist of; Unusable where the last is cut short.

    They end with a delimiter, or without one with the file: some archives drop it, and what is
    whole without it is read by all others.
    """
    end = 0
    while data[end : end + 4] == ITEM and end + 8 <= len(data):
        end += 8 + struct.unpack_from("<L", data, end + 4)[0]
    if end > len(data):
        raise Unusable("the file is truncated or damaged; copy it again")
    return data[:end]


def _inflated(deflated: bytes) -> bytes:
    inflation = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflation.decompress(deflated, INFLATED)
    if inflation.unconsumed_tail:
        raise Unusable(f"a deflated file of more than {INFLATED >> 20} MiB; decompress it first")
    return inflated


class _Bounded(io.BufferedReader):
    """A file that takes no more memory than it has bytes, however many it is asked for."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= io.DEFAULT_BUFFER_SIZE:
            left = max(self.size - self.tell(), 0)
            size = left if size < 0 else min(size, left)
        return super().read(size)


# --------------------------------------------------------------------------------------------------
# Values
# --------------------------------------------------------------------------------------------------


def numbers(item, keyword: str, count: int) -> np.ndarray | None:
    """[count] finite float64; None where the element is absent or empty."""
    try:
        value = item.get(keyword)
        if value is None or value == "" or value == []:
            return None
        values = np.array(value, np.float64).reshape(count)
    except Exception as error:  # a damaged value can make the parser fail in any way
        raise Unusable(f"{keyword} is damaged; export it again") from error
    if not np.isfinite(values).all():
        raise Unusable(f"{keyword} is damaged; export it again")
    return values


def number(item, keyword: str, default=None) -> float:
    """A finite number; `default` where the element is absent or empty."""
    values = numbers(item, keyword, 1)
    return default if values is None else float(values[0])


def integer(item, keyword: str, default: int) -> int:
    """A whole number; `default` where the element is absent or empty."""
    return int(number(item, keyword, default))


def raw(dataset, keyword: str) -> bytes:
    """The bytes of an element, which may be text in any character set, or damaged; b'' if none."""
    element = dataset.get_item(keyword)
    value = None if element is None else element.value
    return value.strip(b" \0") if isinstance(value, bytes) else b""


# --------------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------------


def guarded(path: Path, action):
    """What `action` returns; warnings and logs are silenced, any error becomes one line."""
    try:
        with _quietly():
            return action()
    except Unusable as error:
        raise InputError(f"{path}: {error}") from error
    except MemoryError as error:
        raise InputError(f"{path}: not enough memory for what its header claims") from error
    except Exception as error:  # a damaged header can make a parser fail in any way
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not pydicom's
            raise InputError(f"{path}: cannot be read: {disk.reason(error)}") from error
        raise InputError(f"{path}: damaged; export or copy it again") from error


@contextlib.contextmanager
def _quietly():
    """Silences warnings and log lines, which cite headers."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.propagate for logger in loggers]
    try:
        for logger in loggers:
            logger.propagate = False
        with (
            warnings.catch_warnings(),
            np.errstate(all="ignore"),
            pydicom.config.disable_value_validation(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.propagate = propagate
