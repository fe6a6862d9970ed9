# SPDX-License-Identifier: Apache-2.0
"""Parameters of our networks from tensors of others' files, and tensors of our parameters.

How a library calls them and lays them out, its `Words`, is for the files beside this one to say:
unet2d.py, unet2d_condition.py, autoencoder_kl.py and clip_text.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contourdiff_jax.contracts import Params
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import autoencoder_kl, clip_text, unet2d, unet2d_condition
from contourdiff_jax.interop.weight_files import Tensor


class Words(NamedTuple):
    """How a library calls the parameters of one network, and lays them out.

    Attributes:
      name: path of a parameter of ours -> its name there.
      ours: (path, their array, our shape) -> our array.
      theirs: (path, our array) -> their array.
      current: tensors by name, of any version -> by today's name.
    """

    name: Callable[[tuple], str]
    ours: Callable[[tuple, np.ndarray, tuple[int, ...]], np.ndarray]
    theirs: Callable[[tuple, np.ndarray], np.ndarray]
    current: Callable[[Mapping[str, Any]], dict[str, Any]] = unet2d.renamed

    def theirs_shape(self, path: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of `theirs`."""
        return self.theirs(path, np.broadcast_to(np.float32(0), shape)).shape


# ----------------------------------------------------------------------------------------------
# Words
# ----------------------------------------------------------------------------------------------


def of_unet2d(config) -> Words:
    """Of the UNet2DModel of a `model` section."""
    return _of_convolutions(lambda path: unet2d.name(config, path))


def of_condition(config, linear: bool) -> Words:
    """Of the UNet2DConditionModel or the ControlNetModel of a `model` section.

    Args:
      linear: see unet2d_condition.Network.
    """

    def name(path):
        return unet2d_condition.name(config, path)

    return Words(
        name,
        ours=lambda path, array, shape: unet2d_condition.ours(array, shape),
        theirs=lambda path, array: unet2d_condition.theirs(name(path), array, linear=linear),
    )


def of_autoencoder(config) -> Words:
    """Of the AutoencoderKL of an `autoencoder` section."""
    return _of_convolutions(lambda path: autoencoder_kl.name(config, path))


def of_text() -> Words:
    """Of any CLIPTextModel."""
    return Words(
        clip_text.name,
        ours=lambda path, array, shape: clip_text.ours(path, array),
        theirs=clip_text.theirs,
        current=clip_text.current,
    )


def _of_convolutions(name: Callable[[tuple], str]) -> Words:
    return Words(
        name,
        ours=lambda path, array, shape: unet2d.ours(array),
        theirs=lambda path, array: unet2d.theirs(array),
    )


# ----------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A parameter in a file: the tensor, and the shape that it has here."""

    tensor: Tensor
    shape: tuple[int, ...]


def matched(shapes: Params, words: Words, tensors: Mapping[str, Tensor], folder: Path) -> Params:
    """The tree of `shapes`, of what is `Found` in a model's files; nothing else of them is read.

    Raises:
      InputError: a tensor that is missing, unexpected or of another shape; it is named, with the
        folder or the file.
    """
    tensors = words.current(tensors)
    wanted = {words.name(_keys(path)): (_keys(path), leaf.shape) for path, leaf in _leaves(shapes)}
    for problem, there, here in (("missing", tensors, wanted), ("unexpected", wanted, tensors)):
        odd = sorted(here.keys() - there.keys())
        if odd:
            raise InputError(f"{folder}: {odd[0]} is {problem}, one of {len(odd)} such tensors")
    for name, (path, shape) in wanted.items():
        expected = words.theirs_shape(path, shape)
        if tensors[name].shape != expected:
            raise InputError(
                f"{tensors[name].path}: {name} has shape {tensors[name].shape}, but config.json "
                f"says {expected}"
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: Found(tensors[words.name(_keys(path))], leaf.shape), shapes
    )


def read(words: Words, found: Params) -> Params:
    """The parameters, float32, of a tree of `Found`.

    They are read one by one, so that there is one more in memory than what comes back.

    Raises:
      InputError: values that are not finite; the tensor is named, with the file.
    """

    def values(path, found: Found) -> jax.Array:
        array = found.tensor.read()
        if not np.isfinite(array).all():
            raise InputError(
                f"{found.tensor.path}: {found.tensor.name} holds values that are not finite"
            )
        # Of NumPy's Orbax would make a copy.
        return jnp.asarray(words.ours(_keys(path), array, found.shape))

    return jax.tree_util.tree_map_with_path(
        values, found, is_leaf=lambda leaf: isinstance(leaf, Found)
    )


def written(words: Words, params: Params) -> dict[str, np.ndarray]:
    """Tensors by their name there, float32 where the parameters are."""
    return {
        words.name(_keys(path)): words.theirs(_keys(path), np.asarray(leaf))
        for path, leaf in _leaves(params)
    }


def _leaves(tree: Params) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)


def _keys(path) -> tuple:
    return tuple(key.key for key in path)
