# SPDX-License-Identifier: Apache-2.0
"""The configuration: what it takes, what it refuses, and when two are the same."""

import dataclasses
import functools
import json
import re
import runpy
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from setups import run_of, translate

from contourdiff_jax import config, methods, models
from contourdiff_jax.commands import quickstart
from contourdiff_jax.data import examples, volumetric
from contourdiff_jax.data.store import Store, open_store
from contourdiff_jax.diffusion import schedules
from contourdiff_jax.diffusion.noise import Knots
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import controlnet, distilled
from contourdiff_jax.models import blocks
from contourdiff_jax.training import checkpoint, logs, loop, run
from contourdiff_jax.training import state as states
from contourdiff_jax.volumes.grid import Grid

BUILD = models.build  # of the network; others than its own fields are seen with two convolutions


def leaves(fields, prefix=()):
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def test_configurations_travel_through_json():
    """As they do in a run's config.json."""
    settings = config.default()
    settings.model.channels = (8, 16)
    settings.contours.update(windows=((0, 0.5), (0.25, 1)), low=10, high=20)
    read = config.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert config.differences(read, settings) == []
    assert read.model.channels == (8, 16)


def test_missing_fields_have_their_defaults():
    """A run of an older version may lack a field that is new."""
    read = config.from_dict({"seed": 5, "train": {"batch": 32}})
    assert (read.seed, read.train.batch) == (5, 32)
    assert config.differences(read, config.default()) == ["seed", "train.batch"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sead": 1}, "sead"),
        ({"train": {"bach": 8}}, "bach"),
        ({"train": {"batch.size": 8}}, "size"),
        ({"train": {"batch": "many"}}, "batch"),
        ({"train": {"batch": 2.5}}, "batch"),
        ({"model": {"channels": "wide"}}, "channels"),
        ({"model": 5}, "config"),
        ([1, 2], "config"),
    ],
)
def test_fields_that_are_not_ours_are_refused_in_one_line(fields, named):
    with pytest.raises(InputError, match=named) as error:
        config.from_dict(fields)
    assert "\n" not in str(error.value)


def test_a_misspelt_field_in_a_configuration_file_is_refused():
    with pytest.raises(AttributeError, match="bach"):
        config.default().train.bach = 8


def test_every_default_is_of_a_type_that_json_keeps():
    for name, value in leaves(config.default().to_dict()):
        assert isinstance(value, int | float | str | tuple | None), name


def test_differences_name_the_fields():
    ours, theirs = config.default(), config.default()
    assert config.differences(ours, theirs) == []
    theirs.train.learning_rate = 5e-4
    theirs.model.attention = (False, False, True, True)
    theirs.seed = 3
    expected = ["model.attention", "seed", "train.learning_rate"]
    assert config.differences(ours, theirs) == expected
    assert config.differences(theirs, ours) == expected


def test_how_the_network_is_computed_is_no_difference():
    ours, theirs = config.default(), config.default()
    theirs.model.update(rematerialise=True, fused_attention=True)
    assert config.differences(ours, theirs) == []


def test_which_devices_it_ran_on_is_no_difference():
    ours, theirs = config.default(), config.default()
    theirs.mesh.update(data=1, fsdp=2)
    assert config.differences(ours, theirs) == []


def test_a_configuration_is_not_shared():
    config.default().train.batch = 999
    assert config.default().train.batch != 999
    assert config.get_config().to_dict() == config.default().to_dict()


def test_a_section_replaced_by_a_number_is_named():
    with pytest.raises(InputError, match=r"config\.train: 7, where a section"):
        config.from_dict({"train": 7})


# ----------------------------------------------------------------------------------------------
# What cannot work
# ----------------------------------------------------------------------------------------------

NEIGHBOURS = ("contour", "neighbour")
IN_BFLOAT16 = {"model.fused_attention": True, "model.dtype": "bfloat16"}
DISTILLED = {"method": "distilled", "distillation.substeps": 4}


