# SPDX-License-Identifier: Apache-2.0
"""The parts of a run that are read and not learnt: its codec, its prompt, a ControlNet's base.

They lie in the run's folder, so that it is enough to go on training or to translate with; while a
run begins, they are still where they come from. Digests in config.json tell them from others.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from contourdiff_jax.contracts import Fixed, Params, Player
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import codecs, prompts
from contourdiff_jax.models import Model, autoencoder
from contourdiff_jax.runtime import disk, ownership, processes
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.training.run import BASE, CODEC, PROMPT, Run

NETWORK = "network"  # the one player of a method of diffusion


def read(ours: Run, mesh: Mesh, *, base: Model | None = None) -> Fixed:
    """The parts of a run on a mesh: {"codec": parameters, "prompt": array, "base": parameters}.

    Args:
      base: the network of the base, where the method has one.

    Raises:
      InputError: a part that is missing, or was changed since.
    """
    found = {}
    if ours.codec is not None:
        found["codec"] = codecs.checked(_place(ours, CODEC), ours.codec, mesh)
    if ours.prompt is not None:
        array = prompts.read(_place(ours, PROMPT), ours.prompt, ours.config.model.context)
        found[prompts.FIXED] = meshes.put(meshes.replicated(mesh), array)
    if base is not None:
        place = _place(ours, BASE)
        found["base"] = weights(place, base, mesh)
        if checkpoint.digest({NETWORK: found["base"]}) != ours.base:
            raise InputError(f"{place}: another base than the run has learnt with; restore it")
    return found


def networks(ours: Run, *, base: Model | None = None) -> dict[str, Params]:
    """The parameters of the parts of a run, as ShapeDtypeStructs, by the names of `read`."""
    inits = {"codec": autoencoder.build(ours.codec.section).init} if ours.codec else {}
    inits |= {"base": base.init} if base else {}
    key = jax.random.key(0)
    return {name: jax.eval_shape(init, key) for name, init in inits.items()}


def weights(folder: Path, model: Model, mesh: Mesh):
    """The averaged parameters of a run of diffusion."""
    players = {NETWORK: Player(model.init, None, None, None)}
    return checkpoint.averages(folder, players, mesh)[1][NETWORK]


def _place(ours: Run, name: str) -> Path:
    if name not in ours.parts:
        raise InputError(f"{name}: missing in the folder of the run; restore it from a copy")
    return ours.parts[name]


def keep(parts: Mapping[str, Path], workdir: Path) -> dict[str, Path]:
    """Copy the parts that are not there into the folder of a run; where all of them are then.

    One process copies, the others wait.
    """

    def copy() -> None:
        for name, source in parts.items() if processes.is_main() else ():
            target = workdir / name
            if target.exists():
                continue
            if name == PROMPT:
                disk.write(target, source.read_bytes())
            else:
                _keep_averages(source, target)

    processes.together(copy)
    return {name: workdir / name for name in parts}


def _keep_averages(source: Path, folder: Path) -> None:
    """Make a copy of a run, without what it takes to train it and without parts of its own."""
    with ownership.folder(folder, "a run") as partial:
        run.load(source).save(partial)
        latest = checkpoint.steps(source)[-1]
        kept = partial / "checkpoints" / str(latest)
        shutil.copytree(source / "checkpoints" / str(latest), kept, ignore=_learning)


def _learning(folder: str, names: list[str]) -> list[str]:
    """Items of a checkpoint that only training needs."""
    return [name for name in names if name in ("params", "optimiser", "progress", "memory")]
