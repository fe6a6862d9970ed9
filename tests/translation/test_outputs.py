# SPDX-License-Identifier: Apache-2.0
"""Translations go back in the format and the layout asked for, lie where their source lies and can
be found, scored and trained on there."""

import errno
import json
import os
import shutil
from pathlib import Path

import dicom_series
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from setups import translate

from contourdiff_jax import config
from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts import pairs
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import cases
from contourdiff_jax.evaluation.folder import Request, evaluate
from contourdiff_jax.methods import train
from contourdiff_jax.runtime import disk
from contourdiff_jax.translation import sidecars, volume
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.formats import derived
from contourdiff_jax.volumes.grid import AXES
from contourdiff_jax.volumes.volume import Assumed


@pytest.fixture(scope="module")
def mr_run(two_convolutions, store_path, tmp_path_factory):
    """A run on phantoms; two convolutions stand in for the network."""
    settings = config.default()
    settings.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
    settings.train.update(images=16, batch=4, log=0, evaluate=0, sample=0, checkpoint=0, warmup=4)
    settings.sampler.update(steps=2, batch=4)
    run = tmp_path_factory.mktemp("mr") / "run"
    assert train(settings, store_path, run)
    return run


@pytest.fixture(scope="module")
def plain(mr_run, phantom_data, tmp_path_factory):
    """The translations as NIfTI beside which the others are held."""
    out = tmp_path_factory.mktemp("plain") / "out"
    translate(mr_run, phantom_data / "test_ct", out, preset="ct")
    return {path.name[:10]: io.read(path) for path in sorted(out.glob("*.nii.gz"))}


