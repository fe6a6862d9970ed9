# SPDX-License-Identifier: Apache-2.0
"""The command segment: what is learnt, that the numbers are those of the files, and bad input.

The images are easy: a body, and in it an organ that is brighter.
"""

import csv
import functools
import json
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest

from contourdiff_jax import cli
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import records, unpaired
from contourdiff_jax.evaluation.folder import Request, evaluate
from contourdiff_jax.evaluation.metrics import overlap
from contourdiff_jax.evaluation.segmentation import protocol as module
from contourdiff_jax.evaluation.segmentation import trained
from contourdiff_jax.evaluation.segmentation.protocol import segment
from contourdiff_jax.evaluation.unpaired import Options
from contourdiff_jax.models import segmenter
from contourdiff_jax.reports import page as report
from contourdiff_jax.runtime import ownership
from contourdiff_jax.translation.sidecars import NOTICE
from contourdiff_jax.volumes import filenames, io

BODY, ORGAN = 3, 7  # numbers of the labels
SIZE, SPACING = 32, 4.0


@pytest.fixture(scope="module", autouse=True)
def small():
    """A network that compiles in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        build = functools.partial(segmenter.build, channels=(8, 16))
        patch.setattr(segmenter, "build", build)
        patch.setattr(segmenter, "FEATURES", 16)
        trained._compiled.cache_clear()
        yield
        trained._compiled.cache_clear()


def subject(
    folder,
    labels,
    name,
    *,
    organ=900.0,
    around=350.0,
    kind="mr",
    suffix="labels",
    affine=None,
    seed=0,
):
    """Saves an image and its label map."""
    rng = np.random.default_rng((seed, *name.encode()))
    shape = (26, 30, 6)
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = (x / 0.8) ** 2 + (y / 0.85) ** 2 < 1
    centre = rng.uniform(-0.25, 0.25, 2)
    inside = ((x - centre[0]) / 0.35) ** 2 + ((y - centre[1]) / 0.3) ** 2 < 1
    image = np.where(inside, organ, np.where(body, around, 0)) + rng.normal(0, 15, shape)
    truth = np.where(inside, ORGAN, np.where(body, BODY, 0))
    affine = np.diag([4.2, 3.9, 7.0, 1.0]) if affine is None else affine
    for path, array, dtype in (
        (folder / f"{name}_{kind}.nii.gz", np.maximum(image, 0), np.float32),
        (labels / f"{name}_{suffix}.nii.gz", truth, np.uint8),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        io.save(path, array, affine, dtype, overwrite=True)


def made(root):
    """Three to train on, as translations and as other images, two to test and two more real."""
    flipped = np.diag([-4.2, -3.9, 7.0, 1.0])  # the files' axes run the other way
    flipped[:2, 3] = 100
    for name in ("a1", "a2", "a3"):
        subject(root / "train", root / "train_labels", name)
        subject(root / "lower", root / "train_labels", name, organ=100, around=900, kind="t2")
    for name in ("b1", "b2"):
        subject(root / "test", root / "test_labels", name, affine=flipped)
    for name in ("c1", "c2"):
        subject(root / "upper", root / "upper_labels", name)
    return root


def arguments(root, **changes):
    names = {"train_images": "train", "test_images": "test"}
    names |= {f"{which}_labels": f"{which}_labels" for which in ("train", "test")}
    fields = {name: root / folder for name, folder in names.items()}
    fields |= {"out": root / "out", "preset": "mr", "spacing": SPACING, "size": SIZE}
    return fields | {"images": 320, "batch": 4, "seeds": 1} | changes


def request(root, **changes):
    return module.Request(**arguments(root, **changes))


@pytest.fixture
def data(tmp_path):
    return made(tmp_path)


@pytest.fixture
def untrained(monkeypatch):
    """Networks that nothing is learnt by, where something else is asked."""

    def weights(ours, *_):
        shapes = jax.eval_shape(segmenter.build(len(ours.labels)).init, jax.random.key(0))
        return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)

    monkeypatch.setattr(module, "_weights", weights)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run with both bounds and two seeds."""
    root = made(tmp_path_factory.mktemp("segment"))
    bounds = {"lower_images": root / "lower", "lower_preset": "mr"}
    bounds |= {"upper_images": root / "upper", "upper_labels": root / "upper_labels"}
    (root / "out.runs").mkdir()
    (root / "out.runs" / "notes.md").write_text("mine")
    result = segment(request(root, seeds=2, **bounds))
    assert not result.failed
    return root


