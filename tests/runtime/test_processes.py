# SPDX-License-Identifier: Apache-2.0
"""Two processes of one device each train what one process trains."""

import contextlib
import json
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import setups
import worker
from unpaired_pictures import pictures

from contourdiff_jax import methods, models
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.runtime import processes
from contourdiff_jax.training import checkpoint, loop
from contourdiff_jax.training.run import load

SCRIPT = Path(worker.__file__)


def start(**task) -> subprocess.Popen:
    """A process that does what worker.py has under that name."""
    argv = [sys.executable, str(SCRIPT), json.dumps(task, default=str)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def pair(store_path, tmp_path_factory) -> Path:
    """What two processes have done together."""
    out = tmp_path_factory.mktemp("pair")
    pictures(out / "translated", ["a1", "a2", "a3"], 18, 0, brighter=30)
    pictures(out / "real", ["r1", "r2", "r3", "r4"], 15, 1)
    shared = {"task": "together", "store": store_path, "out": out, "port": free_port()}
    with contextlib.ExitStack() as running:
        started = [running.enter_context(start(**shared, process=i, of=2)) for i in range(2)]
        for process in started:
            running.callback(process.kill)
        for process in started:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    return out


@pytest.fixture(scope="module")
def single(two_convolutions, store_path, tmp_path_factory) -> Path:
    """The run of one process with one device."""
    ours = worker.settings()
    ours.mesh.data = 1
    out = tmp_path_factory.mktemp("single") / "run"
    assert methods.train(ours, store_path, out)
    return out


def found(pair: Path, name: str) -> list[np.ndarray]:
    """Of the first process; the second has the same."""
    each = [np.load(pair / f"{i}.npz") for i in range(2)]
    names = [key for key in each[0] if key.startswith(name)]
    for key in names:
        np.testing.assert_array_equal(each[0][key], each[1][key])
    return [each[0][key] for key in names]


def stats(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("shape", worker.MESHES)
def test_gradients_are_those_of_one_process(two_convolutions, pair, shape):
    alone, together = worker.gradient(1, 1), found(pair, f"gradient {shape}")
    largest = max(np.abs(g).max() for g in alone)
    assert largest > 1e-3
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("resident", [0.0, 2.0])
def test_examples_are_those_of_one_process(store_path, pair, resident):
    """Streamed or resident: each image with its own keys, whichever process makes it."""
    alone, together = worker.examples(store_path, 2.0, 1), found(pair, f"examples {resident}")
    assert len(alone) == 9  # x and two conditions, three times
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_what_one_process_notices_all_are_told(pair):
    assert [str(a) for a in found(pair, "told")] == ["the second has no disk", "by the first"]


def test_scores_are_those_of_one_process(pair):
    """Each has taken the features of a part of the volumes."""
    together = json.loads((pair / "scores" / "metrics.json").read_text())
    alone = worker.score(pair, "alone").metrics
    assert together["methods"].keys() == alone["methods"].keys() == {"translation", "real"}
    for method, metrics in alone["methods"].items():
        assert together["methods"][method]["kid"] == pytest.approx(metrics["kid"], rel=1e-4)


def test_losses_are_those_of_one_process(pair, single):
    """Over fifty steps, and of held-out slices."""
    ours, theirs = stats(pair / "run"), stats(single)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for name, count in (("loss", worker.STEPS), ("heldout_loss", 3)):
        losses = [[line[name] for line in lines if name in line] for lines in (ours, theirs)]
        assert len(losses[0]) == count
        np.testing.assert_allclose(*losses, atol=1e-4)


def test_what_they_leave_is_one_run(pair, single):
    """One record, one set of pictures, one checkpoint, which one device and two go on from."""
    for folder in ("", "samples", "checkpoints"):
        names = [{p.name for p in (run / folder).iterdir()} for run in (pair / "run", single)]
        assert names[0] == names[1]
    states = []
    for run, shape in ((single, (1, 1)), (pair / "run", (1, 1)), (pair / "run", (1, 2))):
        ours = worker.settings()
        ours.mesh.update(data=shape[0], fsdp=shape[1])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(meshes, "SMALL", 0)
            like = setups.like(ours, 32)
        states.append(setups.last_state(run, like))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), states[0], states[1])
    jax.tree.map(np.testing.assert_array_equal, states[1], states[2])


