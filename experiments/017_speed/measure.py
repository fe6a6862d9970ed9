# SPDX-License-Identifier: Apache-2.0
"""Training and translation side by side with PyTorch diffusers, on the same networks.

    python measure.py [--ways] [NETWORK ..]
    python measure.py --memory [NETWORK ..]

want the environment of `make test-parity`, and a compiler for torch.compile. Both sides have the
same number of parameters, batch, precision and threads. A train step is noise, forward, backward,
clipped gradient and AdamW on data at rest (ours also averages the parameters, which the peer does
not); a translation is the loop of DDIM over a batch. 'regression' is the small network without what
is for noise and time, of both sides: it trains on the absolute error in a mask, and translates in
one pass. 'latents' are those of configs/latent_small.py with their autoencoder, which encodes the
images of a step and decodes what is drawn, on both sides; 'pix2pix' is that of
configs/pix2pix_small.py with its critic, beside the same layers of PyTorch.

Each side is a process of its own, which does nothing while it is not its turn: thread pools that
share one disturb each other. Turns alternate, so that a busy machine is busy for all, and begin
with a call that is not counted: a virtual machine may have taken the memory that a process gave
back before it waited. A ratio is that of two turns side by side, given as the median with its
bootstrap interval. With --ways it is compared with itself, without what makes it fast on a CPU, and
with what might make it faster. Each network has its entry in result.json, by device; --memory adds
to it what a process holds at most that does one thing only.
"""

import contextlib
import functools
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
STEPS = 5  # of DDIM
CALLS = ("train", "translate")
REGRESSION, PIX2PIX, LATENTS = "regression", "pix2pix", "latents"  # networks of other methods
OURS = "contourdiff_jax"
HUGE = "huge pages"  # for large arrays, where the system leaves that to who asks for memory
FUSED = "fused attention"
COMPILED = "diffusers, channels last, compiled"  # on a CPU not of the published, for its time
PUBLISHED = {
    "channels": (128, 128, 256, 256, 512, 512),
    "layers": 2,
    "attention": (False, False, False, False, True, False),
    "groups": 32,
}
THEIRS = {"resample_convolution": True, "head_width": 8, "null": "empty", "middle_attention": True}


def gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def machine() -> str:
    """What a result is of."""
    import torch

    device = torch.cuda.get_device_name() if gpu() else f"{platform.machine()} CPU"
    return f"{device}, {torch.get_num_threads()} threads"


def networks() -> dict:
    """name: (fields of the `model` section, pixels, batch); the default one is ours alone."""
    small = {"channels": (32, 64, 128), "attention": (False, False, True)}
    return {
        "small": (THEIRS | small, 64, 8),
        REGRESSION: (THEIRS | small, 64, 8),
        LATENTS: (THEIRS | {"channels": (64, 128), "attention": (False, True)}, 96, 8),
        PIX2PIX: ({}, 96, 4),
        "published": (THEIRS | PUBLISHED, 256 if gpu() else 128, 4 if gpu() else 2),
        "default": ({}, 96, 4),
    }


def settings(name: str):
    """Our configuration of a network."""
    from contourdiff_jax import config as configuration

    fields, _, batch = networks()[name]
    if name == PIX2PIX:
        config = runpy.run_path(str(CONFIGS / "pix2pix_small.py"))["get_config"]()
        config.train.update(batch=batch, images=1_000_000)
        config.sampler.batch = batch
        return config
    config = configuration.default()
    config.method = REGRESSION if name == REGRESSION else "diffusion"
    if name == LATENTS:
        codec = runpy.run_path(str(CONFIGS / "autoencoder_small.py"))["get_config"]()
        config.autoencoder.update(codec.autoencoder)
        config.sampler.clip = False
    config.model.update(fields)
    config.model.dtype = "bfloat16" if gpu() else "float32"
    config.diffusion.update(
        schedule="linear", prediction="eps", weighting="none", time_exponent=1.0
    )
    config.train.update(batch=batch, images=1_000_000)
    config.sampler.update(name="ddim", steps=STEPS, spacing="leading", batch=batch)
    return config


def example(name: str) -> dict:
    """A batch to train a network of ours on."""
    from contourdiff_jax.data import examples

    _, size, batch = networks()[name]
    rng = np.random.default_rng(0)
    contour = examples.given(rng.integers(0, 2, (batch, size, size)).astype(np.float32))
    x = rng.uniform(-1, 1, (batch, size, size, 1)).astype(np.float32)
    made = {"x": x, "condition": {"source" if name == PIX2PIX else "contour": contour}}
    return made | {"mask": (abs(x) < 0.5).astype(np.float32)} if name == REGRESSION else made


