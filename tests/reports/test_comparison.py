# SPDX-License-Identifier: Apache-2.0
"""Comparisons: the best first, differences paired by subject, and none where it would mislead."""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from contourdiff_jax.evaluation import records
from contourdiff_jax.evaluation.metrics import bootstrap
from contourdiff_jax.evaluation.records import Record
from contourdiff_jax.reports import comparison

DATA = {
    "target preset": "mr",
    "model grid": "axial, 96 x 96 px of 2.4 mm",
    "grid of the comparison": "the source's own",
    "intensities": "0 to 1",
}
METRICS = ["ssim_mask", "mae_mask", "contour_f1"]
SUBJECTS = [f"s{number}" for number in range(8)]


def scores(name, ssim, mae, subjects=SUBJECTS, **data):
    """An evaluation whose slices are off their subject's mean, and rows of another method."""
    rows = []
    for index, subject in enumerate(subjects):
        values = {"ssim_mask": ssim[index], "mae_mask": mae[index], "contour_f1": 0.9}
        for metric, value in values.items():
            for shift in (-0.05, 0.05):
                row = {"subject": subject, "metric": metric, "value": value + shift}
                rows += [row | {"method": "translation"}, row | {"method": "mean", "value": 0.0}]
    return Record(name, {"data": DATA | data}, rows)


@pytest.fixture
def values(rng):
    base = rng.uniform(0.4, 0.8, 8)
    return {"a": base, "b": base + 0.02 + 0.001 * rng.random(8), "c": base - 0.1 * rng.random(8)}


def text(section):
    return re.sub(r"\s+", " ", unescape(re.sub("<[^>]*>", " ", section)))


def test_the_best_stands_first_and_differences_are_paired(values):
    section = comparison.section([scores(n, v, 1 - v) for n, v in values.items()], METRICS)
    shown = text(section)
    # by its mean, b is better than a by less than subjects differ; in pairs it always is
    assert shown.index(" b 0.") < shown.index(" a 0.") < shown.index(" c 0.")
    tests = [
        bootstrap.difference(sign * values[name], sign * values["b"])["p"]
        for name in ("a", "c")
        for sign in (1, -1)
    ]
    adjusted = bootstrap.holm([*tests[:2], 1, *tests[2:], 1])  # contour F1 is equal
    assert tests[0] == bootstrap.least_p(8)
    for p in adjusted:
        assert f"p = {p:.2g}" in shown
    expected = np.mean(values["a"] - values["b"])
    assert f"{expected:.3f} [" in shown and "less b" in shown
    assert "no p" not in shown


def test_lower_is_first_where_lower_is_better(values):
    compared = [scores(n, v, 1 - v) for n, v in values.items()]
    shown = text(comparison.section(compared, ["mae_mask"]))
    assert shown.index(" b 0.") < shown.index(" a 0.") < shown.index(" c 0.")


def test_scans_of_one_subject_are_paired_as_one(values):
    """Two scans of each of four subjects are four pairs, not eight."""
    whose = {name: f"p{index // 2}" for index, name in enumerate(SUBJECTS)}
    told = {records.SUBJECTS: whose}
    pair = [scores(name, values[name], values[name], **told) for name in "ab"]
    shown = text(comparison.section(pair, ["ssim_mask"]))
    assert "With 4 subjects no p" in shown
    both = np.reshape(values["a"] - values["b"], (4, 2)).mean(1)
    assert f"p = {bootstrap.difference(both, 0 * both)['p']:.2g}" in shown


def test_few_subjects_are_said_to_be_few(values):
    few = [scores(n, v, v, SUBJECTS[:3]) for n, v in values.items()]
    shown = text(comparison.section(few, METRICS))
    assert "With 3 subjects no p, even of one test, can be below 0.25" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subjects": [*SUBJECTS[:7], "x"]}, "the subjects differ (a lacks x; b lacks s7)"),
        ({"subjects": SUBJECTS[:7]}, "the subjects differ (b lacks s7)"),
        ({"subjects": []}, "b has no rows.csv with scores of translations"),
        ({"target preset": "ct"}, "they differ in the target preset (a: mr; b: ct)"),
        ({"intensities": "0 to 2"}, "they differ in the intensities (a: 0 to 1; b: 0 to 2)"),
        ({"grid of the comparison": "the model's"}, "they differ in the grid of the comparison"),
    ],
)
def test_what_would_mislead_is_not_compared(values, changes, message):
    pair = [scores("a", values["a"], values["a"]), scores("b", values["b"], values["b"], **changes)]
    shown = text(comparison.section(pair, METRICS))
    assert f"Not compared: {message}" in shown and "p =" not in shown


def test_contours_of_different_sources_are_not_compared(values):
    compared = [scores("a", values["a"], values["a"], **{"source preset": "ct"})]
    compared += [scores("b", values["b"], values["b"], **{"source preset": "mr"})]
    shown = text(comparison.section(compared, METRICS))
    assert "SSIM" in shown and "contour" not in shown


def test_contours_of_different_model_grids_are_not_compared(values):
    grids = {"model grid": "axial, 256 x 256 px of 1 mm"}
    pair = [scores("a", values["a"], values["a"]), scores("b", values["b"], values["b"], **grids)]
    shown = text(comparison.section(pair, METRICS))
    assert "SSIM" in shown and "contour" not in shown
    on_grid = {"grid of the comparison": "the model's"}
    pair = [scores(n, values[n], values[n], **on_grid, **g) for n, g in (("a", {}), ("b", grids))]
    assert "Not compared: they differ in the model grid" in text(comparison.section(pair, METRICS))


def test_names_have_as_few_folders_as_tell_them_apart():
    paths = [Path("x/a/metrics.json"), Path("x/b/metrics.json")]
    assert comparison.names(paths) == ["a", "b"]
    paths = [Path("x/scores/metrics.json"), Path("y/scores/metrics.json"), Path("b/metrics.json")]
    assert comparison.names(paths) == ["x/scores", "y/scores", "b"]
