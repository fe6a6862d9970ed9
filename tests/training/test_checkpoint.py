# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: on any mesh; and when they are damaged, incomplete or of another network."""

import contextlib
import gc
import pathlib
import resource
import shutil
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import setups
from ml_collections import ConfigDict

from contourdiff_jax import config
from contourdiff_jax.contracts import Player
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, state

SHAPES = {"conv": {"kernel": (64, 130), "bias": (3,)}, "time": {"kernel": (8, 4)}}


def is_shape(node):
    return isinstance(node, tuple)


def like(shapes=SHAPES, data=1, fsdp=1):
    """ShapeDtypeStructs with shardings of a training state, as loop.compiled makes them."""

    def model_init(key):
        return jax.tree.map(jnp.zeros, shapes, is_leaf=is_shape)

    players = {"network": Player(model_init, None, state.optimiser(config.default().train), None)}

    mesh = meshes.make(ConfigDict({"data": data, "fsdp": fsdp}))
    structs = jax.eval_shape(lambda key: state.init(players, key), jax.random.key(0))
    return meshes.laid(mesh, structs)


def state_at(step: int, wanted):
    """A state of random numbers, laid out as `wanted`."""
    generator = np.random.default_rng(step)
    drawn = jax.tree.map(
        lambda s: jax.device_put(generator.normal(size=s.shape).astype(s.dtype), s.sharding), wanted
    )
    return drawn._replace(step=jax.device_put(jnp.int32(step), wanted.step.sharding))


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def average(run):
    """(step, averages) of a run, by itself."""

    def init(key):
        return jax.tree.map(jnp.zeros, SHAPES, is_leaf=is_shape)

    return checkpoint.averages(run, setups.players(init), meshes.make(config.default().mesh))


def write(run, steps, wanted=None, keep=None):
    checkpoints = checkpoint.manager(run, keep)
    for step in steps:
        checkpoint.save(checkpoints, state_at(step, wanted or like()))
        checkpoint.finish(checkpoints)
    checkpoints.close()


