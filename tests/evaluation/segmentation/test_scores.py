# SPDX-License-Identifier: Apache-2.0
"""Scores of segmenters: over seeds, subjects and labels."""

from contourdiff_jax.evaluation.segmentation import scores
from contourdiff_jax.evaluation.segmentation.scores import Score


def test_a_network_s_dice_is_over_subjects_not_scans():
    tested = [("a_1", 0.25), ("a_2", 0.75), ("b", 1.0)]
    of_scans = [Score(scan, "upper", 0, {"dice": dice}) for scan, dice in tested]
    subject_of = {"a_1": "a", "a_2": "a", "b": "b"}
    assert scores.by_seed(of_scans, subject_of) == {"dice of each network": {"upper, seed 0": 0.75}}


def test_labels_without_distances_are_counted():
    tested = [Score(name, "lower", 0, {"assd_3": None, "assd": None}) for name in "ab"]
    tested += [Score("c", "lower", 0, {"assd_3": 1.0, "assd": 1.0})]
    missing = {"lower, label 3": "2 of 3"}
    assert scores.undefined(tested) == {"label maps without a distance": missing}
