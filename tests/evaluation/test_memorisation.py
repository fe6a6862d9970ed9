# SPDX-License-Identifier: Apache-2.0
"""Memorisation: copies are found as copies, unseen heads are not, and another store is refused."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest

from contourdiff_jax import cli
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.data.layouts import pairs
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import cases, memorisation
from contourdiff_jax.evaluation.cases import Translations
from contourdiff_jax.reports.page import report
from contourdiff_jax.translation import sidecars
from contourdiff_jax.volumes import filenames, io

COLUMNS = ["method", "subject", "slice", "distance", "ratio", "store_row", "mirrored"]


@pytest.fixture
def folder(tmp_path, store_path, phantom_data):
    """Translations that are unseen heads, and the same head's MR as their truth."""
    for number, path in enumerate(sorted((phantom_data / "test_mr").iterdir())):
        volume = io.read(path)
        noise = np.random.default_rng(number).normal(0, 5, volume.array.shape)
        save(tmp_path, path.name, np.maximum(volume.array + noise, 0), volume.affine, store_path)
    return tmp_path


def save(folder, name, array, affine, store_path, **changes):
    """A translation with its sidecar, whose run was trained on that store."""
    path = folder / "translated" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    io.save(path, array, affine, np.float32)
    store = open_store(store_path)
    window = store.preset.volume_window(array)
    fields = {
        "schema": sidecars.SCHEMA,
        "subject": filenames.subject_of(path),
        "preset": {"source": "ct", "target": "mr"},
        "window": [window.low, window.high],
        "grid": dataclasses.asdict(store.grid),
        "contours": {
            side: contour_settings.preset("default", modality).to_dict()
            for side, modality in (("source", "ct"), ("target", "mr"))
        },
        "training_subjects_sha256": [filenames.subject_digest(s) for s in store.subjects("train")],
        "slices": array.shape[2],
        "seconds": 1.0,
    }
    sidecar = path.with_name(f"{filenames.stem(path)}.json")
    sidecar.write_text(json.dumps(fields | changes))


def measure(folder, store_path, truth=None):
    scans = pairs.by_name(folder / "translated")
    found, _ = cases.read_sidecars(scans)
    settings = cases.common_settings(scans, found, None, None, False)
    partners = {} if truth is None else {"truth": pairs.by_name(truth)}
    return memorisation.measure(store_path, Translations(scans, found, settings, partners))


def test_copies_of_training_slices_are_found(folder, store_path, phantom_data):
    seen = open_store(store_path).subjects("train")
    for path, subject in zip(sorted((folder / "translated").glob("*.nii.gz")), seen, strict=False):
        volume = io.read(phantom_data / "train_mr" / f"{subject}_mr.nii.gz")
        array = volume.array[::-1] if subject == seen[1] else volume.array  # as training flips
        save(folder, path.name, array, volume.affine, store_path)
    result = measure(folder, store_path, phantom_data / "test_mr")
    ours = result.methods["translation"]
    assert ours["memory_distance"]["value"] < 0.01 and ours["memory_ratio"]["value"] < 0.05
    for metric in ("memory_closer", "memory_closer_ratio", "memory_low_ratios"):
        assert ours[metric]["value"] == 1
    store = open_store(store_path)
    for method, subject, number, *_, row, mirrored in result.rows:
        if method == "translation":
            copied = seen[sorted({r[1] for r in result.rows}).index(subject)]
            assert store.index["subject"][row] == copied
            assert store.index["slice"][row] == number and mirrored == (copied == seen[1])


def test_unseen_heads_are_as_near_as_the_truth_that_they_are(folder, store_path, phantom_data):
    methods = measure(folder, store_path, phantom_data / "test_mr").methods
    for metric in ("memory_distance", "memory_ratio"):
        ours, truth = (methods[name][metric]["value"] for name in ("translation", "truth"))
        assert ours == pytest.approx(truth, rel=0.1)
    assert 0.3 < methods["translation"]["memory_closer_ratio"]["value"] < 0.7


def test_without_truth_the_store_s_own_held_out_slices_are_compared(folder, store_path):
    result = measure(folder, store_path)
    assert result.methods.keys() == {"translation", "real"}
    held_out = set(open_store(store_path).subjects("val"))
    assert {row[1] for row in result.rows if row[0] == "real"} == held_out
    assert "of the subjects that the store holds out" in result.data["memorisation"]


def test_two_scans_of_a_subject_are_one(folder, store_path, phantom_data):
    scans = pairs.by_name(folder / "translated")
    found, _ = cases.read_sidecars(scans)
    settings = cases.common_settings(scans, found, None, None, False)
    subjects = [name for name in scans for _ in range(2)]
    twice = {f"{name}_{n % 2}": scans[name] for n, name in enumerate(subjects)}
    known = {name: found[name[:-2]] for name in twice}
    once = memorisation.measure(store_path, Translations(scans, found, settings))
    both = memorisation.measure(store_path, Translations(twice, known, settings))
    for metric, entry in once.methods["translation"].items():
        assert both.methods["translation"][metric] == pytest.approx(entry)
    assert len(both.rows) > len(once.rows)


def test_slices_are_averaged_to_few_pixels(folder, store_path, monkeypatch):
    monkeypatch.setattr(memorisation, "SIDE", 16)
    assert "averaged to 16 x 16 px" in measure(folder, store_path).data["memorisation"]


def test_the_command_and_the_report_show_it(folder, store_path, capsys):
    out = folder / "scores"
    given = [f"--translated={folder / 'translated'}", f"--memorisation={store_path}"]
    assert cli.main(["contourdiff", "evaluate", *given, f"--out={out}"]) == 0
    assert "closer than unseen real slices" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert f"--memorisation={store_path}" in metrics["command"]
    with (out / "nearest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == COLUMNS and {row["method"] for row in rows} == {"translation", "real"}
    page = report(folder / "report.html", [out]).read_text()
    assert "<h3>Memorisation</h3>" in page and "ratio to the nearest of another subject" in page
    assert (out / "nearest.png").stat().st_size > 1000


# ----------------------------------------------------------------------------------------------
# Bad input
# ----------------------------------------------------------------------------------------------


def refused(folder, store_path, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        measure(folder, store_path)
    assert "\n" not in str(error.value)


def test_another_store_is_refused(folder, store_path, phantom_data):
    options = {"spacing": 7.2, "size": 32, "validation": 0.0}
    prepare(phantom_data / "train_mr", folder / "all", "mr", **options)
    refused(folder, folder / "all", "not the store that")
    prepare(phantom_data / "train_ct", folder / "ct", "ct", **options)
    refused(folder, folder / "ct", "of preset ct, the translations are mr")
    refused(folder, folder / "translated", "not a store")


def test_a_store_that_holds_nobody_out_needs_the_truth(folder, phantom_data):
    store = folder / "all"
    prepare(phantom_data / "train_mr", store, "mr", spacing=7.2, size=32, validation=0.0)
    for path in sorted((folder / "translated").glob("*.nii.gz")):
        volume = io.read(path)
        save(folder, path.name, volume.array, volume.affine, store)
    refused(folder, store, "holds no subject out to compare with; give --truth")
    assert "truth" in measure(folder, store, phantom_data / "test_mr").methods


def test_a_translation_without_a_body_has_no_slices(folder, store_path):
    paths = sorted((folder / "translated").glob("*.nii.gz"))
    volume = io.read(paths[0])
    paths[0].unlink()
    io.save(paths[0], 0 * volume.array, volume.affine, np.float32)
    methods = measure(folder, store_path).methods
    assert methods["translation"]["memory_distance"]["n"] == len(paths) - 1
