# SPDX-License-Identifier: Apache-2.0
"""Folders: what lies in them, listed once and without what no one put there on purpose."""

import functools
import os
import re
from pathlib import Path

import numpy as np

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames

# Other programs' folders. SynthRAD keeps pictures of its volumes in `overview`.
IGNORED = {"__macosx", "@eadir", "$recycle.bin", "overview", "overviews"}


class Folder:
    """A folder, and all below it. Hidden files and folders are left out.

    Attributes:
      path: of the folder.
      failed: folders below it that cannot be listed, with the reason.
    """

    def __init__(self, path: Path):
        self.path = path
        self.failed: list[tuple[Path, str]] = []

    @property
    def name(self) -> str:
        """Of the folder, also of '.'."""
        return Path(os.path.abspath(self.path)).name or "root"

    @functools.cached_property
    def _content(self) -> tuple[list[Path], list[Path]]:
        return _listed(self.path)

    @property
    def files(self) -> list[Path]:
        """The files directly inside, sorted. InputError where it cannot be listed."""
        return self._content[0]

    @property
    def folders(self) -> list[Path]:
        """The folders directly inside, sorted. InputError where it cannot be listed."""
        return self._content[1]

    @functools.cached_property
    def below(self) -> dict[Path, list[Path]]:
        """The files of every folder from this one down, sorted.

        A folder that several links lead to is entered once: links in a circle end.
        """
        files, seen, waiting = {}, set(), [self.path]
        while waiting:
            path = waiting.pop()
            try:
                status = os.stat(path)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                files[path], folders = self._content if path == self.path else _listed(path)
            except OSError as error:
                self.failed.append((path, f"{path}: cannot be read: {disk.reason(error)}"))
            except InputError as error:
                self.failed.append((path, str(error)))
            else:
                waiting += reversed(folders)
        return dict(sorted(files.items()))

    @functools.cached_property
    def leaves(self) -> dict[Path, list[Path]]:
        """The volumes of every folder from this one down that holds some."""
        held = {path: list(filter(is_volume, files)) for path, files in self.below.items()}
        return {path: files for path, files in held.items() if files}

    @functools.cached_property
    def volumes(self) -> list[Path]:
        """The files directly inside that hold a volume each, by their names."""
        return [path for path in self.files if is_volume(path)]

    @functools.cached_property
    def pictures(self) -> list[Path]:
        """The pictures directly inside, by their names."""
        return [path for path in self.files if is_picture(path)]

    @functools.cached_property
    def dicom(self) -> list[Path]:
        """The DICOM files directly inside."""
        return [path for path in self.files if is_dicom(path)]


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and the folders directly inside, each sorted.

    A link that leads nowhere counts as a file: it is reported when it is to be read.
    """
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                linked = entry.is_symlink()  # of all others the listing itself says what they are
                if entry.name.startswith("."):
                    continue
                if os.path.isdir(path) if linked else entry.is_dir():
                    folders += [path] if entry.name.lower() not in IGNORED else []
                elif (
                    (os.path.isfile(path) or not os.path.exists(path))
                    if linked
                    else entry.is_file()
                ):
                    files.append(path)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {disk.reason(error)}") from error
    return sorted(files), sorted(folders)


def is_volume(path: Path) -> bool:
    """Whether a file of that name holds a volume; of .npy files, whether it has three axes."""
    suffix = filenames.suffix_of(path)
    return suffix in (*filenames.NIFTI, *filenames.ITK) or (suffix == ".npy" and _axes(path) >= 3)


def is_picture(path: Path) -> bool:
    """Whether a file of that name holds a picture; of .npy files, whether it has two axes."""
    suffix = filenames.suffix_of(path)
    return suffix in filenames.PICTURES and (suffix != ".npy" or _axes(path) < 3)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or without one by its first bytes."""
    suffix = filenames.suffix_of(path)
    if suffix is not None:
        return suffix in filenames.DICOM
    # Unique identifiers as names look like suffixes of digits.
    if path.name == "DICOMDIR" or not re.fullmatch(r"(\.\d*)?", path.suffix):
        return False
    from contourdiff_jax.volumes.formats import dicom

    return dicom.is_dicom(path)


def _axes(path: Path) -> int:
    """How many axes an .npy file has; 2 where it is damaged, which shows when it is read."""
    try:
        return np.lib.format.open_memmap(path, mode="r").ndim
    except Exception:  # a damaged header can make a parser fail in any way
        return 2
