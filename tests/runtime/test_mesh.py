# SPDX-License-Identifier: Apache-2.0
"""The mesh on two (fake) devices: its shapes, what lies where, and what it refuses."""

from unittest.mock import Mock

import jax
import numpy as np
import pytest
import setups
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from contourdiff_jax import config
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import mesh as meshes


def make(data: int, fsdp: int):
    return meshes.make(ConfigDict({"data": data, "fsdp": fsdp}))


@pytest.mark.parametrize("error", [RuntimeError("no plugin"), AssertionError()])
def test_a_device_that_is_not_there_is_named(monkeypatch, error):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", Mock(side_effect=error))
    with pytest.raises(InputError, match="JAX_PLATFORMS=cuda: JAX finds no such device"):
        make(1, 1)


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ((-1, 1), (2, 1)),
        ((1, -1), (1, 2)),
        ((-1, 2), (1, 2)),
        ((2, 1), (2, 1)),
        ((1, 2), (1, 2)),
        ((1, 1), (1, 1)),  # smaller than the machine
    ],
)
def test_a_mesh_has_the_shape_asked_for(asked, shape):
    mesh = make(*asked)
    assert tuple(mesh.shape[axis] for axis in ("data", "fsdp")) == shape
    assert mesh.devices.ravel().tolist() == jax.devices()[: mesh.size]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ((3, 1), "asks for 3 devices, there are 2"),
        ((2, 2), "asks for 4 devices"),
        ((-1, 3), "asks for 3 devices"),
        ((-1, -1), "one may be -1"),
        ((0, 1), "data=0"),
        ((1, 0), "fsdp=0"),
        ((-2, 1), "data=-2"),
    ],
)
def test_impossible_meshes_are_refused(asked, named):
    with pytest.raises(InputError, match=f"config.mesh.*{named}"):
        make(*asked)


def held(mib: int):
    return {"kernel": jax.ShapeDtypeStruct((mib, 2**18), np.float32)}


@pytest.mark.parametrize(
    ("asked", "batch", "mib", "shape"),
    [
        ((-1, 1), 4, 1, (2, 1)),
        ((-1, 1), 3, 1, (1, 1)),  # which two cannot share
        ((-1, 1), 4, 512, (2, 1)),
        ((-1, 1), 4, 513, (1, 1)),  # twice that is more than is spared
        ((2, 1), 3, 513, (2, 1)),  # asked for: done as told, or refused with the batch
        ((1, -1), 3, 513, (1, 2)),
        ((-1, 2), 4, 513, (1, 2)),
    ],
)
def test_as_many_cores_are_devices_as_can_share_a_batch_and_have_room(asked, batch, mib, shape):
    config = ConfigDict({"data": asked[0], "fsdp": asked[1]})
    mesh = meshes.make(config, batch=batch, held=held(mib))
    assert tuple(mesh.shape[axis] for axis in ("data", "fsdp")) == shape


def test_a_core_has_the_least_images_that_are_worth_it():
    config = ConfigDict({"data": -1, "fsdp": 1})
    sizes = [meshes.make(config, batch=batch, least=2).size for batch in (2, 4, 6)]
    assert sizes == [1, 2, 2]


def test_of_an_accelerator_all_are_used_whatever_they_hold(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = ConfigDict({"data": -1, "fsdp": 1})
    assert meshes.make(config, batch=3, held=held(2000)).size == 2


def test_a_batch_is_split_over_all_devices():
    for mesh in (make(2, 1), make(1, 2)):
        batch = np.arange(24.0).reshape(4, 3, 2)
        placed = meshes.put(meshes.batch(mesh), {"x": batch})["x"]
        assert [shard.data.shape for shard in placed.addressable_shards] == [(2, 3, 2)] * 2
        np.testing.assert_array_equal(placed, batch)


def test_large_arrays_are_split_along_their_largest_divisible_axis():
    """In as many parts as 'fsdp' has devices; what is small, or odd everywhere, stays whole."""
    shapes = {
        "kernel": ((3, 3, 64, 128), PartitionSpec(None, None, None, "fsdp")),
        "tall": ((4096, 2), PartitionSpec("fsdp")),
        "odd last": ((3, 64, 129), PartitionSpec(None, "fsdp")),
        "odd": ((65, 129), PartitionSpec()),
        "small": ((64, 64), PartitionSpec()),  # 4096 elements
        "scalar": ((), PartitionSpec()),
    }
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, (shape, _) in shapes.items()}
    sharded = meshes.shardings(make(1, 2), tree)
    assert {n: s.spec for n, s in sharded.items()} == {n: spec for n, (_, spec) in shapes.items()}
    assert sharded["tall"].shard_shape((4096, 2)) == (2048, 2)
    # Without 'fsdp' every device keeps everything.
    assert all(s.is_fully_replicated for s in meshes.shardings(make(2, 1), tree).values())


def test_fsdp_halves_what_a_device_keeps():
    """Of parameters, average and optimiser, of a real network: in bytes on the first device."""
    settings = config.default()
    shapes = setups.like(settings, 32)

    def kept(mesh) -> dict[str, int]:
        def laid(shape, where):
            return jax.make_array_from_callback(
                shape.shape, where, lambda i: np.zeros(shape.shape, shape.dtype)[i]
            )

        whole = jax.tree.map(laid, shapes, meshes.shardings(mesh, shapes))
        return {
            name: sum(
                leaf.addressable_shards[0].data.nbytes
                for leaf in jax.tree.leaves(getattr(whole, name))
            )
            for name in ("params", "ema", "optimiser")
        }

    alone, split = kept(make(2, 1)), kept(make(1, 2))
    for name, size in alone.items():
        assert 0.5 <= split[name] / size < 0.52, name
    assert alone["optimiser"] > 1.9 * alone["params"] > 9e6


def test_batches_that_the_mesh_does_not_divide_are_refused_with_one_that_it_does():
    mesh = make(2, 1)
    meshes.check_batch(mesh, 6, "--batch")
    for size, better in ((7, 8), (5, 4), (1, 2), (0, 2), (-3, 2)):
        with pytest.raises(InputError, match=f"--batch: {size} .* 2 devices.*try {better}"):
            meshes.check_batch(mesh, size, "--batch")