def series(folder):
    """The DICOM series of a folder as SimpleITK reads it."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def same_place(ours, theirs, tolerance):
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)
    np.testing.assert_allclose(ours.array, theirs.array, atol=tolerance)


@pytest.mark.parametrize("format", ["same", "nifti", "dicom"])
def test_voxels_that_are_no_numbers_are_that_volume_s_failure(
    mr_run, phantom_data, tmp_path, monkeypatch, format
):
    """Nothing of it is left, and the others are translated."""
    finish, source, out = volume.finish, phantom_data / "test_ct", tmp_path / "out"
    if format == "same":  # pictures
        source = tmp_path / "source"
        source.mkdir()
        for path in (phantom_data / "test_ct").iterdir():
            np.save(source / f"{path.name[:10]}.npy", io.read(path).array.T)

    def damaged(plan, read, drawn):
        array, maps = finish(plan, read, drawn)
        array[0, 0, 0] = np.nan if read.scan.name.startswith("phantom005") else 0
        return array, maps

    monkeypatch.setattr(volume, "finish", damaged)
    result = translate(mr_run, source, out, preset="ct", format=format)
    ((_, reason),) = result.failed
    assert "not written: 1 of its voxels would be NaN or infinite" in reason
    assert len(result.done) == 1
    assert not [path for path in out.iterdir() if "phantom005" in path.name]


# ----------------------------------------------------------------------------------------------
# BIDS
# ----------------------------------------------------------------------------------------------


def bids_source(phantom_data, folder):
    for number, path in enumerate(sorted((phantom_data / "test_ct").iterdir()), start=1):
        place = folder / f"sub-{number:02d}" / "ses-1" / "ct"
        place.mkdir(parents=True)
        shutil.copy(path, place / f"sub-{number:02d}_ses-1_ct.nii.gz")
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return folder


def test_bids_becomes_a_bids_derivative(mr_run, phantom_data, plain, tmp_path):
    source, out = bids_source(phantom_data, tmp_path / "raw"), tmp_path / "derived"
    result = translate(mr_run, source, out, preset="ct", format="bids", kind="T1w")
    names = [f"sub-0{n}_ses-1_desc-contourdiff_T1w.nii.gz" for n in (1, 2)]
    assert [path.name for path in result.done] == names
    assert result.done[0].parent == out / "sub-01" / "ses-1" / "anat"
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["SourceDatasets"]
    assert description["GeneratedBy"][0]["Name"] == "contourdiff-jax"
    # Found again as what it is, and scored against a truth that lies elsewhere.
    found = layouts.find(out)
    assert found.layout == "bids" and [scan.subject for scan in found.scans] == ["sub-01", "sub-02"]
    scored = evaluate(Request(out, tmp_path / "scores", source=source))
    assert len(scored.metrics["data"]["subjects"]) == 2
    # Its geometry is that of the source; its noise follows the subject's name, which is another.
    for ours, theirs in zip(found.scans, plain.values(), strict=True):
        np.testing.assert_allclose(ours.read().affine, theirs.affine, atol=1e-4)


def test_bids_says_what_the_target_shows(mr_run, phantom_data, tmp_path):
    with pytest.raises(InputError, match="--kind"):
        translate(mr_run, phantom_data / "test_ct", tmp_path / "x", preset="ct", format="bids")


def test_other_names_become_bids_labels(mr_run, phantom_data, tmp_path):
    source = tmp_path / "head_7_ct.nii.gz"
    shutil.copy(next((phantom_data / "test_ct").iterdir()), source)
    result = translate(mr_run, source, tmp_path / "x", preset="ct", format="bids", kind="T1w")
    assert result.done[0].name == "sub-head7_desc-contourdiff_T1w.nii.gz"


# ----------------------------------------------------------------------------------------------
# nnU-Net
# ----------------------------------------------------------------------------------------------


def test_an_nnunet_folder_carries_the_labels_of_the_source(mr_run, phantom_data, plain, tmp_path):
    out, labels = tmp_path / "Dataset001", phantom_data / "test_labels"
    result = translate(
        mr_run, phantom_data / "test_ct", out, preset="ct", format="nnunet", labels=labels
    )
    assert not result.failed
    for folder in ("labelsTr", "imagesTr"):  # what another process is writing is no one's
        disk.hidden(out / folder / "head_0000.nii.gz").write_bytes(b"half")
    (out / "labelsTr" / "theirs.nii.gz").write_bytes(b"no label map")
    translate(mr_run, phantom_data / "test_ct", out, preset="ct", format="nnunet", labels=labels)
    (out / "labelsTr" / "theirs.nii.gz").unlink()
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["numTraining"] == 2 and dataset["file_ending"] == ".nii.gz"
    assert dataset["channel_names"] == {"0": "mr"} and dataset["labels"]["background"] == 0
    found = layouts.find(out)
    assert found.layout == "nnunet" and [scan.name for scan in found.scans] == list(plain)
    for scan in found.scans:
        same_place(scan.read(), plain[scan.name], tolerance=0)
        label = nib.load(scan.labels)
        truth = nib.load(labels / f"{scan.name}_labels.nii.gz")
        np.testing.assert_array_equal(label.get_fdata(), truth.get_fdata())
        np.testing.assert_array_equal(label.affine, nib.load(scan.files[0]).affine)
    # Ready to train on: a store takes images and labels from it without another word.
    prepared = prepare(out, tmp_path / "store", "mr", spacing=7.2, size=32)
    assert (tmp_path / "store" / "labels.npy").exists() and not prepared.failed


def test_an_nnunet_folder_needs_labels(mr_run, phantom_data, tmp_path):
    with pytest.raises(InputError, match="needs --labels"):
        translate(mr_run, phantom_data / "test_ct", tmp_path / "x", preset="ct", format="nnunet")
    assert not list((tmp_path / "x").rglob("*.nii.gz"))


def test_the_names_of_labels_are_those_of_the_source(mr_run, phantom_data, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in ("imagesTr", "labelsTr"):
        (source / folder).mkdir(parents=True)
    for subject in ("phantom005", "phantom006"):
        ct = phantom_data / "test_ct" / f"{subject}_ct.nii.gz"
        shutil.copy(ct, source / "imagesTr" / f"{subject}_0000.nii.gz")
        labels = phantom_data / "test_labels" / f"{subject}_labels.nii.gz"
        shutil.copy(labels, source / "labelsTr" / f"{subject}.nii.gz")
    names = {"background": 0, "brain": 1, "fluid": 2}
    fields = {"channel_names": {"0": "CT"}, "labels": names, "file_ending": ".nii.gz"}
    (source / "dataset.json").write_text(json.dumps(fields | {"numTraining": 2}))
    translate(mr_run, source, out, preset="ct", format="nnunet", kind="T1")
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["labels"] == names and dataset["channel_names"] == {"0": "T1"}


# ----------------------------------------------------------------------------------------------
# DICOM
# ----------------------------------------------------------------------------------------------


def test_a_dicom_series_lies_where_the_volume_lies(mr_run, phantom_data, plain, tmp_path):
    out = tmp_path / "series"
    result = translate(mr_run, phantom_data / "test_ct", out, preset="ct", format="dicom")
    for folder, (name, expected) in zip(result.done, plain.items(), strict=True):
        assert (out / f"{folder.name}.json").is_file() and folder.name.startswith(name)
        back = io.read(sorted(folder.iterdir()))
        same_place(back, expected, tolerance=np.ptp(expected.array) / 65535)
        seen = series(folder)
        corner = np.diag((-1, -1, 1)) @ seen.TransformIndexToPhysicalPoint((0, 0, 0))
        place = back.native.affine[:3, 3]
        np.testing.assert_allclose(corner, place, atol=1e-3)
        header = pydicom.dcmread(next(folder.iterdir()))
        assert list(header.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert header.PatientName == name
    again = translate(mr_run, phantom_data / "test_ct", out, preset="ct", format="dicom")
    assert len(again.kept) == 2 and not again.done
    # A series that lacks a slice is made again, unasked.
    lost = min(result.done[0].iterdir())
    lost.unlink()
    again = translate(mr_run, phantom_data / "test_ct", out, preset="ct", format="dicom")
    assert again.done == result.done[:1] and lost.exists()
    # The folder can be scored as it is.
    scored = evaluate(Request(out, tmp_path / "scores", source=phantom_data / "test_ct"))
    assert scored.metrics["data"]["subjects"] == list(plain)


def test_dicom_in_gives_nifti_at_true_positions(mr_run, tmp_path, phantom_data):
    ct = io.read(next((phantom_data / "test_ct").iterdir()))
    # A folder may be called as files are, by subject and modality.
    scan = tmp_path / "p1_ct"
    derived.write(scan, ct.array, ct, "ct", "p1", "notice", "software", (0, 80))
    result = translate(mr_run, scan, tmp_path / "out", preset="ct")
    assert [path.name for path in result.done] == ["p1_ct.nii.gz"]
    np.testing.assert_allclose(io.read(result.done[0]).affine, ct.affine, atol=1e-3)
    scored = evaluate(Request(tmp_path / "out", tmp_path / "scores", source=scan))
    assert scored.metrics["data"]["subjects"] == ["p1"]


# ----------------------------------------------------------------------------------------------
# Pictures, .mha and .npy
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(phantom_data, tmp_path):
    """The CT of two heads as 8-bit pictures of -1000 to 1000 HU, and the volumes they show."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for subject in ("phantom005", "phantom006"):
        ct = io.read(phantom_data / "test_ct" / f"{subject}_ct.nii.gz")
        for k, plane in enumerate(np.moveaxis(ct.array, 2, 0)):
            grey = np.rint((plane.clip(-1000, 1000) + 1000) / 2000 * 255).astype(np.uint8)
            Image.fromarray(grey[::-1, ::-1].T).save(folder / f"{subject}-{k:03d}.png")
    return folder


