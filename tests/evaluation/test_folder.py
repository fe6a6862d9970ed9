# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the numbers equal a computation by hand, and what cannot be scored is named."""

import csv
import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from absl import flags
from PIL import Image
from scipy import ndimage
from skimage.metrics import structural_similarity

from contourdiff_jax import figures
from contourdiff_jax.commands import evaluate as commands_evaluate
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import cases, records
from contourdiff_jax.evaluation import folder as module
from contourdiff_jax.evaluation.folder import Reading, Request, evaluate
from contourdiff_jax.evaluation.metrics import catalogue, consistency, synthrad
from contourdiff_jax.evaluation.metrics.paired import PSNR_CAP
from contourdiff_jax.translation.sidecars import NOTICE
from contourdiff_jax.volumes import filenames, io, masks
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import PRESETS, Window
from contourdiff_jax.volumes.masks import body_mask
from contourdiff_jax.volumes.volume import Assumed

AFFINE = np.diag([5.0, 5.0, 6.0, 1.0])
GRID = {"axis": "axial", "spacing": 6.0, "size": 32}
PIXELS = np.array([[1, 0, 0, -31], [0, 1, 0, -27], [0, 0, 1, 0], [0, 0, 0, 1.0]])  # of pictures
HU = Reading(assumed=Assumed(None, (-1000.0, 1000.0), "right"))
FOLDERS = {"translated": "out", "truth": "truth", "real": "real"}
SHAPES = {"s1": (32, 28, 6), "s2": (30, 32, 7), "s3": (32, 32, 5)}


def head(seed, shape):
    """CT in HU and MR in arbitrary units of a blob with a shell and spots."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    r = np.sqrt((x / 0.7) ** 2 + (y / (0.65 + 0.1 * rng.random())) ** 2 + 0.1 * z**2)
    spots = ndimage.gaussian_filter(rng.standard_normal(shape), (3, 3, 1))
    brain, bone = r < 0.8, (r >= 0.8) & (r < 1)
    ct = np.where(bone, 900.0, np.where(brain, 35 + 40 * np.sign(spots), -1000.0))
    mr = np.where(bone, 20.0, np.where(brain, 500 + 250 * np.sign(spots), 0.0))
    return ct.astype(np.float32), ndimage.gaussian_filter(mr, (0.6, 0.6, 0)).astype(np.float32)


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    io.save(path, array, affine, np.float32)


def sidecar(path, shown_through, **changes):
    fields = {
        "schema": 1,
        "notice": NOTICE,
        "subject": filenames.subject_of(path),
        "preset": {"source": "ct", "target": "mr"},
        "window": [shown_through.low, shown_through.high],
        "grid": GRID,
        "contours": {name: contour_settings.preset("default", p).to_dict() for name, p in SIDES},
        "training_subjects_sha256": [hashlib.sha256(b"someone else").hexdigest()],
        "slices": 10,
        "seconds": 2.5,
    }
    text = json.dumps(fields | changes)
    path.with_name(f"{filenames.stem(path)}.json").write_text(text)


def as_pictures(folder, arrays):
    """NAME-NUMBER.png of [X, Y, Z] uint8, as radiologists see them."""
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        for number in range(array.shape[2]):
            picture = np.ascontiguousarray(array[::-1, ::-1, number].T)
            Image.fromarray(picture).save(folder / f"{name}-{number:03d}.png")


def test_pictures_are_a_truth_where_it_is_said_what_they_hold(tmp_path):
    """CT of 8 bits beside another image: which half it is, and what its numbers are in HU."""
    for n, name in enumerate(("s1", "s2", "r1")):
        ct, mr = head(n, (32, 28, 6))
        grey = np.uint8(np.clip((ct + 1000) / 2000, 0, 1) * 255)
        other = np.uint8(np.clip(mr / 1000, 0, 1) * 255)
        folder = "real" if name == "r1" else "truth"
        # As seen, the patient's right is on the left.
        as_pictures(tmp_path / folder / name, {name: np.concatenate([grey, other])})
        if folder == "truth":
            drawn = np.float32(grey) / 255 * 2000 - 1000
            save(tmp_path / "out" / f"{name}.nii.gz", drawn, PIXELS)
    given = {name: tmp_path / folder for name, folder in FOLDERS.items()}
    request = Request(**given, out=tmp_path / "scores", preset="ct", readings={"truth": HU})
    outcome = evaluate(request)
    assert not outcome.failed and outcome.metrics["methods"]["translation"]["mae"]["n"] == 2
    assert outcome.metrics["methods"]["translation"]["mae"]["value"] < 1e-4
    assert outcome.metrics["methods"]["mean"]["mae"]["value"] > 0.01
    assert "--truth_range=-1000.0,1000.0 --truth_half=right" in outcome.metrics["command"]
    for pictures_are, why in (
        (Assumed(None, None, "right"), "--real_range=LOW,HIGH, or --real_range=brain for heads$"),
        (Assumed(None, (-1000.0, 1000.0)), "grid"),
    ):
        other = {"truth": Reading(assumed=pictures_are)}
        with pytest.raises(InputError, match=why):
            evaluate(dataclasses.replace(request, out=tmp_path / "other", readings=other))
    volumes = dataclasses.replace(request, truth=tmp_path / "out", out=tmp_path / "other")
    with pytest.raises(InputError, match=r"^--truth_range: it is of pictures"):
        evaluate(volumes)
    alone = dataclasses.replace(volumes, truth=None, real=None, source=tmp_path / "out")
    with pytest.raises(InputError, match=r"^--truth_range: it is of --truth; give that"):
        evaluate(alone)


def test_what_pictures_of_the_truth_hold_is_said_by_flags(monkeypatch):
    asked = []
    monkeypatch.setattr(commands_evaluate, "evaluate", asked.append)
    values = flags.FlagValues()
    commands_evaluate.define_flags(values)
    line = "--translated=a --truth=b --out=c --truth_range=-1000,1000 --truth_half=right"
    values(["evaluate", *line.split()])
    assert commands_evaluate.main(values) == 0
    assert asked[0].reading("truth") == HU


def test_each_folder_is_understood_as_its_flags_say(tmp_path):
    """CT of 8 bits everywhere; the truth lies on its side."""
    grey = {n: np.uint8((head(k, (32, 28, 6))[0] + 1000) / 2000 * 255) for k, n in enumerate("ab")}
    lying = {name: array.swapaxes(0, 1)[:, ::-1] for name, array in grey.items()}
    as_pictures(tmp_path / "out", grey)
    as_pictures(tmp_path / "truth", lying)
    hu = (-1000.0, 1000.0)
    readings = {
        "translated": Reading(assumed=Assumed(range=hu)),
        "truth": Reading(assumed=Assumed(range=hu, rotate=90)),
    }
    given = {"truth": tmp_path / "truth", "preset": "ct", "pixel_spacing": 2.0}
    request = Request(tmp_path / "out", tmp_path / "scores", **given, readings=readings)
    outcome = evaluate(request)
    assert not outcome.failed and outcome.metrics["methods"]["translation"]["mae"]["value"] == 0
    for flag in ("pixel_spacing=2.0", "truth_rotate=90", "translated_range=-1000.0,1000.0"):
        assert f"--{flag}" in outcome.metrics["command"]
    with pytest.raises(InputError, match=r"^--source_range: the sidecars say that it is brain"):
        module._told(Assumed(range="brain"), Assumed(range=hu))


CONTOURS = {"contour_precision", "contour_recall", "contour_f1"}
ALONG_AXIS = {"slice_difference", "gradient_ratio", "gradient_energy", "flicker", "level_step"}
SIDES = (("source", "ct"), ("target", "mr"))


def own_window(array):
    return PRESETS["mr"].volume_window(array)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Three subjects: sources, truths, and translations that are the truths with some noise."""
    monkeypatch.setattr(module, "PANELS", 0)  # drawing takes longer than all the rest
    for seed, (subject, shape) in enumerate(SHAPES.items()):
        ct, mr = head(seed, shape)
        noise = np.random.default_rng(seed).normal(0, 30, shape).astype(np.float32)
        save(tmp_path / "source" / f"{subject}_ct.nii.gz", ct)
        save(tmp_path / "truth" / f"{subject}_mr.nii.gz", mr)
        save(tmp_path / "masks" / f"{subject}_mask.nii.gz", (ct > -900).astype(np.float32))
        path = tmp_path / "translated" / f"{subject}_ct.nii.gz"
        save(path, mr + noise)
        sidecar(path, own_window(mr))
    return tmp_path


