# SPDX-License-Identifier: Apache-2.0
"""Volumes of several folders, or of one, pair by their names, and never with themselves."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts import pairs
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import io


def save(path, value=1, spacing=1.0):
    """A volume that holds 0 and a value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((4, 4, 4), value, np.int16)
    array[0] = 0
    nib.save(nib.Nifti1Image(array, np.diag([spacing, 1, 1, 1])), path)
    return path


def values(found, name):
    """The values of a scan, but for 0."""
    return np.unique(found[name].read(labels=True).array)[1:].tolist()


@pytest.mark.parametrize("separator", ["_", "-", ".", " "])
@pytest.mark.parametrize(
    ("kind", "words"),
    [("labels", ("seg", "label", "labels", "dseg", "gt")), ("masks", ("mask", "brainmask"))],
)
def test_label_maps_and_masks_are_found_beside_the_images(tmp_path, kind, words, separator):
    """By the folder's name, and by the layout itself; and none of them is an image."""
    other = "mask" if kind == "labels" else "seg"
    for word in words:
        root = tmp_path / word
        for number in (1, 2):
            save(root / f"p{number}.nii.gz", 100)
            save(root / f"p{number}{separator}{word}.nii.gz", number)
            save(root / f"p{number}{separator}{other}.nii.gz", 50)
        found = pairs.by_name(root, kind)
        assert {name: values(found, name) for name in found} == {"p1": [1], "p2": [2]}
        content = layouts.find(root, modality="mr")
        assert [scan.path.name for scan in content.scans] == ["p1.nii.gz", "p2.nii.gz"]
        for scan, (name, other_scan) in zip(content.scans, found.items(), strict=True):
            assert (scan.name, getattr(scan, kind.rstrip("s") if kind == "masks" else kind)) == (
                name,
                other_scan.path,
            )
            for others in (found, None):
                array = pairs.companion(scan.read(), scan, others, kind)
                assert set(np.unique(array)) == {0, values(found, name)[0]}


def test_of_several_label_maps_none_is_taken(tmp_path):
    """What is meant has to be said."""
    for name in ("p1", "p1_seg", "p1-label", "p2", "p2_seg"):
        save(tmp_path / f"{name}.nii")
    first, second = layouts.find(tmp_path).scans
    assert first.labels is None and second.labels == tmp_path / "p2_seg.nii"
    with pytest.raises(InputError, match=r"p1_seg\.nii: p1-label\.nii belongs to 'p1' too"):
        pairs.by_name(tmp_path, "labels")


def test_the_label_map_of_one_kind_is_not_that_of_another(tmp_path):
    """In a folder of one subject, and behind a subject's name."""
    for name in ("t1w", "t2"):
        for subject in ("", "p1_"):
            save(tmp_path / f"folder{subject}" / f"{subject}{name}.nii")
            save(tmp_path / f"folder{subject}" / f"{subject}{name}_seg-manual.nii")
    for subject in ("", "p1_"):
        scans = layouts.find(tmp_path / f"folder{subject}", modality="mr").scans
        assert [(scan.stem, scan.labels.name) for scan in scans] == [
            (f"{subject}{name}", f"{subject}{name}_seg-manual.nii") for name in ("t1w", "t2")
        ]


def test_a_folder_of_nothing_but_label_maps_is_taken_whole(tmp_path):
    """Whatever its files are called."""
    for names in (("p1", "p2"), ("p1_ct", "p2_ct"), ("p1_labels", "p2_labels")):
        root = tmp_path / names[0]
        for name in names:
            save(root / f"{name}.nii", 7)
        for kind in ("labels", "masks"):
            assert list(pairs.by_name(root, kind)) == ["p1", "p2"]


def test_images_are_not_taken_for_masks(tmp_path):
    """Of a folder whose names tell label maps from images, what is neither."""
    for name in ("p1", "p1_seg"):
        save(tmp_path / f"{name}.nii")
    with pytest.raises(InputError, match=r"no masks among its files, which are images and seg$"):
        pairs.by_name(tmp_path, "masks")