def test_pictures_become_pictures_of_their_names(mr_run, pictures, plain, tmp_path):
    out, assumed = tmp_path / "out", Assumed(7.1875, (-1000.0, 1000.0))
    result = translate(mr_run, pictures, out, preset="ct", assumed=assumed)
    assert not result.failed
    names = {path.name for path in pictures.iterdir()}
    assert {path.name for path in out.glob("*.png")} == names
    assert {path.name for path in out.glob("*.json")} == {f"{name}.json" for name in plain}
    for name, expected in plain.items():
        seen = np.stack(
            [np.asarray(Image.open(path)) for path in sorted(out.glob(f"{name}-*.png"))]
        )
        # The contours of 8-bit pictures are nearly those of the HU, the slices the same.
        mine = np.moveaxis(seen, 0, 2).transpose(1, 0, 2)[::-1, ::-1].astype(float)
        assert np.corrcoef(mine.ravel(), expected.array.ravel())[0, 1] > 0.9
    again = translate(mr_run, pictures, out, preset="ct", assumed=assumed)
    assert len(again.kept) == 2 and not again.done
    # Scored as what they were taken for: a CT in HU, of that size.
    scored = evaluate(Request(out, tmp_path / "scores", source=pictures))
    assert scored.metrics["methods"]["translation"]["contour_f1"]["n"] == 2
    one = cases.read(
        pairs.by_name(out, assumed=Assumed(7.1875))["phantom005"],
        sidecars.read(pairs.by_name(out)["phantom005"]),
        {"source": pairs.by_name(pictures, "ct", assumed)},
        sidecars.read(pairs.by_name(out)["phantom005"]).settings,
    )
    assert one.source.min() == -1000 and one.settings.assumed == assumed


