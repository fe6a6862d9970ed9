# SPDX-License-Identifier: Apache-2.0
"""Memory: what a step is told to need before it is compiled, and what is refused for it."""

import contextlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import setups

from contourdiff_jax import config, methods, models
from contourdiff_jax.contracts import Player
from contourdiff_jax.errors import InputError
from contourdiff_jax.training import loop, memory, state

UNET = models.build
COUNT = 1000


def settings(batch=4, accumulate=1, devices=1, **model):
    ours = config.default()
    ours.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
    ours.model.update(model)
    ours.train.update(batch=batch, accumulate=accumulate)
    ours.mesh.data = devices
    return ours


def of_volumes(ours, depth=8, size=16):
    """A method of volumes with the shapes of its patches alone."""
    ours.model.dims = 3
    method = methods.build(setups.run_of(ours, size))

    def image(channels):
        return jax.ShapeDtypeStruct((ours.train.batch, depth, size, size, channels), jnp.float32)

    example = {"x": image(1), "condition": {"contour": image(2)}}
    object.__setattr__(method, "feed", SimpleNamespace(example=example))
    return method


def estimate(ours, method=None, size=16):
    method = method or setups.method_of(ours, size)
    return memory.estimate(method, loop.like(method), ours.train)


# ----------------------------------------------------------------------------------------------
# What is needed
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_a_loss_keeps_is_what_its_gradient_is_made_of(checkpointed):
    """Of sin(p x) the cosine, beside what the loss is given; under jax.checkpoint nothing."""

    def of(params, x):
        return jnp.sin(params["p"] * x).sum()

    def loss(params, everyone, example, key, fixed, memory):
        return (jax.checkpoint(of) if checkpointed else of)(params, example["x"]), ({}, memory)

    like = SimpleNamespace(params={"one": {"p": jnp.ones(COUNT)}}, memory=())
    example = {"x": jax.ShapeDtypeStruct((COUNT,), jnp.float32)}
    kept = memory.residuals(Player(None, loss, None, None), "one", like, example, ())
    assert kept == (0 if checkpointed else 4 * COUNT)


@pytest.mark.usefixtures("two_convolutions")
def test_it_grows_with_the_images_that_a_device_has_at_once():
    one = estimate(settings(batch=2))
    for ours in (
        settings(batch=4, accumulate=2),
        settings(batch=4, devices=2),
        settings(batch=8, accumulate=2, devices=2),
    ):
        assert estimate(ours) == one
    several = estimate(settings(batch=8))
    assert several.fixed == one.fixed and several.kept == pytest.approx(4 * one.kept, rel=0.01)


@pytest.mark.usefixtures("two_convolutions")
def test_it_is_the_state_the_gradients_and_what_is_not_learnt():
    """Parameters, their average, two moments of Adam, and a gradient."""
    ours = settings()
    method = setups.method_of(ours, 16)
    like = loop.like(method)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(like.params))
    fixed = memory.estimate(method, like, ours.train).fixed
    assert fixed == pytest.approx(5 * size, abs=100)
    teacher = {"teacher": jax.device_put(jnp.ones(COUNT), method.mesh.devices.flat[0])}
    object.__setattr__(method, "fixed", teacher)
    assert memory.estimate(method, like, ours.train).fixed == fixed + 4 * COUNT


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_computed_again_is_not_kept(monkeypatch, dims):
    """The inside of the U-Net's blocks."""
    monkeypatch.setattr(models, "build", UNET)
    whole, again = settings(), settings(rematerialise=True)
    methods = [of_volumes(ours) if dims == 3 else None for ours in (whole, again)]
    assert estimate(again, methods[1]).kept < 0.6 * estimate(whole, methods[0]).kept


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batch", [1, 8])
def test_a_compiled_step_needs_no_less(monkeypatch, dims, batch):
    """And the estimate is none that says nothing."""
    monkeypatch.setattr(models, "build", UNET)
    ours = settings(batch=batch)
    method = of_volumes(ours, 8, 16) if dims == 3 else setups.method_of(ours, 32)
    like = loop.like(method)
    step = jax.jit(state.step(ours.train, method.players), donate_argnums=0)
    found = step.lower(like, method.feed.example, method.fixed).compile().memory_analysis()
    needed = found.argument_size_in_bytes + found.temp_size_in_bytes
    assert 0.2 * needed < estimate(ours, method).total < needed


