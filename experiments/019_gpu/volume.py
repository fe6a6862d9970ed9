# SPDX-License-Identifier: Apache-2.0
"""A CT of 150 slices translated by the published network, in 20 steps and in the 2 of a student.

python volume.py [--small] RESULT WORK

From an image in memory to its translation on the same voxels: contours on the host, drawing in
batches of 16, and the way back. Weights are random, which changes no time; a student is the same
network with other weights. `drawing` is the part that the network takes.
"""

import dataclasses
import statistics
import sys
import time

import jax
import nibabel
import numpy as np
import published
import results

sys.path.append(str(results.HERE.parent))
import setups

import contourdiff_jax as cd
from contourdiff_jax import methods
from contourdiff_jax.data.phantoms.heads import phantoms
from contourdiff_jax.training import checkpoint
from contourdiff_jax.translation import sampling
from contourdiff_jax.volumes.grid import Grid

ROUNDS = 3


def run_folder(step: results.Step, size: int):
    """A run of the published network with random weights, for heads on so many pixels."""
    config = published.settings(step.small, 2 if step.small else 16)
    config.grid.size = size
    made, folder = setups.run_of(config, size), step.work / "run"
    made = dataclasses.replace(made, grid=Grid("axial", 256 / size, size))
    folder.mkdir()
    made.save(folder)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda a: rng.normal(0, 0.02, a.shape).astype(a.dtype), methods.networks(made)
    )
    checkpoint.save_averages(folder, weights)
    return folder, config


def head(step: results.Step, size: int, slices: int) -> nibabel.Nifti1Image:
    """A generated CT of so many slices: those of a head, back and forth."""
    few = 4 if step.small else 10
    options = {"test": 1, "train_ct": 0, "slices": few, "thickness": 120 / few}
    phantoms(step.work / "heads", subjects=2, size=size, **options)
    (path,) = (step.work / "heads/test_ct").glob("*.nii.gz")
    image = nibabel.load(path)
    array = np.asarray(image.dataobj)
    around = np.concatenate([array, array[:, :, ::-1]], 2)
    affine = image.affine @ np.diag([1, 1, few / slices, 1])
    return nibabel.Nifti1Image(around[:, :, np.arange(slices) % around.shape[2]], affine)


def main() -> None:
    step = results.arguments(__doc__)
    size, slices = (32, 6) if step.small else (256, 150)
    folder, config = run_folder(step, size)
    image = head(step, size, slices)
    result = {"device": jax.devices()[0].device_kind, "slices": slices, "steps": {}}
    result["pixels"] = size
    draw, drawing = sampling.draw, []

    def timed(*given):
        began = time.perf_counter()
        drawn = draw(*given)
        drawing.append(time.perf_counter() - began)
        return drawn

    sampling.draw = timed
    run = cd.load(folder)
    for steps in (config.sampler.steps, 2 if not step.small else 1):
        taken, drawing[:] = [], []
        for _ in range(ROUNDS + 1):
            began = time.perf_counter()
            run(image, preset="ct", steps=steps)
            taken.append(time.perf_counter() - began)
        result["steps"][str(steps)] = {
            "first_seconds": results.rounded(taken[0]),
            "seconds": results.rounded(statistics.median(taken[1:])),
            "drawing_seconds": results.rounded(statistics.median(drawing[1:])),
        }
        stats = jax.devices()[0].memory_stats() or {}
        result["peak_GiB"] = results.rounded(stats.get("peak_bytes_in_use", 0) / results.GIB)
        results.keep(step.result, result)


if __name__ == "__main__":
    main()
