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
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from matplotlib.figure import Figure

from contourdiff_jax import methods, models
from contourdiff_jax.evaluation.metrics import bootstrap
from contourdiff_jax.training import run

HERE = Path(__file__).parent
HEADS, CONFIGS = HERE.parent / "001_heads", HERE.parents[1] / "configs"
GRID = ("--spacing=2.4", "--size=96")
PROBE = 240  # images that a method's speed is taken of
OURS = "ContourDiff"
AUTOENCODER, BASE = "autoencoder", "base of ControlNet"
BLIND = "--config.model.conditions=()"
PAIRED = "--config.model.conditions=('source',)"
KEPT = ("ssim_mask", "psnr_mask", "mae_mask", "mae_hu_mask", "contour_f1", "dice")
KINDS = ("mr", "ct")


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


def contourdiff(command: str, *flags: str, done: Path | None = None) -> dict:
    """Runs a command, unless what it makes is there; its seconds, and its memory in GiB."""
    if done is not None and done.exists():
        return {}
    argv = [sys.executable, "-m", "contourdiff_jax", command, *flags]
    print(*argv[2:], flush=True)
    start = time.monotonic()
    process = subprocess.Popen(argv)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise SystemExit(f"{command} failed")
    return {"seconds": time.monotonic() - start, "GiB": usage.ru_maxrss / 2**20}


class Fold:
    """The heads and stores of one fold, made when they are asked for.

    Attributes:
      place: folder of all that is made of it.
    """

    def __init__(self, out: Path, number: int):
        self.place = out / f"fold{number}"
        if not self.heads.exists():
            labels = Path(os.environ["CONTOURDIFF_DATA"]) / "nifti/synthseg_labels"
            argv = [sys.executable, HEADS / "render_heads.py", "--pairs", f"--fold={number}"]
            subprocess.run([*argv, f"--labels={labels}", f"--out={self.heads}"], check=True)

    @property
    def heads(self) -> Path:
        return self.place / "heads"

    def trained_on(self, kind: str) -> Path:
        """Images of a modality of the heads that are trained on, in pairs."""
        return self.heads / {"mr": "train_mr", "ct": "pairs_ct"}[kind]

    def store(self, target: str, sees: str) -> tuple[str, ...]:
        """The flags of train that name the stores of a target."""
        # CycleGAN has one run for both directions, and CT of heads that are in no MR of its.
        if sees == "unpaired":
            mr = self._prepared("mr", self.heads / "train_mr", "mr")
            ct = self._prepared("ct_of_others", self.heads / "train_ct", "ct")
            return f"--store={mr}", f"--source_store={ct}"
        if sees == "contours":
            return (f"--store={self._prepared(target, self.trained_on(target), target)}",)
        (other,) = set(KINDS) - {target}
        pairs = (f"--pairs={self.trained_on(other)}", f"--pairs_preset={other}")
        place = self._prepared(f"{target}_of_{other}", self.trained_on(target), target, *pairs)
        return (f"--store={place}",)

    def _prepared(self, name: str, source: Path, preset: str, *flags: str) -> Path:
        place = self.place / "stores" / name
        given = (f"--source={source}", f"--out={place}", f"--preset={preset}", "--validation=0")
        contourdiff("prepare", *given, *GRID, *flags, done=place)
        return place

    def features(self, kind: str) -> Path:
        """Weights of a segmenter of that modality, for KID."""
        place = self.place / "segmenters" / kind
        given = (
            *(f"--train_images={self.trained_on(kind)}", f"--preset={kind}"),
            *(f"--train_labels={self.heads / 'train_mr_labels'}", "--classes=1,2,3,4", *GRID),
            *(f"--test_images={self.heads / f'test_{kind}'}", "--seeds=1", "--images=4000"),
            *(f"--test_labels={self.heads / 'test_labels'}", f"--out={place}"),
        )
        contourdiff("segment", *given, done=place)
        return place / "weights/translation_0.safetensors"


