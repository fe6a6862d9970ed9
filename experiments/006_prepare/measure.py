# SPDX-License-Identifier: Apache-2.0
"""How fast `prepare` is beside reading and resampling alone, and how much memory it takes.

    python measure.py OUT

Generated heads as .nii.gz, 256 x 256 pixels of 0.9 mm, 50 slices each: 10 volumes, and 40, which
are 2,000 slices (each head four times). Every measurement runs in a process of its own, the two
kinds in turn.
"""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from contourdiff_jax.data import layouts
from contourdiff_jax.data.phantoms.heads import phantoms
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid

GRID = {"axis": "axial", "spacing": 0.9, "size": 256}
RUNS = 5
COUNTS = (10, 40)  # volumes


def alone(source: Path) -> None:
    """Reading, windowing and resampling, as a loop would do it; nothing is kept."""
    preset = intensity.preset("mr")
    for scan in layouts.find(source).scans:
        volume = scan.read()
        values = preset.values(volume.array, preset.window_of(volume))
        Grid(**GRID).fit(volume.array.shape, volume.affine).slices(values, preset.air)


def run(what: str, source: Path, store: Path) -> None:
    """One measurement: seconds, and the most memory [MiB] that the process held."""
    began = time.perf_counter()
    if what == "alone":
        alone(source)
    else:
        prepare(source, store, "mr", **GRID, overwrite=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_MiB": peak}))


def measure(out: Path) -> dict:
    heads = out / "heads"
    if not heads.exists():
        phantoms(
            heads, subjects=COUNTS[0] + 1, test=1, train_ct=0, size=256, slices=50, thickness=3
        )
    files = sorted((heads / "train_mr").iterdir())
    result = {"grid": GRID, "runs": RUNS}
    for count in COUNTS:
        source = out / f"volumes{count}"
        source.mkdir(exist_ok=True)
        for number in range(count):
            path = source / f"head{number:02d}.nii.gz"
            if not path.exists():
                shutil.copy(files[number % len(files)], path)
        taken = {"alone": [], "prepare": []}
        for _ in range(RUNS if count == COUNTS[-1] else 1):
            for what, runs in taken.items():
                command = [sys.executable, __file__, what, source, out / "store"]
                printed = subprocess.run(command, check=True, capture_output=True, text=True)
                runs.append(json.loads(printed.stdout))
        seconds = {
            what: statistics.median(r["seconds"] for r in runs) for what, runs in taken.items()
        }
        result[f"{50 * count} slices"] = taken | {
            "median seconds": seconds,
            "speed of prepare, by that of reading and resampling alone": seconds["alone"]
            / seconds["prepare"],
            "peak MiB of prepare": max(r["peak_MiB"] for r in taken["prepare"]),
        }
    return result


if __name__ == "__main__":
    if len(sys.argv) == 2:
        text = json.dumps(measure(Path(sys.argv[1])), indent=1)
        Path(__file__).with_name("result.json").write_text(text + "\n")
        print(text)
    else:
        run(sys.argv[1], *map(Path, sys.argv[2:]))
