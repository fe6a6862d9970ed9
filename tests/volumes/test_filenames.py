# SPDX-License-Identifier: Apache-2.0
"""Names tell whose a volume is and what it shows, by one rule for all kinds and separators."""

import pytest

from contourdiff_jax.volumes import filenames

KINDS = [word for words in filenames.KINDS.values() for word in words.split()]
SUBJECTS = ("p1", "IXI901-Made-0001", "BraTS2021_00000", "Doe.2", "knee left", "CT-5", "0001")


@pytest.mark.parametrize("separator", filenames.SEPARATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_word_for_what_is_shown_is_no_part_of_the_subject(kind, separator):
    """Whatever stands before it, and in any case of letters."""
    for subject in SUBJECTS:
        for word in (kind, kind.lower(), kind.upper()):
            assert filenames.subject_of(f"{subject}{separator}{word}.nii.gz") == subject
            assert filenames.last_kind(f"{subject}{separator}{word}") == word


@pytest.mark.parametrize(
    ("stem", "subject", "kind"),
    [
        # What was done to an image, behind what it shows.
        ("UCSF-PDGM-0004_T1c_bias", "UCSF-PDGM-0004", "T1c_bias"),
        ("p1-T1-Gd", "p1", "T1-Gd"),
        ("p1_ct_reg", "p1", "ct_reg"),
        ("p1_T1w_acpc_dc_restore_brain", "p1", "T1w_acpc_dc_restore_brain"),
        ("left_brain", "left_brain", None),
        ("visit_post", "visit_post", None),
        # Several, and several separators.
        ("p1_ct_seg", "p1", "seg"),
        ("p1_-_T1", "p1", "T1"),
        # Words for any image, behind a name.
        ("ct_train_1001_image", "ct_train_1001", None),
        ("volume", "volume", None),
        # Numbers are the subject's, but nnU-Net's of the first channel.
        ("scan_CT_01", "scan_CT_01", None),
        ("amos_0001", "amos_0001", None),
        ("case_03_0000", "case_03", None),
        ("case_03_ct_0000", "case_03", None),
        ("case_03_0000_ct", "case_03", "ct"),
        ("p1_T1-2", "p1_T1-2", None),
        # Nothing but words for what is shown: all there is.
        ("T1", "T1", "T1"),
        ("T1w_brain", "T1w_brain", "T1w_brain"),
        ("ct-mr", "ct-mr", "mr"),
        # Entities of BIDS.
        ("sub-01_ses-1_acq-mprage_T1w", "sub-01_ses-1_acq-mprage", "T1w"),
        ("sub-ct", "sub-ct", None),
        ("sub-07-ct", "sub-07", "ct"),
        # Words that only end like one.
        ("abstract", "abstract", None),
        ("petra", "petra", None),
        ("p1_ct\n", "p1_ct\n", None),
    ],
)
def test_names_are_read_as_words(stem, subject, kind):
    assert filenames.subject_of(f"{stem}.nii.gz") == subject
    assert filenames.last_kind(stem) == kind


@pytest.mark.parametrize(
    ("name", "person"),
    [
        ("ADNI_002_S_0295_MR_MP-RAGE__br_raw_20060418193713091_1_S13408_I13722", "002_S_0295"),
        ("002_S_0295", "002_S_0295"),
        ("OAS1_0001_MR1_mpr_n4_anon_111_t88_gfc", "OAS1_0001"),
        ("OAS2_0001_MR2", "OAS2_0001"),
        ("OAS30001_MR_d0129", "OAS30001"),
        ("BraTS-GLI-00005-001", "BraTS-GLI-00005"),
        ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001"),
        ("BraTS2021_00005", "BraTS2021_00005"),
        ("sub-01_ses-1_run-2", "sub-01"),
        ("sub-01", "sub-01"),
        ("1ABA001", "1ABA001"),
        ("IXI002-Guys-0828", "IXI002-Guys-0828"),
    ],
)
def test_the_person_of_a_published_name(name, person):
    assert filenames.person(name) == filenames.person(person) == person


def test_names_of_before_are_known():
    """Those that kept a word which is now known to say what is shown."""
    former = set(filenames.former_names("p1"))
    assert {"p1-T1", "p1_t1ce", "p1.CBCT", "p1 image"} <= former
    assert filenames.former_subject_of("x/p1-T1.nii.gz") == "p1-T1"
    assert filenames.former_subject_of("x/p1_T1.nii.gz") == "p1"


def test_any_name_is_read_in_no_time(rng):
    words = [*KINDS, "a", "1", "", "brain", "image", "sub-1", "OAS30001", "\udcff", "\n"]
    for _ in range(300):
        separators = rng.choice(list(filenames.SEPARATORS), 30)
        stem = "".join(f"{rng.choice(words)}{separator}" for separator in separators)[:240]
        for name in (stem, "-" * 240, f"T1{'_brain' * 40}_x"):
            assert filenames.subject_of(f"{name}.nii.gz")
            filenames.last_kind(name), filenames.person(name)
