# SPDX-License-Identifier: Apache-2.0
"""What of true slices is left that are cut at 2.4 mm, put back on their voxels, and cut again.

    python put_back.py FIRST

FIRST is the output of experiments/001_heads/run.sh. Putting back by linear weights alone, and so
that what is cut again is what was put back (volumes/grid.py), the mean of the test heads' T1:
on the grid, of the energy of gradients, PSNR and SSIM; on the voxels, PSNR and SSIM.
"""

import sys
from pathlib import Path

import numpy as np

from contourdiff_jax.evaluation.metrics import consistency, paired
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.grid import Grid

AIR = 0.05  # of white
found = {"interpolated": [], "volume": []}


def scores(images, truth) -> list[float]:
    """PSNR and SSIM in the body, means over slices that show some of it."""
    shown = [
        paired.scores(image, true, 1.0, true > AIR)
        for image, true in zip(images, truth, strict=True)
        if (true > AIR).mean() > 0.01
    ]
    return [float(np.mean([s[metric] for s in shown])) for metric in ("psnr_mask", "ssim_mask")]


for path in sorted((Path(sys.argv[1]) / "heads/test_mr").glob("*.nii.gz")):
    volume, fit = Grid("axial", 2.4, 96).fit_volume(io.read(path))
    white = np.percentile(volume.array[volume.array > 0.05 * volume.array.max()], 99.5)
    array = np.clip(np.float32(volume.array) / white, 0, 1)
    slices = fit.slices(array, 0.0)
    gaps = np.diff(fit.positions)
    for name, rows in found.items():
        back = getattr(fit, name)(slices, 0.0)
        again = fit.slices(back, 0.0)
        energy, true = (
            consistency.along_axis(x, slices > AIR, gaps, (2.4, 2.4))["gradient_energy"]
            for x in (again, slices)
        )
        planes = fit.planes(back), fit.planes(array)
        rows.append([energy / true, *scores(again, slices), *scores(*planes)])
for name, rows in found.items():
    print(name, *np.round(np.mean(rows, axis=0), 3))
