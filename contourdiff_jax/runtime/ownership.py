# SPDX-License-Identifier: Apache-2.0
"""Ownership: nothing of the user's is ever replaced or removed.

A mark is a JSON file by which the tool knows what it made: "files" lists them, each with a seal
that tells whether it is as it was written. Only these are replaced, each by renaming a whole one
over it. All else is the user's.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, forms
from contourdiff_jax.runtime.disk import FOREIGN

MARK = ".contourdiff.json"  # the mark of a folder that `folder` made
ANY = ""  # the seal of a file that may have changed
SEALED = 1 << 20  # bytes of a file that count for its seal


@contextlib.contextmanager
def folder(path: Path, what: str, overwrite: bool | None = None) -> Iterator[Path]:
    """A folder to fill, which takes the name `path` at the end; after an error nothing is left.

    Args:
      path, what, overwrite: see `check_is_free`, which is asked before and after.

    Raises InputError where the path is in use, or cannot be written.
    """
    check_is_free(path, what, overwrite)
    with disk.staged(path) as partial:
        yield partial
        settle(partial, path, what, overwrite)


def check_is_free(path: Path, what: str, overwrite: bool | None = None) -> None:
    """Raise InputError for a path that `folder` may not take.

    Args:
      path: free if there is nothing, or an empty folder.
      what: the folder will hold, as 'a store'. Only another that was made as such is replaced.
      overwrite: whether it may be; None where the user has no flag to say so.
    """
    with disk.writing(path):
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
        if overwrite is None:
            raise InputError(f"{path}: exists already and is not empty; choose another folder")
        if marked(path / MARK, what) is None:
            raise InputError(
                f"{path}: exists already and is not {what} that this version of the tool made; "
                "choose another folder, or remove it yourself"
            )
        owned(path, MARK, what)
        disk.check_is_new(path, overwrite)


def settle(partial: Path, path: Path, what: str, overwrite: bool | None = None) -> None:
    """Gives a whole folder the name `path`, with its mark; see `folder`."""
    check_is_free(path, what, overwrite)
    disk.write_json(partial / MARK, {"made": what, "files": listing(partial)})
    if path.exists():
        merge(partial, path, MARK, what)
    else:
        os.rename(partial, path.resolve())


def marked(mark: Path, sign: str) -> dict | None:
    """The fields of a mark, of which one is `sign`; None where there is no such mark."""
    fields = _fields(mark)
    return fields if fields and sign in fields.values() else None


def _fields(mark: Path) -> dict | None:
    try:
        return forms.read(mark, {"files?": dict[str, str]}, "")
    except InputError:
        return None


def is_finished(folder: Path) -> bool:
    """Whether a folder's files are of one making; they are not where `merge` was killed."""
    return "unfinished" not in (_fields(folder / MARK) or {})


def check_finished(folder: Path, remedy: str) -> None:
    """Raise InputError for a folder that is not finished."""
    if not is_finished(folder):
        raise InputError(f"{folder}: replaced in part, by a command that was killed; {remedy}")


def listing(folder: Path) -> dict[str, str]:
    """The files in a folder and below, sorted: {path from there: seal}."""
    return {path.relative_to(folder).as_posix(): _seal(path) for path in sorted(_files(folder))}


def owned(root: Path, mark: str, sign: str, names: Iterable[str] = ()) -> dict[str, str]:
    """The files in `root` that a mark there lists, {path from there: seal}; none without the mark.

    Args:
      mark, sign: see `marked`. Marks of earlier versions list nothing, and stand for `names`.
      names: of files and folders that are to be written.

    Raises InputError where anything else is in the way: it has one of the names, the mark's too, or
    lies in one of the folders; a listed file was changed; a name or a link leads out of `root`.
    """
    fields, names = marked(root / mark, sign), list(names)
    if fields is None and os.path.lexists(root / mark):
        raise InputError(f"{root / mark}: {FOREIGN}")
    seals = {} if fields is None else fields.get("files", dict.fromkeys(names, ANY))
    for name in {**seals, **dict.fromkeys(names)}:
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{path}: leads out of {root}; choose another folder")
        there = [path, *(it for it in path.parents if it.is_file())]
        for file in _files(path) if path.is_dir() else there:
            seal = seals.get(Path(os.path.relpath(file, root)).as_posix())
            if os.path.lexists(file) and not _is_sealed(file, seal):
                raise InputError(f"{file}: {FOREIGN}")
    return seals


def merge(partial: Path, root: Path, mark: str, sign: str) -> None:
    """Renames what is in a folder into `root`, over nothing but what the mark there lists.

    What the mark lists and is not among it is removed. Meanwhile the mark says "unfinished" and
    lists all: after a kill, the next who asks for the same may replace these files.

    Args:
      mark, sign: see `marked`; `partial` has the new mark, which takes its place last.
    """
    fields = forms.read(partial / mark, {"files": dict[str, str]}, "")
    new = fields["files"]
    old = owned(root, mark, sign, new)
    listed = dict.fromkeys([*old, *new], ANY)
    disk.write_json(root / mark, fields | {"files": listed, "unfinished": True})
    for name in new:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, root / name)
    for name in old.keys() - new.keys():
        (root / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            (root / name).parent.rmdir()
    os.replace(partial / mark, root / mark)


def check_apart(flag: str, out: str | Path, read: Mapping[str, str | Path | None]) -> None:
    """Raise InputError where an output lies in something that is read, or around it.

    Args:
      flag: of the output, without its dashes.
      read: paths by their flags, None for those not given; "" for arguments without a flag.
    """
    place = Path(os.path.abspath(out))
    for name, path in read.items():
        if path is None or not os.path.exists(path):
            continue
        other, given = Path(os.path.abspath(path)), f"--{name}={path}" if name else path
        for how, one, around in (("lies in", place, other), ("holds", other, place)):
            if _lies_in(one, around):
                raise InputError(
                    f"--{flag}={out}: {how} {given}, which is only read; choose another --{flag}"
                )


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is that of a folder or leads into it, whatever links and names lead there."""
    return os.path.exists(folder) and any(
        os.path.samefile(it, folder)
        for it in {path, *path.parents, *path.resolve().parents}
        if os.path.exists(it)
    )


def _files(folder: Path) -> Iterator[Path]:
    """All below a folder that is no folder; a link is a file."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        yield from (Path(place, name) for name in (*files, *links))


def _is_sealed(path: Path, seal: str | None) -> bool:
    """Whether a path is that of a file with this seal; none has the seal None."""
    return path.is_file() and not path.is_symlink() and seal in (ANY, _seal(path))


def _seal(path: Path) -> str:
    """What tells a file from others of its name: its size, and a digest of its first MiB."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(SEALED)).hexdigest()
        return f"{os.fstat(file.fileno()).st_size} {digest}"
