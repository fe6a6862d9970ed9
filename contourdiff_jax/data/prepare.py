# SPDX-License-Identifier: Apache-2.0
"""Prepare volumes for training: a store of slices on one grid, with body masks and an index.

Every NIfTI volume in --source is brought to one orientation, windowed by --preset, cut into slices
along --axis and resampled to --size x --size pixels of --spacing mm. Without --spacing it is the
median in-plane spacing of the volumes; without --size it is the smallest multiple of 32 that covers
the largest field of view. Volumes of one subject (the file name without _ct, _t1, ...) share a
split: that of --split, or train and, for a fraction of the subjects, val. A volume that cannot be
used is reported and left out; the exit status is then 1.

Example:
  contourdiff prepare --source=scans/mr --out=stores/mr --preset=mr --spacing=1 --size=256
"""

import csv
import dataclasses
import hashlib
import math
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from contourdiff_jax.data import intensity, pairs, volumes
from contourdiff_jax.data.grid import AXES, KEPT_WHOLE, Grid
from contourdiff_jax.data.masks import body_mask
from contourdiff_jax.data.store import SPLITS, StoreWriter, check_is_free
from contourdiff_jax.errors import InputError

SIZE_STEP = 32  # a size that five halvings divide suits any U-Net


@dataclasses.dataclass(frozen=True)
class PrepareResult:
    """What became of the volumes."""

    done: list[Path]
    failed: list[tuple[Path, str]]  # and why
    cropped: list[tuple[Path, float]]  # and the fraction of the field of view that is left
    grid: Grid
    slices: int
    splits: dict[str, str]  # subject -> split


def prepare(
    source,
    out,
    preset,
    *,
    axis: str = "axial",
    spacing: float | None = None,
    size: int | None = None,
    labels=None,
    masks=None,
    split=None,
    validation: float = 0.1,
    overwrite: bool = False,
) -> PrepareResult:
    """Writes a store from a folder of volumes.

    Args:
      source: a volume or a folder of volumes.
      out: the store's folder.
      preset: name of the intensity preset, 'ct' or 'mr'.
      axis: slicing axis, 'axial', 'coronal' or 'sagittal'.
      spacing: of the grid's pixels [mm]; default: the volumes' median in plane, to two digits.
      size: of the grid [px]; default: the smallest multiple of 32 that covers every field of view.
      labels: folder of label maps on the volumes' grids, paired by subject.
      masks: folder of body masks, likewise; default: they are computed.
      split: CSV file with the columns subject and split ('train', 'val' or 'test').
      validation: fraction of the subjects whose split is 'val', where there is no `split`.
      overwrite: replace a store of that name.

    Volumes that cannot be used are left out and listed in the result. Raises InputError when none
    can be used.
    """
    chosen = intensity.preset(preset)
    if not 0 <= validation < 1:
        raise InputError(f"--validation must be at least 0 and below 1, not {validation}")
    paths = volumes.find(source)
    check_is_free(Path(out), overwrite)
    label_paths, mask_paths = (
        None if folder is None else pairs.by_subject(folder) for folder in (labels, masks)
    )
    given = None
    if split is not None:
        given = read_splits(split, {volumes.subject_of(path) for path in paths})
    grid = _grid(paths, axis, spacing, size)

    done, failed, cropped = [], [], []
    with StoreWriter(out, chosen, grid, labels=labels is not None, overwrite=overwrite) as writer:
        for path in tqdm(paths, desc="prepare", unit="volume", disable=None):
            try:
                volume = volumes.read(path)
                slices = _slices(volume, chosen, grid, label_paths, mask_paths)
            except InputError as error:
                failed.append((path, str(error)))
                continue
            kept = slices.pop("kept")
            writer.add(volumes.subject_of(path), **slices)
            done.append(path)
            if kept < KEPT_WHOLE:
                cropped.append((path, kept))
        if not done:
            raise InputError(f"{source}: none of {len(paths)} volumes can be used: {failed[0][1]}")
        subjects = writer.subjects
        if given is None:
            splits = draw_splits(subjects, validation)
        else:
            splits = {subject: given[subject] for subject in subjects}
        writer.finish(splits)
    return PrepareResult(done, failed, cropped, grid, len(writer), splits)