def replace(data, subject, array, window):
    """Another translation of a subject."""
    path = data / "translated" / f"{subject}_ct.nii.gz"
    path.unlink()
    save(path, array)
    sidecar(path, window)


def truth_of(data, subject):
    return io.read(data / "truth" / f"{subject}_mr.nii.gz").array


def run(data, out="out", **options):
    folders = {"truth": data / "truth", "source": data / "source", "masks": data / "masks"}
    return evaluate(Request(data / "translated", data / out, **(folders | options)))


def rows_of(folder):
    with (folder / "rows.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


# ----------------------------------------------------------------------------------------------
# Numbers
# ----------------------------------------------------------------------------------------------


def by_hand(data, cut):
    """Means over slices, then over subjects, of scores from scikit-image and plain formulas."""
    subjects = []
    for subject in SHAPES:
        truth = truth_of(data, subject)
        window = own_window(truth)
        translation = io.read(data / "translated" / f"{subject}_ct.nii.gz").array
        mask = io.read(data / "masks" / f"{subject}_mask.nii.gz", labels=True).array
        scale = window.high - window.low
        cuts = [cut((a - window.low) / scale) for a in (translation, truth)] + [cut(mask)]
        scores = []
        for image, true, inside in zip(*cuts, strict=True):
            image, true, inside = np.clip(image, 0, 1), np.clip(true, 0, 1), inside > 0.5
            image, true = image.astype(np.float64), true.astype(np.float64)
            ssim, ssim_map = structural_similarity(image, true, data_range=1, full=True)
            error = image - true
            scores.append(
                {
                    "ssim": ssim,
                    "ssim_mask": ssim_map[inside].mean(),
                    "mae": np.abs(error).mean(),
                    "mae_mask": np.abs(error[inside]).mean(),
                    "psnr": 10 * np.log10(1 / np.mean(error**2)),
                    "psnr_mask": 10 * np.log10(1 / np.mean(error[inside] ** 2)),
                }
            )
        subjects.append({k: np.mean([s[k] for s in scores]) for k in scores[0]})
    return {k: np.mean([s[k] for s in subjects]) for k in subjects[0]}


def native(array):
    """Axial slices as they lie: the order of rows and columns does not change a score."""
    return np.moveaxis(array, 2, 0)


def model(array):
    return Grid(**GRID).fit(array.shape, AFFINE).slices(array, 0)


@pytest.mark.parametrize(("grid", "cut"), [("source", native), ("model", model)])
def test_the_table_equals_a_computation_by_hand(data, grid, cut):
    # the subjects have 5, 6 and 7 slices: a mean over all slices at once would differ
    got = run(data, grid=grid).metrics["methods"]["translation"]
    for metric, value in by_hand(data, cut).items():
        assert got[metric]["value"] == pytest.approx(value, abs=1e-6), metric
        assert got[metric]["n"] == 3
        assert got[metric]["low"] <= got[metric]["value"] <= got[metric]["high"]


def test_the_model_grid_is_said_in_the_data(data):
    on_source, on_model = run(data, "a").metrics, run(data, "b", grid="model").metrics
    assert "own" in on_source["data"]["grid of the comparison"]
    assert "resampled" in on_model["data"]["grid of the comparison"]
    ssim = [m["methods"]["translation"]["ssim"]["value"] for m in (on_source, on_model)]
    assert ssim[0] != ssim[1]


@pytest.mark.parametrize("grid", ["source", "model"])
def test_a_perfect_translation_is_perfect_in_any_units(data, grid):
    # the run's window is not the truth's: the same values lie at other numbers in the file
    window = Window(100.0, 300.0)
    for subject in SHAPES:
        truth = truth_of(data, subject)
        values = PRESETS["mr"].values(truth, own_window(truth))
        replace(data, subject, PRESETS["mr"].native(values, window), window)
    methods = run(data, grid=grid).metrics["methods"]
    for region in ("", "_mask"):
        assert methods["translation"][f"ssim{region}"]["value"] == pytest.approx(1, abs=1e-6)
        assert methods["translation"][f"mae{region}"]["value"] == pytest.approx(0, abs=1e-6)
        assert methods["translation"][f"psnr{region}"]["value"] == pytest.approx(PSNR_CAP, abs=1)
    # what is perfect draws the contours of the truth
    for metric, entry in methods["truth"].items():
        assert methods["translation"][metric]["value"] == pytest.approx(entry["value"], abs=1e-3)
    for metric, entry in methods["translation"].items():
        if metric.startswith("error") or metric.endswith("excess"):
            assert entry["value"] == pytest.approx(0, abs=1e-5), metric


def test_a_shifted_translation_is_worse(data):
    before = run(data, "before").metrics["methods"]["translation"]
    for subject in SHAPES:
        array = io.read(data / "translated" / f"{subject}_ct.nii.gz").array
        replace(data, subject, np.roll(array, 4, axis=0), own_window(truth_of(data, subject)))
    after = run(data, "after").metrics["methods"]["translation"]
    for metric in ("ssim", "ssim_mask", "psnr", "psnr_mask", "contour_f1"):
        assert after[metric]["value"] < before[metric]["value"], metric
    assert after["mae_mask"]["value"] > before["mae_mask"]["value"]


@pytest.mark.parametrize("preset", ["default", "original"])
def test_the_contours_of_the_source_itself_agree_fully(data, preset):
    # a source handed through, with one kind of settings: nothing moved, so the agreement is 1
    same = {name: contour_settings.preset(preset, "mr").to_dict() for name, _ in SIDES}
    for subject in SHAPES:
        path = data / "translated" / f"{subject}_ct.nii.gz"
        window = own_window(truth_of(data, subject))
        replace(data, subject, truth_of(data, subject), window)
        sidecar(path, window, preset={"source": "mr", "target": "mr"}, contours=same)
    methods = run(data, source=data / "truth").metrics["methods"]
    for method in ("translation", "source", "truth"):
        assert methods[method]["contour_f1"]["value"] == 1
    # the truth is a ceiling for contours and a measure of coherence, not scored against itself
    assert set(methods["truth"]) == CONTOURS | ALONG_AXIS


def test_hounsfield_errors_where_the_target_is_ct(data):
    for subject in SHAPES:
        ct = io.read(data / "source" / f"{subject}_ct.nii.gz").array
        path = data / "translated" / f"{subject}_ct.nii.gz"
        replace(data, subject, ct + np.where(ct > -900, 50, 0).astype(np.float32), Window(0, 1))
        sidecar(path, Window(0, 1), preset={"source": "mr", "target": "ct"})
    got = run(data, truth=data / "source", source=data / "truth").metrics["methods"]
    assert got["translation"]["mae_hu_mask"]["value"] == pytest.approx(50, abs=1e-3)
    assert got["translation"]["mae_mask"]["value"] == pytest.approx(50 / 2000, abs=1e-6)
    body = np.mean([(native(head(i, s)[0]) > -900).mean() for i, s in enumerate(SHAPES.values())])
    assert got["translation"]["mae_hu"]["value"] == pytest.approx(50 * body, abs=1e-3)


def test_fill_outside_the_scanner_does_not_rule_the_error(data):
    # -3024 HU marks what the scanner did not see; the error there is that of air
    ct = io.read(data / "source" / "s1_ct.nii.gz").array
    ct[0, 0] = -3024
    shutil.rmtree(data / "translated")
    save(data / "true" / "s1_ct.nii.gz", ct)
    path = data / "translated" / "s1_mr.nii.gz"
    save(path, np.maximum(ct, -1000))
    sidecar(path, Window(0, 1), preset={"source": "mr", "target": "ct"})
    request = Request(data / "translated", data / "out", truth=data / "true")
    got = evaluate(request).metrics["methods"]
    assert got["translation"]["mae_hu"]["value"] == pytest.approx(24 / (32 * 28), abs=1e-4)


def test_rows_average_to_the_table(data):
    metrics = run(data).metrics
    values, seconds = {}, {}
    for row in rows_of(data / "out"):
        key = (row["method"], row["metric"], row["subject"])
        values.setdefault(key, []).append(float(row["value"]))
        seconds.setdefault(row["method"], set()).add(row["seconds"])
    for method, scores in metrics["methods"].items():
        for metric, entry in scores.items():
            subjects = [np.mean(v) for k, v in values.items() if k[:2] == (method, metric)]
            assert np.mean(subjects) == pytest.approx(entry["value"], rel=1e-5)
    # 2.5 s for 10 slices; the baselines took no time worth writing down
    assert seconds.pop("translation") == {"0.25"}
    assert set().union(*seconds.values()) == {""}
    assert metrics["data"]["slices"] == sum(shape[2] for shape in SHAPES.values())


def test_files_are_paired_by_subject_whatever_their_order(data):
    before = run(data, "before").metrics["methods"]
    for subject, new in (("s1", "z9"), ("s2", "a0"), ("s3", "m5")):
        for folder in ("translated", "truth", "source", "masks"):
            for path in (data / folder).glob(f"{subject}_*"):
                path.rename(path.with_name(path.name.replace(subject, new)))
    after = run(data, "after").metrics["methods"]
    for method, scores in before.items():
        for metric, entry in scores.items():
            assert after[method][metric]["value"] == pytest.approx(entry["value"], rel=1e-12)


def test_slices_without_a_body_have_no_score_inside_it(data):
    path = data / "masks" / "s2_mask.nii.gz"
    mask = io.read(path, labels=True).array
    mask[:, :, 0] = 0
    path.unlink()
    save(path, mask)
    run(data)
    rows = [r for r in rows_of(data / "out") if r["subject"] == "s2" and r["slice"] == "0"]
    assert {r["metric"] for r in rows} == {"mae", "psnr", "ssim"}


def test_slices_run_along_the_axis_of_the_sidecar(data):
    for path in (data / "translated").glob("*.nii.gz"):
        window = own_window(truth_of(data, filenames.subject_of(path)))
        sidecar(path, window, grid=GRID | {"axis": "sagittal", "size": 40})
    thin = [
        reason for _, reason in run(data, "thin").failed
    ]  # 5 and 6 pixels, less than SSIM takes
    assert len(thin) == 2 and all("at least 7 x 7 are needed" in reason for reason in thin)
    for folder in ("translated", "truth", "source", "masks"):
        for path in (data / folder).glob("*.nii.gz"):
            array = np.repeat(io.read(path, labels=folder == "masks").array, 2, axis=2)
            path.unlink()
            save(path, array)
    assert run(data).metrics["data"]["slices"] == 32 + 30 + 32


# ----------------------------------------------------------------------------------------------
# Baselines
# ----------------------------------------------------------------------------------------------


def alone(data, source_of):
    """Scores of one head whose CT is a function of its MR, where real heads are that head too."""
    shutil.rmtree(data / "translated")
    truth = truth_of(data, "s1")
    for name in ("r1", "r2"):
        save(data / "real" / f"{name}_mr.nii.gz", 3 * truth)  # another scanner's unit
    path = data / "translated" / "s1_ct.nii.gz"
    save(path, truth[::-1])
    sidecar(path, own_window(truth), grid=GRID | {"spacing": 5.0})
    for folder, array in (
        ("source", source_of(truth / truth.max())),
        ("masks", body_mask(truth, AFFINE, "mr").astype(np.float32)),
    ):
        old = next((data / folder).glob("s1_*"))
        old.unlink()
        save(old, array)
    return run(data, real=data / "real").metrics


def test_baselines_are_the_truth_where_it_can_be_had_without_a_model(data):
    """If all real heads are this head, their mean is the truth, up to resampling; if its source is
    a monotone map of it, so is the matched histogram."""
    metrics = alone(data, lambda mr: -1000 + 2000 * mr**0.5)
    methods = metrics["methods"]
    assert list(methods) == ["translation", "source", "histogram", "curve", "mean", "truth", "real"]
    assert metrics["data"]["real volumes of the baselines"] == 2
    assert methods["mean"]["ssim"]["value"] > 0.98
    assert methods["histogram"]["mae_mask"]["value"] < 0.01
    assert methods["source"]["mae_mask"]["value"] > 0.05


def test_the_curve_is_the_truth_where_it_puts_greys_in_the_order_of_the_target(data):
    """Above 120 HU the greys of the default curve fall, to black at 1100 HU."""
    methods = alone(data, lambda mr: 1100 - 980 * mr)["methods"]
    assert methods["curve"]["mae_mask"]["value"] < 0.01
    assert methods["histogram"]["mae_mask"]["value"] > 0.2


def test_there_is_no_curve_where_windows_alone_make_the_picture(data):
    united = {n: contour_settings.preset("united", m).to_dict() for n, m in SIDES}
    for subject in SHAPES:
        path = data / "translated" / f"{subject}_ct.nii.gz"
        sidecar(path, own_window(truth_of(data, subject)), contours=united)
        save(data / "real" / f"r{subject}_mr.nii.gz", truth_of(data, subject))
    methods = run(data, real=data / "real").metrics["methods"]
    assert "histogram" in methods and "curve" not in methods


def test_copying_the_source_scores_its_greys_as_they_are_shown(data):
    run(data)
    truth = truth_of(data, "s1")
    ct = io.read(data / "source" / "s1_ct.nii.gz").array
    shown = (np.clip(ct, -1000, 1000) + 1000) / 2000
    error = np.abs(shown - own_window(truth).fraction(truth))
    got = [
        float(r["value"])
        for r in rows_of(data / "out")
        if (r["subject"], r["method"], r["metric"]) == ("s1", "source", "mae")
    ]
    assert got == pytest.approx(native(error).mean((1, 2)), abs=1e-6)


def test_baselines_never_see_the_subjects_that_are_scored(data):
    for seed in (7, 8):
        save(data / "real" / f"r{seed}_mr.nii.gz", head(seed, (32, 32, 6))[1])
    before = run(data, "before", real=data / "real").metrics
    shutil.copy(data / "truth" / "s1_mr.nii.gz", data / "real" / "s1_mr.nii.gz")
    after = run(data, "after", real=data / "real").metrics
    assert after["methods"] == before["methods"]
    assert after["data"]["real volumes left out"] == ["s1"]
    with pytest.raises(InputError, match="no baselines"):
        run(data, "only", real=data / "truth")


def test_a_real_volume_that_cannot_be_read_is_reported(data):
    save(data / "real" / "r1_mr.nii.gz", head(7, (32, 32, 6))[1])
    (data / "real" / "r2_mr.nii.gz").write_bytes(b"not an image")
    result = run(data, real=data / "real")
    assert [path.name for path, _ in result.failed] == ["r2_mr.nii.gz"]
    assert result.metrics["data"]["real volumes of the baselines"] == 1


# ----------------------------------------------------------------------------------------------
# Volumes
# ----------------------------------------------------------------------------------------------


def labelled(data):
    """Label maps: 1 the head, 5 spots inside it, of which s3 has none."""
    for subject in SHAPES:
        ct = io.read(data / "source" / f"{subject}_ct.nii.gz").array
        labels = (ct > -900).astype(np.float32)
        if subject != "s3":
            labels[14:17, 12:16, 2:4] = 5
        save(data / "labels" / f"{subject}_labels.nii.gz", labels)
    return data / "labels"


def test_coherence_is_measured_on_the_model_grid_beside_the_truth(data):
    methods = run(data).metrics["methods"]
    found, window = {}, own_window(truth_of(data, "s1"))
    mask = io.read(data / "masks" / "s1_mask.nii.gz", labels=True).array
    translation = io.read(data / "translated" / "s1_ct.nii.gz").array
    for name, array in (("translation", translation), ("truth", truth_of(data, "s1"))):
        slices = np.clip(model((array - window.low) / (window.high - window.low)), 0, 1)
        found[name] = consistency.along_axis(slices, model(mask) > 0.5, [6.0] * 5, (6.0, 6.0))
    for row in rows_of(data / "out"):
        if row["subject"] != "s1" or row["method"] not in found:
            continue
        known = dict(found[row["method"]])
        for metric, value in found["translation"].items():
            known[f"{metric}_excess"] = value - found["truth"][metric]
        if row["metric"] in known:
            assert float(row["value"]) == pytest.approx(known.pop(row["metric"]), rel=1e-4)
            assert row["slice"] == ""  # of the volume
    # noise of its own in every slice: more flicker than the truth
    assert methods["translation"]["flicker_excess"]["low"] > 0
    assert methods["translation"]["error_flicker"]["n"] == 3


def test_real_volumes_of_the_same_gaps_are_what_coherence_is_compared_with(data):
    thick = AFFINE @ np.diag([1, 1, 2, 1])
    for seed in (7, 8):
        save(data / "real" / f"r{seed}_mr.nii.gz", head(seed, (32, 32, 6))[1])
    one = run(data, "one", real=data / "real", truth=None).metrics
    methods = one["methods"]
    assert methods["real"]["flicker"]["n"] == 2
    for metric in ALONG_AXIS:
        ratio = methods["translation"][metric]["value"] / methods["real"][metric]["value"]
        got = methods["translation"][f"{metric}_to_real"]["value"]
        assert got == pytest.approx(ratio, rel=1e-5)
    save(data / "real" / "r9_mr.nii.gz", head(9, (32, 32, 6))[1], thick)
    other = run(data, "other", real=data / "real", truth=None).metrics
    assert other["methods"]["real"] == methods["real"]
    assert other["data"]["real volumes of the baselines"] == 3
    assert other["data"]["real volumes of the same gaps"] == 2


def test_reformatted_planes_have_scores_across_the_slices(data):
    methods = run(data).metrics["methods"]
    for axis in ("coronal", "sagittal"):
        assert 0 < methods["translation"][f"ssim_mask_{axis}"]["value"] < 1
    assert not any(metric.endswith("axial") for metric in methods["translation"])
    # every plane counts the same; here they are all there are, and hold all voxels of the body
    error = []
    for subject in SHAPES:
        truth, window = truth_of(data, subject), own_window(truth_of(data, subject))
        translation = io.read(data / "translated" / f"{subject}_ct.nii.gz").array
        mask = io.read(data / "masks" / f"{subject}_mask.nii.gz", labels=True).array > 0
        e = np.abs(window.fraction(translation) - window.fraction(truth))
        planes = [e[x][mask[x]].mean() for x in range(len(e)) if mask[x].mean() >= 0.01]
        error.append(np.mean(planes))
    got = methods["translation"]["mae_mask_sagittal"]["value"]
    assert got == pytest.approx(np.mean(error), rel=1e-5)


def test_labels_have_errors_and_contrasts_of_their_own(data):
    folder = labelled(data)
    for subject in ("s1", "s2"):
        path = data / "truth" / f"{subject}_mr.nii.gz"
        truth = truth_of(data, subject)
        window = own_window(truth)
        truth[14:17, 12:16, 2:4] = window.high  # lesions that only the truth has
        path.unlink()
        save(path, truth)
    methods = run(data, labels=folder).metrics["methods"]
    ours = methods["translation"]
    assert ours["mae_label_5"]["n"] == 2 and ours["mae_label_1"]["n"] == 3
    assert ours["mae_label_5"]["value"] > 2 * ours["mae_body"]["value"]
    assert ours["bias_label_5"]["value"] == pytest.approx(-ours["mae_label_5"]["value"], rel=0.1)
    contrasts = [methods[name]["contrast_label_5"]["value"] for name in ("truth", "translation")]
    assert contrasts[0] > 0.3 and abs(contrasts[1]) < 0.5 * contrasts[0]
    assert "mae_label_5" in methods["source"] and "mae_label_0" not in ours


def test_everything_that_is_measured_is_in_the_catalogue(data):
    save(data / "real" / "r1_mr.nii.gz", head(7, (32, 32, 6))[1])
    for path in (data / "translated").glob("*.nii.gz"):
        deviation = np.random.default_rng(0).random(io.read(path).array.shape)
        save(data / "std" / path.name, deviation.astype(np.float32))
    options = {"real": data / "real", "labels": labelled(data), "uncertainty": data / "std"}
    methods = run(data, **options, conventions="synthrad").metrics["methods"]
    measured = {metric for scores in methods.values() for metric in scores}
    assert len(measured) > 40
    assert not [metric for metric in measured if catalogue.of(metric) is catalogue.UNKNOWN]


def test_empty_labels_are_no_labels(data):
    for subject, shape in SHAPES.items():
        save(data / "labels" / f"{subject}_labels.nii.gz", np.zeros(shape, np.float32))
    methods = run(data, labels=data / "labels").metrics["methods"]
    assert not any("label" in metric for metric in methods["translation"])
    assert "mae_body" in methods["translation"]


def test_uncertainty_that_is_the_error_ranks_it_right(data):
    for subject in SHAPES:
        path = data / "translated" / f"{subject}_ct.nii.gz"
        window = own_window(truth_of(data, subject))
        shown = [
            np.clip(a, window.low, window.high)
            for a in (io.read(path).array, truth_of(data, subject))
        ]
        save(data / "std" / path.name, np.abs(shown[0] - shown[1]))
    ours = run(data, uncertainty=data / "std").metrics["methods"]["translation"]
    assert ours["uncertainty_spearman"]["value"] == pytest.approx(1, abs=1e-3)
    assert ours["ause"]["value"] == pytest.approx(0, abs=1e-3)
    assert ours["ause_chance"]["value"] > 0.1
    assert np.asarray(Image.open(data / "out" / "sparsification.png").convert("RGB")).std() > 20


def test_negative_deviations_are_refused(data):
    for seed, (subject, shape) in enumerate(SHAPES.items()):
        deviation = np.random.default_rng(seed).random(shape) - 0.1 * (subject == "s2")
        save(data / "std" / f"{subject}_ct.nii.gz", deviation.astype(np.float32))
    result = run(data, uncertainty=data / "std")
    assert [path.name for path, _ in result.failed] == ["s2_ct.nii.gz"]
    assert "no standard deviations" in result.failed[0][1]
    # of the others, drawn by lot, nothing ranks the errors
    ours = result.metrics["methods"]["translation"]
    assert abs(ours["uncertainty_spearman"]["value"]) < 0.1
    assert ours["ause"]["value"] == pytest.approx(ours["ause_chance"]["value"], rel=0.1)


def test_a_single_slice_has_no_coherence_and_is_scored(data):
    for folder in ("translated", "truth", "source", "masks"):
        for path in (data / folder).glob("*.nii.gz"):
            array = io.read(path, labels=folder == "masks").array[:, :, 2:3]
            path.unlink()
            save(path, array)
    result = run(data)
    assert not result.failed
    ours = result.metrics["methods"]["translation"]
    absent = {"error_flicker", "error_drift", "mae_mask_sagittal", "ssim_mask_coronal"}
    absent |= ALONG_AXIS - {"gradient_energy"}
    assert not absent & set(ours)
    assert {"ssim_mask", "contour_f1", "mae_body"} <= set(ours)


# ----------------------------------------------------------------------------------------------
# What is left out of the comparison
# ----------------------------------------------------------------------------------------------


def test_without_truth_only_contours_and_coherence_are_scored(data):
    methods = run(data, truth=None).metrics["methods"]
    assert set(methods) == {"translation", "source"}
    assert set(methods["translation"]) == CONTOURS | ALONG_AXIS


def test_without_source_only_images_are_scored(data):
    methods = run(data, source=None, masks=None).metrics["methods"]
    assert set(methods) == {"translation", "truth"}
    assert not any(metric.startswith("contour") for metric in methods["translation"])


def test_other_tools_need_no_sidecar(data):
    for path in (data / "translated").glob("*.json"):
        path.unlink()
    with pytest.raises(InputError, match=r"s1_ct\.nii\.gz: no sidecar.*--preset"):
        run(data)
    with pytest.raises(InputError, match="--source_preset"):
        run(data, preset="mr")
    metrics = run(data, preset="mr", source_preset="ct").metrics
    assert metrics["methods"]["translation"]["ssim"]["value"] > 0.5
    assert metrics["data"]["model grid"] == "axial, 32 x 32 px of 5 mm"


def test_a_subject_with_several_scans_counts_once():
    """The mean of its scans, as that of its slices, is one number among the subjects'."""
    rows = [
        (scan, 0, "translation", "mae", value, None)
        for scan, value in (("a_1", 1.0), ("a_2", 2.0), ("a_2", 4.0), ("b", 5.0))
    ]
    subject_of = {"a_1": "a", "a_2": "a", "b": "b"}
    of_subjects = records.summarise(rows, 0, subject_of)["translation"]["mae"]
    assert of_subjects["value"] == 3.5 and of_subjects["n"] == 2
    of_scans = records.summarise(rows, 0)["translation"]["mae"]
    assert of_scans["value"] == 3.0 and of_scans["n"] == 3
    data = records.subjects(["b", "a_2"], subject_of)
    expected = {"subjects": ["b", "a"], "scans": ["b", "a_2"], records.SUBJECTS: subject_of}
    assert data == expected and records.count(data) == "2 subjects in 2 scans"
    single = records.subjects(["a_1", "b"], {"a_1": "a", "b": "b"})
    assert single == {"subjects": ["a_1", "b"]} and records.count(single) == "2 subjects"


@pytest.fixture
def sessions(tmp_path, monkeypatch):
    """Two sessions of one subject and one of another, with other noise in each translation."""
    monkeypatch.setattr(module, "PANELS", 0)
    names = [("sub-01", "ses-1"), ("sub-01", "ses-2"), ("sub-02", "ses-1")]
    for seed, (subject, session) in enumerate(names):
        _, mr = head(seed, (32, 28, 6))
        noise = np.random.default_rng(seed).normal(0, 30 * (seed + 1), mr.shape)
        for folder, array in (("truth", mr), ("translated", mr + noise)):
            place = tmp_path / folder / subject / session / "anat"
            save(place / f"{subject}_{session}_T1w.nii.gz", array.astype(np.float32))
    return tmp_path


def test_scans_are_not_subjects(sessions, capsys):
    status, out, _ = command(capsys, sessions, f"--truth={sessions / 'truth'}", "--preset=mr")
    assert status == 0 and "2 subjects in 3 scans scored" in out
    metrics = json.loads((sessions / "out" / "metrics.json").read_text())
    data, scans = metrics["data"], ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]
    assert (data["subjects"], data["scans"]) == (["sub-01", "sub-02"], scans)
    assert data[records.SUBJECTS] == {scan: scan[:6] for scan in scans}
    # Two scans of one subject are one number, and rows say which scan they are of.
    values = {}
    for row in rows_of(sessions / "out"):
        if row["method"] == "translation" and row["metric"] == "mae":
            values.setdefault(row["subject"], []).append(float(row["value"]))
    first, second, third = (np.mean(values[scan]) for scan in scans)
    entry = metrics["methods"]["translation"]["mae"]
    assert entry["n"] == 2
    assert entry["value"] == pytest.approx(((first + second) / 2 + third) / 2, rel=1e-5)


