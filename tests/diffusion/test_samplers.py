# SPDX-License-Identifier: Apache-2.0
"""Samplers against a denoiser that is known exactly.

If x_0 ~ N(mu, tau^2), the posterior mean given z_t = a x_0 + s eps is linear in z_t, so the
best possible denoiser is known and every sampler must bring z_T ~ N(0, 1) to N(mu, tau^2).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax import config
from contourdiff_jax.diffusion import guidance, samplers, schedules

pytestmark = pytest.mark.device

SCHEDULE = schedules.from_betas(schedules.cosine(1000))
MU, TAU = 0.2, 0.25


def denoise(z_t, t):
    a, s = SCHEDULE.signal[t], SCHEDULE.noise[t]
    return MU + a * TAU**2 / (a**2 * TAU**2 + s**2) * (z_t - a * MU)


def noise(i):
    return jax.random.normal(jax.random.fold_in(jax.random.key(7), i), (20_000, 1, 1, 1))


def section(name="ddim", steps=20, **fields):
    settings = config.default().sampler
    settings.update(name=name, steps=steps, **fields)
    return settings


def build(settings, total):
    return samplers.build(settings, samplers.timesteps(settings, total))


def sample(name, steps, *, schedule=SCHEDULE, denoise=denoise, **fields):
    z_T = jax.random.normal(jax.random.key(3), (20_000, 1, 1, 1))
    draw = build(section(name, steps, **fields), schedule.steps)
    drawn = jax.jit(lambda z: draw(denoise, schedule, z, noise))(z_T)
    return np.asarray(drawn), np.asarray(z_T)


def visited(total=1000, **fields):
    return samplers.timesteps(section(**fields), total).tolist()


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [("ddpm", {}, 250), ("ddim", {}, 250), ("ddim", {"eta": 1.0}, 250), ("dpmpp_2m", {}, 50)],
)
def test_samples_have_the_distribution_of_the_data(name, options, steps):
    drawn, _ = sample(name, steps, clip=False, **options)
    assert drawn.mean() == pytest.approx(MU, abs=0.01)
    assert drawn.std() == pytest.approx(TAU, rel=0.04)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_deterministic_samplers_follow_the_probability_flow(name):
    """For Gaussian data the flow is a map of quantiles: x_0 = mu + tau z_T.

    Almost: alpha_bar_T is not quite 0.
    """
    drawn, z_T = sample(name, 250, clip=False)
    np.testing.assert_allclose(drawn, MU + TAU * z_T, atol=0.03)


def test_dpm_solver_is_of_higher_order_than_ddim():
    """Twice the steps halve the error of DDIM and at least quarter that of the other."""
    error = {}
    for name in ("ddim", "dpmpp_2m"):
        for steps in (20, 40):
            drawn, z_T = sample(name, steps, clip=False)
            error[name, steps] = np.abs(drawn - (MU + TAU * z_T)).mean()
    assert 1.5 < error["ddim", 20] / error["ddim", 40] < 2.5
    assert error["dpmpp_2m", 20] / error["dpmpp_2m", 40] > 4


def test_ddim_at_eta_one_is_ancestral_sampling():
    """Song et al. 2021, section 4.1: with the same noise, step for step."""
    ddpm, _ = sample("ddpm", 20)
    ddim, _ = sample("ddim", 20, eta=1.0)
    np.testing.assert_allclose(ddim, ddpm, atol=2e-5)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_one_step_gives_the_denoised_image(name):
    drawn, z_T = sample(name, 1)
    expected = jnp.clip(denoise(jnp.asarray(z_T), 999), -1, 1)
    np.testing.assert_allclose(drawn, expected, atol=1e-6)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_clipping_keeps_the_last_estimate_in_range(name):
    z_T = jax.random.normal(jax.random.key(0), (100, 1, 1, 1))
    draw = build(section(name, 8), 1000)
    drawn = draw(lambda z, t: 3 * z, SCHEDULE, z_T, lambda i: jnp.zeros_like(z_T))
    assert np.abs(drawn).max() <= 1


def test_eps_is_the_networks_own_or_follows_from_the_clipped_estimate():
    """The second of three steps of DDIM written out: they differ where the estimate is clipped."""
    _, t, r = samplers.timesteps(section(steps=3), 1000)
    z_T = jnp.linspace(-3, 3, 7).reshape(7, 1, 1, 1)
    seen = []

    def wide(z_t, t):
        seen.append(z_t)
        return 0.8 * z_t

    a, s = SCHEDULE.signal, SCHEDULE.noise
    ends = {}
    for clipped_eps in (True, False):
        seen.clear()
        draw = build(section(steps=3, clipped_eps=clipped_eps), 1000)
        with jax.disable_jit():
            draw(wide, SCHEDULE, z_T, None)
        _, z_t, ends[clipped_eps] = seen
        x_0 = np.clip(0.8 * z_t, -1, 1)
        eps = (z_t - a[t] * (x_0 if clipped_eps else 0.8 * z_t)) / s[t]
        np.testing.assert_allclose(ends[clipped_eps], a[r] * x_0 + s[r] * eps, atol=1e-6)
    assert np.abs(ends[True] - ends[False]).max() > 0.1


def test_with_a_fixed_stride_ddim_steps_beside_the_next_timestep():
    """Timesteps 9, 4 and 0 of 10 in 3: each step leads 3 down, and the last to clean data."""
    schedule = schedules.from_betas(schedules.linear(10))
    fields = {"steps": 3, "spacing": "linspace", "clip": False}
    draw = build(section(fixed_stride=True, **fields), 10)
    seen = []

    def constant(z_t, t):
        seen.append((int(t), z_t))
        return jnp.full_like(z_t, 0.3)

    z_t = jnp.linspace(-1, 1, 5).reshape(5, 1, 1, 1)
    with jax.disable_jit():
        seen.append((None, draw(constant, schedule, z_t, None)))
    assert [t for t, _ in seen] == [9, 4, 0, None]
    for (t, z_t), (_, z_r), r in zip(seen, seen[1:], [6, 1, None], strict=False):
        eps = (z_t - 0.3 * schedule.signal[t]) / schedule.noise[t]
        signal, noise = (1, 0) if r is None else (schedule.signal[r], schedule.noise[r])
        np.testing.assert_allclose(z_r, 0.3 * signal + noise * eps, atol=1e-6)


def test_ddim_that_does_not_end_clean_ends_at_the_first_timestep():
    """Of x_0 = 0.3 throughout: what is left of the noise there is that of alpha_bar_0."""
    schedule = schedules.from_betas(schedules.linear(10))
    fields = {"steps": 4, "spacing": "leading", "offset": 1, "clip": False}
    draw = build(section(ends_clean=False, **fields), 10)
    z_T = jnp.linspace(-1, 1, 5).reshape(5, 1, 1, 1)
    z_0 = draw(lambda z_t, t: jnp.full_like(z_t, 0.3), schedule, z_T, None)
    eps = (z_T - 0.3 * schedule.signal[7]) / schedule.noise[7]
    expected = 0.3 * schedule.signal[0] + schedule.noise[0] * eps
    np.testing.assert_allclose(z_0, expected, atol=2e-5)
    assert np.abs(z_0 - 0.3).max() > 1e-3


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_samplers_start_from_pure_noise_without_terminal_signal(name, spacing):
    """log-SNR is then infinite and alpha_bar divides nothing: all that is drawn is finite."""
    schedule = schedules.from_betas(schedules.zero_terminal_snr(schedules.linear(1000)))

    def exact(z_t, t):
        a, s = schedule.signal[t], schedule.noise[t]
        return MU + a * TAU**2 / (a**2 * TAU**2 + s**2) * (z_t - a * MU)

    drawn, _ = sample(name, 250, schedule=schedule, denoise=exact, spacing=spacing, clip=False)
    assert drawn.mean() == pytest.approx(MU, abs=0.01)
    assert drawn.std() == pytest.approx(TAU, rel=0.1)


# ----------------------------------------------------------------------------------------------
# Timesteps
# ----------------------------------------------------------------------------------------------


def test_timesteps_start_at_the_noisiest_and_are_evenly_spaced():
    assert visited(steps=4) == [999, 749, 499, 249]
    assert visited(10, steps=10) == list(range(9, -1, -1))
    for steps in (1, 3, 7, 50, 999):
        t = visited(steps=steps)
        assert len(t) == steps
        assert t[0] == 999
        assert (np.diff(t) < 0).all()
        assert t[-1] >= 0


def test_leading_timesteps_end_at_the_offset():
    """Of 1000 in 4: they miss the noisiest quarter."""
    assert visited(steps=4, spacing="leading") == [750, 500, 250, 0]
    assert visited(steps=4, spacing="leading", offset=1) == [751, 501, 251, 1]
    assert visited(steps=3, spacing="leading") == [666, 333, 0]


def test_linear_timesteps_have_both_ends():
    assert visited(steps=4, spacing="linspace") == [999, 666, 333, 0]
    assert visited(10, steps=10, spacing="linspace") == list(range(9, -1, -1))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"spacing": "trailing"}, [999, 749, 499, 249]),
        ({"spacing": "leading"}, [800, 600, 400, 200]),
        ({"spacing": "leading", "offset": 1}, [801, 601, 401, 201]),
        ({"spacing": "linspace"}, [999, 749, 500, 250]),
    ],
)
def test_dpm_solver_goes_to_clean_data_from_above_the_cleanest_timestep(fields, expected):
    assert visited(name="dpmpp_2m", steps=4, **fields) == expected


# ----------------------------------------------------------------------------------------------
# Guidance
# ----------------------------------------------------------------------------------------------


def test_guidance_moves_from_the_null_to_beyond_the_conditional():
    """A network that answers with its condition shows the weights of classifier-free guidance."""

    def apply(params, z_t, t, condition, *, key=None):
        return condition["contour"][..., :1]

    schedule = schedules.from_betas(schedules.linear(10))
    z_t = jnp.zeros((2, 4, 4, 1))
    condition = {"contour": jnp.full((2, 4, 4, 2), 0.5)}
    for scale in (0.0, 1.0, 2.0):
        scales = {"contour": scale}
        predict = guidance.denoiser(apply, {}, schedule, "x0", condition, scales=scales)
        np.testing.assert_allclose(predict(z_t, 5), 0.5 * scale, atol=1e-6)


def test_a_neighbour_is_followed_as_far_as_its_own_scale_says():
    """Of a network that answers with the sum of its conditions, each has the weight of its scale.

    What is not shown costs nothing: as many copies pass the network as have a weight.
    """
    seen = []

    def apply(params, z_t, t, condition, *, key=None):
        seen.append(len(z_t))
        return condition["contour"][..., :1] + condition["neighbour"][..., :1]

    schedule = schedules.from_betas(schedules.linear(10))
    z_t = jnp.zeros((2, 4, 4, 1))
    condition = {"contour": jnp.full((2, 4, 4, 2), 0.5), "neighbour": jnp.full((2, 4, 4, 2), 0.2)}
    copies = {(1.0, 1.0): 1, (1.0, 0.35): 2, (1.0, 0.0): 1, (2.0, 1.0): 2, (2.0, 0.5): 3}
    for (scale, followed), count in copies.items():
        scales = {"contour": scale, "neighbour": scale * followed}
        predict = guidance.denoiser(apply, {}, schedule, "x0", condition, scales=scales)
        expected = scale * (0.5 + followed * 0.2)
        np.testing.assert_allclose(predict(z_t, 5), expected, atol=1e-6)
        assert seen[-1] == 2 * count


def test_an_image_and_contours_have_each_a_scale_as_in_instructpix2pix():
    """e(0,0) + s_I [e(I,0) - e(0,0)] + s_C [e(I,C) - e(I,0)], Brooks et al. 2023, equation 3."""

    def apply(params, z_t, t, condition, *, key=None):
        image, contour = (condition[name][..., :1] for name in ("source", "contour"))
        return z_t + 3 * image + 5 * contour + 7 * image * contour

    schedule = schedules.from_betas(schedules.linear(10))
    z_t, image, contour = (jnp.full((2, 4, 4, 1), value) for value in (0.1, 0.4, 0.2))
    given = jnp.ones_like(z_t)
    condition = {
        "contour": jnp.concatenate([contour, given], -1),
        "source": jnp.concatenate([image, given], -1),
    }
    nothing = 0.0 * z_t

    def e(image, contour):
        return apply({}, z_t, 5, {"source": image, "contour": contour})

    for s_i, s_c in ((1.5, 7.5), (1.0, 2.0), (0.0, 1.0), (1.0, 1.0)):
        scales = {"source": s_i, "contour": s_c}
        predict = guidance.denoiser(apply, {}, schedule, "x0", condition, scales=scales)
        expected = (
            e(nothing, nothing)
            + s_i * (e(image, nothing) - e(nothing, nothing))
            + s_c * (e(image, contour) - e(image, nothing))
        )
        np.testing.assert_allclose(predict(z_t, 5), expected, atol=1e-5)
