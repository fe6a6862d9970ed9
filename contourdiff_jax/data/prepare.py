# SPDX-License-Identifier: Apache-2.0
"""Preparing volumes for training: a store of slices on one grid, with body masks and an index."""

import csv
import dataclasses
import functools
import hashlib
import itertools
import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from contourdiff_jax.contours import opencv
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts import pairs, scans
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.data.store import SPLITS, StoreWriter, check_is_free
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import geometry, intensity
from contourdiff_jax.volumes.grid import AXES, KEPT_WHOLE, Grid
from contourdiff_jax.volumes.masks import body_mask
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed

SIZE_STEP = 32  # a size that five halvings divide suits any U-Net
WORKERS = 2  # volumes worked on at a time: each takes its size in memory several times


@dataclasses.dataclass(frozen=True)
class PrepareResult:
    """What became of the volumes."""

    done: list[Path]
    failed: list[tuple[Path, str]]  # and why
    cropped: list[tuple[Path, float]]  # and the fraction of the field of view that is left
    grid: Grid
    slices: int
    splits: dict[str, str]  # subject -> split
    layout: str
    notes: list[str]  # what was assumed or mended


def prepare(
    source,
    out,
    preset,
    *,
    layout: str = "auto",
    select: str | None = None,
    assumed: Assumed = UNKNOWN,
    axis: str = "axial",
    spacing: float | None = None,
    size: int | None = None,
    labels=None,
    masks=None,
    contours_file=None,
    split=None,
    validation: float = 0.1,
    overwrite: bool = False,
) -> PrepareResult:
    """Writes a store from a folder of volumes.

    Args:
      source: a volume, or a folder of volumes in any of `layouts.LAYOUTS`.
      out: the store's folder.
      preset: name of the intensity preset, 'ct' or 'mr'.
      layout: of the source, or a CSV file that says what belongs to whom.
      select: which of several kinds of scans, where the preset does not tell.
      assumed: what pictures do not say themselves.
      axis: slicing axis, 'axial', 'coronal' or 'sagittal'.
      spacing: of the grid's pixels [mm]; default: the volumes' median in plane, to two digits.
      size: of the grid [px]; default: the smallest multiple of 32 that covers every field of view.
      labels: folder of label maps on the volumes' grids, paired by name; default: the layout's.
      masks: folder of body masks, likewise; default: the layout's, else they are computed.
      contours_file: JSON of ContourSettings, or the name of a contour preset, that takes the
        volumes' own voxels, which only prepare sees: the store keeps the contours, or the pictures
        they are sought in; default: the modality's, if those do.
      split: CSV file with the columns subject and split ('train', 'val' or 'test').
      validation: fraction of the subjects to train on whose split is 'val', where neither `split`
        nor the layout names any.
      overwrite: replace a store of that name.

    Volumes that cannot be used are left out and listed in the result, and so are single slices.
    Raises InputError when nothing can be used.
    """
    chosen = intensity.preset(preset)
    taken = contour_settings.named(contours_file or "default", chosen.modality)
    if not taken.of_voxels:
        if contours_file is not None:
            raise InputError(
                f"--contours={contours_file}: these are taken while training, as config.contours "
                f"says; a store keeps what takes the volumes' own voxels, as `original`"
            )
        taken = None
    if not 0 <= validation < 1:
        raise InputError(f"--validation must be at least 0 and below 1, not {validation}")
    found = layouts.find(
        source, layout=layout, select=select, modality=chosen.modality, assumed=assumed
    )
    check_is_free(Path(out), overwrite)
    label_scans, mask_scans = (
        None if folder is None else pairs.by_name(folder) for folder in (labels, masks)
    )
    given = None
    if split is not None:
        given = read_splits(split, {scan.subject for scan in found.scans})
    grid = _grid(found.scans, axis, spacing, size)
    has_labels = labels is not None or all(scan.labels for scan in found.scans)

    done, failed, cropped, notes = [], list(found.failed), [], []
    keeps = {"labels": has_labels, "contours": taken}
    with StoreWriter(out, chosen, grid, **keeps, overwrite=overwrite) as writer:
        cut = functools.partial(
            _cut,
            preset=chosen,
            grid=grid,
            label_scans=label_scans,
            mask_scans=mask_scans,
            taken=taken,
        )
        progress = tqdm(total=len(found.scans), desc="prepare", unit="volume", disable=None)
        for scan, piece in _in_order(cut, found.scans):
            progress.update()
            if isinstance(piece, InputError):
                failed.append((scan.path, str(piece)))
                continue
            writer.add(scan.subject, **piece.slices)
            done.append(scan.path)
            failed += piece.failed
            notes += piece.notes
            if piece.kept < KEPT_WHOLE:
                cropped.append((scan.path, piece.kept))
        progress.close()
        if not done:
            raise InputError(
                f"{source}: none of {len(found.scans)} volumes can be used: {failed[0][1]}"
            )
        subjects = writer.subjects
        if given is None:
            splits = _splits(found.scans, subjects, validation)
        else:
            splits = {subject: given[subject] for subject in subjects}
        writer.finish(splits)
    return PrepareResult(
        done,
        failed,
        cropped,
        grid,
        len(writer),
        splits,
        found.layout,
        [*found.notes, *scans.tally(notes)],
    )


@dataclasses.dataclass(frozen=True)
class _Piece:
    """What a store keeps of a scan.

    Attributes:
      slices: arguments of StoreWriter.add.
      kept: fraction of the field of view that lies inside the grid.
      failed, notes: of the volume.
    """

    slices: dict
    kept: float
    failed: tuple[tuple[Path, str], ...]
    notes: tuple[str, ...]


