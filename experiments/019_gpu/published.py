# SPDX-License-Identifier: Apache-2.0
"""The published network (configs/contourdiff_2d.py) beside PyTorch: training, drawing, memory.

    python published.py [--small] RESULT WORK

A train step is noise, forward, backward, clipped gradient and AdamW on a batch at rest (ours also
averages the parameters); drawing is 20 steps of DDIM. Both compute in bf16, PyTorch by autocast,
channels last, with torch.compile and cuDNN's search for the fastest algorithms. Of each batch all
sides compile at once; then they take turns, of the large one each has the device for itself, since
they do not fit beside one another. Utilisation is that of the model's operations, as 016_cost
counts them, of the maker's peak; the roofline is the longer of the times that operations and bytes
take at the maker's numbers, with the bytes that XLA counts (Williams et al. 2009).
"""

import collections
import concurrent.futures
import contextlib
import functools
import gzip
import importlib.util
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import results
import turns

OURS, FUSED, AGAIN = "ours", "ours, fused attention", "ours, rematerialised"
TORCH, EAGER = "torch, compiled", "torch, not compiled"
FIELDS = {FUSED: {"fused_attention": True}, AGAIN: {"rematerialise": True}}
TINY = {
    "channels": (8, 16),
    "attention": (False, True),
    "layers": 1,
    "groups": 4,
    "head_width": 8,
}
ROUNDS = 4
SHOWN = 15  # rows of a profile


class Case(NamedTuple):
    """What is measured together.

    Attributes:
      batch: images of a step, and slices drawn at once.
      sides: who.
      beside: whether they have the device in turns; else one after the other.
      profiled: whether what costs most is asked of ours.
    """

    batch: int
    sides: tuple[str, ...]
    beside: bool = True
    profiled: bool = False


FULL = (
    Case(16, (OURS, FUSED, TORCH, EAGER), profiled=True),
    Case(64, (OURS, AGAIN, TORCH), beside=False),
    Case(4, (OURS, TORCH)),
)
SMALL = (Case(2, (OURS, TORCH), profiled=True),)


class Size(NamedTuple):
    """Pixels, steps of sampling, and how often a turn trains and draws."""

    pixels: int
    steps: int
    train: int
    draw: int


def size_of(small: bool) -> Size:
    return Size(8, 2, 1, 1) if small else Size(256, 20, 10, 1)


def settings(small: bool, batch: int, **model):
    """Our configuration."""
    config = runpy.run_path(str(results.CONFIGS / "contourdiff_2d.py"))["get_config"]()
    config.model.update(model)
    if small:
        config.model.update(TINY | {"dtype": "float32"})
        config.grid.size = size_of(small).pixels
    config.train.update(batch=batch, images=1_000_000)
    config.sampler.update(name="ddim", steps=size_of(small).steps, spacing="leading", batch=batch)
    return config


# --------------------------------------------------------------------------------------------------
# Sides: {what is asked: function of how often}
# --------------------------------------------------------------------------------------------------


def ours(small: bool, batch: int, side: str) -> dict:
    import jax
    import numpy as np

    sys.path.append(str(results.HERE.parent))
    import setups

    from contourdiff_jax import methods
    from contourdiff_jax.data import examples
    from contourdiff_jax.diffusion import noise
    from contourdiff_jax.runtime import mesh as meshes

    config, size = settings(small, batch, **FIELDS.get(side, {})), size_of(small).pixels
    rng = np.random.default_rng(0)
    contour = examples.given(rng.integers(0, 2, (batch, size, size)).astype(np.float32))
    x = rng.uniform(-1, 1, (batch, size, size, 1)).astype(np.float32)
    example = {"x": x, "condition": {"contour": contour}}
    made, held = {}, {}

    def compile_step() -> float:
        began = time.perf_counter()
        made["method"], made["program"] = setups.training(config, size)
        return time.perf_counter() - began

    def compile_drawing() -> float:
        began = time.perf_counter()
        run = setups.run_of(config, size)
        method = setups.built(run)
        weights = jax.tree.map(
            lambda a: rng.normal(0, 0.02, a.shape).astype(a.dtype), methods.networks(run)
        )
        made["draw"] = setups.drawn_by(
            method, meshes.split(meshes.replicated(method.mesh), weights)
        )
        draw(1)
        return time.perf_counter() - began

    def prepare(_) -> dict:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            step, drawing = (pool.submit(c) for c in (compile_step, compile_drawing))
            found = {
                "compile_train_seconds": results.rounded(step.result()),
                "compile_draw_seconds": results.rounded(drawing.result()),
            }
        executable = made["program"].step
        planned, counted = executable.memory_analysis(), executable.cost_analysis() or {}
        parts = ("argument", "output", "temp")
        total = sum(getattr(planned, f"{part}_size_in_bytes") for part in parts)
        found["program_GiB"] = (total - planned.alias_size_in_bytes) / results.GIB
        found["step_gigabytes"] = counted.get("bytes accessed", 0) / 1e9
        return {name: results.rounded(value) for name, value in found.items()}

    def train(count: int) -> None:
        if not held:
            method, program = made["method"], made["program"]
            held["state"] = program.init(jax.random.key(0))
            held["example"] = meshes.put(meshes.batch(method.mesh), example)
        for _ in range(count):
            held["state"], metrics = made["program"].step(
                held["state"], held["example"], made["method"].fixed
            )
        jax.block_until_ready((held["state"], metrics))

    def draw(count: int) -> None:
        for _ in range(count):
            made["draw"](example["condition"], noise.independent(0, "speed", batch))

    def peak(_) -> float:
        stats = jax.devices()[0].memory_stats() or {}
        return results.rounded(stats.get("peak_bytes_in_use", 0) / results.GIB)

    def profile(count: int) -> list:
        folder = os.environ["PROFILE"]
        with jax.profiler.trace(folder):
            train(count)
        return costs(folder)

    return {"prepare": prepare, "train": train, "draw": draw, "peak": peak, "profile": profile}