def restore(run, wanted=None):
    checkpoints = checkpoint.manager(run)
    try:
        return checkpoint.restore(checkpoints, run, wanted or like())
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2."""
    run = tmp_path_factory.mktemp("intact")
    write(run, [1, 2])
    return run


@pytest.fixture
def run(intact, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(intact, tmp_path / "run")
    return tmp_path / "run"


def test_the_latest_state_comes_back(intact):
    restored = restore(intact)
    assert_same(restored, state_at(2, like()))
    assert {a.dtype for a in jax.tree.leaves(restored.params)} == {jnp.dtype("float32")}
    assert restored.key.dtype == jnp.uint32


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (2, 1), (1, 2)])
def test_any_mesh_restores_what_another_saved(tmp_path, data, fsdp):
    saved_on = like(data=1, fsdp=2)
    write(tmp_path, [3], saved_on)
    wanted = like(data=data, fsdp=fsdp)
    restored = restore(tmp_path, wanted)
    assert_same(restored, state_at(3, saved_on))
    for leaf, struct in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding.is_equivalent_to(struct.sharding, leaf.ndim)
    shard = restored.params["network"]["conv"]["kernel"].addressable_shards[0]
    assert shard.data.shape == ((64, 65) if fsdp == 2 else (64, 130))


def test_the_average_comes_alone(intact):
    """Translation needs no optimiser state, which is twice as large."""
    assert average(intact)[0] == 2
    assert_same(average(intact)[1], state_at(2, like()).ema)


def test_only_the_latest_are_kept(tmp_path):
    write(tmp_path, [1, 2, 5, 9], keep=2)
    kept = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(kept) == [5, 9]


def test_a_step_is_saved_once(tmp_path):
    """The end of training may coincide with a periodic checkpoint."""
    write(tmp_path, [4, 4])
    assert int(restore(tmp_path).step) == 4


def test_a_run_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: holds no checkpoint"):
        restore(tmp_path)
    with pytest.raises(InputError, match="run: holds no checkpoint"):
        checkpoint.averages(tmp_path / "run", {}, None)
    assert not (tmp_path / "run").exists()  # nothing is made where one only reads


# ----------------------------------------------------------------------------------------------
# Another network
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s["conv"].update(kernel=(64, 128)), r"conv\.kernel is \(64, 130\).*\(64, 128\)"),
        (lambda s: s.update(norm={"scale": (3,)}), r"norm\.scale is absent there and \(3,\)"),
        (lambda s: s.pop("time"), r"time\.kernel is \(8, 4\) there and absent"),
    ],
)
def test_another_architecture_is_refused_by_parameter(intact, change, named):
    shapes = {name: dict(group) for name, group in SHAPES.items()}
    change(shapes)
    with pytest.raises(InputError, match=f"{intact}/checkpoints/2.*{named}"):
        restore(intact, like(shapes))


# ----------------------------------------------------------------------------------------------
# Damage
# ----------------------------------------------------------------------------------------------


def largest(folder, pattern):
    return max(folder.glob(pattern), key=lambda path: path.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def corrupt(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


HARMS = [
    ("ema/_METADATA", truncate),
    ("ema/_METADATA", corrupt),
    ("ema/manifest.ocdbt", corrupt),
    ("ema/d/*", truncate),
    ("ema/ocdbt.process_0/d/*", truncate),
    ("ema/ocdbt.process_0/d/*", pathlib.Path.unlink),
    ("params/manifest.ocdbt", truncate),
    ("optimiser/manifest.ocdbt", pathlib.Path.unlink),
    ("progress/d/*", corrupt),
    ("params", shutil.rmtree),
]


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize(("pattern", "harm"), HARMS)
def test_of_a_damaged_checkpoint_the_one_before_is_used(run, capfd, pattern, harm, digests):
    """One line says which; where there are no digests, files that cannot be read, and a warning."""
    if not digests:
        for path in run.rglob(checkpoint.DIGESTS):
            path.unlink()
    harm(largest(run / "checkpoints" / "2", pattern))
    assert_same(restore(run), state_at(1, like()))
    line, *others = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: {run}/checkpoints/2: ") and line.endswith("; going on from 1")
    assert ["/1/params: without its sha256.json" in other for other in others] == [True] * (
        not digests
    )


@pytest.mark.parametrize("item", [*checkpoint.OF_PLAYERS, "progress"])
def test_a_flipped_bit_is_noticed_wherever_it_is(run, item):
    """Also where Orbax would read on: in the weights themselves."""
    folder = run / "checkpoints" / "2"
    files = [path for path in sorted((folder / item).rglob("*")) if path.is_file()]
    assert len(files) > 4
    for path in files:
        intact = path.read_bytes()
        if not intact or path.name == "commit_success.txt":  # which says nothing of the contents
            continue
        corrupt(path)
        with pytest.raises(InputError, match=f"damaged.*{item}"):
            checkpoint._verify(folder, str(folder), [item])
        path.write_bytes(intact)
    checkpoint._verify(folder, str(folder), [item])


def test_a_damaged_checkpoint_is_set_aside_and_written_anew(run):
    """By who trains the run; who only reads it changes nothing."""
    corrupt(largest(run / "checkpoints" / "2", "ema/d/*"))
    checkpoints = checkpoint.manager(run)
    assert average(run)[0] == 1
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"1", "2"}
    assert int(checkpoint.restore(checkpoints, run, like()).step) == 1
    checkpoint.save(checkpoints, state_at(2, like()))
    checkpoint.finish(checkpoints)
    checkpoints.close()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"1", "2", "2.damaged"}
    assert_same(restore(run), state_at(2, like()))


def test_without_an_intact_checkpoint_there_is_one_line(run, capfd):
    for step in ("1", "2"):
        corrupt(largest(run / "checkpoints" / step, "ema/d/*"))
    with pytest.raises(InputError, match=f"{run}/checkpoints/1: damaged.*from a copy") as error:
        restore(run)
    assert "\n" not in str(error.value)
    assert len(capfd.readouterr().err.splitlines()) == 1  # of the other
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"1", "2"}


def test_what_a_killed_process_had_begun_is_removed_by_who_goes_on(run):
    folder = run / "checkpoints"
    shutil.copytree(folder / "2", folder / "7.orbax-checkpoint-tmp")
    (folder / "7.orbax-checkpoint-tmp" / "commit_success.txt").unlink()
    write(run, [3])
    assert (folder / "7.orbax-checkpoint-tmp").exists()  # it may be being written
    write(run, [4], keep=2)
    assert {path.name for path in folder.iterdir()} == {"3", "4"}


def test_a_checkpoint_that_was_being_written_does_not_count(run):
    """As Orbax leaves it when the machine goes: under its temporary name."""
    folder = run / "checkpoints"
    (folder / "2").rename(folder / "2.orbax-checkpoint-tmp")
    assert int(restore(run).step) == 1
    write(run, [2])
    assert int(restore(run).step) == 2


@pytest.fixture
def deaf(monkeypatch):
    """Orbax's threads report to stderr, and some do so late."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    yield
    time.sleep(0.2)
    gc.collect()


