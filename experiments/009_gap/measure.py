# SPDX-License-Identifier: Apache-2.0
"""Does the gap rank contour settings as the translations that come of them do?

    python measure.py OUT [HEADS]
    CONTOURDIFF_DATA=DIR python measure.py OUT --pictures

OUT is the folder that experiments/001_heads/run.sh made; HEADS, with test_ct, test_t2 and test_mr,
is OUT/heads without it. Every second slice of the test heads' CT and T2 is translated with 84
settings each, by the one model, from the same noise, and scored against the true MR. For the test
heads result.json and figure.png are written here, for others result.json in OUT/gap_NAME.

With --pictures OUT is of experiments/003_pictures/run.sh: real pictures of CT and MR, from
DIR/png2d, in 60 settings; pictures.json is written here.
"""

import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm

from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.data import examples
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.diffusion import noise
from contourdiff_jax.evaluation import contour_gap as command
from contourdiff_jax.evaluation.metrics import gap, paired
from contourdiff_jax.volumes.volume import Assumed

STEPS = 2  # of DDIM, as in experiments/001_heads
STRIDE = 2
HIGH, LOW = (25, 50, 100, 180), (0.25, 0.5, 1.0)  # LOW: of HIGH
UNITED = contour_settings.PRESETS["united"]["ct"].windows
FAMILIES = {
    "ct": {
        "curve": contour_settings.CT,
        "curve, blur 5": dataclasses.replace(contour_settings.CT, blur=5),
        "united windows": ContourSettings(0, 0, windows=UNITED),
        "united, 2 px apart": ContourSettings(0, 0, windows=UNITED, apart=2),
        "one wide window": ContourSettings(0, 0, windows=((-1000, 1000),)),
        "soft tissue window": ContourSettings(0, 0, windows=((-160, 240),)),
        "brain window, blur 5": ContourSettings(0, 0, windows=((0, 80),), blur=5),
    },
    "t2": {
        "whole window": ContourSettings(0, 0, windows=((0, 1),)),
        "whole window, blur 1": ContourSettings(0, 0, windows=((0, 1),), blur=1),
        "whole window, blur 5": ContourSettings(0, 0, windows=((0, 1),), blur=5),
        "upper window": ContourSettings(0, 0, windows=((0.3, 1),)),
        "lower window": ContourSettings(0, 0, windows=((0, 0.5),)),
        "both windows": ContourSettings(0, 0, windows=((0, 0.5), (0.3, 1))),
        "curve": ContourSettings(0, 0, curve=((0, 0), (0.25, 0.8), (1, 0.3))),
    },
}
# Greys of pictures, whose HU are not known.
PICTURES = {
    "whole window": ContourSettings(0, 0, windows=((0, 1),)),
    "whole window, blur 5": ContourSettings(0, 0, windows=((0, 1),), blur=5),
    "lower window": ContourSettings(0, 0, windows=((0, 0.5),)),
    "upper window": ContourSettings(0, 0, windows=((0.3, 1),)),
    "bright alone": ContourSettings(0, 0, windows=((0.8, 1),)),
}
# It draws the border of grey and white matter where T1 has that of grey matter and fluid: contours
# that look right and are not.
BLIND = "lower window"


def stores(sources: dict, out: Path, grid: dict, **options) -> dict[str, Path]:
    """Stores of {name: (folder, preset)}, prepared on the model's grid."""
    for name, (folder, preset) in sources.items():
        if not (out / name).exists():
            prepare(folder, out / name, preset, **grid, validation=0, **options)
    return {name: out / name for name in sources}


def translator(folder: Path):
    """Contours [n, H, W] and keys [n, 2] -> images [n, H, W] in [0, 1]."""
    sys.path.append(str(Path(__file__).parents[1]))
    import setups

    draw, _ = setups.drawing(folder, steps=STEPS)

    def images(edges, keys):
        knots = noise.Knots(np.stack([keys, keys], 1), np.tile(np.float32([1, 0]), (len(keys), 1)))
        return (draw({"contour": examples.given(edges)}, knots) + 1) / 2

    return images


