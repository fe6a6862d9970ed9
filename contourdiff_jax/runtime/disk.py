# SPDX-License-Identifier: Apache-2.0
"""What is kept on disk: folders written whole or not at all, claims, digests, and why it failed.

A claim is a locked file, by which several processes share the volumes of a folder and none is made
twice. The kernel gives it up when its process ends, however that happens, so there are no stale
ones: neither process numbers nor hosts have to be compared. On a file system that cannot lock,
there are no claims, and one process at a time must do.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from contourdiff_jax.errors import InputError


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it takes the name `path` at the end, and is removed after an error.

    Raises:
      InputError: the path is in use, or cannot be written.
    """
    check_is_free(path)
    target = path.resolve()
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.rename(partial, target)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_is_free(path: Path) -> None:
    """Raise InputError for a path that exists, but for an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: exists already and is not empty; choose another folder")


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether the file `path`, made for it and removed in the end, could be claimed."""
    file = _locked(path)
    try:
        yield file is not None
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()


def _locked(path: Path):
    while True:
        try:
            file = path.open("w")
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {reason(error)}") from error
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # not supported here
            return file
        # Who held it may have removed it since it was opened: then the name leads elsewhere.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


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
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Why an operation failed, in one line without the file's name."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space left on the device"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