def test_pictures_on_their_side_are_translated_as_upright_and_lie_as_their_source(
    mr_run, pictures, tmp_path
):
    assumed, lying, name = Assumed(7.1875, (-1000.0, 1000.0)), tmp_path / "lying", "phantom005-004"
    lying.mkdir()
    for path in pictures.glob("phantom005-*"):
        Image.open(path).rotate(90, expand=True).save(lying / path.name)
        (tmp_path / "upright" / path.name).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "upright")
    turned = Assumed(7.1875, (-1000.0, 1000.0), rotate=90)
    for place, how in (("upright", assumed), ("lying", turned)):
        translate(mr_run, tmp_path / place, tmp_path / f"{place}_out", preset="ct", assumed=how)
    upright, found = (
        np.asarray(Image.open(tmp_path / f"{place}_out" / f"{name}.png"))
        for place in ("upright", "lying")
    )
    assert upright.std() > 0
    np.testing.assert_array_equal(found, np.rot90(upright))
    # The sidecar says how source and translation lie, and truths lie so too.
    request = Request(tmp_path / "lying_out", tmp_path / "s", source=lying, truth=lying)
    scores = evaluate(request).metrics["methods"]["translation"]
    upright = Request(tmp_path / "upright_out", tmp_path / "u", source=tmp_path / "upright")
    expected = evaluate(upright).metrics["methods"]["translation"]
    assert scores["contour_f1"] == expected["contour_f1"] and "mae" in scores


def test_bad_pictures_are_left_out_and_said(mr_run, pictures, tmp_path):
    bad = pictures / "phantom005-002.png"
    bad.write_bytes(bad.read_bytes()[:200])
    out, assumed = tmp_path / "out", Assumed(7.1875, (-1000.0, 1000.0))
    result = translate(mr_run, pictures, out, preset="ct", assumed=assumed)
    assert [path.name for path, _ in result.failed] == [bad.name]
    assert len(list(out.glob("*.png"))) == len(list(pictures.iterdir())) - 1
    assert json.loads((out / "phantom005.json").read_text())["left_out"] == [bad.name]
    assert len(translate(mr_run, pictures, out, preset="ct", assumed=assumed).kept) == 2


