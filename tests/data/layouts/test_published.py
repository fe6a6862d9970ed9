# SPDX-License-Identifier: Apache-2.0
"""Published data sets: their names, written down from what their authors say, with made-up people.

In every tree of names one person has one subject, whatever is selected and from wherever in the
tree, and two people have two.
"""

import re
from collections import defaultdict

import pytest
from dicom_series import voxels, write_series

from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts import pairs

# By the data set: what of a file's path is its subject, and the patterns of its files, see `names`.
TREES = {
    "BraTS 2021": (
        r"(BraTS2021_\d{5})",
        ["BraTS2021_0000{0|2|3}/BraTS2021_0000*_{flair|t1|t1ce|t2|seg}.nii.gz"],
    ),
    "BraTS 2023": (
        r"(BraTS-GLI-\d{5})",
        [
            "BraTS-GLI-0000{0|2|3}-000/BraTS-GLI-0000*-000-{t1c|t1n|t2f|t2w|seg}.nii.gz",
            "BraTS-GLI-00002-001/BraTS-GLI-00002-001-{t1c|t1n|t2f|t2w|seg}.nii.gz",
        ],
    ),
    "BraTS 2023, in one folder": (
        r"(BraTS-MET-\d{5})",
        ["BraTS-MET-0000{0|2|3}-00{0|1}-{t1c|t1n|t2f|t2w|seg}.nii.gz"],
    ),
    "IXI": (
        r"(IXI\d{3}-[A-Za-z]+-\d{4})",
        [
            "{T1|T2|PD|MRA}/IXI002-Guys-0828-@.nii.gz",
            "{T1|T2|PD|MRA}/IXI013-HH-1212-@.nii.gz",
            "{T1|T2|PD|MRA}/IXI015-HH-1258-@.nii.gz",
        ],
    ),
    "IXI, in one folder": (
        r"(IXI\d{3}-[A-Za-z]+-\d{4})",
        ["IXI0{02|13|15}-Guys-0828-{T1|T2|PD}.nii.gz"],
    ),
    "OASIS-1": (
        r"(OAS1_\d{4})",
        [
            "OAS1_000{1|2|3}_MR1_mpr-1_anon.nii.gz",
            "OAS1_0002_MR2_mpr_n4_anon_111_t88_gfc.nii.gz",
        ],
    ),
    "OASIS-2": (r"(OAS2_\d{4})", ["OAS2_000{1|2}_MR{1|2}/RAW/mpr-1.nii.gz"]),
    "OASIS-3": (
        r"(OAS3\d{4})",
        [
            "OAS3000{1|2}_MR_d0129/anat{2|3}/NIFTI/sub-OAS3000*_ses-d0129_run-01_{T1w|T2w}.nii.gz",
            "OAS30001_MR_d0757/anat2/NIFTI/sub-OAS30001_ses-d0757_T1w.nii.gz",
        ],
    ),
    "ADNI": (
        r"(\d{3}_S_\d{4})",
        [
            "ADNI/002_S_0295/MP-RAGE/2006-04-18_08_20_30.0/I13722/"
            "ADNI_002_S_0295_MR_MP-RAGE__br_raw_20060418193713091_1_S13408_I13722.nii",
            "ADNI/002_S_0295/MP-RAGE/2006-11-02_08_16_44.0/I28560/"
            "ADNI_002_S_0295_MR_MP-RAGE__br_raw_20061102164429837_1_S21856_I28560.nii",
            "ADNI/011_S_0002/MP-RAGE/2005-08-26_09_36_07.0/I7291/"
            "ADNI_011_S_0002_MR_MP-RAGE__br_raw_20060601213243109_7_S9107_I7291.nii",
        ],
    ),
    "ADNI, in one folder": (
        r"(\d{3}_S_\d{4})",
        [
            "ADNI_002_S_0295_MR_MP-RAGE__br_raw_2006041819371309{1|2}_1_S13408_I13722.nii",
            "ADNI_002_S_0295_MR_MPR__GradWarp__B1_Correction_Br_20070217_S13408_I40966.nii",
            "ADNI_011_S_0002_MR_MP-RAGE__br_raw_20060601213243109_7_S9107_I7291.nii",
        ],
    ),
    "SynthRAD2023": (
        r"([12][BP][ABC]\d{3})",
        [
            "Task1/brain/1BA00{1|5}/{ct|mr|mask}.nii.gz",
            "Task1/pelvis/1PA00{1|5}/{ct|mr|mask}.nii.gz",
            "Task1/brain/overview/1BA00{1|5}_train.png",
        ],
    ),
    "SynthRAD2025": (
        r"(\d(?:AB|HN|TH)[A-E]\d{3})",
        ["Task2/AB/2ABA00{1|2}/{ct|cbct|mask}.mha", "Task2/HN/2HNA00{1|2}/{ct|cbct|mask}.mha"],
    ),
    "KiTS": (
        r"(case_\d{5})",
        [
            "case_0000{0|1|2}/{imaging|segmentation}.nii.gz",
            "case_0000{0|1|2}/instances/kidney_instance-{1|2}_annotation-{1|2}.nii.gz",
            "case_0000{0|2}/instances/tumor_instance-1_annotation-{1|2}.nii.gz",
        ],
    ),
    "MM-WHS, CT": (r"(ct_train_\d{4})", ["ct_train_100{1|2|3}_{image|label}.nii.gz"]),
    "MM-WHS, MR": (r"(mr_train_\d{4})", ["mr_train_100{1|2|3}_{image|label}.nii.gz"]),
    "nnU-Net": (
        r"(BRATS_\d{3})",
        [
            "imagesTr/BRATS_00{1|2}_000{0|1|2|3}.nii.gz",
            "imagesTs/BRATS_003_000{0|1|2|3}.nii.gz",
            "labelsTr/BRATS_00{1|2}.nii.gz",
        ],
    ),
    "AMOS": (
        r"(amos_\d{4})",
        [
            "imagesTr/amos_000{1|4}.nii.gz",
            "labelsTr/amos_000{1|4}.nii.gz",
            "imagesTs/amos_060{0|1}.nii.gz",
        ],
    ),
    "the test images of AMOS": (r"(amos_\d{4})", ["imagesTs/amos_000{1|2|4}.nii.gz"]),
    "BIDS": (
        r"(sub-[A-Za-z0-9]+)",
        [
            "sub-0{1|2}/ses-{1|2}/anat/sub-0*_ses-#_{T1w|T2w|FLAIR}.nii.gz",
            "sub-03/anat/sub-03_acq-mprage_run-{1|2}_T1w.nii.gz",
        ],
    ),
    "BIDS, in one folder": (
        r"(sub-[A-Za-z0-9]+)",
        ["sub-0{1|2}_ses-{1|2}_acq-mprage_{T1w|T2w}.nii.gz", "sub-03_T1w.nii.gz"],
    ),
    "HCP": (
        r"(\d{6})",
        [
            "10{0307|0408}/T1w/{T1w|T2w}_acpc_dc_restore{|_brain}.nii.gz",
            "10{0307|0408}/T1w/{aparc+aseg|ribbon}.nii.gz",
            "10{0307|0408}/MNINonLinear/{T1w|T2w}_restore.nii.gz",
        ],
    ),
    "HCP, unprocessed": (
        r"(\d{6})",
        [
            "10{0307|0408}/unprocessed/3T/T1w_MPR1/10*_3T_T1w_MPR1.nii.gz",
            "10{0307|0408}/unprocessed/3T/T2w_SPC1/10*_3T_T2w_SPC1.nii.gz",
        ],
    ),
}


