# SPDX-License-Identifier: Apache-2.0
"""Pairs: volumes of several folders that belong together, by their name and on one grid.

Names pair up to the modality word: head01_ct belongs to head01_mr and to head01_labels.
"""

import dataclasses
from pathlib import Path

import numpy as np

from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts import naming
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import filenames, geometry, io
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed, Volume

SAME_GRID = 0.1  # voxels between corners: more than headers lose by rounding, less than one sees


def by_name(
    folder,
    modality: str | None = None,
    assumed: Assumed = UNKNOWN,
    failed: list[tuple[Path, str]] | None = None,
) -> dict[str, Scan]:
    """The scans of a folder by their name, sorted; InputError where a name has two.

    Where the layout tells modalities apart, those of `modality` ('ct', 'mr') are meant. `assumed`
    is what pictures do not say themselves. Files that cannot be read are added to `failed` [(path,
    reason)].
    """
    scans, content = {}, layouts.find(folder, modality=modality, assumed=assumed)
    if failed is not None:
        failed += content.failed
    for scan in content.scans:
        name = _plain(scan.name)
        if name in scans:
            raise InputError(
                f"{scan.path}: {scans[name].path.name} belongs to {name!r} too; keep one"
            )
        scans[name] = dataclasses.replace(scan, name=name)
    return dict(sorted(scans.items()))


def _plain(name: str) -> str:
    """The name without what it shows: a folder head01_ct pairs with a file head01_mr.nii.gz.

    Names that say nothing else are one: T2.nii.gz pairs with T1.nii.gz.
    """
    return filenames.plain(name) or naming.PLAIN


def partner(
    volume: Volume, name: str, others: dict[str, Scan], what: str, *, labels: bool = False
) -> Volume:
    """The volume of that name among `others`, which --`what` gave, its slices made even.

    Raises InputError where there is none, or where it does not lie on the grid of `volume`.
    """
    name = _plain(name)
    if name not in others:
        raise InputError(f"{volume.path}: no volume of the subject {name!r} in --{what}")
    other = others[name].read(labels=labels).even()
    _check_same_grid(volume, other)
    return other


def companion(
    volume: Volume, scan: Scan, others: dict[str, Scan] | None, what: str, flag: str | None = None
) -> np.ndarray | None:
    """The label map or mask [X, Y, Z] of a scan; `what` is 'labels' or 'masks', as is the flag.

    It is among the `others` of a folder of its own, or without one where the layout says, if
    anywhere.
    """
    if others is not None:
        return partner(volume, scan.name, others, flag or what, labels=True).array
    path = scan.labels if what == "labels" else scan.mask
    if path is None:
        return None
    other = io.read(path, labels=True)
    _check_same_grid(volume, other)
    return other.array


def _check_same_grid(volume: Volume, other: Volume) -> None:
    """InputError where two volumes do not lie on one grid, voxel for voxel."""
    if not _same_grid(volume, other):
        raise InputError(
            f"{volume.path}: {other.path} lies on another grid; resample one onto the other's"
        )


def _same_grid(volume: Volume, other: Volume) -> bool:
    if other.array.shape != volume.array.shape:
        return False
    corners = np.array([[0, 0, 0, 1], [*volume.array.shape, 1]]).T
    shift = np.linalg.norm((volume.affine - other.affine)[:3] @ corners, axis=0).max()
    return shift <= SAME_GRID * geometry.spacing(volume.affine).min()
