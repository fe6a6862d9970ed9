# SPDX-License-Identifier: Apache-2.0
"""Policy for all tests.

Two fake devices, full precision, silent transfers refused, real data where it is. The tests that
`-m device` chooses hold on any: CONTOURDIFF_TEST_PLATFORMS=cuda,cpu has them run on a GPU.
Real volumes are found through $CONTOURDIFF_DATA, ../shared/data by default; tests that want them
are skipped, saying so, where they are absent.
"""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("CONTOURDIFF_TEST_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Several fake CPU devices with un-awaited steps can wait for one another for ever.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_numpy_rank_promotion", "raise")

DATA = Path(os.environ.get("CONTOURDIFF_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory) -> Iterator[None]:
    """What is compiled again, as when a run is resumed, is found compiled; by other processes too.

    Nothing of it is left to who runs the tests.
    """
    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    if not (DATA / "nifti").is_dir():
        pytest.skip(f"no real volumes at {DATA}; set CONTOURDIFF_DATA")
    return DATA


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def phantom_data(tmp_path_factory) -> Path:
    """Generated heads of 32 px: four with MR to train on, two to translate, with truth."""
    from contourdiff_jax.data.phantoms.heads import phantoms

    out = tmp_path_factory.mktemp("phantoms") / "data"
    phantoms(out, subjects=7, test=2, train_ct=1, size=32, slices=5, thickness=24, unseen=True)
    return out


@pytest.fixture(scope="session")
def store_path(phantom_data, tmp_path_factory) -> Path:
    """A store of their MR on a 32 px grid, one subject held out."""
    from contourdiff_jax.data.prepare import prepare

    out = tmp_path_factory.mktemp("stores") / "mr"
    prepare(phantom_data / "train_mr", out, "mr", spacing=7.2, size=32, validation=0.25)
    return out


@pytest.fixture(scope="session")
def paired_store_path(store_path, tmp_path_factory) -> Path:
    """The same store, with sources of CT."""
    import setups

    from contourdiff_jax.data.store import open_store

    return setups.paired(open_store(store_path), tmp_path_factory.mktemp("stores") / "paired")


@pytest.fixture(scope="module")
def two_convolutions() -> Iterator[None]:
    """In place of the U-Net, a network that compiles at once: to test all that is around it."""
    from contourdiff_jax import models

    _two_convolutions.replaced = models.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", _two_convolutions)
        yield


def _two_convolutions(config, channels=1, side=1, denoises=True):
    from contourdiff_jax import models
    from contourdiff_jax.models import conditioning

    width = config.channels[0]
    inputs = channels * denoises + conditioning.channels(config, image=channels, side=side)
    sides = (3,) * config.dims
    shapes = {"first": (*sides, inputs, width), "last": (*sides, width, channels)}
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])

    def init(key):
        noise = jnp.split(0.1 * jax.random.normal(key, ends[-1:]), ends[:-1])
        return {
            name: {"kernel": piece.reshape(shape), "bias": jnp.zeros(shape[-1])}
            for (name, shape), piece in zip(shapes.items(), noise, strict=True)
        }

    def apply(params, z_t, t, condition, *, key=None, context=None):
        def convolve(x, kernel, bias):
            space, ones = "DHW"[-config.dims :], (1,) * config.dims
            layout = (f"N{space}C", f"{space}IO", f"N{space}C")
            y = jax.lax.conv_general_dilated(x, kernel, ones, "SAME", dimension_numbers=layout)
            return y + bias.reshape(1, *ones, -1)

        x = conditioning.concatenate(config, z_t, condition, latent=side > 1)
        return convolve(jnp.tanh(convolve(x, **params["first"])), **params["last"])

    return models.Model(init, apply)


@pytest.fixture
def stacks(monkeypatch) -> None:
    """In place of the feed of volumes, one that needs none: patches of a store of few slices."""
    import setups

    from contourdiff_jax.data import volumetric

    monkeypatch.setattr(volumetric, "feed", setups.Stacks.under)


@pytest.fixture
def tiny():
    """A configuration that trains a tiny network in seconds."""
    from contourdiff_jax import config

    settings = config.default()
    settings.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
    settings.train.update(images=32, batch=4, log=4, evaluate=16, sample=0, checkpoint=0)
    settings.train.update(warmup=8, ema_halflife=16)
    settings.sampler.update(steps=4, batch=4)
    return settings


@pytest.fixture(scope="session")
def trained(store_path, tmp_path_factory) -> Path:
    """A run of that tiny network, whatever stands in for it where it is first asked for."""
    from contourdiff_jax import config, models
    from contourdiff_jax.methods import train

    settings = config.default()
    settings.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
    settings.train.update(images=16, batch=4, log=4, evaluate=8, sample=0, checkpoint=0, warmup=4)
    settings.train.condition_dropout = 0.1
    settings.sampler.update(steps=4, batch=4)
    run = tmp_path_factory.mktemp("runs") / "mr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", getattr(models.build, "replaced", models.build))
        assert train(settings, store_path, run)
    return run
