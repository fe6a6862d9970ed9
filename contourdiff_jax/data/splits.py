# SPDX-License-Identifier: Apache-2.0
"""Splits: which subjects are trained on ('train'), validated ('val') and tested ('test')."""

import csv
import hashlib
import os
from collections.abc import Sequence

from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.data.store import SPLITS
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk


def told_splits(scans: Sequence[Scan]) -> dict[str, str]:
    """Splits {subject: split} as the layout of the scans tells them, 'train' where it does not.

    Raises InputError for a subject that is in two of them.
    """
    told = {}
    for scan in scans:
        split = scan.split or "train"
        if told.setdefault(scan.subject, split) != split:
            raise InputError(
                f"{scan.path}: the subject {scan.subject!r} is in the splits {told[scan.subject]} "
                f"and {split}; give --split"
            )
    return told


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


LEAST = 4  # subjects to train on, of which some can be spared for validation


def draw_splits(subjects: list[str], validation: float) -> dict[str, str]:
    """Splits {subject: 'train' or 'val'}; `validation` is the fraction of the subjects for 'val'.

    The choice is by the hash of the subject's name: the same whenever and wherever it is made. Of
    four or more subjects at least one is for validation, of fewer none, since training needs them.
    """
    count = 0
    if validation and len(subjects) >= LEAST:
        count = min(max(1, round(validation * len(subjects))), len(subjects) - 1)
    ranked = sorted(subjects, key=lambda subject: hashlib.sha256(os.fsencode(subject)).digest())
    return {subject: "val" if subject in ranked[:count] else "train" for subject in subjects}
