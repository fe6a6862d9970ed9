# SPDX-License-Identifier: Apache-2.0
"""Pairs: volumes of several folders that belong together, by their name and on one grid.

Names pair up to the modality word: head01_ct belongs to head01_mr and to head01_labels.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts import naming
from contourdiff_jax.data.layouts.scans import Content, Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import filenames, io, overlay
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed, Volume


def by_name(
    folder,
    kind: str | None = None,
    assumed: Assumed = UNKNOWN,
    failed: list[tuple[Path, str]] | None = None,
    translations: bool = False,
    select: str | None = None,
    layout: str = "auto",
    prefix: str | None = None,
) -> dict[str, Scan]:
    """The scans of a folder by their name, sorted; InputError where a name has two.

    Args:
      folder: of volumes, in any layout.
      kind: what is meant where the folder holds several kinds: images of a modality ('ct', 'mr'),
        or 'labels' or 'masks' that lie beside images.
      assumed: what pictures do not say themselves.
      failed: gets the files that cannot be read, [(path, reason)].
      translations: whether those of this tool are meant, also where there are other images.
      select: which of several kinds of images, where `kind` does not tell.
      layout, prefix: see `layouts.find`.
    """
    content, modality = None, kind
    if kind in naming.MADE:
        content, modality = _made(folder, kind, assumed), None
    if content is None:
        how = {"assumed": assumed, "prefix": prefix, "translations": translations}
        content = layouts.find(folder, layout=layout, select=select, modality=modality, **how)
    if failed is not None:
        failed += content.failed
    scans = {}
    for scan in content.scans:
        name = plain(scan.name)
        if name in scans:
            raise InputError(
                f"{scan.path}: {scans[name].path.name} belongs to {name!r} too; keep one"
            )
        scans[name] = dataclasses.replace(scan, name=name)
    return dict(sorted(scans.items()))


def _made(folder, kind: str, assumed: Assumed) -> Content | None:
    """The label maps or masks of a folder that the layout, or the names, tell from others.

    None where they tell nothing: then all that the folder holds is meant.

    Raises InputError where others are told, but none of these.
    """
    content = layouts.find(folder, select=naming.EVERY, assumed=assumed, prefix=None)
    families = {scan: scan.kind and naming.family(scan.kind) for scan in content.scans}
    paths = {}  # the file that a layout holds for several images of a subject is one
    for scan in content.scans:
        path = scan.labels if kind == "labels" else scan.mask
        if path is not None:
            paths.setdefault(path, dataclasses.replace(scan, files=(path,), path=path))
    scans = [scan for scan in content.scans if families[scan] == kind] + list(paths.values())
    if not scans and set(families.values()) & set(naming.MADE) and len(set(families.values())) > 1:
        kinds = naming.joined(sorted({scan.kind or "images" for scan in content.scans}))
        raise InputError(f"{folder}: no {kind} among its files, which are {kinds}")
    return dataclasses.replace(content, scans=scans) if scans else None


def plain(name: str) -> str:
    """The name without what it shows: a folder head01_ct pairs with a file head01_mr.nii.gz.

    Names that say nothing else are one: T2.nii.gz pairs with T1.nii.gz.
    """
    return filenames.plain(name) or naming.PLAIN


def partner(
    volume: Volume, scan: Scan, others: dict[str, Scan], what: str, *, labels: bool = False
) -> Volume:
    """What belongs to a scan, read as `volume`, among `others` that --`what` gave, made even.

    Raises InputError where there is none, where it is the scan itself, or where it does not lie on
    the grid of the volume.
    """
    found = partner_of(scan, others, what)
    if _share(scan.files, found.files):
        raise InputError(f"{volume.path}: --{what} has this file itself, and no other of its name")
    other = found.read(labels=labels).even()
    _check(volume, other, what)
    return other


def partner_of(scan: Scan, others: dict[str, Scan], what: str) -> Scan:
    """What belongs to a scan among `others` that --`what` gave; InputError where nothing does."""
    name = plain(scan.name)
    if name not in others:
        raise InputError(f"{scan.path}: no volume of the subject {name!r} in --{what}")
    return others[name]


def _share(some: Sequence[Path], others: Sequence[Path]) -> bool:
    """Whether a file is among both, under one name or two."""
    return not {*map(os.path.realpath, some)}.isdisjoint(map(os.path.realpath, others))


def companion(
    volume: Volume, scan: Scan, others: dict[str, Scan] | None, what: str, flag: str | None = None
) -> np.ndarray | None:
    """The label map or mask [X, Y, Z] of a scan; `what` is 'labels' or 'masks', as is the flag.

    It is among the `others` of a folder of its own, or without one where the layout says, if
    anywhere.
    """
    if others is not None:
        return partner(volume, scan, others, flag or what, labels=True).array
    path = scan.labels if what == "labels" else scan.mask
    if path is None:
        return None
    if _share(scan.files, [path]):
        raise InputError(f"{volume.path}: its own {what}, as the layout says; give others")
    other = io.read(path, labels=True, assumed=scan.assumed.of_companions)
    _check(volume, other, what)
    return other.array


def _check(volume: Volume, other: Volume, what: str) -> None:
    """InputError where two volumes do not lie on one grid, voxel for voxel, or a mask is empty."""
    if what == "masks" and not other.array.any():
        raise InputError(f"{other.path}: an empty mask; give one that shows the body")
    if not overlay.same_grid(volume, other):
        raise InputError(
            f"{volume.path}: {other.path} lies on another grid; resample one onto the other's"
        )
