# SPDX-License-Identifier: Apache-2.0
"""Segmentation: the labels of an image's pixels, learnt from the slices of a store with labels.

The published set-up (Chen et al., arXiv 2403.10786): Dice and cross entropy, AdamW with a learning
rate of 1e-3 and a weight decay of 1e-4, 100 epochs of batches of 8. Ours adds warm-up, a cosine to
zero and an average of the weights (training/state.py), which makes more of few images.

Shapes: B batch, H rows, W columns, C classes.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax.contracts import Averages, Fixed, Memory, Player
from contourdiff_jax.data import augment
from contourdiff_jax.data.feeds import LabelledSlices
from contourdiff_jax.data.store import Store
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import segmenter
from contourdiff_jax.models.segmenter import Segmenter
from contourdiff_jax.training import state
from contourdiff_jax.training.run import Run

NETWORK = "network"  # the one player
EPOCHS = 100  # where no number of images is given
SMOOTH = 1e-5  # of Dice, so that a class that is neither there nor predicted has a loss of 0


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The method, see contracts.Method."""

    players: Mapping[str, Player]
    mesh: Mesh
    feed: LabelledSlices | None
    network: Segmenter
    fixed: Fixed = ()
    memory: Memory = ()
    start: None = None

    def held_out(self, averages: Averages, fixed: Fixed, example) -> dict:
        """See contracts.Method; nothing is held out: test volumes say how good it is."""
        return {}

    def samples(self, averages: Averages, fixed: Fixed) -> None:
        """See contracts.Method; the panels of test volumes show what a segmenter finds."""

    def translator(self, averages: Averages, fixed: Fixed):
        """See contracts.Method; a segmenter draws no images."""
        raise InputError("a run of a segmenter: it labels images and draws none")


def configured(seed: int, images: int, batch: int) -> ConfigDict:
    """The configuration of a segmenter.

    Args:
      images: that it learns from, repeats counted.
      batch: images of a step.
    """
    config = configuration.default()
    config.method, config.seed = "segmentation", seed
    config.train.update(images=images, batch=batch)
    # Left and right are not exchanged, since labels may tell them apart.
    config.augment.flip = 0.0
    return config


def build(
    ours: Run,
    *,
    store: Store | None = None,
    mesh: Mesh | None = None,
    sampler: ConfigDict | None = None,
) -> Segmentation:
    """The method of a run: see diffusion.build; there is nothing to draw with a sampler."""
    del sampler
    config, network = ours.config, segmenter.build(len(ours.labels))
    player = Player(
        network.init,
        loss(network, config.augment),
        state.optimiser(config.train),
        state.learning_rate(config.train),
    )
    players = {NETWORK: player}
    mesh = mesh or state.mesh_for(config.mesh, config.train, players)
    feed = (
        None
        if store is None
        else LabelledSlices(store, ours.labels, config.seed, config.train.batch, mesh)
    )
    return Segmentation(players, mesh, feed, network)


def loss(network: Segmenter, augmentation) -> Callable:
    """The training loss, see contracts.Player; it augments examples under an `augment` section."""

    def training_loss(params, everyone, example, key, fixed, memory):
        del everyone, fixed
        images, classes = example["x"][:, None], example["classes"][:, None]
        transforms = augment.draw(jax.random.split(key, len(images)), augmentation)
        # What moves in from outside is air, and background.
        images, classes = augment.apply(transforms, images, classes, -1.0)
        logits = network.apply(params, images[:, 0, ..., None])
        value = dice_and_cross_entropy(logits, classes[:, 0])
        return value, ({}, memory)

    return training_loss


def dice_and_cross_entropy(logits, classes):
    """Soft Dice loss and cross entropy, added, of logits [B, H, W, C] and classes [B, H, W].

    As in MONAI's DiceCELoss: Dice (Milletari et al., arXiv 1606.04797, without their squares) of
    every image and class, the background included.
    """
    truth = jax.nn.one_hot(classes, logits.shape[-1])
    logs = jax.nn.log_softmax(logits)
    predicted = jnp.exp(logs)
    overlap = (predicted * truth).sum((1, 2))
    sizes = (predicted + truth).sum((1, 2))
    dice = 1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)
    return dice.mean() - (logs * truth).sum(-1).mean()
