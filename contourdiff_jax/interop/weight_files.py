# SPDX-License-Identifier: Apache-2.0
"""The tensors of a model's folder, of diffusers or transformers: safetensors, whole or in shards.

Of a model that is there in several variants the one without a name is read, else that in half
precision, else that without a moving average. Files are memory-mapped and read tensor by tensor.
Pickles (.bin, .pt, .ckpt) can run code and are not read.
"""

from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401, with it numpy has the bfloat16 that safetensors asks for
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, forms

STEM = "diffusion_pytorch_model"  # of diffusers' files; transformers' is "model"
WEIGHTS = f"{STEM}.safetensors"
INDEX = f"{WEIGHTS}.index.json"
VARIANTS = ("", ".fp16", ".non_ema")
UNET = ("diffusers", "UNet2DModel")
# What files of early versions hold beside the parameters: the numbers 0, 1, .. of positions.
NUMBERS = ".position_ids"
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
DTYPES = ("F64", "F32", "F16", "BF16")


class Tensor(NamedTuple):
    """A tensor in a file."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The values, as float32 whatever the file has.

        The file is mapped for this tensor alone, since pages that were read stay in memory as long
        as it is mapped.
        """
        with safe_open(self.path, framework="np") as file:
            return file.get_tensor(self.name).astype(np.float32, copy=False)


def tensors(folder: Path, stem: str = STEM, model: tuple[str, str] = UNET) -> dict[str, Tensor]:
    """The tensors of a model's folder by name.

    Args:
      stem: of its files' names.
      model: the library and the class that it is of.

    Raises:
      InputError: no safetensors, a damaged file, or an index that does not agree with its shards.
    """
    for variant in VARIANTS:
        weights = folder / f"{stem}{variant}.safetensors"
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if weights.is_file():
            return _tensors(weights)
        if index.is_file():
            return _sharded(index)
    for path in sorted(folder.iterdir()):
        refuse_pickle(path, model)
    raise InputError(f"{folder}: holds no {stem}.safetensors")


def refuse_pickle(path: Path, model: tuple[str, str] = UNET) -> None:
    """Raise InputError for a pickle, with the command that converts it."""
    if path.suffix in PICKLES:
        library, kind = model
        raise InputError(
            f"{path}: a pickle, which can run code and is not read; where you trust it, convert it "
            f'with: python -c "from {library} import {kind} as M; M.from_pretrained('
            f"'{path.parent}', use_safetensors=False).save_pretrained('{path.parent}')\""
        )


def write(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """One file of contiguous tensors; InputError where it cannot be written."""
    with disk.file(path) as partial:
        try:
            save_file(tensors, partial, metadata=metadata)
        except SafetensorError as error:  # what an OSError becomes there
            raise InputError(f"{path}: cannot be written: {disk.reason(error)}") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    tensors = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118, not a dict
                if name.endswith(NUMBERS):
                    continue
                tensor = file.get_slice(name)
                if tensor.get_dtype() not in DTYPES:
                    raise InputError(
                        f"{path}: {name} is {tensor.get_dtype()}, not one of {', '.join(DTYPES)}"
                    )
                tensors[name] = Tensor(path, name, tuple(tensor.get_shape()))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from None
    return tensors


def _sharded(index: Path) -> dict[str, Tensor]:
    form = {"weight_map": dict[str, str]}
    files = forms.read(index, form, "give an index of shards as diffusers writes it")["weight_map"]
    # Only files of this folder are opened, whatever an index names.
    own = [path.name for path in index.parent.iterdir()]
    for name in files.values():
        if name not in own:
            raise InputError(f"{index}: names {name!r}, which is not a file of its own folder")
    tensors = {}
    for name in sorted(set(files.values())):
        tensors |= _tensors(index.parent / name)
    files = {name: file for name, file in files.items() if not name.endswith(NUMBERS)}
    for name in sorted(files.keys() | tensors.keys()):
        if name not in tensors or files.get(name) != tensors[name].path.name:
            raise InputError(f"{index}: does not say where {name} is, or not rightly")
    return tensors
