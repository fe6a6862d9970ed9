# SPDX-License-Identifier: Apache-2.0
"""The figure of this folder: HU that are drawn over those of the truth, by the preset.

    python experiments/027_mr_to_ct/figure.py OUT

OUT is that of measure.py. No picture of a patient is shown: these may not be redistributed.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from contourdiff_jax.volumes import io, masks
from contourdiff_jax.volumes.volume import BRAIN, Assumed

HERE = Path(__file__).resolve().parent
EDGES = np.arange(-1000, 2101, 100)  # HU
LEAST = 500  # voxels that a median is taken of
QUARTILES = (25, 50, 75)


def pairs(translated: Path, truths: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values [HU] of all bodies: of the truths, and those drawn there."""
    values = []
    for path in sorted(truths.glob("*.png")):
        truth = io.read(path, assumed=Assumed(1.0, BRAIN))
        drawn = io.read(translated / f"{path.stem.rpartition('-')[0]}.nii.gz").array
        body = masks.body_mask(truth.array, truth.affine, "ct") > 0
        values.append((truth.array[body], drawn[body]))
    return tuple(np.concatenate(side) for side in zip(*values, strict=True))


def main(out: Path) -> None:
    figure, axis = pyplot.subplots(figsize=(6, 4.5))
    axis.plot(EDGES[[0, -1]], EDGES[[0, -1]], color="grey", linewidth=1, label="the truth")
    for preset in ("ct_wide", "ct"):
        if not (out / preset / "translated").is_dir():
            continue
        truth, drawn = pairs(out / preset / "translated", out / "data/test/ct")
        numbers, rows = np.digitize(truth, EDGES), []
        for number in range(1, len(EDGES)):
            if (inside := numbers == number).sum() >= LEAST:
                middle = (EDGES[number - 1] + EDGES[number]) / 2
                rows.append((middle, *np.percentile(drawn[inside], QUARTILES)))
        middle, low, median, high = np.transpose(rows)
        axis.plot(middle, median, label=preset)
        axis.fill_between(middle, low, high, alpha=0.2)
    axis.set(xlabel="truth [HU]", ylabel="drawn from T1 [HU], median and quartiles")
    axis.legend()
    figure.tight_layout()
    figure.savefig(HERE / "figure.png", dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
