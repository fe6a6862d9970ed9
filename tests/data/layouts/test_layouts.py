# SPDX-License-Identifier: Apache-2.0
"""What a folder holds is recognised by its names; what is not clear is asked for in one line."""

import errno
import json
import os
import re
from collections import defaultdict

import numpy as np
import pytest
from dicom_series import SECRETS, enhanced, header, save, voxels, write_series
from PIL import Image
from pydicom.dataset import Dataset

from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts import folders, naming, pairs
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames, io
from contourdiff_jax.volumes.volume import Assumed


def make(root, *names):
    """Files below a folder: pictures and arrays with something in them, others empty."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".tif", ".jpg"):
            Image.fromarray(np.zeros((8, 6), np.uint8)).save(path)
        elif path.suffix == ".npy":
            np.save(path, np.zeros((9, 8, 6) if "volume" in name else (8, 6)))
        else:
            path.touch()
    return root


def table(path, *lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def tell(found, *attributes):
    """Attributes of the scans, a tuple for each where there are several."""
    rows = [tuple(getattr(scan, name) for name in attributes) for scan in found.scans]
    return [row[0] for row in rows] if len(attributes) == 1 else rows


def below(root, paths):
    """Names of files from a folder on."""
    return [None if path is None else str(path.relative_to(root)) for path in paths]


def check_is_clear(found):
    """No two scans are called alike, every one has files, and messages begin with their path."""
    stems = tell(found, "stem")
    assert len(set(stems)) == len(stems)
    assert found.layout in layouts.LAYOUTS
    for scan in found.scans:
        assert scan.files and scan.name and "/" not in scan.name + scan.stem + scan.subject
        assert scan.stem.encode() and scan.subject.encode()  # is valid UTF-8
    assert tell(found, "path") == sorted(tell(found, "path"))
    assert all("\n" not in reason and ": " in reason for _, reason in found.failed)


def find(source, **options):
    found = layouts.find(source, **options)
    check_is_clear(found)
    return found


# --------------------------------------------------------------------------------------------------
# Volumes
# --------------------------------------------------------------------------------------------------


def test_volumes_are_listed_in_order(tmp_path):
    """Of any format; hidden files, junk and folders with such names are none."""
    names = ("a_ct.nii.gz", "b.nii", "c.mha", "d.NRRD", "volume.npy")
    make(tmp_path, *names, "._a.nii.gz", "notes.txt", "Thumbs.db", ".DS_Store", "README")
    (tmp_path / "folder.nii").mkdir()
    found = find(tmp_path)
    assert found.layout == "volumes" and not found.failed
    assert below(tmp_path, tell(found, "path")) == list(names)
    assert tell(found, "name") == tell(found, "subject") == ["a", "b", "c", "d", "volume"]
    assert tell(found, "stem")[0] == "a_ct" and tell(found, "kind")[:2] == ["ct", None]
    assert all(scan.files == (scan.path,) for scan in found.scans)


def test_a_volume_can_be_given_itself(tmp_path):
    make(tmp_path, "b_mr.nii", "c.nii")
    assert tell(find(tmp_path / "b_mr.nii"), "path", "subject") == [(tmp_path / "b_mr.nii", "b")]


def test_volumes_of_one_modality_are_taken_together(tmp_path):
    """A subject's T1 and T2 may both be meant; that they are two is said."""
    make(tmp_path, "a_t1.nii", "b_t1.nii", "b_t2.nii")
    found = find(tmp_path, modality="mr")
    assert tell(found, "subject") == ["a", "b", "b"]
    assert found.notes == ["t1 and t2 are taken together; --select takes one of them"]
    assert tell(find(tmp_path, select="T2"), "stem") == ["b_t2"]


def test_volumes_of_two_modalities_are_chosen_from(tmp_path):
    make(tmp_path, "a_ct.nii", "a_mr.nii", "a_seg.nii", "b_ct.nii")
    with pytest.raises(InputError, match=f"^{tmp_path}: holds ct and mr; .*--select=ct$"):
        layouts.find(tmp_path)
    found = find(tmp_path, modality="ct")
    assert tell(found, "stem") == ["a_ct", "b_ct"]
    assert found.notes == ["1 of 4 files left out: mr"]  # the label map is that of a_ct
    assert tell(find(tmp_path, select="seg"), "stem") == ["a_seg"]
    assert len(find(tmp_path, select="*").scans) == 4


def test_label_maps_alone_are_found(tmp_path):
    make(tmp_path, "a_labels.nii", "b_labels.nii")
    assert tell(find(tmp_path), "subject") == ["a", "b"]


def test_names_that_contradict_the_preset_are_noted(tmp_path):
    make(tmp_path, "a_ct.nii", "b_ct.nii")
    assert find(tmp_path, modality="mr").notes == ["the names say ct, where the preset is for mr"]
    assert not find(tmp_path, modality="ct").notes


def test_kinds_behind_any_separator_are_of_one_subject(tmp_path):
    names = [f"IXI90{n}-Made-000{n}" for n in (1, 2)]
    make(tmp_path, *(f"{kind}/{name}-{kind}.nii.gz" for name in names for kind in ("T1", "T2")))
    for kind in ("T1", "T2"):
        found = find(tmp_path / kind, modality="mr")
        assert tell(found, "subject", "name") == list(zip(names, names, strict=True))
        assert tell(found, "kind", "stem")[0] == (kind, f"{names[0]}-{kind}")
    make(tmp_path / "flat", *(f"p1{end}.nii" for end in ("-t1ce", ".t2w", " flair", "_T1_Gd")))
    assert set(tell(find(tmp_path / "flat", modality="mr"), "subject")) == {"p1"}


def test_files_called_by_what_they_show_are_of_their_folder(tmp_path):
    """Then the name of the file tells nobody's: all of a folder are one subject's."""
    make(tmp_path / "ann/mr", "T1.nii", "T2.nii", "FLAIR.nii")
    assert set(tell(find(tmp_path / "ann/mr", modality="mr"), "subject")) == {"ann"}
    assert tell(find(tmp_path / "ann/mr/T1.nii"), "subject", "name") == [("ann", "T1")]
    make(tmp_path / "ct", "ct.nii", "p1.nii")
    assert tell(find(tmp_path / "ct"), "subject")[1] == "p1"


def test_positron_emission_is_not_taken_for_another_modality(tmp_path):
    make(tmp_path, "p1.nii", "p1_PET.nii", "p2.nii")
    for modality in ("ct", "mr", None):
        assert tell(find(tmp_path, modality=modality), "stem") == ["p1", "p2"]
    assert tell(find(tmp_path, select="pet"), "subject") == ["p1"]


def test_names_of_before_are_remembered(tmp_path):
    """Runs and stores that kept a subject under another name still know it."""
    make(tmp_path, "p1-T1.nii", "BraTS-GLI-00005-001-t1c.nii", "q.nii")
    first, second, third = find(tmp_path).scans
    assert (first.subject, second.subject) == ("BraTS-GLI-00005", "p1")
    for scan, names in (
        (first, ("BraTS-GLI-00005", "BraTS-GLI-00005-001", "BraTS-GLI-00005-001-t1c")),
        (second, ("p1", "p1-T1", "p1-T2", "p1_t1ce")),
        (third, ("q", "q_image")),
    ):
        for name in names:
            assert scan.is_of({filenames.subject_digest(name)})
        assert not scan.is_of({filenames.subject_digest(name) for name in ("p10", "Q", "p", "")})


