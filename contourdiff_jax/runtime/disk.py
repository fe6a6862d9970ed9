# SPDX-License-Identifier: Apache-2.0
"""What is kept on disk: files and folders written whole or not at all, claims, digests, reasons.

What is written has a hidden name beside its own until it is whole, so that renaming is all that is
left to do. A process that is killed leaves a hidden part (`is_partial`), never half of what was
asked for. Readers do not see parts (`entries`), and the next process that writes into the folder
removes them (`sweep`).

A claim is a locked file, by which several processes share the volumes of a folder and none is made
twice. The kernel gives it up when its process ends, however that happens, so there are no stale
ones: neither process numbers nor hosts have to be compared. By such a file, too, a part shows that
its writer is alive. On a file system that cannot lock, there are no claims: one process at a time
must do, and parts stay.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from contourdiff_jax.errors import InputError

BEGINNING = 4096  # bytes of a file that tell what it is
FOREIGN = "in the way, and not as this tool wrote it; move it away, or choose another place"

# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: str | Path, remedy: str = "") -> Iterator[None]:
    """Tells an OSError within as the InputError that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}{remedy}") from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the name `path` at the end; after an error nothing is left.

    The folder is made. The path ends in the file's name, so that its suffix says the same.
    """
    with part(path) as partial:
        yield partial
        # Some libraries write files that only their owner can read: it has the lock's permissions.
        if partial.stat().st_mode != (lock := _lock_of(partial)).stat().st_mode:
            shutil.copymode(lock, partial)
        os.replace(partial, path)


@contextlib.contextmanager
def file(path: Path) -> Iterator[Path]:
    """`whole`; raises InputError where the file cannot be written."""
    with writing(path), whole(path) as partial:
        yield partial


def write(path: Path, data: bytes | str) -> None:
    """Writes a file, whole or not at all; InputError where it cannot be written."""
    with file(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, fields: dict) -> None:
    """`write` of JSON for people to read."""
    write(path, json.dumps(fields, indent=2) + "\n")


def check_is_new(path: Path, overwrite: bool, sign: str | None = None) -> None:
    """Raise InputError for a path that exists, unless it is a file that may be overwritten.

    Args:
      sign: a text that is near the beginning of all that may be; any file may without one.
    """
    if not os.path.lexists(path):
        return
    with writing(path):
        if sign and not (path.is_file() and says(path, sign, BEGINNING)):
            raise InputError(f"{path}: {FOREIGN}")
    if not overwrite:
        raise InputError(f"{path}: exists already; pass --overwrite to replace it")


@contextlib.contextmanager
def staged(path: Path, *, inside: bool = False) -> Iterator[Path]:
    """A hidden folder to fill with what shall lie in `path`; it is removed at the end.

    It lies beside `path`, or inside. Errors name what is in it by its place in `path`; an OSError
    is told as the InputError that `path` cannot be written.
    """
    place = path.resolve() / "new" if inside else path.resolve()
    with writing(path), part(place, named=path) as partial:
        partial.mkdir()
        yield partial


# --------------------------------------------------------------------------------------------------
# Parts
# --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def part(path: Path, named: Path | None = None) -> Iterator[Path]:
    """A hidden name beside `path` to write to; what still has it at the end is removed.

    Meanwhile a lock beside it says that this process is alive. The folder is made. Errors call it
    `path`, or as it is `named`.
    """
    partial = hidden(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent.absolute())
    with _holding(_lock_of(partial)):
        try:
            yield partial
        except InputError as error:
            if str(partial) not in str(error):
                raise
            raise InputError(str(error).replace(str(partial), str(named or path))) from error
        finally:
            _remove(partial)


def hidden(path: Path, of: str = "") -> Path:
    """A name beside `path`, on the same file system, so that renaming is atomic.

    A new one each time, or always the same one `of` something. Of a long name it has the end alone:
    a file system takes no more than 255 bytes.
    """
    number = uuid.uuid5(uuid.NAMESPACE_OID, of) if of else uuid.uuid4()
    return path.with_name(f".{number.hex}.{path.name[-40:]}")


def is_partial(path: Path) -> bool:
    """Whether a file or folder has a name of `hidden`: it is being written, or was left so."""
    return re.match(r"\.[0-9a-f]{32}\.", path.name) is not None


def entries(folder: Path, pattern: str = "*") -> list[Path]:
    """What matches the pattern in a folder, sorted; no parts, nor what lies in them."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if not any(map(is_partial, [path, *path.relative_to(folder).parents]))
    )


@functools.cache
def sweep(folder: Path) -> None:
    """Removes the parts of processes that were killed from a folder.

    Each process looks into a folder once, since listing a large one takes time.
    """
    with contextlib.suppress(OSError):
        partial = [path for path in folder.iterdir() if is_partial(path)]
        for lock in [path for path in partial if path == _lock_of(path)]:
            with _holding(lock, surely=True) as dead:
                for path in partial if dead else ():
                    if _lock_of(path) == lock != path:
                        _remove(path)


def _lock_of(partial: Path) -> Path:
    return partial.with_name(f".{partial.name.split('.', 2)[1]}.lock")


def _remove(path: Path) -> None:
    """Removes a file or a folder, as far as that can be done."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------
# Claims
# --------------------------------------------------------------------------------------------------

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process holds the claim: the file `path`, made now and removed at the end."""
    with contextlib.ExitStack() as held:
        with writing(path):
            ours = held.enter_context(_holding(path))
        yield ours


@contextlib.contextmanager
def _holding(path: Path, surely: bool = False) -> Iterator[bool]:
    """`claim`, with an OSError; `surely`: False where there are no locks to tell others by."""
    file = _locked(path, surely)
    try:
        yield file is not None
    finally:
        if file is not None:
            if fcntl is None:  # Windows removes no open file
                file.close()
            path.unlink(missing_ok=True)
            file.close()


def _locked(path: Path, surely: bool):
    """The file, opened and locked; None where another process has locked it."""
    while True:
        file = path.open("w")
        try:
            if fcntl is None:
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not surely and not isinstance(error, BlockingIOError):  # no locks here
                return file
            file.close()
            return None
        # Its last holder may have removed it since we opened it: then the name leads elsewhere.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def sha256(*files: str | Path) -> str:
    """Hexadecimal SHA-256 of the bytes of the files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with open_file(Path(path)) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_is_file(path: Path) -> None:
    """InputError where there is no file with something in it."""
    # Unlike Path.exists, os.path.exists takes names that are too long, and forbidden folders.
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file or folder")
    if os.path.isdir(path):
        raise InputError(f"{path}: a folder, where a volume is expected")
    with open_file(path) as file:
        if not file.read(1):
            raise InputError(f"{path}: the file is empty")


def open_file(path: Path):
    """The file, opened to read its bytes; InputError where it cannot be."""
    check_can_be_read(path)
    with reading(path):
        return path.open("rb")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tells an OSError within as the InputError that `path` cannot be read."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def says(path: Path, text: str, count: int = -1) -> bool:
    """Whether a text is among the first `count` bytes of a file, by default among all."""
    with path.open("rb") as file:
        return text.encode() in file.read(count)


def check_can_be_read(path: str | Path) -> None:
    """InputError for a pipe, which would be waited for, and for a device, which may have no end."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"{path}: cannot be read: no regular file")


def reason(error: Exception) -> str:
    """Why an operation failed, in one line without the file's name."""
    if "No space left" in str(error):  # of whatever library
        return "no space left on the device"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