def configured(fields):
    """The defaults with these fields, by dotted name."""
    settings = config.default()
    settings.update_from_flattened_dict(fields)
    return settings


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"grid.spacing": -1.0}, "grid.spacing"),
        ({"augment.flip": 1.5}, "augment.flip: 1.5"),
        ({"augment.rotation": float("nan")}, "augment.rotation"),
        ({"augment.depth": -0.1}, "augment.depth"),
        ({"volume.depth": -1}, "volume.depth"),
        ({"volume.side": 100_000}, "volume.side"),
        ({"grid.slice_spacing": -1.0}, "grid.slice_spacing"),
        ({"disturbance.missing": -1.0}, "disturbance.missing: -1.0"),
        ({"disturbance.doubled": 1.5}, "disturbance.doubled"),
        ({"disturbance.doubled": 0.5}, "displacement"),
        ({"disturbance.noise": float("inf")}, "disturbance.noise"),
        # The network
        ({"model.channels": ()}, "channels"),
        ({"model.channels": (8, "a")}, "channels"),
        ({"model.channels": (6, 16), "model.attention": (False, False)}, "groups"),
        ({"model.attention": (True,)}, "attention"),
        ({"model.decoder_attention": (True,)}, "decoder_attention"),
        ({"model.head_width": 5}, "head_width"),
        ({"model.head_width": -8}, "head_width"),
        ({"model.context": -1}, "context"),
        ({"model.heads": (0,)}, "heads"),
        ({"model.dims": 4}, "dims: 4 is not one of 2, 3"),
        ({"model.dims": 3, "model.planar": 5}, "planar: 5 of the 4 resolutions"),
        ({"model.paths": 3}, "paths: 3 is not one of 1, 2"),
        ({"model.pool": (0,)}, "pool"),
        ({"model.pool": (2, 2)}, "pool: 2 entries for the 4"),
        ({"model.pool": (2,), "model.context": 8}, "pool: a transformer of config.model.context"),
        ({"model.heads": (2, 2)}, "heads: 2 entries for the 4"),
        ({"model.heads": (3,)}, "128 has attention.*heads=3"),
        ({"model.heads": (1, 1, 1, 256)}, "heads=256"),
        (IN_BFLOAT16 | {"model.heads": (32,)}, "heads: heads of 4"),
        ({"model.dtype": "float16"}, "float16"),
        ({"model.fused_attention": True}, "dtype is float32"),
        (IN_BFLOAT16 | {"model.head_width": 4}, "heads of 4"),
        ({"model.layers": 0}, "layers"),
        ({"model.layers": 100_000}, "layers: 100000 must lie between 1 and 64"),
        ({"model.groups": 0}, "groups"),
        ({"model.downsample_padding": 2}, "downsample_padding"),
        ({"model.middle_divisor": 0.0}, "middle_divisor"),
        ({"model.middle_divisor": float("inf")}, "middle_divisor"),
        ({"model.epsilon": -1e-5}, "epsilon"),
        ({"model.epsilon": float("nan")}, "epsilon"),
        ({"model.dropout": 1.0}, "dropout"),
        ({"model.dropout": float("nan")}, "dropout"),
        ({"model.channels": (5, 10, 20, 40), "model.groups": 5}, "even"),
        ({"model.channels": (2, 8, 8, 8), "model.groups": 2, "model.time_shift": 1}, "above 2"),
        ({"model.conditions": (), "method": "regression"}, "and regression sees nothing else"),
        ({"model.conditions": (), "method": "controlnet"}, "controlnet sees contours alone"),
        ({"model.conditions": ("source",), "method": "controlnet"}, "sees contours alone"),
        ({"controlnet.image_channels": 2}, "controlnet.image_channels: 2"),
        ({"sampler.control": -1.0}, "control"),
        ({"model.conditions": ("neighbour",)}, "must be one of .., .'contour',., "),
        ({"model.conditions": ("contour", "edges")}, "edges"),
        ({"model.conditions": ("neighbour", "source")}, "must be one of"),
        ({"model.conditions": ("source", "contour")}, "must be one of"),
        (
            {"model.conditions": ("contour", "source"), "train.condition_dropout": 0.4},
            "0.4 for each",
        ),
        (
            {"model.conditions": ("source",), "model.context": 8, "train.condition_dropout": 0.4},
            "0.4 for each of 2 conditions",
        ),
        (DISTILLED | {"sampler.prompt_guidance": 2.0, "train.condition_dropout": 0.1}, "guidance"),
        ({"autoencoder.channels": (8,)}, "two at least"),
        ({"sampler.source_guidance": 1.5}, "source_guidance: must be 1 for a network trained"),
        ({"sampler.prompt_guidance": 7.5}, "prompt_guidance: must be 1 for a network trained"),
        ({"model.conditions": ("contour", "contour")}, "conditions"),
        ({"model.null": "zero"}, "zero"),
        # Diffusion
        ({"diffusion.schedule": "square"}, "schedule.*square.*scaled_linear"),
        ({"diffusion.prediction": "score"}, "prediction.*score"),
        ({"diffusion.weighting": "score"}, "weighting.*score"),
        ({"diffusion.timesteps": "some"}, "some"),
        ({"diffusion.steps": 1}, "steps: 1"),
        ({"diffusion.beta_first": 0.0}, "beta_first=0.0"),
        ({"diffusion.beta_first": 0.03}, "beta_first=0.03.*beta_last=0.02"),
        ({"diffusion.beta_last": 1.0}, "beta_last=1.0"),
        (
            {"diffusion.zero_terminal_snr": True, "diffusion.prediction": "eps"},
            "zero_terminal_snr.*v or x0",
        ),
        # Distillation
        ({"distillation.substeps": -1}, "substeps"),
        ({"distillation.substeps": 2}, "each needs the other"),
        ({"method": "distilled"}, "each needs the other"),
        (DISTILLED | {"sampler.steps": 300}, "substeps: 4 for each of 300"),
        (DISTILLED | {"sampler.name": "dpmpp_2m"}, "DDIM"),
        (DISTILLED | {"sampler.eta": 1.0}, "eta 0"),
        (DISTILLED | {"sampler.fixed_stride": True}, "fixed_stride"),
        (DISTILLED | {"sampler.ends_clean": False}, "ends_clean true"),
        (DISTILLED | {"sampler.guidance": 2.0, "train.condition_dropout": 0.1}, "guidance"),
        # Training
        ({"train.images": 0}, "train.images: 0"),
        ({"train.clip": -1.0}, "train.clip"),
        ({"train.decay": "exponential"}, "train.decay.*cosine, linear"),
        ({"train.constant": 1.0}, "train.constant"),
        ({"train.beta_1": 1.0}, "train.beta_1"),
        # Generators and critics
        ({"adversarial.norm": "group"}, "norm.*instance, batch"),
        ({"adversarial.loss": "wasserstein"}, "loss.*least_squares, vanilla, hinge"),
        ({"adversarial.levels": 1}, "levels: 1 must lie between 2 and 16"),
        ({"adversarial.dropout": 1.0}, "dropout"),
        ({"adversarial.critic_layers": 0}, "critic_layers"),
        ({"adversarial.pool": -1}, "pool"),
        ({"adversarial.l1": float("nan")}, "l1"),
        ({"method": "cyclegan"}, "cyclegan sees the source alone"),
        # Autoencoders
        ({"method": "autoencoder"}, "autoencoder sees the source alone"),
        ({"autoencoder.image_channels": 2}, "image_channels: 2 is not one of 1, 3"),
        ({"autoencoder.channels": (16, 20)}, "20 is not a multiple of config.autoencoder.groups"),
        ({"autoencoder.alone": 1.5}, "alone"),
        ({"autoencoder.kl": float("nan")}, "kl"),
        ({"train.ema_halflife": -1}, "train.ema_halflife"),
        ({"train.keep": 0}, "train.keep"),
        ({"train.log_to": ("wandb", "wandb")}, "train.log_to.*tensorboard, wandb, trackio"),
        ({"train.log_to": ("mlflow",)}, "train.log_to"),
        ({"train.accumulate": 0}, "train.accumulate"),
        ({"train.learning_rate": -1e-3}, "train.learning_rate"),
        ({"train.learning_rate": float("nan")}, "train.learning_rate"),
        ({"train.warmup": -1}, "train.warmup"),
        ({"train.checkpoint": -5}, "train.checkpoint"),
        ({"train.condition_dropout": 1.5}, "train.condition_dropout: 1.5"),
        # Sampling
        ({"sampler.steps": 0}, "steps: 0.*between 1"),
        ({"sampler.steps": 1001}, "steps: 1001.*1 and 1000"),
        (
            {"sampler.steps": 1000, "sampler.name": "dpmpp_2m", "sampler.spacing": "leading"},
            "steps: 1000.*1 and 999",
        ),
        ({"sampler.spacing": "even"}, "spacing.*even.*leading"),
        ({"sampler.offset": 1}, "offset.*leading has it, not trailing"),
        ({"sampler.offset": 150, "sampler.spacing": "leading"}, "offset: 150.*1000"),
        ({"sampler.offset": -1, "sampler.spacing": "leading"}, "offset: -1"),
        ({"sampler.name": "euler"}, "name.*euler"),
        ({"sampler.name": "ddpm", "sampler.eta": 0.5}, "eta.*not ddpm"),
        ({"sampler.eta": 7.0}, "eta: 7.0"),
        ({"sampler.guidance": 2.0}, "condition_dropout=0.1"),
        ({"sampler.coupling": 1.0}, "coupling"),
        ({"sampler.keep": "best"}, "keep.*best_contours"),
        ({"sampler.tiles": 0.6}, "tiles"),
        ({"sampler.scgd": True}, "scgd.*neighbour.*train with"),
        (
            {"sampler.scgd": True, "sampler.coupling": 0.1, "model.conditions": NEIGHBOURS},
            "choose one",
        ),
    ],
)
def test_what_cannot_work_is_named(fields, named):
    config.check(config.default())
    with pytest.raises(InputError, match=named):
        config.check(configured(fields))


