# SPDX-License-Identifier: Apache-2.0
"""Splits: how many subjects are for validation, and that they are the same ones everywhere."""

import os
import subprocess
import sys

import pytest

from contourdiff_jax.data.splits import draw_splits, read_splits
from contourdiff_jax.errors import InputError


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


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_split_file_is_read_as_any_table(tmp_path, separator, mark):
    """As spreadsheets write them in any language; columns in any case, and others between."""
    lines = (("Subject", "age", "SPLIT"), ("a", "50", "train"), ("../b", "60", "val"), ())
    text = "\r\n".join(separator.join(line) for line in lines)
    (tmp_path / "split.csv").write_text(mark + text, encoding="utf-8", newline="")
    splits = read_splits(tmp_path / "split.csv", {"a", "___b"})
    assert splits == {"a": "train", "___b": "val"}


def test_a_split_file_of_before_may_name_kinds(tmp_path):
    """They were part of the names of subjects then; one person is in one split all the same."""
    path = tmp_path / "split.csv"
    path.write_text("subject,split\np1-T1,train\np1-T2,train\nsub-02_ses-1,val\n")
    assert read_splits(path, {"p1", "sub-02"}) == {"p1": "train", "sub-02": "val"}
    path.write_text("subject,split\np1-T1,train\np1-T2,val\n")
    with pytest.raises(InputError, match=r"line 3: subject 'p1' is in two splits$"):
        read_splits(path, {"p1"})


def test_a_pipe_is_no_split_file(tmp_path):
    os.mkfifo(tmp_path / "split.csv")
    with pytest.raises(InputError, match="no regular file"):
        read_splits(tmp_path / "split.csv", {"a"})
