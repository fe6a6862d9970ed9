# SPDX-License-Identifier: Apache-2.0
"""Moments kept on disk: what an autoencoder makes of a store's training slices, made once.

Where augmentation does no more than exchange left and right, a step sees one of two images of each
slice, and their latents have always the same distribution. So they are read in place of encoding:

    RUN/latents/images.npy     [N, F, 2, h, w, Z] float32, mean and log-variance of the images
    RUN/latents/sources.npy    [N, F, h, w, Z] float32, means of the sources, where they are seen
    RUN/latents/latents.json   of what they are (`Of`), sha256 of the others, and a digest of that

Contours are still taken from the pixels, so that they can be disturbed, and so is the picture,
which is another at each step. The folder is written under a temporary name and renamed when it is
whole; the run that it lies in is claimed by one command at a time.

Shapes: N slices of the training split, in the order of the store; F the flips that may be drawn, as
augment.flips lists them; B batch, K slices that go together (an image, or with it its neighbour), h
rows, w columns and Z channels of latents.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.contracts import CONTOUR, NEIGHBOUR, SOURCE, Example, Moments, Params
from contourdiff_jax.data import augment, examples
from contourdiff_jax.data.store import Stack, Store
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, forms, ownership
from contourdiff_jax.runtime import mesh as meshes

SCHEMA = 1
MADE = "latents"  # by which their folder is known
ABOUT = "latents.json"
AGAIN = "remove the folder, and the same command makes it again"
NAMES = ("images", "sources")


@dataclasses.dataclass(frozen=True)
class Of:
    """What tells moments from others.

    Attributes:
      store: digest, see `named`.
      codec: digest of the autoencoder, its weights and its section of a configuration.
      flips: that may be drawn, see augment.flips.
      native: whether images are shown outside the body, too, as contours of native pixels ask for.
      sources: whether there are those of the sources.
    """

    store: str
    codec: str
    flips: tuple[bool, ...]
    native: bool
    sources: bool


class Known(NamedTuple):
    """Moments as they are kept."""

    images: jax.Array  # [B, K, F, 2, h, w, Z]
    sources: jax.Array | None  # [B, K, F, h, w, Z], where they are seen


@dataclasses.dataclass(frozen=True)
class Kept:
    """An opened folder of moments.

    Attributes:
      numbers: [N] of their slices in the store, rising.
    """

    numbers: np.ndarray
    images: Stack
    sources: Stack | None

    def read(self, rows: np.ndarray) -> Known:
        """Those of the slices of the store with the numbers [B, K]."""
        places = np.searchsorted(self.numbers, rows)
        return self._of_each(lambda stack: stack[places])

    def like(self, shape: tuple[int, int]) -> Known:
        """ShapeDtypeStructs of those of so many slices, (B, K)."""
        return self._of_each(
            lambda stack: jax.ShapeDtypeStruct((*shape, *stack.shape[1:]), stack.dtype)
        )

    def _of_each(self, function: Callable) -> Known:
        return Known(function(self.images), self.sources and function(self.sources))


def shown(example: Example, known: Known, flip, neighboured=None) -> Example:
    """An example with Moments for its 'x', and with the latents of conditions in 'seen'.

    Args:
      example: with the other conditions, in pixels.
      flip: [B] whether the images are flipped.
      neighboured: [B], 1 where the neighbour is shown; None where none ever is.
    """
    count = known.images.shape[2]
    which = flip.astype(jnp.int32) if count > 1 else jnp.zeros(flip.shape, jnp.int32)

    def drawn(kept):
        return kept[jnp.arange(len(kept)), :, which]

    images = drawn(known.images)
    x, seen = Moments(images[:, 0, 0], images[:, 0, 1]), {}
    given = jnp.ones((*x.mean.shape[:-1], 1))
    if known.sources is not None:
        seen[SOURCE.name] = jnp.concatenate([drawn(known.sources)[:, 0], given], -1)
    if neighboured is not None:
        there = neighboured.astype(jnp.float32)[:, None, None, None]
        seen[NEIGHBOUR.name] = there * jnp.concatenate([images[:, 1, 0], given], -1)
    pixels = {name: value for name, value in example["condition"].items() if name not in seen}
    return {**example, "x": x, "condition": pixels, "seen": seen}


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------


def named(store: Store) -> str:
    """A digest of what a store holds: of its index, and of what says how it was prepared."""
    return disk.sha256(store.path / "dataset.json", store.path / "index.csv")


def are_kept(folder: Path, of: Of) -> bool:
    """Whether a folder has these moments, as they were made, by reading all of them.

    Raises:
      InputError: a file that was changed.
    """
    about, files = folder / ABOUT, _files(folder, of)
    if not ownership.is_finished(folder) or not all(map(Path.is_file, [about, *files])):
        return False
    fields = forms.read(about, {"of": Of, "sha256": dict[str, str]}, AGAIN, SCHEMA)
    if fields["of"] != of:
        return False
    for file in files:
        if fields["sha256"].get(file.name) != disk.sha256(file):
            raise InputError(f"{file}: damaged, not as it was made; {AGAIN}")
    return True


def opened(folder: Path, of: Of, store: Store) -> Kept:
    """The moments in a folder that has them, see `are_kept`."""
    stacks = dict.fromkeys(NAMES)
    for file in _files(folder, of):
        with disk.reading(file):
            stacks[file.stem] = Stack(file, np.load(file, mmap_mode="r"), AGAIN)
    return Kept(store.rows("train"), **stacks)


def _files(folder: Path, of: Of) -> list[Path]:
    return [folder / f"{name}.npy" for name in (NAMES if of.sources else NAMES[:1])]


def make(
    folder: Path,
    of: Of,
    store: Store,
    contours: ContourSettings,
    encode: Callable[[Params, jax.Array], Moments],
    params: Params,
    mesh: Mesh,
    size: int,
) -> None:
    """Write the moments of a store's training slices into a folder, over others that were there.

    Args:
      contours: as the run takes them, see examples.make.
      encode: (params, images [B, H, W, 1]) -> their moments.
      params: of the autoencoder, on the mesh.
      mesh: devices of this process, over which `size` images at a time are split.

    Raises:
      InputError: something else is in the way, or the folder cannot be written.
    """
    with ownership.folder(folder, MADE, overwrite=True) as partial, contextlib.ExitStack() as left:
        files = [left.enter_context(path.open("wb")) for path in _files(partial, of)]
        count = len(store.rows("train"))
        for number, chunk in enumerate(_chunks(of, store, contours, encode, params, mesh, size)):
            for file, array in zip(files, chunk, strict=False):
                if not number:
                    _write_header(file, (count, *array.shape[1:]))
                file.write(np.ascontiguousarray(array).data)
        for file in files:
            file.close()
        digests = {path.name: disk.sha256(path) for path in _files(partial, of)}
        fields = {"schema": SCHEMA, "of": dataclasses.asdict(of), "sha256": digests}
        disk.write_json(partial / ABOUT, forms.sealed(fields))


def _chunks(of: Of, store, contours, encode, params, mesh, size) -> Iterator[list[np.ndarray]]:
    """Arrays of images.npy, and of sources.npy, for some slices after others."""
    names = ((CONTOUR.name,) if of.native else ()) + ((SOURCE.name,) if of.sources else ())

    def moments(params, raw, flip):
        # As in training, so that the pixels are the same; contours are not asked for.
        example = examples.make(
            raw,
            store.preset,
            contours if of.native else None,
            source=store.source_preset if of.sources else None,
            transforms=augment.flipping(flip),
        )
        found = [jnp.stack(encode(params, example["x"]), 1)]
        if of.sources:
            found.append(encode(params, example["condition"][SOURCE.name][..., :1]).mean)
        return found

    split, rows = meshes.batch(mesh), store.rows("train")
    compiled = jax.jit(moments, out_shardings=split)
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        raw = examples.read(store, contours, np.resize(part, size)[:, None], names)
        raw, every = meshes.split(split, raw), []
        for flip in of.flips:
            found = compiled(params, raw, meshes.split(split, np.full(size, flip)))
            every.append([np.asarray(array)[: len(part)] for array in found])
        yield [np.stack(arrays, 1) for arrays in zip(*every, strict=True)]


def _write_header(file, shape: tuple[int, ...]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
