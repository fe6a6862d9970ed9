# SPDX-License-Identifier: Apache-2.0
"""CT from MR pictures: the commands of docs/your_data.md, through two windows of HU.

    python experiments/027_mr_to_ct/measure.py OUT [--presets=ct_wide,ct] [--images=6000]

$CONTOURDIFF_DATA/real holds the pictures; patients are split as in 021_real. What is done is kept,
so that the same command goes on. OUT/result.json: scores by the preset that CT was learnt through,
beside baselines of the same patients.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from contourdiff_jax.evaluation.metrics import bootstrap
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.volume import BRAIN, Assumed

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "021_real")]

from benchmark import DATA, SYNTHRAD, sides
from commands import contourdiff, stats  # beside this folder

RECIPE = HERE.parents[1] / "configs/patients.py"
KEPT = ("ssim_mask", "psnr_mask", "mae_hu_mask", "contour_f1")
BONE = 300.0  # HU


def gathered(out: Path) -> Path:
    """Folders {train,test}/{ct,mr,mask} of the patients of each side."""
    place = out / "data"
    if not place.exists():
        partial = out / "data.part"
        shutil.rmtree(partial, ignore_errors=True)
        for kind in ("ct", "mr", "mask"):
            for side, pictures in sides(DATA / SYNTHRAD / kind).items():
                folder = partial / side / kind
                folder.mkdir(parents=True)
                for path in pictures:
                    shutil.copy(path, folder)
        partial.rename(place)
    return place


def bone_error(translated: Path, truths: Path) -> dict:
    """Mean absolute error [HU] where the truth is bone, with an interval over patients."""
    errors = []
    for path in sorted(truths.glob("*.png")):
        truth = io.read(path, assumed=Assumed(1.0, BRAIN)).array
        drawn = io.read(translated / f"{path.stem.rpartition('-')[0]}.nii.gz").array
        errors.append(float(np.abs(drawn - truth)[truth > BONE].mean()))
    return bootstrap.interval(errors, 0)


def scored(preset: str, out: Path, images: int) -> dict:
    """Prepares, trains, translates and scores; what metrics.json says, and of what it came."""
    data, place = gathered(out), out / preset
    train, test, spacing = data / "train", data / "test", "--pixel_spacing=1"
    contourdiff(
        "prepare",
        *(f"--source={train / 'ct'}", f"--preset={preset}", f"--range={BRAIN}", spacing),
        *("--spacing=2", "--size=128", "--validation=0", f"--masks={train / 'mask'}"),
        f"--out={place / 'store'}",
        done=place / "store",
    )
    contourdiff(
        "train",
        *(f"--config={RECIPE}", f"--store={place / 'store'}", f"--workdir={place / 'run'}"),
        f"--config.train.images={images}",
    )
    contourdiff(
        "translate",
        *(f"--run={place / 'run'}", f"--source={test / 'mr'}", "--preset=mr", spacing),
        *(f"--masks={test / 'mask'}", f"--out={place / 'translated'}"),
    )
    contourdiff(
        "evaluate",
        *(f"--translated={place / 'translated'}", f"--source={test / 'mr'}"),
        *(f"--truth={test / 'ct'}", f"--truth_range={BRAIN}", f"--real={train / 'ct'}"),
        *(f"--masks={test / 'mask'}", "--grid=model", "--overwrite", f"--out={place / 'scores'}"),
    )
    methods = json.loads((place / "scores/metrics.json").read_text())["methods"]
    return {
        "methods": {name: {m: of[m] for m in KEPT if m in of} for name, of in methods.items()},
        "bone": bone_error(place / "translated", test / "ct"),
        "images": images,
        "images_per_second": stats(place / "run")[-1]["images_per_second"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--presets", default="ct_wide,ct")
    parser.add_argument("--images", type=int, default=6000)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    place = options.out / "result.json"
    for preset in options.presets.split(","):
        scores = scored(preset, options.out.resolve(), options.images)
        result = json.loads(place.read_text()) if place.exists() else {}
        place.write_text(json.dumps(result | {preset: scores}, indent=1) + "\n")


if __name__ == "__main__":
    main()