def measure(images, target, source_path: Path, truth_path: Path, families: dict) -> dict:
    """Gap and SSIM of every setting, and what they have to do with each other."""
    source, truth = command.domain(source_path), command.domain(truth_path)
    index = source.store.index
    assert (index["position"] == truth.store.index["position"]).all()
    rows = source.rows[::STRIDE]
    owners = index["subject"][rows]
    subjects = np.unique(owners)
    keys = np.concatenate(
        [noise.keys(0, str(o), [k]) for o, k in zip(owners, index["slice"][rows], strict=True)]
    )
    true = truth.store.preset.image.fraction(truth.store.values(rows))
    translated = dataclasses.replace(source, rows=rows)
    masks = translated.masks

    def score(drawn) -> list[float]:
        """SSIM in the body, by subject."""
        scores = np.array(
            [
                paired.scores(image, right, 1.0, mask)["ssim_mask"]
                for image, right, mask in zip(images(drawn, keys), true, masks, strict=True)
            ]
        )
        return [float(scores[owners == subject].mean()) for subject in subjects]

    unit = gap.unit(target.masks)
    theirs = target.counts(target.contours(), gap.frames(target.masks, unit))
    yardstick, total = gap.yardstick(theirs), gap.total(theirs)
    frames = gap.frames(source.masks, unit)

    def tried(settings) -> dict:
        counts = gap.total(source.counts(source.contours(settings), frames))
        return {
            "low": settings.low,
            "high": settings.high,
            **gap.gap(counts, total, yardstick),
            "density": gap.statistics(counts, 1)["density"],
            "ssim": score(translated.contours(settings)),
        }

    grid = [
        {"family": name} | tried(dataclasses.replace(family, low=low * high, high=high))
        for (name, family), high, low in tqdm(
            list(itertools.product(families.items(), HIGH, LOW)), disable=None
        )
    ]
    suggested = command.compare(source, target)["suggested"]["contours"]
    density = gap.statistics(total, 1)["density"]
    best = max(np.mean(entry["ssim"]) for entry in grid)
    chosen = tried(ContourSettings.from_dict(suggested))
    own = dataclasses.replace(truth, rows=rows).contours(target.settings)
    sighted = [entry for entry in grid if entry["family"] != BLIND]
    return {
        "subjects": subjects.tolist(),
        "settings": len(grid),
        "spearman": ranks(grid, "gap"),
        "spearman by subject": [ranks(grid, "gap", k) for k in range(len(subjects))],
        **({f"spearman without {BLIND}": ranks(sighted, "gap")} if BLIND in families else {}),
        "spearman by family": {
            name: ranks([entry for entry in grid if entry["family"] == name], "gap")
            for name in families
        },
        "spearman of each part": {part: ranks(grid, part) for part in gap.PARTS},
        "spearman of the difference in density": ranks(
            [entry | {"off": abs(entry["density"] - density)} for entry in grid], "off"
        ),
        "best of the grid": best,
        "suggested": chosen
        | {"contours": suggested, "of the best": np.mean(chosen["ssim"]) / best},
        "the truth's own contours": score(own),
        "grid": grid,
    }


def ranks(grid: list[dict], key: str, subject: int | None = None) -> float:
    """Spearman's correlation of SSIM and what should fall as it rises."""
    ssim = [np.mean(e["ssim"]) if subject is None else e["ssim"][subject] for e in grid]
    return float(-spearmanr([entry[key] for entry in grid], ssim).statistic)


def figure(result: dict):
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 4.4), layout="constrained")
    for axis, (name, found) in zip(drawn.subplots(1, 2, sharey=True), result.items(), strict=True):
        for family in FAMILIES[name]:
            points = [e for e in found["grid"] if e["family"] == family]
            xs, ys = [e["gap"] for e in points], [np.mean(e["ssim"]) for e in points]
            axis.scatter(xs, ys, s=18, label=family)
        chosen = found["suggested"]
        style = {"marker": "o", "s": 110, "facecolors": "none", "edgecolors": "black"}
        axis.scatter(chosen["gap"], np.mean(chosen["ssim"]), label="suggested", **style)
        axis.set(xscale="log", xlabel="gap", xticks=[2, 3, 5, 10, 20])
        axis.set_xticklabels(["2", "3", "5", "10", "20"])
        axis.minorticks_off()
        axis.set_title(f"from {name.upper()}: Spearman {found['spearman']:.2f}", fontsize=10)
        axis.legend(fontsize=8, loc="lower left")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    drawn.axes[0].set_ylabel("SSIM in the body")
    return drawn


def main(out: Path, heads: Path | None) -> None:
    work, others = out / (f"gap_{heads.name}" if heads else "gap"), bool(heads)
    target = command.domain(out / "store", split="train")
    grid = dataclasses.asdict(target.store.grid)
    heads = heads or out / "heads"
    modalities = {"ct": "ct", "t2": "mr", "mr": "mr"}
    sources = {name: (heads / f"test_{name}", preset) for name, preset in modalities.items()}
    found = stores(sources, work, grid)
    images = translator(out / "run")
    result = {
        name: measure(images, target, found[name], found["mr"], families)
        for name, families in FAMILIES.items()
    }
    text = json.dumps(result, indent=1) + "\n"
    if others:
        (work / "result.json").write_text(text)
    else:
        here = Path(__file__).parent
        (here / "result.json").write_text(text)
        figure(result).savefig(here / "figure.png", dpi=100)
    for name, each in result.items():
        print(name, json.dumps({key: value for key, value in each.items() if key != "grid"}))


def pictures(out: Path) -> None:
    """The same of pictures, whose CT is taken as it is shown."""
    data = Path(os.environ["CONTOURDIFF_DATA"]) / "png2d"
    target = command.domain(out / "store", split="train")
    sources = {"ct": (data / "harvard_ct", "mr"), "mr": (data / "harvard_mr", "mr")}
    grid = dataclasses.asdict(target.store.grid)
    found = stores(sources, out / "gap", grid, assumed=Assumed(spacing=1.0))
    result = measure(translator(out / "run"), target, found["ct"], found["mr"], PICTURES)
    (Path(__file__).parent / "pictures.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "grid"}))


if __name__ == "__main__":
    if sys.argv[2:] == ["--pictures"]:
        pictures(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