def test_one_subject_has_no_interval_and_the_file_is_valid_json(data):
    for path in (data / "translated").glob("s[23]*"):
        path.unlink()

    def refuse(constant):
        raise AssertionError(constant)

    replace(data, "s1", truth_of(data, "s1"), own_window(truth_of(data, "s1")))
    run(data)
    text = (data / "out" / "metrics.json").read_text()
    entry = json.loads(text, parse_constant=refuse)["methods"]["translation"]["psnr"]
    assert entry == {"value": PSNR_CAP, "low": None, "high": None, "n": 1}


# ----------------------------------------------------------------------------------------------
# Bad input
# ----------------------------------------------------------------------------------------------


def test_the_layouts_own_masks_are_used_where_none_are_given(data):
    """As SynthRAD has them, of whichever side is given; --masks=FOLDER finds the same."""
    for subject in SHAPES:
        for kind, folder in (("ct", "source"), ("mr", "truth"), ("mask", "masks")):
            path = data / "synthrad/Task1/AB" / subject / f"{kind}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / folder / f"{subject}_{kind}.nii.gz", path)
    given, root = run(data, "given").metrics, data / "synthrad"
    for number, folders in enumerate(
        (
            {"truth": root, "source": root, "masks": None},
            {"source": root, "masks": None},
            {"truth": root, "masks": None},
            {"truth": root, "source": root, "masks": root},
        )
    ):
        scored = run(data, str(number), **folders).metrics
        assert scored["methods"]["translation"] == given["methods"]["translation"]
        said = scored["data"]["body mask"]
        assert said == ("given" if folders["masks"] else "the layout's")
    (root / "Task1/AB/s1/mask.nii.gz").unlink()
    part = run(data, "part", truth=root, source=root, masks=None)
    assert part.metrics["data"]["body mask"] == "the layout's, else computed from the source"


