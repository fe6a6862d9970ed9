# SPDX-License-Identifier: Apache-2.0
"""Inspection: what it says of a scan is true, and everything that will be in the way is said."""

import json
import re
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from absl import flags
from dicom_series import enhanced, write_series
from dicom_series import save as save_dicom
from matplotlib.text import Text
from PIL import Image
from pydicom.dataset import Dataset

from contourdiff_jax.commands import inspect as module
from contourdiff_jax.data.inspection import guesses, inspect, sheets
from contourdiff_jax.data.inspection.findings import NOTE, PROBLEM
from contourdiff_jax.data.inspection.guesses import guess
from contourdiff_jax.data.phantoms.heads import Heads, folder_of
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.volume import Assumed

SHAPE = (36, 40, 24)
SIZES = (5.0, 5.0, 6.0)  # mm: a field of view of a head


def body(shape=SHAPE):
    """[X, Y, Z] 1 in the middle of an ellipsoid and 0 at its skin, negative outside."""
    axes = np.ix_(*(np.linspace(-1.2, 1.2, n) for n in shape))
    return 1 - sum(axis**2 for axis in axes)


def ct(shape=SHAPE):
    """A head of soft tissue with a skull, in HU."""
    depth, noise = body(shape), np.random.default_rng(0).normal(0, 10, shape)
    tissue = np.where((depth > 0.2) & (depth < 0.35), 900, 40)
    return np.rint(np.where(depth > 0, tissue, -1000) + noise).astype(np.int16)


def mr(shape=SHAPE):
    """The same in grey: noise around a head, nothing negative."""
    depth, noise = body(shape), np.random.default_rng(0).normal(0, 10, shape)
    signal = np.where(depth > 0, 300 + 300 * depth, 0)
    return np.rint(np.abs(signal + noise)).astype(np.uint16)


def labels(shape=SHAPE):
    """Three tissues and nothing."""
    return np.digitize(body(shape), (0, 0.2, 0.35)).astype(np.uint8)


def write(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*SIZES, 1]) if affine is None else affine), path)
    return path


def write_pictures(folder, array):
    folder.mkdir(parents=True)
    for number, plane in enumerate(array.T):
        Image.fromarray(np.ascontiguousarray(plane)).save(folder / f"p1_{number:03d}.png")
    return folder


def one(path, **options):
    """The only scan that a path holds."""
    inspection = inspect([path], **options)
    assert not inspection.failed
    [inspected] = inspection.scans
    return inspected


@pytest.fixture
def command(capsys):
    """Run the command: its exit status and what it printed."""

    def run(*arguments):
        values = flags.FlagValues()
        module.define_flags(values)
        paths = values(["inspect", *map(str, arguments)])[1:]
        status, printed = module.main(values, paths), capsys.readouterr()
        assert printed.err == ""
        return status, printed.out

    return run


# --------------------------------------------------------------------------------------------------
# What a scan is
# --------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_numpy(tmp_path):
    array = ct()
    seen = one(write(tmp_path / "p1_ct.nii.gz", array))
    for percentile, value in seen.percentiles.items():
        assert value == pytest.approx(np.percentile(array, percentile), abs=1e-3)
    assert seen.sampled == array.size
    assert seen.dtype == "int16" and seen.format == "NIfTI"


def test_a_sample_is_spread_over_the_volume_and_stands_for_it(tmp_path, monkeypatch):
    """Sides of 2^n would let every even step meet a part of the columns only."""
    shape = (32, 64, 16)
    array, columns = mr(shape), np.broadcast_to(np.arange(16), shape)
    monkeypatch.setattr(guesses, "SAMPLE", 4000)
    seen = one(write(tmp_path / "p1.nii.gz", array))
    assert 3000 < seen.sampled <= 4000
    assert (seen.percentiles[0], seen.percentiles[100]) == (array.min(), array.max())
    for percentile in (50, 99):
        low, high = np.percentile(array, (percentile - 2, min(100, percentile + 2)))
        assert low <= seen.percentiles[percentile] <= high
    counts = np.bincount(guesses.sample(np.ascontiguousarray(columns)))
    assert counts.min() > 0.9 * counts.max()


