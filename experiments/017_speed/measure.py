# SPDX-License-Identifier: Apache-2.0
"""Training and translation side by side with PyTorch diffusers, on the same networks.

    python measure.py [NETWORK ..]

wants the environment of `make test-parity`. Both sides have the same number of parameters, batch
and precision, and the same threads; a train step is noise, forward, backward, clipped gradient and
AdamW on data at rest (ours also averages the parameters, which the peer does not), a translation
is the loop of DDIM over a batch. Rounds are interleaved, so that a busy machine is busy for both;
ratios are those of each round, with a bootstrap interval of their median. Peak memory is that of a
process which does one thing only. Each network adds its entry to result.json, by device.
"""

import functools
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

from contourdiff_jax import config as configuration
from contourdiff_jax import mesh as meshes
from contourdiff_jax import sampling, train
from contourdiff_jax.data import batches
from contourdiff_jax.diffusion import noise
from contourdiff_jax.models import diffusers as names

HERE = Path(__file__).parent
GPU = jax.default_backend() == "gpu"
PUBLISHED = {
    "channels": (128, 128, 256, 256, 512, 512),
    "layers": 2,
    "attention": (False, False, False, False, True, False),
    "groups": 32,
}
NETWORKS = {  # name: (fields of the `model` section, pixels, batch)
    "small": ({"channels": (32, 64, 128), "attention": (False, False, True)}, 64, 8),
    "published": (PUBLISHED, 256 if GPU else 128, 4 if GPU else 2),
}
COMMON = {"resample_convolution": True, "head_width": 8, "null": "empty", "middle_attention": True}
STEPS = 5  # of DDIM
ROUNDS = 15 if GPU else 9
UNCOUNTED = 2  # rounds: of compilation and warming up
INNER = 10 if GPU else 1  # train steps a round


def settings(name: str):
    """Our configuration of a network."""
    fields, _, batch = NETWORKS[name]
    config = configuration.default()
    config.model.update(COMMON | fields)
    config.model.dtype = "bfloat16" if GPU else "float32"
    config.diffusion.update(
        schedule="linear", prediction="eps", weighting="none", time_exponent=1.0
    )
    config.train.update(batch=batch, images=1_000_000)
    config.sampler.update(name="ddim", steps=STEPS, spacing="leading", batch=batch)
    return config


# --------------------------------------------------------------------------------------------------
# Sides: each gives a train step and a translation, both ending when the device is done
# --------------------------------------------------------------------------------------------------


def ours(name: str):
    config, (_, size, batch) = settings(name), NETWORKS[name]
    began = time.perf_counter()
    plan = train.setup(config, size)
    compiled = time.perf_counter() - began
    state = plan.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    condition = batches.given(rng.integers(0, 2, (batch, size, size)).astype(np.float32))
    example = {
        "x": rng.uniform(-1, 1, (batch, size, size, 1)).astype(np.float32),
        "condition": {"contour": condition},
    }
    example = meshes.put(meshes.batch(plan.mesh), example)

    def step():
        nonlocal state
        for _ in range(INNER):
            state, metrics = plan.step(state, example)
        jax.block_until_ready((state, metrics))

    knots = noise.independent(0, "speed", batch)

    def translation():
        how = plan.sampler, state.ema, meshes.batch(plan.mesh), batch
        sampling.draw(*how, example["condition"], knots)

    return step, translation, {"compile_seconds": round(compiled, 2)}