@pytest.mark.parametrize(
    ("kept", "file", "recorded"),
    [
        ("s2", "s2_ct", "s2"),
        # As earlier versions kept them, that knew fewer words for what is shown.
        ("s2-T1", "s2_ct", "s2"),
        ("s2_t1ce", "s2_ct", "s2"),
        ("sub-s2_ses-1", "sub-s2_ses-1_ct", "sub-s2_ses-1"),
        # The file's name says less than that of its source did.
        ("s2", "CT", "s2"),
    ],
)
def test_a_subject_of_the_training_data_is_known_by_its_names_of_before(data, kept, file, recorded):
    digest = hashlib.sha256(kept.encode()).hexdigest()
    truth = truth_of(data, "s2")
    path = data / "one" / f"{file}.nii.gz"
    save(path, truth)
    sidecar(path, own_window(truth), subject=recorded, training_subjects_sha256=[digest])
    request = Request(path, data / "out", truth=data / "truth/s2_mr.nii.gz")
    with pytest.raises(InputError, match="was used for training"):
        evaluate(request)


def test_a_translation_is_not_its_own_truth(data):
    result = "--truth has this file itself"
    with pytest.raises(InputError, match=result):
        run(data, truth=data / "translated")


def test_a_subject_of_the_training_data_is_an_error(data):
    digests = [hashlib.sha256(name).hexdigest() for name in (b"s0", b"s2")]
    sidecar(data / "translated" / "s2_ct.nii.gz", Window(0, 1), training_subjects_sha256=digests)
    with pytest.raises(InputError, match=r"'s2' was used for training"):
        run(data)
    assert not (data / "out").exists()


