# SPDX-License-Identifier: Apache-2.0
"""Training beside the original's own loop, from pictures on disk to the updated network.

    git clone https://github.com/mazurowski-lab/ContourDiff OUT/original
    git -C OUT/original checkout 159b469
    python original.py OUT

in the environment of `make test-parity`, with torchvision (the version that belongs to its torch)
and pandas installed beside. 159b469 is the last commit whose training starts. Its train.py runs as
it is, with its own defaults; only the clock is ours, in the step of its learning rate,
and it is stopped before it samples. Ours is `methods.images_per_second`.
Both see generated heads, the original as PNG files of slices and contours. Each turn is a process
of its own; turns alternate. Adds its entry to result.json.
"""

import csv
import itertools
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path

import measure

HERE = Path(__file__).parent
ROUNDS = 3
WARM = 2  # steps that are not counted
SIDES = ("contourdiff_jax", "original")


def data(out: Path, size: int) -> None:
    """Generated heads: OUT/store, and OUT/pictures with images, contours and meta.csv."""
    import cv2
    import numpy as np

    from contourdiff_jax.contours import settings as contour_settings
    from contourdiff_jax.data.phantoms.heads import phantoms
    from contourdiff_jax.data.prepare import prepare
    from contourdiff_jax.data.store import open_store

    spacing = 230 / size
    phantoms(out / "heads", subjects=6, test=1, train_ct=1, size=size, spacing=spacing)
    prepare(out / "heads/train_mr", out / "store", "mr", spacing=spacing, size=size)
    store = open_store(out / "store")
    rows = store.rows("train")
    drawn = {
        "images": np.uint8(np.round(255 * np.asarray(store.values(rows)))),
        "contours": np.uint8(
            255 * store.contours_of(rows, contour_settings.preset("published", "mr"))
        ),
    }
    for kind, pictures in drawn.items():
        (out / "pictures" / kind).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            cv2.imwrite(str(out / f"pictures/{kind}/{i:04}.png"), picture)
    with (out / "pictures/meta.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["", "image_name", "contour_name"])
        table.writerows((i, f"{i:04}.png", f"{i:04}.png") for i in range(len(rows)))


def ours(out: Path, size: int, batch: int, steps: int) -> float:
    os.environ["JAX_NUM_CPU_DEVICES"] = str(len(os.sched_getaffinity(0)))

    from contourdiff_jax import methods

    config = measure.settings("published")
    config.contours.preset = "published"
    config.train.batch = batch
    return methods.images_per_second(config, out / "store", steps=steps)


def original(out: Path, size: int, batch: int, steps: int) -> float:
    import torch

    if not torch.cuda.is_available():
        # torchvision's operators are compiled for a torch with CUDA, and registered when it is
        # imported; none of them is used.
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    from diffusers import optimization

    ends = []

    class Enough(Exception):
        pass

    def timed(**given):
        schedule = scheduled(**given)
        step = schedule.step

        def counted():
            step()
            ends.append(time.perf_counter())  # the loss of the step before was read: none is ahead
            if len(ends) > WARM + steps:
                raise Enough

        schedule.step = counted
        return schedule

    scheduled, optimization.get_cosine_schedule_with_warmup = (
        optimization.get_cosine_schedule_with_warmup,
        timed,
    )
    given = {"data_directory": out / "pictures", "output_dir": out / "run", "img_size": size}
    given |= {"train_batch_size": batch, "input_domain": "CT", "output_domain": "MR"}
    for domain in ("input_domain", "output_domain"):
        given |= {f"{domain}_img_folder": "images", f"{domain}_contour_folder": "contours"}
        given |= {f"{domain}_meta_path": "meta.csv"}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    sys.argv = ["train.py", "--contour_guided", *words]
    sys.path.insert(0, str(out / "original"))
    try:
        runpy.run_path(str(out / "original/train.py"), run_name="__main__")
    except Enough:
        taken = statistics.median(b - a for a, b in itertools.pairwise(ends[WARM:]))
        return batch / taken
    raise SystemExit("the original ended before it was timed")


def turn(side: str, out: Path, numbers: list[int]) -> float:
    """Images a second of a process that trains so."""
    words = [sys.executable, __file__, "--turn", side, out, *numbers]
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed")
    return float(done.stdout.split()[-1])


def main(out: Path) -> None:
    size, batch, steps = (256, 4, 50) if measure.gpu() else (128, 2, 6)
    if not (out / "pictures/meta.csv").exists():
        data(out, size)
    speeds = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side, found in speeds.items():
            found.append(turn(side, out, [size, batch, steps]))
            print(side, f"{found[-1]:.3f} images/s", flush=True)
    path = HERE / "result.json"
    result = json.loads(path.read_text())
    here = result.setdefault(measure.machine(), {})
    ratios = [a / b for a, b in zip(*(speeds[side] for side in SIDES), strict=True)]
    here["original"] = {"pixels": size, "batch": batch, "rounds": ROUNDS, "steps": steps} | {
        "images_per_second": {side: round(statistics.median(v), 3) for side, v in speeds.items()},
        "ours_is_faster_by": [round(value, 3) for value in sorted(ratios)],
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--turn":
        side, out, *numbers = sys.argv[2:]
        run = ours if side == SIDES[0] else original
        print(run(Path(out), *map(int, numbers)))
    else:
        main(Path(sys.argv[1]).resolve())
