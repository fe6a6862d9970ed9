# SPDX-License-Identifier: Apache-2.0
"""What the tests have processes of their own do, most of it with two convolutions for a network.

python tests/worker.py '{"task": "together", "store": .., "out": .., "process": 0, ..}'
"""

import json
import os
import sys
from pathlib import Path

import conftest
import jax
import numpy as np
import pytest
import setups

from contourdiff_jax import config, methods, models
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import features
from contourdiff_jax.evaluation import folder as evaluate
from contourdiff_jax.evaluation.unpaired import Options
from contourdiff_jax.interop import inception
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.runtime import processes
from contourdiff_jax.training import checkpoint, run

STEPS = 50
MESHES = ((2, 1), (1, 2))
# Runs by their names, each with those that it begins with.
CHAIN = {"autoencoder": {}, "latent": {"codec": "autoencoder"}, "controlnet": {"base": "latent"}}


def settings(**train_fields):
    """Fifty steps of four images, with neighbours, looked at three times."""
    ours = config.default()
    ours.model.update(channels=(8,), attention=(True,), head_width=8, groups=4)
    ours.model.conditions = ("contour", "neighbour")
    ours.train.update(images=4 * STEPS, batch=4, log=4, evaluate=80, sample=80, checkpoint=80)
    ours.train.update(warmup=8, ema_halflife=16, neighbour=0.5)
    ours.train.update(train_fields)
    ours.sampler.update(steps=2, batch=4)
    return ours


def of_parts(kind: str):
    """Four steps of four images of an autoencoder, of its latents, or of a ControlNet of those."""
    ours = config.default()
    ours.augment.probability = 0.0
    ours.train.update(images=16, batch=4, log=4, evaluate=8, sample=8, checkpoint=0, warmup=8)
    ours.sampler.batch = 4
    if kind == "autoencoder":
        ours.method, ours.model.conditions = kind, ("source",)
        ours.autoencoder.update(channels=(4, 8), groups=2, latents=2)
        ours.adversarial.update(critic_width=2, critic_layers=2)
        return ours
    ours.model.update(channels=(8, 8), attention=(False, False), groups=4, head_width=8)
    ours.model.conditions = ()
    ours.sampler.update(clip=False, steps=2)
    if kind == "controlnet":
        ours.method, ours.model.conditions = kind, ("contour",)
        ours.controlnet.channels = (4, 4)
    return ours


def chain(store: Path, out: Path, origins: str | None = None, over: int = 1) -> None:
    """An autoencoder, diffusion of its latents, and a ControlNet beside that.

    Args:
      origins: folder with the runs that these begin with, by default `out`.
      over: devices that share a batch; over these parameters of the last are split, too.
    """
    before = Path(origins or out)
    for kind, flags in CHAIN.items():
        ours = of_parts(kind)
        split = kind == "controlnet"
        ours.mesh.update(data=1 if split else over, fsdp=over if split else 1)
        parts = {flag: before / name for flag, name in flags.items()}
        assert methods.train(ours, store, out / kind, **parts)


def gradient(data: int, fsdp: int) -> list[np.ndarray]:
    """Of the loss, at parameters and examples that are always the same."""
    ours = settings()
    ours.mesh.update(data=data, fsdp=fsdp)
    ours.train.clip = 1e9
    plan = setups.setup(ours, 8)
    generator = np.random.default_rng(0)

    def drawn(like):
        return meshes.split(like.sharding, generator.normal(0, 0.1, like.shape).astype(like.dtype))

    params = jax.tree.map(drawn, plan.like.params)
    batch = {name: generator.normal(size=(4, 8, 8, 2)) for name in ours.model.conditions}
    example = {"x": generator.uniform(-1, 1, (4, 8, 8, 1)), "condition": batch}
    example = jax.tree.map(lambda a: a.astype(np.float32), example)
    begun = plan.init(jax.random.key(0))._replace(params=params)
    after, _ = plan.step(begun, meshes.split(meshes.batch(plan.mesh), example))
    moments = after.optimiser["network"][1][0].mu  # a tenth of the gradient
    return [10 * meshes.whole(moment) for moment in jax.tree.leaves(moments)]


def examples(store: Path, resident: float, data: int) -> list[np.ndarray]:
    """All that three steps see."""
    ours = settings(resident=resident)
    ours.mesh.update(data=data)
    opened = open_store(store)
    mesh = meshes.make(ours.mesh)
    made = methods.build(run.begin(ours, opened), store=opened, mesh=mesh).feed.training(3, 6)
    return [meshes.whole(leaf) for leaf in jax.tree.leaves(list(made))]


def score(folder: Path, out: str):
    """KID of the pictures in `folder`, with a network that compiles at once."""
    from unpaired_pictures import look

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features.inception, "apply", look)
        patch.setattr(inception, "load", lambda path: ({}, "net", inception.SHA256))
        arguments = {"real": folder / "real", "preset": "mr", "distances": Options("inception")}
        return evaluate.evaluate(evaluate.Request(folder / "translated", folder / out, **arguments))


def together(store: Path, out: Path) -> None:
    """In several processes: everything that the test then does in one, and what they agree on."""
    assert (score(out, "scores") is not None) == processes.is_main()
    found = {f"gradient {shape}": gradient(*shape) for shape in MESHES}
    found |= {f"examples {resident}": examples(store, resident, 2) for resident in (0.0, 2.0)}

    def fail():
        if jax.process_index() == 1:
            raise InputError("the second has no disk")

    try:
        processes.together(fail)
    except InputError as error:
        found["told"] = [np.array(str(error)), np.array(processes.told(lambda: "by the first"))]
    arrays = {f"{name} {i}": a for name, them in found.items() for i, a in enumerate(them)}
    np.savez(out / f"{jax.process_index()}.npz", **arrays)
    assert methods.train(settings(), store, out / "run")


def alone(store: Path, out: Path, **train_fields) -> None:
    """Training, to be stopped: by SIGTERM with exit status 1."""
    if not methods.train(settings(**train_fields), store, out):
        sys.exit(1)


def restore(store: Path, out: Path) -> None:
    """The parameters of a run, split over all devices, and the bytes of one's part."""
    ours = settings()
    ours.mesh.update(data=1, fsdp=-1)
    like = setups.like(ours, 32)
    checkpoints = checkpoint.manager(out / "run")
    params = checkpoint.restore(checkpoints, out / "run", like).params
    checkpoints.close()
    leaves = jax.tree.leaves(params)
    part = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    np.savez(out / "restored.npz", np.array([jax.device_count(), part]), *leaves)


def main(task: str, store: str, out: str, process=None, of=None, port=None, devices=1, **fields):
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    address = port and f"localhost:{port}"
    if task != "chain":  # a ControlNet's branch is a copy of its base's encoder
        models.build = conftest._two_convolutions
    meshes.SMALL = 0  # so that everything is split that can be
    with processes.joined(address, of, process):
        globals()[task](Path(store), Path(out), **fields)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
