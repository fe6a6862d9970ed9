# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of one volume of 150 slices, by every way of drawing it.

    python experiments/026_volumes/seconds.py OUT [--rounds=3]

OUT is that of measure.py, with its runs. The volume is a test head's slices, back and forth. Ways
take turns, each a process of its own that finds compiled what it compiled the first time; seconds
are those of the sidecar, in which the volume is read, drawn and put back. Written to seconds.json
beside this file.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from commands import contourdiff  # beside this folder

SLICES = 150
STEPS = "--steps=2"
WAYS = {
    "slices": ("heads_contours", (STEPS,)),
    "coupled slices": ("heads_contours", (STEPS, "--coupling=0.15")),
    "3D U-Net": ("volumes_small_contours", (STEPS,)),
    "3D U-Net, tiles": ("volumes_small_contours", (STEPS, "--tiles=0.25")),
    "enhanced 3D": ("enhanced_3d_small_contours", (STEPS,)),
    "enhanced 3D, tiles": ("enhanced_3d_small_contours", (STEPS, "--tiles=0.25")),
}


def tall(head: Path, place: Path) -> Path:
    """A volume of so many slices: those of a head, back and forth."""
    image = nibabel.load(head)
    array = np.asarray(image.dataobj)
    around = np.concatenate([array, array[:, :, ::-1]], 2)
    numbers = np.arange(SLICES) % around.shape[2]
    place.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(around[:, :, numbers], image.affine), place)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    fold = options.out.resolve() / "fold0"
    head = sorted((fold / "heads/test_ct").glob("*.nii.gz"))[0]
    volume, out = tall(head, fold / "tall/head_ct.nii.gz"), fold / "timed"
    found = {name: {"seconds": [], "GiB": []} for name in WAYS}
    for turn in range(options.rounds + 1):  # the first compiles
        for name, (run, flags) in WAYS.items():
            shutil.rmtree(out, ignore_errors=True)
            given = (f"--run={fold / 'runs' / run}", f"--source={volume}", f"--out={out}")
            cost = contourdiff("translate", *given, "--preset=ct", *flags)
            (sidecar,) = (json.loads(path.read_text()) for path in out.glob("*.json"))
            if turn:
                found[name]["seconds"].append(sidecar["seconds"])
                found[name]["GiB"].append(cost["GiB"])
    medians = {n: {k: float(np.median(v)) for k, v in of.items()} for n, of in found.items()}
    result = {
        "slices": SLICES,
        "cores": len(os.sched_getaffinity(0)),
        "medians": medians,
        "all": found,
    }
    (HERE / "seconds.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