@pytest.mark.parametrize(
    ("subject", "safe"),
    [
        ("..", "__"),
        (".", "_"),
        ("../../etc", "___.._etc"),
        ("a/b", "a_b"),
        ("a\\b", "a_b"),
        ("=1+1", "_1+1"),
        ("+1", "_1"),
        ("-1", "_1"),
        ("@SUM(A1)", "_SUM(A1)"),
        ("a-b+c", "a-b+c"),
        ("Köhler", "Köhler"),
    ],
)
def test_names_of_subjects_are_safe(tmp_path, subject, safe):
    """As the name of a file, which stays in its folder, and in a spreadsheet."""
    make(tmp_path, "a.nii")
    path = table(tmp_path / "list.csv", "file;subject", f"a.nii;{subject}")
    assert tell(find(path), "subject", "name", "stem") == [(safe,) * 3]


@pytest.mark.parametrize("letter", ["a", "ö", "€"])
def test_long_names_leave_room_for_what_outputs_add(tmp_path, letter):
    longest = (letter * 245).encode()[:250].decode(errors="ignore")
    make(tmp_path, f"{longest}.nii", f"{longest[:-1]}.nii")
    found = find(tmp_path)
    assert len(set(tell(found, "subject"))) == len(set(tell(found, "stem"))) == 2
    for name in {*tell(found, "subject"), *tell(found, "stem"), *tell(found, "name")}:
        assert len(name.encode()) <= naming.LONGEST
        disk.write(tmp_path / "out" / f"{name}_desc-contourdiff_T1w.nii.gz", "x")
    assert all(scan.is_of({filenames.subject_digest(scan.path.stem)}) for scan in found.scans)


# --------------------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------------------


def test_pictures_are_stacked_by_their_names(tmp_path):
    make(tmp_path, "p1_1.png", "p1_10.png", "p1_2.png", "p2_1.jpg", "p3_1.npy", "info.json")
    found = find(tmp_path, assumed=Assumed(0.5))
    assert found.layout == "slices" and tell(found, "subject") == ["p1", "p2", "p3"]
    assert below(tmp_path, found.scans[0].files) == ["p1_1.png", "p1_2.png", "p1_10.png"]
    assert found.scans[0].assumed.spacing == 0.5
    assert found.notes == ["5 pictures of 3 subjects by their names: p1_1.png is slice 1 of p1"]


def test_numbered_pictures_are_of_the_folder(tmp_path):
    make(tmp_path / "head01", "0001.png", "0002.png")
    [scan] = find(tmp_path / "head01").scans
    assert (scan.name, scan.subject, scan.path) == ("slices", "head01", tmp_path / "head01")


def test_a_picture_alone_is_of_the_same_subject_as_among_others(tmp_path):
    make(tmp_path, "16003.png", "2004.png")
    [scan] = find(tmp_path / "16003.png").scans
    assert (scan.subject, scan.files) == ("16", (tmp_path / "16003.png",))


def test_a_damaged_picture_is_left_out(tmp_path):
    make(tmp_path, "p1_1.png", "p1_2.png")
    (tmp_path / "p1_3.png").write_bytes(b"no picture")
    found = find(tmp_path)
    assert len(found.scans[0].files) == 2
    assert [path.name for path, _ in found.failed] == ["p1_3.png"]


def test_pictures_of_two_kinds_are_no_slices_of_one_volume(tmp_path):
    make(tmp_path, "p1_ct_01.png", "p1_ct_02.png", "p1_mr_01.png")
    assert len(find(tmp_path, modality="ct").scans[0].files) == 2
    assert tell(find(tmp_path, select="*"), "stem", "kind") == [("p1_ct", "ct"), ("p1_mr", "mr")]
    with pytest.raises(InputError, match="holds ct and mr"):
        layouts.find(tmp_path)


def test_folders_of_pictures_are_subjects(tmp_path):
    make(tmp_path, "p1/001.png", "p1/002.png", "p2/001.png")
    found = find(tmp_path)
    assert (found.layout, tell(found, "name", "subject", "path")) == (
        "slices",
        [("p1", "p1", tmp_path / "p1"), ("p2", "p2", tmp_path / "p2")],
    )


@pytest.mark.parametrize("names", [("ct/1.png", "mr/1.png"), ("x/a_1.png", "x/b_1.png", "y/1.png")])
def test_folders_that_are_no_subjects_are_named(tmp_path, names):
    """By their own names, or because they hold several subjects."""
    make(tmp_path, *names)
    folders = " and ".join(sorted({name.split("/")[0] for name in names}))
    with pytest.raises(InputError, match=f"images lie in {folders}: give one of these"):
        layouts.find(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("head01_mr.nii.gz",),
        ("p1_ct_001.png",),
        ("p1/001.png", "p2/001.png"),
        ("images/a.png", "df_meta.csv"),
    ],
)
def test_what_is_not_there_cannot_be_selected(tmp_path, names):
    """Whatever the layout: nothing is taken in its place."""
    make(tmp_path, *names)
    if (tmp_path / "df_meta.csv").exists():
        (tmp_path / "df_meta.csv").write_text("image_name\na.png\n")
    source = tmp_path if len(names) > 1 else tmp_path / names[0]
    with pytest.raises(InputError, match="no 'T2w' to select"):
        layouts.find(source, select="T2w")
    for select in (None, "*", *(["mr"] if "mr" in names[0] else [])):
        assert len(find(source, select=select).scans) == (2 if "p2/001.png" in names else 1)


# --------------------------------------------------------------------------------------------------
# Two domains
# --------------------------------------------------------------------------------------------------


def test_two_domains(tmp_path):
    make(tmp_path, "trainA/p1_1.png", "trainA/p1_2.png", "trainB/q1.nii", "testA/p2_1.png")
    make(tmp_path, "valB/q2.nii")
    found = find(tmp_path, select="a")
    assert found.layout == "ab"
    assert tell(found, "subject", "split", "kind") == [("p2", "test", "A"), ("p1", "train", "A")]
    assert tell(find(tmp_path, select="B"), "subject", "split") == [("q1", "train"), ("q2", "val")]
    assert tell(find(tmp_path, select="trainA"), "subject") == ["p1"]
    with pytest.raises(InputError, match=r"holds A and B; choose with --select=A$"):
        layouts.find(tmp_path, modality="ct")


def test_numbers_in_two_folders_are_not_one_subject(tmp_path):
    """Of files numbered afresh in every folder, those to train on are not those to test with."""
    make(tmp_path, "trainA/1.png", "testA/1.png", "trainB/1.nii", "testB/1.nii")
    for domain in "AB":
        found = find(tmp_path, select=domain)
        assert len(set(tell(found, "subject"))) == len(set(tell(found, "name"))) == 2
    # So that a translation of testA pairs with what is in testB.
    assert tell(find(tmp_path, select="testB"), "name") == ["1"]