def costs(folder: str) -> list[dict]:
    """What a trace spent its device's time on, by kind of kernel: milliseconds, share, times.

    Without a device's lines in it, those of the host's that executed something.
    """
    (path,) = Path(folder).rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {
        e["pid"]: e["args"]["name"]
        for e in events
        if e.get("ph") == "M" and e["name"] == "process_name"
    }
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in events
        if e.get("ph") == "M" and e["name"] == "thread_name"
    }

    def counts(event) -> bool:
        thread = threads.get((event["pid"], event.get("tid")), "")
        if any("/device:" in name for name in names.values()):
            return "/device:" in names.get(event["pid"], "") and "Stream" in thread
        return "hlo_op" in event.get("args", {})

    spent, times = collections.Counter(), collections.Counter()
    for event in events:
        if event.get("ph") == "X" and counts(event):
            kind = event["name"].rstrip("0123456789_.")[:80]
            spent[kind] += event["dur"] / 1e3
            times[kind] += 1
    total = sum(spent.values())
    return [
        {
            "kernel": kind,
            "milliseconds": results.rounded(took),
            "share": results.rounded(took / total, 3),
            "times": times[kind],
        }
        for kind, took in spent.most_common(SHOWN)
    ]


def theirs(small: bool, batch: int, side: str) -> dict:
    import torch
    import torch_unet

    on_gpu = torch.cuda.is_available()
    device, size = "cuda" if on_gpu else "cpu", size_of(small).pixels
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    network = torch_unet.UNet(**(TINY if small else torch_unet.PUBLISHED)).to(device)
    network = network.to(memory_format=torch.channels_last)
    called = torch.compile(network, dynamic=False) if on_gpu and side == TORCH else network
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-2, fused=on_gpu)
    autocast = functools.partial(torch.autocast, device, dtype=torch.bfloat16, enabled=on_gpu)
    x = torch.rand(batch, 1, size, size, device=device) * 2 - 1
    contour = torch.randint(0, 2, (batch, 1, size, size), device=device).float()
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=device), 0)

    def predicted(noisy, t):
        with autocast():
            given = torch.cat([noisy, contour], 1).contiguous(memory_format=torch.channels_last)
            return called(given, t).float()

    def train(count: int) -> None:
        for _ in range(count):
            t, eps = torch.randint(0, 1000, (batch,), device=device), torch.randn_like(x)
            signal = alpha_bar[t][:, None, None, None]
            noisy = signal.sqrt() * x + (1 - signal).sqrt() * eps
            loss = torch.nn.functional.mse_loss(predicted(noisy, t), eps)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        loss.item()

    @torch.no_grad()
    def draw(count: int) -> None:
        steps = size_of(small).steps
        for _ in range(count):
            z = torch.randn_like(x)
            for i in reversed(range(steps)):  # DDIM (Song et al. 2021, equation 12), eta = 0
                t = torch.full((batch,), i * (1000 // steps), device=device)
                here = alpha_bar[t[0]]
                before = alpha_bar[t[0] - 1000 // steps] if i else torch.ones((), device=device)
                eps = predicted(z, t)
                x_0 = ((z - (1 - here).sqrt() * eps) / here.sqrt()).clamp(-1, 1)
                z = before.sqrt() * x_0 + (1 - before).sqrt() * eps
            z.cpu()

    def prepare(_) -> dict:
        found = {}
        for name, call in (("train", train), ("draw", draw)):
            began = time.perf_counter()
            call(1)
            found[f"compile_{name}_seconds"] = results.rounded(time.perf_counter() - began)
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return found

    def peak(_) -> float:
        used = torch.cuda.max_memory_allocated() if on_gpu else 0
        return results.rounded(used / results.GIB)

    return {"prepare": prepare, "train": train, "draw": draw, "peak": peak}


# --------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------


def measure(case: Case, step: results.Step, entry: dict, kept) -> None:
    """Fill the entry of a case, side by side; what a side fails at is said there."""
    size = size_of(step.small)
    flags = [str(int(step.small)), str(case.batch)]
    with contextlib.ExitStack() as running:
        sides = {}
        for name in case.sides:
            if name in (TORCH, EAGER) and importlib.util.find_spec("torch") is None:
                entry[name] = {"absent": "no PyTorch here"}
                continue
            sides[name] = turns.Side(__file__, *flags, name)
            running.callback(sides[name].close)
            sides[name].begin("prepare")
        for name, side in list(sides.items()):
            try:
                entry[name] = side.answer()
            except RuntimeError as error:
                entry[name] = {"failed": str(error)}
                del sides[name]
            kept()
        if case.beside:
            timed(sides, size, entry)
        else:
            for name in list(sides):
                timed({name: sides[name]}, size, entry)
                sides[name].close()
        kept()
        if case.profiled and "failed" not in entry[OURS]:
            try:
                entry["profile"] = sides[OURS].ask("profile", 3)
            except RuntimeError as error:
                entry["profile"] = f"none: {error}"
            kept()


def timed(sides: dict, size: Size, entry: dict) -> None:
    """Their seconds an image and memory at most, in turns; of a ratio both turns are of a round."""
    counts = {"train": size.train, "draw": size.draw}
    taken = {name: collections.defaultdict(list) for name in sides}
    for what, count in counts.items():
        for turn in range(ROUNDS + 1):  # the first is not counted
            for name, side in sides.items():
                if "failed" in entry[name]:
                    continue
                try:
                    took = side.ask(what, count) / count
                except RuntimeError as error:
                    entry[name]["failed"] = f"{what}: {error}"
                    continue
                if turn:
                    taken[name][what].append(took)
    for name, side in sides.items():
        if "failed" not in entry[name]:
            entry[name]["peak_GiB"] = side.ask("peak")
        for what, values in taken[name].items():
            if values:
                entry[name][f"{what}_seconds"] = results.rounded(statistics.median(values))
            if name != OURS and (base := taken.get(OURS, {}).get(what)):
                ratios = [b / a for a, b in zip(base, values, strict=False)]
                entry[name][f"{what}_ours_is_faster_by"] = results.rounded(
                    statistics.median(ratios)
                )


def judged(entry: dict, batch: int, work: dict, kind: str, steps: int) -> None:
    """Add what follows from the seconds: speeds, utilisation, roofline."""
    known = results.peak(kind)
    for found in entry.values():
        if not isinstance(found, dict):
            continue
        if took := found.get("train_seconds"):
            operations = 1e9 * batch * work["train"]
            found["train_images_per_second"] = results.rounded(batch / took)
            found["train_tflops"] = results.rounded(1e-12 * operations / took)
            found["train_utilisation"] = share(operations / took, known)
            if known and found.get("step_gigabytes"):
                times = operations / known.operations, 1e9 * found["step_gigabytes"] / known.bytes
                found["roofline_over_step"] = results.rounded(max(times) / took)
        if took := found.get("draw_seconds"):
            operations = 1e9 * batch * steps * work["forward"]
            found["draw_slices_per_second"] = results.rounded(batch / took)
            found["draw_utilisation"] = share(operations / took, known)


def share(speed: float, known: results.Peak | None) -> float | str:
    return results.rounded(speed / known.operations) if known else "unknown"


def main() -> None:
    step = results.arguments(__doc__)
    small = step.small
    os.environ["PROFILE"] = str(step.work / "profile")
    kind = turns.Side(__file__, str(int(small)), "1", "kind")
    size = size_of(small)
    result = {"pixels": size.pixels, "sampling_steps": size.steps, "batches": {}}
    result["device"] = kind.ask("kind")
    kind.close()
    work = {}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        counting = pool.submit(operations, small)  # while the sides compile
        for case in SMALL if small else FULL:
            entry = result["batches"][str(case.batch)] = {}

            def kept(case=case, entry=entry):
                if counting.done():
                    work.update(counting.result())
                    result["gflop_an_image"] = work
                    judged(entry, case.batch, work, result["device"], size.steps)
                results.keep(step.result, result)

            measure(case, step, entry, kept)
            work.update(counting.result())
            kept()
    trouble = [
        f"batch {batch}, {name}: {found['failed']}"
        for batch, entry in result["batches"].items()
        for name, found in entry.items()
        if isinstance(found, dict) and "failed" in found
    ]
    if trouble:
        raise SystemExit("\n".join(trouble))


def operations(small: bool) -> dict:
    """GFLOP an image, by 016_cost, in a process that leaves the device alone."""
    code = (
        "import json, sys; sys.path += sys.argv[1:3]; import cost, published; "
        "small = sys.argv[3] == '1'; "
        "size = published.size_of(small).pixels; "
        "print(json.dumps(cost.operations(published.settings(small, 1), size)))"
    )
    given = [str(results.HERE), str(results.HERE.parent / "016_cost"), str(int(small))]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code, *given],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def device_kind() -> dict:
    import jax

    return {"kind": lambda _: jax.devices()[0].device_kind}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        small, batch, side = sys.argv[2] == "1", int(sys.argv[3]), sys.argv[4]
        if side == "kind":
            turns.serve(device_kind())
        elif side in (TORCH, EAGER):
            turns.serve(theirs(small, batch, side))
        else:
            turns.serve(ours(small, batch, side))
    else:
        main()
