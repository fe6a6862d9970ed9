# SPDX-License-Identifier: Apache-2.0
"""Weights are written as all files are: whole or not at all, and with the usual permissions."""

from unittest.mock import Mock

import numpy as np
import pytest
from safetensors import SafetensorError

from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import weight_files

TENSORS = {"a": np.arange(3.0)}


def test_weights_have_the_permissions_of_other_files(tmp_path):
    weight_files.write(tmp_path / weight_files.WEIGHTS, TENSORS, {"format": "pt"})
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
    np.testing.assert_array_equal(weight_files.tensors(tmp_path)["a"].read(), TENSORS["a"])


def test_weights_on_a_full_disk_are_one_line(tmp_path, monkeypatch):
    full = SafetensorError("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(weight_files, "save_file", Mock(side_effect=full))
    with pytest.raises(InputError, match=r"w: cannot be written: no space left on the device$"):
        weight_files.write(tmp_path / "w", TENSORS, {})
    assert not any(tmp_path.iterdir())
