# SPDX-License-Identifier: Apache-2.0
"""Feeds: which slices of a store a step learns from, and the examples made of them.

Everything is a pure function of (seed, step), so that resuming needs no iterator state, and every
process of a cluster can make its own part of the same global batch.

A store that fits is kept on the devices, as uint16 slices and masks; others are streamed, read
ahead in a thread. Either way the same compiled function makes examples of them (examples.py), and
the host only chooses the slices.

Shapes: B batch, K slices that go together (an image, or with it its neighbour), H rows, W columns,
N slices of the training split.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from contourdiff_jax.contours import disturbance, recast
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.contracts import CONDITIONS, CONTOUR, NEIGHBOUR, PICTURE, SOURCE, Example
from contourdiff_jax.data import augment, examples, moments
from contourdiff_jax.data.examples import Raw
from contourdiff_jax.data.moments import Kept, Known
from contourdiff_jax.data.store import Store
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.runtime import processes

HELD_OUT = 64  # slices of the held-out loss
ORDER, CHANGES, NEIGHBOURS = range(3)  # what a run's seed is used for here


class Choice(NamedTuple):
    """What a step learns from, or one process's share of it."""

    rows: np.ndarray  # [B, K] positions in the training split
    neighboured: np.ndarray  # [B] uint8, 1 where the second of them is to be shown
    keys: np.ndarray  # [B, 2, 2] uint32, raw keys of each image's augmentation and disturbance