def test_an_empty_domain_folder_is_named(tmp_path):
    make(tmp_path, "trainA/p1_1.png")
    (tmp_path / "testA").mkdir()
    assert [path.name for path, _ in find(tmp_path).failed] == ["testA"]


# --------------------------------------------------------------------------------------------------
# ContourDiff
# --------------------------------------------------------------------------------------------------


def contourdiff(root, *lines):
    make(root, *(f"images/img_{number}.png" for number in range(1, 5)), "contours/img_1.png")
    table(root / "df_meta.csv", *lines)
    return root


def test_contourdiff_as_it_writes_its_table_itself(tmp_path):
    """Without columns for the volume: what the names do not tell, the domain's folder does."""
    root = contourdiff(tmp_path / "ct", ",image_name,contour_name", "0,img_1.png,img_1.png")
    found = find(root)
    assert found.layout == "contourdiff"
    assert tell(found, "subject", "name") == [("ct", "slices")]
    assert found.notes[1] == "3 pictures of images are not in df_meta.csv and left out"


@pytest.mark.parametrize("columns", ["volume,slice", "Specifier,Slice_ID", "PATIENT,z"])
def test_contourdiff_with_volumes_and_slices(tmp_path, columns):
    lines = ("img_1.png,a,2", "img_2.png,a,1", "img_3.png,b,1", "img_5.png,b,2")
    found = find(contourdiff(tmp_path, f"image_name,{columns}", *lines))
    assert tell(found, "subject") == ["a", "b"]
    assert [path.name for path in found.scans[0].files] == ["img_2.png", "img_1.png"]
    [(path, reason)] = found.failed
    assert path.name == "img_5.png" and "df_meta.csv: line 5: no file" in reason


def test_contourdiff_with_several_volumes_of_a_subject(tmp_path):
    lines = ("img_1.png,a,x,1", "img_2.png,a,y,1")
    found = find(contourdiff(tmp_path, "image_name,subject,volume,slice", *lines))
    assert tell(found, "name", "subject") == [("a_x", "a"), ("a_y", "a")]


# --------------------------------------------------------------------------------------------------
# nnU-Net
# --------------------------------------------------------------------------------------------------

