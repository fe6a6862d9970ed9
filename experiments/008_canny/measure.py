# SPDX-License-Identifier: Apache-2.0
"""How long blur and Canny edges take in JAX and in OpenCV.

    python measure.py OUT

16 slices of generated heads, on grids of 64 to 256 px; settings as the default of MR. OpenCV takes
them one by one on one thread, with and without the vendor's code of its build; JAX takes
them as one batch, on all cores and, in a process of its own, on one.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 100
SIZES = (64, 96, 128, 256)
BATCH = 16


def slices(heads: Path, size: int):
    """[BATCH, size, size] uint8, from the middle halves of all heads."""
    import numpy as np

    from contourdiff_jax.data import layouts
    from contourdiff_jax.volumes import intensity
    from contourdiff_jax.volumes.grid import Grid

    preset = intensity.preset("mr")
    stacks = []
    for scan in layouts.find(heads / "train_mr").scans:
        volume = scan.read()
        values = preset.values(volume.array, preset.window_of(volume))
        grid = Grid(axis="axial", spacing=0.9 * 256 / size, size=size)
        stacks.append(grid.fit(volume.array.shape, volume.affine).slices(values, preset.air))
    middle = np.concatenate([stack[len(stack) // 4 : -len(stack) // 4] for stack in stacks])
    chosen = middle[np.linspace(0, len(middle) - 1, BATCH).astype(int)]
    return np.uint8(np.round(255 * np.clip(chosen, 0, 1)))


def run(heads: Path, cores: int) -> None:
    """Milliseconds of each way, run in turn, by size."""
    os.sched_setaffinity(0, range(cores))  # before XLA makes its threads
    os.environ["JAX_PLATFORMS"] = "cpu"
    import cv2
    import jax
    import numpy as np

    from contourdiff_jax.contours import settings as contour_settings
    from contourdiff_jax.contours.canny import canny, gaussian_blur

    low, high, blur = contour_settings.MR.low, contour_settings.MR.high, contour_settings.MR.blur
    cv2.setNumThreads(1)
    ours = jax.jit(lambda images: canny(gaussian_blur(images, blur), low, high))
    result = {}
    for size in SIZES:
        images = slices(heads, size)
        device = jax.device_put(images)

        def opencv(vendor):
            cv2.ipp.setUseIPP(vendor)
            return [cv2.Canny(cv2.GaussianBlur(i, (blur, blur), 0), low, high) for i in images]

        ways = {
            "jax": lambda: ours(device).block_until_ready(),
            "opencv": lambda: opencv(False),
            "opencv, vendor's code": lambda: opencv(True),
        }
        edges = [np.asarray(way()) for way in ways.values()]
        if not all(np.array_equal(found, edges[0]) for found in edges):
            raise RuntimeError("the ways differ in their edges")
        taken = {name: [] for name in ways}
        for _ in range(RUNS):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                taken[name].append(1000 * (time.perf_counter() - began))
        result[f"{size} px"] = {
            name: {"median": statistics.median(ms), "least": min(ms), "most": max(ms)}
            for name, ms in taken.items()
        }
    print(json.dumps(result))


def measure(out: Path) -> dict:
    from contourdiff_jax.data.phantoms.heads import phantoms

    heads = out / "heads"
    if not heads.exists():
        phantoms(heads, subjects=5, test=1, train_ct=0, size=256, slices=24, thickness=6)
    result = {"images": BATCH, "runs": RUNS, "unit": "ms for all images"}
    for cores in (os.cpu_count(), 1):
        command = [sys.executable, __file__, heads, str(cores)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured = json.loads(printed.stdout)
        for taken in measured.values():
            for other in ("opencv", "opencv, vendor's code"):
                ratio = taken["jax"]["median"] / taken[other]["median"]
                taken[f"jax / {other}"] = ratio
        result[f"cores: {cores}"] = measured
    return result


if __name__ == "__main__":
    if len(sys.argv) == 2:
        text = json.dumps(measure(Path(sys.argv[1])), indent=1)
        Path(__file__).with_name("result.json").write_text(text + "\n")
        print(text)
    else:
        run(Path(sys.argv[1]), int(sys.argv[2]))
