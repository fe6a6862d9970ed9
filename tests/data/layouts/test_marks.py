# SPDX-License-Identifier: Apache-2.0
"""What this tool made is never a source, wherever it was put; alone it is what is meant."""

import json

import numpy as np
import pytest
from dicom_series import voxels, write_series
from PIL import Image

from contourdiff_jax.data import layouts
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.translation import sidecars


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(np.zeros((8, 6), np.uint8)).save(path)
        elif path.suffix == ".npy":
            np.save(path, np.zeros((9, 8, 6)))
        elif path.suffix == ".json":
            fields = {"schema": 1, "notice": sidecars.NOTICE, "seed": 0}
            path.write_text(json.dumps(fields, indent=2))
        else:
            path.touch()
    return root


def described(path):
    path.write_text(json.dumps({"labels": list(range(999)), "description": sidecars.NOTICE}))


STORE = ("dataset.json", "index.csv", "slices.npy", "masks.npy", "labels.npy")
RUN = ("config.json", "checkpoints/3/x", "samples/00001.png", "stats.jsonl", "mean.nii")
EVALUATION = ("metrics.json", "rows.csv", "panels/p1.png", "views/p1.png", "statistics/x.npy")
TRANSLATIONS = {
    "nifti": ("p1.nii.gz", "p1.json", "p2.nii.gz", "p2.json", "maps/std/p1.nii.gz"),
    "bids": (
        "dataset_description.json",
        "sub-1/anat/sub-1_desc-contourdiff_T1w.nii.gz",
        "sub-1/anat/sub-1_desc-contourdiff_T1w.json",
    ),
    "nnunet": ("imagesTr/p1_0000.nii.gz", "imagesTr/p1_0000.json", "labelsTr/p1.nii.gz"),
    "pictures": ("p1_1.png", "p1_2.png", "p1.json"),
}
MADE = {
    "a store": STORE,
    "a run": RUN,
    "an evaluation": EVALUATION,
    "a comparison of contours": ("statistics.json", "contact_sheet.png", "contours.json"),
    "an exported model": ("contourdiff.json", "config.json", "x.npy"),
    **TRANSLATIONS,
}
SOURCES = {
    "volumes": ("p1.nii.gz", "p2.nii.gz"),
    "subjects": ("p1/ct.nii.gz", "p1/t1.nii.gz", "p2/ct.nii.gz", "p2/t1.nii.gz"),
    "slices": ("p1_1.png", "p1_2.png", "p2_1.png"),
    "slices of folders": ("p1/1.png", "p1/2.png", "p2/1.png"),
    "bids": ("sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz"),
    "nnunet": ("imagesTr/p1_0000.nii.gz", "imagesTr/p2_0000.nii.gz", "labelsTr/p1.nii.gz"),
    "ab": ("trainA/p1.nii.gz", "trainB/p2.nii.gz"),
}


def told(source, **options):
    content = layouts.find(source, select="*", **options)
    return {(scan.name, scan.subject, scan.files) for scan in content.scans}


@pytest.mark.parametrize("what", MADE)
@pytest.mark.parametrize("source", SOURCES)
def test_an_output_inside_a_source_is_not_fed_on(tmp_path, source, what):
    """Directly in it, and in the folder of one of its subjects."""
    make(tmp_path, *SOURCES[source])
    before = told(tmp_path)
    places = ["made", *(["p1/made"] if (tmp_path / "p1").is_dir() else [])]
    for place in places:
        make(tmp_path / place, *MADE[what])
    assert told(tmp_path) == before
    note = layouts.find(tmp_path, select="*").notes[-1]
    assert note.startswith("left out what this tool made: made")
    assert note.count("made") == 1 + len(places)


@pytest.mark.parametrize("what", TRANSLATIONS)
def test_translations_alone_are_meant(tmp_path, what):
    """To be scored, or trained on: in the folder that is given, or in one inside it."""
    make(tmp_path / "there/made", *TRANSLATIONS[what])
    found = told(tmp_path / "there/made")
    assert {name.split("-")[0] for name, *_ in found} <= {"p1", "p2", "sub"} and found
    assert told(tmp_path / "there") == found
    # Beside them stores and evaluations are none.
    make(tmp_path / "there/made/store", *STORE)
    assert told(tmp_path / "there/made") == found


@pytest.mark.parametrize("what", [what for what in MADE if what.startswith("a")])
def test_what_holds_no_scans_is_refused_as_a_source(tmp_path, what, monkeypatch):
    make(tmp_path / "x", *MADE[what])
    monkeypatch.chdir(tmp_path / "x")
    for path in (tmp_path / "x", "."):
        with pytest.raises(InputError, match=f"{what} of this tool, where scans are expected$"):
            layouts.find(path)


def test_translations_among_their_sources_are_told_from_them(tmp_path):
    """As --out=SOURCE of another format leaves them."""
    for number in (1, 2):
        folder = tmp_path / f"p{number}"
        folder.mkdir()
        write_series(
            folder, voxels((6, 5, 4)), SeriesInstanceUID=f"1.2.{number}", PatientID=str(number)
        )
    before = told(tmp_path)
    make(tmp_path, "p1.nii.gz", "p1.json", "maps/std/p1.nii.gz", "sheet.png", "inspect.json")
    assert told(tmp_path) == before and len(before) == 2
    # A translated series beside its sidecar.
    write_series(make(tmp_path, "p3/x").joinpath("p3"), voxels((6, 5, 4)))
    make(tmp_path, "p3.json")
    assert told(tmp_path) == before


def test_figures_of_a_report_are_no_pictures(tmp_path):
    make(tmp_path, "p1/1.png", "p2/1.png", "report_figures/01_scores.png", "report.html")
    assert {subject for _, subject, _ in told(tmp_path)} == {"p1", "p2"}


def test_what_others_describe_is_a_source(tmp_path):
    """Their JSON beside images is no sidecar of ours."""
    for name in ("p1", "p2"):
        make(tmp_path, f"{name}.nii.gz")
        (tmp_path / f"{name}.json").write_text('{"schema": 1, "notice": "Ours."}')
    (tmp_path / "dataset.json").write_bytes(b"\xff{damaged")
    assert len(told(tmp_path)) == 2
    described(tmp_path / "dataset.json")
    assert len(told(tmp_path)) == 2


def test_parts_of_files_are_no_sources(tmp_path):
    """What a process that was killed leaves behind."""
    make(tmp_path, "imagesTr/p1_0000.nii.gz", "labelsTr/p1.nii.gz")
    before = told(tmp_path)
    for path in (tmp_path / "labelsTr/p2.nii.gz", tmp_path / "imagesTr/p2_0000.nii.gz"):
        disk.hidden(path).touch()
    part = disk.hidden(tmp_path / "store")
    make(part, *STORE)
    assert told(tmp_path) == before and disk.is_partial(part)
