# SPDX-License-Identifier: Apache-2.0
"""A method and its compiled step without a store; a translation as a call with options."""

from types import SimpleNamespace

from contourdiff_jax import config as configuration
from contourdiff_jax import methods
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contracts import Player
from contourdiff_jax.training import loop
from contourdiff_jax.training.run import Run
from contourdiff_jax.translation import folder
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid


def run_of(config, size: int, modality: str = "mr") -> Run:
    """A run of such images."""
    preset, contours = intensity.preset(modality), contour_settings.preset("default", modality)
    return Run(config, preset, intensity.IDENTITY, Grid("axial", 1.0, size), contours, ())


def players(init) -> dict[str, Player]:
    """One player of that network, to be read from a checkpoint."""
    return {"network": Player(init, None, None, None)}


def setup(config, size: int):
    """mesh, and init, like, step and step_bytes of loop.Compiled; the step needs no `fixed`."""
    configuration.check(config, size=size)
    ours = run_of(config, size)
    method = methods.build(ours, store=SimpleNamespace(grid=ours.grid))
    made = loop.compiled(method, config.train)

    def step(state, example):
        return made.step(state, example, method.fixed)

    return SimpleNamespace(
        method=method, mesh=method.mesh, init=made.init, like=made.like, step=step
    )


def translate(run, source, out, **options) -> folder.Result:
    """What is left of a request's fields is given by name."""
    return folder.translate(folder.Request(run, source, out, **options))
