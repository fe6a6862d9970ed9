# SPDX-License-Identifier: Apache-2.0
"""Schedules and samplers against the schedulers of diffusers, at every step of the way.

The network is exact: of data x_0 ~ N(mu, tau^2) the posterior mean given z_t is linear in z_t. It
answers both sides from the same lines, so that only schedule and sampler can differ. It also sees
every z_t, which is how the trajectory comes out of a sampler that returns its end alone.

Shapes: z [B, H, W, C]; n steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from contourdiff_jax import config
from contourdiff_jax.diffusion import guidance, process, samplers, schedules
from contourdiff_jax.interop import schedulers

WHY = "needs the environment of `make test-parity`"
torch = pytest.importorskip("torch", reason=WHY)
diffusers = pytest.importorskip("diffusers", reason=WHY)
pytestmark = [
    pytest.mark.parity,
    # torch 2.13 within diffusers 0.42, beside NumPy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

TOLERANCE = 1e-4
SHAPE = (2, 6, 6, 1)
MU = np.linspace(-0.9, 0.9, 36).reshape(6, 6, 1)  # with tau, a part of the data is clipped
TAU = 0.3

# Every combination there is: from pure noise eps says nothing.
PROCESSES = [
    {"schedule": schedule, "prediction": prediction, "zero_terminal_snr": zero}
    for schedule in schedulers.BETAS
    for prediction in schedulers.PREDICTIONS
    for zero in (False, True)
    if not (zero and prediction == "eps")
]


def network(diffusion):
    """(z [B, H, W, C], t) -> what a perfect network of that `diffusion` section answers.

    It computes in float64, and answers in what it is asked in.
    """
    betas = getattr(schedules, diffusion.schedule)(diffusion.steps)
    if diffusion.zero_terminal_snr:
        betas = schedules.zero_terminal_snr(betas)
    alpha_bar = np.cumprod(1 - betas)

    def answer(z, t):
        a, s = alpha_bar[t] ** 0.5, (1 - alpha_bar[t]) ** 0.5
        asked = z.dtype
        z = np.asarray(z, np.float64)
        x_0 = MU + a * TAU**2 / (a**2 * TAU**2 + s**2) * (z - a * MU)
        eps = (z - a * x_0) / s
        answers = {"eps": eps, "x0": x_0, "v": a * eps - s * x_0}
        return answers[diffusion.prediction].astype(asked)

    return answer


def ours(diffusion, sampler, z_T, noise):
    """[n, *z] what every step of our sampler arrives at."""
    schedule, answer, seen = schedules.build(diffusion), network(diffusion), []

    def observed(z_t, t):
        seen.append(np.array(z_t))
        return answer(z_t, int(t[0]))

    def apply(params, z_t, t, condition):
        like = jax.ShapeDtypeStruct(z_t.shape, z_t.dtype)
        return io_callback(observed, like, z_t, t, ordered=True)

    denoise = guidance.denoiser(apply, {}, schedule, diffusion.prediction, {})
    draw = samplers.build(sampler, samplers.timesteps(sampler, schedule.steps))
    z_0 = jax.jit(lambda z, noise: draw(denoise, schedule, z, lambda i: noise[i]))(z_T, noise)
    z_0.block_until_ready()
    return np.stack([*seen[1:], z_0])


def scheduler_of(settings):
    """The scheduler of diffusers that a configuration is exported as, its timesteps set."""
    fields = schedulers.theirs(settings)
    scheduler = getattr(diffusers, fields["_class_name"]).from_config(fields)
    scheduler.set_timesteps(settings.sampler.steps)
    return scheduler


def theirs(settings, z_T, noise, monkeypatch):
    """[n, *z] what every step of the scheduler of diffusers arrives at."""
    sampler, scheduler = settings.sampler, scheduler_of(settings)
    visited = scheduler.timesteps.tolist()
    assert visited == samplers.timesteps(sampler, settings.diffusion.steps).tolist()
    if z_T.dtype == np.float64:
        # diffusers keeps what follows from its alpha_bar in float32, whatever is sampled.
        alpha_bar = scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()[scheduler.timesteps]
        scheduler.sigmas = torch.cat([sigmas, torch.zeros(1)])

    answer, z, path = network(settings.diffusion), torch.from_numpy(z_T), []
    for i, t in enumerate(visited):
        step = {}
        drawn = torch.from_numpy(noise[i])
        if sampler.name == "ddpm":
            name = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
            monkeypatch.setattr(name, lambda *_, drawn=drawn, **__: drawn)
        if sampler.name == "ddim":
            step = {"eta": sampler.eta, "use_clipped_model_output": sampler.clipped_eps}
            step["variance_noise"] = drawn
        output = torch.from_numpy(answer(z.numpy(), t))
        z = scheduler.step(output, torch.tensor(t), z, **step).prev_sample
        path.append(z.numpy())
    return np.stack(path)


def difference(monkeypatch, process_fields, dtype=np.float32, **sampler_fields) -> float:
    """The largest difference of any pixel at any step."""
    settings = config.default()
    settings.diffusion.update(process_fields)
    settings.sampler.update(sampler_fields)
    rng = np.random.default_rng(0)
    # At most 2.4: without signal at T, DPM-Solver++ of diffusers adds NO_SIGNAL z_T to x_0.
    z_T = rng.standard_normal(SHAPE).astype(dtype)
    noise = rng.standard_normal((settings.sampler.steps, *SHAPE)).astype(dtype)
    # For all threads, that of the callback too: jax.enable_x64 is for one.
    jax.config.update("jax_enable_x64", dtype == np.float64)
    try:
        found = ours(settings.diffusion, settings.sampler, z_T, noise)
    finally:
        jax.config.update("jax_enable_x64", False)
    expected = theirs(settings, z_T, noise, monkeypatch)
    assert found.dtype == expected.dtype == dtype
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def named(fields: dict) -> str:
    return "-".join(str(value) for value in fields.values())


@pytest.mark.parametrize("fields", PROCESSES, ids=named)
def test_schedules_agree(fields):
    """alpha_bar at every timestep, the noise added there and the target learnt from it."""
    settings = config.default()
    settings.diffusion.update(fields)
    schedule, scheduler = schedules.build(settings.diffusion), scheduler_of(settings)
    np.testing.assert_allclose(schedule.alpha_bar, scheduler.alphas_cumprod, atol=1e-6)

    rng, t = np.random.default_rng(1), np.arange(1000)
    x_0, eps = rng.standard_normal((2, 1000, 2, 2, 1), np.float32)
    tensors = [torch.from_numpy(array) for array in (x_0, eps, t)]
    added = scheduler.add_noise(*tensors)
    np.testing.assert_allclose(process.diffuse(schedule, x_0, eps, t), added, atol=TOLERANCE)
    velocity = scheduler.get_velocity(*tensors)
    found = process.target(schedule, "v", jnp.asarray(x_0), jnp.asarray(eps), t)
    np.testing.assert_allclose(found, velocity, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("steps", [10, 50, 1000])
@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("fields", PROCESSES, ids=named)
def test_trajectories_agree(fields, name, steps, dtype, monkeypatch):
    allowed = TOLERANCE
    corner = ("dpmpp_2m", "cosine", "eps", np.float32)
    if (name, fields["schedule"], fields["prediction"], dtype) == corner:
        # x_0 = (z - s eps) / a with a = 5e-5 at first: what s loses by rounding, divided by that.
        # diffusers takes s by way of s / a, which rounds otherwise. In float64 nothing is left.
        allowed = 1e-3
    assert difference(monkeypatch, fields, dtype, name=name, steps=steps) < allowed


@pytest.mark.parametrize("steps", [10, 50, 500])  # with 1000, all spacings are the same
@pytest.mark.parametrize(
    "options",
    [
        {"name": "ddpm", "spacing": "leading"},
        {"name": "ddpm", "spacing": "leading", "offset": 1},
        {"name": "ddpm", "spacing": "linspace"},
        {"name": "ddpm", "clip": False},
        {"name": "ddim", "spacing": "leading"},
        {"name": "ddim", "spacing": "leading", "offset": 1},
        {"name": "ddim", "spacing": "leading", "clipped_eps": False},
        {"name": "ddim", "spacing": "linspace", "fixed_stride": True},
        {"name": "ddim", "spacing": "linspace", "fixed_stride": True, "eta": 0.5},
        {"name": "ddim", "clipped_eps": False},
        {"name": "ddim", "eta": 0.5, "clipped_eps": False},
        {"name": "ddim", "eta": 1.0, "spacing": "leading"},
        {"name": "ddim", "clip": False},
        {"name": "dpmpp_2m", "spacing": "leading"},
        {"name": "dpmpp_2m", "spacing": "leading", "offset": 1},
        {"name": "dpmpp_2m", "spacing": "linspace"},
        {"name": "dpmpp_2m", "clip": False},
    ],
    ids=named,
)
@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "linear", "prediction": "eps"},
        {"schedule": "cosine", "prediction": "v", "zero_terminal_snr": True},
    ],
    ids=named,
)
def test_options_agree(fields, options, steps, monkeypatch):
    assert difference(monkeypatch, fields, steps=steps, **options) < TOLERANCE


@pytest.mark.parametrize("steps", [3, 10, 50])
@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler"])
def test_stable_diffusion_s_own_agrees(kind, steps, monkeypatch):
    """Its last step ends at alpha_bar_0. In place of PNDM, DDIM draws."""
    fields = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    own = getattr(diffusers, kind)(**fields, steps_offset=1, set_alpha_to_one=False)
    said = dict(own.config) | {"_class_name": kind, "clip_sample": False, "skip_prk_steps": True}
    sections = schedulers.ours(said)
    assert not sections["sampler"]["ends_clean"]
    sampler = sections["sampler"] | {"steps": steps}
    assert difference(monkeypatch, sections["diffusion"], **sampler) < TOLERANCE


@pytest.mark.parametrize("steps", [3, 7, 30, 300])
@pytest.mark.parametrize(
    "spacing",
    [*({"spacing": name} for name in samplers.SPACINGS), {"spacing": "leading", "offset": 5}],
    ids=named,
)
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_numbers_of_steps_that_do_not_divide_agree(name, spacing, steps, monkeypatch):
    """An offset of T // n or more leaves DDIM's last step short of clean data."""
    fields = {"schedule": "linear", "prediction": "v"}
    options = spacing | {"fixed_stride": name == "ddim"}
    assert difference(monkeypatch, fields, name=name, steps=steps, **options) < TOLERANCE


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 20, 30, 50, 333, 999])
def test_timesteps_agree(name, spacing, steps):
    settings = config.default()
    settings.sampler.update(name=name, spacing=spacing, steps=steps, fixed_stride=name == "ddim")
    visited = samplers.timesteps(settings.sampler, 1000)
    assert visited.tolist() == scheduler_of(settings).timesteps.tolist()