def test_pictures_of_what_they_cannot_hold_become_nifti(
    two_convolutions, phantom_data, pictures, tmp_path
):
    """HU are negative, which pictures cannot say."""
    prepare(phantom_data / "train_ct", tmp_path / "store", "ct", spacing=7.2, size=32, validation=0)
    settings = config.default()
    settings.model.update(channels=(8,), attention=(False,), head_width=8, groups=4)
    settings.train.update(images=4, batch=2, log=0, evaluate=0, sample=0, checkpoint=0)
    settings.sampler.update(steps=1, batch=4)
    assert train(settings, tmp_path / "store", tmp_path / "run")
    result = translate(
        tmp_path / "run", pictures, tmp_path / "out", preset="mr", assumed=Assumed(7.2)
    )
    assert [path.name for path in result.done] == ["phantom005.nii.gz", "phantom006.nii.gz"]


def test_mha_stays_mha(mr_run, phantom_data, plain, tmp_path):
    image = SimpleITK.ReadImage(str(phantom_data / "test_ct" / "phantom005_ct.nii.gz"))
    source = tmp_path / "phantom005_ct.mha"
    SimpleITK.WriteImage(image, str(source))
    result = translate(mr_run, source, tmp_path / "out", preset="ct")
    assert result.done[0].name == source.name
    back = SimpleITK.ReadImage(str(result.done[0]))
    np.testing.assert_allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-4)
    assert back.GetDirection() == pytest.approx(image.GetDirection())
    same_place(io.read(result.done[0]), plain["phantom005"], tolerance=1e-3)


# ----------------------------------------------------------------------------------------------
# What was there before
# ----------------------------------------------------------------------------------------------


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def alike(ours, theirs):
    """Whether the folders hold the same, but for what sidecars say of time and machine."""
    ours, theirs = contents(ours), contents(theirs)
    return ours.keys() == theirs.keys() and all(
        ours[name] == theirs[name] for name in ours if not name.endswith(".json")
    )


@pytest.fixture
def one(phantom_data, tmp_path):
    """A folder with one CT."""
    folder = tmp_path / "ct"
    folder.mkdir()
    shutil.copy(phantom_data / "test_ct" / "phantom005_ct.nii.gz", folder)
    return folder


@pytest.mark.parametrize("name", ["same", "dicom"])
def test_nothing_but_a_translation_is_replaced(mr_run, one, tmp_path, name):
    how, out = {"preset": "ct", "format": name}, tmp_path / "out"
    translate(mr_run, one, out, **how)
    (out / "notes.md").write_text("mine")
    with pytest.raises(InputError, match=r"made with other settings.*--overwrite"):
        translate(mr_run, one, out, **how, seed=1)
    # Of a series of fewer slices, those of before go.
    volume = nib.load(one / "phantom005_ct.nii.gz")
    nib.save(volume.slicer[:, :, :4], one / "phantom005_ct.nii.gz")
    translate(mr_run, one, out, **how, overwrite=True)
    written = sorted(path for path in out.rglob("*") if path.suffix in (".dcm", ".gz"))
    assert len(written) == (4 if name == "dicom" else 1)
    assert (out / "notes.md").read_text() == "mine"
    written[0].write_bytes(written[0].read_bytes() + b"mine")
    before = contents(out)
    with pytest.raises(InputError, match=f"{written[0].name}: in the way"):
        translate(mr_run, one, out, **how, seed=1, overwrite=True)
    assert contents(out) == before


