# SPDX-License-Identifier: Apache-2.0
"""The flags of commands that lay the sources of pairs beside their targets, and what they print."""

from collections.abc import Sequence

from absl import flags

from contourdiff_jax.commands import scan_flags
from contourdiff_jax.data.sources import REGISTRATIONS, Fit, Pairs
from contourdiff_jax.errors import InputError, printable
from contourdiff_jax.volumes import intensity

OF_PAIRS = ("preset", "select", "range", "half", "rotate", "masks", "overlap", "shift")
GROUP = {"pairs": ("pairs", *(f"pairs_{name}" for name in OF_PAIRS), "register")}
ROWS = 40  # of a table


def define_flags(values: flags.FlagValues) -> None:
    """The flags of pairs; all but --pairs are of those that it names."""
    text = flags.DEFINE_string
    known = sorted(intensity.PRESETS)
    text(
        "pairs",
        None,
        "The other image of every subject: a volume, a folder in any layout, or a CSV file.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "pairs_preset", None, known, "What their intensities are.", flag_values=values
    )
    text("pairs_select", None, "Which of several kinds of them, as ct or A.", flag_values=values)
    scan_flags.define_pictures(values, "pairs_")
    text("pairs_masks", None, "Folder of their body masks, paired by name.", flag_values=values)
    flags.DEFINE_float(
        "pairs_overlap",
        None,
        f"Least overlap (Dice) of the two bodies; {Pairs.overlap:g} by default.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "pairs_shift",
        None,
        f"Most mm in plane by which they may lie off; {Pairs.shift:g} by default.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "register",
        None,
        list(REGISTRATIONS),
        "Lay them on their targets by mutual information first.",
        flag_values=values,
    )


def from_flags(values: flags.FlagValues) -> Pairs | None:
    """The pairs that are wanted, or None; InputError for what would do nothing without them."""
    given = {name: values[name].value for name in (*(f"pairs_{n}" for n in OF_PAIRS), "register")}
    given = {name: value for name, value in given.items() if value is not None}
    if values.pairs is None:
        for name in given:
            raise InputError(f"--{name}: is of --pairs; give that too, or leave it out")
        return None
    if values.pairs_preset is None:
        raise InputError(f"--pairs_preset is required with --pairs: {', '.join(intensity.PRESETS)}")
    options = {name.removeprefix("pairs_"): value for name, value in given.items()}
    for name in ("range", "half", "rotate"):
        options.pop(name, None)
    return Pairs(values.pairs, assumed=scan_flags.assumed(values, "pairs_"), **options)


def table(fits: Sequence[Fit], spacing: float) -> list[str]:
    """Lines that show pairs, those that fit worst first."""
    shown = sorted(fits, key=lambda fit: (not fit.why, -fit.shift / spacing, fit.overlap))
    rows = [("pair", "overlap", "right [mm]", "down [mm]", "missing", "apart", "of", "")]
    for fit in shown[:ROWS]:
        remarks = "; ".join(filter(None, (fit.why and "left out", fit.registered)))
        rows.append(
            (
                fit.name,
                f"{fit.overlap:.2f}",
                f"{fit.right:.1f}",
                f"{fit.down:.1f}",
                str(fit.missing),
                str(fit.apart),
                str(fit.slices),
                remarks,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            f"{cell:{'>' if 0 < at < len(row) - 1 else '<'}{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    more = [f"and {len(shown) - ROWS} more"] if len(shown) > ROWS else []
    return [*map(printable, lines), *more]


def summary(fits: Sequence[Fit]) -> str:
    """One line on all pairs."""
    kept = [fit for fit in fits if not fit.why]
    slices, lost = sum(f.slices for f in kept), sum(f.missing + f.apart for f in kept)
    return (
        f"pairs: {len(kept)} of {len(fits)} fit; of their {slices} slices {lost} are left out "
        f"(missing, or the bodies too far apart)"
    )