# --------------------------------------------------------------------------------------------------
# Sides: {what: function that makes the call to be timed}, the call ending when the device is done
# --------------------------------------------------------------------------------------------------


def ours(name: str, share: bool = True, forms: bool = True, fused: bool = False) -> dict:
    """As it is, or without sharing batches among cores, or with XLA's convolutions of 3 x 3.

    Or with fused attention.
    """
    os.environ["JAX_NUM_CPU_DEVICES"] = str(len(os.sched_getaffinity(0)) if share else 1)

    import jax

    sys.path.append(str(HERE.parent))
    import setups

    from contourdiff_jax import methods
    from contourdiff_jax.diffusion import noise
    from contourdiff_jax.models import convolution
    from contourdiff_jax.runtime import mesh as meshes

    if not forms:
        convolution._outweighed = convolution._tiled = lambda x, kernel: False
        convolution._gradients_on_a_cpu = convolution._gradients_by_xla
    config, (_, size, batch) = settings(name), networks()[name]
    if name != PIX2PIX:
        config.model.fused_attention = fused
    given, latents = example(name), name == LATENTS

    def training():
        method, compiled = setups.training(config, size, latents=latents)
        state = compiled.init(jax.random.key(0))
        lying = meshes.put(meshes.batch(method.mesh), given)

        def call(count: int):
            nonlocal state
            for _ in range(count):
                state, metrics = compiled.step(state, lying, method.fixed)
            jax.block_until_ready((state, metrics))

        return call

    def translation():
        made = setups.run_of(config, size, latents=latents)
        held = methods.networks(made)
        mesh = meshes.make(config.mesh, batch=batch, held=held)
        method = setups.built(made, mesh=mesh)
        # From the host, as those of a checkpoint.
        rng = np.random.default_rng(0)
        weights = jax.tree.map(lambda a: rng.normal(0, 0.02, a.shape).astype(a.dtype), held)
        averages = meshes.split(meshes.replicated(mesh), weights)
        del weights
        draw = setups.drawn_by(method, averages)
        knots = noise.independent(0, "speed", batch)

        def call(count: int):
            for _ in range(count):
                draw(given["condition"], knots)

        return call

    def peak() -> int:
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]

    return {"train": training, "translate": translation, "peak": peak}


