# SPDX-License-Identifier: Apache-2.0
"""Two players and what they remember: in a step, in a checkpoint and where they are drawn with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contourdiff_jax import config
from contourdiff_jax.contracts import Player
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, state

EXAMPLE = {"x": np.linspace(-1, 1, 8, dtype=np.float32)[:, None]}


@pytest.fixture
def section():
    settings = config.default().train
    settings.update(images=800, batch=8, warmup=0, learning_rate=0.1)
    return settings


def players(section):
    """A generator, and a critic that is not averaged and keeps what it saw of the generator."""

    def init(key):
        return {"kernel": jax.random.normal(key, (1, 1))}

    def generate(params, everyone, example, key, fixed, memory):
        answer = example["x"] @ params["kernel"] * everyone["critic"]["kernel"]
        return jnp.square(answer - 1).mean(), ({"size": jnp.abs(answer).mean()}, memory)

    def judge(params, everyone, example, key, fixed, memory):
        noise = jax.random.normal(key, (1, 1))
        loss = jnp.square(params["kernel"] - everyone["generator"]["kernel"] - noise).mean()
        return loss, ({}, {"seen": memory["seen"] + everyone["generator"]["kernel"]})

    how = state.optimiser(section), state.learning_rate(section)
    return {
        "generator": Player(init, generate, *how),
        "critic": Player(init, judge, *how, averaged=False),
    }


MEMORY = {"seen": jnp.zeros((1, 1))}


@pytest.fixture
def steps(section):
    """(a function that takes steps, the first state)"""
    ours = players(section)
    return jax.jit(state.step(section, ours)), state.init(ours, jax.random.key(0), MEMORY)


def test_each_player_sees_those_before_it_as_they_have_become(steps):
    step, first = steps
    second, metrics = step(first, EXAMPLE)
    assert {"generator_loss", "generator_size", "critic_loss", "critic_grad_norm"} <= metrics.keys()
    kernels = [s.params["generator"]["kernel"] for s in (first, second)]
    assert kernels[0] != kernels[1]
    np.testing.assert_array_equal(second.memory["seen"], kernels[1])
    assert second.ema.keys() == {"generator"}
    assert second.averages["critic"] is second.params["critic"]


def test_players_have_randomness_of_their_own(steps):
    _, first = steps
    key = jax.random.wrap_key_data(first.key)
    others = [jax.random.fold_in(key, n) for n in range(4)] + list(jax.random.split(key, 8))
    own = jax.random.key_data(state.of_player(key, 1)).tolist()
    assert own not in [jax.random.key_data(other).tolist() for other in others]


@pytest.mark.parametrize("poisoned", ["generator", "critic"])
def test_nobody_learns_where_one_is_not_finite(steps, poisoned):
    step, first = steps
    broken = first.params[poisoned] | {"kernel": jnp.full((1, 1), jnp.nan)}
    first = first._replace(params=first.params | {poisoned: broken})
    after, _ = step(first, EXAMPLE)
    jax.tree.map(np.testing.assert_array_equal, after, first)


def test_all_of_them_come_back(section, steps, tmp_path):
    step, current = steps
    for _ in range(2):
        current, _ = step(current, EXAMPLE)
    mesh = meshes.make(config.default().mesh)
    like = meshes.laid(mesh, jax.eval_shape(lambda: current))
    checkpoints = checkpoint.manager(tmp_path, 2)
    checkpoint.save(checkpoints, current)
    checkpoint.finish(checkpoints)
    restored = checkpoint.restore(checkpoints, tmp_path, like)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, current)
    number, averages = checkpoint.averages(tmp_path, players(section), mesh)
    assert number == 2
    jax.tree.map(np.testing.assert_array_equal, averages, current.averages)