def read_metrics(root):
    return json.loads((root / "out" / "metrics.json").read_text())


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


# ----------------------------------------------------------------------------------------------
# What is learnt, and how it is told
# ----------------------------------------------------------------------------------------------


def test_an_easy_task_is_learnt_and_the_wrong_images_teach_nothing(done):
    methods = read_metrics(done)["methods"]
    assert list(methods) == ["translation", "lower", "upper", "grid"]
    # Labels drawn by lot would have a Dice of their share of the image: 0.5 and 0.1.
    for method in ("translation", "upper"):
        assert methods[method][f"dice_{BODY}"]["value"] > 0.85
        assert methods[method][f"dice_{ORGAN}"]["value"] > 0.8
        assert methods[method]["hd95"]["value"] < 12
    assert methods["lower"][f"dice_{ORGAN}"]["value"] < 0.3
    best = methods["grid"]
    assert methods["upper"]["dice"]["value"] < best["dice"]["value"] > 0.93
    assert best["assd"]["value"] < 2
    assert {entry["n"] for entry in methods["upper"].values()} == {2}


def test_the_numbers_are_those_of_the_files(done):
    """Dice and distances of the label maps that were written, through the files' own headers."""
    found = {
        (row["subject"], row["method"], row["seed"], row["metric"]): float(row["value"])
        for row in rows(done / "out" / "seeds.csv")
        if row["value"]
    }
    for name in ("b1", "b2"):
        file = nib.load(done / "test_labels" / f"{name}_labels.nii.gz")
        truth = np.asarray(file.dataobj)
        for seed in ("0", "1"):
            path = done / "out" / "predictions" / f"translation_{seed}" / f"{name}_mr.nii.gz"
            image = nib.load(path)
            predicted = np.asarray(image.dataobj)
            assert predicted.dtype == np.uint8 and set(np.unique(predicted)) <= {0, BODY, ORGAN}
            np.testing.assert_allclose(image.affine, file.affine)
            for label in (BODY, ORGAN):
                dice = overlap.dice(predicted, truth, [label])[label]
                key = (name, "translation", seed)
                assert found[*key, f"dice_{label}"] == pytest.approx(dice, rel=1e-6)
                scores = overlap.distances(predicted == label, truth == label, (4.2, 3.9, 7.0))
                assert found[*key, f"assd_{label}"] == pytest.approx(scores["assd"], rel=1e-6)
                assert found[*key, f"hd95_{label}"] == pytest.approx(scores["hd95"], rel=1e-6)
            mean = np.mean([found[*key, f"dice_{label}"] for label in (BODY, ORGAN)])
            assert found[*key, "dice"] == pytest.approx(mean, rel=1e-6)


def test_a_subject_s_number_is_the_mean_over_seeds_and_the_interval_is_over_subjects(done):
    of_seeds = {}
    for row in rows(done / "out" / "seeds.csv"):
        if row["value"]:
            key = row["subject"], row["method"], row["metric"]
            of_seeds.setdefault(key, []).append(float(row["value"]))
    listed = rows(done / "out" / "rows.csv")
    assert list(listed[0]) == list(records.COLUMNS)
    values = {}
    for row in listed:
        key = row["subject"], row["method"], row["metric"]
        values.setdefault(key[1:], []).append(float(row["value"]))
        if row["method"] != module.GRID:
            assert len(of_seeds[key]) == 2
            assert float(row["value"]) == pytest.approx(np.mean(of_seeds[key]), rel=1e-5)
    for method, metrics in read_metrics(done)["methods"].items():
        for metric, entry in metrics.items():
            assert entry["value"] == pytest.approx(np.mean(values[method, metric]), rel=1e-5)
            assert entry["low"] <= entry["value"] <= entry["high"]