def _in_order(cut, scans: list[Scan]) -> Iterator[tuple[Scan, _Piece | InputError]]:
    """Every scan with its piece, or why there is none, in the order of the scans.

    Several are worked on at a time: decompression, resampling and morphology leave Python's lock to
    others. As many as that, and one more that is done, are in memory.
    """

    def attempt(scan):
        try:
            return cut(scan)
        except InputError as error:
            return error

    workers = min(WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        waiting, left = deque(), iter(scans)
        try:
            for scan in itertools.islice(left, workers):
                waiting.append((scan, pool.submit(attempt, scan)))
            while waiting:
                scan, future = waiting.popleft()
                piece = future.result()
                waiting.extend((s, pool.submit(attempt, s)) for s in itertools.islice(left, 1))
                yield scan, piece
        finally:  # after an error the others need not be begun
            for _, future in waiting:
                future.cancel()


def _cut(
    scan: Scan, *, preset, grid, label_scans, mask_scans, taken: ContourSettings | None
) -> _Piece:
    """A scan cut into slices on the grid."""
    volume = scan.read()
    window = preset.window_of(volume)
    volume, resampling = grid.fit_volume(volume)
    mask = pairs.companion(volume, scan, mask_scans, "masks")
    if mask is None:
        mask = body_mask(volume.array, volume.affine, preset.modality)
    labels = pairs.companion(volume, scan, label_scans, "labels")
    values, masks = preset.values(volume.array, window), resampling.masks(mask > 0)
    basis = None
    if taken is not None:
        basis = opencv.basis(values, resampling, preset, taken, preset.shown(volume, window))
    slices = {
        "values": resampling.slices(values, preset.air),
        "masks": masks,
        "basis": basis,
        "labels": None if labels is None else resampling.labels(labels),
        "positions": resampling.positions,
        "window": window,
        "source": scan.source,
        "sha256": scan.sha256,
    }
    return _Piece(slices, resampling.kept, volume.failed, volume.notes)


def _grid(scans: list[Scan], axis: str, spacing: float | None, size: int | None) -> Grid:
    """The grid, with defaults from the headers of the volumes."""
    if axis not in AXES:
        raise InputError(f"--axis={axis}: known are {', '.join(AXES)}")
    if spacing is not None and size is not None:
        return Grid(axis, spacing, size)
    plane = list(AXES[axis][1:])
    sizes, extents = [], []
    for scan in scans:
        try:
            shape, affine = scan.geometry()
        except InputError:  # it will be reported when its turn comes to be read
            continue
        sizes.append(geometry.spacing(affine)[plane])
        extents.append(sizes[-1] * np.array(shape)[plane])
    if not sizes:
        return Grid(axis, spacing or 1.0, size or SIZE_STEP)
    if spacing is None:
        spacing = float(f"{np.median(sizes):.2g}")
    if size is None:
        # Rounding the spacing may leave a fraction of a pixel over, which is not worth 32.
        pixels = np.max(extents) / spacing * KEPT_WHOLE
        size = SIZE_STEP * math.ceil(pixels / SIZE_STEP)
    return Grid(axis, spacing, size)


def _splits(scans: list[Scan], subjects: list[str], validation: float) -> dict[str, str]:
    """Splits {subject: split}: those of the layout; some of those to train on become 'val'."""
    told = {}
    for scan in scans:
        split = scan.split or "train"
        if told.setdefault(scan.subject, split) != split:
            raise InputError(
                f"{scan.path}: the subject {scan.subject!r} is in the splits {told[scan.subject]} "
                f"and {split}; give --split"
            )
    told = {subject: told[subject] for subject in subjects}
    if "val" in told.values():
        return told
    return told | draw_splits([s for s in subjects if told[s] == "train"], validation)


def read_splits(path, subjects: set[str]) -> dict[str, str]:
    """Splits {subject: split} from a CSV file with the columns subject and split.

    Raises InputError unless it names exactly the subjects given, and known splits.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
            columns = set(reader.fieldnames or ())
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {disk.reason(error)}") from error
    if not {"subject", "split"} <= columns:
        raise InputError(f"{path}: the first line must name the columns subject,split")
    splits = {}
    for row in rows:
        subject, split = ((row[name] or "").strip() for name in ("subject", "split"))
        if split not in SPLITS:
            raise InputError(f"{path}: unknown split {split!r}; known: {', '.join(SPLITS)}")
        if splits.setdefault(subject, split) != split:
            raise InputError(f"{path}: subject {subject!r} is in two splits")
    if unknown := splits.keys() - subjects:
        raise InputError(f"{path}: there is no volume of the subject {min(unknown)!r}")
    if missing := subjects - splits.keys():
        raise InputError(f"{path}: there is no line for the subject {min(missing)!r}")
    return splits


def draw_splits(subjects: list[str], validation: float) -> dict[str, str]:
    """Splits {subject: 'train' or 'val'}; `validation` is the fraction of the subjects for 'val'.

    The choice is by the hash of the subject's name: the same whenever and wherever it is made. Of
    four or more subjects at least one is for validation, of fewer none, since training needs them.
    """
    count = 0
    if validation and len(subjects) >= 4:
        count = min(max(1, round(validation * len(subjects))), len(subjects) - 1)
    ranked = sorted(subjects, key=lambda subject: hashlib.sha256(os.fsencode(subject)).digest())
    return {subject: "val" if subject in ranked[:count] else "train" for subject in subjects}