def indices(seed: int, step: int, batch: int, total: int) -> np.ndarray:
    """Positions [B] in [0, total) of a step's global batch: epoch after epoch, each shuffled."""
    flat = step * batch + np.arange(batch)
    return np.array([_permutation(seed, i // total, total)[i % total] for i in flat.tolist()])


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, total: int) -> np.ndarray:
    return np.random.default_rng((seed, ORDER, epoch)).permutation(total)


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, evenly spread, ends avoided."""
    count = min(count, len(rows))
    return rows[((np.arange(count) + 0.5) * len(rows) / count).astype(int)]


def named(store: Store, rows: np.ndarray) -> str:
    """The slices of a store with those numbers, by subject."""
    slices = {}
    for row in rows:
        name = str(store.index["subject"][row])
        slices.setdefault(name, []).append(str(store.index["slice"][row]))
    return "; ".join(f"{name} slice {', '.join(them)}" for name, them in sorted(slices.items()))


def summary(store: Store) -> str:
    """What is learnt from, in a few words."""
    slices, subjects, grid = len(store.rows("train")), len(store.subjects("train")), store.grid
    return f"{slices:,} slices of {subjects} subjects, {grid.size} px of {grid.spacing:g} mm"


@dataclasses.dataclass(frozen=True)
class Slices:
    """Slices of the target with their conditions: what ContourDiff learns from, and what pairs do.

    Attributes:
      store: its 'train' split is learnt, its 'val' split held out.
      contours: how they are taken.
      conditions: names of those that the network sees.
      seed: of order, augmentation and disturbance.
      train, augment, disturbance, recast: sections of the configuration.
      mesh: each process gives its share of a batch to its devices.
      masked: whether examples have a mask.
      moments: of the training slices, shown in place of their pixels, see contracts.Moments.

    Raises:
      InputError: the source is to be seen, and the store has none; or the picture in which contours
        are sought, and they are sought in several.
    """

    store: Store
    contours: ContourSettings
    conditions: tuple[str, ...]
    seed: int
    train: ConfigDict
    augment: ConfigDict
    disturbance: ConfigDict
    recast: ConfigDict
    mesh: Mesh
    masked: bool = False
    moments: Kept | None = None

    def __post_init__(self):
        if SOURCE.name in self.conditions and self.store.sources is None:
            raise InputError(
                f"{self.store.path}: without sources, and the network is to see the source; "
                f"prepare pairs with prepare --pairs, or leave source out of the conditions"
            )
        if PICTURE.name in self.conditions:
            recast.check(self.contours, str(self.store.path))

    @classmethod
    def under(
        cls,
        config: ConfigDict,
        store: Store,
        contours: ContourSettings,
        conditions: tuple[str, ...],
        mesh: Mesh,
        **how,
    ) -> "Slices":
        """Slices of a store as a whole configuration says; `how`: fields that are to be others."""
        fields = {"seed": config.seed} | how
        sections = {name: config[name] for name in ("train", "augment", "disturbance", "recast")}
        return cls(
            store=store, contours=contours, conditions=conditions, mesh=mesh, **sections, **fields
        )

    @property
    def example(self) -> Example:
        """See contracts.Feed."""
        shape = (self.train.batch, self.store.grid.size, self.store.grid.size)

        def image(channels: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*shape, channels), jnp.float32)

        seen = {name: image(CONDITIONS[name].channels + 1) for name in self.conditions}
        example = {"x": image(1), "condition": seen} | ({"mask": image(1)} if self.masked else {})
        if self.moments is None:
            return example
        slices = 1 + (NEIGHBOUR.name in self.conditions)
        known = self.moments.like((self.train.batch, slices))
        each = jax.ShapeDtypeStruct((self.train.batch,), jnp.uint8)
        neighboured = each if NEIGHBOUR.name in self.conditions else None
        return jax.eval_shape(moments.shown, example, known, each, neighboured)

    @property
    def summary(self) -> str:
        """See contracts.Feed."""
        return summary(self.store)

    def named(self, step: int) -> str:
        """See contracts.Feed."""
        return named(self.store, self._numbers[self.choose(step - 1).rows[:, 0]])

    def held_out(self) -> Example | None:
        """See contracts.Feed."""
        held = self.store.rows("val")
        if not len(held):
            return None
        count = max(1, HELD_OUT // self.mesh.size) * self.mesh.size
        return meshes.split(
            meshes.batch(self.mesh), self.at_rest(np.resize(spread(held, HELD_OUT), count))
        )

    def shown(self, count: int) -> tuple[Example, int]:
        """Examples on the host to look at, and how many: a multiple of the devices, repeated."""
        held = self.store.rows("val")
        rows = spread(held if len(held) else self._numbers, count)
        return self.at_rest(np.resize(rows, count * self.mesh.size)), len(rows)

    def at_rest(self, rows: np.ndarray) -> Example:
        """Examples on the host of the slices with those numbers, neither moved nor disturbed."""
        return examples.at_rest(
            self.store, rows, self.contours, self.conditions, masked=self.masked
        )

    def training(self, start: int, stop: int) -> Iterator[Example]:
        """See contracts.Feed."""
        numbers, share = self._numbers, (jax.process_index(), jax.process_count())
        split, whole = meshes.batch(self.mesh), meshes.replicated(self.mesh)
        put, made = functools.partial(meshes.put, split), self.maker()

        if self.is_resident:
            table = meshes.put(whole, self._read(numbers))
            take = jax.jit(
                lambda table, rows: jax.tree.map(lambda a: a[rows], table),
                in_shardings=(whole, split),
                out_shardings=split,
            )
            for step in range(start, stop):
                choice = self.choose(step, share)
                yield made(take(table, put(choice.rows)), choice)
            return

        def read(step) -> tuple[Choice, tuple]:
            choice = self.choose(int(step), share)
            return choice, self._read(numbers[choice.rows])

        steps = grain.MapDataset.range(start, stop).map(read)
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        for choice, raw in steps.to_iter_dataset(ahead):
            yield made(put(raw), choice)

    @property
    def is_resident(self) -> bool:
        """Whether the training slices are kept on the devices."""
        one = jax.tree.leaves(self._read(self._numbers[:1]))
        total = len(self._numbers) * sum(array.nbytes for array in one)
        return total <= self.train.resident * 2**30

    def _read(self, rows: np.ndarray) -> tuple[Raw | None, Known | None]:
        """The slices with those numbers, and their latents: of each where it is looked at."""
        if self.moments is None:
            return examples.read(self.store, self.contours, rows, self.conditions), None
        names, known = set(self.conditions) - {SOURCE.name}, self.moments.read(rows)
        if CONTOUR.name not in names:
            return None, known
        return examples.read(self.store, self.contours, rows, names), known

    def choose(self, step: int, process: tuple[int, int] = (0, 1)) -> Choice:
        """What step number `step`, from 0, learns from.

        Args:
          process: (index, count) of this process, which gets its share of the global batch, in
            order.
        """
        (volumes, slices), seed, batch = self._places, self.seed, self.train.batch
        share = batch // process[1]
        positions = np.arange(process[0] * share, (process[0] + 1) * share)
        rows = indices(seed, step, batch, len(volumes))[positions]
        seeds = (np.random.SeedSequence((seed, CHANGES, step, i)) for i in positions.tolist())
        keys = np.stack([each.generate_state(4).reshape(2, 2) for each in seeds])
        if NEIGHBOUR.name not in self.conditions:
            return Choice(rows[:, None], np.zeros(share, np.uint8), keys)
        seeds = ((seed, NEIGHBOURS, step, i) for i in positions.tolist())
        u = np.stack([np.random.default_rng(each).random(2) for each in seeds])
        beside = rows + np.where(u[:, 1] < 0.5, -1, 1)
        inside = np.clip(beside, 0, len(volumes) - 1)
        there = (beside == inside) & (volumes[inside] == volumes[rows])
        there &= np.abs(slices[inside] - slices[rows]) == 1
        shown = there & (u[:, 0] < self.train.neighbour)
        pairs = np.stack([rows, np.where(shown, inside, rows)], 1)
        return Choice(pairs, shown.astype(np.uint8), keys)

    def maker(self) -> Callable[[tuple[Raw | None, Known | None], Choice], Example]:
        """The compiled (what is read, choice) -> example of training; both are over the mesh."""
        contour, neighbour, picture = (
            condition.name in self.conditions for condition in (CONTOUR, NEIGHBOUR, PICTURE)
        )

        def pixels(raw, transforms, changes, neighboured):
            size = raw.slices.shape[-2:]
            return examples.make(
                raw,
                self.store.preset,
                self.contours if contour else None,
                source=self.store.source_preset if raw.sources is not None else None,
                transforms=transforms,
                change=disturbance.draw(changes, self.disturbance, size) if contour else None,
                recasting=recast.draw(changes, self.recast, size) if picture else None,
                neighboured=neighboured,
                masked=self.masked,
            )

        def local(read, neighboured, key_data):
            raw, known = read
            moves, changes = jnp.unstack(jax.random.wrap_key_data(key_data), axis=1)
            transforms = augment.draw(moves, self.augment)
            neighboured = neighboured if neighbour else None
            example = {"condition": {}}
            if raw is not None:
                example = pixels(raw, transforms, changes, neighboured)
            if known is None:
                return example
            return moments.shown(example, known, transforms.flip, neighboured)

        # Each device makes its own part. If the compiler shared out the work, the search for
        # connected edges would ask all devices after every round whether they are done.
        parts = PartitionSpec(meshes.AXES)
        compiled = jax.jit(
            jax.shard_map(local, mesh=self.mesh, in_specs=(parts,) * 3, out_specs=parts)
        )
        put = functools.partial(meshes.put, meshes.batch(self.mesh))

        def made(read: tuple[Raw | None, Known | None], choice: Choice) -> Example:
            return compiled(read, *put((choice.neighboured, choice.keys)))

        return made

    @functools.cached_property
    def _numbers(self) -> np.ndarray:
        return self.store.rows("train")

    @functools.cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the slices [N] of the training split, their volumes, and their numbers in these."""
        return tuple(self.store.index[name][self._numbers] for name in ("volume", "slice"))


@dataclasses.dataclass(frozen=True)
class Unpaired:
    """Slices of two stores that have nothing to do with one another: what CycleGAN learns from.

    An example is {'x': [B, H, W, 1] of the target, 'source': [B, H, W, 1]}, both in [-1, 1].

    Attributes:
      target, source: each with a seed of its own, or stores of one size would have one order.
    """

    target: Slices
    source: Slices

    @property
    def example(self) -> Example:
        """See contracts.Feed."""
        return _unpaired(self.target.example, self.source.example)

    @property
    def summary(self) -> str:
        """See contracts.Feed."""
        return f"{self.target.summary}; unpaired, {self.source.summary}"

    def named(self, step: int) -> str:
        """See contracts.Feed."""
        return f"target {self.target.named(step)}; source {self.source.named(step)}"

    def held_out(self) -> Example | None:
        """See contracts.Feed; None where one of the stores holds nothing out."""
        target, source = self.target.held_out(), self.source.held_out()
        return None if target is None or source is None else _unpaired(target, source)

    def shown(self, count: int) -> tuple[Example, int]:
        """See Slices.shown."""
        (target, first), (source, second) = self.target.shown(count), self.source.shown(count)
        return _unpaired(target, source), min(first, second)

    def training(self, start: int, stop: int) -> Iterator[Example]:
        """See contracts.Feed."""
        both = self.target.training(start, stop), self.source.training(start, stop)
        return map(_unpaired, *both)


def _unpaired(target: Example, source: Example) -> Example:
    return {"x": target["x"], "source": source["x"]}


@dataclasses.dataclass(frozen=True)
class LabelledSlices:
    """Slices of a store with labels: what a segmenter learns from.

    An example is {'x': [B, H, W] in [-1, 1], 'classes': [B, H, W] uint8}.

    Attributes:
      store: with labels; its 'train' split is learnt.
      labels: of the classes, in order, 0 for the background first; others become background.
      seed: of the order.
      batch: images of a step.
      mesh: as in `Slices`.
    """

    store: Store
    labels: tuple[int, ...]
    seed: int
    batch: int
    mesh: Mesh

    @property
    def example(self) -> Example:
        """See contracts.Feed."""
        shape = (self.batch, self.store.grid.size, self.store.grid.size)
        return {
            "x": jax.ShapeDtypeStruct(shape, jnp.float32),
            "classes": jax.ShapeDtypeStruct(shape, jnp.uint8),
        }

    @property
    def summary(self) -> str:
        """See contracts.Feed."""
        return f"{summary(self.store)}, {len(self.labels) - 1} labels"

    def named(self, step: int) -> str:
        """See contracts.Feed."""
        return named(self.store, self._rows(step - 1))

    def held_out(self) -> None:
        """See contracts.Feed; no slices are held out."""

    def training(self, start: int, stop: int) -> Iterator[Example]:
        """See contracts.Feed."""
        split = meshes.batch(self.mesh)
        for step in range(start, stop):
            yield meshes.put(split, self._examples(processes.share(self._rows(step))))

    def _rows(self, step: int) -> np.ndarray:
        rows = self.store.rows("train")
        return rows[indices(self.seed, step, self.batch, len(rows))]

    def _examples(self, rows: np.ndarray) -> Example:
        store = self.store
        images = store.preset.in_body(store.values(rows), store.masks[rows])
        return {"x": images, "classes": numbered(store.labels[rows], self.labels)}


def numbered(array, labels) -> np.ndarray:
    """Label map -> uint8, the position of each label in `labels`; 0 for labels not among them."""
    table = np.zeros(max(*labels, int(array.max(initial=0))) + 1, np.uint8)
    table[list(labels)] = np.arange(len(labels))
    return table[array.astype(np.int64)]
