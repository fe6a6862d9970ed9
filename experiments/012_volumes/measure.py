# SPDX-License-Identifier: Apache-2.0
"""Volumes: what each way of making slices fit together brings, and what it costs.

    CONTOURDIFF_DATA=DIR python measure.py OUT PART [PART ..]

OUT is the folder that experiments/001_heads/run.sh made. Parts, in this order: `train` the network
of 001 with neighbours, `heads` to test on, `methods`, `steps`, `uncertainty`, `time`, `memory`
(each adds its own entry to result.json beside this file), `figure`.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np

HERE = Path(__file__).parent
HEADS = HERE.parent / "001_heads"
IMAGES = 6_000
SAMPLING = {"few steps": 2, "many steps": 10}
ALONE = "each slice for itself"
METHODS = {
    ALONE: {},
    "shared noise, 6 mm": {"coherence": 6.0},
    "shared noise, 12 mm": {"coherence": 12.0},
    "coupling 0.15": {"coupling": 0.15},
    "coupling 0.3": {"coupling": 0.3},
    "shared noise, 6 mm, coupling 0.15": {"coherence": 6.0, "coupling": 0.15},
    "SCGD as published": {"scgd": True, "neighbour_guidance": 1.0},
    "SCGD": {"scgd": True},
    "SCGD, shared noise, 6 mm": {"scgd": True, "coherence": 6.0},
}
COMPARED = (
    ALONE,
    "shared noise, 6 mm",
    "coupling 0.15",
    "shared noise, 6 mm, coupling 0.15",
    "SCGD as published",
    "SCGD",
    "SCGD, shared noise, 6 mm",
)
STEPS = (1, 2, 4, 10, 20, 50)
SAMPLERS = ("ddim", "dpmpp_2m")
# (sampler, steps) of which samples are drawn to see where they differ
SPREAD = {"DDIM, 2 steps": ("ddim", 2), "DDPM, 10 steps": ("ddpm", 10)}
SAMPLES = 6
KEPT = ("ssim", "mae", "flicker", "slice", "gradient", "level", "error", "bias", "contrast")
KEPT += ("uncertainty", "ause")  # beginnings of the names of metrics that result.json has
REPEATS = 3


def main() -> None:
    out, *parts = sys.argv[1:]
    out = Path(out)
    jax.config.update("jax_compilation_cache_dir", str(out / "volumes/compiled"))
    for part in parts:
        if part.startswith("one:"):
            _, way, count = part.split(":")
            one(out, way, int(count))
        else:
            PARTS[part](out)


def train(out: Path) -> None:
    """The heads' network with the neighbour as second condition."""
    conditions = "--config.model.conditions=('contour','neighbour')"
    options = [f"--config.train.images={IMAGES}", "--config.train.sample=0", conditions]
    command(
        "train",
        f"--config={HERE.parents[1] / 'configs/heads.py'}",
        *options,
        **{
            "store": out / "store",
            "workdir": out / "volumes/run",
        },
    )


def heads(out: Path) -> None:
    """Volumes of all heads whose MR was not trained on, by their names."""
    trained = {path.name for path in (out / "heads/train_mr").iterdir()}
    labels = Path(os.environ["CONTOURDIFF_DATA"]) / "nifti/synthseg_labels"
    for fold in range(4):
        rendered = out / "volumes" / f"fold{fold}"
        if not rendered.exists():
            options = [f"--labels={labels}", f"--out={rendered}", f"--fold={fold}", "--folds=4"]
            subprocess.run([sys.executable, HEADS / "render_heads.py", *options], check=True)
        for folder in ("test_ct", "test_mr", "test_labels"):
            together = out / "volumes/heads" / folder
            together.mkdir(parents=True, exist_ok=True)
            for path in (rendered / folder).iterdir():
                untrained = f"{path.name.split('_')[0]}_mr.nii.gz" not in trained
                if untrained and not (together / path.name).exists():
                    os.link(path, together / path.name)


