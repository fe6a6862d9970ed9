# SPDX-License-Identifier: Apache-2.0
"""What is asked of a configuration before its run begins, and no more once it has begun."""

import pytest

from contourdiff_jax import methods
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.training import run


def test_a_field_without_effect_is_refused_before_anything_is_read(tiny, tmp_path):
    tiny.sampler.keep = "mean"
    with pytest.raises(InputError, match=r"config\.sampler\.keep: has no effect unless"):
        methods.train(tiny, tmp_path / "no store", tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_a_run_that_has_begun_keeps_its_fields(tiny, store_path, two_convolutions, tmp_path):
    """Runs of versions that did not refuse such fields go on."""
    store = open_store(store_path)
    before = run.begin(tiny, store)
    tiny.sampler.keep = "mean"
    tiny.contours.apart = 1
    with run.claimed(tmp_path / "run", run.begin(tiny, store, before=before)):
        pass
    assert methods.train(tiny, store_path, tmp_path / "run")


def test_segmenters_are_left_to_their_command(tiny, store_path, tmp_path):
    tiny.method = "segmentation"
    with pytest.raises(InputError, match=r"config\.method: .*contourdiff segment"):
        methods.train(tiny, store_path, tmp_path / "run")
    assert not any(tmp_path.iterdir())
