# SPDX-License-Identifier: Apache-2.0
"""Inspection: scans are read one at a time, guessed at and checked."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from contourdiff_jax.data import layouts
from contourdiff_jax.data.inspection import guesses, remarks, sheets
from contourdiff_jax.data.inspection.findings import NOTE, Inspected, Inspection
from contourdiff_jax.data.layouts import naming, scans
from contourdiff_jax.data.layouts.scans import Content, Scan
from contourdiff_jax.errors import InputError, printable
from contourdiff_jax.volumes import geometry, io
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed

PERCENTILES = (0, 0.5, 1, 50, 99, 99.5, 99.9, 100)


def inspect(
    paths: Sequence[str | Path],
    *,
    layout: str = "auto",
    select: str | None = None,
    assumed: Assumed = UNKNOWN,
    views: int = 0,
) -> Inspection:
    """Reads the scans of all paths, one at a time.

    Of a folder of several layouts, each of its folders is a path.

    Args:
      paths: files and folders.
      layout: how the folders are laid out; by default it is found out.
      select: the kind of scans, where there are several; by default all.
      assumed: what pictures do not say themselves.
      views: of how many scans, evenly spread, a view is kept.
    """
    if not paths:
        raise InputError("nothing to inspect; name files or folders")
    options = {"layout": layout, "select": select or naming.EVERY, "assumed": assumed}
    contents, failed = _listed(paths, **options)
    notes, waiting = [], {}  # these by their files: paths may overlap
    for root, content in contents.items():
        if root not in map(str, paths):
            notes.append((NOTE, f"{root}: laid out as {content.layout}"))
        failed += content.failed
        notes += [(NOTE, note) for note in content.notes]
        for scan in content.scans:
            waiting.setdefault((scan.files, scan.frames), (root, scan))
    if waiting:
        scans.check_assumed((scan for _, scan in waiting.values()), assumed)
    viewed = set(np.linspace(0, len(waiting) - 1, min(views, len(waiting))).round().astype(int))
    done = []
    progress = tqdm(waiting.values(), desc="inspect", unit="scan", disable=None)
    for number, (root, scan) in enumerate(progress):
        with io.failures(scan.path, failed):
            done.append(_inspect(scan, root, number in viewed, failed))
    failed = [(p, why.removeprefix(printable(f"{p}: "))) for p, why in dict.fromkeys(failed)]
    return Inspection(
        layouts={path: content.layout for path, content in contents.items()},
        scans=done,
        failed=failed,
        remarks=[*dict.fromkeys(notes), *remarks.on_several(done)],
    )


def _listed(paths, **options) -> tuple[dict[str, Content], list[tuple[Path, str]]]:
    """What paths hold, with its folders in place of one of several layouts, and what fails."""
    contents, failed, unlisted = {}, [], list(map(str, paths))
    while unlisted:
        path = unlisted.pop(0)
        try:
            contents[path] = layouts.find(path, **options)
        except layouts.SeveralLayouts as several:
            unlisted[:0] = map(str, several.folders)
        except InputError as error:
            failed.append((Path(path), str(error)))
    return contents, failed


def _inspect(scan: Scan, root: str, viewed: bool, failed: list) -> Inspected:
    """One scan; slices of it that cannot be read are added to `failed`."""
    try:
        volume = scan.read()
    except InputError as error:
        try:
            volume = scan.read(labels=True)  # a label map may be constant
        except InputError:
            raise error from None
    failed += volume.failed
    unread = {path for path, _ in volume.failed}
    good = [path for path in scan.files if path not in unread]
    image = io.opened(good, scan.assumed, scan.frames)
    values = guesses.sample(volume.array)
    percentiles = dict(zip(PERCENTILES, np.percentile(values, PERCENTILES).tolist(), strict=True))
    percentiles |= {0: float(volume.array.min()), 100: float(volume.array.max())}
    called = guesses.called_by(scan)
    guessed = guesses.guess(volume.array, image.dtype, called, scan.assumed)
    window = guesses.window_of(values, guessed)
    return Inspected(
        scan=scan,
        root=root,
        format=image.format,
        dtype=str(image.dtype),
        shape=image.native.shape,
        orientation="".join(nib.aff2axcodes(image.native.affine)),
        spacing=tuple(geometry.spacing(image.native.affine).tolist()),
        percentiles=percentiles,
        sampled=values.size,
        guess=guessed,
        window=window,
        remarks=remarks.on_scan(scan, volume, image, percentiles, guessed, called),
        view=sheets.view(scan, volume, window) if viewed else None,
    )