# By the type of a field, what none of that type may be.
NONSENSE = {
    bool: (None, 2, "yes", [], {}),
    int: (None, True, 1.5, -(2**70), 2**70, "1", [], {}, float("nan")),
    float: (None, True, float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 10**400, "1", []),
    str: (None, 1, "nonsense", [], {}),
    tuple: (None, True, 1, "abc", {}, [float("nan")], [-1], [2**70], ["nonsense"], [[["a"]]]),
}


@pytest.mark.parametrize("field", config.flat(config.default()))
def test_no_field_takes_nonsense(field, store_path):
    """No number is without bounds, no true or false a number, and nothing no value."""
    section, _, name = field.partition(".")
    default = config.default()
    kind = default[section].get_type(name) if name else default.get_type(section)
    for value in NONSENSE[kind]:
        fields = {section: {name: value}} if name else {section: value}
        if value is None and section == "contours" and name != "preset":
            continue  # what the preset says
        with pytest.raises(InputError) as error:
            read = config.from_dict(fields)
            config.check(read)
            methods._check_known(read.method)
            run.begin(read, open_store(store_path))
        assert "\n" not in str(error.value) and name in str(error.value)


def test_a_size_that_cannot_be_halved_is_named_with_one_that_can():
    settings = config.default()
    config.check(settings, size=32)
    with pytest.raises(InputError, match="--size=40"):
        config.check(settings, size=33)


def test_the_names_that_a_field_may_have_are_those_that_there_are():
    """config.py imports nothing heavy, so it has lists of its own."""
    from contourdiff_jax.contracts import CONDITIONS
    from contourdiff_jax.diffusion import samplers
    from contourdiff_jax.translation import samples
    from contourdiff_jax.volumes.grid import AXES

    for field, names in (
        ("sampler.name", samplers.SAMPLERS),
        ("sampler.spacing", samplers.SPACINGS),
        ("sampler.keep", samples.NAMES),
        ("grid.axis", ["", *AXES]),
    ):
        words = config.RULES[field].words.removeprefix("is not one of ")
        assert sorted(words.split(", ")) == sorted(names)
    assert tuple(CONDITIONS) == config.CONDITIONS


# ----------------------------------------------------------------------------------------------
# What would have no effect
# ----------------------------------------------------------------------------------------------

