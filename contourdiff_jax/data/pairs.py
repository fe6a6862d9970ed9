# SPDX-License-Identifier: Apache-2.0
"""Pairs: volumes of several folders that belong together, by their subject and on one grid.

Names pair up to the modality word: head01_ct belongs to head01_mr and to head01_labels.
"""

from pathlib import Path

import numpy as np

from contourdiff_jax.data import volumes
from contourdiff_jax.data.volumes import Volume
from contourdiff_jax.errors import InputError

SAME_GRID = 0.1  # voxels between corners: more than headers lose by rounding, less than one sees


def by_subject(folder) -> dict[str, Path]:
    """The volumes of a folder by their subject, sorted; InputError where a subject has two."""
    files = {}
    for path in volumes.find(folder):
        subject = volumes.subject_of(path)
        if subject in files:
            raise InputError(
                f"{path}: {files[subject].name} belongs to the subject {subject!r} too; keep one"
            )
        files[subject] = path
    return dict(sorted(files.items()))


def partner(volume: Volume, files: dict[str, Path], name: str, *, labels: bool = False) -> Volume:
    """The volume of the same subject among `files`, the content of the folder --`name`.

    Raises InputError where there is none, or where it does not lie on the volume's grid.
    """
    subject = volumes.subject_of(volume.path)
    if subject not in files:
        raise InputError(f"{volume.path}: no volume of the subject {subject!r} in --{name}")
    other = volumes.read(files[subject], labels=labels)
    if not _same_grid(volume, other):
        raise InputError(
            f"{volume.path}: {other.path} lies on another grid; resample one onto the other's"
        )
    return other


def _same_grid(volume: Volume, other: Volume) -> bool:
    if other.array.shape != volume.array.shape:
        return False
    corners = np.array([[0, 0, 0, 1], [*volume.array.shape, 1]]).T
    shift = np.linalg.norm((volume.affine - other.affine)[:3] @ corners, axis=0).max()
    return shift <= SAME_GRID * volumes.spacing(volume.affine).min()
