# SPDX-License-Identifier: Apache-2.0
"""The method that CONTRIBUTING.md shows is trained, resumed and drawn with as it stands there."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import setups

from contourdiff_jax import methods
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.training import checkpoint, run

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def mean(monkeypatch):
    """The module of the page, one of the methods."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = ModuleType("mean")
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(methods.METHODS, "mean", module)


def test_the_smallest_method_is_trained_and_draws(mean, tiny, store_path, tmp_path):
    tiny.method, tiny.augment.flip, tiny.augment.probability = "mean", 0.0, 0.0
    tiny.train.update(images=2000, batch=8, learning_rate=0.05, log=0, ema_halflife=64)
    workdir = tmp_path / "run"
    assert methods.train(tiny, store_path, workdir)
    assert (workdir / "samples").is_dir()

    method = methods.build(run.load(workdir))
    _, averages = checkpoint.averages(workdir, method.players, method.mesh)
    seen = {"contour": np.zeros((4, 32, 32, 2), np.float32)}
    drawn = np.asarray(method.translator(averages, ())(seen, None))
    store = open_store(store_path)
    rows = store.rows("train")
    expected = store.preset.in_body(store.values(rows), store.masks[rows]).mean(0)
    np.testing.assert_allclose(drawn[..., 0], np.stack([expected] * 4), atol=0.05)


def test_a_method_that_there_is_not_is_named(tiny):
    tiny.method = "regresion"
    with pytest.raises(InputError, match=r"config\.method: 'regresion'.*distilled"):
        methods.build(setups.run_of(tiny, 32))
