# SPDX-License-Identifier: Apache-2.0
"""Features of images as the packages that compute FID take them: resizing, scale, network.

    pytorch-fid     bilinear between two inputs, centres of pixels aligned
    torch-fidelity  bilinear between two inputs as in TensorFlow 1, first corners of pixels aligned
    clean-fid       bicubic as in PIL, as wide as an output pixel where the image shrinks, clipped

Each is linear along rows and along columns, and so is a matrix for each side. They follow
pytorch-fid 0.3 (torch's interpolate), torch-fidelity 0.4 (interpolate_compat_tensorflow.py) and
clean-fid 0.1.35 (PIL in mode F). Grey images are shown to the network as three equal channels.

Legend: N images, B of a batch, H rows, W columns, C channels, 1 or 3, of 8 bits.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from contourdiff_jax.errors import InputError
from contourdiff_jax.models import inception
from contourdiff_jax.runtime import mesh as meshes

SIDE = inception.SIDE


# ----------------------------------------------------------------------------------------------
# Modes
# ----------------------------------------------------------------------------------------------


def aligned_centres(size: int) -> np.ndarray:
    """[SIDE, size] of torch.nn.functional.interpolate(mode="bilinear", align_corners=False)."""
    # Its positions are float32, from a float32 scale by a fused multiply-add.
    scale = np.float64(np.float32(size / SIDE))
    return _bilinear(np.float32((np.arange(SIDE) + 0.5) * scale - 0.5), size)


def aligned_corners(size: int) -> np.ndarray:
    """[SIDE, size] of TensorFlow 1's resize_bilinear, half_pixel_centers=False."""
    return _bilinear(np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE), size)


def _bilinear(positions: np.ndarray, size: int) -> np.ndarray:
    """Weights [SIDE, size] of the two of `size` samples that each position [SIDE] lies between."""
    positions = np.maximum(np.float64(positions), 0)
    below = np.floor(positions).astype(int)
    above = np.minimum(below + 1, size - 1)
    weights, rows = np.zeros((SIDE, size)), np.arange(SIDE)
    np.add.at(weights, (rows, below), 1 - (positions - below))
    np.add.at(weights, (rows, above), positions - below)
    return np.float32(weights)


def bicubic(size: int) -> np.ndarray:
    """[SIDE, size] of PIL's BICUBIC: Keys' kernel, a = -1/2 (IEEE TASSP 29(6):1153-1160)."""
    scale = size / SIDE
    width = max(scale, 1.0)
    centre = (np.arange(SIDE) + 0.5) * scale
    first = np.maximum(np.floor(centre - 2 * width + 0.5), 0)
    last = np.minimum(np.floor(centre + 2 * width + 0.5), size)
    number = np.arange(size)
    x = np.abs((number + 0.5 - centre[:, None]) / width)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights *= (number >= first[:, None]) & (number < last[:, None])
    return np.float32(weights / weights.sum(1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class Mode:
    """How a package shows an image to the network.

    Attributes:
      weights: [SIDE, n] of a side of n pixels.
      clipped: whether what overshoots 0 to 255 is cut off.
      centre: grey value that becomes 0; as far below it, 0 becomes -1.
      kid_least: images of a subset for KID, of which fewer are an error; None where a subset has
        as many as the smaller side, at most 1000.
    """

    weights: Callable[[int], np.ndarray]
    clipped: bool
    centre: float
    kid_least: int | None = None


MODES = {
    "pytorch-fid": Mode(aligned_centres, clipped=False, centre=127.5),
    "torch-fidelity": Mode(aligned_corners, clipped=False, centre=128.0, kid_least=1000),
    "clean-fid": Mode(bicubic, clipped=True, centre=128.0),
}


def mode(name: str) -> Mode:
    """The mode of that name; InputError naming the known ones."""
    if name not in MODES:
        raise InputError(f"--mode={name}: known are {', '.join(MODES)}")
    return MODES[name]


# ----------------------------------------------------------------------------------------------
# Extraction
# ----------------------------------------------------------------------------------------------


def extract(
    stacks: Iterable[np.ndarray], mode: Mode, params: dict, mesh: Mesh, batch: int = 32
) -> np.ndarray:
    """Features [N, 2048] float32 of all images, in their order.

    Args:
      stacks: [n, H, W] or [n, H, W, 3] uint8 each, read as they are needed; sizes may differ.
      mode: how images are shown.
      params: of the network, see models/inception.py.
      mesh: devices that share each batch.
      batch: images at a time; rounded up to what the mesh divides.
    """
    batch = -(-batch // mesh.size) * mesh.size
    resize, network = _jitted(mode, mesh)
    images = _resized(stacks, mode, resize, mesh, batch)
    none = np.zeros((0, inception.FEATURES), np.float32)
    return np.concatenate([none, *in_batches(images, network, params, mesh, batch)])


def in_batches(
    stacks: Iterable[np.ndarray], network: Callable, params: dict, mesh: Mesh, batch: int
) -> Iterator[np.ndarray]:
    """Outputs of a network for images [n, H, W, C] of one size, in their order, batch by batch.

    Args:
      stacks: read as they are needed.
      network: (params, images [B, H, W, C]) -> [B, ..]; compiled for batches over the mesh.
      params: of the network.
      mesh: devices that share each batch.
      batch: images at a time, which the mesh divides.
    """
    params = jax.device_put(params, meshes.replicated(mesh))
    waiting = []
    for images in stacks:
        waiting.extend(images)
        while len(waiting) >= batch:
            yield network(params, meshes.put(meshes.batch(mesh), np.stack(waiting[:batch])))
            del waiting[:batch]
    if waiting:
        padded = _padded(np.stack(waiting), batch)
        yield network(params, meshes.put(meshes.batch(mesh), padded))[: len(waiting)]


def _resized(stacks, mode: Mode, resize, mesh: Mesh, batch: int) -> Iterator[np.ndarray]:
    """Images [n, SIDE, SIDE, C] in the network's range, at most a batch at a time."""
    weights = functools.cache(mode.weights)
    for stack in stacks:
        if stack.dtype != np.uint8 or stack.ndim not in (3, 4):
            raise ValueError(f"images of 8 bits are needed, not {stack.dtype} {stack.shape}")
        if stack.ndim == 3:
            stack = stack[..., None]
        for first in range(0, len(stack), batch):
            images = stack[first : first + batch]
            padded = meshes.put(meshes.batch(mesh), _padded(images, batch))
            sides = [weights(size) for size in images.shape[1:3]]
            yield np.asarray(resize(*meshes.put(meshes.replicated(mesh), sides), padded))[
                : len(images)
            ]


def _padded(images: np.ndarray, batch: int) -> np.ndarray:
    return np.pad(images, [(0, batch - len(images))] + [(0, 0)] * (images.ndim - 1))


@functools.cache
def _jitted(mode: Mode, mesh: Mesh) -> tuple[Callable, Callable]:
    """Resizing, compiled for each size of images, and the network, compiled once."""
    split, whole = meshes.batch(mesh), meshes.replicated(mesh)

    def resize(rows, columns, images):
        product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        images = product("nhwc,yh->nywc", images.astype(jnp.float32), rows)
        images = product("nywc,xw->nyxc", images, columns)
        if mode.clipped:
            images = jnp.clip(images, 0, 255)
        return (images - mode.centre) / mode.centre

    def network(params, images):
        return inception.apply(params, jnp.broadcast_to(images, (*images.shape[:3], 3)))

    return (
        jax.jit(resize, in_shardings=(whole, whole, split), out_shardings=split),
        jax.jit(network, in_shardings=(whole, split), out_shardings=split),
    )
