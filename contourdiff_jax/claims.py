# SPDX-License-Identifier: Apache-2.0
"""Claims: several processes share the volumes of a folder, and none is made twice.

A claim is a locked file. The kernel gives it up when its process ends, however that happens, so
there are no stale ones: neither process numbers nor hosts have to be compared. On a file system
that cannot lock, there are no claims, and one process at a time must do.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from contourdiff_jax.data import volumes
from contourdiff_jax.errors import InputError

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
            raise InputError(f"{path}: cannot be written: {volumes.reason(error)}") from error
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
