# SPDX-License-Identifier: Apache-2.0
"""Measure how contours of a source differ from those a model is trained on, before it is trained.

--store holds the target domain, --source the one to be translated; neither labels nor pairs are
needed. The gap is 1 where the source's contours are as unlike the target's as those of the target's
own subjects are unlike each other. The command looks for settings of the source with a smaller gap
and writes them to OUT/contours.json, which `translate --contours` takes. A verdict says in a
sentence whether the contours are near, and which settings to take. Numbers are written to
OUT/statistics.json, and slices with their contours to OUT/contact_sheet.png.

Example:
    contourdiff contours --store=stores/mr --source=stores/ct --out=crossing
"""

from pathlib import Path

from absl import flags

from contourdiff_jax.commands import required_flags
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import records
from contourdiff_jax.evaluation.contour_gap import (
    FAR,
    MADE,
    compare,
    describe,
    domain,
    lacking,
    save,
    taken,
    verdict,
)
from contourdiff_jax.evaluation.metrics import gap
from contourdiff_jax.runtime import ownership

# Statistics by their names: title and number of decimals.
ROWS = {
    "density": ("contour, share of the body", 3),
    **{f"density_{k}": (f"  in shell {k} from outside", 3) for k in range(1, len(gap.SHELLS) + 2)},
    "along": ("running along the outline, share", 3),
    "second": ("second contour behind the first [mm]", 1),
    "third": ("third contour behind the first [mm]", 1),
    "hole": ("distance to the nearest contour [mm]", 1),
    "piece": ("connected piece [mm]", 1),
}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff contours`."""
    presets = ", ".join(contour_settings.PRESETS)
    for name, text in (
        ("store", "store of the target domain"),
        ("source", "store of the source domain"),
        ("contours", f"contours of the target: a JSON file, or {presets}"),
        ("source_contours", f"contours of the source: a JSON file, or {presets}"),
        ("out", "folder to write"),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Runs the command."""
    required_flags.check(values, "contours", ("store",))
    if values.source is None and values.source_contours is not None:
        raise InputError("--source_contours is given without --source")
    if values.out is not None:
        read = {name: values[name].value for name in ("store", "source")}
        ownership.check_apart("out", values.out, read)
        ownership.check_is_free(Path(values.out), MADE)
    target = domain(values.store, values.contours, split="train")
    source = None if values.source is None else domain(values.source, values.source_contours)
    statistics = describe(target) if source is None else compare(source, target)
    if values.out is not None:
        save(Path(values.out), statistics, target, source)
    print(table(statistics))
    if source is not None:
        print(f"\nverdict: {verdict(statistics)}\nnext:\n{following(values, statistics)}")
    return 0


def following(values: flags.FlagValues, statistics: dict) -> str:
    """The commands that come after the verdict, a line each; of too few subjects, the sheet."""
    given = {name: values[name].value for name in ("store", "source", "contours")}
    given |= {"source_contours": values.source_contours, "out": "CONTOURS"}
    again = f"  {records.command('contours', given)}"
    if lacking(statistics):
        if values.out is None:
            return f"{again}\nwhich writes the contact sheet to CONTOURS/contact_sheet.png"
        return f"  look at {values.out}/contact_sheet.png"
    choice = taken(statistics)
    if statistics[choice]["gap"]["gap"] > FAR:
        return f"  {records.command('contours', given | {'source_contours': 'MINE.json'})}"
    if choice == "suggested" and values.out is None:
        return f"{again}\nwhich writes the settings to CONTOURS/contours.json"
    modality, file = statistics["source"]["modality"], f"{values.out}/contours.json"
    if choice == "source":
        own = ContourSettings.from_dict(statistics["source"]["contours"])
        presets = {n: contour_settings.preset(n, modality) for n in contour_settings.PRESETS}
        names = [name for name, settings in presets.items() if settings == own]
        file = values.source_contours or next(iter(names), "THOSE_OF_ITS_STORE.json")
    train = {"store": values.store, "workdir": "RUN", "minutes": 120}
    translate = {"run": "RUN", "source": "SCANS", "preset": modality}
    translate |= {"contours": None if file == "default" else file, "out": "TRANSLATED"}
    return f"  {records.command('train', train)}\n  {records.command('translate', translate)}"


def table(statistics: dict) -> str:
    """The content of statistics.json as people read it."""
    columns = [name for name in ("target", "source", "suggested") if name in statistics]
    entries = [statistics[name] for name in columns]
    lines = [("", columns)]
    for name in ("subjects", "slices"):
        lines.append((name, [str(entry[name]) for entry in entries]))
    for name, (title, decimals) in ROWS.items():
        lines.append((title, [f"{entry['statistics'][name]:.{decimals}f}" for entry in entries]))
    if "source" in statistics:
        for name, title in (("gap", "GAP"), *((part, f"  {part}") for part in gap.PARTS)):
            gaps = [f"{entry['gap'][name]:.2f}" if "gap" in entry else "" for entry in entries]
            lines.append((title, gaps))
    text = ["".join((f"{title:<38}", *(f"{cell:>11}" for cell in cells))) for title, cells in lines]
    if "source" in statistics:
        bias = statistics["structural_bias"]
        suggested = statistics["suggested"]["contours"]
        windows = [f"{low:g} to {high:g}" for low, high in suggested["windows"]]
        others = [name for name in ("curve", "native") if suggested[name]]
        text += [
            "",
            f"structural bias {bias['value']:.3f} = {bias['formula']}",
            f"suggested: thresholds {suggested['low']:g} and {suggested['high']:g}, "
            f"blur {suggested['blur']}, of {', '.join(windows + others)}",
        ]
    return "\n".join(text)
