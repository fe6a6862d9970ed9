# SPDX-License-Identifier: Apache-2.0
"""Codecs: the space that a method of diffusion learns in, pixels or an autoencoder's latents.

Latents of the images of a store have a standard deviation of their own; they are learnt times its
reciprocal (Rombach et al. 2022, arXiv 2112.10752, appendix G). Of what the network is shown, images
become latents too, the mean of their distribution and not scaled (Brooks et al. 2023, arXiv
2211.09800, section 3.2); contours are folded: each latent sees the f x f pixels that it stands for.

What a run of latents has learnt is worth nothing with another autoencoder, so it knows the digest
of its own (methods/parts.py).

Shapes: B batch, H rows, W columns, f pixels a side of a latent, Z channels of latents, c channels
of a condition.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax.contracts import CONDITIONS, CONTOUR, SOURCE, Codec, Moments, Params, Player
from contourdiff_jax.data import augment, moments
from contourdiff_jax.data.feeds import Slices, spread, summary
from contourdiff_jax.data.store import Store
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import autoencoder
from contourdiff_jax.models import autoencoder as networks
from contourdiff_jax.models import patches
from contourdiff_jax.models.autoencoder import Autoencoder
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.runtime import processes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.training.run import CodecOf, Run

LATENTS = "latents"  # in a run's folder: those of the slices that it learns from, see `kept`
MEASURED = 128  # slices that the deviation of latents is taken of

PIXELS = Codec(
    channels=1,
    side=1,
    bounded=True,
    learnt=lambda fixed, images, key=None: images,
    seen=lambda fixed, condition: condition,
    drawn=lambda fixed, image: image,
)


def of(ours: Run) -> Codec:
    """The codec of a run."""
    if ours.codec is None:
        return PIXELS
    section = ours.codec.section
    return latents(networks.build(section), section, ours.codec.scale)


def latents(network: Autoencoder, section: ConfigDict, scale: float) -> Codec:
    """The codec of an autoencoder; its parameters are `fixed["codec"]`.

    Args:
      section: an `autoencoder` section.
      scale: by which latents are multiplied to be learnt.
    """
    side = networks.side(section)

    def encoded(fixed, images):
        return _encode(network, section, fixed["codec"], images)

    def learnt(fixed, images, key=None):
        known = isinstance(images, Moments)
        mean, log_variance = images if known else encoded(fixed, images)
        z = mean if key is None else networks.sampled(mean, log_variance, key)
        return jax.lax.stop_gradient(scale * z)

    def seen(fixed, condition):
        return {name: _seen(name, value, fixed) for name, value in condition.items()}

    def _seen(name, value, fixed):
        values, given = value[..., :-1], value[..., -1:]
        given = given[:, ::side, ::side]
        if CONDITIONS[name].image:
            values = jax.lax.stop_gradient(encoded(fixed, values).mean) * given
        else:
            values = patches.fold(values, side)
        return jnp.concatenate([values, given], -1)

    def drawn(fixed, z):
        return networks.grey(network.decode(fixed["codec"], z / scale))

    return Codec(section.latents, side, False, learnt, seen, drawn)


def _encode(network: Autoencoder, section: ConfigDict, params: Params, images) -> Moments:
    return Moments(*network.encode(params, networks.coloured(section, images)))


def in_parts(function: Callable, size: int) -> Callable:
    """(fixed, tree of [B, ..]) -> what a codec makes of it, of `size` at a time, one after another.

    B is a multiple of it.
    """

    def mapped(fixed, tree):
        parts = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), tree)
        found = jax.lax.map(lambda part: function(fixed, part), parts)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)

    return mapped


# --------------------------------------------------------------------------------------------------
# Weights
# --------------------------------------------------------------------------------------------------


def weights(folder: Path, section: ConfigDict, mesh: Mesh) -> Params:
    """The parameters of the autoencoder in a run's folder, on a mesh."""
    init = networks.build(section).init
    players = {autoencoder.AUTOENCODER: Player(init, None, None, None)}
    return checkpoint.averages(folder, players, mesh)[1][autoencoder.AUTOENCODER]


def checked(folder: Path, known: CodecOf, mesh: Mesh) -> Params:
    """As `weights`; InputError where they are not those that a run has learnt with."""
    params = weights(folder, known.section, mesh)
    if _digest(params) != known.digest:
        raise InputError(
            f"{folder}: another autoencoder than the run has learnt with; restore it from a copy"
        )
    return params