def test_a_name_is_drawn_as_it_is(recwarn):
    """It is no formula, and may be in letters that the font lacks."""
    picture = {"translation": np.zeros((1, 2, 2))}
    drawn = [
        figures.png(figures.panel(name, picture, None, np.zeros(1)))
        for name in ("a$_$b", "a$x$b", "头", "a")
    ]
    assert len(set(drawn)) == len(drawn) and not recwarn.list


def test_what_a_volume_makes_fail_ends_nothing_else(data, monkeypatch):
    def mask(array, *given):
        if array.shape == SHAPES["s2"]:
            raise MemoryError("63.5 TiB")
        return body_mask(array, *given)

    for used in (cases, masks):  # the translation's own, and that of a real volume
        monkeypatch.setattr(used, "body_mask", mask)
    result = run(data, masks=None)
    [(path, why)] = result.failed
    assert path.name == "s2_ct.nii.gz" and "not enough memory" in why
    assert len(result.metrics["data"]["subjects"]) == 2
    save(data / "real" / "s9_mr.nii.gz", truth_of(data, "s1"))
    save(data / "real" / "s8_mr.nii.gz", truth_of(data, "s2"))
    result = run(data, "again", real=data / "real")
    assert [path.name for path, _ in result.failed] == ["s8_mr.nii.gz"]
    assert len(result.metrics["data"]["subjects"]) == 3


