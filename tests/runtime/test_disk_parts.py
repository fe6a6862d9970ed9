# SPDX-License-Identifier: Apache-2.0
"""Parts: what is being written is no one's input, and what a killed process left is removed."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from contourdiff_jax.runtime import disk, ownership


def write(kind, path, begun):
    """A process that writes until it is killed."""
    with ownership.folder(path, "a test") if kind == "folder" else disk.file(path) as partial:
        (partial / "a" if kind == "folder" else partial).write_text("half")
        begun.send(partial)
        signal.pause()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def writing(tmp_path):
    """A file and a folder that a process each writes, with the processes."""
    spawn, started = multiprocessing.get_context("spawn"), []
    for kind in ("file", "folder"):
        ours, theirs = multiprocessing.Pipe()
        process = spawn.Process(target=write, args=(kind, tmp_path / f"{kind}.nii.gz", theirs))
        process.start()
        started.append((process, ours))
    parts = [ours.recv() for _, ours in started if ours.poll(60)]
    yield parts, [process for process, _ in started]
    for process, _ in started:
        process.kill()
        process.join()


def test_parts_are_removed_once_their_writer_is_dead(tmp_path, writing):
    parts, processes = writing
    disk.sweep(tmp_path)
    assert len(names(tmp_path)) == 4 and all(path.exists() for path in parts)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    disk.sweep.cache_clear()
    (tmp_path / ".notes").write_text("of someone else")
    disk.write(tmp_path / "next", "whole")  # any writing into the folder
    assert names(tmp_path) == {".notes", "next"}


def test_parts_stay_where_nothing_can_be_locked(tmp_path, writing, monkeypatch):
    def unsupported(*_):
        raise OSError("no locks here")

    for process in writing[1]:
        process.kill()
        process.join()
    monkeypatch.setattr(disk.fcntl, "flock", unsupported)
    disk.write(tmp_path / "next", "whole")
    assert len(names(tmp_path)) == 5


def test_a_part_without_a_lock_stays(tmp_path):
    """Of an earlier version, whose process may be alive."""
    part = disk.hidden(tmp_path / "store")
    part.mkdir()
    disk.write(tmp_path / "next", "whole")
    assert names(tmp_path) == {part.name, "next"}


def test_what_is_in_parts_is_not_listed(tmp_path):
    for name in ("a/x.png", f"{disk.hidden(tmp_path / 'a').name}/y.png", "b/z.png", ".c/x.png"):
        disk.write(tmp_path / name, "")
    disk.hidden(tmp_path / "a" / "x.png").write_text("half")
    assert disk.entries(tmp_path, "*/*.png") == [
        tmp_path / n for n in (".c/x.png", "a/x.png", "b/z.png")
    ]
    assert disk.entries(tmp_path) == [tmp_path / name for name in (".c", "a", "b")]


def test_files_have_the_permissions_that_the_user_wants(tmp_path):
    """Those of files that a library has made for its owner alone, too."""
    before = os.umask(0o027)
    try:
        with disk.file(tmp_path / "weights") as partial:
            os.close(os.open(partial, os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640
