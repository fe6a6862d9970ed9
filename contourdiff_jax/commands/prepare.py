# SPDX-License-Identifier: Apache-2.0
"""Prepare volumes for training: a store of slices on one grid, with body masks and an index.

Every volume in --source (NIfTI, DICOM, .mha, .nrrd, or slices as PNG, TIFF, .npy) is brought to one
orientation, windowed by --preset, cut into slices along --axis and resampled to --size x --size
pixels of --spacing mm. Without --spacing it is the median in-plane spacing of the volumes; without
--size it is the smallest multiple of 32 that covers the largest field of view. Slices are those of
each volume; networks of three dimensions learn from even ones, which --slice_spacing makes of them.
The layout of the folder is recognised, or given by --layout; where it holds several kinds of scans,
--preset or --select says which. Volumes of one subject share a split: that of --split or of the
layout, or train and, for a fraction of the subjects, val. What cannot be used is reported and left
out; the exit status is then 1. `contourdiff inspect` shows beforehand how a folder is understood.
With --contours=original the store keeps contours taken at the volumes' own pixels, as the
original's.

With --pairs the store is paired, for methods that learn from the source's image itself: --pairs has
the other image of every subject, of the same names, which is brought onto the slices of --source by
the affines of both. Each pair is measured: the overlap of the bodies (Dice), the shift in plane at
which mutual information is largest, and slices that the other image does not show. Slices and
volumes with too little overlap (--pairs_overlap) or too large a shift (--pairs_shift) are left out.

Example:
  contourdiff prepare --source=scans/mr --out=stores/mr --preset=mr --spacing=1 --size=256
  contourdiff prepare --source=mr --preset=mr --pairs=ct --pairs_preset=ct --out=stores/paired
"""

import sys
from collections import Counter

from absl import flags

from contourdiff_jax.commands import number_flags, pair_flags, required_flags, scan_flags
from contourdiff_jax.data.inspection import findings
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import SPLITS
from contourdiff_jax.volumes import intensity

GROUPS = {
    "required": ("source", "out", "preset"),
    "the grid": ("axis", "spacing", "size", "slice_spacing"),
    "what belongs to the volumes": ("labels", "masks", "contours", "split", "validation"),
    **scan_flags.GROUP,
    **pair_flags.GROUP,
    "files": ("overwrite",),
}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff prepare`."""
    text = flags.DEFINE_string
    text("source", None, "A volume, or a folder of volumes or slices.", flag_values=values)
    text("out", None, "Folder of the store to write.", flag_values=values)
    presets = sorted(intensity.PRESETS)
    flags.DEFINE_enum("preset", None, presets, "What the intensities are.", flag_values=values)
    number_flags.define_grid(values, slices=True)
    text("labels", None, "Folder of label maps, paired by name.", flag_values=values)
    text("masks", None, "Folder of body masks, paired by name.", flag_values=values)
    text(
        "contours",
        None,
        "Contours that need the volumes' own voxels: original, or a JSON file.",
        flag_values=values,
    )
    text("split", None, "CSV file with the columns subject,split.", flag_values=values)
    flags.DEFINE_float(
        "validation", None, "Fraction of the subjects for val; 0.1 by default.", flag_values=values
    )
    flags.DEFINE_bool("overwrite", False, "Replace a store of that name.", flag_values=values)
    pair_flags.define_flags(values)
    scan_flags.define_flags(values)


def main(values: flags.FlagValues) -> int:
    """Runs the command; 0 if every volume was used, 1 if some were left out."""
    required_flags.check(values, "prepare", GROUPS["required"])
    named = ("axis", "spacing", "size", "slice_spacing", "labels", "masks", "split", "validation")
    options = {name: values[name].value for name in (*named, "overwrite")}
    options |= scan_flags.from_flags(values)
    options |= {"contours_file": values.contours, "pairs": pair_flags.from_flags(values)}
    result = prepare(values.source, values.out, values.preset, **options)
    grid, counts = result.grid, Counter(result.splits.values())
    subjects = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])
    print(
        f"{values.out}: {result.slices} slices of {len(result.done)} volumes, subjects: {subjects}"
    )
    pixels = f"{grid.size} x {grid.size} px of {grid.spacing:g} mm{grid.every}"
    what = intensity.preset(values.preset).described()
    print(f"layout {result.layout}; {grid.axis}, {pixels}; {what}")
    for note in result.notes:
        print(f"note: {note}")
    if result.fits:
        print(pair_flags.summary(result.fits))
        if notable := [fit for fit in result.fits if fit.is_notable(grid.spacing)]:
            print("\n".join(pair_flags.table(notable, grid.spacing)))
    if result.cropped:
        path, kept = min(result.cropped, key=lambda item: item[1])
        count = f"{len(result.cropped)} of {len(result.done)}"
        print(
            f"warning: in {count} volumes the body is larger than the grid and cropped, most in "
            f"{path.name} ({kept:.0%} of the body is kept); raise --size or --spacing",
            file=sys.stderr,
        )
    for line in findings.alike(result.doubtful):
        print(f"warning: {line}", file=sys.stderr)
    for _, reason in result.failed:
        print(f"left out: {reason}", file=sys.stderr)
    return 1 if result.failed else 0