NNUNET = [
    *(f"imagesTr/{case}_{channel}.nii.gz" for case in "ab" for channel in ("0000", "0001")),
    *("imagesTs/c_0000.nii.gz", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz"),
]


@pytest.mark.parametrize(
    "fields",
    [{"channel_names": {"0": "CT", "1": "T1"}}, {"modality": {"0": "CT", "1": "T1"}}],
    ids=["version 2", "version 1"],
)
@pytest.mark.parametrize("choice", [{"select": "ct"}, {"select": "0000"}, {"modality": "ct"}])
def test_nnunet(tmp_path, fields, choice):
    make(tmp_path, *NNUNET)
    (tmp_path / "dataset.json").write_text(json.dumps(fields))
    found = find(tmp_path, **choice)
    assert found.layout == "nnunet" and not found.failed
    assert tell(found, "subject", "kind", "split") == [
        ("a", "CT", "train"),
        ("b", "CT", "train"),
        ("c", "CT", "test"),
    ]
    labels = below(tmp_path, tell(found, "labels"))
    assert labels == ["labelsTr/a.nii.gz", "labelsTr/b.nii.gz", None]
    with pytest.raises(InputError, match="holds CT and T1; choose with --select=CT"):
        layouts.find(tmp_path)


def test_nnunet_without_names_of_channels(tmp_path):
    make(tmp_path, *NNUNET)
    (tmp_path / "dataset.json").write_text("{damaged")
    found = find(tmp_path, select="0001")
    assert tell(found, "subject") == ["a", "b"]
    assert found.notes == ["dataset.json names no channels; they are called by their numbers"]
    assert found.failed[0][1].endswith("imagesTs/c: no channel 0001, as others have")


@pytest.mark.parametrize("inside", [False, True])
def test_one_folder_of_nnunet_by_itself(tmp_path, monkeypatch, inside):
    """Channels are of one subject there too; the folder is used, whatever it is for."""
    make(tmp_path, *NNUNET)
    for part, names in (("Tr", ["a", "b"]), ("Ts", ["c"])):
        folder = tmp_path / f"images{part}"
        if part == "Ts":
            make(folder, "c_0001.nii.gz")
        monkeypatch.chdir(folder)
        with pytest.raises(InputError, match="holds 0000 and 0001; choose with --select=0000"):
            layouts.find("." if inside else folder)
        found = layouts.find("." if inside else folder, select="0001")
        assert tell(found, "subject", "name", "split") == [(name, name, None) for name in names]


def test_volumes_of_nnunet_with_one_channel_are_volumes(tmp_path):
    make(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz")
    found = find(tmp_path / "imagesTr")
    assert found.layout == "volumes" and tell(found, "subject") == ["a", "b"]


def test_the_decathlon_has_no_channels(tmp_path):
    """Numbers of four digits are then those of the cases, as the label maps show."""
    make(tmp_path, "imagesTr/liver_0001.nii.gz", "imagesTr/liver_0002.nii.gz")
    make(tmp_path, "labelsTr/liver_0001.nii.gz", "labelsTr/liver_0002.nii.gz", "imagesTs/x_9.nii")
    assert tell(find(tmp_path), "subject") == ["liver_0001", "liver_0002", "x_9"]


# --------------------------------------------------------------------------------------------------
# BIDS
# --------------------------------------------------------------------------------------------------


def bids(root):
    make(root, "dataset_description.json", "participants.tsv", "derivatives/x/sub-01/anat/a.nii")
    for name in ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz"):
        make(root, name, name.replace(".nii.gz", ".json"))
    make(root, "sub-01/func/sub-01_task-rest_bold.nii.gz", "sub-01/anat/sub-01_label-GM_mask.nii")
    for session in "12":
        make(root, f"sub-02/ses-{session}/anat/sub-02_ses-{session}_T1w.nii.gz")
    make(root, "sub-03/anat/sub-03_acq-a_run-1_T1w.nii", "sub-03/anat/sub-03_acq-a_run-2_T1w.nii")
    make(root, "sub-04/anat/sub-04_T2w.nii.gz", "sourcedata/sub-05/anat/sub-05_T1w.nii.gz")
    return root


def test_bids(tmp_path):
    found = find(bids(tmp_path), select="T1w")
    assert found.layout == "bids"
    assert tell(found, "name", "subject") == [
        ("sub-01", "sub-01"),
        ("sub-02_ses-1", "sub-02"),
        ("sub-02_ses-2", "sub-02"),
        ("sub-03_run-1", "sub-03"),
        ("sub-03_run-2", "sub-03"),
    ]
    assert found.failed == [
        (tmp_path / "sub-04", f"{tmp_path}/sub-04: no T1w, as others have"),
    ]


def test_bids_by_entities(tmp_path):
    assert tell(find(bids(tmp_path), select="acq-a_run-2_T1w"), "name") == ["sub-03"]
    assert tell(find(tmp_path, select="task-rest"), "kind") == ["bold"]
    with pytest.raises(InputError, match="no 'acq-b_T1w' to select; it holds T1w, T2w, bold and"):
        layouts.find(tmp_path, select="acq-b_T1w")
    with pytest.raises(InputError, match="holds T1w and T2w; choose with --select=T1w"):
        layouts.find(tmp_path, modality="mr")


def test_bids_derivatives(tmp_path):
    """Files made of one image are kinds of their own."""
    for made in ("desc-preproc", "space-MNI_desc-preproc"):
        make(tmp_path, f"sub-01/anat/sub-01_{made}_T1w.nii.gz")
    with pytest.raises(InputError, match="holds desc-preproc_T1w and space-MNI_desc-preproc_T1w"):
        layouts.find(tmp_path, select="T1w")
    [scan] = find(tmp_path, select="desc-preproc_T1w").scans
    assert (scan.name, scan.kind) == ("sub-01", "desc-preproc_T1w")
    make(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    assert tell(find(tmp_path, select="T1w"), "kind") == ["T1w"]


def test_one_subject_of_bids(tmp_path):
    assert tell(find(bids(tmp_path) / "sub-02", modality="mr"), "split", "name") == [
        (None, "sub-02_ses-1"),
        (None, "sub-02_ses-2"),
    ]


def test_bids_label_maps_and_masks_belong_to_their_images(tmp_path):
    """By all entities; of two none is meant, and a brain's is no mask of the body."""
    names = ("T1w", "dseg", "label-lesion_mask", "desc-brain_mask", "mask", "space-MNI_mask")
    make(tmp_path, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in names))
    make(tmp_path, *(f"sub-02/anat/sub-02_{name}.nii.gz" for name in names[:4]))
    make(tmp_path, "sub-02/anat/sub-02_desc-other_dseg.nii.gz")
    found = find(tmp_path, modality="mr")
    assert [below(tmp_path / "sub-01/anat", pair) for pair in tell(found, "labels", "mask")] == [
        ["sub-01_dseg.nii.gz", "sub-01_mask.nii.gz"],
        [None, None],
    ]
    maps = pairs.by_name(tmp_path / "sub-01", "labels")
    assert [scan.path.name for scan in maps.values()] == ["sub-01_dseg.nii.gz"]


# --------------------------------------------------------------------------------------------------
# Subjects
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("year", "places", "suffix"),
    [
        (2023, ("Task1/brain/1BA001", "Task1/brain/1BA005", "Task1/pelvis/1PA001"), ".nii.gz"),
        (2025, ("Task1/AB/1ABA001", "Task1/AB/1ABA002", "Task1/TH/1THA001"), ".mha"),
    ],
)
def test_synthrad(tmp_path, year, places, suffix):
    for place in places:
        make(tmp_path, *(f"{place}/{name}{suffix}" for name in ("ct", "mr", "mask")))
    make(tmp_path, "Task1/brain/overview/1BA001.png", "Task1/AB/overviews/1ABA001.png")
    found = find(tmp_path, modality="mr")
    assert found.layout == "synthrad" and not found.failed
    assert (
        tell(found, "stem") == tell(found, "subject") == [place.split("/")[2] for place in places]
    )
    assert {scan.path.name for scan in found.scans} == {f"mr{suffix}"}
    assert {scan.mask.name for scan in found.scans} == {f"mask{suffix}"}
    with pytest.raises(InputError, match=f"^{tmp_path}: holds ct and mr; choose with --select=ct$"):
        layouts.find(tmp_path)
    # One patient is found alike.
    assert tell(find(tmp_path / places[0], modality="ct"), "subject") == [places[0].split("/")[2]]


def test_cone_beam_ct_is_not_taken_for_ct(tmp_path):
    make(tmp_path, *(f"2BA00{n}/{name}.nii.gz" for n in (1, 2) for name in ("ct", "cbct", "mask")))
    for options, name in (({"modality": "ct"}, "ct"), ({"select": "cbct"}, "cbct")):
        assert tell(find(tmp_path, **options), "kind") == [name] * 2
    with pytest.raises(InputError, match="holds cbct and ct, where the preset is for mr"):
        layouts.find(tmp_path, modality="mr")


def test_a_subject_without_the_kind_is_named(tmp_path):
    make(tmp_path, *(f"p{n}/{name}.mha" for n in (1, 2, 3) for name in ("ct", "mr")), "p4/ct.mha")
    found = find(tmp_path, select="mr")
    assert tell(found, "subject") == ["p1", "p2", "p3"]
    assert found.failed == [(tmp_path / "p4", f"{tmp_path}/p4: no mr, as others have")]


def test_kinds_are_what_names_add_to_the_subjects(tmp_path):
    for subject in ("BraTS-001", "BraTS-002"):
        kinds = ("t1", "T2", "seg") if subject == "BraTS-001" else ("t1", "t2", "seg")
        make(tmp_path, *(f"{subject}/{subject}-{kind}.nii.gz" for kind in kinds))
    found = find(tmp_path, select="t2")
    assert found.layout == "subjects" and tell(found, "subject") == ["BraTS-001", "BraTS-002"]
    assert [scan.labels.name for scan in found.scans] == [
        "BraTS-001-seg.nii.gz",
        "BraTS-002-seg.nii.gz",
    ]
    # All that the subject's name is part of is not its name.
    make(tmp_path / "numbers", *(f"{n}/t{n}.nii" for n in (1, 2)), "1/t2.nii", "2/t1.nii")
    assert tell(find(tmp_path / "numbers", select="t1"), "subject") == ["1", "2"]


def test_a_kind_there_twice_is_named(tmp_path):
    make(tmp_path, "p1/ct.nii", "p1/ct.mha", "p2/ct.mha", "p1/mask.nii", "p2/mask.nii")
    found = find(tmp_path)
    assert [scan.path.name for scan in found.scans] == ["ct.mha", "ct.mha"]
    assert found.failed == [
        (tmp_path / "p1/ct.nii", f"{tmp_path}/p1/ct.nii: ct.mha shows the same; keep one")
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # Visits in the names of folders, and of files.
        (
            ("p1/study1/T1.nii", "p1/study2/T1.nii", "p2/study1/T1.nii"),
            [("p1_study1", "p1"), ("p1_study2", "p1"), ("p2_study1", "p2")],
        ),
        (
            ("p1/study1_T1.nii", "p1/study2_T1.nii", "p2/baseline_T1.nii"),
            [("p1_study1", "p1"), ("p1_study2", "p1"), ("p2_baseline", "p2")],
        ),
        # Two hospitals count their patients from 1.
        (
            ("a1/001/T1.nii", "a1/002/T1.nii", "a2/001/T1.nii"),
            [("a1_001", "a1_001"), ("a1_002", "a1_002"), ("a2_001", "a2_001")],
        ),
        # The last folder is called the same for all.
        (("p1/anat/T1.nii", "p2/anat/T1.nii"), [("p1", "p1"), ("p2", "p2")]),
        # At uneven depths.
        (("x/y/p1/T1.nii", "p2/T1.nii"), [("p2", "p2"), ("p1", "p1")]),
        # One volume in each, whatever it is called.
        (("p1/head.nii", "p2/export.nii"), [("p1", "p1"), ("p2", "p2")]),
        (("p1/p1.nii", "p2/p2.nii"), [("p1", "p1"), ("p2", "p2")]),
    ],
)
def test_subjects_are_told_from_visits_and_places(tmp_path, names, expected):
    make(tmp_path, *names)
    found = find(tmp_path)
    assert (found.layout, tell(found, "name", "subject")) == ("subjects", expected)


