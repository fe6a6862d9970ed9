# SPDX-License-Identifier: Apache-2.0
"""What brings the contours of CT nearer to those of MR: one ingredient at a time.

    CONTOURDIFF_DATA=DIR python ablation.py OUT --folds=0,1,2,3 --seeds=0 [--training=NAME,..]
    CONTOURDIFF_DATA=DIR python ablation.py OUT --table

The heads of 001_heads in four folds, so that each of the twelve is a test head once. Models are
trained on the MR of five others, at equal budgets; then the CT, the T2 and, as the ceiling, the MR
of the test heads are translated from contours taken in several ways. What is done is kept, so that
several processes can share the work. --table writes result.json beside this file.
"""

import argparse
import csv
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.evaluation.metrics.bootstrap import interval

HERE = Path(__file__).parent
HEADS = HERE.parent / "001_heads"
IMAGES = 3_000
STEPS = 2
TUNED_ON = {"head08", "head10", "head13"}  # the curve was chosen on these
PAIR = [("plain", source) for source in ("united", "default", "truth")]
METRICS = ("ssim_mask", "mae_mask", "contour_f1")

# The curve as it was, on what the grid's pixels hold.
COARSE = contour_settings.ContourSettings(
    curve=(
        *((-1000, 0), (-100, 0.9), (-50, 0.9)),
        *((0, 0.25), (30, 0.6), (38, 0.54), (60, 0.4), (120, 0.4)),
        (1100, 0),
    ),
    low=20,
    high=50,
)
CT = contour_settings.CT
SOURCES = {  # name: (folder of test heads, intensity preset, contours)
    "published": ("test_ct", "ct", contour_settings.preset("published", "ct")),
    "united": ("test_ct", "ct", contour_settings.preset("united", "ct")),
    "curve": ("test_ct", "ct", COARSE),
    "curve of voxels": ("test_ct", "ct", dataclasses.replace(COARSE, thin=0.1)),
    "curve of voxels, opened": ("test_ct", "ct", dataclasses.replace(COARSE, thin=3.0)),
    "default": ("test_ct", "ct", CT),
    "default, thresholds 30/70": ("test_ct", "ct", dataclasses.replace(CT, low=30, high=70)),
    "default, blur 5": ("test_ct", "ct", dataclasses.replace(CT, blur=5)),
    "T2": ("test_t2", "mr", contour_settings.MR),
    "truth": ("test_mr", "mr", contour_settings.MR),
}
FEW = ("united", "default", "T2", "truth")
TRAINING = {  # name: (what of the configuration is changed, sources translated)
    "plain": ({}, tuple(SOURCES)),
    "thresholds": ({"thresholds": 0.5}, FEW),
    "contrast": ({"contrast": 0.1}, FEW),
    "noise": ({"noise": 0.03}, FEW),
    "displacement": ({"displacement": 1.0}, FEW),
    "doubled": ({"displacement": 1.0, "doubled": 0.3}, FEW),
    "missing": ({"missing": 0.3}, FEW),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--folds", default="0,1,2,3")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--training", default="plain")
    parser.add_argument("--sources", help="contours to translate from (default: all that belong)")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        table(given.out)
        return
    for seed in given.seeds.split(","):
        for name in given.training.split(","):
            for fold in given.folds.split(","):
                sources = given.sources.split(",") if given.sources else TRAINING[name][1]
                one(given.out / f"fold{fold}", int(fold), name, int(seed), sources)


def one(folder: Path, fold: int, name: str, seed: int, sources) -> None:
    """Train and score one model, unless that is done."""
    from contourdiff_jax.evaluation.folder import Request, evaluate
    from contourdiff_jax.methods import train
    from contourdiff_jax.translation import folder as translation

    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "compiled"))
    data(folder, fold)
    model = folder / f"{name}_{seed}"
    if not train(config(name, seed), folder / "store", model / "run"):
        raise SystemExit(f"{model}: training was stopped; the same command goes on with it")
    for number, (source, (test, preset, settings)) in enumerate(SOURCES.items()):
        scores = model / f"scores_{number}"
        if source not in sources or scores.exists():
            continue
        file = model / f"contours_{number}.json"
        file.write_text(json.dumps(settings.to_dict()))
        translated, heads = model / f"translated_{number}", folder / "heads"
        options = {"preset": preset, "contours": file, "sampler": {"steps": STEPS}, "seed": seed}
        request = translation.Request(model / "run", heads / test, translated, **options)
        translation.translate(request)
        truths = {"truth": heads / "test_mr", "source": heads / test}
        evaluate(Request(translated, scores, **truths, grid="model"))