def theirs(name: str, channels_last: bool, compiled: bool):
    config, (_, size, batch) = settings(name), NETWORKS[name]
    device = "cuda" if GPU else "cpu"
    torch.manual_seed(0)
    unet = UNet2DModel(**names.unet(config.model, inputs=2, outputs=1, size=size)).to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    unet = unet.to(memory_format=layout)
    count = sum(parameter.numel() for parameter in unet.parameters())
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=1e-2)
    called = torch.compile(unet) if compiled else unet
    autocast = functools.partial(torch.autocast, device, dtype=torch.bfloat16, enabled=GPU)
    x = torch.rand(batch, 1, size, size, device=device) * 2 - 1
    contour = torch.randint(0, 2, (batch, 1, size, size), device=device).float()
    schedule = DDPMScheduler(beta_schedule="linear")
    strided = DDIMScheduler(beta_schedule="linear", timestep_spacing="leading")

    def step():
        for _ in range(INNER):
            t = torch.randint(0, 1000, (batch,), device=device)
            eps = torch.randn_like(x)
            noisy = schedule.add_noise(x, eps, t)
            with autocast():
                given = torch.cat([noisy, contour], 1).contiguous(memory_format=layout)
                predicted = called(given, t, return_dict=False)[0]
                loss = torch.nn.functional.mse_loss(predicted.float(), eps)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        loss.item()

    @torch.no_grad()
    def translation():
        strided.set_timesteps(STEPS)
        z = torch.randn_like(x)
        for t in strided.timesteps:
            with autocast():
                given = torch.cat([z, contour], 1).contiguous(memory_format=layout)
                predicted = called(given, t, return_dict=False)[0]
            z = strided.step(predicted.float(), t, z).prev_sample
        z.cpu()

    return step, translation, {"parameters": count}


SIDES = {
    "contourdiff_jax": ours,
    "diffusers": functools.partial(theirs, channels_last=False, compiled=False),
    "diffusers, channels last": functools.partial(theirs, channels_last=True, compiled=False),
}
if GPU:
    SIDES["diffusers, channels last, compiled"] = functools.partial(
        theirs, channels_last=True, compiled=True
    )


# --------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------


def measure(name: str) -> dict:
    made = {side: build(name) for side, build in SIDES.items()}
    seconds = {side: {"train": [], "translate": []} for side in made}
    for _ in range(ROUNDS + UNCOUNTED):
        for side, (step, translation, _) in made.items():
            for what, call in (("train", step), ("translate", translation)):
                began = time.perf_counter()
                call()
                seconds[side][what].append(time.perf_counter() - began)
    _, size, batch = NETWORKS[name]
    found = {"pixels": size, "batch": batch, "rounds": ROUNDS, "sides": {}}
    work = {"train": INNER * batch, "translate": batch}
    best = {
        what: min(
            (side for side in made if side != "contourdiff_jax"),
            key=lambda side: statistics.median(seconds[side][what][UNCOUNTED:]),
        )
        for what in work
    }
    for side, (_, _, facts) in made.items():
        entry = found["sides"][side] = dict(facts)
        for what, images in work.items():
            times = np.array(seconds[side][what][UNCOUNTED:])
            entry[f"{what}_images_per_second"] = round(images / float(np.median(times)), 3)
        entry["peak_MiB"] = {what: peak(name, side, what) for what in work}
    for what in work:
        mine, other = (
            np.array(seconds[side][what][UNCOUNTED:]) for side in ("contourdiff_jax", best[what])
        )
        found[f"{what}_speed_over_best_peer"] = {"peer": best[what], **interval(other / mine)}
    return found


def interval(ratios: np.ndarray) -> dict:
    """Median, and the 95% bootstrap interval of it."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), 1)
    low, high = np.quantile(medians, [0.025, 0.975])
    names = ("value", "low", "high")
    return {
        n: round(float(v), 3) for n, v in zip(names, (np.median(ratios), low, high), strict=True)
    }


def peak(name: str, side: str, what: str) -> int | None:
    """Peak memory of a process that trains or translates only: of the GPU, or its own."""
    child = [sys.executable, __file__, "--peak", name, side, what]
    return int(subprocess.run(child, check=True, capture_output=True, text=True).stdout.split()[-1])


def one(name: str, side: str, what: str) -> None:
    step, translation, _ = SIDES[side](name)
    for _ in range(2):
        (step if what == "train" else translation)()
    if not GPU:
        bytes_ = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    elif side == "contourdiff_jax":
        bytes_ = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    else:
        bytes_ = torch.cuda.max_memory_allocated()
    print(bytes_ >> 20)


def main(chosen: list[str]) -> None:
    path = HERE / "result.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    device = jax.devices()[0].device_kind if GPU else f"{platform.machine()} CPU"
    here = result.setdefault(f"{device}, {torch.get_num_threads()} threads", {})
    here["versions"] = {"jax": jax.__version__, "torch": torch.__version__}
    for name in chosen or NETWORKS:
        here[name] = measure(name)
        print(name, json.dumps(here[name], indent=1))
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        one(*sys.argv[2:])
    else:
        main(sys.argv[1:])
