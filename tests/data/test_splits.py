# SPDX-License-Identifier: Apache-2.0
"""Splits: how many subjects are for validation, and that they are the same ones everywhere."""

import os
import subprocess
import sys

import pytest

from contourdiff_jax.data.splits import draw_splits


@pytest.mark.parametrize(
    ("count", "validation", "expected"),
    [(1, 0.5, 0), (3, 0.9, 0), (4, 0.1, 1), (30, 0.1, 3), (30, 0, 0), (5, 0.5, 2), (4, 0.99, 3)],
)
def test_the_number_of_validation_subjects(count, validation, expected):
    subjects = [f"subject{i}" for i in range(count)]
    splits = draw_splits(subjects, validation)
    assert sorted(splits) == sorted(subjects) and set(splits.values()) <= {"train", "val"}
    assert list(splits.values()).count("val") == expected


def test_the_choice_is_the_same_everywhere():
    """By the hash of the name: neither the order, the process nor the machine plays a part."""
    subjects = [f"subject{i}" for i in range(20)]
    splits = draw_splits(subjects, 0.3)
    assert draw_splits(subjects[::-1], 0.3) == splits
    code = (
        "from contourdiff_jax.data.splits import draw_splits\n"
        "print(draw_splits([f'subject{i}' for i in range(20)], 0.3))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == str(splits)
