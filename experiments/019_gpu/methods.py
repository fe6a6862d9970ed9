# SPDX-License-Identifier: Apache-2.0
"""Every method: a training step of its configuration's batch and a slice drawn, seconds and memory.

python methods.py [--small] RESULT WORK

On generated heads of 256 px; networks of volumes learn from the patches that their configurations
say, and draw a volume as deep. What must have learnt before, an autoencoder or the base of a
ControlNet, has random weights. All compile at once, each in a process of its own, and are then
timed one by one. Those of Mediffuse begin with Stable Diffusion, which is not generated.
"""

import os
import runpy
import sys
import time
from pathlib import Path

import results
import turns

PAIRED, UNPAIRED = ("pix2pix", "pix2pix_small"), ("cyclegan", "cyclegan_small")
LATENT, BRANCHED, CODEC = "latent_small", "controlnet_small", "autoencoder_small"
NAMES = (
    *("heads", "regression", "patients", "pix2pix", "cyclegan", CODEC, LATENT, BRANCHED),
    *("enhanced_3d", "volumes_small", "enhanced_3d_small", "pix2pix_small", "cyclegan_small"),
)
FEW = ("regression", BRANCHED, "volumes_small")  # of each kind one
ELSEWHERE = {
    "contourdiff_2d": "see published.json",
    "mediffuse_controlnet": "begins with Stable Diffusion",
    "mediffuse_instruct": "begins with Stable Diffusion",
}
ROUNDS = 4


def settings(name: str, small: bool):
    """A configuration, on whatever grid the data have."""
    config = runpy.run_path(str(results.CONFIGS / f"{name}.py"))["get_config"]()
    config.grid.update(axis="", spacing=0.0, size=0)
    if small:
        config.model.update(channels=(8, 16), groups=4, head_width=8, pool=(), planar=0)
        config.model.update(attention=(False, config.model.dims == 2), dtype="float32")
        config.autoencoder.update(channels=(4, 8), groups=2, latents=2)
        config.controlnet.update(channels=(4, 8))
        config.adversarial.update(width=4, levels=3, blocks=1, critic_width=4, critic_layers=1)
        config.volume.update(depth=8, side=0)
        config.train.batch = 2
    config.train.update(images=1_000_000, sample=0)
    return config


# --------------------------------------------------------------------------------------------------
# Data, and what has learnt before
# --------------------------------------------------------------------------------------------------


def generate(step: results.Step) -> None:
    """Stores of MR, of CT and of pairs; heads are rendered with larger pixels, which is faster."""
    from contourdiff_jax.data.phantoms.heads import phantoms
    from contourdiff_jax.data.prepare import prepare
    from contourdiff_jax.data.sources import Pairs

    size, slices = (32, 8) if step.small else (256, 64)
    heads = step.work / "heads"
    options = {"test": 1, "train_ct": 1, "slices": slices, "thickness": 120 / slices}
    phantoms(heads, subjects=3, size=min(size, 96), **options)
    grid = {"spacing": 230 / size, "size": size, "validation": 0}
    prepare(heads / "train_mr", step.work / "mr", "mr", **grid)
    prepare(heads / "train_ct", step.work / "ct", "ct", **grid)
    pairs = Pairs(heads / "test_ct", "ct")
    prepare(heads / "test_mr", step.work / "pairs", "mr", pairs=pairs, **grid)


def codec(work, store, small: bool):
    """The run of an autoencoder that has learnt nothing."""
    import jax

    from contourdiff_jax.methods.autoencoder import AUTOENCODER
    from contourdiff_jax.models import autoencoder
    from contourdiff_jax.training import checkpoint, run

    config, folder = settings(CODEC, small), work / "codec"
    folder.mkdir(parents=True)
    run.begin(config, store).save(folder)
    init = jax.jit(autoencoder.build(config.autoencoder).init)
    checkpoint.save_averages(folder, {AUTOENCODER: init(jax.random.key(0))})
    return folder


def base(work, store, small: bool):
    """The run of diffusion of latents that sees nothing, and has learnt nothing."""
    import jax

    from contourdiff_jax import methods
    from contourdiff_jax.methods import codecs, parts
    from contourdiff_jax.training import checkpoint, run

    config, folder, place = settings(LATENT, small), work / "base", codec(work, store, small)
    config.model.conditions = ()
    folder.mkdir()
    kept = parts.keep({run.CODEC: place}, folder)
    ours = run.begin(config, store, codec=codecs.chosen(place, store), parts=kept)
    ours.save(folder)
    init = jax.jit(methods.build(ours).players[parts.NETWORK].init)
    checkpoint.save_averages(folder, {parts.NETWORK: init(jax.random.key(0))})
    return folder


