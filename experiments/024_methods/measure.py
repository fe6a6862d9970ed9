# SPDX-License-Identifier: Apache-2.0
"""All methods on the same heads, in the same minutes: what do pairs give, and what do contours?

    CONTOURDIFF_DATA=DIR python experiments/024_methods/measure.py OUT [--minutes=12] [--folds=0,1]
        [--targets=mr,ct] [--methods=..] [--cores=2]

Heads of 001_heads with clinical CT and, for methods of pairs alone, the CT of the heads that are
trained on. Each method is given the minutes of training on two cores, as many images as it sees in
them by a short training before; methods of latents need an autoencoder, and ControlNet a base, that
are given as many each. Of the autoencoder, images that it draws again are scored, the ceiling of
the others. What is done is kept, so that the same command goes on; result.json and figure.png are
written beside this file.
"""

import argparse
import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from commands import by_subject, contourdiff, pooled, trained  # beside this folder
from folds import KINDS, Fold, other

CONFIGS = HERE.parents[1] / "configs"
GRID = ("--spacing=2.4", "--size=96")
OURS = "ContourDiff"
AUTOENCODER, BASE = "autoencoder", "base of ControlNet"
BLIND = "--config.model.conditions=()"
PAIRED = "--config.model.conditions=('source',)"
KEPT = ("ssim_mask", "psnr_mask", "mae_mask", "mae_hu_mask", "contour_f1", "dice")


class Method(NamedTuple):
    """How one of the methods is trained and asked.

    Attributes:
      config: name of its configuration.
      fields: flags of train besides.
      sees: what a training shows it: contours, pairs or unpaired images.
      draw: flags of translate.
      needs: what is trained before it, {flag of train: name}.
      again: whether it draws the target again, and no other source.
    """

    config: str
    sees: str
    fields: tuple[str, ...] = ()
    draw: tuple[str, ...] = ()
    needs: dict[str, str] = {}  # noqa: RUF012, of a tuple
    again: bool = False


METHODS = {
    OURS: Method("heads", "contours", draw=("--steps=2",)),
    "regression from contours": Method("regression", "contours"),
    "paired diffusion": Method("heads", "pairs", (PAIRED,), ("--steps=2",)),
    "regression from the image": Method("regression", "pairs", (PAIRED,)),
    "pix2pix": Method("pix2pix_small", "pairs"),
    "CycleGAN": Method("cyclegan_small", "unpaired"),
    AUTOENCODER: Method("autoencoder_small", "contours", again=True),
    "ContourDiff of latents": Method("latent_small", "contours", needs={"codec": AUTOENCODER}),
    "ControlNet": Method("controlnet_small", "contours", needs={"base": BASE}),
    "InstructPix2Pix": Method("latent_small", "pairs", (PAIRED,), needs={"codec": AUTOENCODER}),
}
BASES = {BASE: Method("latent_small", "contours", (BLIND,), needs={"codec": AUTOENCODER})}


def features(fold: Fold, kind: str) -> Path:
    """Weights of a segmenter of that modality, for KID."""
    place = fold.place / "segmenters" / kind
    given = (
        *(f"--train_images={fold.trained_on(kind)}", f"--preset={kind}"),
        *(f"--train_labels={fold.heads / 'train_mr_labels'}", "--classes=1,2,3,4", *GRID),
        *(f"--test_images={fold.heads / f'test_{kind}'}", "--seeds=1", "--images=4000"),
        *(f"--test_labels={fold.heads / 'test_labels'}", f"--out={place}"),
    )
    contourdiff("segment", *given, done=place)
    return place / "weights/translation_0.safetensors"


def learnt(fold: Fold, target: str, name: str, minutes: float, cores: int) -> tuple[Path, dict]:
    """The run of a method, and what its training took."""
    method = (METHODS | BASES)[name]
    kept = "mr" if method.sees == "unpaired" else target
    place = fold.place / "runs" / f"{name.replace(' ', '_')}_{kept}"
    given = (f"--config={CONFIGS / method.config}.py", *method.fields)
    given += (*fold.store(target, method.sees), "--config.train.sample=0")
    for flag, before in method.needs.items():
        given += (f"--{flag}={learnt(fold, target, before, minutes, cores)[0]}",)
    return place, trained(place, *given, minutes=minutes, cores=cores)


def scored(fold: Fold, target: str, name: str, place: Path) -> Path:
    """The folder of a method's scores, of the test heads."""
    shown = target if METHODS[name].again else other(target)
    translated = fold.place / "translated" / target / name.replace(" ", "_")
    scores = fold.place / "scores" / target / name.replace(" ", "_")
    source, truth = (fold.heads / f"test_{kind}" for kind in (shown, target))
    contourdiff(
        "translate",
        *(f"--run={place}", f"--source={source}", f"--preset={shown}", f"--out={translated}"),
        *METHODS[name].draw,
        done=translated,
    )
    contourdiff(
        "evaluate",
        *(f"--translated={translated}", f"--source={source}", f"--truth={truth}"),
        *(f"--real={fold.trained_on(target)}", "--features=segmenter", f"--out={scores}"),
        *(f"--weights={features(fold, target)}", "--grid=model"),
        done=scores,
    )
    return scores