CHAINED = {"model.conditions": NEIGHBOURS, "sampler.scgd": True}
IMAGE_ALONE = {"model.conditions": ("source",)}
# Of each field that needs others: the fields with which it would do nothing.
IDLE = {
    "contours.preset": {
        **{"contours.windows": ((0, 1),), "contours.curve": (), "contours.low": 20.0},
        **{"contours.high": 50.0, "contours.blur": 3, "contours.apart": 0, "contours.thin": 0.0},
        **{"contours.native": False, "contours.clean": (), "contours.preset": "published"},
    },
    "augment.probability": {
        **{"augment.scale": 0.0, "augment.zoom": 0.0, "augment.rotation": 0.0},
        **{"augment.shift": 0.0, "augment.probability": 0.5},
    },
    **{f"augment.{name}": {"augment.probability": 0.0} for name in config.MOVES},
    "model.planar": {},
    "augment.depth": {"model.dims": 3, "augment.probability": 0.0},
    **{f"volume.{name}": {} for name in ("depth", "side")},
    "model.middle_norm": {"model.middle_attention": False},
    "model.resample_convolution": {"model.channels": (32,), "model.attention": (True,)},
    "model.downsample_padding": {},
    **{
        f"model.{name}": {"model.middle_attention": False, "model.attention": (False,) * 4}
        for name in ("context", "head_width", "heads", "pool")
    },
    "model.fused_attention": {
        **{"model.middle_attention": False, "model.attention": (False,) * 4},
        "model.dtype": "bfloat16",
    },
    "diffusion.beta_first": {},
    "diffusion.beta_last": {},
    "diffusion.time_exponent": {"diffusion.timesteps": "sampler", "sampler.steps": 1},
    "diffusion.timesteps": DISTILLED,
    "diffusion.gamma": {},
    "regression.ssim": {},
    **{
        f"regression.{name}": {"method": "regression", "regression.ssim": 1.0}
        for name in ("loss", "outside")
    },
    **{f"recast.{name}": {} for name in ("evenness", "blur", "noise")},
    **{
        f"adversarial.{name}": {}
        for name in (
            *("width", "critic_width", "critic_layers", "norm", "loss", "levels", "l1"),
            *("blocks", "cycle", "pool"),
        )
    },
    "adversarial.dropout": {"method": "pix2pix"},
    "adversarial.identity": {
        **{"method": "cyclegan", "model.conditions": ("source",)},
        "adversarial.cycle": 0.0,
    },
    "train.condition_dropout": {"model.conditions": ()},
    "train.constant": {},
    "train.ema_halflife": {"train.ema_rampup": 0.0},
    "train.neighbour": {},
    "sampler.clipped_eps": {"sampler.clip": False},
    "sampler.fixed_stride": {"sampler.name": "dpmpp_2m"},
    "sampler.ends_clean": {"sampler.name": "ddpm"},
    "sampler.neighbour_guidance": {},
    "sampler.candidates": {},
    "sampler.candidate": CHAINED | {"sampler.candidates": 1},
    "sampler.anchor": {},
    "sampler.middle": CHAINED | {"sampler.anchor": 1},
    "sampler.keep": {},
    "sampler.tiles": {"method": "regression"},
    "volume.depth": {},
    "volume.side": {},
    "sampler.guidance": IMAGE_ALONE | {"train.condition_dropout": 0.1},
    "sampler.source_guidance": {"train.condition_dropout": 0.1},
    "sampler.prompt_guidance": {"train.condition_dropout": 0.1},
    "sampler.control": {},
    **{
        f"disturbance.{name}": IMAGE_ALONE
        for name in ("thresholds", "contrast", "noise", "displacement", "missing")
    },
}


def test_all_fields_that_need_others_are_tried():
    assert set(IDLE) == set(config.NEEDS)


@pytest.mark.parametrize("field", IDLE)
def test_a_field_that_would_do_nothing_is_refused(field):
    """Where it is said, and where it is a flag; what has no effect as it is by default is not."""
    others = {name: value for name, value in IDLE[field].items() if name != field}
    settings = configured(others)
    config.check_idle(settings)
    settings = configured({field: EFFECTS[field].value} | IDLE[field])
    config.check(settings)
    with pytest.raises(InputError, match=rf"^config\.{field}: has no effect unless"):
        config.check_idle(settings)
    config.check_idle(settings, given=())
    with pytest.raises(InputError, match=rf"^(--|config\.).*{field.split('.')[1]}: has no effect"):
        config.check_idle(settings, given=[field], prefix="--")


@pytest.mark.parametrize("name", ["loss", "ssim", "outside"])
def test_the_loss_of_a_regression_is_of_no_other(name):
    with pytest.raises(InputError, match=r"unless config\.method is regression"):
        config.check_idle(config.default(), given=[f"regression.{name}"])


OF_NOISE = [
    name
    for name in config.flat(config.default())
    if name.startswith(config.OF_STEPS) and name not in config.OF_ANY
]


@pytest.mark.parametrize("method", config.AT_ONCE)
def test_who_draws_at_once_has_no_field_of_noise_and_time(method):
    settings = configured({"method": method, "sampler.batch": 2})
    settings.model.conditions = ("source",)
    config.check(settings)
    config.check_idle(settings)
    assert {"sampler.steps", "sampler.samples", "diffusion.prediction"} <= set(OF_NOISE)
    for name in OF_NOISE:
        flag = re.escape(f"--{name.split('.')[1]}".replace("--name", "--sampler"))
        with pytest.raises(InputError, match=rf"^({flag}|config\.{name}): .* diffusion") as error:
            config.check_idle(settings, given=[name], prefix="--")
        assert "\n" not in str(error.value)
        config.check_idle(config.default(), given=[name] * (name not in IDLE))
    settings.model.conditions = NEIGHBOURS
    with pytest.raises(InputError, match=rf"conditions: neighbour .*{method}"):
        config.check(settings)


