# SPDX-License-Identifier: Apache-2.0
"""Feeds: which slices of a store a step learns from, and the examples made of them.

Everything is a pure function of (seed, step), so that resuming needs no iterator state, and every
process of a cluster can make its own part of the same global batch.

A store that fits is kept on the devices, as uint16 slices and masks; others are streamed, read
ahead in a thread. Either way the same compiled function makes examples of them (examples.py), and
the host only chooses the slices.

Shapes: B batch, b of it in this process, K slices that go together (an image, or with it its
neighbour), H rows, W columns, N slices of the training split.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple, Self

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
ORDER, CHANGES, NEIGHBOURS, PATCHES = range(4)  # what a run's seed is used for in feeds


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


def _repeated(images: np.ndarray, count: int) -> np.ndarray:
    """So many of the images [n, ..], again and again in their order."""
    return images[np.arange(count) % len(images)]


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
    pixels = f"{grid.size} px of {grid.spacing:g} mm{grid.every}"
    return f"{slices:,} slices of {subjects} subjects, {pixels}, {store.preset.described()}"


@dataclasses.dataclass(frozen=True)
class Targets:
    """Images of the target with their conditions, whatever their number of dimensions.

    A kind of them says what there is to choose (`at_hand`, `at_rest`), what a step chooses
    (`choose`: rows of the training split and what the host has drawn), and how examples are made of
    the rows (`maker`). In which order that happens is the same for all.

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
                f"give `prepare --pairs` some, or leave source out of the conditions"
            )
        if PICTURE.name in self.conditions:
            recast.check(self.contours, str(self.store.path))

    # The sections of a configuration that it has as fields.
    SECTIONS: ClassVar = ("train", "augment", "disturbance", "recast")
    HELD_OUT: ClassVar = HELD_OUT  # examples of the held-out loss

    @classmethod
    def under(
        cls,
        config: ConfigDict,
        store: Store,
        contours: ContourSettings,
        conditions: tuple[str, ...],
        mesh: Mesh,
        **how,
    ) -> Self:
        """Those of a store as a whole configuration says; `how`: fields that are to be others."""
        fields = {"seed": config.seed} | how
        sections = {name: config[name] for name in cls.SECTIONS}
        return cls(
            store=store, contours=contours, conditions=conditions, mesh=mesh, **sections, **fields
        )

    @property
    def space(self) -> tuple[int, ...]:
        """The shape of an image, without its channels."""
        raise NotImplementedError

    def at_hand(self, split: str, count: int) -> np.ndarray:
        """At most `count` images of a split, evenly spread, as `at_rest` knows them: [n, ..]."""
        raise NotImplementedError

    def at_rest(self, images: np.ndarray) -> Example:
        """Examples on the host of images that are `at_hand`, neither moved nor disturbed."""
        raise NotImplementedError

    def choose(self, step: int, process: tuple[int, int] = (0, 1)) -> NamedTuple:
        """What step number `step`, from 0, learns from: positions `rows` in the training split, ..

        Args:
          process: (index, count) of this process, which gets its share of the global batch, in
            order.
        """
        raise NotImplementedError

    def maker(self) -> Callable[[tuple[Raw | None, Known | None], NamedTuple], Example]:
        """The compiled (what is read, choice) -> example of training; both are over the mesh."""
        raise NotImplementedError

    @property
    def example(self) -> Example:
        """See contracts.Feed."""

        def image(channels: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.train.batch, *self.space, channels), jnp.float32)

        seen = {name: image(CONDITIONS[name].channels + 1) for name in self.conditions}
        example = {"x": image(1), "condition": seen} | ({"mask": image(1)} if self.masked else {})
        if self.moments is None:
            return example
        slices = 1 + (NEIGHBOUR.name in self.conditions)
        known = self.moments.like((self.train.batch, slices))
        each = jax.ShapeDtypeStruct((self.train.batch,), jnp.uint8)
        neighboured = each if NEIGHBOUR.name in self.conditions else None
        return jax.eval_shape(moments.shown, example, known, each, neighboured)

    def held_out(self) -> Example | None:
        """See contracts.Feed."""
        held = self.at_hand("val", self.HELD_OUT)
        if not len(held):
            return None
        count = max(1, self.HELD_OUT // self.mesh.size) * self.mesh.size
        return meshes.split(meshes.batch(self.mesh), self.at_rest(_repeated(held, count)))

    def shown(self, count: int) -> tuple[Example, int]:
        """Examples on the host to look at, and how many: a multiple of the devices, repeated."""
        images = self.at_hand("val", count)
        if not len(images):
            images = self.at_hand("train", count)
        return self.at_rest(_repeated(images, count * self.mesh.size)), len(images)

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

        def read(step) -> tuple[NamedTuple, tuple]:
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

    def made(
        self,
        raw: Raw,
        key_data: jax.Array,
        size: tuple[int, ...],
        *,
        each: Callable = lambda drawn: drawn,
        neighboured: jax.Array | None = None,
    ) -> Example:
        """Examples of raw slices, moved and disturbed by keys [B, 2, 2]; to be jitted.

        Args:
          size: of an image, (H, W), or of a patch, (D, H, W).
          each: takes what is drawn for B images to the slices of `raw`, where these are more.
          neighboured: see examples.make.
        """
        contour, picture = (of.name in self.conditions for of in (CONTOUR, PICTURE))
        moves, changes = jnp.unstack(jax.random.wrap_key_data(key_data), axis=1)
        return examples.make(
            raw,
            self.store.preset,
            self.contours if contour else None,
            source=self.store.source_preset if raw.sources is not None else None,
            transforms=each(augment.draw(moves, self.augment)),
            change=each(disturbance.draw(changes, self.disturbance, size)) if contour else None,
            recasting=each(recast.draw(changes, self.recast, size)) if picture else None,
            neighboured=neighboured,
            masked=self.masked,
        )

    def compiled(self, local: Callable, arguments: int) -> Callable:
        """A function of so many trees of arrays [B, ..], compiled so that devices share the B.

        Each device makes its own part. If the compiler shared out the work, the search for
        connected edges would ask all devices after every round whether they are done.
        """
        parts = PartitionSpec(meshes.AXES)
        return jax.jit(
            jax.shard_map(local, mesh=self.mesh, in_specs=(parts,) * arguments, out_specs=parts)
        )

    def _share(self, process: tuple[int, int]) -> np.ndarray:
        """Positions [b] in the global batch of what a process makes of it, see `choose`."""
        share = self.train.batch // process[1]
        return np.arange(process[0] * share, (process[0] + 1) * share)

    def _drawn(self, step: int, positions: np.ndarray, total: int) -> np.ndarray:
        """Numbers [b] below `total` at those positions of a step's batch, see `indices`."""
        return indices(self.seed, step, self.train.batch, total)[positions]

    def _keys(self, step: int, positions: np.ndarray) -> np.ndarray:
        """[b, 2, 2] uint32, raw keys of each image's augmentation and disturbance."""
        seeds = (np.random.SeedSequence((self.seed, CHANGES, step, i)) for i in positions.tolist())
        return np.stack([each.generate_state(4).reshape(2, 2) for each in seeds])

    @functools.cached_property
    def _numbers(self) -> np.ndarray:
        return self.store.rows("train")


@dataclasses.dataclass(frozen=True)
class Slices(Targets):
    """Slices of the target with their conditions: what ContourDiff and pairs learn from."""

    @property
    def space(self) -> tuple[int, ...]:
        """See Targets."""
        return (self.store.grid.size,) * 2

    @property
    def summary(self) -> str:
        """See contracts.Feed."""
        return summary(self.store)

    def named(self, step: int) -> str:
        """See contracts.Feed."""
        return named(self.store, self._numbers[self.choose(step - 1).rows[:, 0]])

    def at_hand(self, split: str, count: int) -> np.ndarray:
        """Numbers [n] of slices in the store, see Targets."""
        return spread(self.store.rows(split), count)

    def at_rest(self, images: np.ndarray) -> Example:
        """Examples on the host of the slices with those numbers, neither moved nor disturbed."""
        return examples.at_rest(
            self.store, images, self.contours, self.conditions, masked=self.masked
        )

    def choose(self, step: int, process: tuple[int, int] = (0, 1)) -> Choice:
        """See Targets."""
        (volumes, slices), seed = self._places, self.seed
        positions = self._share(process)
        rows = self._drawn(step, positions, len(volumes))
        keys = self._keys(step, positions)
        if NEIGHBOUR.name not in self.conditions:
            return Choice(rows[:, None], np.zeros(len(rows), np.uint8), keys)
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
        """See Targets."""
        sees_neighbour = NEIGHBOUR.name in self.conditions

        def local(read, neighboured, key_data):
            raw, known = read
            example, neighboured = {"condition": {}}, neighboured if sees_neighbour else None
            if raw is not None:
                size = raw.slices.shape[-2:]
                example = self.made(raw, key_data, size, neighboured=neighboured)
            if known is None:
                return example
            moves, _ = jnp.unstack(jax.random.wrap_key_data(key_data), axis=1)
            flip = augment.draw(moves, self.augment).flip
            return moments.shown(example, known, flip, neighboured)

        compiled = self.compiled(local, arguments=3)
        put = functools.partial(meshes.put, meshes.batch(self.mesh))

        def made(read: tuple[Raw | None, Known | None], choice: Choice) -> Example:
            return compiled(read, *put((choice.neighboured, choice.keys)))

        return made

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