@pytest.mark.parametrize(
    "names",
    [
        ("train_ct/a_ct.nii", "train_mr/a_mr.nii"),
        ("images/001.nii", "images/002.nii", "labels/001.nii", "labels/002.nii"),
        ("cohort1/001.nii", "cohort1/002.nii", "cohort2/001.nii", "cohort2/002.nii"),
        ("cohort1/ann.nii", "cohort1/bob.nii", "cohort2/cal.nii", "cohort2/dan.nii"),
    ],
)
def test_folders_of_many_subjects_are_no_subjects(tmp_path, names):
    make(tmp_path, *names)
    with pytest.raises(InputError, match=r"no known layout; images lie in \w+ and \w+: give one"):
        layouts.find(tmp_path)


def test_folders_that_only_look_like_kinds_make_no_subject_of_what_is_around_them(tmp_path):
    """A data folder of this and that, of which one part is called by a kind's name."""
    make(tmp_path, "nifti/sct/t1w.nii", "nifti/stroke/T1.nii", "nifti/mni/p_T1W.nii", "x/y/T1.nii")
    make(tmp_path, "nifti/sct/t2.nii", "nifti/stroke/FLAIR.nii", "nifti/mni/p_T2W.nii")
    with pytest.raises(InputError, match="no known layout; images lie in"):
        layouts.find(tmp_path)


def test_a_folder_is_one_subjects_if_the_user_says_so(tmp_path):
    make(tmp_path / "stroke", "FLAIR.nii", "T1.nii", "T2.nii")
    found = find(tmp_path / "stroke", layout="subjects", select="T1")
    assert tell(found, "subject", "kind") == [("stroke", "T1")]


# --------------------------------------------------------------------------------------------------
# DICOM
# --------------------------------------------------------------------------------------------------


def series(folder, number, patient="1", count=4, **options):
    """A series of its own, of a patient."""
    folder.mkdir(parents=True, exist_ok=True)
    options |= {"SeriesInstanceUID": f"1.2.3.{patient}.{number}", "PatientID": f"ID-{patient}"}
    return write_series(folder, voxels((6, 5, count)), **options)


def test_dicom_of_several_patients(tmp_path):
    """The first folder is the patient's; names without a suffix or with an odd one are found."""
    series(tmp_path / "p1/head/a", 1, names=["IM1", "IM2", "IM3", "IM4"])
    series(tmp_path / "p1/head/b", 2, names=[f"1.2.840.{n}" for n in range(4)])
    series(tmp_path / "p2", 1, "2", names=[f"{n}.IMA" for n in range(4)])
    make(tmp_path, "p1/README", "p2/report.pdf", "DICOMDIR")
    found = find(tmp_path)
    assert found.layout == "dicom" and not found.failed and not found.notes
    assert tell(found, "name", "subject", "stem") == [
        ("p1_series1", "p1", "p1_series1"),
        ("p1_series2", "p1", "p1_series2"),
        ("p2", "p2", "p2"),
    ]
    assert below(tmp_path, tell(found, "path")) == ["p1/head/a", "p1/head/b", "p2"]
    assert found.scans[2].read().array.shape == (6, 5, 4)


def test_dicom_directly_in_the_folder(tmp_path):
    series(tmp_path / "head", 1)
    assert tell(find(tmp_path / "head"), "subject", "kind") == [("head", "ct")]
    [scan] = find(tmp_path / "head/001.dcm").scans
    assert (scan.subject, len(scan.files)) == ("head", 1)


def test_patients_in_one_folder_are_told_apart(tmp_path):
    for patient in "21":
        names = [f"{patient}_{n}.dcm" for n in range(4)]
        series(tmp_path / "all", 1, patient, names=names)
    found = find(tmp_path / "all")
    assert sorted(tell(found, "subject")) == ["all-1", "all-2"]


def test_a_folder_around_all_patients_is_none_of_them(tmp_path):
    for patient in "12":
        series(tmp_path / f"archive/p{patient}/x", 1, patient)
    found = find(tmp_path)
    assert tell(found, "subject") == ["p1", "p2"]
    assert found.notes == ["all lies in the folder archive"]


def chaos(root, cts, mrs):
    """Patients as CHAOS lays them out, of whom none had both."""
    for kind, numbers, inner in (("CT", cts, "DICOM_anon"), ("MR", mrs, "T1DUAL/DICOM_anon")):
        for number in numbers:
            series(root / kind / str(number) / inner, 1, f"{ord(kind[0])}.{number}", Modality=kind)
    return root


@pytest.mark.parametrize(
    ("cts", "mrs"), [([5], []), ([1, 2, 5], [1]), ([1, 2, 3, 5], [1, 2]), ([5], [1]), ([5], [7, 9])]
)
def test_patients_two_folders_deep_keep_their_names(tmp_path, cts, mrs):
    """Whoever lies beside them, and whether the folder of one modality is given or that of both."""
    root = chaos(tmp_path, cts, mrs)
    for source in (root, root / "CT"):
        assert tell(find(source, modality="ct"), "subject", "name") == [
            (str(number), str(number)) for number in cts
        ]
    if mrs:
        found = find(root, modality="mr")
        assert tell(found, "subject") == [str(number) for number in mrs]
        both = set(cts) & set(mrs)
        assert sum(
            "name different patients; they count as one" in note for note in found.notes
        ) == (len(both))


def test_patients_of_several_sites(tmp_path):
    """What is around several patients parts those of one name, and before there are any such."""
    for site, numbers in (("siteA", "12"), ("siteB", "13")):
        for number in numbers:
            series(tmp_path / site / f"00{number}" / "x", 1, f"{ord(site[-1])}.{number}")
    expected = ["siteA_001", "siteA_002", "siteB_001", "siteB_003"]
    assert tell(find(tmp_path), "subject") == expected
    series(tmp_path / "siteB/000/x", 1, "9")
    assert tell(find(tmp_path), "subject") == [*expected[:2], "siteB_000", *expected[2:]]


def test_a_patient_whose_folders_say_what_they_show(tmp_path):
    """These are not the patient's name."""
    series(tmp_path / "ann/ct", 1)
    series(tmp_path / "ann/mr", 2, Modality="MR")
    for kind in ("ct", "mr"):
        assert tell(find(tmp_path / "ann", modality=kind), "subject") == ["ann"]
        assert tell(find(tmp_path, modality=kind), "subject") == ["ann"]
    for letter, patient in (("a", "3"), ("b", "4")):
        series(tmp_path / "letters" / letter / "x", 1, patient)
    assert tell(find(tmp_path / "letters"), "subject") == ["a", "b"]


