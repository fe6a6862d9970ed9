# SPDX-License-Identifier: Apache-2.0
"""What several experiments measure: a train step without a store, and how a run draws.

Scripts find this file with `sys.path.append(str(Path(__file__).parents[1]))`.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from ml_collections import ConfigDict

from contourdiff_jax import methods
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contracts import Method
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, loop, run
from contourdiff_jax.training.run import Run
from contourdiff_jax.translation import sampling
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid


def run_of(config: ConfigDict, size: int) -> Run:
    """A run on MR of `size` px."""
    contours = contour_settings.preset("default", "mr")
    grid = Grid("axial", 1.0, size)
    return Run(config, intensity.preset("mr"), intensity.IDENTITY, grid, contours, ())


def training(config: ConfigDict, size: int) -> tuple[Method, loop.Compiled]:
    """The method of a configuration and its compiled step, for images of `size` px."""
    ours = run_of(config, size)
    method = methods.build(ours, store=SimpleNamespace(grid=ours.grid))
    return method, loop.compiled(method, config.train)


def drawing(folder: Path, data: int = -1, **sampler) -> tuple[Callable, Method]:
    """(draw, method) of a run whose `sampler` section has other fields, on `data` devices.

    draw(seen {name: [N, H, W, c]}, knots, beside) -> slices [N, H, W] in [-1, 1]
    """
    trained = run.load(folder)
    section = trained.config.copy_and_resolve_references().sampler
    section.update(sampler)
    mesh = meshes.make(ConfigDict({"data": data, "fsdp": 1}))
    method = methods.build(trained, mesh=mesh, sampler=section)
    _, averages = checkpoint.averages(folder, method.players, mesh)
    return drawn_by(method, averages), method


def drawn_by(method: Method, averages) -> Callable:
    """How a method draws slices with those weights; see `drawing`."""
    translator = method.translator(averages, method.fixed)
    lying = meshes.batch(method.mesh)
    return lambda *seen: sampling.draw(translator, lying, *seen)
