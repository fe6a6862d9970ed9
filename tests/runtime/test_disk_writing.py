# SPDX-License-Identifier: Apache-2.0
"""Writing: a file or a folder is there whole or not at all, and what fails is told in one line."""

import errno
import json
import os

import pytest

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk

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


def fill(path, text, check=disk.check_is_free):
    with disk.folder(path, check) as partial:
        (partial / "a").write_text(text)
        assert not path.exists() or (path / "a").read_text() != text


def test_a_folder_is_there_when_it_is_whole_and_replaced_only_if_it_may_be(tmp_path):
    path = tmp_path / "new" / "out"
    fill(path, "first")
    with pytest.raises(InputError, match="exists already and is not empty"):
        fill(path, "second")
    fill(path, "second", check=lambda _: None)
    assert (path / "a").read_text() == "second" and [path] == list(path.parent.iterdir())

    def never(_):
        raise InputError("not this one")

    with pytest.raises(InputError, match="not this one"):
        fill(path, "third", check=never)
    assert (path / "a").read_text() == "second"


def test_a_folder_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "out"
    fill(path, "first")
    with (
        pytest.raises(InputError, match="out: cannot be written: no space left"),
        disk.folder(path, lambda _: None),
    ):
        raise FULL
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise FULL
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(InputError, match="no space left"):
        fill(path, "second", check=lambda _: None)
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
    with disk.folder(tmp_path / longest[1:]):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {longest, longest[1:]}
    assert disk.is_partial(disk.hidden(tmp_path / longest))
