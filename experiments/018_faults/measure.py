# SPDX-License-Identifier: Apache-2.0
"""What digests, notices and starting again cost, and what a device keeps with 'fsdp'.

    python measure.py OUT

writes OUT/result.json. Needs 8 GB of memory and of disk.
"""

import functools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from contourdiff_jax import config, methods
from contourdiff_jax.data.phantoms.heads import phantoms
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store, verify
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, state

COMMAND = [sys.executable, "-m", "contourdiff_jax"]
out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)


def published() -> state.TrainState:
    """Shapes of the state of the published network."""
    root = Path(__file__).parents[2]
    sys.path += [str(root / "configs"), str(root / "experiments")]
    import contourdiff_2d
    import setups

    mesh = meshes.make(config.default().mesh)
    method = methods.build(setups.run_of(contourdiff_2d.get_config(), 256), mesh=mesh)
    return jax.eval_shape(functools.partial(state.init, method.players), jax.random.key(0))


def kept(whole: state.TrainState, devices: int) -> int:
    """Bytes of the state on each of some devices that 'fsdp' splits it over."""
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.sharding.AbstractMesh((1, devices), meshes.AXES, axis_types=axes)
    places = jax.tree.leaves(meshes.shardings(mesh, whole))
    leaves = zip(jax.tree.leaves(whole), places, strict=True)
    return sum(math.prod(at.shard_shape(s.shape)) * s.dtype.itemsize for s, at in leaves)


def timed(action) -> float:
    began = time.perf_counter()
    action()
    return round(time.perf_counter() - began, 2)


def digests(whole: state.TrainState) -> dict:
    """Seconds to save and to restore the published network's state, medians of three."""
    mesh = meshes.make(config.default().mesh)
    here = meshes.replicated(mesh)
    like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), whole)
    generator = np.random.default_rng(0)

    def drawn(s):
        values = generator.integers(0, 2**23, s.shape).astype(s.dtype)
        return jax.device_put(values, here)

    current = jax.tree.map(drawn, like)
    found = {"bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(current))}
    rounds = []
    for number in range(3):
        run = out / "published"
        shutil.rmtree(run, ignore_errors=True)
        checkpoints = checkpoint.manager(run, 2)
        current = current._replace(step=jax.device_put(np.int32(number + 1), here))

        def finish(checkpoints=checkpoints):
            checkpoint.finish(checkpoints)

        seconds = {
            "until training goes on": timed(
                functools.partial(checkpoint.save, checkpoints, current)
            ),
            "until it is whole": timed(finish),
        }
        step = run / "checkpoints" / str(number + 1)
        seconds["of that, digests"] = timed(
            lambda step=step: [
                checkpoint._digests(item) for item in step.iterdir() if item.is_dir()
            ]
        )
        seconds["to verify and restore"] = timed(
            functools.partial(checkpoint.restore, checkpoints, run, like)
        )
        checkpoints.close()
        rounds.append(seconds)
    shutil.rmtree(out / "published")
    return found | {name: float(np.median([r[name] for r in rounds])) for name in rounds[0]}


def starts(name: str, *arguments, fresh=()) -> dict:
    """Wall and processor seconds of a command, the first time and the second."""
    environment = os.environ | {"XDG_CACHE_HOME": str(out / "caches" / name)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    found = {}
    for which in ("first", "second"):
        for folder in fresh:
            shutil.rmtree(folder, ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall = timed(
            lambda: subprocess.run([*COMMAND, name, *arguments], env=environment, check=True)
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = sum(after[:2]) - sum(before[:2])
        found[which] = {"seconds": wall, "processor seconds": round(processor, 1)}
    return found


def notice(store: Path) -> dict:
    """Seconds from SIGTERM to the end of a training that says how long its steps are."""
    run = out / "noticed"
    shutil.rmtree(run, ignore_errors=True)
    seconds = []
    for _ in range(5):
        size = (run / "stats.jsonl").stat().st_size if run.exists() else 0
        argv = [*COMMAND, "train", f"--store={store}", f"--workdir={run}", "--config.train.log=20"]
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
            while not run.exists() or not (run / "stats.jsonl").exists():
                time.sleep(0.1)
            while (run / "stats.jsonl").stat().st_size <= size:
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            seconds.append(timed(process.wait))
        assert process.returncode == 1
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return {"step": round(4 / lines[-1]["images_per_second"], 2), "from notice to end": seconds}


data, store = out / "data", out / "store"
if not store.exists():
    phantoms(data, subjects=12, test=2, train_ct=2, size=96, slices=64)
    prepare(data / "train_mr", store, "mr", spacing=1.6, size=128)
opened = open_store(store)
size = sum((store / name).stat().st_size for name in opened.dataset["sha256"])
whole = published()
result = {
    "bytes on each device": {n: kept(whole, n) for n in (1, 2, 4, 8)},
    "store": {"bytes": size, "seconds to verify": timed(lambda: verify(opened))},
    "checkpoint": digests(whole),
    "notice": notice(store),
}
few = [f"--config.train.{name}={value}" for name, value in (("images", 40), ("log", 20))]
run, translated, quick = out / "run", out / "translated", out / "quickstart"
result["starts"] = {
    "train": starts("train", f"--store={store}", f"--workdir={run}", *few, fresh=[run]),
    "translate": starts(
        "translate",
        f"--run={run}",
        f"--source={sorted((data / 'test_ct').iterdir())[0]}",
        "--preset=ct",
        "--steps=1",  # to see the start, not the sampling
        f"--out={translated}",
        fresh=[translated],
    ),
    "quickstart": starts("quickstart", f"--workdir={quick}", "--minutes=0.05", fresh=[quick]),
}
(out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
