# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save, written here byte for byte without torch: read, and never run."""

import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import torchfile

FORMS = ("zip", "sequence")


@pytest.fixture(autouse=True)
def torch(monkeypatch):
    """Modules with the names that torch's pickles ask for."""
    module, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in (*torchfile.DTYPES, "IntStorage"):
        setattr(module, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*_):
        raise AssertionError("torch itself was called")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return module


class Storage:
    def __init__(self, key, array, kind="FloatStorage"):
        self.key, self.array, self.kind = key, array, kind


class Tensor:
    """A part of a storage that pickles as torch's tensors do."""

    def __init__(self, storage, offset, shape, strides):
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
        if isinstance(thing, Storage):
            kind = getattr(sys.modules["torch"], thing.kind)
            return ("storage", kind, thing.key, "cpu", thing.array.size)
        return None


def dumped(thing) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(thing)
    return stream.getvalue()


def write(path, tree, storages, form):
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", dumped(tree))
            archive.writestr("archive/byteorder", "little")
            for storage in storages:
                archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())
        return
    parts = [torchfile.MAGIC, torchfile.PROTOCOL, {"little_endian": True}, tree]
    parts.append([storage.key for storage in storages])
    with path.open("wb") as file:
        for part in parts:
            file.write(dumped(part))
        for storage in storages:
            file.write(storage.array.size.to_bytes(8, "little") + storage.array.tobytes())


def example(rng):
    whole = rng.standard_normal(30).astype(np.float32)
    count = np.array([7], np.int64)
    storages = [Storage("0", whole), Storage("1", count, "LongStorage")]
    tree = OrderedDict(
        plain=Tensor(storages[0], 0, (5, 6), (6, 1)),
        turned=Tensor(storages[0], 2, (3, 4), (1, 6)),  # a transposed part
        count=Tensor(storages[1], 0, (), ()),
    )
    tree._metadata = OrderedDict(version=1)  # as state_dict() has it
    return tree, storages, whole


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_give_the_tensors_in_their_strides(tmp_path, rng, form):
    tree, storages, whole = example(rng)
    write(tmp_path / "w.pth", tree, storages, form)
    read = torchfile.read(tmp_path / "w.pth")
    assert list(read) == ["plain", "turned", "count"]
    np.testing.assert_array_equal(read["plain"], whole.reshape(5, 6))
    np.testing.assert_array_equal(read["turned"], whole[2:26].reshape(4, 6)[:, :3].T)
    assert read["count"].shape == () and read["count"] == 7


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_that_runs_something_is_refused_and_not_run(tmp_path, form):
    proof = tmp_path / "proof"
    write(tmp_path / "w.pth", {"a": Command(proof)}, [], form)
    with pytest.raises(InputError, match=r"w\.pth: its pickle asks for (posix|nt)\.mkdir"):
        torchfile.read(tmp_path / "w.pth")
    assert not proof.exists()
    pickle.loads(dumped(Command(proof)))
    assert proof.exists()  # so the file would have done it


@pytest.mark.parametrize(
    "name", ["builtins.eval", "builtins.getattr", "torch._utils.x", "torch.load", "os.system"]
)
def test_no_other_name_is_found(tmp_path, name):
    module, _, function = name.rpartition(".")
    content = b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"."
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        torchfile.read(tmp_path / "w.pth")


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_file_is_damaged_wherever_it_is_cut(tmp_path, rng, form):
    tree, storages, _ = example(rng)
    write(tmp_path / "w.pth", tree, storages, form)
    content = (tmp_path / "w.pth").read_bytes()
    for length in range(1, len(content), 7):
        (tmp_path / "w.pth").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"w\.pth: damaged"):
            torchfile.read(tmp_path / "w.pth")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (31,), (1,)), (5, (5, 6), (6, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (-2,), (1,))],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, form, offset, shape, strides):
    storage = Storage("0", np.zeros(30, np.float32))
    write(tmp_path / "w.pth", {"a": Tensor(storage, offset, shape, strides)}, [storage], form)
    with pytest.raises(InputError, match="damaged"):
        torchfile.read(tmp_path / "w.pth")


def test_what_else_could_lie_there(tmp_path):
    storage = Storage("0", np.zeros(3, np.int32), "IntStorage")
    for number, (tree, message) in enumerate(
        [
            ({"a": Tensor(storage, 0, (3,), (1,))}, r"asks for torch\.IntStorage"),
            ({"a": 3}, "damaged"),
            ([1, 2], "damaged"),
        ]
    ):
        write(tmp_path / f"{number}.pth", tree, [storage], "zip")
        with pytest.raises(InputError, match=message):
            torchfile.read(tmp_path / f"{number}.pth")
    (tmp_path / "x.pth").write_bytes(b"not a pickle")
    with pytest.raises(InputError, match="damaged"):
        torchfile.read(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("z/data.pkl", dumped({}))
    with pytest.raises(InputError, match="compressed"):
        torchfile.read(tmp_path / "z.pth")
    with pytest.raises(InputError, match="no such file"):
        torchfile.read(tmp_path / "none.pth")