@pytest.mark.parametrize("sidecar", ["", "{}", '{"notice": "Not for diagnosis."}'])
def test_the_patient_s_own_series_is_never_replaced(mr_run, one, tmp_path, sidecar):
    """Beside it may lie a JSON with the name of a sidecar."""
    out = tmp_path / "patients"
    out.mkdir()
    dicom_series.write_series(out / "phantom005", np.zeros((6, 5, 4), np.int16))
    (out / "phantom005" / "report.txt").write_text("mine")
    if sidecar:
        (out / "phantom005.json").write_text(sidecar)
    before = contents(out)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"phantom005.*in the way.*move it away") as told:
            translate(mr_run, one, out, preset="ct", format="dicom", overwrite=overwrite)
        assert "--overwrite" not in str(told.value)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["same", "dicom"])
def test_a_full_disk_keeps_what_was_there(mr_run, one, tmp_path, monkeypatch, name):
    how, out = {"preset": "ct", "format": name, "maps": True}, tmp_path / "out"
    translate(mr_run, one, out, **how)
    before = contents(out)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((pydicom.Dataset, "save_as") if name == "dicom" else (nib, "save")), full)
    with pytest.raises(InputError, match=f"{out}/.*: cannot be written: no space left") as told:
        translate(mr_run, one, out, **how, seed=1, overwrite=True)
    assert contents(out) == before and "/." not in str(told.value)


@pytest.mark.parametrize("name", ["same", pytest.param("dicom", marks=pytest.mark.slow)])
def test_whenever_it_is_killed_the_next_call_ends_what_was_begun(
    mr_run, one, tmp_path, monkeypatch, name
):
    """No old voxels lie under a new sidecar, nor new ones under an old: it says `unfinished`."""
    how, kills, replace = {"preset": "ct", "format": name}, 0, os.replace
    translate(mr_run, one, tmp_path / "before", **how)
    translate(mr_run, one, tmp_path / "after", **how, seed=1)
    while True:
        out, left = tmp_path / str(kills), [kills]
        shutil.copytree(tmp_path / "before", out)

        def until(source, target, left=left, out=out):
            if Path(target).is_relative_to(out) and not any(map(disk.is_partial, target.parents)):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", until)
            try:
                translate(mr_run, one, out, **how, seed=1, overwrite=True)
            except KeyboardInterrupt:
                kills += 1
            else:
                break
        if not alike(out, tmp_path / "before"):
            assert json.loads(next(out.glob("*.json")).read_text())["unfinished"]
            [scan] = layouts.find(out).scans
            with pytest.raises(InputError, match="interrupted; translate again"):
                sidecars.read(scan)
        again = kills > 1  # only what is unfinished is replaced unasked
        assert translate(mr_run, one, out, **how, seed=1, overwrite=not again).done
        assert alike(out, tmp_path / "after")
        assert "unfinished" not in next(out.glob("*.json")).read_text()
    assert kills == (7 if name == "dicom" else 3)


def test_another_format_replaces_only_when_asked(mr_run, one, tmp_path):
    """A volume has one sidecar, which can stand for one translation."""
    source, out = tmp_path / "phantom005_ct.mha", tmp_path / "out"
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(one / "phantom005_ct.nii.gz")), str(source))
    translate(mr_run, source, out, preset="ct")
    with pytest.raises(InputError, match=r"phantom005_ct\.mha: made with other settings"):
        translate(mr_run, source, out, preset="ct", format="nifti")
    translate(mr_run, source, out, preset="ct", format="nifti", overwrite=True)
    names = ["phantom005_ct.json", "phantom005_ct.nii.gz"]
    assert sorted(path.name for path in out.iterdir()) == names


@pytest.mark.parametrize("name", ["same", "dicom"])
def test_of_an_earlier_version_only_what_has_a_known_name_is_replaced(mr_run, one, tmp_path, name):
    """Its sidecars list nothing; a series may hold slices that it did not write."""
    how, out = {"preset": "ct", "format": name}, tmp_path / "out"
    translate(mr_run, one, out, **how)
    sidecar = next(out.glob("*.json"))
    fields = json.loads(sidecar.read_text())
    assert fields.pop("files")
    sidecar.write_text(json.dumps(fields))
    assert translate(mr_run, one, out, **how).kept
    before = contents(out)
    if name == "same":
        assert translate(mr_run, one, out, **how, seed=1, overwrite=True).done
        assert json.loads(sidecar.read_text())["files"]
    else:
        with pytest.raises(InputError, match=r"phantom005/\d+\.dcm: in the way"):
            translate(mr_run, one, out, **how, seed=1, overwrite=True)
        assert contents(out) == before