def names(pattern, chosen=()):
    """All names of a pattern, {a|b} being one of these; * and @ repeat the first, # the second."""
    match = re.search(r"\{([^}]*)\}", pattern)
    if match is None:
        for sign, at in (("*", 0), ("@", 0), ("#", 1)):
            pattern = pattern.replace(sign, chosen[at] if at < len(chosen) else sign)
        return [pattern]
    return [
        name
        for choice in match[1].split("|")
        for name in names(
            pattern[: match.start()] + choice + pattern[match.end() :], (*chosen, choice)
        )
    ]


def plant(root, patterns):
    for pattern in patterns:
        for name in names(pattern):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
    return root


def sources(root):
    """What of a tree can be given: the folder, and where it has several layouts, those inside."""
    try:
        layouts.find(root, select="*")
    except layouts.SeveralLayouts as several:
        return [inner for folder in several.folders for inner in sources(folder)]
    return [root]


@pytest.mark.parametrize("dataset", TREES)
def test_one_person_is_one_subject(tmp_path, dataset):
    whose, patterns = TREES[dataset]
    plant(tmp_path, patterns)
    subjects, kinds = defaultdict(set), set()
    for source in sources(tmp_path):
        for scan in layouts.find(source, select="*").scans:
            person = re.search(whose, str(scan.path.relative_to(tmp_path)))[1]
            subjects[person].add(scan.subject)
            kinds.add(scan.kind)
            assert "overview" not in str(scan.path)
    people = {re.search(whose, name)[1] for pattern in patterns for name in names(pattern)}
    assert subjects.keys() == people
    assert all(len(called) == 1 for called in subjects.values()), dict(subjects)
    assert len(set.union(*subjects.values())) == len(people)
    assert {person: {person} for person in people} == subjects