def test_a_lost_sidecar_is_its_volume_s_failure(data):
    """The others are translations still, and no images that the tool made beside a source."""
    (data / "translated" / "s2_ct.json").unlink()
    result = run(data)
    [(path, why)] = result.failed
    assert path.name == "s2_ct.nii.gz" and "no sidecar, where other volumes have theirs" in why
    assert result.metrics["data"]["subjects"] == ["s1", "s3"]


def test_translations_of_two_models_have_no_score(data):
    """Those of versions that did not say the model's digest may be of either."""
    windows = {subject: own_window(truth_of(data, subject)) for subject in SHAPES}
    for (subject, window), digest in zip(windows.items(), ("aa", "aa", None), strict=True):
        made = {} if digest is None else {"checkpoint": {"digest": digest}}
        sidecar(data / "translated" / f"{subject}_ct.nii.gz", window, **made)
    assert run(data).metrics["data"][records.WEIGHTS] == "aa"
    path = data / "translated" / "s2_ct.nii.gz"
    sidecar(path, windows["s2"], checkpoint={"digest": "bb"})
    with pytest.raises(InputError, match=r"s2_ct.*by another model than s1_ct"):
        run(data, "other")


def test_a_first_volume_that_is_damaged_does_not_say_the_grid(data):
    for path in (data / "translated").glob("*.json"):
        path.unlink()
    (data / "translated" / "s1_ct.nii.gz").write_bytes(b"no volume")
    [(path, _)] = run(data, preset="mr", source_preset="ct").failed
    assert path.name == "s1_ct.nii.gz"


