# SPDX-License-Identifier: Apache-2.0
"""Uploads: a file that anyone may have sent, as a source that `translate` takes.

A zip holds the DICOM files of one series. Its names decide nothing but the order: files are written
under numbers, so none can lie elsewhere, and what is not DICOM is left where it is.
"""

import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np

from contourdiff_jax.data import layouts
from contourdiff_jax.data.inspection import guesses
from contourdiff_jax.data.layouts import naming
from contourdiff_jax.data.layouts.folders import is_dicom
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames
from contourdiff_jax.volumes.volume import Assumed

MOST_FILES = 10_000  # in a zip
UNPACKED = 8  # times as large as an upload may be: DICOM of 16 bits is packed to a third
MOST_VOXELS = 1 << 27  # half a gigabyte, several times over while it is translated
BLOCK = 1 << 20  # bytes copied at once
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError)


def received(upload: Path, folder: Path, most: int) -> Path:
    """An upload as a source in a folder of its own: the file, or the folder of a zip's series.

    The upload stays where it is. Its own name is kept as far as it is safe: the noise of a
    translation is drawn by it.

    Args:
      most: bytes that an upload may have.

    Raises:
      InputError: more than may be sent or unpacked; a zip that is none, or holds no DICOM.
    """
    name = Path(naming.safe(upload.name))
    disk.check_is_file(upload)
    if upload.stat().st_size > most:
        raise InputError(f"{name}: more than {most >> 20} MB; ask for a higher --upload_mb")
    folder.mkdir(parents=True, exist_ok=True)
    if name.suffix.lower() != ".zip":
        shutil.copyfile(upload, folder / name)
        return folder / name
    series = folder / (name.stem or "series")
    series.mkdir()
    _unpack(upload, series, name, UNPACKED * most)
    return series


def _unpack(path: Path, series: Path, name: Path, most: int) -> None:
    """Writes the DICOM files of a zip into a folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check(members, name, most)
            for number, member in enumerate(members):
                suffix = Path(member.filename).suffix.lower()
                file = series / f"{number:05}{suffix if suffix in filenames.DICOM else ''}"
                with archive.open(member) as packed:
                    most -= _copy(packed, file, most, name)
                if not is_dicom(file) or _is_index(file):
                    file.unlink()
    except DAMAGED as error:
        raise InputError(f"{name}: not a zip, or damaged; pack it again") from error
    if not any(series.iterdir()):
        raise InputError(
            f"{name}: holds no DICOM file; give other images as they are, not in a zip"
        )


def _check(members: list[zipfile.ZipInfo], name: Path, most: int) -> None:
    """InputError for what a zip says of itself, before any of it is unpacked."""
    if len(members) > MOST_FILES:
        raise InputError(f"{name}: {len(members)} files, more than {MOST_FILES}; give one series")
    if sum(member.file_size for member in members) > most:
        raise _large(name)
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or ":" in parts[0]:
            raise InputError(f"{name}: names a file outside itself; pack it again")
        if member.flag_bits & 1:
            raise InputError(f"{name}: locked by a password; give it without one")


def _copy(packed, file: Path, most: int, name: Path) -> int:
    """Bytes written, which are counted: a zip may hold more than it says."""
    count = 0
    with file.open("wb") as target:
        while block := packed.read(BLOCK):
            count += len(block)
            if count > most:
                raise _large(name)
            target.write(block)
    return count


def _large(name: Path) -> InputError:
    return InputError(f"{name}: too large when unpacked; give one series alone")


def _is_index(file: Path) -> bool:
    """Whether a DICOM file is the index of a medium (DICOMDIR), which holds no image."""
    return disk.says(file, "1.2.840.10008.1.3.10", disk.BEGINNING)


def looks(source: Path, assumed: Assumed) -> str:
    """What the values of a source seem to show, and why, in a few words."""
    found = scan(source, None, assumed)
    array = found.read().array
    seems = guesses.guess(array, array.dtype, guesses.called_by(found), found.assumed)
    return f"{seems.modality} ({seems.reason})"


def scan(source: Path, modality: str | None, assumed: Assumed) -> Scan:
    """The one scan of a source; InputError where there are several, or it is too large.

    Args:
      modality: 'ct' or 'mr', if that is known.
      assumed: what pictures do not say themselves.
    """
    content = layouts.find(source, modality=modality, assumed=assumed, prefix=None)
    if len(content.scans) > 1:
        raise InputError(f"{source}: {len(content.scans)} images; give one of them")
    found = content.scans[0]
    shape, _ = found.geometry()
    if np.prod(shape, dtype=float) > MOST_VOXELS:
        sides = " x ".join(map(str, shape))
        raise InputError(f"{source}: {sides} voxels, more than {MOST_VOXELS}; use `translate`")
    return found
