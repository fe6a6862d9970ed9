# SPDX-License-Identifier: Apache-2.0
"""Where the slices of a DICOM series and of its translations lie, as other libraries read them.

    python places.py SCAN OUT     OUT/translated/*.nii.gz and OUT/series/*/*.dcm, made of SCAN

DICOM is read by SimpleITK, slice by slice; NIfTI by nibabel, since ITK takes no sheared volume, and
a tilted gantry makes one. Places are in mm, LPS.
"""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK


def series(folder: Path) -> np.ndarray:
    """The places [n, 2, 3] of two voxels of each slice, the first and the middle one, by height."""
    places = []
    for path in sorted(folder.glob("*.dcm")):
        image = SimpleITK.ReadImage(str(path))
        middle = [n // 2 for n in image.GetSize()[:2]]
        places.append([image.TransformIndexToPhysicalPoint([*i, 0]) for i in ((0, 0), middle)])
    return np.array(sorted(places, key=lambda pair: pair[1][2]))


def volume(path: Path) -> np.ndarray:
    """The same of the slices of a NIfTI file."""
    image = nibabel.load(path)
    columns, rows, slices = image.shape
    indices = [[(0, 0, k, 1), (columns // 2, rows // 2, k, 1)] for k in range(slices)]
    return (np.array(indices) @ image.affine.T)[..., :3] * (-1, -1, 1)


scan, out = map(Path, sys.argv[1:])
source = series(scan)
derived = series(next(out.glob("series/*/")))
even = volume(next(out.glob("translated/*.nii.gz")))
# The NIfTI has slices of its own, even ones: the source's must lie on the line through them.
first, along = even[0], even[-1] - even[0]
share = ((source - first) * along).sum(-1, keepdims=True) / (along**2).sum(-1, keepdims=True)
beside = np.linalg.norm(source - (first + share * along), axis=-1)
gaps = np.linalg.norm(np.diff(source[:, 1], axis=0), axis=1)
result = {
    "slices": len(source),
    "gaps between slices [mm]": np.round(gaps, 3).tolist(),
    "derived series: farthest a voxel lies from its source's [mm]": float(
        np.linalg.norm(derived - source, axis=-1).max()
    ),
    "NIfTI: even slices": len(even),
    "NIfTI: farthest its first and last slice lie from the source's [mm]": float(
        np.linalg.norm(even[[0, -1]] - source[[0, -1]], axis=-1).max()
    ),
    "NIfTI: farthest a slice of the source lies beside its line [mm]": float(beside.max()),
}
print(json.dumps(result, indent=1))