def methods(out: Path) -> None:
    """Every way on all heads with few steps, some of them with many."""
    found = {}
    for words, steps in SAMPLING.items():
        for name in METHODS if words == "few steps" else COMPARED:
            scores = scored(out, f"{words}, {name}", {"steps": steps} | METHODS[name])
            found.setdefault(words, {})[name] = scores["translation"]
            found[words]["truth"] = scores["truth"]
    keep("methods", found)


def scored(out: Path, name: str, sampler: dict, only=None) -> dict:
    """{method: {metric: interval}} of heads translated with such a sampler, and of the truth."""
    from contourdiff_jax.evaluation.folder import Request, evaluate
    from contourdiff_jax.translation import folder as translation

    folder, truth = out / "volumes" / name.replace(" ", "_"), out / "volumes/heads"
    # So that slices of several volumes, as SCGD advances them, fill a batch.
    sampler = sampler | {"batch": 8}
    source = out / "heads/test_ct" if only else truth / "test_ct"
    if not (folder / "scores/metrics.json").exists():
        how = {"preset": "ct", "sampler": sampler}
        translation.translate(
            translation.Request(out / "volumes/run", source, folder / "images", **how)
        )
        more = {"labels": truth / "test_labels"}
        if "samples" in sampler:
            more["uncertainty"] = folder / "images/maps/std"
        mr = truth / "test_mr"
        evaluate(Request(folder / "images", folder / "scores", truth=mr, grid="model", **more))
    methods = json.loads((folder / "scores/metrics.json").read_text())["methods"]
    return {
        name: {
            metric: entry
            for metric, entry in methods[name].items()
            if metric.startswith(KEPT) and not metric.endswith(("_excess", "_ratio_to_real"))
        }
        for name in ("translation", "truth")
    }


def steps(out: Path) -> None:
    """Quality against the number of steps, on the three test heads."""
    found = {}
    for sampler in SAMPLERS:
        for count in STEPS:
            name = f"{sampler}, {count} steps"
            values = scored(out, name, {"name": sampler, "steps": count}, only=True)
            found.setdefault(sampler, {})[count] = values["translation"]
            found["truth"] = values["truth"]
    keep("steps", found)


def uncertainty(out: Path) -> None:
    """Does the deviation of samples know where they err? And what of the lesions?"""
    found = {}
    for words, (sampler, count) in SPREAD.items():
        fields = {"name": sampler, "steps": count, "samples": SAMPLES, "keep": "mean"}
        found[words] = scored(out, f"spread, {words}", fields, only=True)
    keep("uncertainty", found)


def plan_of(out: Path, steps: int, way: dict, batch: int):
    """How `translate` reads and draws volumes in some way, on one device."""
    sys.path.append(str(HERE.parent))
    import setups

    from contourdiff_jax.contours import settings as contour_settings
    from contourdiff_jax.training import run
    from contourdiff_jax.translation import sidecars, volume
    from contourdiff_jax.volumes import intensity

    folder = out / "volumes/run"
    trained = run.load(folder)
    fields = {"steps": steps, "batch": batch, "candidates": 1} | way
    draw, method = setups.drawing(folder, data=1, **fields)
    contours = {"source": contour_settings.preset("default", "ct"), "target": trained.contours}
    ct = intensity.preset("ct")
    settings = sidecars.Settings(ct, trained.preset, trained.grid, contours)
    sees = frozenset(method.conditions)
    return volume.Plan(settings, trained.window, None, method.sampler, sees, draw)


def sources_of(out: Path) -> list:
    """The test heads' CT, read."""
    from contourdiff_jax.data import layouts
    from contourdiff_jax.translation import volume

    plan = plan_of(out, 1, {}, 16)
    scans = layouts.find(out / "heads/test_ct", modality="ct").scans
    return [volume.read(plan, scan) for scan in scans]


