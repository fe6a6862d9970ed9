# SPDX-License-Identifier: Apache-2.0
"""What XLA is told keeps a training step from holding its state twice."""

import re

import jax
import pytest

from contourdiff_jax import config, methods
from contourdiff_jax.data.store import open_store
from contourdiff_jax.runtime import compiling
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import loop, run


@pytest.fixture(scope="module")
def step(store_path):
    """The compiled step of a network with all that the default one has."""
    settings = config.default()
    settings.model.update(channels=(16, 32), attention=(False, True), groups=8)
    settings.train.batch = 2
    settings.mesh.data = 1
    store = open_store(store_path)
    return loop.compiled(
        methods.build(run.begin(settings, store), store=store), settings.train
    ).step


def test_what_is_donated_is_written_in_place(step):
    text = step.as_text()
    assert "state_params__network" in text  # as arguments are called there
    assert not re.findall(r"copy\(%?state_(?:params|ema|optimiser)", text)
    memory = step.memory_analysis()
    assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    mesh = meshes.local(1)
    if jax.default_backend() != "cpu":
        assert compiling.options(mesh) is None
        return
    monkeypatch.setitem(compiling.FRUGAL, "xla_cpu_of_tomorrow", True)
    options = compiling.options(mesh)
    assert "xla_cpu_of_tomorrow" not in options
    assert options.keys() == compiling.FRUGAL.keys() - {"xla_cpu_of_tomorrow"}
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_memory_can_be_given_back():
    assert compiling.give_back() is None
