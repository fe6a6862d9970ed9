# SPDX-License-Identifier: Apache-2.0
"""The method that CONTRIBUTING.md shows is trained, resumed and drawn with as it stands there."""

import re
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
import setups

import contourdiff_jax as cd
from contourdiff_jax import methods
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.training import checkpoint, run

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def mean(monkeypatch):
    """The module of the page, one of the methods."""
    monkeypatch.setitem(methods.METHODS, "mean", _module())


def _module() -> ModuleType:
    """The module of the page."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = ModuleType("mean")
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    return module


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


def test_from_python_it_needs_no_line_in_the_package(tiny, store_path, phantom_data, tmp_path):
    """Trained, resumed, loaded and drawn with, by what builds it alone."""
    build = _module().build
    tiny.augment.flip, tiny.augment.probability = 0.0, 0.0
    tiny.train.update(images=64, batch=8, learning_rate=0.05, log=0, ema_halflife=8)
    assert cd.train(tiny, store_path, tmp_path / "run", method=build)
    assert run.load(tmp_path / "run").config.method == methods.OWN
    assert cd.train(None, store_path, tmp_path / "run", images=128, method=build)
    with pytest.raises(InputError, match="regresion: is neither a file"):
        cd.train("regresion", store_path, tmp_path / "other")
    image = nibabel.load(next((phantom_data / "test_ct").glob("*.nii.gz")))
    drawn = cd.load(tmp_path / "run", method=build)(image, "ct")
    assert drawn.shape == image.shape and np.ptp(drawn.get_fdata()) > 0
    with pytest.raises(InputError, match=r"config\.method: 'own' .* by `method`"):
        cd.load(tmp_path / "run")(image, "ct")


def test_a_method_that_there_is_not_is_named(tiny):
    tiny.method = "regresion"
    with pytest.raises(InputError, match=r"config\.method: 'regresion'.*distilled"):
        methods.build(setups.run_of(tiny, 32))