def series(folder, patient, modality):
    folder.mkdir(parents=True)
    names = {"PatientID": patient, "SeriesInstanceUID": f"1.2.{ord(modality[0])}.{patient}"}
    write_series(folder, voxels((6, 5, 4)), Modality=modality, **names)


def test_chaos(tmp_path):
    """Its CT and MR are of different people, who have numbers afresh: as one they are safe."""
    for number in ("1", "2", "10"):
        series(tmp_path / f"Train_Sets/CT/{number}/DICOM_anon", number, "CT")
    for number in ("1", "3"):
        for phase in ("InPhase", "OutPhase"):
            folder = tmp_path / f"Train_Sets/MR/{number}/T1DUAL/DICOM_anon/{phase}"
            series(folder, f"9{number}", "MR")
        series(tmp_path / f"Train_Sets/MR/{number}/T2SPIR/DICOM_anon", f"9{number}", "MR")
    for source in (tmp_path, tmp_path / "Train_Sets"):
        for modality, numbers in (("ct", {"1", "2", "10"}), ("mr", {"1", "3"})):
            found = layouts.find(source, modality=modality)
            assert {scan.subject for scan in found.scans} == numbers
            alone = layouts.find(tmp_path / "Train_Sets" / modality.upper())
            assert {scan.subject for scan in alone.scans} == numbers


@pytest.mark.parametrize(
    ("dataset", "images", "labels"),
    [
        ("BraTS 2021", {"select": "t1ce"}, "_seg.nii.gz"),
        ("BraTS 2023, in one folder", {"select": "t1c"}, "-seg.nii.gz"),
        ("KiTS", {"modality": "ct"}, "segmentation.nii.gz"),
        ("MM-WHS, CT", {"modality": "ct"}, "_label.nii.gz"),
        ("MM-WHS, MR", {"modality": "mr"}, "_label.nii.gz"),
        ("SynthRAD2023", {"modality": "mr"}, "mask.nii.gz"),
        ("nnU-Net", {"select": "0002"}, ".nii.gz"),
        ("AMOS", {"modality": "ct"}, ".nii.gz"),
    ],
)
def test_label_maps_and_masks_are_their_images(tmp_path, dataset, images, labels):
    """They are no images themselves, and are found whether the layout or a flag says so."""
    plant(tmp_path, TREES[dataset][1])
    scans = layouts.find(tmp_path, **images).scans
    held = {scan.name: scan.labels or scan.mask for scan in scans if scan.split != "test"}
    assert held and all(str(path).endswith(labels) for path in held.values())
    assert not {path for scan in scans for path in scan.files} & {*held.values()}
    kind = "masks" if "mask" in labels else "labels"
    found = pairs.by_name(tmp_path, kind)
    assert {name: scan.path for name, scan in found.items()} == held


def test_instances_inside_a_case_are_left_out_and_named(tmp_path):
    plant(tmp_path, TREES["KiTS"][1])
    found = layouts.find(tmp_path, modality="ct")
    assert found.notes == ["3 folders inside subjects' left out: instances"]
    assert not found.failed
