# SPDX-License-Identifier: Apache-2.0
"""The tensors in a file of torch.save, read without torch and without running the file.

Such a file is a pickle, and a pickle is a program. This reader knows the few names that a
dictionary of tensors needs, puts harmless things in their place, and refuses every other name. Both
forms are read: zip archives, and what torch wrote before 1.6 (torch/serialization.py), where
several pickles follow one another:

    magic, protocol, {"little_endian": ...}, the dictionary, [key of storage, ...],
    then for each key the count of elements, int64, and the elements
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DTYPES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8"}


class _Storage(NamedTuple):
    """Where the elements of tensors lie."""

    key: str
    dtype: str
    count: int


class _View(NamedTuple):
    """A tensor: a part of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _view(storage, offset, shape, strides, *_) -> _View:
    """Stands for torch._utils._rebuild_tensor_v2; elements are read later."""
    return _View(storage, offset, shape, strides)


NAMES = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


class _Refused(Exception):
    """The file asks for a name that no tensor needs."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in NAMES:
            raise _Refused(f"{module}.{name}")
        return NAMES[module, name]

    def persistent_load(self, pid):
        kind, dtype, key, _, count, *_ = pid
        if kind != "storage" or dtype not in DTYPES.values():
            raise _Refused(f"a {kind} of {dtype}")
        return _Storage(str(key), dtype, int(count))


def read(path: Path, content: bytes | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file by name.

    Args:
      path: the file.
      content: its bytes, where they have been read already.

    Raises:
      InputError: a file that is damaged, that holds other things than tensors, or whose pickle asks
        for anything that could run.
    """
    if content is None:
        content = contents(path)
    stream = io.BytesIO(content)
    try:
        views, elements = (_zipped if zipfile.is_zipfile(stream) else _sequential)(stream)
        return {str(name): _array(view, elements) for name, view in dict.items(views)}
    except _Refused as error:
        raise InputError(
            f"{path}: its pickle asks for {error}, which no tensor needs; nothing of it was run, "
            f"and it should not be trusted"
        ) from None
    # There is no telling how a damaged pickle fails.
    except Exception as error:
        raise InputError(
            f"{path}: damaged, or not a dictionary of tensors ({disk.reason(error)})"
        ) from None


def contents(path: Path) -> bytes:
    """The bytes of a file."""
    disk.check_is_file(path)
    with disk.open_file(path) as file:
        return file.read()


def _zipped(stream: io.BytesIO) -> tuple[Mapping, Callable]:
    archive = zipfile.ZipFile(stream)
    (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    root = pickled.removesuffix("data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise ValueError("compressed entries, which torch does not write")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("elements are not little-endian")
    views = _Unpickler(archive.open(pickled)).load()
    return views, lambda storage: archive.read(f"{root}data/{storage.key}")


def _sequential(stream: io.BytesIO) -> tuple[Mapping, Callable]:
    if stream.seek(0) or _Unpickler(stream).load() != MAGIC:
        raise ValueError("neither form of torch.save")
    if _Unpickler(stream).load() != PROTOCOL or not _Unpickler(stream).load()["little_endian"]:
        raise ValueError("another protocol, or elements that are not little-endian")
    views, keys, elements = _Unpickler(stream).load(), _Unpickler(stream).load(), {}
    used = {view.storage.key: view.storage for view in dict.values(views)}
    for key in keys:
        size = np.dtype(used[key].dtype).itemsize * used[key].count
        if int.from_bytes(stream.read(8), "little") != used[key].count:
            raise ValueError(f"storage {key} is not as long as its tensors say")
        elements[key] = stream.read(size)
    return views, lambda storage: elements[storage.key]


def _array(view: _View, elements: Callable) -> np.ndarray:
    storage, offset, shape, strides = view
    flat = np.frombuffer(elements(storage), storage.dtype, storage.count)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or last >= len(flat):
        raise ValueError("a tensor reaches beyond its storage")
    return np.lib.stride_tricks.as_strided(
        flat[offset:], shape, [step * flat.itemsize for step in strides]
    ).copy()
