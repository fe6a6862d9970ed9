# SPDX-License-Identifier: Apache-2.0
"""The flags of every command that reads a folder of scans."""

from absl import flags

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes.volume import Assumed


def define_flags(values: flags.FlagValues) -> None:
    """The flags of every command that reads a folder of scans."""
    text = flags.DEFINE_string
    text("layout", "auto", "Layout of the source, or a CSV file that says it.", flag_values=values)
    text("select", None, "Which of several kinds of scans, as T1w or trainB.", flag_values=values)
    flags.DEFINE_float(
        "pixel_spacing", None, "Of pictures, which do not say it, in mm.", flag_values=values
    )
    flags.DEFINE_list(
        "range",
        None,
        "What the darkest and brightest value of pictures stand for: LOW,HIGH in HU.",
        flag_values=values,
    )


def from_flags(values: flags.FlagValues) -> dict:
    """Arguments of `layouts.find` as given on the command line."""
    span = values.range
    if span is not None:
        try:
            low, high = map(float, span)
        except ValueError:
            raise InputError(f"--range={','.join(span)}: give two numbers, LOW,HIGH") from None
        span = (low, high)
    return {
        "layout": values.layout,
        "select": values.select,
        "assumed": Assumed(values.pixel_spacing, span),
    }