def place(folder: Path) -> Path:
    """The run of the autoencoder that another run is, or has.

    Raises InputError where it is neither of an autoencoder nor of latents.
    """
    theirs = run.load(folder)
    if theirs.codec is not None:
        return folder / run.CODEC
    if theirs.config.method != "autoencoder":
        raise InputError(
            f"{folder}: a run of {theirs.config.method}, neither of an autoencoder nor of latents"
        )
    return folder


def chosen(folder: Path, store: Store) -> CodecOf:
    """What a run that begins on a store is to know of the codec that another run is, or has.

    Raises:
      InputError: no codec, or one of other images than the store's.
    """
    theirs, own = run.load(folder), place(folder)
    if theirs.preset != store.preset:
        raise InputError(
            f"{folder}: an autoencoder of {theirs.preset.name}, and the store has "
            f"{store.preset.name}"
        )
    section = theirs.codec.section if theirs.codec else theirs.config.autoencoder
    networks.check_size(section, store.grid.size)
    if theirs.codec is not None:
        return theirs.codec
    params = weights(own, section, meshes.local(1))
    return CodecOf(section, 1 / deviation(section, params, store), _digest(params))


def identity(folder: Path) -> str:
    """The digest of the autoencoder that a run is, or has; InputError where it is none."""
    theirs, own = run.load(folder), place(folder)
    if theirs.codec is not None:
        return theirs.codec.digest
    return _digest(weights(own, theirs.config.autoencoder, meshes.local(1)))


def kept(ours: Run, feed: Slices, workdir: Path) -> Slices:
    """The feed of a run that has begun, with moments from its folder in place of encoding.

    That is where augmentation leaves the images as they are, but for left and right: otherwise it
    stays as it is. One process makes what is not there, the others wait.

    Raises:
      InputError: moments that were changed since, or that cannot be written; another autoencoder.
    """
    flips = augment.flips(feed.augment)
    if ours.codec is None or flips is None:
        return feed
    of = moments.Of(
        store=moments.named(feed.store),
        codec=_name(ours.codec),
        flips=flips,
        native=CONTOUR.name in feed.conditions and feed.contours.native,
        sources=SOURCE.name in feed.conditions,
    )
    folder, main = workdir / LATENTS, processes.is_main()
    there = processes.together(lambda: main and moments.are_kept(folder, of))
    if not processes.told(lambda: "yes" if there else ""):
        mesh = meshes.local()
        params = checked(ours.parts[run.CODEC], ours.codec, mesh)
        processes.together(lambda: main and _make(folder, of, ours.codec, feed, params, mesh))
    found = processes.together(lambda: moments.opened(folder, of, feed.store))
    return dataclasses.replace(feed, moments=found)


def _make(folder, of: moments.Of, known: CodecOf, feed: Slices, params: Params, mesh: Mesh) -> None:
    network = networks.build(known.section)

    def encode(params, images):
        return _encode(network, known.section, params, images)

    # As many a device as are encoded at once in training.
    size = max(1, feed.train.batch // feed.train.accumulate // feed.mesh.size) * mesh.size
    began = time.perf_counter()
    moments.make(folder, of, feed.store, feed.contours, encode, params, mesh, size)
    seconds = time.perf_counter() - began
    print(f"{folder}: latents of {summary(feed.store)}, made in {seconds:.0f} s", flush=True)


def _name(known: CodecOf) -> str:
    """A digest of what encodes: of weights, and of what else the network is."""
    text = f"{known.digest} {json.dumps(known.section.to_dict(), sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(params: Params) -> str:
    return checkpoint.digest({autoencoder.AUTOENCODER: params})


def deviation(section: ConfigDict, params: Params, store: Store) -> float:
    """The standard deviation of the latents of a store's training slices."""
    codec = latents(networks.build(section), section, 1.0)
    learnt: Callable = jax.jit(codec.learnt)
    rows = spread(store.rows("train"), MEASURED)
    images = [
        store.preset.in_body(store.values(part), store.masks[part])[..., None].astype(np.float32)
        for part in np.array_split(rows, -(-len(rows) // 8))
    ]
    drawn = [np.asarray(learnt({"codec": params}, part)).ravel() for part in images]
    return float(np.concatenate(drawn).std())