def test_a_flag_is_told_of_flags():
    with pytest.raises(InputError) as error:
        config.check_idle(config.default(), ["sampler.keep"], "--")
    assert str(error.value) == "--keep: has no effect unless --samples is above 1"


def test_configurations_of_ours_have_no_idle_field():
    for path in (Path(__file__).parents[1] / "configs").glob("*.py"):
        settings = runpy.run_path(str(path))["get_config"]()
        config.check(settings)
        config.check_idle(settings)
    config.check(quickstart.config())
    config.check_idle(quickstart.config())


# ----------------------------------------------------------------------------------------------
# Every field has an effect
# ----------------------------------------------------------------------------------------------


class World(NamedTuple):
    """What the effects of fields are seen on, a folder to work in, and what has been seen."""

    store: Store
    source: Path
    folder: Path
    seen: dict

    def effect(self, where: Callable, settings):
        """What is seen with these settings."""
        key = where, json.dumps(settings.to_dict())
        if key not in self.seen:
            self.seen[key] = where(settings, self)
        return self.seen[key]


@pytest.fixture(scope="module")
def world(paired_store_path, phantom_data, two_convolutions, tmp_path_factory):
    """What fields are tried on, with a network that compiles at once."""
    folder = tmp_path_factory.mktemp("fields")
    return World(open_store(paired_store_path), phantom_data / "test_ct", folder, {})


def traced(function, *arguments) -> str:
    """What a function computes, constants included."""
    return jax.jit(function).lower(*arguments).as_text()


def network(settings, world):
    """The U-Net: its parameters, and what it computes."""
    with pytest.MonkeyPatch.context() as patch:  # elsewhere than on an NVIDIA GPU it is the same
        patch.setattr(blocks, "attend_fused", lambda *arrays: 2 * blocks.attend(*arrays))
        model = BUILD(settings.model)
    params = jax.eval_shape(model.init, jax.random.key(0))
    space = (16,) * settings.model.dims
    image, condition = (jax.ShapeDtypeStruct((2, *space, c), jnp.float32) for c in (1, 2))
    seen = dict.fromkeys(settings.model.conditions, condition)

    def apply(params, z_t, t, seen, key):
        return model.apply(params, z_t, t, seen, key=key, context=context)

    width = settings.model.context
    context = jnp.zeros((2, 5, width)) if width else None
    t, key = jnp.zeros(2, jnp.int32), jax.random.key(0)
    return str(params), str(jax.make_jaxpr(apply)(params, image, t, seen, key))


def method_of(settings, world):
    store = world.store
    how = {"source": store} if settings.method in config.UNPAIRED else {}
    return methods.build(run.begin(settings, store, **how), store=store, **how)


def contours(settings, world):
    """How contours are taken."""
    return run.begin(settings, world.store).contours


def step(settings, world):
    """A step of training: the loss, the optimiser and the average."""
    method = method_of(settings, world)
    return step_of(settings, method, method.feed.example)


def step_of(settings, method, example):
    init = functools.partial(states.init, method.players, memory=method.memory)
    state = jax.eval_shape(init, jax.random.key(0))
    return traced(states.step(settings.train, method.players), state, example)


def larger(settings, world):
    """A step of training on larger images."""
    image, seen = (jax.ShapeDtypeStruct((4, 64, 64, c), jnp.float32) for c in (1, 2))
    method = methods.build(run_of(settings, 64))
    return step_of(settings, method, {"x": image, "condition": {"contour": seen}})


def lesson(settings, world):
    """What a teacher says."""
    schedule = schedules.build(settings.diffusion)
    bound = lambda fixed: lambda params, z_t, t, seen: z_t  # noqa: E731
    teach = distilled.teaching(bound, schedule, settings)
    return traced(teach, {"teacher": {}}, jnp.zeros((2, 8, 8, 1)), jnp.full(2, 999), {})


def drawing(settings, world):
    """The sampler, and how many slices it draws at once."""
    method = method_of(settings, world)
    translator = method.translator({"network": None}, ())
    params = jax.eval_shape(method.players["network"].init, jax.random.key(0))
    batch = 2 * settings.sampler.batch
    like = jax.ShapeDtypeStruct((batch, 32, 32, 2), jnp.float32)
    knots = Knots(np.zeros((batch, 2, 2), np.uint32), np.zeros((batch, 2), np.float32))
    seen = dict.fromkeys(settings.model.conditions, like)
    return translator.batch, method.draw.lower((params, ()), seen, knots, None).as_text()


def prompted(settings, world):
    """The sampler of a network that attends to a prompt."""
    ours = dataclasses.replace(run_of(settings, 32), prompt=run.PromptOf("", ""))
    method = methods.build(ours)
    fixed = {"prompt": np.zeros((2, 3, 6), np.float32)}
    params = jax.eval_shape(method.players["network"].init, jax.random.key(0))
    knots = Knots(np.zeros((4, 2, 2), np.uint32), np.zeros((4, 2), np.float32))
    seen = {"contour": jax.ShapeDtypeStruct((4, 32, 32, 2), jnp.float32)}
    return method.draw.lower((params, fixed), seen, knots, None).as_text()


