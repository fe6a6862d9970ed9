# SPDX-License-Identifier: Apache-2.0
"""Trained segmenters: their file, what they see of a volume, and the labels they give it.

    FILE.safetensors   the weights by their path in the network, "down.0.first.conv.kernel"; the
                       metadata's "segmenter" is JSON: {"schema", "labels", "preset", "grid",
                       "method", "seed", "images"}

Shapes: [X, Y, Z] volumes, [N, H, W] slices on the segmenter's grid, C classes.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation.features import in_batches
from contourdiff_jax.interop import weight_files
from contourdiff_jax.models import segmenter
from contourdiff_jax.runtime import disk, forms
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid, Resampling
from contourdiff_jax.volumes.intensity import Preset
from contourdiff_jax.volumes.masks import body_mask
from contourdiff_jax.volumes.volume import Volume

SCHEMA = 1
KEY = "segmenter"  # of the file's metadata
FORM = {
    **{"schema": int, "labels": tuple[int, ...], "preset": str, "grid": Grid},
    **{"method": str, "seed": int, "images": int},
}
BATCH = 16  # slices at a time


@dataclasses.dataclass(frozen=True)
class Trained:
    """A segmenter with all that it takes to use it.

    Attributes:
      params: of the network, on the host.
      labels: of its classes, in order; the first is 0, the background.
      preset: of the images it was trained on.
      grid: that it sees slices on.
      method: what it was trained on: 'translation', 'lower', 'upper'.
      seed: of its training.
      images: that it was trained on, repeats counted.
    """

    params: dict
    labels: tuple[int, ...]
    preset: Preset
    grid: Grid
    method: str
    seed: int
    images: int

    @property
    def name(self) -> str:
        """The name of its files and folders."""
        return f"{self.method}_{self.seed}"

    def save(self, path: Path) -> None:
        """Writes the file."""
        fields = dataclasses.asdict(self) | {"schema": SCHEMA, "preset": self.preset.name}
        fields["grid"] = self.grid.to_dict()
        del fields["params"]
        tensors = {
            ".".join(str(key.key) for key in keys): np.asarray(leaf)
            for keys, leaf in jax.tree_util.tree_leaves_with_path(self.params)
        }
        weight_files.write(path, tensors, {KEY: json.dumps(fields)})

    def probabilities(self, images: np.ndarray, mesh: Mesh) -> np.ndarray:
        """Images [N, H, W] in [-1, 1] -> probabilities of the classes [N, H, W, C], float32."""
        return np.concatenate(list(self._run("probabilities", [images[..., None]], mesh)))

    def features(self, stacks: Iterable[np.ndarray], mesh: Mesh) -> np.ndarray:
        """Images [n, H, W] uint8 each -> features [N, FEATURES] of the lowest resolution."""
        images = (np.float32(stack[..., None]) / 127.5 - 1 for stack in stacks)
        none = np.zeros((0, segmenter.FEATURES), np.float32)
        return np.concatenate([none, *self._run("features", images, mesh)])

    def _run(self, output: str, stacks: Iterable[np.ndarray], mesh: Mesh) -> Iterator[np.ndarray]:
        batch = -(-BATCH // mesh.size) * mesh.size
        network = _compiled(output, len(self.labels), mesh)
        return in_batches(stacks, network, self.params, mesh, batch)


@functools.cache
def _compiled(output: str, classes: int, mesh: Mesh) -> Callable:
    network = segmenter.build(classes)
    functions = {
        "probabilities": lambda params, images: jax.nn.softmax(network.apply(params, images)),
        "features": network.encode,
    }
    return jax.jit(
        functions[output],
        in_shardings=(meshes.replicated(mesh), meshes.batch(mesh)),
        out_shardings=meshes.batch(mesh),
    )


def images_of(volume: Volume, preset: Preset, grid: Grid) -> tuple[np.ndarray, Resampling]:
    """What segmenters see of a volume with even slices, [N, H, W] in [-1, 1], and the way back."""
    values = preset.values(volume.array, preset.window_of(volume))
    body = body_mask(volume.array, volume.affine, preset.modality)
    resampling = grid.fit(volume.array.shape, volume.affine)
    slices = resampling.slices(values, preset.air)
    return preset.in_body(slices, resampling.masks(body)), resampling


def label_map(probabilities: np.ndarray, labels, resampling: Resampling) -> np.ndarray:
    """Probabilities [N, H, W, C] of labels -> a label map [X, Y, Z] uint16 on the volume's voxels.

    Probabilities are interpolated and the largest one counts: labels that are put back pixel by
    pixel have stairs for borders. Outside the grid is background, the first of the labels.
    """
    most = resampling.interpolated(probabilities[..., 0], fill=1.0)
    array = np.full(most.shape, labels[0], np.uint16)
    for number, label in enumerate(labels[1:], start=1):
        probability = resampling.interpolated(probabilities[..., number], fill=0.0)
        array[probability > most] = label
        most = np.maximum(most, probability)
    return array


def load(path) -> tuple[Trained, str]:
    """The segmenter of a file, and the SHA-256 of the file.

    Raises:
      InputError: no such file, or one that `contourdiff segment` did not write.
    """
    path = Path(path)
    disk.check_is_file(path)
    try:
        with safe_open(path, framework="np") as file:
            fields = forms.parsed((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fields = forms.checked(fields, FORM)
        if fields.pop("schema") != SCHEMA:
            raise InputError("of another schema; train it again")
        first, *others = labels = fields["labels"]
        if first != 0 or not all(0 < label < 2**16 for label in others):
            raise InputError(f"labels: {labels}")
        fields |= {"preset": intensity.preset(fields["preset"])}
        trained = Trained(_nested(tensors, segmenter.build(len(labels))), **fields)
    except (InputError, SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not the weights of a segmenter ({disk.reason(error)}); `contourdiff "
            f"segment` writes them to OUT/weights"
        ) from None
    return trained, hashlib.sha256(path.read_bytes()).hexdigest()


def _nested(tensors: dict[str, np.ndarray], network: segmenter.Segmenter) -> dict:
    """The params of a network from tensors by their paths; ValueError where they do not fit it."""
    expected, tree = jax.tree_util.tree_flatten_with_path(
        jax.eval_shape(network.init, jax.random.key(0))
    )
    names = [".".join(str(key.key) for key in keys) for keys, _ in expected]
    if set(names) != set(tensors):
        raise ValueError(f"other tensors: {min(set(names) ^ set(tensors))}")
    for name, (_, leaf) in zip(names, expected, strict=True):
        if tensors[name].shape != leaf.shape:
            raise ValueError(f"{name} has shape {tensors[name].shape}, not {leaf.shape}")
    return tree.unflatten([tensors[name] for name in names])