def test_what_cannot_be_scored_is_named_and_the_rest_is_scored(data, capsys):
    (data / "truth" / "s1_mr.nii.gz").unlink()
    (data / "translated" / "s2_ct.json").write_text("{broken")
    values = flags.FlagValues()
    commands_evaluate.define_flags(values)
    folders = [f"--{name}={data / name}" for name in ("translated", "truth", "source", "masks")]
    values(["evaluate", *folders, f"--out={data / 'out'}"])
    assert commands_evaluate.main(values) == 1
    printed = capsys.readouterr()
    assert "no volume of the subject 's1' in --truth" in printed.err
    assert "s2_ct.json: cannot be read as JSON" in printed.err
    assert "1 subjects scored" in printed.out and "contour F1 ↑" in printed.out
    metrics = json.loads((data / "out" / "metrics.json").read_text())
    assert metrics["data"]["subjects"] == ["s3"] and len(metrics["data"]["failed"]) == 2


def command(capsys, data, *given):
    """(exit status, what it printed, lines of its standard error) of the command."""
    values = flags.FlagValues()
    commands_evaluate.define_flags(values)
    values(["evaluate", f"--translated={data / 'translated'}", f"--out={data / 'out'}", *given])
    status = commands_evaluate.main(values)
    printed = capsys.readouterr()
    return status, printed.out, printed.err.splitlines()


def test_truths_that_lie_a_little_aside_are_scored_at_the_best_place_too(data, capsys):
    status, out, _ = command(capsys, data, f"--truth={data / 'truth'}", "--shift=6")
    assert status == 0 and "SSIM in the body, shifted ↑" in out
    methods = json.loads((data / "out" / "metrics.json").read_text())["methods"]["translation"]
    for metric in ("ssim", "psnr"):
        assert methods[f"{metric}_shifted"]["value"] >= methods[f"{metric}_mask"]["value"]
    with pytest.raises(InputError, match="--shift=21: 0 to 10 mm"):
        command(capsys, data, f"--truth={data / 'truth'}", "--shift=21")
    with pytest.raises(InputError, match="--shift is that of the truth; give --truth"):
        command(capsys, data, f"--source={data / 'source'}", "--shift=4")


def test_what_was_not_translated_is_named(data, capsys):
    for suffix in ("nii.gz", "json"):
        (data / "translated" / f"s2_ct.{suffix}").unlink()
    status, out, lines = command(capsys, data, f"--truth={data / 'truth'}")
    assert (status, lines) == (0, ["note: no translation of s2 of --truth"])
    assert "2 subjects scored" in out
    metrics = json.loads((data / "out" / "metrics.json").read_text())
    assert metrics["data"]["of --truth without a translation"] == ["s2"]


def pictures(data, folder, dtype, sizes=(24, 24, 24), low=0):
    """Slices of one subject, <folder>/a-000.png, or .npy where they are signed."""
    (data / folder).mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        array = rng.integers(low, 200, (size, size)).astype(dtype)
        if low < 0:
            np.save(data / folder / f"a-{number:03d}.npy", array)
        else:
            Image.fromarray(array).save(data / folder / f"a-{number:03d}.png")
    return data / folder


@pytest.mark.parametrize(
    ("dtype", "why"),
    [
        (np.uint8, "hold no HU; say .*--translated_range=brain for heads$"),
        (np.uint16, "no value is below 0, so these are no HU; take off"),
    ],
)
def test_unsigned_pictures_are_no_hounsfield_units(tmp_path, dtype, why):
    made = [pictures(tmp_path, name, dtype) for name in ("translated", "truth")]
    options = {"truth": made[1], "preset": "ct"}
    with pytest.raises(InputError, match=why):
        evaluate(Request(made[0], tmp_path / "out", **options))
    with pytest.raises(InputError, match="no sidecar beside it, so --preset"):
        evaluate(Request(made[0], tmp_path / "out", truth=made[1]))
    signed = [pictures(tmp_path, f"{name}_hu", np.int16, low=-999) for name in ("a", "b")]
    request = Request(signed[0], tmp_path / "out", truth=signed[1], preset="ct")
    assert not evaluate(request).failed


def test_one_picture_is_scored_without_an_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PANELS", 0)
    made = [pictures(tmp_path, name, np.uint16, (24,)) for name in ("translated", "truth")]
    metrics = evaluate(Request(made[0], tmp_path / "out", truth=made[1], preset="mr")).metrics
    entry = metrics["methods"]["translation"]["ssim"]
    assert entry == {"value": pytest.approx(1), "low": None, "high": None, "n": 1}


def test_a_damaged_picture_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PANELS", 0)
    made = [pictures(tmp_path, name, np.uint8) for name in ("translated", "truth")]
    (made[0] / "b-000.png").write_bytes(b"no picture")
    request = Request(made[0], tmp_path / "out", truth=made[1], preset="mr")
    (_, why), *others = evaluate(request).failed
    assert "b-000.png" in why and "\n" not in why and not others


def test_constant_volumes_are_named(data):
    for name, subject in (("translated", "s1_ct"), ("truth", "s2_mr")):
        path = data / name / f"{subject}.nii.gz"
        path.unlink()
        save(path, np.full(SHAPES[subject[:2]], 7, np.float32))
    failed = run(data).failed
    assert len(failed) == 2 and all("constant volume, every voxel is 7" in why for _, why in failed)


def test_masks_of_another_grid_and_empty_ones_are_refused(data):
    for subject, mask in (("s1", np.ones((9, 9, 9))), ("s2", np.zeros(SHAPES["s2"]))):
        path = data / "masks" / f"{subject}_mask.nii.gz"
        path.unlink()
        save(path, mask.astype(np.float32))
    (_, other), (_, empty) = run(data).failed
    assert "s1_mask.nii.gz lies on another grid" in other and "an empty mask" in empty


@pytest.mark.parametrize("wrong", ["shape", "affine"])
def test_another_grid_is_refused(data, wrong):
    path = data / "truth" / "s1_mr.nii.gz"
    truth = io.read(path).array
    path.unlink()
    if wrong == "shape":
        save(path, truth[:-1])
    else:
        moved = AFFINE.copy()
        moved[0, 3] = (
            2.0  # mm, less than half a voxel, and yet every pixel is compared with another
        )
        save(path, truth, moved)
    result = run(data)
    assert len(result.failed) == 1
    assert "s1_mr.nii.gz lies on another grid" in result.failed[0][1]