def test_the_geometry_is_that_of_the_file(tmp_path):
    """Along the axes of the file, as its owner knows them, not along those it is turned to."""
    affine = np.zeros((4, 4))
    affine[[1, 2, 0, 3], [0, 1, 2, 3]] = -1.0, 1.5, 4.0, 1
    path = write(tmp_path / "p1.nii", mr((160, 120, 30)), affine)
    seen = one(path)
    assert seen.shape == nib.load(path).shape
    assert seen.orientation == "".join(nib.aff2axcodes(affine)) == "PSR"
    np.testing.assert_allclose(seen.spacing, nib.affines.voxel_sizes(affine))


FOLDERS = sorted(
    {folder_of(role, kind) for role, kinds in Heads(unseen=True).kinds.items() for kind in kinds}
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_phantoms_are_recognised(phantom_data, folder):
    """By their values alone too, for which the names are taken away."""
    expected = "labels" if folder.endswith("labels") else "ct" if folder.endswith("ct") else "mr"
    inspection = inspect([phantom_data / folder])
    assert {seen.guess.modality for seen in inspection.scans} == {expected}
    assert {seen.guess.preset for seen in inspection.scans} <= {"ct", "mr", None}
    for seen in inspection.scans:
        volume = seen.scan.read()
        assert guess(volume.array, np.dtype(seen.dtype), None, Assumed()).modality == expected


REAL = {
    "totalsegmentator/example_ct.nii.gz": "ct",
    "totalsegmentator/example_ct_sm.nii.gz": "ct",
    "totalsegmentator/example_mr_sm.nii.gz": "mr",
    "totalsegmentator/example_seg.nii.gz": "labels",
    "totalsegmentator/example_seg_mr.nii.gz": "labels",
    "synthseg_labels/training_seg_01.nii.gz": "labels",
    "open_ms/mni/patient07_T2.nii.gz": "mr",
    "open_ms/mni/patient07_lesion_gold.nii.gz": "labels",
    "open_ms/longitudinal_raw/patient01/study1_T1W.nii.gz": "mr",
    "sct/t2.nii.gz": "mr",
    "stroke/T2.nii.gz": "picture",  # 8 bits, and nothing but its name says that it is MR
}


@pytest.mark.parametrize("name", REAL)
def test_real_volumes_are_recognised_without_their_names(data_root, name):
    path = data_root / "nifti" / name
    array, dtype = io.read(path).array, io.opened(path).dtype
    assert guess(array, dtype, None, Assumed()).modality == REAL[name]
    if REAL[name] == "ct":
        stored = np.maximum(array, -1024) + 1024
        assert guess(stored, dtype, None, Assumed()).offset == 1024
        inside = array[30:60, 30:60]  # the cut leaves no air
        assert guess(inside, dtype, None, Assumed()).modality == "ct"
    elif REAL[name] == "mr":
        scores = (array - array.mean()) / array.std()
        assert guess(scores, np.dtype("f4"), None, Assumed()).modality == "mr"
        assert guess(array * 1000 / array.max(), dtype, None, Assumed()).modality == "mr"


@pytest.mark.parametrize("folder", ["harvard_ct", "harvard_mr", "synthrad_ct_brain"])
def test_real_pictures_are_windowed_ones(data_root, folder):
    inspection = inspect([data_root / "png2d" / folder])
    expected = "mr" if folder == "harvard_mr" else "picture"
    assert {seen.guess.modality for seen in inspection.scans} == {expected}
    assert {seen.guess.preset for seen in inspection.scans} == {"mr"}
    clipped = [line for line in inspection.lines(PROBLEM) if "CT clipped to 8 bits" in line]
    assert len(clipped) == (expected == "picture"), "said once, not of every scan"
    assert all("--range" in line for line in clipped)


@pytest.mark.parametrize("name", ["{}", "{}.img", "a.b.{}.v2", "1.2.840.{}", "I{}.dcm.bak", "{} 1"])
def test_dicom_is_recognised_by_its_first_bytes_whatever_it_is_called(tmp_path, name):
    names = [name.format(f"IM{k}") for k in range(8)]
    write_series(tmp_path / "p1", (mr()[:, :, :8] + 1).astype(np.int16), names=names)
    for other in ("notes.txt", "table.dat", "DICOMDIR"):
        (tmp_path / "p1" / other).write_text("nothing like it " * 99)
    inspection = inspect([tmp_path])
    assert inspection.layouts == {str(tmp_path): "dicom"} and not inspection.failed
    [scan] = inspection.scans
    assert scan.format == "DICOM" and len(scan.scan.files) == 8
    assert inspect([tmp_path / "p1" / names[0]]).scans[0].format == "DICOM"


def test_two_echoes_in_one_file_are_two_scans_and_not_copies(tmp_path):
    slices = (mr()[:, :, 8:16] + 1).astype(np.int16)
    places = np.arange(8)[:, None] * (0, 0, 6.0)
    frames = np.concatenate([slices, slices // 4], axis=2)
    dataset = enhanced(frames, [*places, *places], spacing=(5.0, 5.0), Modality="MR")
    for k, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        group.MREchoSequence = [Dataset()]
        group.MREchoSequence[0].EffectiveEchoTime = 90.0 if k < 8 else 10.0
    (tmp_path / "p1").mkdir()
    save_dicom(dataset, tmp_path / "p1" / "a")
    inspection = inspect([tmp_path])
    assert not inspection.failed and not inspection.lines(PROBLEM)
    assert [seen.scan.name for seen in inspection.scans] == ["p1_series1", "p1_series2"]
    assert {seen.scan.subject for seen in inspection.scans} == {"p1"}
    first, second = (seen.percentiles[100] for seen in inspection.scans)
    assert second == slices.max() and first == second // 4


def test_a_range_gives_pictures_a_unit(tmp_path):
    folder = write_pictures(tmp_path / "ct", (mr() // 4).astype(np.uint8))
    assert one(folder).guess.modality == "picture"
    seen = one(folder, assumed=Assumed(1.0, (-250.0, 240.0)))
    assert (seen.guess.modality, seen.guess.preset) == ("ct", "ct")
    assert seen.percentiles[0] == pytest.approx(-250, abs=2)
    assert not seen.lines(PROBLEM)


# --------------------------------------------------------------------------------------------------
# What is wrong
# --------------------------------------------------------------------------------------------------


def affine_of(scale=1.0, sizes=SIZES, degrees=0.0):
    affine = np.diag([*np.multiply(sizes, scale), 1.0])
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine[:2, :2] = np.array([[cosine, -sine], [sine, cosine]]) @ affine[:2, :2]
    return affine


def with_value(array, where, value):
    array = array.copy()
    array[where] = value
    return array


def scores(array):
    return ((array - array.mean()) / array.std()).astype(np.float32)


# Of a single volume: its name, its voxels, its affine, and what is said.
VOLUMES = {
    "constant": ("p1.nii", np.full(SHAPE, 7, np.int16), None, "constant, every voxel is 7"),
    "empty labels": ("p1_seg.nii", np.zeros(SHAPE, np.uint8), None, "unless it is a label map"),
    "nearly empty": (
        "p1.nii",
        with_value(np.zeros(SHAPE, np.float32), (18, 20, slice(12)), np.linspace(0.5, 9, 12)),
        None,
        "99.5% of the voxels are 0",
    ),
    "8-bit CT": ("p1_ct.nii", (mr() // 4).astype(np.uint8), None, "CT clipped to 8 bits"),
    "offset": ("p1.nii", (ct().clip(-1024) + 1024).astype(np.uint16), None, r"HU \+ 1024"),
    "scaled CT": ("p1_ct.nii", (ct() / 1000).astype(np.float32), None, "called CT, .* rescale"),
    "CT as MR": ("p1_T1w.nii", ct(), None, "called MR, but .* HU"),
    "MR as labels": ("p1_seg.nii", mr(), None, "called labels, but .* rename"),
    "labels as CT": ("p1_ct.nii", labels(), None, "called CT, but .* label map"),
    "z-scores": ("p1.nii", scores(mr()), None, "negative values in MR .* normalise all"),
    "outlier": ("p1.nii", with_value(mr(), (3, 3, 3), 9000), None, "outliers up to 9000"),
    "metal": ("p1.nii", with_value(ct(), (3, 3, 3), 30000), None, "outliers up to 30000"),
    "microns": ("p1.nii", mr(), affine_of(0.1), "field of view of .* microns"),
    "metres": ("p1.nii", mr(), affine_of(16), "field of view of .* metres"),
    "oblique": ("p1.nii", mr(), affine_of(degrees=25), "oblique by 25 degrees"),
    "few slices": ("p1.nii", mr((36, 40, 3)), None, "3 slices"),
    "one slice": ("p1.nii", mr((36, 40, 24))[:, :, 12:13], None, "a single slice"),
    "thick and sagittal": (
        "p1.nii",
        mr((12, 40, 36)),
        affine_of(sizes=(12, 5, 5)),
        "sagittal slices, 2.4 times as thick .* --axis=sagittal",
    ),
    "lost slices": (
        "p1.nii",
        with_value(mr(), (slice(None), slice(None), slice(9, 11)), 0),
        None,
        "empty: 2 axial slices between others",
    ),
}

# What is said, but needs nothing to be done.
REMARKABLE = {
    "undershoot": ("p1.nii", with_value(mr().astype(np.int16), (3, 3, 3), -20), None, "count as 0"),
    "beyond a store": ("p1.nii", with_value(ct(), (3, 3, 3), 3500), None, "will be clipped at"),
    "empty ends": (
        "p1.nii",
        with_value(mr(), (slice(None), slice(None), slice(5)), 0),
        None,
        "empty: 5 of 24 axial slices",
    ),
    "thick": ("p1.nii", mr(), affine_of(sizes=(5, 5, 15)), "axial slices, 3.0 times as thick"),
    "tilted": ("p1.nii", ct(), with_value(affine_of(), (1, 2), 2.0), "sheared by 18.4 degrees"),
}


@pytest.mark.parametrize("case", VOLUMES)
def test_every_problem_of_a_volume_is_said(tmp_path, case):
    name, array, affine, match = VOLUMES[case]
    path = write(tmp_path / name, array, affine)
    inspection = inspect([path])
    [line] = inspection.lines(PROBLEM)
    assert line.startswith(f"{path}: ")
    assert re.search(match, line) and ("; " in line), "what is wrong; what to do"
    assert inspection.status == 0, "it can be read"


@pytest.mark.parametrize("case", REMARKABLE)
def test_what_is_dealt_with_is_a_note(tmp_path, case):
    name, array, affine, match = REMARKABLE[case]
    inspection = inspect([write(tmp_path / name, array, affine)])
    assert inspection.lines(PROBLEM) == []
    [line] = inspection.lines(NOTE)
    assert re.search(match, line)


def test_good_scans_have_no_problems(tmp_path):
    for subject in ("p1", "p2", "p3"):
        write(tmp_path / "ct" / f"{subject}_ct.nii.gz", ct() + int(subject[1]))
        write(tmp_path / "mr" / f"{subject}_t1.nii.gz", mr() + int(subject[1]))
        write(tmp_path / "labels" / f"{subject}_labels.nii.gz", labels())
    inspection = inspect([tmp_path / name for name in ("ct", "mr", "labels")])
    assert inspection.lines(PROBLEM) == inspection.lines(NOTE) == []
    assert len(inspection.scans) == 9 and inspection.status == 0
    assert "9 scans of 3 subjects, 0 problems" in inspection.summary


def test_pictures_that_hold_an_offset_are_given_a_range(tmp_path):
    """One that undoes it exactly."""
    stored = (ct().clip(-1024) + 1024).astype(np.uint16)
    folder = write_pictures(tmp_path / "scan", stored)
    [problem] = one(folder).lines(PROBLEM)
    low, high = re.search("--range=(-?[0-9]+),([0-9]+)", problem).groups()
    seen = one(folder, assumed=Assumed(1.0, (float(low), float(high))))
    assert seen.lines(PROBLEM) == []
    assert seen.percentiles[0] == pytest.approx(stored.min() - 1024.0, abs=0.01)


def test_huge_pictures_need_their_spacing(tmp_path):
    folder = write_pictures(tmp_path / "scan", mr((2600, 40, 1)))
    [problem] = one(folder).lines(PROBLEM)
    assert "field of view" in problem and "--pixel_spacing" in problem
    assert one(folder, assumed=Assumed(0.1)).lines(PROBLEM) == []


# --------------------------------------------------------------------------------------------------
# What is wrong between scans
# --------------------------------------------------------------------------------------------------


def modalities(folder):
    for number in range(3):
        write(folder / f"p{number}.nii", mr() + number)
    write(folder / "p3.nii", ct())


def spacings(folder):
    for number in range(3):
        write(folder / f"p{number}.nii", mr() + number)
    write(folder / "p3.nii", mr() + 3, affine_of(sizes=(5, 5, 10)))


def copies(folder):
    for number in range(3):
        write(folder / f"p{number}.nii", mr() + number % 2)


def names(folder):
    write(folder / "p1.nii", mr())
    write(folder / "p1.nii.gz", mr() + 1)


def splits(folder):
    for number, name in enumerate(("trainA", "testA", "trainB")):
        write(folder / name / "p1.nii", mr() + number)


def masks(folder):
    for number in range(2):
        write(folder / f"1BA00{number}" / "ct.nii", ct() + number)
        write(folder / f"1BA00{number}" / "mr.nii", mr() + number)
        shape = SHAPE if number else (30, 30, 30)
        write(folder / f"1BA00{number}" / "mask.nii", labels(shape).clip(0, 1))


SEVERAL = {
    modalities: "3 mr, 1 ct in one place, see p3; keep",
    spacings: "spacing of p3 far from 5 x 5 x 6 mm",
    copies: r"identical \(of p0, p2\): .*p0.nii, .*p2.nii; keep one",
    names: "'p1' is the name of .*p1.nii, .*p1.nii.gz; rename them",
    splits: "'p1' is in test and train; keep it in one",
    masks: "mask.nii lies on another grid",
}


@pytest.mark.parametrize("make", SEVERAL, ids=lambda make: make.__name__)
def test_every_problem_between_scans_is_said(tmp_path, make):
    make(tmp_path / "scans")
    inspection = inspect([tmp_path / "scans"])
    found = [line for line in inspection.lines(PROBLEM) if re.search(SEVERAL[make], line)]
    assert found, inspection.lines(PROBLEM)
    assert inspection.status == 0


def test_orientations_that_differ_are_a_note(tmp_path):
    for number, sign in enumerate((1, 1, -1)):
        write(tmp_path / f"p{number}.nii", mr() + number, affine_of() @ np.diag([sign, sign, 1, 1]))
    inspection = inspect([tmp_path])
    assert inspection.lines(PROBLEM) == []
    [note] = inspection.lines(NOTE)
    assert "stored as 2 RAS, 1 LPS" in note


def test_paths_that_overlap_are_read_once(tmp_path):
    path = write(tmp_path / "p1.nii", mr())
    inspection = inspect([tmp_path, path, tmp_path])
    assert len(inspection.scans) == 1 and inspection.lines(PROBLEM) == []


def test_of_a_folder_of_several_layouts_each_is_inspected(tmp_path, command):
    """And it is said which is which; one that cannot be used does not hide the others."""
    write(tmp_path / "trial" / "sub-01" / "anat" / "sub-01_T1w.nii.gz", mr())
    write(tmp_path / "more" / "deep" / "imagesTr" / "p1_0000.nii.gz", ct())
    write(tmp_path / "more" / "flat" / "p2.nii.gz", mr() + 1)
    write_pictures(tmp_path / "slices", (mr() / 4).astype(np.uint8))
    (tmp_path / "empty").mkdir()
    write(tmp_path / "bad" / "p3.nii", mr()).write_bytes(b"none")
    status, printed = command(tmp_path)
    layouts = {"trial": "bids", "more/deep": "nnunet", "more/flat": "volumes", "slices": "slices"}
    for folder, layout in layouts.items():
        assert f"{tmp_path / folder}: laid out as {layout}" in printed
    assert status == 1 and f"{tmp_path / 'bad' / 'p3.nii'}: not a NIfTI file" in printed
    assert "layout bids, nnunet, slices, volumes, 4 scans" in printed.splitlines()[-1]


# --------------------------------------------------------------------------------------------------
# What cannot be read
# --------------------------------------------------------------------------------------------------


def test_the_exit_status_says_how_much_can_be_read(tmp_path, command):
    good = write(tmp_path / "good.nii", mr())
    nan = write(tmp_path / "nan.nii", np.where(mr() == mr().max(), np.nan, mr()))
    cut = tmp_path / "cut.nii"
    cut.write_bytes(good.read_bytes()[:1000])
    assert command(good)[0] == 0
    status, printed = command(tmp_path)
    assert status == 1
    assert f"{nan}: 1 voxels are NaN or infinite; replace them first" in printed
    assert f"{cut}: the file is truncated" in printed
    assert "1 scan of 1 subject, 0 problems, 2 cannot be used" in printed
    status, printed = command(nan, tmp_path / "none.nii")
    assert status == 2
    assert f"{tmp_path / 'none.nii'}: no such file" in printed and "0 scans" in printed


def test_a_volume_that_is_no_label_map_either_keeps_its_reason(tmp_path):
    inspection = inspect([write(tmp_path / "p1.nii", np.full(SHAPE, 7.5, np.float32))])
    [(_, reason)] = inspection.failed
    assert reason == "constant volume, every voxel is 7.5"


def test_bad_slices_are_listed_and_the_others_shown(tmp_path):
    folder = write_pictures(tmp_path / "scan", mr())
    (folder / "p1_007.png").write_bytes(b"PNG")
    inspection = inspect([folder])
    [seen] = inspection.scans
    assert seen.shape == (*SHAPE[:2], SHAPE[2] - 1)
    assert [path.name for path, _ in inspection.failed] == ["p1_007.png"]
    assert inspection.status == 1


def test_nothing_to_inspect_is_refused():
    with pytest.raises(InputError, match="name files or folders"):
        inspect([])


# --------------------------------------------------------------------------------------------------
# Table, JSON and sheet
# --------------------------------------------------------------------------------------------------


def test_the_table_has_an_aligned_line_for_every_scan(tmp_path, command):
    for number, name in enumerate(("a.nii", "a_long_name.nii.gz", "b.nii")):
        write(tmp_path / name, mr() + number)
    status, printed = command(tmp_path)
    head, *lines = printed.splitlines()[:4]
    assert status == 0 and len(lines) == 3
    for title in ("format", "shape", "axes", "type", "seems"):
        assert all(line[head.index(title) - 1] == " " for line in lines)
        assert all(line[head.index(title)] != " " for line in lines)
    assert [line.split()[0] for line in lines] == ["a", "a_long_name", "b"]
    assert "36x40x24" in lines[0] and "5x5x6" in lines[0] and "uint16" in lines[0]
    assert "split" not in head, "columns that say nothing are left out"
    assert printed.splitlines()[-1] == "layout volumes, 3 scans of 3 subjects, 0 problems"


def test_what_many_scans_share_is_said_once(tmp_path):
    for number in range(5):
        write(tmp_path / f"p{number}.nii", scores(mr()) * (1 + number))
    [line] = inspect([tmp_path]).lines(PROBLEM)
    assert "p0.nii: negative values" in line and "(and 4 more like it)" in line


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--overwrite"], "--overwrite: no file is written"),
        (["--overwrite", "--json=-"], "--overwrite: no file is written"),
        (["--pixel_spacing=1"], "--pixel_spacing: it is of pictures"),
        (["--range=-1024,3071"], "--range: it is of pictures"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(tmp_path, command, flags, match):
    with pytest.raises(InputError, match=match):
        command(write(tmp_path / "p1.nii", mr()), *flags)


def no_constant(name):
    raise ValueError(f"{name} is not JSON")


def test_json_says_it_all(tmp_path, command):
    path = write(tmp_path / "p1_ct.nii", ct())
    write(tmp_path / "p2_ct.nii", np.zeros(SHAPE, np.int16))
    (tmp_path / "p3_ct.nii").touch()
    status, printed = command(tmp_path, "--json=-")
    fields = json.loads(printed, parse_constant=no_constant)
    assert status == 1
    assert fields["schema"] == module.SCHEMA and fields["version"]
    scan = fields["scans"][0]
    assert (scan["path"], scan["subject"]) == (str(path), "p1")
    assert (scan["modality"], scan["preset"], scan["orientation"]) == ("ct", "ct", "RAS")
    assert scan["shape"] == list(SHAPE) and scan["spacing"] == list(SIZES)
    assert scan["percentiles"]["0"] == ct().min() and scan["percentiles"]["100"] == ct().max()
    assert fields["scans"][1]["problems"]
    [failed] = fields["failed"]
    assert failed["path"].endswith("p3_ct.nii") and "empty" in failed["reason"]


def test_files_are_written_whole_and_never_replaced_unasked(tmp_path, command):
    source = write(tmp_path / "scans" / "p1.nii", mr())
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    _, printed = command(source, f"--out={out}", f"--json={copy}")
    assert "p1" in printed
    assert sorted(path.name for path in out.iterdir()) == ["inspect.json", "sheet.png"]
    assert (out / "inspect.json").read_text() == copy.read_text()
    json.loads(copy.read_text(), parse_constant=no_constant)
    for flag in (f"--out={out}", f"--json={copy}"):
        with pytest.raises(InputError, match="exists already; pass --overwrite"):
            command(source, flag)
        assert command(source, flag, "--overwrite")[0] == 0


def test_the_views_are_radiological_and_true_to_scale(tmp_path):
    """Blocks at three ends of the patient appear where they belong, as large as they are."""
    extent, shape = np.array((80, 160, 60)), (40, 40, 30)  # mm, voxels
    array = 100 + mr(shape) % 5
    array[30:] += 200  # the patient's right, in RAS +x
    array[:, 30:] += 300  # anterior
    array[:, :, 20:] += 400  # superior
    path = write(tmp_path / "p1.nii", array, np.diag([*(extent / shape), 1]))
    inspection = inspect([path], views=1)
    view = inspection.scans[0].view.astype(float).mean(axis=2)
    side = sheets.SIDE
    for number, (across, down) in enumerate(((0, 1), (0, 2), (1, 2))):  # axial, coronal, sagittal
        panel = view[:, number * (side + 3) :][:, :side]
        shown = np.argwhere(panel > 0)
        (top, left), (bottom, right) = shown.min(axis=0), shown.max(axis=0)
        size = np.array((bottom - top, right - left)) * extent.max() / side
        np.testing.assert_allclose(size, extent[[down, across]], atol=2)
        quarter = (bottom - top) // 8, (right - left) // 8
        corners = panel[top + quarter[0], left + quarter[1]], panel[top + quarter[0], right]
        others = panel[bottom, left + quarter[1]], panel[bottom, right]
        # The brightest corner is at the upper left, the darkest at the lower right.
        assert corners[0] > max(corners[1], others[0])
        assert others[1] < min(corners[1], others[0])


def test_a_sheet_shows_some_of_many(tmp_path, monkeypatch, command):
    """Evenly spread, and it says how many are left out."""
    for number in range(7):
        write(tmp_path / "scans" / f"p{number}.nii", mr() + number)
    inspection = inspect([tmp_path / "scans"], views=3)
    shown = [seen.scan.name for seen in inspection.scans if seen.view is not None]
    assert shown == ["p0", "p3", "p6"]
    texts = [text.get_text() for text in sheets.sheet(inspection).findobj(match=Text)]
    assert any("4 scans are not shown" in text for text in texts)
    assert sum(text.startswith("p") for text in texts) == 3
    assert any(re.fullmatch(r"p0\nmr, \S+ to \S+", text) for text in texts)
    monkeypatch.setattr(sheets, "SHOWN", 2)
    command(tmp_path / "scans", f"--out={tmp_path / 'out'}")
    colours = np.asarray(Image.open(tmp_path / "out" / "sheet.png").convert("RGB"))
    assert len(np.unique(colours)) > 50


@pytest.mark.parametrize("name", ["a\nb.nii", "頭部.nii", "$x_1$.nii", "%s {0} <b>.nii"])
def test_any_name_is_printed_on_one_line(tmp_path, command, name):
    write(tmp_path / "scans" / name, scores(mr()))
    status, printed = command(tmp_path / "scans", f"--out={tmp_path / 'out'}")
    assert status == 0
    lines = printed.splitlines()
    assert len(lines) == 7 and lines[3] == "problems:" and lines[-1].startswith("layout")
    assert (tmp_path / "out" / "sheet.png").exists()


# --------------------------------------------------------------------------------------------------
# Privacy and memory
# --------------------------------------------------------------------------------------------------

SECRET = "DOE^JANE"


def nifti_with_a_name(path):
    image = nib.Nifti1Image(mr(), affine_of())
    for field in ("descrip", "intent_name", "aux_file", "db_name"):
        image.header[field] = SECRET.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
    nib.save(image, path)


def dicom_with_a_name(path, array=None, places=range(SHAPE[2])):
    """A series of CT with the name wherever text goes."""
    pydicom = pytest.importorskip("pydicom")
    array = ct() if array is None else array
    path.mkdir()
    for number, place in enumerate(places):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = pydicom.uid.CTImageStorage
        dataset.SOPInstanceUID = f"1.2.3.{number + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.4", "1.2.5"
        dataset.Modality, dataset.InstanceNumber = "CT", number + 1
        for keyword in ("PatientName", "PatientID", "StudyDescription", "SeriesDescription"):
            setattr(dataset, keyword, SECRET)
        dataset.PatientComments = dataset.ImageComments = dataset.InstitutionName = SECRET
        dataset.Columns, dataset.Rows = array.shape[:2]
        dataset.PixelSpacing, dataset.SliceThickness = [SIZES[1], SIZES[0]], SIZES[2]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, SIZES[2] * place]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelData = np.ascontiguousarray(array[:, :, place].T).tobytes()
        dataset.save_as(path / f"{number:03d}.dcm", enforce_file_format=True)
    return path


@pytest.mark.parametrize("make", [nifti_with_a_name, dicom_with_a_name])
def test_nothing_of_a_header_s_text_is_shown(tmp_path, command, monkeypatch, make):
    source = tmp_path / "scans"
    source.mkdir()
    make(source / ("p1.nii" if make is nifti_with_a_name else "p1"))
    assert any(SECRET.encode() in p.read_bytes() for p in source.rglob("*") if p.is_file())
    texts = []
    monkeypatch.setattr(Text, "set_text", spy(Text.set_text, texts))
    _, printed = command(source, f"--out={tmp_path / 'out'}")
    texts += [printed, (tmp_path / "out" / "inspect.json").read_text()]
    assert any(text.startswith("p1") for text in texts), "the sheet's texts are seen"
    for word in (*SECRET.split("^"), SECRET):
        assert not any(word in text for text in texts)
    assert SECRET.encode() not in (tmp_path / "out" / "sheet.png").read_bytes()


def spy(method, seen):
    def observed(self, text):
        seen.append(str(text))
        return method(self, text)

    return observed


def test_missing_slices_of_a_series_are_a_problem(tmp_path):
    places = [place for place in range(SHAPE[2]) if place not in (9, 10)]
    seen = one(dicom_with_a_name(tmp_path / "scan", places=places))
    [problem] = seen.lines(PROBLEM)
    assert "2 slices missing" in problem and "see whether the series is complete" in problem


def test_a_real_tilted_series(data_root):
    seen = one(data_root / "dicom" / "ge_head_ct", views=1)
    assert (seen.format, seen.guess.modality) == ("DICOM", "ct")
    assert any("tilt" in note for note in seen.lines(NOTE))
    assert any("gaps" in problem for problem in seen.lines(PROBLEM))
    assert seen.view.shape[0] == sheets.SIDE


def test_memory_is_that_of_one_volume(tmp_path):
    """Five need no more than one."""
    for number in range(5):
        write(tmp_path / f"p{number}.nii", mr((128, 128, 64)) + number)

    def peak(paths):
        tracemalloc.start()
        inspect(paths)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    inspect([tmp_path])  # what is imported and kept once
    assert peak([tmp_path]) < 1.2 * peak([tmp_path / "p0.nii"])