def test_the_record_says_what_was_done(done):
    metrics = read_metrics(done)
    assert metrics["schema"] == records.SCHEMA
    assert metrics["command"].startswith("contourdiff segment --train_images=")
    data = metrics["data"]
    assert data["subjects"] == ["b1", "b2"] and data["labels"] == [BODY, ORGAN]
    assert data["trained on"]["lower"].startswith("3 subjects, 18 slices, preset mr, 320 images")
    assert set(data["dice of each network"]) == {
        f"{method}, seed {seed}" for method in ("translation", "lower", "upper") for seed in (0, 1)
    }
    names = {path.name for path in (done / "out").iterdir()}
    assert names == {
        ownership.MARK,
        "metrics.json",
        "rows.csv",
        "seeds.csv",
        "panels",
        "predictions",
        "runs",
        "weights",
    }
    assert len(list((done / "out" / "weights").iterdir())) == 6
    assert [path.name for path in (done / "out.runs").iterdir()] == ["notes.md"]


def test_the_report_shows_a_table_for_each_score(done, tmp_path):
    page = report.report(tmp_path / "report.html", [done / "out"]).read_text()
    for shown in ("Dice, label 3 ↑", "ASSD [mm], label 7 ↓", "HD95 [mm], label 7 ↓"):
        assert page.count(shown) == 1
    assert page.count("data:image/png") == 3  # two panels, and the strips of all subjects
    assert "what the translation must beat" in page and '<tr class="ours"><th>translation' in page


def test_several_are_compared_by_subject(done, tmp_path):
    shutil.copytree(done / "out", tmp_path / "again")
    page = report.report(tmp_path / "report.html", [done / "out", tmp_path / "again"]).read_text()
    compared = page[page.index("<h2>Comparison</h2>") : page.index("<h2>Evaluation")]
    assert "Not compared" not in compared and "Dice ↑" in compared


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(data):
    def weights(out, **changes):
        segment(request(data, out=data / out, **changes))
        folder = data / out / "weights"
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    both = weights("first", seeds=2)
    assert weights("second", seed=1) == {
        "translation_1.safetensors": both["translation_1.safetensors"]
    }
    assert both["translation_0.safetensors"] != both["translation_1.safetensors"]


def test_two_scans_of_a_subject_are_one(data, untrained, capsys):
    """The Dice of each network, the interval and what is printed are over subjects."""
    for folder in ("test", "test_labels"):
        shutil.rmtree(data / folder)
    for name, seed in (("sub-01_ses-1", 0), ("sub-01_ses-2", 1), ("sub-02_ses-1", 2)):
        place = "/".join(name.split("_"))
        folders = (data / of / place / "anat" for of in ("test", "test_labels"))
        subject(*folders, name, kind="T1w", suffix="T1w", seed=seed)
    flags = [f"--{name}={value}" for name, value in arguments(data).items()]
    assert cli.main(["contourdiff", "segment", *flags]) == 0
    assert "2 subjects in 3 scans tested" in capsys.readouterr().out
    metrics = read_metrics(data)
    dice = {
        row["subject"]: float(row["value"])
        for row in rows(data / "out" / "seeds.csv")
        if row["metric"] == "dice"
    }
    assert metrics["data"]["scans"] == list(dice) and len(dice) == 3
    mean = (np.mean(list(dice.values())[:2]) + dice["sub-02_ses-1"]) / 2
    of_networks = metrics["data"]["dice of each network"]
    assert of_networks == {"translation, seed 0": pytest.approx(mean, abs=1e-4)}
    entry = metrics["methods"]["translation"]["dice"]
    assert entry["n"] == 2 and entry["value"] == pytest.approx(mean, rel=1e-5)


def test_chosen_classes_are_learnt_and_the_rest_is_background(data, untrained):
    result = segment(request(data, classes=[ORGAN]))
    methods = result.metrics["methods"]
    assert set(methods["grid"]) == {
        f"{metric}{of}" for metric in ("dice", "assd", "hd95") for of in ("", f"_{ORGAN}")
    }
    path = data / "out" / "predictions" / "translation_0" / "b1_mr.nii.gz"
    assert set(np.unique(np.asarray(nib.load(path).dataobj))) <= {0, ORGAN}


# ----------------------------------------------------------------------------------------------
# Features
# ----------------------------------------------------------------------------------------------


