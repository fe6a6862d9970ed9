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
        assert isinstance(value, int | float | str | tuple), name


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
