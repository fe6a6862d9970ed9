# SPDX-License-Identifier: Apache-2.0
"""A run that is offered, and a head to translate."""

from pathlib import Path

import pytest
import setups

from contourdiff_jax.demo.offers import Offer


@pytest.fixture(scope="module")
def offer(two_convolutions, store_path, tmp_path_factory) -> Offer:
    return Offer(setups.drawing(tmp_path_factory.mktemp("runs") / "mr", store_path))


@pytest.fixture(scope="module")
def head(phantom_data) -> Path:
    return sorted((phantom_data / "test_ct").glob("*.nii.gz"))[0]
