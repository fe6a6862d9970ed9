# SPDX-License-Identifier: Apache-2.0
"""Preparing volumes for training: a store of slices on one grid, with body masks and an index."""

import dataclasses
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from contourdiff_jax.contours import opencv
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.data import layouts, sources, splits
from contourdiff_jax.data.inspection import guesses
from contourdiff_jax.data.layouts import naming, pairs, scans
from contourdiff_jax.data.layouts.scans import Content, Scan
from contourdiff_jax.data.sources import Fit, Misfit, Pairs, Sources, Target
from contourdiff_jax.data.store import MADE, StoreWriter
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import ownership
from contourdiff_jax.volumes import geometry, intensity, io
from contourdiff_jax.volumes.grid import AXES, KEPT_WHOLE, Grid
from contourdiff_jax.volumes.intensity import Preset
from contourdiff_jax.volumes.masks import body_mask
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed

SIZE_STEP = 32  # a size that five halvings divide suits any U-Net
LEFT_OVER = 0.999  # of a side: rounding the spacing leaves a fraction of a pixel, not worth 32
WORKERS = 2  # volumes worked on at a time: each takes its size in memory several times
VALIDATION = 0.1  # of the subjects, where nothing says who is for validation


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be prepared, and how.

    Attributes:
      source: a volume, or a folder of volumes in any of `layouts.LAYOUTS`.
      out: the store's folder.
      preset: name of the intensity preset, 'ct', 'ct_wide' or 'mr'.
      layout: of the source, or a CSV file that says what belongs to whom.
      select: which of several kinds of scans, where the preset does not tell.
      translations: whether those of this tool are meant.
      assumed: what pictures do not say themselves.
      axis: slicing axis, 'axial', 'coronal' or 'sagittal'.
      spacing: of the grid's pixels [mm]; default: the volumes' median in plane, to two digits.
      size: of the grid [px]; default: the smallest multiple of 32 that covers every field of view.
      slice_spacing: of the grid [mm], to learn from whole volumes; default: slices are those of
        each volume.
      labels: folder of label maps on the volumes' grids, paired by name; default: the layout's.
      labels_flag: what messages call the flag of `labels`.
      masks: folder of body masks, likewise; default: the layout's, else they are computed.
      contours_file: JSON of ContourSettings, or the name of a contour preset, that need the
        volumes' own voxels, which only prepare sees: the store keeps the contours, or the pictures
        they are sought in; default: the modality's, if those do.
      pairs: sources to lay beside the volumes; default: none.
      split: CSV file with the columns subject and split ('train', 'val' or 'test').
      validation: fraction of the subjects to train on whose split is 'val', where neither `split`
        nor the layout names any; default: VALIDATION.
      overwrite: replace a store of that name.
    """

    source: str | Path
    out: str | Path
    preset: str
    layout: str = "auto"
    select: str | None = None
    translations: bool = False
    assumed: Assumed = UNKNOWN
    axis: str = "axial"
    spacing: float | None = None
    size: int | None = None
    slice_spacing: float | None = None
    labels: str | Path | None = None
    labels_flag: str = "labels"
    masks: str | Path | None = None
    contours_file: str | Path | None = None
    pairs: Pairs | None = None
    split: str | Path | None = None
    validation: float | None = None
    overwrite: bool = False

    def contours(self) -> ContourSettings | None:
        """Those whose basis the store has to keep, if any."""
        modality = intensity.preset(self.preset).modality
        settings = contour_settings.named(self.contours_file or "default", modality)
        if settings.of_voxels:
            return settings
        if self.contours_file is not None:
            raise InputError(
                f"--contours={self.contours_file}: these are taken while training, as "
                f"config.contours says; a store keeps what takes the volumes' own voxels, as "
                f"`original`"
            )
        return None

    def splits(self, content: Sequence[Scan]) -> dict[str, str]:
        """Splits {subject: split} of the scans; InputError where --validation would do nothing."""
        if self.split is not None:
            if self.validation is not None:
                raise InputError(
                    "--validation: --split says who is for validation; give one of them"
                )
            return splits.read_splits(self.split, {scan.subject for scan in content})
        told = splits.told_splits(content)
        if self.validation and "val" in told.values():
            raise InputError(
                f"--validation: the layout of {self.source} says who is for validation; leave it "
                "out, or give --split"
            )
        if self.validation and list(told.values()).count("train") < splits.LEAST:
            raise InputError(
                f"--validation: of fewer than {splits.LEAST} subjects to train on none is taken "
                "for validation; leave it out, or give --split"
            )
        return told

    def with_validation(self, told: dict[str, str]) -> dict[str, str]:
        """Splits {subject: split} with some of those to train on for validation, if none are."""
        if self.split is not None or "val" in told.values():
            return told
        fraction = VALIDATION if self.validation is None else self.validation
        learnt = [subject for subject, split in told.items() if split == "train"]
        return told | splits.draw_splits(learnt, fraction)


@dataclasses.dataclass(frozen=True)
class PrepareResult:
    """What became of the volumes."""

    done: list[Path]
    failed: list[tuple[Path, str]]  # and why
    cropped: list[tuple[Path, float]]  # and the fraction of the body that is left
    doubtful: list[tuple[Path, str]]  # and why their values can hardly be what the preset says
    grid: Grid
    slices: int
    splits: dict[str, str]  # subject -> split
    layout: str
    notes: list[str]  # what was assumed or mended
    fits: list[Fit]  # of pairs, those left out too


def prepare(source, out, preset: str, **options) -> PrepareResult:
    """Writes a store from a folder of volumes; the arguments are the fields of a `Request`.

    Volumes that cannot be used are left out and listed in the result, and so are single slices.
    Raises InputError when nothing can be used.
    """
    request = Request(source, out, preset, **options)
    chosen = intensity.preset(preset)
    contours = request.contours()
    if not 0 <= (request.validation or 0) < 1:
        raise InputError(f"--validation must be at least 0 and below 1, not {request.validation}")
    read = {"source": source, "labels": request.labels, "masks": request.masks}
    if request.pairs is not None:
        read |= {"pairs": request.pairs.folder, "pairs_masks": request.pairs.masks}
    ownership.check_apart("out", out, read)
    ownership.check_is_free(Path(out), MADE, request.overwrite)
    content, cut = _opened(request, contours)
    told, grid, paired = request.splits(content.scans), cut.grid, cut.sources
    done, failed, cropped, doubtful, notes, fits = [], [*content.failed], [], [], [], []
    keeps = {
        "labels": cut.labels is not None or all(scan.labels for scan in content.scans),
        "contours": contours,
        "assumed": request.assumed,
        "source_preset": None if paired is None else intensity.preset(request.pairs.preset),
    }
    with StoreWriter(out, chosen, grid, **keeps, overwrite=request.overwrite) as writer:
        progress = tqdm(total=len(content.scans), desc="prepare", unit="volume", disable=None)
        for scan, piece in _in_order(cut, content.scans):
            progress.update()
            if isinstance(piece, Misfit):
                fits.append(piece.fit)
            if isinstance(piece, InputError):
                failed.append((scan.path, str(piece)))
                continue
            fits += [piece.fit] if piece.fit else []
            writer.add(scan.subject, **piece.slices)
            done.append(scan.path)
            failed += piece.failed
            notes += piece.notes
            doubtful += [(scan.path, doubt) for doubt in piece.doubts]
            # A size that is not given was chosen to hold all.
            if request.size is not None and piece.kept < KEPT_WHOLE:
                cropped.append((scan.path, piece.kept))
        progress.close()
        if not done:
            raise InputError(
                f"{source}: none of {len(content.scans)} volumes can be used: {failed[0][1]}"
            )
        split_of = request.with_validation({name: told[name] for name in writer.subjects})
        writer.finish(split_of, None if paired is None else request.pairs.to_dict(fits))
    return PrepareResult(
        done,
        failed,
        cropped,
        doubtful,
        grid,
        len(writer),
        split_of,
        content.layout,
        [*content.notes, *scans.tally(notes)],
        fits,
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """How well pairs fit: fields of the PrepareResult that there would be."""

    fits: list[Fit]
    failed: list[tuple[Path, str]]
    doubtful: list[tuple[Path, str]]
    notes: list[str]
    grid: Grid


def measure(request: Request) -> Measured:
    """How well pairs fit that `prepare` would make a store of."""
    content, cut = _opened(request, None)
    fits, failed, doubtful, notes = [], [*content.failed], [], []
    progress = tqdm(total=len(content.scans), desc="pairs", unit="pair", disable=None)
    for scan, piece in _in_order(cut, content.scans):
        progress.update()
        if not isinstance(piece, InputError) or isinstance(piece, Misfit):
            fits.append(piece.fit)
        if isinstance(piece, InputError):
            failed.append((scan.path, str(piece)))
            continue
        failed += piece.failed
        notes += piece.notes
        doubtful += [(scan.path, doubt) for doubt in piece.doubts]
    progress.close()
    return Measured(fits, failed, doubtful, [*content.notes, *scans.tally(notes)], cut.grid)


def _opened(request: Request, contours: ContourSettings | None) -> tuple[Content, "_Cut"]:
    """What a source folder holds, and what cuts it."""
    preset = intensity.preset(request.preset)
    content = layouts.find(
        request.source,
        layout=request.layout,
        select=request.select,
        translations=request.translations,
        modality=preset.modality,
        assumed=request.assumed,
    )
    scans.check_assumed(content.scans, request.assumed)
    labels, masks = (
        None if folder is None else pairs.by_name(folder, kind, request.assumed.of_companions)
        for kind, folder in (("labels", request.labels), ("masks", request.masks))
    )
    paired = None
    if request.pairs is not None:
        paired = sources.find(request.pairs)
        content.failed.extend(paired.failed)
        if alone := paired.without_target(content.scans):
            names = naming.joined(alone)
            content.notes.append(
                f"{len(alone)} of --pairs have no target and are left out: {names}"
            )
    grid = _grid(content.scans, request.axis, request.spacing, request.size)
    grid = dataclasses.replace(grid, slice_spacing=request.slice_spacing or 0.0)
    cut = _Cut(preset, grid, contours, labels, request.labels_flag, masks, paired)
    return content, cut


@dataclasses.dataclass(frozen=True)
class _Piece:
    """What a store keeps of a scan.

    Attributes:
      slices: arguments of StoreWriter.add.
      kept: fraction of the body that lies inside the grid.
      doubts: why its values can hardly be what the preset takes them for.
      failed, notes: of the volume.
      fit: of its source, in a paired store.
    """

    slices: dict
    kept: float
    doubts: list[str]
    failed: tuple[tuple[Path, str], ...]
    notes: tuple[str, ...]
    fit: Fit | None = None


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Cuts a scan into slices.

    Attributes:
      preset: of its intensities.
      grid: of the slices.
      contours: whose basis is kept, if any.
      labels, masks: scans by name, where they do not lie with the volumes.
      labels_flag: what messages call the flag of the labels.
      sources: of a paired store.
    """

    preset: Preset
    grid: Grid
    contours: ContourSettings | None
    labels: dict[str, Scan] | None
    labels_flag: str
    masks: dict[str, Scan] | None
    sources: Sources | None = None

    def __call__(self, scan: Scan) -> _Piece:
        volume = scan.read()
        scans.check_unit(scan, volume, self.preset)
        window = self.preset.window_of(volume)
        volume, resampling = self.grid.fit_volume(volume)
        mask = pairs.companion(volume, scan, self.masks, "masks")
        if mask is None:
            mask = body_mask(volume.array, volume.affine, self.preset.modality)
        labels = pairs.companion(volume, scan, self.labels, "labels", self.labels_flag)
        values, basis = self.preset.values(volume.array, window), None
        if self.contours is not None:
            shown = self.preset.shown(volume, window)
            basis = opencv.basis(values, resampling, self.preset, self.contours, shown)
        slices = {
            "values": resampling.slices(values, self.preset.air),
            "masks": resampling.body(mask > 0, volume.path, "raise --size or --spacing"),
            "basis": basis,
            "labels": None if labels is None else resampling.labels(labels),
            "positions": resampling.positions,
            "window": window,
            "source": scan.source,
            "sha256": scan.sha256,
        }
        doubts = guesses.doubts(self.preset, scan.assumed, volume, window, mask > 0)
        doubts = doubts or guesses.unseen(self.preset, volume, window, mask > 0)
        failed, notes, fit = volume.failed, volume.notes, None
        if scan.is_picture and self.grid.axis == "axial" and guesses.lies(volume.array, mask):
            notes = (*notes, guesses.LYING)
        if self.sources is not None:
            target = Target(scan, volume, resampling, slices["values"], slices["masks"])
            source = self.sources.of(target)
            fit, notes = source.fit, (*notes, *source.notes)
            failed = (*failed, *source.failed)
            doubts += [f"its source is {doubt}" for doubt in source.doubts]
            slices |= {"sources": source.values, "source_masks": source.masks}
            slices = _only(source.kept, slices)
        return _Piece(slices, resampling.kept_of(mask > 0), doubts, failed, notes, fit)


