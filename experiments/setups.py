# SPDX-License-Identifier: Apache-2.0
"""What several experiments measure: a train step without a store, and how a run draws.

Scripts find this file with `sys.path.append(str(Path(__file__).parents[1]))`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
from ml_collections import ConfigDict

from contourdiff_jax import methods
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contracts import Method
from contourdiff_jax.models import autoencoder
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, loop, run
from contourdiff_jax.training.run import CodecOf, Run
from contourdiff_jax.translation import sampling
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid


def run_of(config: ConfigDict, size: int, *, latents: bool = False) -> Run:
    """A run on MR of `size` px, or on latents of the autoencoder that its configuration has."""
    preset, contours = intensity.preset("mr"), contour_settings.preset("default", "mr")
    grid = Grid("axial", 1.0, size)
    codec = CodecOf(config.autoencoder, 1.0, "") if latents else None
    return Run(config, preset, intensity.IDENTITY, grid, contours, (), codec=codec)


def built(ours: Run, **how) -> Method:
    """The method of such a run; an autoencoder has the weights that it begins with."""
    if ours.codec is None:
        return methods.build(ours, **how)
    method, init = methods.build(ours, **how), autoencoder.build(ours.codec.section).init
    weights = jax.jit(init, out_shardings=meshes.replicated(method.mesh))(jax.random.key(0))
    return dataclasses.replace(method, parts=lambda: {"codec": weights})


def training(
    config: ConfigDict, size: int, *, latents: bool = False
) -> tuple[Method, loop.Compiled]:
    """The method of a configuration and its compiled step, for images of `size` px."""
    ours = run_of(config, size, latents=latents)
    store = SimpleNamespace(grid=ours.grid, sources=(), source_preset=ours.preset)
    method = built(ours, store=store)
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
