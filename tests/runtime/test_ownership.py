# SPDX-License-Identifier: Apache-2.0
"""Marks: what the tool did not write, or not as it is now, is neither replaced nor removed."""

import json
import os
from pathlib import Path

import pytest

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, ownership

FIRST = {"a": "first", "sub/b": "first", "old/c": "first"}
SECOND = {"a": "second", "sub/b": "second", "new/d": "second"}


def make(path, files, overwrite=True):
    with ownership.folder(path, "a test", overwrite) as partial:
        for name, text in files.items():
            disk.write(partial / name, text)
    return path


def contents(root):
    """What every file holds, and where every link leads; without marks and what a kill left."""
    return {
        path.relative_to(root).as_posix(): os.readlink(path) if path.is_symlink() else text(path)
        for path in sorted(root.rglob("*"))
        if path.name != ownership.MARK and not disk.is_partial(path)
        if path.is_symlink() or path.is_file()
    }


def text(path):
    return path.read_text(errors="replace")


def test_what_is_the_user_s_stays_beside_what_is_replaced(tmp_path):
    out = make(tmp_path / "out", FIRST)
    theirs = {"notes.md": "mine", "sub/weights": "mine", "old/x/y": "mine"}
    for name, words in theirs.items():
        disk.write(out / name, words)
    make(out, SECOND)
    assert contents(out) == {**theirs, **SECOND}
    make(out, FIRST)  # the mark says what is there now
    assert contents(out) == {**theirs, **FIRST}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def file(path):
    disk.write(path, "mine")


def link(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("../far")


def changed(path):
    assert path.exists()
    path.write_text("First")  # as long as before


def in_place(path):
    path.unlink()
    file(path)


def by_link(path):
    path.rename(path.with_name("kept"))
    path.symlink_to("kept")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("new/d", file),  # has a name that is to be written
        ("new/d", link),
        ("new", file),  # where a folder is to be
        ("new", link),  # leads out
        ("a", changed),
        ("sub/b", in_place),
        ("old/c", changed),  # would be removed
        ("a", by_link),
        (ownership.MARK, in_place),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_what_is_in_the_way_is_refused(tmp_path, name, how, beside):
    out = make(tmp_path / "out", FIRST)
    (tmp_path / "far").mkdir()
    if beside:
        file(out / "notes.md")
    how(out / name)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"out.*(move it away|remove it yourself|choose)"):
        make(out, SECOND)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("files", [FIRST, {}])
def test_a_folder_without_the_mark_is_never_touched(tmp_path, files):
    """Not even where all has the names and the content of what the tool makes."""
    out = make(tmp_path / "out", FIRST)
    (out / ownership.MARK).unlink()
    with pytest.raises(InputError, match=r"out: exists already and is not a test.*remove it"):
        make(out, files)
    assert contents(out) == FIRST
    with pytest.raises(InputError, match="a: exists already and is not a test"):
        make(out / "a", files)


def test_a_list_that_leads_out_is_not_followed(tmp_path):
    """Marks are files, and may come from anywhere."""
    out = make(tmp_path / "out", FIRST)
    file(tmp_path / "far")
    mark = json.loads((out / ownership.MARK).read_text())
    for name in ("../far", str(tmp_path / "far")):
        mark["files"][name] = ownership.ANY
        (out / ownership.MARK).write_text(json.dumps(mark))
        with pytest.raises(InputError, match="far: leads out of"):
            make(out, SECOND)
    (out / ownership.MARK).write_text(json.dumps(mark | {"files": ["a"]}))
    with pytest.raises(InputError, match="exists already and is not a test"):
        make(out, SECOND)
    assert text(tmp_path / "far") == "mine"


def test_whenever_it_is_killed_nothing_is_lost_and_the_next_call_succeeds(tmp_path, monkeypatch):
    """Before every change of a name."""
    real, kills = {name: getattr(os, name) for name in ("replace", "rename", "unlink")}, 0
    while True:
        out, left = make(tmp_path / str(kills) / "out", FIRST), [kills]
        file(out / "notes.md")

        def until(name, left=left):
            def change(*paths, **how):
                path = Path(paths[-1])
                if path.is_relative_to(tmp_path) and not disk.is_partial(path):
                    left[0] -= 1
                    if left[0] < 0:
                        raise KeyboardInterrupt
                return real[name](*paths, **how)

            return change

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, until(name))
            try:
                make(out, SECOND)
            except KeyboardInterrupt:
                kills += 1
            else:
                break
        held = contents(out)
        assert held.keys() <= {*FIRST, *SECOND, "notes.md"} and held["notes.md"] == "mine"
        # Old files until all new ones are whole, and what is mixed says so.
        if set(held.values()) == {"first", "second", "mine"}:
            with pytest.raises(InputError, match=r"replaced in part, .*; make it again"):
                ownership.check_finished(out, "make it again")
        make(out, SECOND)
        assert contents(out) == {**SECOND, "notes.md": "mine"}
        ownership.check_finished(out, "make it again")
    assert kills > 5


def test_the_folder_that_is_worked_in_stays_itself(tmp_path, monkeypatch):
    """--out=. is not renamed away under the user's feet."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    for files in (FIRST, SECOND):
        make(Path("."), files)
        assert contents(Path(".")) == files == contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("out", "read", "told"),
    [
        ("scans", "scans", "lies in"),
        ("scans/made/new", "scans", "lies in"),
        (".", "scans", "holds"),
        ("scans", "scans/a.nii", "holds"),
        ("link", "scans", "lies in"),
        ("link/new", "scans", "lies in"),
        ("scans", "link", "lies in"),
        ("scans/../scans", "scans", "lies in"),
        ("made", "scans", None),
        ("scans2", "scans", None),
        ("made", "scans/a.nii", None),
        ("made", "absent", None),
    ],
)
def test_an_output_is_apart_from_what_is_read(tmp_path, monkeypatch, out, read, told):
    monkeypatch.chdir(tmp_path)
    file(tmp_path / "scans" / "a.nii")
    (tmp_path / "link").symlink_to("scans")
    given = {"masks": None, "source": read}
    if told is None:
        ownership.check_apart("out", out, given)
        return
    with pytest.raises(InputError, match=f"^--out={out}: {told} --source={read}, .*another --out"):
        ownership.check_apart("out", out, given)


def test_a_file_is_replaced_only_if_it_begins_as_it_should(tmp_path):
    path = tmp_path / "card.md"
    disk.check_is_new(path, False, "Ours")
    path.write_text("# Ours")
    disk.check_is_new(path, True, "Ours")
    with pytest.raises(InputError, match="pass --overwrite"):
        disk.check_is_new(path, False, "Ours")
    for words in ("# Theirs", f"{'-' * disk.BEGINNING}Ours"):
        path.write_text(words)
        for overwrite in (False, True):
            with pytest.raises(InputError, match="not as this tool wrote it"):
                disk.check_is_new(path, overwrite, "Ours")
    with pytest.raises(InputError, match="not as this tool wrote it"):
        disk.check_is_new(tmp_path, True, "Ours")
