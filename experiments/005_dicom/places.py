# SPDX-License-Identifier: Apache-2.0
"""Where every slice of a DICOM series and of its translations lies, as SimpleITK reads it.

    python places.py SCAN OUT     OUT/translated/*.nii.gz and OUT/series/*/*.dcm, made of SCAN
"""

import json
import sys
from pathlib import Path

import numpy as np
import SimpleITK


def corners(path) -> tuple[int, np.ndarray]:
    """Of a file: how many slices it has, and the places [mm, LPS] of two voxels of each.

    [n, 2, 3]: the first voxel of every slice, and the one half way along its diagonal.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    columns, rows, slices = (*reader.GetSize(), 1)[:3]
    image = reader.Execute()
    indices = [[(0, 0, k), (columns // 2, rows // 2, k)] for k in range(slices)]
    return [[image.TransformIndexToPhysicalPoint(i) for i in pair] for pair in indices]


def slices(files) -> np.ndarray:
    """The places [n, 2, 3] of all slices of a folder's files, in order of height."""
    places = np.concatenate([corners(path) for path in files])
    return places[np.argsort(places[:, 1, 2])]


scan, out = map(Path, sys.argv[1:])
source = slices(sorted(scan.glob("*.dcm")))
series = slices(sorted(out.glob("series/*/*.dcm")))
volume = next(out.glob("translated/*.nii.gz"))
even = slices([volume])
# Of the volume, which has even slices: how far the source's slices lie from the line through its
# own, and how far its ends lie from theirs.
first, last = even[0, 1], even[-1, 1]
along = (last - first) / np.linalg.norm(last - first)
offset = source[:, 1] - first
distance = np.linalg.norm(offset - (offset @ along)[:, None] * along, axis=1)
result = {
    "slices of the source": len(source),
    "gaps of the source [mm]": [
        round(float(gap), 3) for gap in np.linalg.norm(np.diff(source[:, 1], axis=0), axis=1)
    ],
    "derived series, farthest slice [mm]": float(np.abs(series - source).max()),
    "NIfTI, even slices": len(even),
    "NIfTI, ends [mm]": float(max(np.abs(even[[0, -1]] - source[[0, -1]]).max(), 0)),
    "NIfTI, farthest slice of the source from its line [mm]": float(distance.max()),
}
print(json.dumps(result, indent=1))