def test_rounding_in_a_header_is_not_another_grid(data):
    path = data / "truth" / "s1_mr.nii.gz"
    truth = io.read(path).array
    path.unlink()
    save(path, truth, AFFINE + 1e-4 * np.eye(4)[:, ::-1] * [[1], [1], [1], [0]])
    assert not run(data).failed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "not of schema 1"),
        ({"window": [1]}, "window: [1], where a list of 2 belongs"),
        ({"window": [1, 1]}, "no intensity window: 1 to 1"),
        ({"window": [0, 1e300]}, "no intensity window: 0 to 1e+300"),
        ({"slices": 0}, "slices: 0"),
        ({"cost": {"devices": True}}, "cost.devices: True, where a whole number"),
        ({"training_subjects_sha256": "abc"}, "training_subjects_sha256: 'abc', where a list"),
        ({"grid": GRID | {"spacing": 1e300}}, "spacing must lie between"),
        ({"preset": {"source": "ct", "target": "pet"}}, "no intensity preset 'pet'"),
        ({"contours": {"source": {}, "target": {}}}, "contours"),
    ],
)
def test_damaged_sidecars_are_one_line(data, changes, message):
    path = data / "translated" / "s1_ct.nii.gz"
    sidecar(path, own_window(truth_of(data, "s1")), **changes)
    result = run(data)
    assert message in result.failed[0][1] and "s1_ct.json" in result.failed[0][1]
    assert "\n" not in result.failed[0][1]


def test_translations_of_different_runs_are_not_mixed(data):
    window = own_window(truth_of(data, "s3"))
    sidecar(data / "translated" / "s3_ct.nii.gz", window, grid=GRID | {"spacing": 3.0})
    with pytest.raises(InputError, match=r"s3_ct\.nii\.gz: made with another preset, grid"):
        run(data)


def test_bad_requests(data):
    with pytest.raises(InputError, match="nothing to compare with"):
        run(data, truth=None, source=None)
    for name in ("labels", "uncertainty"):
        with pytest.raises(InputError, match=f"--{name} is about errors, which need --truth"):
            run(data, truth=None, **{name: data / "masks"})
    with pytest.raises(InputError, match="--conventions is about errors, which need --truth"):
        run(data, truth=None, conventions="synthrad")
    nothing = {"truth": None, "source": None, "memorisation": data}
    for option, changes in (
        ({"masks": data / "masks"}, nothing),
        ({"real": data / "truth"}, nothing | {"masks": None}),
        ({"grid": "model"}, {"truth": None}),
    ):
        with pytest.raises(InputError, match=f"--{next(iter(option))}"):
            run(data, **(changes | option))
    with pytest.raises(InputError, match="--grid=native"):
        run(data, grid="native")
    with pytest.raises(InputError, match="--conventions=mine: known are synthrad"):
        run(data, conventions="mine")
    with pytest.raises(InputError, match="no known layout"):
        evaluate(Request(data, data.with_name("out"), truth=data / "truth"))
    with pytest.raises(InputError, match="--preset=ct, but the sidecars say mr"):
        run(data, preset="ct")
    shutil.copy(data / "truth" / "s1_mr.nii.gz", data / "truth" / "s1_t1.nii.gz")
    with pytest.raises(InputError, match=r"s1_t1\.nii\.gz: s1_mr\.nii\.gz belongs"):
        run(data)


def test_nothing_scored_leaves_nothing_behind(data):
    for path in (data / "truth").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    before = sorted(data.iterdir())
    with pytest.raises(InputError, match=r"none of 3 volumes could be scored: .*'s1'"):
        run(data)
    assert sorted(data.iterdir()) == before


def test_only_an_evaluation_is_ever_replaced(data):
    run(data)
    with pytest.raises(InputError, match="--overwrite"):
        run(data)
    (data / "out" / "notes.md").write_text("mine")
    run(data, overwrite=True)
    assert (data / "out" / "notes.md").read_text() == "mine"
    with pytest.raises(InputError, match=r"--out=.*/truth: lies in --truth"):
        run(data, "truth", overwrite=True)
    assert len(list((data / "truth").iterdir())) == 3


# ----------------------------------------------------------------------------------------------
# Panels
# ----------------------------------------------------------------------------------------------


def test_panels_show_every_subject(data, monkeypatch):
    monkeypatch.setattr(module, "PANELS", 8)
    run(data)
    panels = sorted((data / "out" / "panels").iterdir())
    assert [path.name for path in panels] == ["s1.png", "s2.png", "s3.png"]
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in panels]
    assert all(picture.std() > 30 for picture in pictures)  # pictures, not empty axes
    views = sorted((data / "out" / "views").iterdir())
    assert [path.name for path in views] == ["s1.png", "s2.png", "s3.png"]
    assert all(np.asarray(Image.open(path).convert("RGB")).std() > 30 for path in views)
    # source, contours, translation, truth and error are wider than they would be without truth
    run(data, "contours_only", truth=None)
    narrow = np.asarray(Image.open(data / "contours_only" / "panels" / "s1.png"))
    assert narrow.shape[1] < pictures[0].shape[1]


def test_panels_are_few(data, monkeypatch):
    monkeypatch.setattr(module, "PANELS", 2)
    run(data)
    assert len(list((data / "out" / "panels").iterdir())) == 2


# ----------------------------------------------------------------------------------------------
# Conventions of challenges
# ----------------------------------------------------------------------------------------------


def test_volumes_are_scored_as_synthrad_does(data):
    path = data / "translated" / "s1_mr.nii.gz"
    shutil.rmtree(data / "translated")
    ct = io.read(data / "source" / "s1_ct.nii.gz").array
    save(path, ct + np.random.default_rng(0).normal(0, 90, ct.shape).astype(np.float32))
    sidecar(path, Window(0, 1), preset={"source": "mr", "target": "ct"})
    mask = io.read(data / "masks" / "s1_mask.nii.gz", labels=True).array > 0
    arguments = {"truth": data / "source", "source": data / "truth", "conventions": "synthrad"}
    metrics = run(data, **arguments).metrics
    # the files of the challenge are in LPS order
    image, truth, mask = (a[::-1, ::-1] for a in (io.read(path).array, ct, mask))
    expected = synthrad.scores(image, truth, mask, -1024, 3071, 2)
    got = metrics["methods"]["translation"]
    assert expected.keys() == {"synthrad_mae", "synthrad_psnr"}  # of 6 slices of 32 x 28 px
    for name, value in expected.items():
        assert got[name]["value"] == pytest.approx(value, abs=1e-6)
    assert got["synthrad_mae"]["value"] == pytest.approx(90 * np.sqrt(2 / np.pi), rel=0.05)
    assert "synthrad_mae" in metrics["methods"]["source"]
    assert "none where a slice has a side below 161 px" in metrics["data"]["synthrad"]
    assert "--conventions=synthrad" in metrics["command"]


def test_synthrad_on_mr_says_that_it_is_not_the_challenge(data):
    metrics = run(data, conventions="synthrad").metrics
    assert "has CT as target alone" in metrics["data"]["synthrad"]
    body = metrics["methods"]["translation"]["mae_body"]["value"]
    # values beyond the window count in the challenge's MAE alone
    assert body <= metrics["methods"]["translation"]["synthrad_mae"]["value"] < 1.5 * body
