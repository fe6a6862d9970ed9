# SPDX-License-Identifier: Apache-2.0
"""Pictures find their subject and their place in the stack by their names."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contourdiff_jax.data.layouts import stacks
from contourdiff_jax.data.layouts.naming import Wanted
from contourdiff_jax.volumes import volume

WANTED = Wanted(None, None, volume.UNKNOWN)

# Folders of pictures by the rule that is meant: names, and what they are.
STYLES = {
    "subject, separator, slice": {
        "1BA001-045": ("1BA001", 45),
        "IM-0001-0012": ("IM-0001", 12),
        "knee left 7": ("knee left", 7),
        "a.b.003": ("a.b", 3),
        "TCGA_CS_4941_19960909_1": ("TCGA_CS_4941_19960909", 1),
        "head01_-_12": ("head01", 12),
    },
    "a word for slices between": {
        "case3_slice_07": ("case3", 7),
        "case3_slice-8": ("case3", 8),
        "case3_z009": ("case3", 9),
        "sub-01_frame0010": ("sub-01", 10),
        "patient_012_img_1": ("patient_012", 1),
    },
    "what a picture shows is no part of the name": {
        "head01_ct_045": ("head01", 45),
        "head01_046_T1w": ("head01", 46),
        "patient_012_ct": ("patient_012", None),
        "p1_T2": ("p1", None),
    },
    "letters, then a long number": {
        "brain0012": ("brain", 12),
        "knee012": ("knee", 12),
        "heart1": ("heart1", None),
        "1BA0012": ("1BA0012", None),
    },
    "only a number": {
        "0001": (None, 1),
        "2": (None, 2),
        "img_0003": (None, 3),
        "Slice 4": (None, 4),
        "IM0005": (None, 5),
        "CT-6": (None, 6),
        "mr_slice_7": (None, 7),
    },
    "a person's number": {
        "patient_012": ("patient_012", None),
        "sub-07": ("sub-07", None),
        "case3": ("case3", None),
        "P001": ("P001", None),
    },
    "no number": {"left": ("left", None), "left-knee": ("left-knee", None)},
    "subject and slice in one number": {
        "16003": ("16", 3),
        "2004": ("2", 4),
        "32022": ("32", 22),
    },
    "the same after a word": {"spect_10007": ("spect_10", 7), "spect_3008": ("spect_3", 8)},
    # What looks alike but is something else.
    "numbers of one length with one beginning": {"1003": (None, 1003), "1004": (None, 1004)},
    "numbers that count through a thousand": {
        "img_1999": (None, 1999),
        "img_2000": (None, 2000),
        "img_2001": (None, 2001),
    },
    "one with a zero in front": {"16003": (None, 16003), "02004": (None, 2004)},
    "one of three digits": {"16003": (None, 16003), "999": (None, 999)},
    "one without a number": {"16003": (None, 16003), "17003": (None, 17003), "x": ("x", None)},
}


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_names_is_understood(style):
    names = STYLES[style]
    assert dict(zip(names, stacks.recognise(list(names)), strict=True)) == names


def test_the_order_of_names_does_not_matter():
    names = ["spect_10007", "spect_3008", "spect_3009"]
    assert stacks.recognise(names[::-1]) == stacks.recognise(names)[::-1]


def test_any_name_is_understood_somehow(rng):
    """Names are any bytes: nothing may raise, and what is numbered has a number."""
    letters = list("aB01٣ _-.pz\udcff\n")
    for _ in range(2000):
        stems = ["".join(rng.choice(letters, rng.integers(1, 8))) for _ in range(3)]
        for subject, number in stacks.recognise(stems):
            assert (subject is None or isinstance(subject, str)) and subject != ""
            assert subject is not None or number is not None


def save(path, shape=(8, 6), value=0):
    """A picture of rows and columns, or pages of them."""
    pages = [Image.fromarray(np.full(shape[-2:], value, np.uint8)) for _ in range(shape[0])]
    if len(shape) == 3:
        pages[0].save(path, save_all=True, append_images=pages[1:])
    else:
        pages[0].save(path)
    return path


def test_slices_are_in_the_order_of_their_numbers(tmp_path):
    """Not in that of their names: 10 comes after 9."""
    files = [save(tmp_path / f"p1_{number}.png") for number in (10, 9, 100, 1)]
    [scan] = stacks.stacked(files, WANTED, failed := [], owner="folder")
    assert [path.name for path in scan.files] == ["p1_1.png", "p1_9.png", "p1_10.png", "p1_100.png"]
    assert (scan.name, scan.subject, scan.stem) == ("p1", "p1", "p1")
    assert scan.path == tmp_path / "p1" and not failed


def test_each_picture_size_is_a_volume(tmp_path):
    files = [save(tmp_path / "p1_1.png"), save(tmp_path / "p1_2.png", (4, 4))]
    found = stacks.stacked(files, WANTED, [], owner="folder")
    assert [scan.name for scan in found] == ["p1_6x8", "p1_4x4"]
    assert {scan.subject for scan in found} == {"p1"}


def test_the_later_of_two_pictures_of_a_slice_is_left_out(tmp_path):
    files = [save(tmp_path / name) for name in ("p1_01.png", "p1_01.tif", "p1_1.png", "p1_2.png")]
    [scan] = stacks.stacked(files, WANTED, failed := [], owner="folder")
    assert scan.files == (files[0], files[3])
    assert [path for path, _ in failed] == files[1:3]
    assert failed[0][1] == f"{files[1]}: the same slice as p1_01.png; keep one"


def test_a_file_of_several_pages_is_a_volume_of_its_own(tmp_path):
    files = [save(tmp_path / "p1_1.tif", (3, 8, 6)), save(tmp_path / "p1_2.tif")]
    first, second = stacks.stacked(files, WANTED, [], owner="folder")
    assert first.files == (files[0],) and first.stem == first.name == "p1_1"
    assert second.files == (files[1],)


def test_numbered_pictures_are_of_the_folder(tmp_path):
    """They pair with those of another folder by the name, which the subject's does not give."""
    files = [save(tmp_path / f"img_{number:04}.png") for number in range(2)]
    [scan] = stacks.stacked(files, WANTED, [], owner="head01")
    assert (scan.subject, scan.name, scan.path) == ("head01", "slices", tmp_path)


def test_how_subjects_were_told_is_said(tmp_path):
    files = [Path(f"{name}.png") for name in ("16003", "16004", "2004")]
    assert stacks.recognition(files) == (
        "3 pictures of 2 subjects by their names: 16003.png is slice 3 of 16"
    )
    assert "of 1 subject by" in stacks.recognition([Path("1.png")])
