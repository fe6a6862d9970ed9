# SPDX-License-Identifier: Apache-2.0
"""Features, FID and KID of several hundred real images, ours and the packages', and their time.

    python measure.py agreement|speed IMAGES

In the environment of `make test-parity`, with CONTOURDIFF_DATA. Weights are random, of the released
shapes. `agreement` takes IMAGES slices of each size and kind in all modes; `speed` times
torch-fidelity's network and ours on the same slices, in turn, on the cores that it may use
(`taskset -c 0` for one). Each adds its part to result.json; `agreement` goes on where it stopped.
"""

import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

CORES = len(os.sched_getaffinity(0))
os.environ["JAX_NUM_CPU_DEVICES"] = str(CORES)  # as the commands have it

import jax
import numpy as np
import torch
from ml_collections import ConfigDict
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "parity"))
import fid_packages

from contourdiff_jax.evaluation import features
from contourdiff_jax.evaluation.metrics import distribution
from contourdiff_jax.interop import inception
from contourdiff_jax.runtime import mesh as meshes

DATA = Path(os.environ["CONTOURDIFF_DATA"])
RUNS = 7
BATCH = 16
SUBSET = 50


def folder(root: Path, size: int, kind: str, count: int) -> Path:
    made = root / f"{kind}{size}"
    made.mkdir()
    for number, image in enumerate(fid_packages.slices(DATA, size, kind, count)):
        Image.fromarray(image).save(made / f"{number:04d}.png")
    return made


def agreement(packages, params, mesh, root: Path, count: int, known: dict):
    """Largest differences, relative for features and FID, over all images of a kind and mode.

    Yields (name, what was found) of those that are not `known`.
    """
    for size in (256, 512):
        for kind in ("grey", "colour"):
            made = folder(root, size, kind, count)
            stack = fid_packages.read(made)
            for name, mode in features.MODES.items():
                if (what := f"{size} px, {kind}, {name}") in known:
                    continue
                theirs = np.float32(packages.features[name](made))
                ours = features.extract([stack], mode, params, mesh, BATCH)
                x, y = ours[::2], ours[1::2]
                a, b = theirs[::2], theirs[1::2]
                their_fid = packages.frechet[name](a, b)
                found = {
                    "features": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
                    "FID, theirs": float(their_fid),
                    "FID": float(abs(distribution.frechet(x, y) / their_fid - 1)),
                }
                if name == "torch-fidelity":
                    kid = packages.torch_fidelity_kid(a, b, SUBSET)
                    found["KID, theirs"] = kid
                    found["KID"] = abs(distribution.kernel(x, y, size=SUBSET) - kid)
                if name == "clean-fid":
                    np.random.seed(distribution.SEED)  # noqa: NPY002
                    kid = packages.clean_fid_kid(b, a)
                    found["KID, theirs"] = kid
                    found["KID"] = abs(distribution.kernel(x, y) - kid)
                yield what, found


def speed(packages, params, mesh, root: Path, count: int, known: dict):
    """Seconds for `count` slices of 256 pixels, from bytes to features, run in turn."""
    made = folder(root, 256, "grey", count)
    stack = fid_packages.read(made)
    colour = np.repeat(stack[..., None], 3, -1)
    tensors = torch.from_numpy(colour.transpose(0, 3, 1, 2).copy())
    mode = features.MODES["torch-fidelity"]
    torch.set_num_threads(CORES)

    def theirs():
        with torch.no_grad():
            return np.concatenate([packages.network(x)[0].numpy() for x in tensors.split(BATCH)])

    def ours():
        return features.extract([stack], mode, params, mesh, BATCH)

    ways, taken = {"torch-fidelity": theirs, "ours": ours}, {"torch-fidelity": [], "ours": []}
    found = [way() for way in ways.values()]  # and what compiles, compiles
    np.testing.assert_allclose(*found, atol=1e-4 * np.abs(found[0]).max())
    for _ in range(RUNS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    yield from {
        "images": count,
        "runs": RUNS,
        "seconds": {
            name: {"median": medians[name], "least": min(seconds), "most": max(seconds)}
            for name, seconds in taken.items()
        },
        "ours / torch-fidelity": medians["ours"] / medians["torch-fidelity"],
        "torch": torch.__version__,
        "jax": jax.__version__,
    }.items()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    part, count = sys.argv[1], int(sys.argv[2])
    name = {
        "agreement": f"agreement, {count} images of each kind",
        "speed": f"speed, cores: {CORES}",
    }[part]
    path = HERE / "result.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    here = result.setdefault(name, {})
    sys.modules.update(fid_packages.stand_in())
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "random.pth"
        fid_packages.random_weights(file)
        params = inception.load(file)[0]
        mesh = meshes.make(ConfigDict({"data": -1, "fsdp": 1}))
        packages = fid_packages.load(file)
        run = {"agreement": agreement, "speed": speed}[part]
        for what, found in run(packages, params, mesh, Path(directory), count, dict(here)):
            here[what] = found
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(what, found, flush=True)
