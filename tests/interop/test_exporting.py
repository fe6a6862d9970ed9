# SPDX-License-Identifier: Apache-2.0
"""Exporting: what diffusers cannot load is refused, with a remedy where there is one."""

import pytest

from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop.exporting import export
from contourdiff_jax.training import run


def test_a_segmenters_run_is_not_sent_to_translate(tiny, store_path, tmp_path):
    """Which has no use for it either."""
    tiny.method = "segmentation"
    run.begin(tiny, open_store(store_path), labels=(0, 1)).save(tmp_path / "run")
    with pytest.raises(InputError, match="a run of segmentation, and diffusers") as error:
        export(tmp_path / "run", tmp_path / "out")
    assert "translate" not in str(error.value) and not (tmp_path / "out").exists()
