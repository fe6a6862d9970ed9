# SPDX-License-Identifier: Apache-2.0
"""What is printed of an evaluation."""

from contourdiff_jax.evaluation import records
from contourdiff_jax.evaluation.metrics import catalogue


def entry(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 3}


def test_metrics_are_printed_by_section_with_unit_direction_and_baselines_beside():
    """A method that none of a section was measured of has no column there; details are counted."""
    methods = {
        "translation": {"flicker": entry(0.2), "ssim_mask": entry(0.5), "psnr_mask": entry(16.0)},
        "mean": {"ssim_mask": entry(0.3), "ssim": entry(0.9)},
        "truth": {"flicker": entry(0.4)},
    }
    errors, coherence, legend = records.table(methods).split("\n\n")
    title, *rows = errors.splitlines()
    assert title.startswith(catalogue.ERRORS) and title.split()[-2:] == ["translation", "mean"]
    assert [" ".join(row.split()) for row in rows] == [
        "SSIM in the body ↑ 0.500 [0.400, 0.600] 0.300 [0.200, 0.400]",
        "PSNR in the body [dB] ↑ 16.00 [15.90, 16.10] –",
    ]
    title, row = coherence.splitlines()
    assert title.startswith(catalogue.COHERENCE) and title.split()[-2:] == ["translation", "truth"]
    assert row.split()[0] == "flicker"
    assert legend == f"{records.LEGEND} Not shown, in metrics.json: 1."


def test_labels_are_printed_where_they_are_all_there_is():
    printed = records.table({"lower": {"dice_3": entry(0.5)}})
    assert "Dice, label 3 ↑" in printed and "Not shown" not in printed