def test_its_encoder_measures_distances_under_its_own_name(done, monkeypatch):
    monkeypatch.setattr(unpaired, "LEAST", 10)
    monkeypatch.setattr(unpaired, "LEAST_FRECHET", 10)

    def measured(folder, out, **changes):
        options = Options("segmenter", weights=str(done / "out/weights/upper_0.safetensors"))
        real = {"real": done / "upper", "distances": options, "preset": "mr"} | changes
        return evaluate(Request(done / folder, done / out, **real)).metrics

    near = measured("train", "near")
    assert list(near["methods"]["translation"])[:2] == ["kernel_segmenter", "frechet_segmenter"]
    assert not any("fid" in name or "kid" in name for name in near["methods"]["translation"])
    assert "neither KID nor FID" in near["data"]["features"]
    assert near["data"]["grid of the features"] == "axial, 32 x 32 px of 4 mm"
    far = measured("lower", "far")
    for metric in ("kernel_segmenter", "frechet_segmenter"):
        values = [m["methods"]["translation"][metric]["value"] for m in (near, far)]
        assert values[1] > 3 * abs(values[0])


def test_an_encoder_of_another_modality_or_none_is_refused(done, tmp_path):
    def refused(options, message, **changes):
        fields = {"real": done / "upper", "preset": "ct", "distances": options} | changes
        with pytest.raises(InputError, match=message):
            evaluate(Request(done / "train", tmp_path / "out", **fields))

    weights = str(done / "out/weights/upper_0.safetensors")
    refused(Options("segmenter"), "needs --weights")
    refused(Options("segmenter", weights=weights), "a segmenter of mr, where .* are ct")
    refused(Options("segmenter", weights=weights, three_views=True), "--three_views")
    refused(Options("segmenter", weights=weights), "--real; give them", real=None)


# ----------------------------------------------------------------------------------------------
# Bad input
# ----------------------------------------------------------------------------------------------


def refused(message, fields):
    with pytest.raises(InputError, match=message):
        segment(module.Request(**fields))
    assert not fields["out"].exists()


def test_a_test_subject_that_is_trained_on_is_an_error(data):
    subject(data / "train", data / "train_labels", "b1")
    refused(r"test/b1_mr.*the subject 'b1' is trained on too, as .*train/b1_mr", arguments(data))
    (data / "train" / "b1_mr.nii.gz").unlink()
    subject(data / "upper", data / "upper_labels", "b2")
    bound = {"upper_images": data / "upper", "upper_labels": data / "upper_labels"}
    refused("the subject 'b2' is trained on too", arguments(data, **bound))


def sidecar(path, target, learnt):
    """What `translate` writes beside a volume."""
    fields = {
        "schema": 1,
        "notice": NOTICE,
        "preset": {"source": "ct", "target": target},
        "window": [0, 1000],
        "grid": {"axis": "axial", "spacing": SPACING, "size": SIZE},
        "contours": {
            side: contour_settings.preset("default", modality).to_dict()
            for side, modality in (("source", "ct"), ("target", target))
        },
        "training_subjects_sha256": [filenames.subject_digest(name) for name in learnt],
        "slices": 6,
        "seconds": 1.0,
    }
    path.write_text(json.dumps(fields))


def test_sidecars_tell_the_preset_and_whom_the_model_has_seen(data, untrained):
    for name in ("a1", "a2", "a3"):
        sidecar(data / "train" / f"{name}_mr.json", "mr", ["c1"])
    result = segment(request(data, preset=None))
    told = result.metrics["data"]
    assert (told["source preset"], told["target preset"]) == ("ct", "mr")
    assert "preset mr" in told["trained on"]["translation"]
    (data / "train" / "a2_mr.json").unlink()  # the others are translations still
    again = segment(request(data, preset=None, out=data / "again")).metrics["data"]
    assert again["trained on"] == told["trained on"]
    other = data / "other"
    refused("--preset=ct, but the sidecars say mr", arguments(data, preset="ct", out=other))
    sidecar(data / "train" / "a2_mr.json", "mr", ["c1", "b2"])
    message = "the model of the translations was trained on the subject 'b2'"
    refused(message, arguments(data, out=other))
    for name, digest in (("a1", "aa"), ("a3", "bb")):
        path = data / "train" / f"{name}_mr.json"
        fields = json.loads(path.read_text()) | {"checkpoint": {"digest": digest}}
        path.write_text(json.dumps(fields))
    refused("by another model than a1_mr", arguments(data, out=other))