def _slices(volume, preset, grid, label_paths, mask_paths) -> dict:
    """What a store keeps of a volume, and the fraction of its field of view that is kept."""
    window = preset.window_of(volume)
    resampling = grid.fit(volume.array.shape, volume.affine)
    if mask_paths is None:
        mask = body_mask(volume.array, volume.affine, preset.modality)
    else:
        mask = pairs.partner(volume, mask_paths, "masks", labels=True).array > 0
    labels = None
    if label_paths is not None:
        partner = pairs.partner(volume, label_paths, "labels", labels=True)
        labels = resampling.labels(partner.array)
    return {
        "values": resampling.slices(preset.values(volume.array, window), preset.air),
        "masks": resampling.masks(mask),
        "labels": labels,
        "positions": resampling.positions,
        "window": window,
        "source": volume.path.name,
        "sha256": volumes.sha256(volume.path),
        "kept": resampling.kept,
    }


def _grid(paths: list[Path], axis: str, spacing: float | None, size: int | None) -> Grid:
    """The grid, with defaults from the headers of the volumes."""
    if axis not in AXES:
        raise InputError(f"--axis={axis}: known are {', '.join(AXES)}")
    plane = list(AXES[axis][1:])
    sizes, extents = [], []
    for path in paths:
        try:
            shape, affine = volumes.geometry(path)
        except InputError:  # it will be reported when its turn comes to be read
            continue
        sizes.append(volumes.spacing(affine)[plane])
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
        raise InputError(f"{path}: cannot be read: {volumes.reason(error)}") from error
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


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff prepare`."""
    text, number = flags.DEFINE_string, flags.DEFINE_float
    text("source", None, "A volume, or a folder of volumes (.nii, .nii.gz).", flag_values=values)
    text("out", None, "Folder of the store to write.", flag_values=values)
    presets = sorted(intensity.PRESETS)
    flags.DEFINE_enum("preset", None, presets, "What the intensities are.", flag_values=values)
    flags.DEFINE_enum("axis", "axial", list(AXES), "Slicing axis.", flag_values=values)
    number("spacing", None, "Pixel spacing of the grid in mm.", flag_values=values)
    flags.DEFINE_integer("size", None, "Pixels along a side of the grid.", flag_values=values)
    text("labels", None, "Folder of label maps, paired by subject.", flag_values=values)
    text("masks", None, "Folder of body masks, paired by subject.", flag_values=values)
    text("split", None, "CSV file with the columns subject,split.", flag_values=values)
    number("validation", 0.1, "Fraction of the subjects for val.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace a store of that name.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Runs the command; 0 if every volume was used, 1 if some were left out."""
    for name in ("source", "out", "preset"):
        if values[name].value is None:
            raise InputError(f"--{name} is required; see `contourdiff prepare --help`")
    result = prepare(
        values.source,
        values.out,
        values.preset,
        axis=values.axis,
        spacing=values.spacing,
        size=values.size,
        labels=values.labels,
        masks=values.masks,
        split=values.split,
        validation=values.validation,
        overwrite=values.overwrite,
    )
    grid, counts = result.grid, Counter(result.splits.values())
    subjects = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])
    print(
        f"{values.out}: {result.slices} slices of {len(result.done)} volumes, subjects: {subjects}"
    )
    print(f"{grid.axis}, {grid.size} x {grid.size} px of {grid.spacing:g} mm")
    if result.cropped:
        path, kept = min(result.cropped, key=lambda item: item[1])
        count = f"{len(result.cropped)} of {len(result.done)}"
        print(
            f"warning: {count} volumes are larger than the grid and cropped, {path.name} most "
            f"({kept:.0%} is kept); raise --size or --spacing",
            file=sys.stderr,
        )
    for _, reason in result.failed:
        print(f"left out: {reason}", file=sys.stderr)
    return 1 if result.failed else 0