def theirs(name: str, channels_last: bool, compiled: bool) -> dict:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DModel

    from contourdiff_jax.interop import autoencoder_kl
    from contourdiff_jax.interop import unet2d as names

    if name == PIX2PIX:
        return their_pix2pix(channels_last, compiled)
    config, (_, size, batch) = settings(name), networks()[name]
    device, regresses = "cuda" if gpu() else "cpu", name == REGRESSION
    torch.manual_seed(0)
    inputs, outputs, side = (1 if regresses else 2), 1, 1
    if name == LATENTS:
        fields = autoencoder_kl.fields(config.autoencoder, scale=1.0, size=size)
        vae, side = AutoencoderKL.from_config(fields).to(device).eval(), 4
        inputs, outputs = config.autoencoder.latents + side**2, config.autoencoder.latents
    unet = UNet2DModel(
        **names.unet(config.model, inputs=inputs, outputs=outputs, size=size // side)
    )
    unet = (timeless(unet) if regresses else unet).to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    unet = unet.to(memory_format=layout)
    called = torch.compile(unet) if compiled else unet
    autocast = functools.partial(torch.autocast, device, dtype=torch.bfloat16, enabled=gpu())
    x = torch.rand(batch, 1, size, size, device=device) * 2 - 1
    contour = torch.randint(0, 2, (batch, 1, size, size), device=device).float()
    contour = torch.nn.functional.pixel_unshuffle(contour, side)

    def predicted(noisy, t):
        with autocast():
            given = contour if regresses else torch.cat([noisy, contour], 1)
            given = given.contiguous(memory_format=layout)
            return called(given, t, return_dict=False)[0].float()

    def training():
        schedule = DDPMScheduler(beta_schedule="linear")
        weights = torch.where(x.abs() < 0.5, 1.0, config.regression.outside)

        def denoised():
            t = torch.randint(0, 1000, (batch,), device=device)
            with torch.no_grad():
                x_0 = vae.encode(x).latent_dist.sample() if name == LATENTS else x
            eps = torch.randn_like(x_0)
            answer = predicted(schedule.add_noise(x_0, eps, t), t)
            return torch.nn.functional.mse_loss(answer, eps)

        def regressed():
            error = (predicted(None, 0) - x).abs() * weights
            return (error.sum((1, 2, 3)) / weights.sum((1, 2, 3))).mean()

        lost = regressed if regresses else denoised
        optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=1e-2)

        def call(count: int):
            for _ in range(count):
                loss = lost()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            loss.item()

        return call

    def translation():
        strided = DDIMScheduler(beta_schedule="linear", timestep_spacing="leading")

        @torch.no_grad()
        def call(count: int):
            for _ in range(count):
                strided.set_timesteps(STEPS)
                z = torch.randn((batch, outputs, size // side, size // side), device=device)
                for t in strided.timesteps:
                    z = strided.step(predicted(z, t), t, z).prev_sample
                (vae.decode(z).sample if name == LATENTS else z).cpu()

        @torch.no_grad()
        def at_once(count: int):
            for _ in range(count):
                predicted(None, 0).clamp(-1, 1).cpu()

        return at_once if regresses else call

    return {
        "train": training,
        "translate": translation,
        "peak": lambda: torch.cuda.max_memory_allocated(),
    }


def their_pix2pix(channels_last: bool, compiled: bool) -> dict:
    """The same layers of PyTorch; the image that is drawn serves both networks of a step."""
    import torch

    sys.path.append(str(HERE.parents[1] / "tests/parity"))
    import adversaries

    config, (_, size, batch) = settings(PIX2PIX), networks()[PIX2PIX]
    section, device = config.adversarial, "cuda" if gpu() else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    draws = adversaries.UNet(1, 1, section.levels, section.width, section.norm)
    judges = adversaries.critic(2, section.critic_layers, section.critic_width, section.norm)
    draws, judges = (net.to(device, memory_format=layout) for net in (draws, judges))
    drawn, judged = (torch.compile(net) if compiled else net for net in (draws, judges))
    x, source = (torch.rand(batch, 1, size, size, device=device) * 2 - 1 for _ in range(2))
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits

    def doubt(image, real: bool):
        logits = judged(torch.cat([source, image], 1))
        return cross_entropy(logits, torch.full_like(logits, float(real)))

    def training():
        adam = functools.partial(torch.optim.Adam, lr=5e-4, betas=(0.5, 0.999))
        of_critic, of_generator = adam(judges.parameters()), adam(draws.parameters())

        def call(count: int):
            for _ in range(count):
                image = drawn(source)
                of_critic.zero_grad(set_to_none=True)
                ((doubt(x, True) + doubt(image.detach(), False)) / 2).backward()
                of_critic.step()
                of_generator.zero_grad(set_to_none=True)
                judges.requires_grad_(False)
                loss = doubt(image, True) + section.l1 * (image - x).abs().mean()
                loss.backward()
                judges.requires_grad_(True)
                of_generator.step()
            loss.item()

        return call

    def translation():
        @torch.no_grad()
        def call(count: int):
            for _ in range(count):
                drawn(source).cpu()

        return call

    def peak() -> int:
        return torch.cuda.max_memory_allocated()

    return {"train": training, "translate": translation, "peak": peak}


def timeless(unet):
    """A UNet2DModel that is told no time, without the parameters for it."""
    import torch

    class Nothing(torch.nn.Module):
        def forward(self, *given):
            return None

    unet.time_embedding = Nothing()
    for part in unet.modules():
        if hasattr(part, "time_emb_proj"):
            part.time_emb_proj = None
    return unet


SIDES = {
    OURS: ours,
    "one device": functools.partial(ours, share=False),
    "XLA's convolutions": functools.partial(ours, forms=False),
    "neither": functools.partial(ours, share=False, forms=False),
    HUGE: ours,
    FUSED: functools.partial(ours, fused=True),
    "diffusers": functools.partial(theirs, channels_last=False, compiled=False),
    "diffusers, channels last": functools.partial(theirs, channels_last=True, compiled=False),
    COMPILED: functools.partial(theirs, channels_last=True, compiled=True),
}


def serve(name: str, side: str) -> None:
    """Answer each line on standard input, WHAT COUNT, with the seconds it took, or the peak."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    made, calls = SIDES[side](name), {}
    for line in sys.stdin:
        what, count = line.split()
        began = time.perf_counter()
        if what == "peak":
            answer = made["peak"]() >> 20 if gpu() else own_peak()
        else:
            if what not in calls:
                calls[what] = made[what]()
            calls[what](int(count))
            answer = time.perf_counter() - began
        print(answer, file=answers, flush=True)


def own_peak() -> int:
    """MiB that this process held at most; ru_maxrss would have the parent's in it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


# --------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(name: str, side: str):
    """A process of that side: ask(what, count) -> its answer."""
    command = [sys.executable, __file__, "--serve", name, side]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    asked = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if side == HUGE else {}
    with subprocess.Popen(command, **pipes, text=True, env=os.environ | asked) as child:

        def ask(what: str, count: int = 1) -> float:
            child.stdin.write(f"{what} {count}\n")
            child.stdin.flush()
            return float(child.stdout.readline())

        yield ask
        child.stdin.close()


def measure(name: str, sides: list[str], rounds: int, counts: dict) -> dict:
    _, size, batch = networks()[name]
    seconds = {side: {what: [] for what in counts} for side in sides}
    steps = 1 if name in (REGRESSION, PIX2PIX) else STEPS
    found = {"pixels": size, "batch": batch, "rounds": rounds, "sampling_steps": steps, "sides": {}}
    with contextlib.ExitStack() as running:
        asks = {side: running.enter_context(process(name, side)) for side in sides}
        for side, ask in asks.items():
            first = {what: round(ask(what), 2) for what in counts}  # compiles
            found["sides"][side] = {"first_call_seconds": first}
            for what in counts:
                ask(what)
        for _ in range(rounds):
            for what, count in counts.items():
                for side, ask in asks.items():
                    ask(what)  # memory that it gave back is taken again
                    seconds[side][what].append(ask(what, count) / count)
    for side, entry in found["sides"].items():
        for what in counts:
            median = statistics.median(seconds[side][what])
            entry[f"{what}_images_per_second"] = round(batch / median, 3)
        if side != OURS:
            entry["speed_of_ours_over_this"] = {
                what: interval(np.divide(seconds[side][what], seconds[OURS][what]))
                for what in counts
            }
    return found


def interval(ratios: np.ndarray) -> list[float]:
    """Median, and the 95% bootstrap interval of it."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), 1)
    return [round(float(v), 3) for v in (np.median(ratios), *np.quantile(medians, [0.025, 0.975]))]


def peak(name: str, side: str, what: str) -> int:
    """MiB of memory at most of a process that trains or translates only: of the GPU, or its own."""
    with process(name, side) as ask:
        ask(what)
        ask(what)
        return int(ask("peak"))


def main(options: list[str], chosen: list[str]) -> None:
    import jax
    import torch

    path = HERE / "result.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    here = result.setdefault(machine(), {})
    here["versions"] = {"jax": jax.__version__, "torch": torch.__version__}
    ways = "--ways" in options
    usual = [name for name in networks() if ways or "default" not in name]
    for name in chosen or usual:
        entry = here.setdefault("ways" if ways else "peers", {})
        if "--memory" in options:
            for side, found in entry[name]["sides"].items():
                found["peak_MiB"] = {what: peak(name, side, what) for what in CALLS}
        elif gpu():
            entry[name] = measure(name, sides(name, ways), 15, {"train": 10, "translate": 2})
        else:
            rounds = 5 if name == "published" else 11
            entry[name] = measure(name, sides(name, ways), rounds, dict.fromkeys(CALLS, 1))
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(entry[name], indent=1), flush=True)


def sides(name: str, ways: bool) -> list[str]:
    """Ours, and those it is compared with: itself in other ways, or the peers."""
    peers = [side for side in SIDES if side.startswith("diffusers")]
    if not ways:
        return [OURS, *(side for side in peers if gpu() or name != "published" or side != COMPILED)]
    if gpu():
        return [OURS, FUSED]
    if name == "published":  # whose batches are not shared; it alone takes gigabytes
        return [OURS, HUGE]
    return [OURS, "XLA's convolutions", "one device", "neither"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        given = [word for word in sys.argv[1:] if word.startswith("--")]
        main(given, [word for word in sys.argv[1:] if word not in given])
