# SPDX-License-Identifier: Apache-2.0
"""The contracts between the parts of the package: the page to read first.

A *method* is what learns and how it draws: ContourDiff's diffusion, its distillation to few steps,
a segmenter. It is one file in methods/, built from a configuration by `methods.build`. The training
loop, the state and the checkpoints know methods by what stands here and by nothing else; so does
translation, which asks a method for its *translator*.

    files -> store -> Feed -> example -> Player.loss          training/loop.py, once for all methods
    source volume -> what a method sees of it -> Translator -> slices            translation/

The other signatures that the parts share:

    example   {'x': [B, *S, C] in [-1, 1], 'condition': {name: [B, *S, c]}} for what draws images
    denoise   (z_t, t) -> estimate of x_0, not clipped                         diffusion/guidance.py
    sampler   (denoise, schedule, z_T, noise, t) -> z_0; pure, a lax.scan      diffusion/samplers.py
    noise     (i) -> array like z: all of a sampler's randomness               diffusion/noise.py
    rule      (samples, their contours, those asked for) -> number of the sample kept, each slice
    metric    arrays -> dict of floats; no files, no models                    evaluation/metrics/

Shapes: B batch, *S space (H W, or D H W), C or c channels, last.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

Key = Array  # of jax.random
Params = dict[str, Any]  # nested, of arrays
Averages = Mapping[str, Params]  # of each player: the moving average where it is kept
Example = Mapping[str, Any]  # a tree of arrays, B first; a feed's are global arrays on its mesh
Metrics = dict[str, Any]  # name -> scalar, or a list of floats
Fixed = Any  # a tree of arrays that are read and not learnt; () where there are none
Memory = Any  # a tree of arrays carried from step to step; () where there are none


# --------------------------------------------------------------------------------------------------
# What learns
# --------------------------------------------------------------------------------------------------


class Player(NamedTuple):
    """One network that learns, with a loss and an optimiser of its own.

    Most methods have one; a generator and its critic are two.

    Attributes:
      init: key -> params.
      loss: (params, every player's params, example, key, fixed, memory)
        -> (loss, (metrics, memory)); differentiated in the first argument alone. Metrics are
        scalars to be recorded beside the loss; memory keeps its shapes. The key is the same for all
        players of a step, so that a critic may judge the very image that the generator draws.
      optimiser: of params.
      learning_rate: step -> that of the optimiser, to be recorded.
      averaged: whether an exponential moving average of params is kept, to draw with.
    """

    init: Callable[[Key], Params]
    loss: Callable[..., tuple[Array, tuple[Metrics, Memory]]]
    optimiser: optax.GradientTransformation
    learning_rate: optax.Schedule
    averaged: bool = True


class Feed(Protocol):
    """What a step sees. Pure in (seed, step), so that a resumed run needs no iterator's state."""

    @property
    def example(self) -> Example:
        """ShapeDtypeStructs of the global batch of a step."""

    @property
    def summary(self) -> str:
        """What is learnt from, in a few words: slices, subjects, grid."""

    def training(self, start: int, stop: int) -> Iterator[Example]:
        """Examples of steps start, start + 1, .. stop - 1."""

    def held_out(self) -> Example | None:
        """Examples that are never learnt from, always the same; None where there are none."""

    def named(self, step: int) -> str:
        """The slices that step number `step`, from 1, learns from: for an error message."""


class Method(Protocol):
    """What learns, and how it draws.

    Attributes:
      players: updated in this order within a step, each seeing those before as they have become.
      fixed: what is read and not learnt: a teacher, a codec, the base of a ControlNet.
      memory: what the first step finds of those before, such as CycleGAN's pool of images.
      start: parameters of players to begin with, in place of what `Player.init` draws; or None.
      feed: None where the method is built to draw alone.
      mesh: the devices that all of it lies on.
    """

    players: Mapping[str, Player]
    fixed: Fixed
    memory: Memory
    start: Mapping[str, Params] | None
    feed: Feed | None
    mesh: Mesh

    def held_out(self, averages: Averages, fixed: Fixed, example: Example) -> Metrics:
        """How well held-out examples are met; the same numbers whenever it is asked."""

    def samples(self, averages: Averages, fixed: Fixed) -> np.ndarray | None:
        """A picture [rows, columns] uint8 of what is drawn by now, to look at; None for none."""

    def translator(self, averages: Averages, fixed: Fixed) -> "Translator":
        """What draws. Raises InputError where the method draws no images."""


# --------------------------------------------------------------------------------------------------
# What draws
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Translator:
    """All that translation knows of a method.

    Attributes:
      draw: (params, seen, knots, beside) -> images, see `__call__`; compiled.
      params: what it draws with.
      sees: names of the conditions that it is to be given.
      dims: of what it draws at once: 2 for slices, 3 for volumes.
      unit: pixels that sides of what it draws are a multiple of.
      depth_unit: slices that a volume which it draws is a multiple of.
      batch: how many it draws at once: slices, or tiles of a volume.
      denoises: whether it comes to an image step by step. Coupling and SCGD change the steps, and
        so do tiles of slices: they can be had of such a method alone.
    """

    draw: Callable[..., Array]
    params: Params
    sees: frozenset[str]
    batch: int
    denoises: bool
    dims: int = 2
    unit: int = 1
    depth_unit: int = 1

    def __call__(self, seen: Mapping[str, Array], knots: Any, beside: Array | None = None) -> Array:
        """Draw images [B, *S, C] in [-1, 1]; one volume [1, D, H, W, C] where `dims` is 3.

        Args:
          seen: {name: [B, *S, c]}, global arrays, see `Condition`.
          knots: what the noise of each slice is made of: diffusion.noise.Knots.
          beside: [B, 2] numbers of the neighbours whose estimates of x_0 each is coupled with.
        """
        return self.draw(self.params, seen, knots, beside)


class About(NamedTuple):
    """What a model card says of a method, as ABOUT of its module (reports/card.py).

    Attributes:
      kind: what a run of it is: "A diffusion model".
      how: how it draws, or after whom: the end of the sentence that begins with `kind`.
      network: configuration -> what draws, and how large it is.
      training: configuration -> {name: words} of what sets its training apart from others'.
      fails: a sentence on what it draws where it knows too little; "": nothing of its own.
      measured: of its held-out numbers those that belong on the card: {name: words}.
    """

    kind: str
    how: str
    network: Callable[[ConfigDict], str] = lambda config: config.method
    training: Callable[[ConfigDict], dict[str, str]] = lambda config: {}
    fails: str = ""
    measured: Mapping[str, str] = {}


class Moments(NamedTuple):
    """What an autoencoder makes of an image: the normal distribution of its latents, [B, *S, Z].

    Where a feed knows them, it gives them in place of the pixels (data/moments.py): as an example's
    'x', and beside its conditions in 'seen' those that are in the codec's space already.
    """

    mean: Array
    log_variance: Array


class Codec(NamedTuple):
    """The space that is learnt in, pixels or an autoencoder's latents, and the ways there and back.

    Attributes:
      channels: of an element of it.
      side: pixels a side of an element.
      bounded: whether images lie in [-1, 1] there, too.
      learnt: (fixed, images [B, *S, 1] or their Moments, key) -> what is learnt of them; without a
        key it is the same whenever it is asked for.
      seen: (fixed, condition {name: [B, *S, c]}) -> the same conditions in that space.
      drawn: (fixed, what is drawn) -> images [B, *S, 1].
    """

    channels: int
    side: int
    bounded: bool
    learnt: Callable[..., Array]
    seen: Callable[[Fixed, Mapping[str, Array]], Mapping[str, Array]]
    drawn: Callable[[Fixed, Array], Array]


# --------------------------------------------------------------------------------------------------
# What is seen
# --------------------------------------------------------------------------------------------------


class Condition(NamedTuple):
    """Something that a network is shown beside the noisy image.

    In an example a condition has one channel more than `channels`: 1 where it is given. A missing
    one is zero in all of them, so that an image of air, which has no contours either, is not
    mistaken for a missing one. How much of that a network sees is its own matter
    (models/conditioning.py).

    Attributes:
      name: by which configurations and examples call it.
      channels: of its values.
      empty: the value of an empty one, for networks that know no missing ones, as published.
      image: whether its values are an image as the target is one, which an autoencoder knows.
    """

    name: str
    channels: int
    empty: float
    image: bool


# Declared here, read everywhere: only config.py spells out the name of a condition, too.
CONTOUR = Condition("contour", 1, empty=0.0, image=False)  # edges, 0 and 1
# The slice beside, and the same slice before translation, in [-1, 1].
NEIGHBOUR = Condition("neighbour", 1, empty=-1.0, image=True)
SOURCE = Condition("source", 1, empty=-1.0, image=True)
# The grey picture in which contours are sought; in training the target's own, in another contrast
# (contours/recast.py).
PICTURE = Condition("picture", 1, empty=-1.0, image=True)
# The run's one prompt, which is attended to; its values are the network's own matter
# (methods/prompts.py).
PROMPT = Condition("prompt", 0, empty=0.0, image=False)
# Those that a configuration names, and data has.
CONDITIONS = {condition.name: condition for condition in (CONTOUR, NEIGHBOUR, SOURCE, PICTURE)}
