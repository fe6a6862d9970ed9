# SPDX-License-Identifier: Apache-2.0
"""A method and its compiled step without a store; a translation as a call with options."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from jax.sharding import Mesh

from contourdiff_jax import config as configuration
from contourdiff_jax import methods
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.contracts import Player
from contourdiff_jax.data import examples
from contourdiff_jax.data.store import Store, StoreWriter, open_store
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, loop, run, state
from contourdiff_jax.training.logs import Logs
from contourdiff_jax.training.run import Run
from contourdiff_jax.translation import folder
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Window


def run_of(config, size: int, modality: str = "mr") -> Run:
    """A run of such images."""
    preset, contours = intensity.preset(modality), contour_settings.preset("default", modality)
    return Run(config, preset, intensity.IDENTITY, Grid("axial", 1.0, size), contours, ())


def perturbed(params):
    """Parameters of which none is zero, so that every layer counts."""
    rng = np.random.default_rng(9)
    return jax.tree.map(lambda p: p + rng.normal(0, 0.1, p.shape).astype(np.float32), params)


def drawing(place: Path, store: Path, **model) -> Path:
    """A run in that folder, of a network that draws something; `model`: fields that are others."""
    settings = configuration.default()
    settings.model.update(**model)
    settings.sampler.update(steps=2, batch=4)
    ours = run.begin(settings, open_store(store))
    place.mkdir()
    ours.save(place)
    params = methods.build(ours).players["network"].init(jax.random.key(1))
    checkpoint.save_averages(place, {"network": perturbed(params)})
    return place


def players(init) -> dict[str, Player]:
    """One player of that network, to be read from a checkpoint."""
    return {"network": Player(init, None, None, None)}


def stats(workdir):
    """The record, without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "stats.jsonl").read_text().splitlines()]
    return [{name: v for name, v in line.items() if "second" not in name} for line in lines]


def stopping(patch, step):
    """As if a cluster asked for an end once the metrics of that step are written."""
    write = Logs.write_scalars

    def write_and_stop(self, number, images, scalars):
        write(self, number, images, scalars)
        if number == step and "heldout_loss" not in scalars:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(Logs, "write_scalars", write_and_stop)


def players_of(folder: Path, name: str) -> dict[str, Player]:
    """One player of a run, to be read from a checkpoint."""
    method = methods.build(run.load(folder))
    return {name: method.players[name]}


def method_of(config, size: int):
    """The method of a configuration, for images of that size."""
    configuration.check(config, size=size)
    ours = run_of(config, size)
    store = SimpleNamespace(grid=ours.grid, sources=(), source_preset=ours.preset)
    how = {"source": store} if config.method in configuration.UNPAIRED else {}
    return methods.build(ours, store=store, **how)


def like(config, size: int) -> state.TrainState:
    """The shapes of its state of training, which are known without compiling a step."""
    return loop.like(method_of(config, size))


def last_state(run: Path, like: state.TrainState) -> state.TrainState:
    """What is kept of a run's last step, on the host."""
    checkpoints = checkpoint.manager(run)
    found = checkpoint.restore(checkpoints, run, like)
    checkpoints.close()
    return jax.device_get(found)


def setup(config, size: int):
    """mesh, and init, like, step and step_bytes of loop.Compiled; the step needs no `fixed`."""
    method = method_of(config, size)
    made = loop.compiled(method, config.train)

    def step(state, example):
        return made.step(state, example, method.fixed)

    return SimpleNamespace(
        method=method, mesh=method.mesh, init=made.init, like=made.like, step=step
    )


def translate(run, source, out, **options) -> folder.Result:
    """What is left of a request's fields is given by name."""
    return folder.translate(folder.Request(run, source, out, **options))


def paired(store: Store, out: Path, preset: str = "ct") -> Path:
    """A store of the same MR with sources: what is bright in it is dark in them, and the reverse.

    The sources' bodies are without the outermost pixels of the images'.
    """
    source, index = intensity.preset(preset), store.index
    with StoreWriter(out, store.preset, store.grid, source_preset=source) as writer:
        for volume in np.unique(index["volume"]):
            rows = np.flatnonzero(index["volume"] == volume)
            values, masks = store.values(rows), store.masks[rows]
            inside = np.all([np.roll(masks, by, axis) for axis in (1, 2) for by in (-1, 1)], 0)
            writer.add(
                str(index["subject"][rows[0]]),
                values,
                masks,
                positions=index["position"][rows],
                window=Window(*(float(index[f"window_{end}"][rows[0]]) for end in ("low", "high"))),
                source=str(index["source"][rows[0]]),
                sha256=str(index["sha256"][rows[0]]),
                sources=source.image.inverse(1 - 2 * values),
                source_masks=inside,
            )
        writer.finish(dict(zip(index["subject"].tolist(), index["split"].tolist(), strict=True)))
    return out


@dataclasses.dataclass(frozen=True)
class Stacks:
    """A feed of patches of volumes [B, D, H, W, C]: the first slices of those of a store."""

    store: Store
    contours: ContourSettings
    conditions: tuple[str, ...]
    mesh: Mesh
    batch: int
    depth: int
    masked: bool = False

    @classmethod
    def under(cls, config, store, contours, conditions, mesh, **how):
        """In place of data.volumetric.feed."""
        batch, depth = config.train.batch, config.volume.depth
        return cls(store, contours, conditions, mesh, batch, depth, **how)

    @property
    def example(self):
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self.at_rest("train", self.batch)
        )

    summary = "stacks of slices"

    def named(self, step):
        return "the first slices"

    def training(self, start, stop):
        for step in range(start, stop):
            yield self._put(self.at_rest("train", self.batch, step))

    def held_out(self):
        return self._put(self.at_rest("val", 4))

    def shown(self, count):
        return self.at_rest("val", count * self.mesh.size), count

    def at_rest(self, split, count, first=0):
        volumes = np.unique(self.store.index["volume"][self.store.rows(split)])
        own = [np.flatnonzero(self.store.index["volume"] == v) for v in volumes]
        rows = np.concatenate(
            [np.resize(own[(first + i) % len(own)], self.depth) for i in range(count)]
        )
        made = examples.at_rest(
            self.store, rows, self.contours, self.conditions, masked=self.masked
        )
        return jax.tree.map(lambda a: a.reshape(count, self.depth, *a.shape[1:]), made)

    def _put(self, example):
        return meshes.split(meshes.batch(self.mesh), example)