def test_a_person_mixed_with_others_in_two_folders_has_one_number(tmp_path):
    for number, (kind, patients) in enumerate({"CT": "12", "MR": "23"}.items(), start=1):
        for patient in patients:
            names = [f"{patient}_{slice}.dcm" for slice in range(4)]
            series(tmp_path / "in" / kind, number, patient, names=names, Modality=kind)
    found = find(tmp_path / "in", select="*")
    whose = defaultdict(set)
    for scan in found.scans:
        whose[scan.files[0].name[0]].add(scan.subject)
    assert all(len(names) == 1 for names in whose.values()) and len(whose) == 3
    assert len(set.union(*whose.values())) == 3
    assert found.notes[-1].startswith("several patients lie in CT and MR: they are numbered")


def test_one_patient_in_two_folders_is_noted(tmp_path):
    series(tmp_path / "p1", 1)
    series(tmp_path / "p2", 2)
    found = find(tmp_path)
    assert tell(found, "subject") == ["p1", "p2"]
    assert "folders p1 and p2 name the same patient" in found.notes[0]


def test_overviews_are_left_out(tmp_path):
    """Unless there is nothing else."""
    series(tmp_path / "p1/scout", 1, count=2)
    assert len(find(tmp_path).scans[0].files) == 2
    series(tmp_path / "p1/head", 2)
    found = find(tmp_path)
    assert tell(found, "name", "path") == [("p1", tmp_path / "p1/head")]
    assert found.notes == ["1 localizers or series of fewer than 3 slices left out"]


def test_modalities_of_dicom_are_kinds(tmp_path):
    series(tmp_path / "p1/ct", 1)
    series(tmp_path / "p1/mr", 2, Modality="MR")
    assert tell(find(tmp_path, modality="mr"), "path", "kind") == [(tmp_path / "p1/mr", "mr")]
    with pytest.raises(InputError, match="holds ct and mr"):
        layouts.find(tmp_path)


