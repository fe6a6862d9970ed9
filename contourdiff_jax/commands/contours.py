# SPDX-License-Identifier: Apache-2.0
"""Measure how contours of a source differ from those a model is trained on, before it is trained.

--store holds the target domain, --source the one to be translated; neither labels nor pairs are
needed. The gap is 1 where the source's contours are as unlike the target's as those of the target's
own subjects are unlike each other. Settings for the source with a smaller gap are searched for, and
go to OUT/contours.json, which `translate --contours` takes; the numbers go to OUT/statistics.json
and slices with their contours to OUT/contact_sheet.png.

Example:
    contourdiff contours --store=stores/mr --source=stores/ct --out=crossing
"""

from pathlib import Path

from absl import flags

from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation.contour_gap import compare, describe, domain, save
from contourdiff_jax.evaluation.metrics import gap
from contourdiff_jax.runtime import disk

ROWS = {
    "density": "contour, share of the body",
    **{f"density_{k}": f"  in shell {k} from outside" for k in range(1, len(gap.SHELLS) + 2)},
    "along": "running along the outline, share",
    "second": "second contour behind the first [mm]",
    "third": "third contour behind the first [mm]",
    "hole": "distance to the nearest contour [mm]",
    "piece": "connected piece [mm]",
}


def define_flags(values: flags.FlagValues) -> None:
    text, names = flags.DEFINE_string, ", ".join(contour_settings.PRESETS)
    text("store", None, "store of the target domain", flag_values=values)
    text("source", None, "store of the source domain", flag_values=values)
    text("contours", None, f"contours of the target: a JSON file, or {names}", flag_values=values)
    text(
        "source_contours",
        None,
        f"contours of the source: a JSON file, or {names}",
        flag_values=values,
    )
    text("out", None, "folder for what is found", flag_values=values)


def main(values: flags.FlagValues) -> int:
    if values.store is None:
        raise InputError("--store is required; see `contourdiff contours --help`")
    if values.source is None and values.source_contours is not None:
        raise InputError("--source_contours is given without --source")
    if values.out is not None:
        disk.check_is_free(Path(values.out))
    target = domain(values.store, values.contours, split="train")
    source = None if values.source is None else domain(values.source, values.source_contours)
    found = describe(target) if source is None else compare(source, target)
    if values.out is not None:
        save(Path(values.out), found, target, source)
    print(table(found))
    return 0


# --------------------------------------------------------------------------------------------------
# Telling
# --------------------------------------------------------------------------------------------------


def table(found: dict) -> str:
    """The numbers as people read them."""
    columns = [name for name in ("target", "source", "suggested") if name in found]
    lines = [("", columns)]
    for key in ("subjects", "slices"):
        lines.append((key, [str(found[name][key]) for name in columns]))
    for key, title in ROWS.items():
        digits = 1 if title.endswith("[mm]") else 3
        lines.append((title, [f"{found[c]['statistics'][key]:.{digits}f}" for c in columns]))
    if "source" in found:
        for key, title in (("gap", "GAP"), *((part, f"  {part}") for part in gap.PARTS)):
            gaps = [f"{found[c]['gap'][key]:.2f}" if "gap" in found[c] else "" for c in columns]
            lines.append((title, gaps))
    text = ["".join((f"{title:<38}", *(f"{cell:>11}" for cell in cells))) for title, cells in lines]
    if "source" in found:
        bias = found["structural_bias"]
        suggested = found["suggested"]["contours"]
        windows = [f"{low:g} to {high:g}" for low, high in suggested["windows"]]
        others = [name for name in ("curve", "native") if suggested[name]]
        text += [
            "",
            f"structural bias {bias['value']:.3f} = {bias['formula']}",
            f"suggested: thresholds {suggested['low']:g} and {suggested['high']:g}, "
            f"blur {suggested['blur']}, of {', '.join(windows + others)}",
        ]
    return "\n".join(text)