def timing(out: Path) -> None:
    """Seconds to draw a head of the three test heads with few steps, the ways in turn."""
    from contourdiff_jax.translation import volume

    sources = sources_of(out)
    steps = SAMPLING["few steps"]
    plans = {}
    for name in COMPARED:  # a batch of SCGD is of volumes, and there are three
        scgd = METHODS[name].get("scgd")
        plans[name] = plan_of(out, steps, METHODS[name], len(sources) if scgd else 16)
    seconds = {name: [] for name in plans}
    for _ in range(1 + REPEATS):  # the first compiles
        for name, plan in plans.items():
            start = time.perf_counter()
            volume.draw(plan, sources)
            seconds[name].append((time.perf_counter() - start) / len(sources))
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    slices = [len(source.contours) for source in sources]
    keep("time", {"steps": steps, "slices": slices, "seconds a volume": medians})


def memory(out: Path) -> None:
    """Peak memory [MiB] of a process that draws a volume, by its slices."""
    found = {}
    for way in (ALONE, "coupling 0.3"):
        for count in (100, 1000):
            child = [sys.executable, __file__, out, f"one:{way}:{count}"]
            printed = subprocess.run(child, check=True, capture_output=True, text=True).stdout
            found.setdefault(way, {})[count] = int(printed.split()[-1])
    keep("memory", found)


def one(out: Path, way: str, count: int) -> None:
    """Draws a head repeated to that many slices, and prints the process' peak memory [MiB]."""
    import dataclasses

    from contourdiff_jax.translation import volume

    source = sources_of(out)[0]
    rows = np.arange(count) % len(source.contours)
    tall = dataclasses.replace(
        source,
        contours=source.contours[rows],
        body=source.body[rows],
        resampling=types.SimpleNamespace(positions=1.0 * np.arange(count)),
    )
    volume.draw(plan_of(out, 1, METHODS[way], 16), [tall])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def figure(out: Path) -> None:
    """Quality and sharpness over the number of steps; a coronal plane of each way."""
    import matplotlib.pyplot as plt

    result = json.loads((HERE / "result.json").read_text())
    found = result["steps"]
    panels = {
        "SSIM in the body": "ssim_mask",
        "MAE in the body": "mae_mask",
        "flicker": "flicker",
        "slice difference / gradient within": "gradient_ratio",
    }
    plot, axes = plt.subplots(1, len(panels), figsize=(13, 3), layout="constrained")
    for axis, (title, metric) in zip(axes, panels.items(), strict=True):
        for sampler in SAMPLERS:
            values = [found[sampler][str(count)][metric]["value"] for count in STEPS]
            axis.semilogx(STEPS, values, marker="o", label=sampler)
        if metric in found["truth"]:
            axis.axhline(found["truth"][metric]["value"], color="0.5", ls=":", label="truth")
        axis.set(title=title, xlabel="steps", xticks=STEPS, xticklabels=STEPS)
        axis.minorticks_off()
    axes[2].legend(frameon=False)
    plot.savefig(HERE / "steps.png", dpi=110)


def command(name: str, *options: str, **flags) -> None:
    named = [f"--{flag}={value}" for flag, value in flags.items()]
    subprocess.run(["contourdiff", name, *options, *named], check=True)


def keep(name: str, found: dict) -> None:
    """Put an entry into result.json, of intervals what the tables show."""
    path = HERE / "result.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    result[name] = _rounded(found)
    path.write_text(json.dumps(result, indent=1) + "\n")


def _rounded(entry):
    if isinstance(entry, dict):
        return {str(key): _rounded(value) for key, value in entry.items()}
    return round(entry, 5) if isinstance(entry, float) else entry


PARTS = {
    "train": train,
    "heads": heads,
    "methods": methods,
    "steps": steps,
    "uncertainty": uncertainty,
    "time": timing,
    "memory": memory,
    "figure": figure,
}

if __name__ == "__main__":
    main()
