# SPDX-License-Identifier: Apache-2.0
"""What training examples cost beside the step that learns from them.

    python measure.py OUT

Generated heads at 64 and 128 px; the default network, batches of 4. Timed alone, in turn: making a
batch on the device (slices gathered from the resident store, augmented, contours taken), the train
step on it, and, for one batch, a pipeline of PIL as the original has it: image and contour read
from PNG files, padded by 32, cropped, flipped, scaled and turned.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
from PIL import Image, ImageOps

from contourdiff_jax import config, methods
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.data.phantoms.heads import phantoms
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store
from contourdiff_jax.training import loop, run

ROUNDS = 15
SIZES = (64, 128)
PAD = 32  # px, the original's padding before its random crop


def measure(out: Path, size: int) -> dict:
    """Milliseconds for a batch, medians of ROUNDS."""
    folder = out / str(size)
    spacing = 3.6 * 64 / size
    if not (folder / "store").exists():
        phantoms(folder / "data", subjects=6, test=1, train_ct=1, size=size, spacing=spacing)
        prepare(folder / "data/train_mr", folder / "store", "mr", spacing=spacing, size=size)
    store, settings = open_store(folder / "store"), config.default()
    if not (folder / "pictures").exists():
        write_pictures(store, folder / "pictures")

    method = methods.build(run.begin(settings, store), store=store)
    compiled = loop.compiled(method, settings.train)
    state = compiled.init(jax.random.key(0))
    examples = method.feed.training(0, ROUNDS + 2)
    rng = np.random.default_rng(0)
    seconds = {"examples": [], "step": [], "pil": []}
    for _ in range(ROUNDS + 2):  # of which the first two are not counted: they compile
        began = time.perf_counter()
        example = jax.block_until_ready(next(examples))
        made = time.perf_counter()
        state, _ = jax.block_until_ready(compiled.step(state, example, method.fixed))
        learnt = time.perf_counter()
        for _ in range(settings.train.batch):
            read_as_the_original(folder / "pictures", size, rng)
        seconds["examples"].append(made - began)
        seconds["step"].append(learnt - made)
        seconds["pil"].append(time.perf_counter() - learnt)
    times = {name: 1e3 * statistics.median(values[2:]) for name, values in seconds.items()}
    return {
        "size": size,
        "batch": settings.train.batch,
        "milliseconds": {name: round(value, 2) for name, value in times.items()},
        "share_of_step": round(times["examples"] / times["step"], 4),
        "pil_share_of_step": round(times["pil"] / times["step"], 4),
    }


def write_pictures(store, folder: Path) -> None:
    """Slices and their contours as PNG, which is what the original trains on."""
    (folder / "images").mkdir(parents=True)
    (folder / "contours").mkdir()
    rows = store.rows("train")
    edges = store.contours_of(rows, contour_settings.preset("default", "mr"))
    for i, (values, edge) in enumerate(zip(store.values(rows), edges, strict=True)):
        cv2.imwrite(str(folder / f"images/{i:04}.png"), np.uint8(255 * values))
        cv2.imwrite(str(folder / f"contours/{i:04}.png"), 255 * edge)


def read_as_the_original(folder: Path, size: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """One image and its contours, both moved alike: a crop of the padded picture, a flip and, nine
    times in ten, other scales along rows and columns and an affine map."""
    names = sorted(path.name for path in (folder / "images").iterdir())
    name = names[rng.integers(len(names))]
    left, top = rng.integers(0, 2 * PAD + 1, 2).tolist()
    flipped, moved = rng.random() < 0.5, rng.random() < 0.9
    scales, angle = rng.uniform(0.8, 1.2, 2), rng.uniform(-5, 5)
    shift = rng.uniform(-0.1, 0.1, 2) * size
    found = []
    for kind in ("images", "contours"):
        picture = ImageOps.expand(Image.open(folder / kind / name).convert("L"), PAD)
        picture = picture.crop((left, top, left + size, top + size))
        if flipped:
            picture = ImageOps.mirror(picture)
        if moved:
            wide, high = (round(size * scale) for scale in scales)
            picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
            picture = ImageOps.pad(picture, (size, size))
            picture = picture.rotate(angle, Image.Resampling.BILINEAR, translate=tuple(shift))
        found.append(np.asarray(picture, np.float32) / 127.5 - 1)
    return found[0], np.where(found[1] > 50 / 127.5 - 1, 1.0, -1.0)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    result = {"rounds": ROUNDS, "sizes": [measure(out, size) for size in SIZES]}
    (Path(__file__).parent / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