def test_one_bad_volume_is_left_out_and_named(data, untrained, capsys):
    for path, change in (
        (data / "train_labels" / "a1_labels.nii.gz", lambda a: a[:-1]),
        (data / "train_labels" / "a2_labels.nii.gz", lambda a: a + 0.5),
        (data / "test" / "b1_mr.nii.gz", lambda a: 0 * a + 5),
    ):
        volume = io.read(path)
        io.save(path, change(volume.array), volume.affine, np.float32, overwrite=True)
    flags = [f"--{name}={value}" for name, value in arguments(data).items()]
    assert cli.main(["contourdiff", "segment", *flags]) == 1
    printed = capsys.readouterr()
    assert "1 subjects tested" in printed.out and "Dice, label 3 ↑" in printed.out
    for reason in ("lies on another grid", "must hold whole numbers", "constant volume"):
        assert reason in printed.err
    # One subject says nothing about the spread.
    metrics = read_metrics(data)
    assert {e["low"] for m in metrics["methods"].values() for e in m.values()} == {None}
    assert metrics["data"]["trained on"]["translation"].startswith("1 subjects, 6 slices")
    assert len(metrics["data"]["failed"]) == 3


def test_a_label_that_a_set_lacks_is_an_error_that_says_what_to_do(data, untrained):
    for name in ("b1", "b2"):
        path = data / "test_labels" / f"{name}_labels.nii.gz"
        volume = io.read(path, labels=True)
        array = np.where(volume.array == ORGAN, 9, volume.array)
        io.save(path, array, volume.affine, np.uint8, overwrite=True)
    refused(r"label 7: in no volume of --test_labels; --classes=3 are in all", arguments(data))
    refused(r"label 9: in no volume of --train_labels", arguments(data, classes=[9]))
    assert segment(request(data, classes=[BODY])).metrics["data"]["labels"] == [BODY]


def test_a_label_that_is_not_found_has_no_distance_and_is_counted(data, untrained, monkeypatch):
    monkeypatch.setattr(
        trained, "label_map", lambda p, labels, r: np.full((26, 30, 6), BODY, np.uint16)
    )
    metrics = segment(request(data)).metrics
    assert metrics["methods"]["translation"][f"dice_{ORGAN}"]["value"] == 0
    assert {f"assd_{ORGAN}", "assd", "hd95"}.isdisjoint(metrics["methods"]["translation"])
    assert metrics["data"]["label maps without a distance"] == {"translation, label 7": "2 of 2"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": None}, "--preset must say what the intensities are; sidecars do not"),
        ({"lower_images": "lower"}, "--lower_images needs --lower_preset"),
        ({"upper_images": "upper"}, "--upper_images needs --upper_labels"),
        ({"lower_labels": "train_labels"}, "--lower_labels goes with --lower_images"),
        ({"lower_preset": "mr"}, "--lower_preset goes with --lower_images"),
        ({"upper_labels": "upper_labels"}, "--upper_labels goes with --upper_images"),
        ({"train_labels": "upper_labels"}, r"'a1' in --train_labels"),
        (
            {"test_labels": "upper_labels"},
            "no name pairs with one of .*upper_labels: b1, .. and c1",
        ),
        ({"classes": []}, "--classes: from 1 to 255 labels"),
        ({"classes": [0, 3]}, "label 0: in no volume of --test_labels"),
        ({"size": 33}, "--size=33"),
        ({"seeds": 0}, "--seeds=0 must lie between 1"),
        ({"images": 0}, "--images=0 must lie between 1"),
        ({"batch": 0}, "--batch=0 must lie between 1"),
        ({"test_images": "absent"}, "absent: no such file or folder"),
    ],
)
def test_bad_requests(data, changes, message):
    folders = {
        name: data / value
        for name, value in changes.items()
        if isinstance(value, str) and not name.endswith("preset")
    }
    refused(message, arguments(data, **(changes | folders)))


def test_nothing_is_overwritten_and_flags_are_checked(data, capsys):
    (data / "out").mkdir()
    (data / "out" / "mine.txt").touch()
    with pytest.raises(InputError, match="exists already"):
        segment(request(data))
    flags = [f"--{name}={value}" for name, value in arguments(data).items()]
    for extra, message in ((["--classes=bone"], "--classes=bone: give whole"), ([], "exists")):
        assert cli.main(["contourdiff", "segment", *flags, *extra]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["contourdiff", "segment", "--out=x"]) == 2
    assert "--train_images is required" in capsys.readouterr().err