def test_no_name_leads_out_of_the_folder(mr_run, one, tmp_path):
    """Nor a link: words of a table become names of files, and folders may be elsewhere."""
    shutil.copy(one / "phantom005_ct.nii.gz", one / "b.nii.gz")
    rows = ["file,subject,kind", "phantom005_ct.nii.gz,..,../../../x", "b.nii.gz,..,ct"]
    (one / "table.csv").write_text("\n".join(rows))
    out = tmp_path / "far" / "out"
    how = {"preset": "ct", "layout": str(one / "table.csv"), "select": "*"}
    assert len(translate(mr_run, one, out, **how).done) == 2
    assert len(list(out.glob("*.nii.gz"))) == 2
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "imagesTr").symlink_to("../far")
    how = {"preset": "ct", "format": "nnunet", "labels": one}
    with pytest.raises(InputError, match=r"imagesTr/.*: leads out of .*linked"):
        translate(mr_run, one / "b.nii.gz", tmp_path / "linked", **how)
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["out"]


def test_what_others_add_to_the_description_stays(mr_run, one, tmp_path):
    how, path = {"preset": "ct", "format": "bids", "kind": "T1w"}, "dataset_description.json"
    translate(mr_run, one, tmp_path / "out", **how)
    fields = json.loads((tmp_path / "out" / path).read_text())
    added = fields | {"License": "CC0", "BIDSVersion": "0"}
    (tmp_path / "out" / path).write_text(json.dumps(added))
    translate(mr_run, one, tmp_path / "out", **how)
    assert json.loads((tmp_path / "out" / path).read_text()) == fields | {"License": "CC0"}


# ----------------------------------------------------------------------------------------------
# Privacy
# ----------------------------------------------------------------------------------------------


def test_no_header_text_is_found_anywhere(two_convolutions, mr_run, tmp_path, capfd):
    """A store, a translation in every format, scores, and all that was printed, byte by byte."""
    scans = tmp_path / "scans"
    scans.mkdir()
    columns, rows, slices = np.indices((40, 40, 6))
    ball = (columns - 20) ** 2 + (rows - 20) ** 2 + (4 * slices - 12) ** 2 < 15**2
    for patient in ("p1", "p2"):
        array = np.where(ball, 40 + columns, -1000).astype(np.int16)
        dicom_series.write_series(scans / patient, array, spacing=(3.0, 3.0), step=12.0)
    store = prepare(scans, tmp_path / "made" / "store", "ct", spacing=4, size=32)
    assert not store.failed
    for name in ("same", "nifti", "dicom", "bids"):
        kind = "T1w" if name == "bids" else None
        out = tmp_path / "made" / name
        assert translate(mr_run, scans, out, preset="ct", format=name, kind=kind).done
    evaluate(Request(tmp_path / "made" / "nifti", tmp_path / "made" / "scores", source=scans))
    printed = capfd.readouterr()
    texts = [printed.out.encode(), printed.err.encode()]
    for path in (tmp_path / "made").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if path.name.endswith(".nii.gz"):
            data = nib.load(path).header.binaryblock
        texts += [str(path).encode(), data]
    for secret in dicom_series.SECRETS.values():
        assert not any(secret.encode() in text for text in texts), secret


