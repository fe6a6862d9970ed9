# SPDX-License-Identifier: Apache-2.0
"""The catalogue of metrics: names find their entry, and what is shown follows from it."""

import pytest

from contourdiff_jax.evaluation.metrics import catalogue


@pytest.mark.parametrize(
    ("metric", "title", "better", "section"),
    [
        ("psnr_mask", "PSNR in the body [dB]", max, catalogue.ERRORS),
        ("assd_17", "ASSD [mm], label 17", min, catalogue.LABELS),
        ("ssim_mask_sagittal", "SSIM, sagittal", max, catalogue.COHERENCE),
        ("flicker_to_real", "flicker to real", None, catalogue.COHERENCE),
        ("error_flicker", "flicker of the error", min, catalogue.COHERENCE),
        ("bias_label_4", "signed error, label 4", None, catalogue.REGIONS),
        ("kid_axial", "kid axial", min, catalogue.DISTANCES),
        ("frechet_my_net_at_30", "frechet my net at 30", min, catalogue.DISTANCES),
        ("ause_chance", "AUSE by lot", None, catalogue.UNCERTAINTY),
        ("psnr", "psnr [dB]", max, catalogue.ERRORS),
        ("contour_f1", "contour F1", max, catalogue.CONTOURS),
        ("made_up", "made up", None, catalogue.OTHERS),
    ],
)
def test_a_name_says_what_a_metric_is(metric, title, better, section):
    known = catalogue.of(metric)
    assert (catalogue.title(metric), known.better, known.section) == (title, better, section)


def test_every_entry_is_found_by_its_own_name():
    example = {"label": "3", "axis": "coronal", "count": "30", "name": "net"}
    for name, metric in catalogue.METRICS.items():
        assert catalogue.of(name.format(**example)) is metric


def test_headlines_stand_in_the_order_of_the_catalogue():
    measured = ["fid_at_30", "mae", "kid", "mae_mask", "ssim_mask", "flicker", "kid_axial"]
    shown = catalogue.headlines(measured, *catalogue.SCORES)
    assert shown == ["ssim_mask", "mae_mask", "kid", "fid_at_30"]


def test_labels_come_in_their_order():
    measured = ["dice_10", "dice", "dice_9", "assd_1"]
    assert catalogue.labels(measured, "dice_{label}") == {9: "dice_9", 10: "dice_10"}


def test_every_entry_has_a_section_that_is_printed():
    assert {metric.section for metric in catalogue.METRICS.values()} <= set(catalogue.SECTIONS)
