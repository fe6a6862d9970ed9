# SPDX-License-Identifier: Apache-2.0
"""Regions: errors and contrasts by hand, and regions without a voxel."""

import numpy as np
import pytest

from contourdiff_jax.evaluation.metrics import regions


@pytest.fixture
def labels():
    labels = np.zeros((6, 6, 4), int)
    labels[1:5, 1:5] = 1
    labels[2:4, 2:4, 1:3] = 5
    return labels


def test_errors_are_those_of_the_region_alone(labels):
    truth = np.where(labels == 5, 0.9, np.where(labels == 1, 0.4, 0.0))
    image = np.where(labels == 0, 0.7, 0.4)  # the lesion is not drawn, and the air is wrong
    image[2, 2, 1] = 1.0
    parts = {"body": labels > 0, "label_5": labels == 5, "label_7": labels == 7}
    got = regions.scores(image, truth, parts, 1.0)
    assert not [name for name in got if name.endswith("label_7")]
    assert got["mae_label_5"] == pytest.approx((7 * 0.5 + 0.1) / 8)
    assert got["bias_label_5"] == pytest.approx((7 * -0.5 + 0.1) / 8)
    assert got["psnr_label_5"] == pytest.approx(-10 * np.log10((7 * 0.25 + 0.01) / 8))
    assert got["mae_body"] == pytest.approx(got["mae_label_5"] * 8 / 64)


def test_a_contrast_is_that_with_the_voxels_around(labels):
    lesion, brain = labels == 5, labels == 1
    image = np.where(lesion, 0.9, np.where(brain, 0.4, 0.0))
    got = regions.contrasts(image, {"a": (lesion, brain), "b": (brain, lesion)})
    assert got == pytest.approx({"contrast_a": 0.5, "contrast_b": -0.5})
    nothing = np.zeros(image.shape, bool)
    assert regions.contrasts(image, {"a": (lesion, nothing), "b": (nothing, brain)}) == {}