def test_no_format_carries_its_source_s_text(mr_run, phantom_data, tmp_path):
    secret, sources = "Doe^Jane", tmp_path / "sources"
    path = next((phantom_data / "test_ct").glob("*.nii.gz"))
    image, array = SimpleITK.ReadImage(str(path)), io.read(path).array
    image.SetMetaData("PatientName", secret)
    sources.mkdir()
    for suffix in (".mha", ".nrrd"):
        SimpleITK.WriteImage(image, str(sources / f"s{suffix[1:]}{suffix}"))
    nifti = nib.load(path)
    nifti.header["descrip"] = nifti.header["db_name"] = secret
    nib.save(nifti, sources / "snifti.nii")
    plane = Image.fromarray(np.uint16(array[::-1, ::-1, 2].T + 1024))
    text = PngInfo()
    text.add_text("PatientName", secret)
    for name, about in (("p.png", {"pnginfo": text}), ("t.tif", {"description": secret})):
        (tmp_path / name[0]).mkdir()
        plane.save(tmp_path / name[0] / name, **about)
    pictures = {"assumed": Assumed(7.2, (-1024, 64511))}
    for folder, options in ((sources, {}), (tmp_path / "p", pictures), (tmp_path / "t", pictures)):
        assert all(secret.encode() in file.read_bytes() for file in folder.iterdir())
        out = tmp_path / "out" / folder.name
        result = translate(mr_run, folder, out, preset="ct", **options)
        assert len(result.done) == len(list(folder.iterdir())) and not result.failed
        assert not any(secret.encode() in file.read_bytes() for file in out.iterdir())


# ----------------------------------------------------------------------------------------------
# Places
# ----------------------------------------------------------------------------------------------


def seen_by_itk(image):
    """Where [mm, RAS] SimpleITK sees the brightest voxel of an image."""
    array = SimpleITK.GetArrayFromImage(image)
    index = np.unravel_index(array.argmax(), array.shape)[::-1]
    return np.array(image.TransformIndexToPhysicalPoint([int(i) for i in index])) * (-1, -1, 1)


@pytest.mark.parametrize("step", [3.0, -3.0])
@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_a_landmark_stays_within_half_a_voxel_on_its_way(tmp_path, axis, step):
    """From DICOM to a store, to NIfTI and to DICOM, where SimpleITK says that it lies."""
    columns, rows, _ = np.indices((40, 36, 9))
    array = np.where((columns - 19) ** 2 + (rows - 17) ** 2 < 15**2, 40, -1000)
    array[26:28, 11:13, 5] = 3000
    folder, pixel = tmp_path / "scans" / "p1", (2.0, 2.5)
    folder.parent.mkdir()
    paths = dicom_series.write_series(
        folder,
        array.astype(np.int16),
        axes=dicom_series.ORIENTATIONS[axis],
        spacing=pixel,
        step=step,
    )
    truth = seen_by_itk(series(folder))
    half = np.array([*pixel, abs(step)]).max() / 2

    # The store: rows and columns of a slice run against the axes, from the middle of the volume.
    prepare(folder.parent, tmp_path / "store", "ct", axis=axis, spacing=2, size=64)
    store, volume = open_store(tmp_path / "store"), io.read(paths)
    number, row, column = np.unravel_index(store.slices[:].argmax(), store.slices.shape)
    place = volume.affine[:3] @ [*(np.array(volume.array.shape) - 1) / 2, 1]
    depth, down, across = AXES[axis]
    place[depth] = store.index["position"][number]
    place[down] -= (row - 31.5) * 2
    place[across] -= (column - 31.5) * 2
    assert np.abs(place - truth).max() <= half

    # Back to files.
    io.write(tmp_path / "x.nii.gz", volume.array, volume, np.int16)
    image = SimpleITK.ReadImage(str(tmp_path / "x.nii.gz"))
    assert np.abs(seen_by_itk(image) - truth).max() <= half
    derived.write(tmp_path / "series", volume.array, volume, "ct", "p1", "notice", "us", (0, 80))
    assert np.abs(seen_by_itk(series(tmp_path / "series")) - truth).max() <= half
