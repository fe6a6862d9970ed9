# SPDX-License-Identifier: Apache-2.0
"""Folders that are written whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from contourdiff_jax.data import volumes
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
        raise InputError(f"{path}: cannot be written: {volumes.reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_is_free(path: Path) -> None:
    """Raise InputError for a path that exists, but for an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: exists already and is not empty; choose another folder")
