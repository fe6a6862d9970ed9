# SPDX-License-Identifier: Apache-2.0
"""The verdict: a baseline that is as good as the translation is named, and no other."""

from contourdiff_jax.evaluation import verdict


def methods(**values):
    return {
        name: {metric: {"value": value} for metric, value in scores.items()}
        for name, scores in values.items()
    }


def test_what_is_as_good_as_the_translation_is_named_with_its_numbers():
    scores = methods(
        translation={"ssim_mask": 0.37, "psnr_mask": 13.9, "contour_f1": 0.2},
        source={"ssim_mask": 0.37, "psnr_mask": 11.0},
        mean={"ssim_mask": 0.29, "psnr_mask": 14.9, "contour_f1": 0.9},
        histogram={"ssim_mask": 0.1, "psnr_mask": 10.0},
        truth={"ssim_mask": 1.0},
    )
    source, mean = verdict.unbeaten(scores)
    assert source.startswith("source is not beaten, SSIM in the body 0.37 against 0.37:")
    assert mean.startswith("mean is not beaten, PSNR in the body [dB] 14.9 against 13.9: an image")


def test_there_is_no_verdict_without_a_truth_or_baselines():
    assert not verdict.unbeaten(methods(translation={"contour_f1": 0.5}, mean={"contour_f1": 0.9}))
    assert not verdict.unbeaten(methods(translation={"ssim_mask": 0.5}))
    assert not verdict.unbeaten(methods(lower={"dice": 0.5}, upper={"dice": 0.9}))