def test_nothing_of_a_header_is_told(tmp_path):
    """Neither in names, nor in notes, nor in messages."""
    for patient in "12":
        series(tmp_path / "all", 1, patient, names=[f"{patient}{n}.dcm" for n in range(4)])
    (tmp_path / "all/bad.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"Doe^Jane" * 10)
    save(header(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"), tmp_path / "all/report.dcm")
    found = find(tmp_path)
    told = repr(found)
    for secret in (*SECRETS.values(), "ID-1", "1.2.3", "Doe"):
        assert secret not in told


# --------------------------------------------------------------------------------------------------
# CSV
# --------------------------------------------------------------------------------------------------


def test_a_table_says_what_is_whose(tmp_path):
    make(tmp_path, "x/1.png", "x/2.png", "x/3.png", "v.nii", "w.nii", "l.nii", "m.nii")
    path = table(
        tmp_path / "list.csv",
        "File,Subject,Slice,split,labels,mask,age",
        "x/1.png,ann,2,train,,,50",
        "x/2.png,ann,1,train,,,50",
        "x/3.png,bob,,test,,,",
        "v.nii,cal,,val,l.nii,m.nii,",
        "w.nii,dan,,val,,,",
        "",
    )
    for options in ({"source": path}, {"source": tmp_path, "layout": str(path)}):
        found = find(**options)
        assert found.layout == "csv" and not found.failed
        assert sorted(tell(found, "subject", "split")) == [
            ("ann", "train"),
            ("bob", "test"),
            ("cal", "val"),
            ("dan", "val"),
        ]
        scans = {scan.subject: scan for scan in found.scans}
        assert below(tmp_path, scans["ann"].files) == ["x/2.png", "x/1.png"]
        assert below(tmp_path, (scans["cal"].labels, scans["cal"].mask)) == ["l.nii", "m.nii"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_of_a_spreadsheet_is_read(tmp_path, separator):
    make(tmp_path, "a.nii")
    lines = (separator.join(line) for line in (("\ufefffile", "subject"), ("a.nii", "Bö,b")))
    path = table(tmp_path / "list.csv", *lines)
    assert tell(find(path), "subject") == ["Bö,b"]


def test_a_table_has_kinds_and_volumes(tmp_path):
    names = ("a.nii", "b.nii", "c.nii", "d.nii")
    make(tmp_path, *names)
    lines = ("a.nii,p,1,ct", "b.nii,p,2,ct", "c.nii,q,,ct", "d.nii,p,,mr")
    path = table(tmp_path / "list.csv", "file,subject,volume,kind", *lines)
    assert tell(find(path, modality="ct"), "name") == ["p_1", "p_2", "q"]
    assert tell(find(path, select="MR"), "name", "kind") == [("p", "mr")]
    # Without a number, volumes of one subject are counted.
    path = table(tmp_path / "list.csv", "file,subject", "a.nii,p", "b.nii,p")
    assert tell(find(path), "name", "subject") == [("p_1", "p"), ("p_2", "p")]


def test_a_table_names_a_file_of_several_volumes(tmp_path):
    places = [(0.0, 0, 3 * k) for k in range(4)] + [(0.0, 0, 3 * k) for k in range(4)]
    dataset = enhanced(voxels((6, 5, 8)), places)
    for k, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        echo = Dataset()
        echo.EffectiveEchoTime = 10.0 * (1 + k // 4)
        group.MREchoSequence = [echo]
    save(dataset, tmp_path / "both.dcm")
    write_series(tmp_path / "x", voxels((6, 5, 1)))
    lines = ("both.dcm,ann", "x,bob")
    found = find(table(tmp_path / "list.csv", "file,subject", *lines))
    assert tell(found, "name", "frames") == [
        ("ann_1", (0, 1, 2, 3)),
        ("ann_2", (4, 5, 6, 7)),
        ("bob", None),
    ]
    assert [scan.read().array.size for scan in found.scans] == [120, 120, 30]


def test_a_table_names_folders_of_dicom(tmp_path):
    series(tmp_path / "x", 1)
    make(tmp_path, "empty/README")
    path = table(tmp_path / "list.csv", "file,subject", "x,ann", "empty,bob")
    found = find(path)
    assert tell(found, "subject", "path") == [("ann", tmp_path / "x")]
    assert found.failed[0][1].startswith(f"{path}: line 3: no DICOM images")
    files = series(tmp_path / "y", 1)
    lines = [f"{file.relative_to(tmp_path)},ann" for file in files]
    [scan] = find(table(tmp_path / "list.csv", "file,subject", *lines)).scans
    assert len(scan.files) == 4


def test_lines_that_cannot_be_used_are_named(tmp_path):
    make(tmp_path, "1.png", "2.png")
    lines = ("1.png,a,1", "2.png,a,1", "3.png,a,2", "1.png,b,1")
    found = find(table(tmp_path / "list.csv", "file,subject,slice", *lines))
    assert len(found.scans) == 1
    assert sorted(re.search(r"line \d: .*", reason)[0] for _, reason in found.failed) == [
        "line 3: the same slice as 1.png; keep one",
        f"line 4: no file {tmp_path}/3.png",
        "line 5: the same file as in line 2",
    ]


@pytest.mark.parametrize("column", ["file", "labels", "mask"])
def test_a_pipe_in_a_table_is_not_waited_for(tmp_path, column):
    """Nor is a device read that has no end."""
    make(tmp_path, "a.nii")
    os.mkfifo(tmp_path / "pipe.nii")
    for name in ("pipe.nii", "/dev/zero"):
        fields = {"file": "a.nii", "labels": "", "mask": ""} | {column: name}
        line = ",".join([*fields.values(), "p"])
        path = table(tmp_path / "list.csv", "file,labels,mask,subject", line, "a.nii,,,q")
        found = find(path)
        assert "q" in tell(found, "subject") or column != "file"
        if column == "file":
            assert found.failed[0][1].endswith(
                f"/{name.lstrip('/')} is neither a file nor a folder"
            )
        else:
            with pytest.raises(InputError, match="no regular file"):
                io.read(found.scans[0].labels or found.scans[0].mask, labels=True)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="no regular file"):
        layouts.find(tmp_path, layout=str(tmp_path / "pipe.csv"))


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "..", ".", "/a.png"])
def test_contourdiffs_table_stays_in_its_folder(tmp_path, name):
    make(tmp_path, "a.png", "images/b.png", "images/x/c.png")
    path = table(tmp_path / "df_meta.csv", "image_name,volume", "b.png,p", f"{name},q")
    with pytest.raises(InputError, match=f"^{path}: line 3: .* is no picture of images$"):
        layouts.find(tmp_path)
    table(tmp_path / "df_meta.csv", "image_name,volume", "x/../b.png,p", "x/c.png,q")
    assert tell(find(tmp_path), "subject") == ["p", "q"]


# --------------------------------------------------------------------------------------------------
# Any folder
# --------------------------------------------------------------------------------------------------


def test_a_folder_in_a_folder_is_entered(tmp_path):
    make(tmp_path, "archive/data/a.nii", "archive/data/b.nii", "__MACOSX/._a.nii", "README.txt")
    found = find(tmp_path)
    assert (found.layout, tell(found, "subject")) == ("volumes", ["a", "b"])
    assert found.notes == ["all lies in the folder archive", "all lies in the folder data"]
    assert find(tmp_path, layout="volumes").scans == found.scans


def test_a_lone_subject_is_not_an_archive(tmp_path):
    make(tmp_path, "p1/study1_T1.nii", "p1/study2_T1.nii", "p1/study1_T2.nii")
    assert tell(find(tmp_path, select="T1"), "subject") == ["p1", "p1"]


def test_links_in_a_circle_end(tmp_path):
    make(tmp_path, "p1/ct.nii", "p1/mr.nii", "p2/ct.nii", "p2/mr.nii")
    (tmp_path / "p1/up").symlink_to(tmp_path)
    (tmp_path / "p2/other").symlink_to(tmp_path / "p1")
    (tmp_path / "itself").symlink_to("itself")
    found = find(tmp_path, modality="ct")
    assert tell(found, "subject") == ["p1", "p2"]


def test_linked_folders_and_files_are_followed(tmp_path):
    """Large data sets are often links to where the data are; what is gone is missed."""
    make(tmp_path / "there", "p1/ct.nii", "p1/mr.nii", "p2/ct.nii", "p2/mr.nii")
    here = make(tmp_path / "here", "x.txt")
    for name in ("p1", "p2"):
        (here / name).symlink_to(tmp_path / "there" / name)
    assert tell(find(here, modality="mr"), "subject") == ["p1", "p2"]
    flat = make(tmp_path / "flat", "a.nii")
    (flat / "b.nii").symlink_to(tmp_path / "gone.nii")
    found = find(flat)
    assert tell(found, "subject") == ["a", "b"]
    with pytest.raises(InputError, match=r"b\.nii: no such file"):
        found.scans[1].read()


def forbid(monkeypatch, *names):
    """Permission bits mean nothing to root, so the refusal itself is simulated."""
    listing = os.scandir

    def scandir(path):
        if os.path.basename(path) in names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listing(path)

    monkeypatch.setattr(folders.os, "scandir", scandir)


def test_forbidden_folders_are_named(tmp_path, monkeypatch):
    make(tmp_path, *(f"p{n}/{name}.nii" for n in (1, 2, 3) for name in ("ct", "mr")))
    forbid(monkeypatch, "p3")
    found = find(tmp_path, modality="ct")
    assert tell(found, "subject") == ["p1", "p2"]
    assert found.failed == [
        (tmp_path / "p3", f"{tmp_path}/p3: cannot be listed: Permission denied")
    ]
    forbid(monkeypatch, "p1", "p2", "p3")
    with pytest.raises(InputError, match="p1: cannot be listed: Permission denied"):
        layouts.find(tmp_path)
    with pytest.raises(InputError, match="p1: cannot be listed: Permission denied"):
        layouts.find(tmp_path / "p1")


def test_names_that_are_no_utf8_are_taken(tmp_path):
    name = os.fsdecode(b"K\xf6hler")
    make(tmp_path / "volumes", f"{name}.nii", "b.nii")
    make(tmp_path / "slices", f"{name}_1.png")
    make(tmp_path / "subjects", *(f"{p}/{k}.nii" for p in (name, "p2") for k in ("ct", "mr")))
    series(tmp_path / "dicom" / name, 1)
    for layout in ("volumes", "slices", "subjects", "dicom"):
        found = find(tmp_path / layout, modality="ct")
        assert "K%f6hler" in tell(found, "subject")
        assert all(note.encode() for note in found.notes)


def test_everything_is_found_without_a_choice_for_a_look_at_it(tmp_path):
    make(tmp_path, *(f"p{n}/{name}.nii" for n in (1, 2) for name in ("ct", "mr")))
    found = find(tmp_path, select="*")
    assert sorted(tell(found, "stem")) == ["p1_ct", "p1_mr", "p2_ct", "p2_mr"]


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_a_named_layout_is_demanded(tmp_path, layout):
    """What it lacks is said; another that would fit is not taken in its place."""
    make(tmp_path, "notes.txt")
    with pytest.raises(InputError, match=f"^{tmp_path}: .*{layout}") as caught:
        layouts.find(tmp_path, layout=layout)
    assert "\n" not in str(caught.value)
    make(tmp_path, "a.nii", "b.nii")
    if layout not in ("volumes", "subjects"):
        with pytest.raises(InputError, match=layout):
            layouts.find(tmp_path, layout=layout)
    if layout != "volumes":
        with pytest.raises(InputError, match=layout):
            layouts.find(tmp_path / "a.nii", layout=layout)


def test_a_named_layout_settles_a_mixed_folder(tmp_path):
    make(tmp_path, "a.nii", "b_1.png")
    series(tmp_path, 1)
    with pytest.raises(
        InputError, match=r"holds 1 volumes, 1 pictures and 4 DICOM files side"
    ) as e:
        layouts.find(tmp_path)
    for layout in ("volumes", "slices", "dicom"):
        assert f"--layout={layout}" in str(e.value)
        assert find(tmp_path, layout=layout).layout == layout


# --------------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------------


def bad_table(*lines):
    def write(root):
        make(root, "a.png", "b.png")
        return {"source": table(root / "list.csv", *lines)}

    return write


def bad_contourdiff(*lines):
    return lambda root: {"source": contourdiff(root, *lines)}


def bad_folder(*names, **options):
    return lambda root: {"source": make(root, *names), **options}


def fifo(root):
    os.mkfifo(root / "pipe.nii")
    return {"source": root / "pipe.nii"}


def damaged_pictures(root):
    for name in ("a_1.png", "a_2.png"):
        (root / name).write_bytes(b"damaged")
    return {"source": root}


def no_table(root):
    (root / "list.csv").write_bytes(b"\xff\xfe\0")
    return {"source": root / "list.csv"}


def reports_only(root):
    save(header(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"), root / "report.dcm")
    return {"source": root}


BAD = {
    "nothing there": (lambda root: {"source": root / "none"}, "no such file or folder"),
    "an empty folder": (bad_folder(), r"no \.nii\.gz, \.nii, .*DICOM file in this folder"),
    "no images": (bad_folder("notes.txt", "x/y.json"), "no .* file in this folder"),
    "an unknown type": (
        lambda root: {"source": make(root, "a.txt") / "a.txt"},
        "unsupported file type; known are DICOM and",
    ),
    "a pipe": (fifo, "neither a file nor a folder"),
    "an unknown layout": (bad_folder(layout="nifti"), "--layout=nifti: known are auto, csv, ab"),
    "no such table": (
        bad_folder(layout="none.csv"),
        "none.csv: cannot be read as a table: No such",
    ),
    "a folder as a table": (bad_folder("x.csv/a.nii", layout="csv"), "for a CSV file"),
    "folders of this and that": (
        bad_folder("p1/a_t1.nii", "p1/b_ct.nii", "p2/x.nii"),
        "no known layout",
    ),
    "an unknown kind": (
        bad_folder("p/ct.nii", "p/mr.nii", select="t1"),
        "no 't1' to select; it holds ct and mr",
    ),
    "an unknown kind of volumes": (
        bad_folder("a_ct.nii", "b.nii", select="mr"),
        "no 'mr' to select; it holds ct",
    ),
    "a choice without kinds": (
        bad_folder("a_1.png", select="mr"),
        "no 'mr' to select; it holds nothing that its names tell",
    ),
    "an unknown domain": (
        bad_folder("trainA/a.nii", "trainB/b.nii", select="C"),
        "no 'C' to select; it holds A and B",
    ),
    "empty domains": (bad_folder("trainA/x.txt"), "trainA: no volumes or pictures"),
    "an empty nnU-Net": (bad_folder("imagesTr/x.txt"), "no images in imagesTr or imagesTs"),
    "only label maps of subjects": (
        bad_folder("p1/seg.nii", "p2/seg.nii", layout="subjects"),
        "only label maps or masks",
    ),
    "only damaged pictures": (damaged_pictures, r"nothing can be used: .*a_1\.png: not a PNG"),
    "only DICOM without images": (reports_only, "no images in its DICOM files"),
    "an empty table": (bad_table(""), "no column 'file'"),
    "a table without a subject": (bad_table("file,name", "a.png,b"), "no column 'subject'"),
    "a table without lines": (bad_table("file,subject"), "no line below"),
    "a line without a subject": (bad_table("file,subject", "a.png,"), "line 2: no subject"),
    "a short line": (bad_table("file,subject", "a.png"), "line 2: no subject"),
    "an unknown split": (
        bad_table("file,subject,split", "a.png,a,dev"),
        "line 2: unknown split 'dev'; known: train, val, test",
    ),
    "a subject in two splits": (
        bad_table("file,subject,split", "a.png,a,train", "b.png,a,test"),
        "line 3: the subject 'a' is in another split above",
    ),
    "a slice that is no number": (
        bad_table("file,subject,slice", "a.png,a,nan"),
        "line 2: the slice 'nan' is no number",
    ),
    "two label maps of a volume": (
        bad_table("file,subject,labels", "a.png,a,l.nii", "b.png,a,m.nii"),
        "line 3: other labels or another mask than in line 2",
    ),
    "only missing files": (bad_table("file,subject", "c.png,a"), "nothing can be used: .*line 2"),
    "a table that is none": (no_table, "cannot be read as a table"),
    "ContourDiff without names": (bad_contourdiff("name", "img_1.png"), "no column 'image_name'"),
    "ContourDiff without a volume": (
        bad_contourdiff("image_name,volume", "img_1.png,"),
        "df_meta.csv: line 2: an empty field",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(tmp_path, case):
    prepare, match = BAD[case]
    options = prepare(tmp_path)
    with pytest.raises(InputError, match=match) as caught:
        layouts.find(**options)
    assert "\n" not in str(caught.value)


def test_any_tree_of_names_is_found_or_refused(tmp_path, rng):
    """Whatever lies where: scans, or an InputError."""
    words = [
        "ct",
        "mr_1",
        "mask",
        "trainA",
        "imagesTr",
        "sub-01",
        "sub-01_T1w",
        "images",
        "p1",
        "0001",
    ]
    ends = [".nii.gz", ".mha", ".png", ".npy", ".dcm", "", ".json", ".csv"]
    found = refused = 0
    for trial in range(150):
        root = tmp_path / str(trial)
        root.mkdir()
        for _ in range(rng.integers(1, 7)):
            parts = [str(rng.choice(words)) for _ in range(rng.integers(0, 3))]
            name = str(rng.choice(words)) + str(rng.choice(ends))
            if not any((root.joinpath(*parts[:n])).is_file() for n in range(len(parts) + 1)):
                folder = root.joinpath(*parts)
                if not (folder / name).exists():
                    make(folder, name)
        if (root / "images").is_dir():
            (root / "df_meta.csv").touch()
        for options in ({}, {"select": "*"}, {"modality": "ct"}):
            try:
                found += bool(layouts.find(root, **options).scans)
            except InputError as error:
                refused += "\n" not in str(error)
    assert found > 50 and refused > 50 and found + refused == 450


# --------------------------------------------------------------------------------------------------
# Real data
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "subjects"),
    [
        (
            "harvard_mr_extra",
            ["spect_10", "spect_11", "spect_15", "spect_18", "spect_29", "spect_3", "spect_40"],
        ),
        ("harvard_ct", ["16", "2", "20", "21", "28", "32"]),
        ("synthrad_ct_brain", ["1BA012", "1BA058", "1BB002", "1BB007", "1BC039"]),
    ],
)
def test_real_pictures(data_root, folder, subjects):
    found = find(data_root / "png2d" / folder)
    assert (found.layout, tell(found, "subject")) == ("slices", subjects)
    assert not found.failed
    count = len(list((data_root / "png2d" / folder).glob("*.png")))
    assert sum(len(scan.files) for scan in found.scans) == count


def test_real_volumes(data_root):
    found = find(data_root / "nifti/open_ms/longitudinal_raw", select="T1W")
    assert (found.layout, tell(found, "name", "subject")) == (
        "subjects",
        [("patient01_study1", "patient01"), ("patient01_study2", "patient01")],
    )
    assert tell(find(data_root / "nifti/open_ms/mni", select="T2"), "subject") == ["patient07"]


def test_real_dicom(data_root):
    [scan] = find(data_root / "dicom/ge_head_ct", modality="ct").scans
    assert (scan.subject, len(scan.files), scan.kind) == ("ge_head_ct", 28, "ct")
    assert io.shape_and_affine(scan.files)[0] == scan.geometry()[0]
