# SPDX-License-Identifier: Apache-2.0
"""Writing: a file or a folder is there whole or not at all, and what fails is told in one line."""

import errno
import json
import os

import pytest

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, ownership

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.nii.gz"
    with disk.file(path) as partial:
        assert partial.name.endswith(".a.nii.gz") and disk.is_partial(partial)
        partial.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half" and [path] == list(path.parent.iterdir())
    assert not disk.is_partial(path)
    disk.write(path, "näxt")
    assert path.read_text(encoding="utf-8") == "näxt"
    disk.write_json(path, {"one": [1]})
    assert json.loads(path.read_text()) == {"one": [1]} and path.read_text()[-1] == "\n"


def test_a_file_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with (
        pytest.raises(InputError, match=r"a\.txt: cannot be written: no space left"),
        disk.file(path) as partial,
    ):
        partial.write_text("half")
        raise FULL
    with pytest.raises(KeyboardInterrupt), disk.file(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and [path] == list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"a\.txt/b: cannot be written"):
        disk.write(path / "b", b"")


def fail(*_):
    raise FULL


def fill(path, text, overwrite=None):
    with ownership.folder(path, "a test", overwrite) as partial:
        (partial / "a").write_text(text)
        assert not path.exists() or (path / "a").read_text() != text


def test_a_folder_is_there_when_it_is_whole_and_replaced_only_if_it_may_be(tmp_path):
    path = tmp_path / "new" / "out"
    fill(path, "first")
    for overwrite, told in ((None, " and is not empty; choose another"), (False, "; pass --over")):
        with pytest.raises(InputError, match=f"out: exists already{told}"):
            fill(path, "second", overwrite)
    fill(path, "second", overwrite=True)
    assert (path / "a").read_text() == "second" and [path] == list(path.parent.iterdir())
    with (
        pytest.raises(InputError, match="out: exists already and is not another thing"),
        ownership.folder(path, "another thing", overwrite=True),
    ):
        pass
    assert (path / "a").read_text() == "second"


def test_a_folder_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "out"
    fill(path, "first")
    with (
        pytest.raises(InputError, match="out: cannot be written: no space left"),
        ownership.folder(path, "a test", overwrite=True),
    ):
        raise FULL
    with (
        pytest.raises(InputError) as told,
        ownership.folder(path, "a test", overwrite=True) as partial,
    ):
        disk.write(partial / "b" / "c", "")
        disk.write(partial / "b", "")  # a folder has the name
    assert str(told.value) == f"{path / 'b'}: cannot be written: Is a directory"
    with monkeypatch.context() as patch, pytest.raises(InputError, match="no space left"):
        patch.setattr(os, "replace", fail)
        fill(path, "second", overwrite=True)
    assert (path / "a").read_text() == "first" and [path] == list(tmp_path.iterdir())


def test_a_folder_behind_a_link_is_replaced_where_it_lies(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to("far/out")
    fill(tmp_path / "out", "text")
    assert (tmp_path / "far" / "out" / "a").read_text() == "text"
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("letter", ["a", "ö", "€"])
def test_names_as_long_as_a_file_system_takes_are_written(tmp_path, letter):
    suffix = ".nii.gz"
    longest = (letter * 255).encode()[: 255 - len(suffix)].decode(errors="ignore") + suffix
    disk.write(tmp_path / longest, "x")
    with ownership.folder(tmp_path / longest[1:], "a test"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {longest, longest[1:]}
    assert disk.is_partial(disk.hidden(tmp_path / longest))
