# SPDX-License-Identifier: Apache-2.0
"""Memory: what a step of training needs at least, known before it is compiled.

What a loss keeps for its gradients is seen by tracing it: they are what its pullback (jax.vjp) is
made of. A part under jax.checkpoint keeps its inputs alone there, as it does when it runs. To that
come the state, what is read and not learnt, and a set of gradients.
"""

import dataclasses
import itertools
import math

import jax
from jax.extend import core

from contourdiff_jax.contracts import Example, Method, Player
from contourdiff_jax.errors import InputError
from contourdiff_jax.training.state import TrainState

# Share of what the trace keeps that is counted. A compiler may keep one array in place of several
# that follow from it; a compiled step that took less than all of it was not seen on a CPU, so what
# is refused is certainly too large.
KEPT = 0.5
CUT = 8  # slices and pixels that the sides of patches are cut down by
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes that a step needs at least on one device.

    Attributes:
      fixed: whatever the examples are: the state, what is not learnt and the gradients.
      kept: for the gradients, which grows with the examples.
    """

    fixed: int
    kept: int

    @property
    def total(self) -> int:
        return self.fixed + self.kept


def estimate(method: Method, like: TrainState, config) -> Estimate:
    """What a step of a method needs, of the player that needs most; nothing is compiled.

    Args:
      like: the state as ShapeDtypeStructs with shardings.
      config: a `train` section.
    """
    parts = config.accumulate * method.mesh.size
    example = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((max(1, a.shape[0] // parts), *a.shape[1:]), a.dtype),
        method.feed.example,
    )
    every = [
        (_held(like.params[name]), KEPT * residuals(player, name, like, example, method.fixed))
        for name, player in method.players.items()
    ]
    gradients, kept = max(every, key=sum)
    return Estimate(_held((like, method.fixed)) + gradients, math.ceil(kept))


def residuals(player: Player, name: str, like: TrainState, example: Example, fixed) -> int:
    """Bytes of all that the loss of a player keeps for its gradients, beside what it is given."""
    key = jax.eval_shape(lambda: jax.random.key(0))

    def pullback(params, others, example, key, fixed, memory):
        def loss(params):
            return player.loss(params, others, example, key, fixed, memory)

        return jax.vjp(loss, params, has_aux=True)[1]

    given = like.params[name], like.params, example, key, fixed, like.memory
    traced = jax.make_jaxpr(pullback)(*given).jaxpr
    known = {*traced.invars, *traced.constvars}
    kept = {v for v in traced.outvars if not isinstance(v, core.Literal)} - known
    return sum(_bytes(variable.aval) for variable in kept)


def available(device: jax.Device) -> int | None:
    """Bytes that a device has for all of a program; of a CPU those that are free; or None."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if device.platform != "cpu":
        return None
    try:
        with open("/proc/meminfo") as lines:
            free = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    except OSError:  # of Linux alone
        return None
    return 1024 * int(free[0]) if free else None


def check(method: Method, like: TrainState, config) -> None:
    """Raise InputError for a step that a device of the method's mesh certainly does not hold.

    Args:
      like, config: see `estimate`.
    """
    limit = available(method.mesh.local_devices[0])
    if limit is None:
        return
    needed = estimate(method, like, config)
    if needed.total <= limit:
        return
    raise InputError(
        f"a step of training needs {needed.total / GIB:.1f} GiB at least, and a device has "
        f"{limit / GIB:.1f} GiB: {_remedy(method, needed, limit, config)}"
    )


def _remedy(method: Method, needed: Estimate, limit: int, config) -> str:
    """What to do about it, in words."""
    if needed.fixed >= limit:
        return f"the network alone takes {needed.fixed / GIB:.1f} GiB; take a smaller one"
    share = (limit - needed.fixed) / needed.kept
    # As little as one image for each device, of the batch or of the parts that it is computed in.
    least = method.mesh.size / (config.batch // config.accumulate)
    if share >= least:
        return "lower config.train.batch, or raise config.train.accumulate"
    _, *space, _ = method.feed.example["x"].shape
    if len(space) == 2:
        return "not even of one image for each device; take a smaller network, or smaller images"
    depth, side = fitting(*space[:2], share / least)
    if not depth:
        return "not even of one small patch for each device; take a smaller network"
    return (
        f"take patches of --config.volume.depth={depth} and --config.volume.side={side} at most, "
        f"one for each device"
    )


def fitting(depth: int, side: int, share: float) -> tuple[int, int]:
    """The sides of the largest patch with that share of the voxels, most alike in shape.

    They are multiples of CUT, or of what they are themselves; (0, 0) where there is none.
    """
    deep, wide = math.gcd(CUT, depth), math.gcd(CUT, side)
    pairs = itertools.product(range(deep, depth + 1, deep), range(wide, side + 1, wide))
    fit = [(d, s) for d, s in pairs if d * s * s <= share * depth * side**2]
    return max(fit, key=lambda p: (min(p[0] / depth, p[1] / side), p[0] * p[1]), default=(0, 0))


def _held(tree) -> int:
    """Bytes of arrays on one device, by their shardings."""
    return sum(
        _bytes(jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype))
        for leaf in jax.tree.leaves(tree)
    )


def _bytes(aval) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize
