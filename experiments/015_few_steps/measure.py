# SPDX-License-Identifier: Apache-2.0
"""Few steps: networks trained for them, and networks taught them, beside one that learnt all.

    CONTOURDIFF_DATA=DIR python measure.py OUT [--time]

The heads of fold 0 of 001_heads, rendered into OUT. What is done is kept; result.json and
figure.png are written beside this file. --time, once all is done and alone on the machine, adds the
seconds that a head takes, and the figure shows the scores over them.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
HEADS = HERE.parent / "001_heads"
IMAGES = 3_000
LESSONS = 600  # images of a pupil
TEACHING = 8  # steps of the teacher
STEPS = (1, 2, 4, 8)
REPEATS = 3
ALL = "all timesteps"
# name: (fields of the configuration, steps it is asked for)
NETWORKS = {
    ALL: ({}, STEPS),
    "trained for 2 steps": ({"timesteps": "sampler", "steps": 2}, (2,)),
    "trained for 4 steps": ({"timesteps": "sampler", "steps": 4}, (4,)),
    "trained for 2 steps, equally often": (
        {"timesteps": "sampler", "steps": 2, "time_exponent": 1.0},
        (2,),
    ),
    "taught 1 step": ({"steps": 1, "substeps": 8}, (1,)),
    "taught 2 steps": ({"steps": 2, "substeps": 4}, (2,)),
    "taught 4 steps": ({"steps": 4, "substeps": 2}, (4,)),
}
METRICS = ("ssim_mask", "mae_mask", "contour_f1")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--time", action="store_true")
    given = parser.parse_args()
    out, path = given.out, HERE / "result.json"
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(os.sched_getaffinity(0))))
    if given.time:
        result = json.loads(path.read_text()) | {"seconds a head": timed(out)}
    else:
        data(out)
        result = {"images": IMAGES, "images of a pupil": LESSONS, "networks": {}}
        for name, (fields, counts) in NETWORKS.items():
            run = trained(out, name, fields)
            for steps in counts:
                result["networks"].setdefault(name, {})[steps] = scored(out, run, steps)
    path.write_text(json.dumps(result, indent=1) + "\n")
    figure(json.loads(path.read_text()), HERE / "figure.png")


def data(out: Path) -> None:
    from contourdiff_jax.data.prepare import prepare

    heads = out / "heads"
    if not heads.exists():
        labels = Path(os.environ["CONTOURDIFF_DATA"]) / "nifti/synthseg_labels"
        options = [f"--labels={labels}", f"--out={heads}", "--fold=0", "--folds=4"]
        subprocess.run([sys.executable, HEADS / "render_heads.py", *options], check=True)
    if not (out / "store").exists():
        prepare(heads / "train_mr", out / "store", "mr", spacing=2.4, size=96, validation=0)


def trained(out: Path, name: str, fields: dict) -> Path:
    """The run of a network: as in 001_heads, but for fewer images and what it is about."""
    from contourdiff_jax.methods import train

    spec = importlib.util.spec_from_file_location("heads", HERE.parents[1] / "configs/heads.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.train.update(images=IMAGES, sample=0, checkpoint=1_000)
    config.diffusion.timesteps = fields.get("timesteps", "all")
    config.diffusion.time_exponent = fields.get("time_exponent", config.diffusion.time_exponent)
    config.sampler.steps = fields.get("steps", TEACHING)
    config.distillation.substeps = fields.get("substeps", 0)
    teacher = None
    if config.distillation.substeps:
        config.method = "distilled"
        teacher = out / ALL.replace(" ", "_")
        config.train.update(images=LESSONS, learning_rate=3e-4)
    run = out / name.replace(" ", "_")
    if not train(config, out / "store", run, teacher=teacher):
        raise SystemExit(f"{run}: training was stopped; the same command goes on with it")
    return run


def scored(out: Path, run: Path, steps: int) -> dict:
    """Scores of the test heads' translations with so many steps, and what a volume takes."""
    from contourdiff_jax.evaluation.folder import Request, evaluate

    place = run.with_name(f"{run.name}.{steps}")
    heads = out / "heads"
    translated, scores = place / "translated", place / "scores"
    if not scores.exists():
        translate(run, heads / "test_ct", translated, steps)
        truths = {"truth": heads / "test_mr", "source": heads / "test_ct"}
        evaluate(Request(translated, scores, **truths, grid="model"))
    methods = json.loads((scores / "metrics.json").read_text())["methods"]
    entry = {name: methods["translation"][name] for name in METRICS}
    mine, real = (gradient(methods[name]) for name in ("translation", "truth"))
    return entry | {"gradient_over_truth": mine / real}


def translate(run: Path, source: Path, out: Path, steps: int):
    from contourdiff_jax.translation import folder

    return folder.translate(folder.Request(run, source, out, "ct", sampler={"steps": steps}))


def gradient(method: dict) -> float:
    """Mean difference of neighbouring pixels within slices, of which there is a ratio only."""
    return method["slice_difference"]["value"] / method["gradient_ratio"]["value"]


def timed(out: Path) -> dict:
    """{steps: seconds a head takes, contours and files included}; the first of each is not counted.

    Medians, the numbers of steps in turn.
    """
    seconds = {steps: [] for steps in STEPS}
    for _ in range(REPEATS):
        for steps in STEPS:
            with tempfile.TemporaryDirectory() as place:
                run = out / ALL.replace(" ", "_")
                result = translate(run, out / "heads/test_ct", Path(place), steps)
                for path in result.done[1:]:
                    sidecar = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())
                    seconds[steps].append(sidecar["seconds"])
    return {steps: statistics.median(them) for steps, them in seconds.items()}


def figure(result: dict, path: Path) -> None:
    """Each score over the number of steps, or over the seconds that these take."""
    import matplotlib.pyplot as plt

    panels = {
        "SSIM in the body": lambda e: e["ssim_mask"]["value"],
        "MAE in the body": lambda e: e["mae_mask"]["value"],
        "contour F1": lambda e: e["contour_f1"]["value"],
        "gradient, truth's = 1": lambda e: e["gradient_over_truth"],
    }
    seconds = result.get("seconds a head")
    ticks = [seconds[str(steps)] if seconds else steps for steps in STEPS]
    places = dict(zip(map(str, STEPS), ticks, strict=True))
    labels = [f"{place:.2g}" for place in ticks]
    along = f"seconds a head, in {', '.join(map(str, STEPS))} steps" if seconds else "steps"
    plot, axes = plt.subplots(1, len(panels), figsize=(13, 3), layout="constrained")
    groups = {"all timesteps": "o-", "trained for": "s", "taught": "^"}
    for axis, (title, value) in zip(axes, panels.items(), strict=True):
        for group, mark in groups.items():
            points = [
                (places[steps], value(entry))
                for name, entries in result["networks"].items()
                if name.startswith(group)
                for steps, entry in entries.items()
            ]
            axis.semilogx(*zip(*sorted(points), strict=True), mark, label=group, base=2)
        axis.set(title=title, xlabel=along, xticks=ticks, xticklabels=labels)
        axis.minorticks_off()
    axes[0].legend(frameon=False)
    plot.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