def dice(fold: Fold, name: str, place: Path) -> dict:
    """Dice on real MR of a segmenter that learns from CT of other heads, translated."""
    translated = fold.place / "labelled" / name.replace(" ", "_")
    source = f"--source={fold.heads / 'train_ct'}"
    given = (f"--run={place}", source, "--preset=ct", f"--out={translated}", *METHODS[name].draw)
    contourdiff("translate", *given, done=translated)
    scores = fold.place / "segmented" / name.replace(" ", "_")
    contourdiff(
        "segment",
        *(f"--train_images={translated}", f"--train_labels={fold.heads / 'train_ct_labels'}"),
        *(f"--test_images={fold.heads / 'test_mr'}", f"--test_labels={fold.heads / 'test_labels'}"),
        *("--classes=1,2,3,4", *GRID, "--seeds=1", "--images=4000", f"--out={scores}"),
        done=scores,
    )
    return by_subject(scores / "rows.csv").get("translation", {}).get("dice", {})


def whole(scores: Path) -> dict:
    """Of the translation as a set: KID by the segmenter's features, and the seconds of a slice."""
    methods = json.loads((scores / "metrics.json").read_text())["methods"]
    kid = {
        name: of["kernel_segmenter"]["value"]
        for name, of in methods.items()
        if "kernel_segmenter" in of
    }
    with (scores / "rows.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["method"] == "translation"]
    seconds = [float(row["seconds"]) for row in rows if row["seconds"]]
    return {"kid": kid, "seconds a slice": float(np.median(seconds))}


def figure(out: Path, number: int, targets: list[str], names: list[str]) -> None:
    """A slice of one head: the source, what each method makes of it, and the truth."""
    shown = Figure(figsize=(1.5 * (len(names) + 2), 1.9 * len(targets)), layout="constrained")
    fold = Fold(out / f"fold{number}", number, GRID)
    axes = np.atleast_2d(shown.subplots(len(targets), len(names) + 2))
    for row, target in zip(axes, targets, strict=True):
        source = other(target)
        places = {source.upper(): fold.heads / f"test_{source}"}
        places |= {n: fold.place / "translated" / target / n.replace(" ", "_") for n in names}
        places |= {f"true {target.upper()}": fold.heads / f"test_{target}"}
        for axis, (title, place) in zip(row, places.items(), strict=True):
            volume = nibabel.load(sorted(place.glob("*.nii.gz"))[0]).get_fdata()
            kind = source if title == source.upper() else target
            window = (-100, 200) if kind == "ct" else (0, np.percentile(volume, 99.5))
            axis.imshow(
                np.rot90(volume[:, :, volume.shape[2] // 2]),
                **dict(zip(("vmin", "vmax"), window, strict=True)),
                cmap="gray",
            )
            axis.set_axis_off()
            axis.set_title(title, fontsize=7)
    shown.savefig(HERE / "figure.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=12, help="of training, of two cores")
    parser.add_argument("--folds", default="0,1")
    parser.add_argument("--targets", default=",".join(KINDS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--cores", type=int, default=2, help="that each training is given here")
    options = parser.parse_args()
    out, names = options.out.resolve(), options.methods.split(",")
    targets, folds = options.targets.split(","), [int(k) for k in options.folds.split(",")]
    result = {"minutes": options.minutes, "folds": folds}
    for target in targets:
        parts, baselines = defaultdict(list), defaultdict(list)
        for number in folds:
            fold = Fold(out / f"fold{number}", number, GRID)
            for name in names:
                place, taken = learnt(fold, target, name, options.minutes, options.cores)
                scores = scored(fold, target, name, place)
                found = by_subject(scores / "rows.csv")
                ours = found.pop("translation")
                if target == "mr" and not METHODS[name].again:
                    ours["dice"] = dice(fold, name, place)
                parts[name].append(ours)
                result.setdefault("runs", {}).setdefault(target, {}).setdefault(name, []).append(
                    taken | whole(scores)
                )
                if name == names[0]:
                    for method, metrics in found.items():
                        baselines[method].append(metrics)
        ours = parts.get(OURS)
        result.setdefault("scores", {})[target] = {
            name: pooled(part, ours if name != OURS else None, KEPT) for name, part in parts.items()
        }
        result.setdefault("baselines", {})[target] = {
            method: pooled(part, ours, KEPT) for method, part in baselines.items()
        }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    figure(out, folds[0], targets, names)


if __name__ == "__main__":
    main()
