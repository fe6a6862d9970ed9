# SPDX-License-Identifier: Apache-2.0
"""Splits: which subjects are trained on ('train'), validated ('val') and tested ('test')."""

import hashlib
import os
from collections.abc import Sequence

from contourdiff_jax.data.layouts import naming, tables
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.data.store import SPLITS
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import filenames


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
    """Splits {subject: split} from a CSV file with the columns subject and split, see `tables`.

    Raises InputError unless it names exactly the subjects given, and known splits.
    """
    splits = {}
    for number, row in tables.rows(path, ("subject", "split")):
        at, subject, split = f"{path}: line {number}", naming.safe(row["subject"]), row["split"]
        # Files of before may have names that held more of a subject than who it is.
        person = naming.safe(filenames.person(filenames.plain(subject)))
        if subject not in subjects and person in subjects:
            subject = person
        if split not in SPLITS:
            raise InputError(f"{at}: unknown split {split!r}; known: {', '.join(SPLITS)}")
        if splits.setdefault(subject, split) != split:
            raise InputError(f"{at}: subject {subject!r} is in two splits")
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