def _only(kept: np.ndarray, slices: dict) -> dict:
    """Arguments of StoreWriter.add for the slices that are kept [N] alone."""
    chosen = {
        name: value[kept] if isinstance(value, np.ndarray) else value
        for name, value in slices.items()
    }
    return chosen | {"numbers": np.flatnonzero(kept)}


def _in_order(
    cut: Callable[[Scan], _Piece], scans: list[Scan]
) -> Iterator[tuple[Scan, _Piece | InputError]]:
    """Every scan with its piece, or why there is none, in the order of the scans.

    Several are worked on at a time: decompression, resampling and morphology leave Python's lock to
    others. As many as that, and one more that is done, are in memory.
    """

    def attempt(scan):
        try:
            with io.blamed(scan.path):
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


def _grid(scans: list[Scan], axis: str, spacing: float | None, size: int | None) -> Grid:
    """The grid, with defaults from the headers of the volumes."""
    if axis not in AXES:
        raise InputError(f"--axis={axis}: known are {', '.join(AXES)}")
    if spacing is not None and size is not None:
        return Grid(axis, spacing, size)
    plane = list(AXES[axis][1:])
    sizes, extents = [], []
    for scan in scans:
        with io.failures(scan.path, []):  # it will be reported when its turn comes to be read
            shape, affine = scan.geometry()
            sizes.append(geometry.spacing(affine)[plane])
            extents.append(sizes[-1] * np.array(shape)[plane])
    if not sizes:
        return Grid(axis, spacing or 1.0, size or SIZE_STEP)
    if spacing is None:
        spacing = float(f"{np.median(sizes):.2g}")
    if size is None:
        pixels = np.max(extents) / spacing * LEFT_OVER
        size = SIZE_STEP * math.ceil(pixels / SIZE_STEP)
    return Grid(axis, spacing, size)