# --------------------------------------------------------------------------------------------------
# One method
# --------------------------------------------------------------------------------------------------


def built(name: str, small: bool, stores, work):
    """(method, configuration) of that name."""
    from contourdiff_jax import methods
    from contourdiff_jax.data.store import open_store
    from contourdiff_jax.methods import origins
    from contourdiff_jax.training import run

    config, how = settings(name, small), {}
    store = open_store(stores / ("pairs" if name in PAIRED else "mr"))
    if name in UNPAIRED:
        how["source"] = open_store(stores / "ct")
    given = origins.Origins(
        codec=codec(work, store, small) if name == LATENT else None,
        base=base(work, store, small) if name == BRANCHED else None,
    )
    if (theirs := origins.of(config, None, given)) is not None:
        config = origins.adopted(config, theirs)
    fields = origins.parts(config, None, given, store)
    ours = run.begin(config, store, source=how.get("source"), **fields)
    return methods.build(ours, store=store, **how), config


def one(name: str, small: bool, stores, work) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    sys.path.append(str(results.HERE.parent))
    import setups

    from contourdiff_jax.contracts import CONDITIONS
    from contourdiff_jax.diffusion import noise
    from contourdiff_jax.training import loop

    made = {}

    def prepare(_) -> dict:
        began = time.perf_counter()
        method, config = built(name, small, stores, work)
        program = loop.compiled(method, config.train)
        state = program.init(jax.random.key(0))
        examples = method.feed.training(0, 1_000)
        made.update(method=method, program=program, state=state, examples=examples)
        step(1)
        prepared = time.perf_counter()
        # Not those of the state, which the next step gives up.
        averages = jax.tree.map(jnp.copy, made["state"].averages)
        translator = method.translator(averages, method.fixed)
        _, *space, _ = method.feed.example["x"].shape
        count = space[0] if translator.dims == 3 else 1
        side = max(space[-1], translator.unit)
        seen = {
            condition: np.zeros((count, side, side, CONDITIONS[condition].channels + 1), np.float32)
            for condition in translator.sees
        }
        drawn = setups.drawn_by(method, averages)
        made["draw"] = lambda: drawn(seen, noise.independent(0, name, count))
        draw(1)
        planned = program.step.memory_analysis()
        total = planned.argument_size_in_bytes + planned.temp_size_in_bytes
        return {
            "batch": config.train.batch,
            "of": " x ".join(map(str, space)),
            "drawn": count,
            "compile_train_seconds": results.rounded(prepared - began),
            "compile_draw_seconds": results.rounded(time.perf_counter() - prepared),
            "program_GiB": results.rounded(total / results.GIB),
        }

    def step(count: int) -> None:
        for _ in range(count):
            made["state"], metrics = made["program"].step(
                made["state"], next(made["examples"]), made["method"].fixed
            )
        jax.block_until_ready((made["state"], metrics))

    def draw(count: int) -> None:
        for _ in range(count):
            made["draw"]()

    return {"prepare": prepare, "step": step, "draw": draw}


def main() -> None:
    step = results.arguments(__doc__)
    generate(step)
    names, at_once = (FEW, 1) if step.small else (NAMES, len(NAMES))
    result, trouble = {"methods": dict(ELSEWHERE)}, []
    results.keep(step.result, result)
    for first in range(0, len(names), at_once):
        sides = {}
        for name in names[first : first + at_once]:
            given = (name, str(int(step.small)), str(step.work), str(step.work / name))
            sides[name] = turns.Side(__file__, *given)
            sides[name].begin("prepare")
        for name, side in sides.items():
            try:
                result["methods"][name] = side.answer()
            except RuntimeError as error:
                result["methods"][name] = {"failed": str(error)}
                trouble.append(f"{name}: {error}")
            results.keep(step.result, result)
        for name, side in sides.items():
            found = result["methods"][name]
            if "failed" not in found:
                for what in ("step", "draw"):
                    took = results.seconds(lambda side=side, what=what: side.ask(what), ROUNDS)
                    found[f"{what}_seconds"] = results.rounded(took)
                results.keep(step.result, result)
            side.close()
    if trouble:
        raise SystemExit("\n".join(trouble))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
        turns.serve(one(sys.argv[2], sys.argv[3] == "1", Path(sys.argv[4]), Path(sys.argv[5])))
    else:
        main()
