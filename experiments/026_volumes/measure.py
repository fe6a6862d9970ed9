# SPDX-License-Identifier: Apache-2.0
"""Slices, coupled slices or whole volumes: what do three dimensions bring at the same cost?

    CONTOURDIFF_DATA=DIR python experiments/026_volumes/measure.py OUT [--minutes=25] [--folds=0,1]
        [--sees=contours,pairs] [--ways='slices;3D U-Net'] [--cores=2]

Heads of 001_heads at 3 mm in every direction, CT to MR. Each network is given the same minutes of
two cores, from contours alone and from pairs. What is done is kept, so that the same command goes
on; result.json and figure.png are written beside this file.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from commands import by_subject, contourdiff, pooled, trained  # beside this folder
from folds import Fold

CONFIGS = HERE.parents[1] / "configs"
GRID = ("--spacing=3", "--size=64", "--slice_spacing=3")
PAIRED = "--config.model.conditions=('source',)"
KEPT = (
    *("ssim_mask", "ssim_mask_sagittal", "ssim_mask_coronal", "psnr_mask", "mae_mask"),
    *("error_flicker", "error_drift", "flicker", "flicker_excess", "gradient_energy_excess"),
)


class Way(NamedTuple):
    """How volumes are drawn.

    Attributes:
      config: name of the configuration of the network.
      draw: flags of translate.
      fields: flags of train.
      probe: images, or patches, that the network's speed is taken of.
    """

    config: str
    draw: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    probe: int = 240


OF_SLICES, ENHANCED = "heads", "enhanced_3d_small"
STEPS = "--steps=2"
WAYS = {
    "slices": Way(OF_SLICES, (STEPS,)),
    "coupled slices": Way(OF_SLICES, (STEPS, "--coupling=0.15")),
    "3D U-Net": Way("volumes_small", (STEPS,), probe=24),
    "enhanced 3D": Way(ENHANCED, (STEPS,), probe=24),
    "enhanced 3D, one path": Way(ENHANCED, (STEPS,), ("--config.model.paths=1",), 24),
    "enhanced 3D, attention not pooled": Way(ENHANCED, (STEPS,), ("--config.model.pool=()",), 24),
}
COMPARED = "coupled slices"


def drawn(fold: Fold, sees: str, name: str, minutes: float, cores: int) -> tuple[dict, dict]:
    """({metric: {subject: value}} of a way and of each baseline, what it took)."""
    way = WAYS[name]
    network = "_".join((way.config, *(f.rpartition(".")[2] for f in way.fields), sees))
    run = fold.place / "runs" / network
    given = (f"--config={CONFIGS / way.config}.py", *fold.store("mr", sees), *way.fields)
    given += ("--config.train.sample=0", "--config.train.checkpoint=0")
    # The grid is the store's, whatever configurations of slices name.
    given += ("--config.grid.spacing=0.0", "--config.grid.size=0")
    given += (PAIRED,) if sees == "pairs" else ()
    taken = trained(run, *given, minutes=minutes, cores=cores, probe=way.probe)
    translated, scores = (fold.place / of / sees / name for of in ("translated", "scores"))
    source, truth = fold.heads / "test_ct", fold.heads / "test_mr"
    record = translated.with_suffix(".json")
    cost = contourdiff(
        "translate",
        *(f"--run={run}", f"--source={source}", "--preset=ct", f"--out={translated}", *way.draw),
        done=translated,
    )
    if cost:
        record.write_text(json.dumps(cost))
    contourdiff(
        "evaluate",
        *(f"--translated={translated}", f"--source={source}", f"--truth={truth}"),
        *(f"--real={fold.trained_on('mr')}", "--grid=model", f"--out={scores}"),
        done=scores,
    )
    cost = json.loads(record.read_text())
    sidecars = [json.loads(path.read_text()) for path in translated.glob("*.json")]
    seconds = [sidecar["seconds"] for sidecar in sidecars if "seconds" in sidecar]
    # The first is compiled for; how long a volume takes, the others say.
    taken |= {"seconds a volume": float(np.median(seconds)), "GiB of translate": cost["GiB"]}
    return by_subject(scores / "rows.csv"), taken


def figure(fold: Fold, sees: list[str], names: list[str]) -> None:
    """One head in three planes by every way, beside the truth."""
    places = {
        f"{name}, {of}" if len(sees) > 1 else name: fold.place / "translated" / of / name
        for of in sees
        for name in names
    }
    places = {"CT": fold.heads / "test_ct"} | places | {"true MR": fold.heads / "test_mr"}
    shown = Figure(figsize=(1.7 * len(places), 5), layout="constrained")
    axes = shown.subplots(3, len(places))
    for column, (title, place) in zip(axes.T, places.items(), strict=True):
        image = nibabel.load(sorted(place.glob("*.nii.gz"))[0])
        volume, sizes = image.get_fdata(), image.header.get_zooms()
        window = (-100, 200) if title == "CT" else (0, np.percentile(volume, 99.5))
        for across, axis in zip((2, 1, 0), column, strict=True):
            plane = np.take(volume, volume.shape[across] // 2, across)
            wide, high = (sizes[k] for k in range(3) if k != across)
            axis.imshow(
                np.rot90(plane),
                **dict(zip(("vmin", "vmax"), window, strict=True)),
                **{"cmap": "gray", "aspect": high / wide},
            )
            axis.set_axis_off()
        column[0].set_title(title, fontsize=7)
    shown.savefig(HERE / "figure.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=25, help="of training, of two cores")
    parser.add_argument("--folds", default="0,1")
    parser.add_argument("--sees", default="contours,pairs")
    parser.add_argument("--ways", default=";".join(WAYS), help="their names, with ; between")
    parser.add_argument("--cores", type=int, default=2, help="that each training is given here")
    options = parser.parse_args()
    names, sees = options.ways.split(";"), options.sees.split(",")
    folds = [int(number) for number in options.folds.split(",")]
    of_fold = [Fold(options.out.resolve() / f"fold{number}", number, GRID) for number in folds]
    result = {"minutes": options.minutes, "cores": options.cores, "folds": folds}
    for of in sees:
        values, baselines = {}, {}
        for name in names:
            parts = []
            for fold in of_fold:
                found, taken = drawn(fold, of, name, options.minutes, options.cores)
                parts.append(found)
                result.setdefault("runs", {}).setdefault(of, {}).setdefault(name, []).append(taken)
            values[name] = [part["translation"] for part in parts]
            baselines |= {
                method: [part[method] for part in parts]
                for method in parts[0]
                if method != "translation"
            }
        slices = values.get(COMPARED)
        result.setdefault("scores", {})[of] = {
            name: pooled(found, slices if name != COMPARED else None, KEPT)
            for name, found in (values | baselines).items()
        }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    figure(of_fold[0], sees, names)


if __name__ == "__main__":
    main()