@pytest.mark.slow
def test_runs_with_parts_are_those_of_one_process(store_path, tmp_path, monkeypatch):
    """An autoencoder, diffusion of its latents, and a ControlNet whose base is split in two."""
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setattr(models, "build", getattr(models.build, "replaced", models.build))
    worker.chain(store_path, one)
    shared = {"task": "chain", "store": store_path, "out": two, "port": free_port()}
    shared |= {"origins": one, "over": 2}
    with contextlib.ExitStack() as running:
        started = [running.enter_context(start(**shared, process=i, of=2)) for i in range(2)]
        for process in started:
            running.callback(process.kill)
        said = [process.communicate(timeout=1200)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    latents = [(folder / "latent" / "latents" / "images.npy") for folder in (one, two)]
    np.testing.assert_allclose(*map(np.load, latents), atol=1e-5)
    for kind in worker.CHAIN:
        states = [
            setups.last_state(out / kind, _like(out / kind, store_path)) for out in (one, two)
        ]
        assert states[0].step == 4
        ours, theirs = ((state.params, state.ema) for state in states)
        jax.tree_util.tree_map_with_path(_assert_close, ours, theirs)
        losses = [
            [{n: v for n, v in line.items() if n.endswith("loss")} for line in stats(out / kind)]
            for out in (one, two)
        ]
        for ours, theirs in zip(*losses, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


def _assert_close(path, ours, theirs):
    """But for biases of the critic: before a norm, rounding is all that there is of a gradient."""
    if not {"critic", "bias"} <= {getattr(key, "key", None) for key in path}:
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def _like(folder: Path, store: Path):
    """The shapes of a run's state, on one device."""
    return loop.like(methods.build(load(folder), store=open_store(store), mesh=meshes.local(1)))


@pytest.mark.slow
def test_what_two_have_written_four_devices_read(two_convolutions, pair, store_path):
    """Each a part of it."""
    with start(task="restore", store=store_path, out=pair, devices=4) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    ours = worker.settings()
    ours.mesh.data = 1
    checkpoints = checkpoint.manager(pair / "run")
    like = setups.like(ours, 32)
    params = jax.tree.leaves(checkpoint.restore(checkpoints, pair / "run", like).params)
    checkpoints.close()
    (devices, part), *restored = np.load(pair / "restored.npz").values()
    for theirs, one in zip(restored, params, strict=True):
        np.testing.assert_array_equal(theirs, one)
    assert devices == 4 and part < 0.3 * sum(leaf.nbytes for leaf in params)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_notice_to_one_process_stops_all_and_one_alone_goes_on(
    two_convolutions, store_path, tmp_path, number
):
    """They agree on a step, save it together and say that the same command resumes."""
    fields = {"images": 1200, "evaluate": 0, "sample": 0, "checkpoint": 0}
    shared = {"task": "alone", "store": store_path, "out": tmp_path / "run", **fields}
    port = free_port()
    with contextlib.ExitStack() as running:
        started = [
            running.enter_context(start(**shared, port=port, process=i, of=2)) for i in range(2)
        ]
        for process in started:
            running.callback(process.kill)
        record = tmp_path / "run" / "stats.jsonl"
        while not (record.exists() and record.read_text()):
            assert started[0].poll() is None
            time.sleep(0.05)
        began = time.monotonic()
        started[1].send_signal(number)
        said = [process.communicate(timeout=60)[0] for process in started]
    assert time.monotonic() - began < 30
    assert [process.returncode for process in started] == [1, 1]
    assert "stopped and saved at" in said[0] and "stopped and saved at" not in said[1]
    ours = worker.settings(**fields)
    ours.mesh.data = 1
    assert methods.train(ours, store_path, tmp_path / "run")
    assert methods.train(ours, store_path, tmp_path / "whole")
    losses = [
        [line["loss"] for line in stats(tmp_path / name) if "loss" in line]
        for name in ("run", "whole")
    ]
    assert len(losses[0]) == len(losses[1]) == 300
    np.testing.assert_allclose(*losses, atol=1e-4)


@pytest.mark.slow
def test_with_one_that_fails_all_end(store_path, tmp_path):
    """The main process, which has no room for its record, says why; none is left waiting."""
    run = tmp_path / "run"
    shared = {"task": "alone", "store": store_path, "out": run, "images": 40000}
    port = free_port()
    with contextlib.ExitStack() as running:
        started = [
            running.enter_context(start(**shared, port=port, process=i, of=2)) for i in range(2)
        ]
        for process in started:
            running.callback(process.kill)
        record = run / "stats.jsonl"
        while not (record.exists() and record.read_text()):
            assert started[0].poll() is None
            time.sleep(0.05)
        resource.prlimit(started[0].pid, resource.RLIMIT_FSIZE, (16, 16))
        said = [process.communicate(timeout=60)[0] for process in started]
    assert started[0].returncode == 2 and started[1].returncode != 0
    assert re.search(f"contourdiff: {run}.*written.*intact", said[0].splitlines()[-1])


@pytest.mark.parametrize(("number", "whom"), [(0, "the others"), (1, "the first process")])
def test_processes_that_do_not_meet_say_whom_they_wait_for(number, whom):
    argv = [sys.executable, "-m", "contourdiff_jax", "train", "--store=a", "--workdir=b"]
    argv += [f"--coordinator=localhost:{free_port()}", "--processes=2", f"--process={number}"]
    ended = subprocess.run([*argv, "--timeout=1"], capture_output=True, text=True)
    assert ended.returncode == 2
    waiting, vain = ended.stderr.splitlines()
    assert "waiting at localhost:" in waiting and f"for {whom}" in waiting
    assert f"for {whom}, 1 s in vain" in vain


@pytest.mark.parametrize(
    ("address", "count", "number", "named"),
    [
        (None, 2, 0, "belong together"),
        (None, None, 1, "belong together"),
        ("host:1234", 2, None, "belong together"),
        ("host:1234", None, None, "--coordinator=host:1234: give HOST:PORT with"),
        ("host", 2, 0, "--coordinator=host: give HOST:PORT"),
        ("host:1234", 2, 2, "--process=2: they are numbered from 0 to 1"),
        ("auto", None, None, "--coordinator=auto: the processes did not meet: .*defined"),
    ],
)
def test_processes_that_cannot_meet_are_told_why(address, count, number, named, monkeypatch):
    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")  # as where there is no cluster

    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match=named):
        processes._join(address, count, number, 1)