def test_the_memory_of_a_device_is_what_it_says():
    gpu = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 7})
    assert memory.available(gpu) == 7
    silent = SimpleNamespace(platform="gpu", memory_stats=lambda: None)
    assert memory.available(silent) is None


def test_a_cpu_has_what_is_free(monkeypatch):
    cpu = SimpleNamespace(platform="cpu", memory_stats=lambda: None)
    lines = ["MemTotal:  900 kB\n", "MemAvailable:   500 kB\n", "SwapFree:  3 kB\n"]
    monkeypatch.setattr("builtins.open", lambda path: contextlib.nullcontext(lines))
    assert memory.available(cpu) == 500 * 1024

    def none(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr("builtins.open", none)
    assert memory.available(cpu) is None


# ----------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------


def refused(monkeypatch, method, ours, limit) -> str:
    """What is said where a device has so many bytes; nothing is compiled before."""
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda device: limit)
        patch.setattr(jax, "jit", lambda *_, **__: pytest.fail("compiled"))
        with pytest.raises(InputError) as error:
            loop.compiled(method, ours.train)
    said = str(error.value)
    assert "\n" not in said and "GiB at least, and a device has" in said
    return said


@pytest.mark.usefixtures("two_convolutions")
def test_a_step_that_does_not_fit_is_refused_before_it_is_compiled(monkeypatch):
    ours = settings(batch=8)
    method = setups.method_of(ours, 16)
    needed = estimate(ours, method)
    said = refused(monkeypatch, method, ours, needed.total - 1)
    assert "lower config.train.batch, or raise config.train.accumulate" in said
    said = refused(monkeypatch, method, ours, needed.fixed + needed.kept // 10)
    assert "not even of one image" in said and "smaller network" in said
    assert "the network alone takes" in refused(monkeypatch, method, ours, needed.fixed)


@pytest.mark.usefixtures("two_convolutions")
def test_patches_that_do_not_fit_are_told_the_largest_that_do(monkeypatch):
    ours = settings(batch=2)
    method = of_volumes(ours, depth=16, size=32)
    needed = estimate(ours, method)
    said = refused(monkeypatch, method, ours, needed.fixed + needed.kept * 3 // 4)
    assert "lower config.train.batch" in said
    said = refused(monkeypatch, method, ours, needed.fixed + needed.kept // 8)
    assert "--config.volume.depth=8 and --config.volume.side=16 at most" in said
    said = refused(monkeypatch, method, ours, needed.fixed + needed.kept // 1000)
    assert "not even of one small patch" in said


def test_the_largest_patch_has_the_shape_of_what_was_asked_for():
    assert memory.fitting(32, 128, 1.0) == (32, 128)
    assert memory.fitting(32, 128, 0.5) == (24, 104)
    assert memory.fitting(32, 128, 1 / 8) == (16, 64)
    assert memory.fitting(4, 96, 0.25) == (4, 48)
    assert memory.fitting(32, 128, 1e-4) == (0, 0)
    for share in np.linspace(0.01, 1, 20):
        depth, side = memory.fitting(64, 256, share)
        assert depth * side**2 <= share * 64 * 256**2 and depth % 8 == side % 8 == 0


@pytest.mark.usefixtures("two_convolutions")
def test_what_fits_is_compiled_and_its_operations_counted(monkeypatch):
    """Two convolutions, forwards and twice backwards, whatever the parts of a batch."""
    found = []
    for accumulate in (1, 2):
        ours = settings(batch=4, accumulate=accumulate)
        method = setups.method_of(ours, 16)
        needed = estimate(ours, method)
        with monkeypatch.context() as patch:
            patch.setattr(memory, "available", lambda device, needed=needed: needed.total)
            found.append(loop.compiled(method, ours.train).operations)
    forward = 2 * 4 * 16**2 * 9 * (3 * 8 + 8 * 1)
    for operations in found:
        assert 2 * forward < operations < 6 * forward
