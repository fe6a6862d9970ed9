# SPDX-License-Identifier: Apache-2.0
"""Folders: what lies in them, listed once and without what no one put there as a source."""

import functools
import os
from pathlib import Path

import numpy as np

from contourdiff_jax.data.layouts import marks
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames
from contourdiff_jax.volumes.formats import preamble

# Other programs' folders. SynthRAD keeps pictures of its volumes in `overview`.
IGNORED = {"__macosx", "@eadir", "$recycle.bin", "overview", "overviews"}


class Folder:
    """A folder, and all below it, without hidden files and folders and what this tool made.

    Attributes:
      path: of the folder.
      translations: whether translations of this tool are meant, as where there is nothing else.
      failed: folders below it that cannot be listed, with the reason.
    """

    def __init__(self, path: Path, *, translations: bool = False):
        self.path = path
        self.translations = translations
        self.failed: list[tuple[Path, str]] = []
        self._made_below: list[Path] = []

    def enter(self, path: Path) -> "Folder":
        """A folder in it, in which the same is meant."""
        return Folder(path, translations=self.translations)

    @property
    def name(self) -> str:
        """Of the folder, also of '.'."""
        return Path(os.path.abspath(self.path)).name or "root"

    @functools.cached_property
    def listed(self) -> tuple[list[Path], list[Path]]:
        """All files and folders directly inside. InputError where it cannot be listed."""
        return _listed(self.path)

    @functools.cached_property
    def files(self) -> list[Path]:
        """The files directly inside, sorted. InputError where it cannot be listed."""
        return self.listed[0] if self.translations else marks.others(self.listed[0])

    @functools.cached_property
    def folders(self) -> list[Path]:
        """The folders directly inside, sorted. InputError where it cannot be listed."""
        return [path for path in self._meant(*self.listed) if not self._is_made(path)]

    @property
    def made(self) -> list[Path]:
        """What is left out as this tool made it, as far as it was come upon, sorted."""
        files, folders = self.listed
        return sorted({*files, *folders, *self._made_below} - {*self.files, *self.folders})

    def _is_made(self, path: Path, content: tuple[list[Path], list[Path]] | None = None) -> bool:
        """Whether this tool made a folder below; `content` is what it holds, if that is known."""
        try:
            content = content or _listed(path)
        except InputError:  # told when it is entered
            return False
        if marks.made(path, *content) is not None:
            return True
        return not self.translations and marks.holds_translations(*content)

    def _meant(self, files: list[Path], folders: list[Path]) -> list[Path]:
        """Folders without what lies beside translations, and series that are some."""
        translated = set(marks.sidecars(files))
        if not translated:
            return folders
        series = translated - {filenames.stem(path) for path in files if path.suffix != ".json"}
        names = {*marks.BESIDE} if self.translations else {*marks.BESIDE, *series}
        return [path for path in folders if path.name not in names]

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
                if path == self.path:
                    files[path], folders = self.files, self.folders
                else:
                    content = _listed(path)
                    if self._is_made(path, content):
                        self._made_below.append(path)
                        continue
                    files[path], folders = content[0], self._meant(*content)
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
    """Whether a file is DICOM: by its suffix, or without one that is known by its first bytes."""
    suffix = filenames.suffix_of(path)
    if suffix is not None:
        return suffix in filenames.DICOM
    return path.name.upper() != "DICOMDIR" and preamble.is_dicom(path)


def _axes(path: Path) -> int:
    """How many axes an .npy file has; 2 where it is damaged, which shows when it is read."""
    try:
        return np.lib.format.open_memmap(path, mode="r").ndim
    except Exception:  # a damaged header can make a parser fail in any way
        return 2