def branch(settings, world):
    """A ControlNet beside a network of latents, as the sampler has it."""
    if settings.controlnet.channels == config.default().controlnet.channels:
        settings.controlnet.channels = (3, 3)  # for latents of 2 x 2 pixels
    codec = run.CodecOf(configured(AUTOENCODER).autoencoder, 1.0, "")
    ours = dataclasses.replace(run_of(settings, 32), codec=codec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", BUILD)
        made = controlnet.network_of(ours, settings.sampler.control)
    params = jax.eval_shape(made.init, jax.random.key(0))
    fixed = {"base": jax.eval_shape(made.base.init, jax.random.key(0))}
    z_t = jax.ShapeDtypeStruct((2, 16, 16, 2), jnp.float32)
    seen = {"contour": jax.ShapeDtypeStruct((2, 16, 16, 5), jnp.float32)}

    def apply(params, fixed, z_t, seen):
        return made.bound(fixed)(params, z_t, jnp.zeros(2, jnp.int32), seen)

    return str(params), str(jax.make_jaxpr(apply)(params, fixed, z_t, seen))


def choice(settings, world):
    """What a step learns from, and where it lies."""
    feed = method_of(settings, world).feed
    chosen = jax.tree.map(np.ndarray.tolist, tuple(feed.choose(2)))
    return chosen, feed.is_resident


def made(settings, world):
    """How examples are made of slices."""
    feed = method_of(settings, world).feed
    chosen, made = feed.choose(0), feed.maker()
    raw = examples.read(world.store, feed.contours, chosen.rows)
    return traced(lambda raw: made((raw, None), chosen), raw)


def patches(settings, world):
    """What a step learns from of volumes, and its shape."""
    ours = run.begin(settings, world.store)
    conditions = tuple(settings.model.conditions)
    feed = volumetric.feed(settings, world.store, ours.contours, conditions, None)
    return jax.tree.map(np.ndarray.tolist, tuple(feed.choose(2))), str(feed.example)


def refused(settings, world):
    """What cannot be, of these settings or on this store."""
    config.check(settings)
    method_of(settings, world)


def devices(settings, world):
    """The mesh."""
    return method_of(settings, world).mesh.shape


def events(settings, world):
    """What the loop does, and after which steps."""
    happened = []

    class Stub:
        fixed, example = (), {}

        def training(self, start, stop):
            return iter([self.example] * (stop - start))

        def held_out(self, *_):
            happened.append(("held out", int(stub.step)))
            return {"heldout_loss": 1 / len(happened)}

        def samples(self, *_):
            happened.append(("samples", int(stub.step)))

    def advance(state, example, fixed):
        stub.step = state.step + 1
        return state._replace(step=stub.step), {"loss": 0.0}

    stub = Stub()
    stub.feed, stub.step = stub, 0
    begun = states.TrainState(0, None, {}, {}, {})
    compiled = loop.Compiled(lambda key: begun, begun, advance, 0)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        for name in ("check", "finish"):
            patch.setattr(loop.checkpoint, name, lambda checkpoints: None)
        kept = SimpleNamespace(close=lambda: None)
        patch.setattr(
            loop.checkpoint,
            "manager",
            lambda run, keep, keep_best: happened.append(("keep", keep)) or kept,
        )
        patch.setattr(
            loop.checkpoint,
            "save",
            lambda _, state, loss: happened.append(("checkpoint", int(state.step))),
        )
        loop.train(stub, compiled, settings.train, Path(folder), seed=0, name="stub")
        lines = (Path(folder) / "stats.jsonl").read_text().splitlines()
    return happened + [("log", json.loads(line)["step"]) for line in lines]


def sinks_told(settings, world):
    """The sinks that a training opens."""
    with pytest.MonkeyPatch.context() as patch:
        opened = []
        patch.setattr(logs, "Sinks", lambda run, names: opened.extend(names) or UNTOLD)
        return events(settings, world), opened


def translation(settings, world):
    """The volumes that a run of this configuration translates, and their maps."""
    folder = world.folder / str(uuid.uuid4())
    out = folder.with_name(f"{folder.name}_out")
    ours = dataclasses.replace(run.begin(settings, world.store), grid=Grid("axial", 7.2, 24))
    folder.mkdir()
    ours.save(folder)
    method = methods.build(ours)
    params = method.players["network"].init(jax.random.key(1))
    checkpoint.save_averages(folder, {"network": params})
    translate(folder, world.source, out, preset="ct")
    return {
        str(path.relative_to(out)): np.asarray(nib.load(path).dataobj).tobytes()
        for path in sorted(out.rglob("*.nii.gz"))
    }


class Effect(NamedTuple):
    """Where a field's effect is seen, a value to set it to, and what it needs beside it."""

    where: Callable
    value: object
    others: Mapping = MappingProxyType({})


UNTOLD = SimpleNamespace(
    numbers=lambda *_: None, picture=lambda *_: None, close=lambda: None
)  # a sink
SEVERAL = {"model.conditions": NEIGHBOURS}
CURVED = {"contours.windows": (), "contours.curve": ((0, 0), (1, 1))}
SAMPLES = {"sampler.samples": 2}
SOLID = {"model.dims": 3, "volume.depth": 2}
REGRESSION = {"method": "regression", "sampler.steps": 10}
# Without the fields of TINY that are of a U-Net for diffusion.
ADVERSARIAL = {
    **{"model.channels": (16, 32, 64, 128), "model.attention": (False, False, False, True)},
    **{"model.head_width": 32, "model.groups": 8, "sampler.steps": 10},
    **{"adversarial.width": 2, "adversarial.critic_width": 2, "adversarial.critic_layers": 2},
}
PIX2PIX = ADVERSARIAL | {"method": "pix2pix"}
CYCLEGAN = ADVERSARIAL | {"method": "cyclegan", "model.conditions": ("source",)}
CONTROLNET = {"method": "controlnet"}
AUTOENCODER = CYCLEGAN | {
    **{"method": "autoencoder", "adversarial.width": 32, "autoencoder.alone": 0.25},
    **{"autoencoder.channels": (4, 8), "autoencoder.groups": 2, "autoencoder.latents": 2},
}

EFFECTS = {
    "seed": Effect(choice, 1),
    "method": Effect(refused, "regresion"),
    **{
        f"grid.{name}": Effect(refused, value)
        for name, value in zip(
            ("axis", "spacing", "size", "slice_spacing"), ("coronal", 3.0, 64, 3.0), strict=True
        )
    },
    "contours.preset": Effect(contours, "published"),
    "contours.windows": Effect(contours, ((0, 0.5),)),
    "contours.curve": Effect(contours, ((0, 0), (1, 1))),
    "contours.low": Effect(contours, 30.0),
    "contours.high": Effect(contours, 60.0),
    "contours.blur": Effect(contours, 5),
    "contours.apart": Effect(contours, 1, {"contours.windows": ((0, 0.5), (0.5, 1))}),
    "contours.thin": Effect(refused, 2.0, CURVED),  # by a store that lacks the pictures
    "contours.native": Effect(refused, True),  # likewise
    "contours.clean": Effect(refused, (80, 30)),
    **{
        f"augment.{name}": Effect(made, value)
        for name, value in (
            *(("flip", 0.1), ("probability", 0.5), ("scale", 0.2), ("zoom", 0.2)),
            *(("rotation", 5.0), ("shift", 0.1)),
        )
    },
    "augment.depth": Effect(patches, 0.3, SOLID),
    "volume.depth": Effect(patches, 4, SOLID),
    "volume.side": Effect(patches, 16, SOLID),
    **{
        f"disturbance.{name}": Effect(made, 0.5)
        for name in ("thresholds", "contrast", "noise", "displacement", "missing")
    },
    "disturbance.doubled": Effect(made, 0.5, {"disturbance.displacement": 1.0}),
    **{
        f"recast.{name}": Effect(made, 0.5, {"model.conditions": ("contour", "picture")})
        for name in ("evenness", "blur", "noise")
    },
    "model.dims": Effect(network, 3),
    "model.conditions": Effect(network, NEIGHBOURS),
    "model.patch": Effect(network, 2),
    "model.null": Effect(network, "empty"),
    "model.channels": Effect(network, (4, 8)),
    "model.planar": Effect(network, 1, {"model.dims": 3}),
    "model.layers": Effect(network, 2),
    "model.paths": Effect(network, 2),
    "model.attention": Effect(network, (True, False)),
    "model.decoder_attention": Effect(network, (True, False)),
    "model.middle_attention": Effect(network, False),
    "model.middle_norm": Effect(network, False),
    "model.middle_divisor": Effect(network, 2.0),
    "model.resample_convolution": Effect(network, True),
    "model.downsample_padding": Effect(network, 0, {"model.resample_convolution": True}),
    "model.context": Effect(network, 6),
    "model.head_width": Effect(network, 2),
    "model.heads": Effect(network, (2,), {"model.head_width": 32, "model.heads": (4,)}),
    "model.pool": Effect(network, (2,)),
    "model.groups": Effect(network, 1),
    "model.epsilon": Effect(network, 1e-6),
    "model.time_scale_shift": Effect(network, True),
    "model.time_cosine_first": Effect(network, False),
    "model.time_shift": Effect(network, 1),
    "model.centre_input": Effect(network, True),
    "model.dropout": Effect(network, 0.1),
    "model.dtype": Effect(network, "bfloat16"),
    "model.rematerialise": Effect(network, True),
    "model.fused_attention": Effect(
        network, True, {"model.dtype": "bfloat16", "model.channels": (8, 8), "model.head_width": 8}
    ),
    "diffusion.steps": Effect(step, 500),
    "diffusion.schedule": Effect(step, "linear"),
    "diffusion.beta_first": Effect(step, 1e-3, {"diffusion.schedule": "linear"}),
    "diffusion.beta_last": Effect(step, 0.01, {"diffusion.schedule": "scaled_linear"}),
    "diffusion.zero_terminal_snr": Effect(step, True),
    "diffusion.prediction": Effect(step, "eps"),
    "diffusion.weighting": Effect(step, "none"),
    "diffusion.time_exponent": Effect(step, 0.5),
    "diffusion.timesteps": Effect(step, "sampler"),
    "diffusion.gamma": Effect(step, 3.0, {"diffusion.weighting": "min_snr"}),
    "distillation.substeps": Effect(lesson, 3, DISTILLED),
    "regression.loss": Effect(step, "l2", REGRESSION),
    "regression.ssim": Effect(step, 0.5, REGRESSION),
    "regression.outside": Effect(step, 0.0, REGRESSION),
    **{
        f"adversarial.{name}": Effect(step, value, PIX2PIX)
        for name, value in (
            *(("width", 3), ("levels", 4), ("critic_width", 3), ("critic_layers", 1)),
            *(("norm", "batch"), ("loss", "vanilla"), ("l1", 10.0)),
        )
    },
    "adversarial.dropout": Effect(larger, 0.2, PIX2PIX | {"adversarial.levels": 6}),
    **{
        f"adversarial.{name}": Effect(step, value, CYCLEGAN)
        for name, value in (("blocks", 2), ("cycle", 1.0), ("identity", 0.0), ("pool", 3))
    },
    **{
        f"autoencoder.{name}": Effect(step, value, AUTOENCODER)
        for name, value in (
            *(("image_channels", 3), ("channels", (4, 4)), ("layers", 2), ("latents", 3)),
            *(("attention", True), ("groups", 4), ("epsilon", 1e-5), ("kl", 1.0)),
            *(("adversarial", 1.0), ("alone", 0.75)),
        )
    },
    "controlnet.channels": Effect(branch, (5, 3), CONTROLNET),
    "controlnet.image_channels": Effect(branch, 3, CONTROLNET),
    "autoencoder.perceptual": Effect(refused, 0.5, AUTOENCODER),  # without --perceptual
    "train.images": Effect(step, 64),
    "train.batch": Effect(step, 8),
    "train.accumulate": Effect(step, 2),
    "train.learning_rate": Effect(step, 1e-2),
    "train.warmup": Effect(step, 16),
    "train.decay": Effect(step, "linear"),
    "train.constant": Effect(step, 0.5, {"train.decay": "linear"}),
    "train.beta_1": Effect(step, 0.5),
    "train.weight_decay": Effect(step, 1e-2),
    "train.clip": Effect(step, 0.5),
    "train.ema_halflife": Effect(step, 8),
    "train.ema_rampup": Effect(step, 0.5),
    "train.condition_dropout": Effect(step, 0.1),
    "train.neighbour": Effect(choice, 1.0, SEVERAL),
    "train.resident": Effect(choice, 0.0),
    "train.log": Effect(events, 16),
    "train.evaluate": Effect(events, 8),
    "train.sample": Effect(events, 8),
    "train.checkpoint": Effect(events, 8),
    "train.minutes": Effect(events, 1e-9),
    "train.keep": Effect(events, 3),
    "train.keep_best": Effect(events, True, {"train.evaluate": 8}),
    "train.log_to": Effect(sinks_told, ("trackio",)),
    "sampler.name": Effect(drawing, "ddpm"),
    "sampler.steps": Effect(drawing, 3),
    "sampler.spacing": Effect(drawing, "leading"),
    "sampler.offset": Effect(drawing, 1, {"sampler.spacing": "leading"}),
    "sampler.eta": Effect(drawing, 1.0),
    "sampler.clip": Effect(drawing, False),
    "sampler.clipped_eps": Effect(drawing, False),
    # Where the number of steps divides T, the next timestep and T // n down are the same.
    "sampler.fixed_stride": Effect(drawing, True, {"sampler.steps": 3}),
    "sampler.ends_clean": Effect(drawing, False),
    "sampler.guidance": Effect(drawing, 2.0, {"train.condition_dropout": 0.1}),
    "sampler.source_guidance": Effect(
        drawing, 2.0, {"train.condition_dropout": 0.1, "model.conditions": ("source",)}
    ),
    "sampler.prompt_guidance": Effect(
        prompted, 2.0, {"train.condition_dropout": 0.1, "model.context": 6}
    ),
    "sampler.control": Effect(branch, 0.5, CONTROLNET),
    "sampler.batch": Effect(drawing, 2),
    "sampler.coherence": Effect(translation, 20.0),
    "sampler.coupling": Effect(translation, 0.5),
    "sampler.scgd": Effect(translation, True, SEVERAL),
    "sampler.neighbour_guidance": Effect(translation, 1.0, CHAINED),
    "sampler.candidates": Effect(translation, 2, CHAINED),
    "sampler.candidate": Effect(translation, "best_contours", CHAINED),
    "sampler.anchor": Effect(translation, 2, CHAINED),
    "sampler.middle": Effect(translation, True, CHAINED),
    "sampler.samples": Effect(translation, 2),
    "sampler.keep": Effect(translation, "mean", SAMPLES),
    "sampler.tiles": Effect(translation, 0.25),
    "mesh.data": Effect(devices, 1),
    "mesh.fsdp": Effect(devices, 2),
}
# Small enough to be built for every field.
TINY = {
    **{"model.channels": (4, 4), "model.attention": (False, True), "model.head_width": 4},
    **{"model.groups": 2, "train.images": 32, "train.batch": 4, "train.warmup": 8},
    **{"train.log": 4, "train.evaluate": 16, "train.sample": 16, "train.checkpoint": 16},
    **{"sampler.steps": 2, "sampler.batch": 4},
}


def test_no_field_is_left_out():
    assert set(EFFECTS) == set(config.flat(config.default()))


# Of CycleGAN and of autoencoders a program takes seconds to compile.
SLOW = [f"adversarial.{name}" for name in ("blocks", "pool", "cycle", "identity", "width")]
SLOW += [name for name in EFFECTS if name.startswith("autoencoder.")]


@pytest.mark.parametrize(
    "field", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in EFFECTS]
)
def test_every_field_has_an_effect(field, world):
    """Or is refused; where it is neither, it should not be there, or another should say so."""
    where, value, others = EFFECTS[field]
    before = configured(TINY | dict(others))
    after = configured(TINY | dict(others) | {field: value})
    config.check(before)
    config.check_idle(before)
    if where is refused:
        refused(before, world)
        with pytest.raises(InputError, match=rf"config\.{field.split('.')[0]}"):
            refused(after, world)
        return
    config.check(after)
    config.check_idle(after)
    assert world.effect(where, after) != world.effect(where, before)


def test_a_size_for_latents_is_told_in_pixels():
    settings = configured({"model.channels": (8,) * 5, "model.attention": (False,) * 5})
    settings.model.update(groups=4, head_width=8)
    config.check_size(settings, 128, 8)
    with pytest.raises(InputError, match=r"images of 96 px .* latents of 4 px: take --size=128"):
        config.check_size(settings, 96, 4)
