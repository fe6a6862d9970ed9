# SPDX-License-Identifier: Apache-2.0
"""Show what scans are and what is wrong with them, before anything is prepared; or what a run is.

Every scan of every PATH (a file, or a folder of any known layout) is read and gets a line: shape,
orientation and spacing along the file's own axes, stored type, range and percentiles, what it seems
to be (ct, mr, labels, or a picture: 8 bits without a unit) and why. Below stands what cannot be
used, what is wrong and what to do about it, and what is good to know. No text of a header is shown
or kept. Exit status: 0 all can be used, 1 some cannot, 2 none can.

With --pairs=SOURCES, --preset and --pairs_preset it measures how well the other image of every
subject fits, as `prepare --pairs` does: overlap of the bodies, shift, missing slices.

Of a run, which `train` or `import` made, it shows the method, what it was trained on, the fields
that are not at their defaults, the checkpoints and the parameters of its networks.

Example:
  contourdiff inspect scans/ --out=inspected
  contourdiff inspect scans/mr --preset=mr --pairs=scans/ct --pairs_preset=ct
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import flags

from contourdiff_jax import __version__
from contourdiff_jax.commands import pair_flags, scan_flags
from contourdiff_jax.data.inspection import inspect, sheets
from contourdiff_jax.data.inspection.findings import (
    NOTE,
    PROBLEM,
    Inspected,
    Inspection,
    alike,
    only,
)
from contourdiff_jax.data.prepare import Request, measure
from contourdiff_jax.data.sources import Fit, Pairs
from contourdiff_jax.errors import InputError, printable
from contourdiff_jax.runtime import disk, ownership
from contourdiff_jax.volumes import intensity

SCHEMA = 1  # of the JSON
MADE = "an inspection"  # by which the JSON is known
FILES = ("inspect.json", "sheet.png")

# A column that says nothing of any scan is left out.
COLUMNS: dict[str, Callable[[Inspected], str]] = {
    "scan": lambda s: s.scan.name,
    "subject": lambda s: s.scan.subject if s.scan.subject != s.scan.name else "",
    "kind": lambda s: s.scan.kind or "",
    "split": lambda s: s.scan.split or "",
    "with": lambda s: ", ".join(n for n in ("mask", "labels") if getattr(s.scan, n)),
    "format": lambda s: s.format,
    "files": lambda s: str(len(s.scan.files)) if len(s.scan.files) > 1 else "",
    "shape": lambda s: "x".join(map(str, s.shape)),
    "axes": lambda s: s.orientation,
    "spacing [mm]": lambda s: "x".join(f"{size:.3g}" for size in s.spacing),
    "type": lambda s: s.dtype,
    "min": lambda s: f"{s.percentiles[0]:.5g}",
    "1%": lambda s: f"{s.percentiles[1]:.5g}",
    "50%": lambda s: f"{s.percentiles[50]:.5g}",
    "99.5%": lambda s: f"{s.percentiles[99.5]:.5g}",
    "max": lambda s: f"{s.percentiles[100]:.5g}",
    "seems": lambda s: f"{s.guess.modality} ({s.guess.reason})",
}
NUMBERS = {"files", "min", "1%", "50%", "99.5%", "max"}


def table(inspection: Inspection) -> str:
    """The scans, a line each, what cannot be read, the problems, the notes and the summary."""
    columns = []
    for title, cell in COLUMNS.items():
        cells = [title, *map(cell, inspection.scans)]
        if any(cells[1:]):
            align, width = "<>"[title in NUMBERS], max(map(len, cells))
            columns.append([f"{cell:{align}{width}}" for cell in cells])
    lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    for title, lines_of in (
        ("cannot be used", [f"{path}: {why}" for path, why in inspection.failed]),
        ("problems", inspection.lines(PROBLEM)),
        ("notes", inspection.lines(NOTE)),
    ):
        lines += ["", f"{title}:", *(f"  {line}" for line in lines_of)] if lines_of else []
    return "\n".join(map(printable, [*lines, "", inspection.summary])).lstrip("\n")


@dataclasses.dataclass(frozen=True)
class Paired:
    """How well pairs fit: of each path the fits and the spacing in mm of the pixels, what fails.

    And what is doubtful or was assumed, of a target too, as `prepare` tells it.
    """

    fits: list[tuple[Fit, float]] = dataclasses.field(default_factory=list)
    failed: list[tuple[Path, str]] = dataclasses.field(default_factory=list)
    doubtful: list[tuple[Path, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """As a table, with what fails below."""
        fits = [fit for fit, _ in self.fits]
        rows = pair_flags.table(fits, min(spacing for _, spacing in self.fits)) if fits else []
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"warning: {line}" for line in alike(self.doubtful)]
        lines += [f"left out: {why}" for _, why in self.failed]
        return ["", *rows, pair_flags.summary(fits), *map(printable, lines)]


def to_json(
    inspection: Inspection, files: Mapping[str, str] | None = None, paired: Paired | None = None
) -> str:
    """Everything, as JSON; `files` lie beside it, see `ownership.listing`."""
    pairs = None
    if paired is not None:
        lost = [{"path": str(path), "reason": why} for path, why in paired.failed]
        pairs = {
            "fits": [dataclasses.asdict(fit) for fit, _ in paired.fits],
            "failed": lost,
            "problems": alike(paired.doubtful),
            "notes": paired.notes,
        }
    fields = {
        "schema": SCHEMA,
        "made": MADE,
        "files": files or {},
        "version": __version__,
        "summary": inspection.summary,
        "layouts": inspection.layouts,
        "scans": [_fields(inspected) for inspected in inspection.scans],
        "failed": [{"path": str(path), "reason": why} for path, why in inspection.failed],
        "problems": only(PROBLEM, inspection.remarks),
        "notes": only(NOTE, inspection.remarks),
        **({} if pairs is None else {"pairs": pairs}),
    }
    return json.dumps(fields, indent=2, allow_nan=False)


def _fields(inspected: Inspected) -> dict:
    scan, guessed, window = inspected.scan, inspected.guess, inspected.window
    return {
        "name": scan.name,
        "subject": scan.subject,
        "path": str(scan.path),
        "files": len(scan.files),
        "kind": scan.kind,
        "split": scan.split,
        "mask": scan.mask and str(scan.mask),
        "labels": scan.labels and str(scan.labels),
        "format": inspected.format,
        "dtype": inspected.dtype,
        "shape": inspected.shape,
        "orientation": inspected.orientation,
        "spacing": inspected.spacing,
        "percentiles": {f"{p:g}": value for p, value in inspected.percentiles.items()},
        "percentiles_of_voxels": inspected.sampled,
        "modality": guessed.modality,
        "preset": guessed.preset,
        "reason": guessed.reason,
        "shown": window and [window.low, window.high],
        "problems": inspected.lines(PROBLEM),
        "notes": inspected.lines(NOTE),
    }


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------

GROUPS = {
    "what is written": ("out", "json", "overwrite"),
    **scan_flags.GROUP,
    "pairs": ("preset", *pair_flags.GROUP["pairs"]),
}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff inspect`."""
    text = flags.DEFINE_string
    text("json", None, "JSON file to write; - for stdout instead of the table.", flag_values=values)
    text("out", None, "Folder to write sheet.png and inspect.json into.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace files of these names.", flag_values=values)
    known, meaning = sorted(intensity.PRESETS), "With --pairs: what the intensities of PATH are."
    flags.DEFINE_enum("preset", None, known, meaning, flag_values=values)
    pair_flags.define_flags(values)
    scan_flags.define_flags(values)


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Runs the command on the paths named after the flags."""
    runs = [path for path in map(Path, arguments) if _is_run(path)]
    if runs:
        return _show(runs, values, arguments)
    out = None if values.out is None else Path(values.out)
    copy = None if values.json in (None, "-") else Path(values.json)
    if values.overwrite and not out and not copy:
        raise InputError("--overwrite: no file is written without --out or --json=FILE")
    if out:
        for path in arguments:
            ownership.check_apart("out", out, {"": path})
        ownership.owned(out, FILES[0], MADE, FILES[1:])
        disk.check_is_new(out / FILES[0], values.overwrite)
    if copy:
        disk.check_is_new(copy, values.overwrite, MADE)
    views, files = sheets.SHOWN if out else 0, {}
    wanted = pair_flags.from_flags(values)
    if (wanted is None) != (values.preset is None):
        raise InputError("--preset and --pairs: each needs the other")
    how = scan_flags.from_flags(values)
    inspection = inspect(arguments, **how, views=views)
    paired = None if wanted is None else _measured(arguments, values.preset, wanted, how)
    text = to_json(inspection, paired=paired) if values.json == "-" else table(inspection)
    print(text)
    if paired is not None and values.json != "-":
        print("\n".join(paired.lines()))
    if out:
        with disk.staged(out, inside=True) as new:
            if inspection.scans:
                from contourdiff_jax import figures  # Matplotlib takes a while

                disk.write(new / FILES[1], figures.png(sheets.sheet(inspection)))
            files = ownership.listing(new)
            disk.write(new / FILES[0], to_json(inspection, files, paired) + "\n")
            ownership.merge(new, out, FILES[0], MADE)
    if copy:
        disk.write(copy, to_json(inspection, files, paired) + "\n")
    lost = paired is not None and bool(paired.failed)
    return max(inspection.status, int(lost))


def _measured(paths: list[str], preset: str, wanted: Pairs, how: dict) -> Paired:
    """The fits of the pairs of all paths."""
    paired = Paired()
    for path in paths:
        request = Request(path, "", preset, pairs=wanted, **how)
        measured = measure(request)
        paired.fits.extend((fit, measured.grid.spacing) for fit in measured.fits)
        for name in ("failed", "doubtful", "notes"):
            getattr(paired, name).extend(getattr(measured, name))
    return paired


def _is_run(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def _show(runs: list[Path], values: flags.FlagValues, arguments: list[str]) -> int:
    """Prints what runs are."""
    from contourdiff_jax import methods, models  # JAX takes a second: not for scans
    from contourdiff_jax.training import run
    from contourdiff_jax.training.summary import summary

    if len(runs) < len(arguments):
        raise InputError(f"{runs[0]}: a run; inspect it on its own, without scans")
    for name in values:
        if values[name].present:
            raise InputError(f"--{name}: is of scans, and {runs[0]} is a run; leave it out")
    for path in runs:
        ours = run.load(path)
        print(path)
        for heading, lines in summary(path, ours).items():
            for number, line in enumerate(lines):
                print(f"  {heading if number == 0 else '':<8}  {line}")
        for player, params in methods.networks(ours).items():
            print(f"\n{player}\n{models.overview(params)}")
    return 0