def trained(fold: Fold, target: str, name: str, minutes: float, cores: int) -> tuple[Path, dict]:
    """The run of a method, and what its training took."""
    method = (METHODS | BASES)[name]
    kept = "mr" if method.sees == "unpaired" else target
    place = fold.place / "runs" / f"{name.replace(' ', '_')}_{kept}"
    record = place.with_suffix(".json")
    given = (f"--config={CONFIGS / method.config}.py", *method.fields)
    given += (*fold.store(target, method.sees), "--config.train.sample=0")
    for flag, before in method.needs.items():
        given += (f"--{flag}={trained(fold, target, before, minutes, cores)[0]}",)
    if not record.exists():
        probe = place.with_name(f"{place.name}_probe")
        contourdiff(
            "train",
            *(*given, f"--workdir={probe}", f"--config.train.images={PROBE}"),
            "--config.train.log=40",
            done=probe / "checkpoints",
        )
        speed = np.median([line["images_per_second"] for line in stats(probe)][1:])
        # Of two cores: where fewer are given to each training, it takes as much longer.
        images = int(60 * minutes * speed * 2 / cores) // 4 * 4
        given += (f"--workdir={place}", f"--config.train.images={images}")
        taken = contourdiff("train", *given)
        params = methods.networks(run.load(place))
        taken |= {"images": images, "images_per_second": stats(place)[-1]["images_per_second"]}
        taken["parameters"] = {player: models.count(tree) for player, tree in params.items()}
        record.write_text(json.dumps(taken, indent=1))
    return place, json.loads(record.read_text())


def stats(place: Path) -> list[dict]:
    lines = [json.loads(line) for line in (place / "stats.jsonl").read_text().splitlines()]
    return [line for line in lines if "images_per_second" in line]


def scored(fold: Fold, target: str, name: str, place: Path) -> Path:
    """The folder of a method's scores, of the test heads."""
    (other,) = set(KINDS) - {target}
    if METHODS[name].again:
        other = target
    translated = fold.place / "translated" / target / name.replace(" ", "_")
    scores = fold.place / "scores" / target / name.replace(" ", "_")
    source, truth = (fold.heads / f"test_{kind}" for kind in (other, target))
    contourdiff(
        "translate",
        *(f"--run={place}", f"--source={source}", f"--preset={other}", f"--out={translated}"),
        *METHODS[name].draw,
        done=translated,
    )
    contourdiff(
        "evaluate",
        *(f"--translated={translated}", f"--source={source}", f"--truth={truth}"),
        *(f"--real={fold.trained_on(target)}", "--features=segmenter", f"--out={scores}"),
        *(f"--weights={fold.features(target)}", "--grid=model"),
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


def by_subject(rows: Path) -> dict:
    """{method: {metric: {subject: mean}}} of a table of scores."""
    values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with rows.open(newline="") as stream:
        for row in csv.DictReader(stream):
            values[row["method"]][row["metric"]][row["subject"]].append(float(row["value"]))
    return {
        method: {
            metric: {subject: float(np.mean(v)) for subject, v in subjects.items()}
            for metric, subjects in metrics.items()
        }
        for method, metrics in values.items()
    }


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


def pooled(parts: list[dict], ours: dict | None) -> dict:
    """{metric: interval} over the subjects of all folds, and the differences from ContourDiff."""
    found = {}
    for metric in KEPT:
        values = {s: v for part in parts for s, v in part.get(metric, {}).items()}
        if not values:
            continue
        found[metric] = bootstrap.interval(list(values.values()))
        if ours and (others := {s: v for part in ours for s, v in part.get(metric, {}).items()}):
            both = sorted(values.keys() & others.keys())
            pair = ([of[subject] for subject in both] for of in (values, others))
            found[f"{metric}_more"] = bootstrap.difference(*pair)
    return found


def figure(out: Path, number: int, targets: list[str], names: list[str]) -> None:
    """A slice of one head: the source, what each method makes of it, and the truth."""
    shown = Figure(figsize=(1.5 * (len(names) + 2), 1.9 * len(targets)), layout="constrained")
    fold = Fold(out, number)
    axes = np.atleast_2d(shown.subplots(len(targets), len(names) + 2))
    for row, target in zip(axes, targets, strict=True):
        (other,) = set(KINDS) - {target}
        places = {other.upper(): fold.heads / f"test_{other}"}
        places |= {n: fold.place / "translated" / target / n.replace(" ", "_") for n in names}
        places |= {f"true {target.upper()}": fold.heads / f"test_{target}"}
        for axis, (title, place) in zip(row, places.items(), strict=True):
            volume = nibabel.load(sorted(place.glob("*.nii.gz"))[0]).get_fdata()
            kind = other if title == other.upper() else target
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
            fold = Fold(out, number)
            for name in names:
                place, taken = trained(fold, target, name, options.minutes, options.cores)
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
            name: pooled(part, ours if name != OURS else None) for name, part in parts.items()
        }
        result.setdefault("baselines", {})[target] = {
            method: pooled(part, ours) for method, part in baselines.items()
        }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    figure(out, folds[0], targets, names)


if __name__ == "__main__":
    main()
