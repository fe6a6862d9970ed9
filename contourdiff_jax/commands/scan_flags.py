# SPDX-License-Identifier: Apache-2.0
"""The flags of every command that reads a folder of scans."""

from absl import flags

from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes.volume import BRAIN, HALVES, TURNS, Assumed

OF_FOLDER = ("layout", "select", "range", "half", "rotate")  # flags of `define_folder`
GROUP = {"how the scans are found and read": (*OF_FOLDER, "pixel_spacing")}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of every command that reads a folder of scans."""
    define_folder(values)
    define_spacing(values)


def define_spacing(values: flags.FlagValues) -> None:
    """The flag of how large the pixels of all pictures are."""
    flags.DEFINE_float(
        "pixel_spacing", None, "Of pictures, which do not say it, in mm.", flag_values=values
    )


def define_folder(values: flags.FlagValues, prefix: str = "") -> None:
    """The flags of how a folder is understood: that of --source or of `prefix`."""
    what, text = prefix.rstrip("_") or "source", flags.DEFINE_string
    layout = f"Layout of the {what}, or a CSV file that says it."
    text(f"{prefix}layout", "auto", layout, flag_values=values)
    select = "Which of several kinds of scans, as T1w or trainB."
    text(f"{prefix}select", None, select, flag_values=values)
    define_pictures(values, prefix)


def define_pictures(values: flags.FlagValues, prefix: str = "") -> None:
    """The flags of what pictures do not say, for those of --source or of `prefix`."""
    flags.DEFINE_list(
        f"{prefix}range",
        None,
        "What the darkest and brightest value of pictures stand for: LOW,HIGH in HU; or brain, for "
        "CT of heads scaled each by itself, whose black is air and whose commonest grey is brain.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        f"{prefix}half",
        None,
        list(HALVES),
        "Of pictures that show two images side by side: which is meant.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        f"{prefix}rotate",
        None,
        list(map(str, TURNS)),
        "Of pictures that lie on their side: degrees clockwise by which they stand upright.",
        flag_values=values,
    )


def from_flags(values: flags.FlagValues, prefix: str = "") -> dict:
    """Arguments of `layouts.find` as given on the command line."""
    named = {name: values[f"{prefix}{name}"].value for name in ("layout", "select")}
    return named | {"assumed": assumed(values, prefix)}


def assumed(values: flags.FlagValues, prefix: str = "") -> Assumed:
    """What pictures do not say, by the flags of `define_pictures` and, if any, --pixel_spacing."""
    span = values[f"{prefix}range"].value
    if span == [BRAIN]:
        span = BRAIN
    elif span is not None:
        try:
            low, high = map(float, span)
        except ValueError:
            given = f"--{prefix}range={','.join(span)}"
            raise InputError(f"{given}: give two numbers, LOW,HIGH, or {BRAIN}") from None
        if not -1e6 < low < high < 1e6:
            given = f"--{prefix}range={low:g},{high:g}"
            raise InputError(f"{given}: give two numbers, LOW,HIGH, the smaller first")
        span = (low, high)
    spacing = values.pixel_spacing if "pixel_spacing" in values else None
    turn = values[f"{prefix}rotate"].value
    return Assumed(spacing, span, values[f"{prefix}half"].value, turn and int(turn))
