# SPDX-License-Identifier: Apache-2.0
"""Recipes: the settings of diffusion that suit a number of images to learn from.

In minutes a network learns to follow contours, and draws best in a step or two what all images with
these contours have in common; with hours it learns texture too, and more steps show it. This is
what `train --minutes` and `--images` choose.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax.contracts import NEIGHBOUR


class Recipe(NamedTuple):
    """Fields of a configuration for a training of up to so many images."""

    most: float
    fields: dict[str, float | int]


RECIPES = (
    # Compared one by one at 8,600 images: experiments/001_heads.
    Recipe(
        40_000,
        {"diffusion.time_exponent": 0.25, "augment.probability": 0.5, "sampler.steps": 2},
    ),
    # More steps and all of the noise: experiments/023_longer and the defaults.
    Recipe(float("inf"), {}),
)
COUPLING = 0.15  # of slices: better by every score, and as fast (experiments/012_volumes)
OFTEN = {"log": 50, "evaluate": 10, "sample": 4, "checkpoint": 4}  # times in a training


def fitted(config: ConfigDict, images: float, asked: Iterable[str] = ()) -> ConfigDict:
    """The configuration for a training of so many images.

    Methods that do not learn from noise take their number and what depends on it alone.

    Args:
      asked: dotted names of fields that stay as they are.
    """
    fields = {}
    if config.method == "diffusion":
        fields |= next(recipe.fields for recipe in RECIPES if images <= recipe.most)
        # SCGD, for which neighbours are seen, goes from slice to slice in its own way.
        if config.model.dims == 2 and NEIGHBOUR.name not in config.model.conditions:
            fields["sampler.coupling"] = COUPLING
    fields = {name: value for name, value in fields.items() if name not in asked}
    images = fields["train.images"] = in_batches(config, images)
    for name, times in OFTEN.items():
        if f"train.{name}" not in asked and config.train[name]:
            fields[f"train.{name}"] = max(1, images // times)
    return configuration.replaced(config, fields)


def in_batches(config: ConfigDict, images: float) -> int:
    """So many images, or the fewer that are whole batches; one batch at least."""
    return max(1, int(images) // config.train.batch) * config.train.batch