@pytest.mark.parametrize("when", ["save", "finish"])
def test_a_failed_write_is_one_line_and_leaves_the_one_before(run, when, deaf):
    """No file may grow, as on a full disk; in the background, so it may be noticed late."""
    checkpoints = checkpoint.manager(run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(InputError, match=f"{run}/checkpoints: .*could not be written"):
            checkpoint.save(checkpoints, state_at(3, like()))
            if when == "save":
                checkpoint.save(checkpoints, state_at(4, like()))
            checkpoint.finish(checkpoints)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with contextlib.suppress(ValueError):  # the same error, once more
            checkpoints.close()
    assert_same(restore(run), state_at(2, like()))


# ----------------------------------------------------------------------------------------------
# Digest
# ----------------------------------------------------------------------------------------------


def digest(params):
    return checkpoint.digest({"network": params})


def test_the_digest_changes_with_a_bit_and_with_a_name():
    params = {"a": {"kernel": np.arange(6, dtype=np.float32)}, "b": np.zeros(3, np.float32)}
    known = digest(params)
    assert len(known) == 64
    assert digest(jax.tree.map(jnp.asarray, params)) == known
    others = []
    for position in (0, 3, 5):
        flipped = params["a"]["kernel"].view(np.uint32).copy()
        flipped[position] ^= 1
        others.append(params | {"a": {"kernel": flipped.view(np.float32)}})
    others += [
        {"a": params["a"], "c": params["b"]},
        params | {"b": np.zeros(4, np.float32)},
        {"a": params["a"]},
    ]
    digests = {known, *(digest(p) for p in others)}
    assert len(digests) == 7


# ----------------------------------------------------------------------------------------------
# The best
# ----------------------------------------------------------------------------------------------

LOSSES = {1: 0.5, 2: 0.2, 3: 0.3, 5: None, 6: float("nan"), 9: 0.4}


@pytest.fixture(scope="module")
def of_losses(tmp_path_factory):
    """A run that has learnt to step 9, as it keeps the last two and the best."""
    run = tmp_path_factory.mktemp("best")
    write_best(run, LOSSES)
    return run


@pytest.fixture
def best_run(of_losses, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(of_losses, tmp_path / "run")
    return tmp_path / "run"


def write_best(run, losses, keep=2):
    checkpoints = checkpoint.manager(run, keep, keep_best=True)
    for step, loss in losses.items():
        checkpoint.save(checkpoints, state_at(step, like()), loss)
    checkpoint.finish(checkpoints)
    checkpoints.close()


def drawn_with(run, which):
    def init(key):
        return jax.tree.map(jnp.zeros, SHAPES, is_leaf=is_shape)

    mesh = meshes.make(config.default().mesh)
    return checkpoint.averages(run, setups.players(init), mesh, which)


def test_the_best_stays_beside_the_last(of_losses):
    assert checkpoint.steps(of_losses) == [2, 6, 9]
    assert checkpoint.losses(of_losses) == {2: 0.2, 9: 0.4}  # what is no number is no loss
    assert int(restore(of_losses).step) == 9  # training goes on from the last


@pytest.mark.parametrize(("which", "step"), [("last", 9), ("best", 2), ("6", 6), (6, 6)])
def test_each_can_be_drawn_with(of_losses, which, step):
    found, averages = drawn_with(of_losses, which)
    assert found == checkpoint.chosen(of_losses, which) == step
    assert_same(averages, state_at(step, like()).ema)


@pytest.mark.parametrize("which", ["3", "worst", "-2", "", 7])
def test_those_that_are_not_kept_are_refused_with_those_that_are(of_losses, which):
    with pytest.raises(InputError, match=rf"--checkpoint={which}: take last, .* one of 2, 6, 9"):
        drawn_with(of_losses, which)


def test_without_held_out_losses_there_is_no_best(intact):
    with pytest.raises(InputError, match=r"intact.*no checkpoint is known as the best.*keep_best"):
        drawn_with(intact, "best")


def test_of_equal_ones_the_later_is_the_best(tmp_path):
    write_best(tmp_path, {1: 0.5, 2: 0.5, 3: 0.7}, keep=1)
    assert checkpoint.steps(tmp_path) == [2, 3]
    assert checkpoint.chosen(tmp_path, "best") == 2


def test_a_new_manager_knows_the_best_of_before(best_run):
    """As when a run is resumed: what is worse takes nothing away, what is better its place."""
    write_best(best_run, {10: 0.3, 11: 0.25})
    assert checkpoint.steps(best_run) == [2, 10, 11]
    write_best(best_run, {12: 0.1, 13: 0.3, 14: 0.3})
    assert checkpoint.steps(best_run) == [12, 13, 14]


def test_what_was_being_written_when_a_run_was_killed_leaves_the_best(best_run, monkeypatch):
    """A checkpoint and its loss get their name together; the best is removed after that."""
    checkpoints = checkpoint.manager(best_run, 2, keep_best=True)

    def killed(*_):
        raise OSError("killed")

    monkeypatch.setattr(checkpoint._Handler, "finalize", killed)
    with pytest.raises(InputError):
        checkpoint.save(checkpoints, state_at(10, like()), 0.1)
        checkpoint.finish(checkpoints)
    monkeypatch.undo()
    assert checkpoint.chosen(best_run, "best") == 2
    assert drawn_with(best_run, "best")[0] == 2
    assert int(restore(best_run).step) == 9


@pytest.mark.parametrize(
    ("content", "step"), [(b"", 6), (b"[", 6), (b"\xff", 6), (b'{"heldout_loss": "low"}', 9)]
)
def test_a_damaged_loss_is_no_loss_and_its_checkpoint_a_damaged_one(best_run, content, step):
    (best_run / "checkpoints" / "9" / checkpoint.RECORD).write_bytes(content)
    assert checkpoint.losses(best_run) == {2: 0.2}
    assert int(restore(best_run).step) == step  # those after it are set aside
    write_best(best_run, {10: 0.3})
    assert checkpoint.steps(best_run) == [2, step, 10]


def test_a_loss_that_was_changed_is_none(best_run):
    record = best_run / "checkpoints" / "9" / checkpoint.RECORD
    record.write_text(record.read_text().replace("0.4", "0.1"))
    assert checkpoint.chosen(best_run, "best") == 2


def test_a_damaged_best_is_one_line_and_no_other_is_taken_for_it(best_run):
    for file in (best_run / "checkpoints" / "2" / "ema").rglob("*"):
        if file.is_file() and file.name != checkpoint.DIGESTS:
            file.write_bytes(b"x")
    with pytest.raises(InputError, match=r"checkpoints/2: damaged.*restore it from a copy"):
        drawn_with(best_run, "best")