def test_the_layout_has_masks_and_label_maps(tmp_path):
    """In folders of subjects and in nnU-Net's, of whatever kinds their images are."""
    for number, subject in enumerate(("1ABA901", "1ABA902"), start=1):
        for name, value in (("mr", 100), ("ct", 40), ("mask", number)):
            save(tmp_path / "synthrad/Task1/AB" / subject / f"{name}.nii.gz", value)
    found = pairs.by_name(tmp_path / "synthrad", "masks")
    assert {name: values(found, name) for name in found} == {"1ABA901": [1], "1ABA902": [2]}
    for channel in ("0000", "0001"):
        save(tmp_path / f"nnunet/imagesTr/case_{channel}.nii.gz", 100)
    save(tmp_path / "nnunet/labelsTr/case.nii.gz", 3)
    found = pairs.by_name(tmp_path / "nnunet", "labels")
    assert values(found, "case") == [3]


@pytest.mark.parametrize("link", [False, True])
def test_a_file_never_pairs_with_itself(tmp_path, link):
    path = save(tmp_path / "p1.nii")
    folder = tmp_path
    if link:
        folder = tmp_path / "linked"
        folder.mkdir()
        (folder / "p1_ct.nii").symlink_to(path)
    [scan] = layouts.find(path).scans
    for kind in ("labels", "masks"):
        with pytest.raises(InputError, match=f"--{kind} has this file itself"):
            pairs.companion(scan.read(), scan, pairs.by_name(folder, kind), kind)
    with pytest.raises(InputError, match="--truth has this file itself"):
        pairs.partner(scan.read(), scan, pairs.by_name(folder), "truth")


def test_a_stack_never_pairs_with_itself(tmp_path):
    for number in (1, 2, 3):
        picture = Image.fromarray(np.full((4, 4), 9 * number, np.uint8))
        picture.save(tmp_path / f"p1_{number}.png")
    [scan] = layouts.find(tmp_path).scans
    with pytest.raises(InputError, match="--labels has this file itself"):
        pairs.companion(scan.read(), scan, pairs.by_name(tmp_path, "labels"), "labels")


def test_a_table_cannot_say_that_an_image_is_its_own_mask(tmp_path):
    save(tmp_path / "p1.nii")
    (tmp_path / "list.csv").write_text("file,subject,mask\np1.nii,p1,p1.nii\n")
    [scan] = layouts.find(tmp_path / "list.csv").scans
    with pytest.raises(InputError, match="its own masks"):
        pairs.companion(scan.read(), scan, None, "masks")


def test_files_called_by_what_they_show_pair_up(tmp_path):
    """One in each folder, or given themselves."""
    first, second = save(tmp_path / "a/T2.nii.gz"), save(tmp_path / "b/T1.nii.gz", 5)
    for one, other in ((first, second), (first.parent, second.parent), (first.parent, second)):
        [scan] = pairs.by_name(one).values()
        assert pairs.partner(scan.read(), scan, pairs.by_name(other), "truth").path == second
    named = save(tmp_path / "c/p1_T1.nii.gz")
    with pytest.raises(InputError, match="no volume of the subject"):
        pairs.partner(io.read(first), scan, pairs.by_name(named), "truth")


def test_kinds_behind_any_separator_pair_up(tmp_path):
    for name in ("IXI1-Made-01-T1", "p1 cbct", "p2.t1ce", "sub-01_ses-1_T1w"):
        save(tmp_path / "one" / f"{name}.nii")
    for name in ("IXI1-Made-01-T2", "p1-ct", "p2_T1_Gd", "sub-01_ses-1_T2w"):
        save(tmp_path / "other" / f"{name}.nii")
    one, other = (pairs.by_name(tmp_path / name, "mr") for name in ("one", "other"))
    assert list(one) == ["IXI1-Made-01", "p2", "sub-01_ses-1"]
    assert list(one) == list(other)


def test_advice_names_no_flag_that_commands_lack(tmp_path):
    """Those that pair folders up have no --select and no --layout."""
    for name in (
        "flat/p1_ct",
        "flat/p1_mr",
        "deep/p1/ct",
        "deep/p1/mr",
        "deep/p2/ct",
        "deep/p2/mr",
    ):
        save(tmp_path / f"{name}.nii")
    save(tmp_path / "mixed/a.nii")
    np.save(tmp_path / "mixed/b.npy", np.zeros((4, 4)))
    save(tmp_path / "several/ct/p1_ct.nii"), save(tmp_path / "several/mr/p1_mr.nii")
    for folder in ("flat", "deep", "mixed", "several"):
        for kind in (None, "labels", "masks"):
            with pytest.raises(InputError, match="give") as caught:
                pairs.by_name(tmp_path / folder, kind)
            assert "--" not in str(caught.value)
