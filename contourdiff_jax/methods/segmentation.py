# SPDX-License-Identifier: Apache-2.0
"""Training of a segmenter on the slices of a store with labels.

The published set-up (Chen et al., arXiv 2403.10786): Dice and cross entropy, AdamW with a learning
rate of 1e-3 and a weight decay of 1e-4, 100 epochs of batches of 8. Ours adds warm-up, a cosine to
zero and an average of the weights (state.py), so that few images go a long way.

Everything is a pure function of the seed: the same again gives the same weights, bit for bit.

Legend: B batch, H rows, W columns, C classes.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from contourdiff_jax import config
from contourdiff_jax.data import augment, batches
from contourdiff_jax.data.store import Store
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import segmenter
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import state
from contourdiff_jax.volumes.intensity import Preset

EPOCHS = 100  # where no number of images is given
SMOOTH = 1e-5  # of Dice: a class that is neither there nor predicted has a loss of 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed before the first step, for networks of any seed.

    Attributes:
      mesh: devices that share each batch.
      train: a `train` section, see config.py.
      init: key -> state.
      step: (state, example) -> (state, metrics); compiled when it is first called.
    """

    mesh: jax.sharding.Mesh
    train: ConfigDict
    init: Callable
    step: Callable


def plan(classes: int, images: int, batch: int, mesh: jax.sharding.Mesh) -> Plan:
    """How networks of so many classes are trained, each on so many images, repeats counted."""
    settings = config.default()
    # Left and right are not exchanged: labels may tell them apart.
    settings.augment.flip = 0.0
    settings.train.update(images=images, batch=batch)
    network = segmenter.build(classes)
    step = state.step(settings.train, loss(network, settings.augment))
    whole = meshes.replicated(mesh)
    return Plan(
        mesh,
        settings.train,
        jax.jit(functools.partial(state.init, settings.train, network.init), out_shardings=whole),
        jax.jit(step, in_shardings=(whole, meshes.batch(mesh)), out_shardings=whole),
    )


def loss(network: segmenter.Segmenter, augmentation) -> Callable:
    """(params, example, key) -> (loss, metrics) of augmented examples.

    An example is {'images': [B, H, W] in [-1, 1], 'classes': [B, H, W] uint8}.
    """

    def of_example(params, example, key):
        images, classes = example["images"][:, None], example["classes"][:, None]
        transforms = augment.draw(jax.random.split(key, len(images)), augmentation)
        # What flows in from outside is air, and background.
        images, classes = augment.apply(transforms, images, classes, -1.0)
        logits = network.apply(params, images[:, 0, ..., None])
        value = dice_and_cross_entropy(logits, classes[:, 0])
        return value, {"loss": value}

    return of_example


def dice_and_cross_entropy(logits, classes):
    """Soft Dice loss and cross entropy, added, of logits [B, H, W, C] and classes [B, H, W].

    As MONAI's DiceCELoss has it: Dice (Milletari et al., arXiv 1606.04797, without their squares)
    of every image and class, the background among them.
    """
    truth = jax.nn.one_hot(classes, logits.shape[-1])
    logs = jax.nn.log_softmax(logits)
    predicted = jnp.exp(logs)
    overlap = (predicted * truth).sum((1, 2))
    sizes = (predicted + truth).sum((1, 2))
    dice = 1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)
    return dice.mean() - (logs * truth).sum(-1).mean()


def train(store: Store, labels: list[int], plan: Plan, seed: int, name: str = "train") -> dict:
    """Averaged weights, on the host, of a network trained on the slices of a store.

    Args:
      store: with labels; its 'train' split is learnt.
      labels: of the classes, in order, 0 for the background first; any other becomes background.
      plan: what is the same for all seeds.
      seed: of weights, order and augmentation.
      name: of the progress bar.

    Raises:
      InputError: a loss that is not finite.
    """
    total, batch = state.steps(plan.train), plan.train.batch
    rows = store.rows("train")
    put = functools.partial(meshes.put, meshes.batch(plan.mesh))
    current = plan.init(jax.random.key(seed))
    before = None
    with tqdm(total=total * batch, desc=name, unit=" images", disable=None) as bar:
        for step in range(total):
            example = examples(store, labels, rows[batches.indices(seed, step, batch, len(rows))])
            current, metrics = plan.step(current, put(example))
            if before is not None:  # read once the next step is on its way
                bar.set_postfix(loss=f"{float(before):.3f}", refresh=False)
            before = metrics["loss"]
            bar.update(batch)
    # A step whose loss is not finite changes nothing, its count included.
    if int(current.step) < total:
        raise InputError(
            f"the loss was not finite in {total - int(current.step)} of {total} steps; look at the "
            f"images, or lower the learning rate"
        )
    return jax.device_get(current.ema)


def examples(store: Store, labels: list[int], rows) -> dict:
    """What a network is shown of the slices of a store with those numbers, and what they are."""
    images = shown(store.values(rows), store.masks[rows], store.preset)
    return {"images": images, "classes": numbered(store.labels[rows], labels)}


def shown(values, body, preset: Preset) -> np.ndarray:
    """Values [.., H, W] as networks see them, in [-1, 1]: what is not the body is air.

    Real images have noise and head holders there, translations have not.
    """
    return preset.image.unit(np.where(body > 0, values, np.float32(preset.air)))


def numbered(array, labels: list[int]) -> np.ndarray:
    """Label map -> uint8 numbers of its labels in `labels`; of those that are not there, 0."""
    table = np.zeros(max(*labels, int(array.max(initial=0))) + 1, np.uint8)
    table[labels] = np.arange(len(labels))
    return table[array.astype(np.int64)]