def data(folder: Path, fold: int) -> None:
    """The heads of a fold and a store of the MR to train on."""
    from contourdiff_jax.data.prepare import prepare

    heads = folder / "heads"
    if not heads.exists():
        labels = Path(os.environ["CONTOURDIFF_DATA"]) / "nifti/synthseg_labels"
        options = [f"--labels={labels}", f"--out={heads}", f"--fold={fold}", "--folds=4"]
        subprocess.run([sys.executable, HEADS / "render_heads.py", *options], check=True)
    if not (folder / "store").exists():
        prepare(heads / "train_mr", folder / "store", "mr", spacing=2.4, size=96, validation=0)


def config(name: str, seed: int):
    """The configuration of 001_heads, with fewer images and what this model is about."""
    spec = importlib.util.spec_from_file_location("heads", HERE.parents[1] / "configs/heads.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = module.get_config()
    settings.seed = seed
    settings.train.update(images=IMAGES, sample=0, checkpoint=1_000)
    settings.disturbance.update(TRAINING[name][0])
    return settings


def table(out: Path) -> None:
    """Means over the heads, and paired differences with 95% bootstrap intervals over them.

    Ingredients are compared by their first seed, which all have; the final pair and the truth's
    contours by all the seeds that they have.
    """
    found = {}  # (training, source, metric) -> {(head, seed): value}
    for scores in sorted(out.glob("fold*/*/scores_*/rows.csv")):
        name, seed = scores.parents[1].name.rsplit("_", 1)
        source = list(SOURCES)[int(scores.parent.name.rsplit("_", 1)[1])]
        by_head = {}
        with scores.open(newline="") as stream:
            for row in csv.DictReader(stream):
                if row["method"] == "translation" and row["metric"] in METRICS:
                    by_head.setdefault((row["metric"], row["subject"]), []).append(
                        float(row["value"])
                    )
        for (metric, head), values in by_head.items():
            key = (name, source, metric)
            found.setdefault(key, {})[head, int(seed)] = float(np.mean(values))
    first = {key: {k: v for k, v in values.items() if k[1] == 0} for key, values in found.items()}
    pair = {key: values for key, values in found.items() if key[:2] in PAIR}
    result = {"images": IMAGES, "sampling_steps": STEPS, **compared(first)}
    result["final pair"] = compared(pair)
    result["final pair"]["models"] = len({path.parent for path in out.glob("fold*/plain_*/run")})
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    for entry in result["scores"]:
        if entry["metric"] == "ssim_mask":
            print(entry["training"], "|", entry["contours"], "|", entry["heads not tuned on"])


def compared(found: dict) -> dict:
    """Scores, and differences from united windows, or of training from none of its kind."""
    scores, differences = [], []
    for (name, source, metric), values in sorted(found.items()):
        unseen = {k: v for k, v in values.items() if k[0] not in TUNED_ON}
        entry = {"training": name, "contours": source, "metric": metric}
        scores.append(entry | {"all heads": summary(values), "heads not tuned on": summary(unseen)})
        other = ("plain", "united") if name == "plain" else ("plain", source)
        base = found.get((*other, metric), {})
        both = sorted(base.keys() & unseen.keys())
        if (name, source) != other and both:
            change = summary({k: unseen[k] - base[k] for k in both})
            differences.append(entry | {"from": list(other)} | change)
    return {"scores": scores, "differences": differences}


def summary(values: dict) -> dict:
    """Mean over heads, each the mean of its seeds, and a bootstrap interval over heads."""
    heads = sorted({head for head, _ in values})
    means = np.array([np.mean([v for k, v in values.items() if k[0] == head]) for head in heads])
    return interval(means) if len(means) else {"n": 0}


if __name__ == "__main__":
    main()
