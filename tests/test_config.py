# SPDX-License-Identifier: Apache-2.0
"""The configuration: what it takes, what it refuses, and when two are the same."""

import json

import pytest

from contourdiff_jax import config
from contourdiff_jax.errors import InputError


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


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"grid.spacing": -1.0}, "grid.spacing"),
        ({"augment.flip": 1.5}, "augment.flip: 1.5"),
        ({"augment.rotation": float("nan")}, "augment.rotation"),
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
        ({"model.conditions": ()}, "conditions"),
        ({"model.conditions": ("neighbour",)}, "must be contour"),
        ({"model.conditions": ("contour", "edges")}, "edges"),
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
        (DISTILLED | {"sampler.guidance": 2.0, "train.condition_dropout": 0.1}, "guidance"),
        # Training
        ({"train.images": 0}, "train.images: 0"),
        ({"train.clip": 0.0}, "train.clip"),
        ({"train.ema_halflife": -1}, "train.ema_halflife"),
        ({"train.keep": 0}, "train.keep"),
        ({"train.accumulate": 0}, "train.accumulate"),
        ({"train.learning_rate": -1e-3}, "train.learning_rate"),
        ({"train.learning_rate": float("nan")}, "train.learning_rate"),
        ({"train.warmup": -1}, "train.warmup"),
        ({"train.checkpoint": -5}, "train.checkpoint"),
        ({"train.condition_dropout": 1.5}, "train.condition_dropout: 1.5"),
        # Sampling
        ({"sampler.steps": 0}, "steps: 0.*at least 1"),
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
    settings = config.default()
    config.check(settings)
    for name, value in fields.items():
        section, _, field = name.rpartition(".")
        target = settings[section] if section else settings
        target[field] = value
    with pytest.raises(InputError, match=named):
        config.check(settings)


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
