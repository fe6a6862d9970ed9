# SPDX-License-Identifier: Apache-2.0
"""What real data say of two choices: the window of CT, and the note on pictures that lie.

    python experiments/027_mr_to_ct/inputs.py > experiments/027_mr_to_ct/inputs.json

Of CT: shares of the body's voxels beyond 1000 and 3071 HU, mean and most of the scans. Of pictures:
how many series are taken for lying as they are, and transposed. $CONTOURDIFF_DATA holds both.
"""

import json
import os
from pathlib import Path

import numpy as np

from contourdiff_jax.data import layouts
from contourdiff_jax.data.inspection import guesses
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.masks import body_mask
from contourdiff_jax.volumes.volume import BRAIN, UNKNOWN, Assumed

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("CONTOURDIFF_DATA", HERE.parents[2] / "shared/data"))
PICTURES = "png2d/synthrad_ct"
CT = {  # place: what its pictures do not say
    "dicom/ge_head_ct": UNKNOWN,
    "nifti/totalsegmentator/example_ct.nii.gz": UNKNOWN,
    f"{PICTURES}_brain": Assumed(1.0, (-1000.0, 2000.0)),
    f"{PICTURES}_pelvis": Assumed(1.0, (-1000.0, 2000.0)),
    "real/synthrad_mid/axial/ct": Assumed(1.0, BRAIN),
}
SERIES = (
    *(f"real/synthrad_mid/{p}/{k}" for p in ("axial", "coronal", "sagittal") for k in ("ct", "mr")),
    *("real/lgg/t1", "real/lgg/flair", "real/lgg/t1c", "real/ctmr/ct", "real/ctmr/t1"),
    *("png2d/harvard_ct", "png2d/harvard_mr", "png2d/harvard_mr_extra"),
    *(f"{PICTURES}_brain", f"{PICTURES}_pelvis"),
)


def beyond(place: str, assumed: Assumed) -> dict:
    """Shares of the body's voxels, and of the bone's, that lie beyond a window."""
    shares = []
    for scan in layouts.find(DATA / place, assumed=assumed).scans:
        volume = scan.read()
        body = volume.array[body_mask(volume.array, volume.affine, "ct") > 0]
        bone = body[body > 300]
        shares.append([np.mean(body > 1000), np.mean(bone > 1000), np.mean(body > 3071)])
    names = ("body above 1000 HU", "bone above 1000 HU", "body above 3071 HU")
    mean, most = np.mean(shares, 0), np.max(shares, 0)
    scores = {n: {"mean": m, "most": h} for n, m, h in zip(names, mean, most, strict=True)}
    return {"scans": len(shares), **scores}


def lying(place: str) -> dict:
    """How many series are taken for lying, as they are and transposed."""
    counts = {"series": 0, "as they are": 0, "transposed": 0}
    for scan in layouts.find(DATA / place).scans:
        volume = io.read(scan.files)
        body = body_mask(volume.array, volume.affine, "mr")
        counts["series"] += 1
        counts["as they are"] += guesses.lies(volume.array, body)
        counts["transposed"] += guesses.lies(volume.array.swapaxes(0, 1), body.swapaxes(0, 1))
    return counts


if __name__ == "__main__":
    found = {
        "window": {place: beyond(place, assumed) for place, assumed in CT.items()},
        "lying": {place: lying(place) for place in SERIES},
    }
    print(json.dumps(found, indent=1))
