# SPDX-License-Identifier: Apache-2.0
"""Flags of numbers that several commands have, with their bounds."""

from absl import flags

from contourdiff_jax.config import SEEDS


def define_grid(
    values: flags.FlagValues, axis: str | None = "axial", *, slices: bool = False
) -> None:
    """The flags of a grid (volumes/grid.py); `axis` is the default.

    Args:
      slices: whether a spacing of its slices can be asked for.
    """
    from contourdiff_jax.volumes import grid  # SciPy takes its time, and a seed needs none of it

    flags.DEFINE_enum("axis", axis, list(grid.AXES), "Slicing axis.", flag_values=values)
    flags.DEFINE_float(
        "spacing",
        None,
        "Pixel spacing of the grid in mm.",
        lower_bound=grid.LEAST,
        upper_bound=grid.MOST,
        flag_values=values,
    )
    if slices:
        flags.DEFINE_float(
            "slice_spacing",
            None,
            "Spacing of even slices in mm; without it they are those of each volume.",
            lower_bound=grid.LEAST,
            upper_bound=grid.MOST,
            flag_values=values,
        )
    flags.DEFINE_integer(
        "size",
        None,
        "Pixels along a side of the grid.",
        lower_bound=1,
        upper_bound=grid.LARGEST,
        flag_values=values,
    )


def define_seed(values: flags.FlagValues, text: str) -> None:
    """The flag of a seed; `text` says of what."""
    flags.DEFINE_integer("seed", 0, text, lower_bound=0, upper_bound=SEEDS - 1, flag_values=values)
