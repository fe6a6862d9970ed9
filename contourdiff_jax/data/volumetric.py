# SPDX-License-Identifier: Apache-2.0
"""Feeds of volumes: what a network of three dimensions learns from."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.data.feeds import Slices
from contourdiff_jax.data.store import Store


def feed(
    config: ConfigDict,
    store: Store,
    contours: ContourSettings,
    conditions: tuple[str, ...],
    mesh: Mesh,
    **how,
) -> Slices:
    """The feed of a store as a whole configuration says, by its `model.dims`.

    Args:
      how: fields of the feed that are to be others, see Slices.under.
    """
    return Slices.under(config, store, contours, conditions, mesh, **how)
