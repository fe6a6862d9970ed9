# SPDX-License-Identifier: Apache-2.0
"""Sinks are told what stats.jsonl has, and cost no training where they fail.

Modules that note what is asked of them stand in for the packages, which need not be installed.
"""

import importlib.machinery
import json
import sys
import types

import numpy as np
import pytest
import setups

from contourdiff_jax import config, methods
from contourdiff_jax.errors import InputError
from contourdiff_jax.training import checkpoint, sinks
from contourdiff_jax.training.logs import Logs

PICTURE = np.arange(24, dtype=np.uint8).reshape(4, 6)


class Told:
    """What one of the packages was asked for."""

    def __init__(self):
        self.begun, self.numbers, self.pictures, self.closed = [], [], [], 0
        self.fails = False  # from now on

    def log(self, images, values):
        if self.fails:
            raise ConnectionError("the network is\ngone")
        if "samples" in values:
            self.pictures.append((images, np.asarray(values["samples"])))
        else:
            self.numbers.append((images, values))

    def close(self):
        self.closed += 1


def tensorboardx(told):
    writer = types.SimpleNamespace(
        add_scalar=lambda name, value, images: told.log(images, {name: value}),
        add_image=lambda name, picture, images, dataformats: told.log(images, {name: picture}),
        close=told.close,
    )
    return {"SummaryWriter": lambda folder: told.begun.append({"dir": folder}) or writer}


def wandb(told):
    def log(values):
        told.log(values.pop("images"), values)

    run = types.SimpleNamespace(log=log, finish=told.close, define_metric=lambda *_, **__: None)
    return {
        "Settings": dict,
        "Image": lambda image: image,
        "init": lambda **how: told.begun.append(how) or run,
    }


def trackio(told):
    run = types.SimpleNamespace(log=lambda values, step: told.log(step, values), finish=told.close)
    return {
        "Image": lambda image: image,
        "init": lambda project, name, **how: told.begun.append(how | {"id": name}) or run,
    }


PACKAGES = {"tensorboard": tensorboardx, "wandb": wandb, "trackio": trackio}


@pytest.fixture
def packages(monkeypatch):
    """What each of them is told, by the name of the sink."""
    found = {}
    for name, made in PACKAGES.items():
        told = found[name] = Told()
        module = types.ModuleType(sinks.SINKS[name].module)
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.__dict__.update(made(told))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


@pytest.fixture
def run(tmp_path):
    """The folder of a run."""
    folder = tmp_path / "mine"
    folder.mkdir()
    fields = {"schema": 1, "config": {"seed": 7}, "data": {"subjects": ["p1"]}}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def write(run, *names, steps=(1, 2)):
    logs = Logs(run, steps[0] - 1, names)
    for step in steps:
        logs.write_scalars(step, 4 * step, {"loss": 1 / step, "heldout_loss_t": [0.1]})
    logs.write_image(4 * steps[-1], PICTURE)
    logs.close()


def test_the_names_are_those_of_the_configuration():
    assert tuple(sinks.SINKS) == config.SINKS


@pytest.mark.parametrize("name", sinks.SINKS)
def test_a_sink_is_told_numbers_and_pictures_by_images_seen(packages, run, name):
    write(run, name)
    told = packages[name]
    assert told.numbers == [(4, {"loss": 1.0}), (8, {"loss": 0.5})]
    ((images, picture),) = told.pictures
    assert images == 8 and told.closed == 1
    np.testing.assert_array_equal(picture, PICTURE)
    assert not any(other.begun for where, other in packages.items() if where != name)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_what_is_resumed_goes_on_in_the_same_run_there(packages, run, tmp_path, name):
    write(run, name)
    write(run, name, steps=(2, 3))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((run / "config.json").read_text())
    write(other, name)
    first, again, theirs = packages[name].begun
    assert first["id"] == again["id"] != theirs["id"]
    assert first["resume"] == "allow"
    assert first["config"] == {"seed": 7}  # and nothing of the data


def test_of_w_and_b_nothing_of_the_machine_is_asked(packages, run):
    write(run, "wandb")
    (how,) = packages["wandb"].begun
    off = {"x_disable_meta", "x_disable_machine_info", "disable_git", "disable_code"}
    assert {name for name, value in how["settings"].items() if value is True} == off
    assert how["dir"] == run and how["name"] == "mine"


def test_a_sink_that_fails_is_said_once_and_the_others_go_on(packages, run, capsys):
    packages["wandb"].fails = True
    write(run, "wandb", "trackio", steps=(1, 2, 3))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {run}: wandb: the network is gone; training goes on")
    assert len(packages["trackio"].numbers) == len((run / "stats.jsonl").read_text().splitlines())


def test_a_sink_that_does_not_open_is_said_once(packages, run, monkeypatch, capsys):
    def refused(**how):
        raise PermissionError("no key")

    monkeypatch.setattr(sys.modules["wandb"], "init", refused)
    write(run, "wandb", "tensorboard")
    (line,) = capsys.readouterr().err.splitlines()
    assert "wandb: no key" in line
    assert packages["tensorboard"].numbers


@pytest.mark.parametrize("name", sinks.SINKS)
def test_a_package_that_is_missing_is_one_line_before_any_work(
    name, store_path, tmp_path, monkeypatch
):
    find = sinks.importlib.util.find_spec
    missing = sinks.SINKS[name].module
    monkeypatch.setattr(
        sinks.importlib.util, "find_spec", lambda it: None if it == missing else find(it)
    )
    settings = config.default()
    settings.train.log_to = (name,)
    with pytest.raises(InputError, match=rf"log_to: {name} needs .*pip install '\.\[{name}\]'"):
        methods.train(settings, store_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_tells_them_and_goes_on_without_one_that_is_lost(
    packages, tiny, store_path, tmp_path, two_convolutions, monkeypatch, capsys
):
    """To the same bits; and a run may go on with other sinks than it began with."""
    place, plain = tmp_path / "run", tmp_path / "plain"
    tiny.train.update(images=32, sample=16)
    assert methods.train(tiny, store_path, plain)
    tiny.train.log_to = ("wandb",)
    with pytest.MonkeyPatch.context() as patch:
        setups.stopping(patch, 4)
        assert not methods.train(tiny, store_path, place)
    tiny.train.log_to = ("wandb", "trackio")
    packages["wandb"].fails = True
    assert methods.train(tiny, store_path, place)
    assert capsys.readouterr().err.count("warning") == 1
    images = [line["images"] for line in setups.stats(place)]
    told = [images for one in ("wandb", "trackio") for images, _ in packages[one].numbers]
    assert told == images and len(packages["trackio"].pictures) == 1
    assert setups.stats(place) == setups.stats(plain)
    ours, theirs = (checkpoint.steps(folder) for folder in (place, plain))
    assert ours[-1] == theirs[-1]
