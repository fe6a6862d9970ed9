# SPDX-License-Identifier: Apache-2.0
"""The packages that compute FID, with given weights, beside a torch that has no torchvision.

pytorch-fid 0.3, torch-fidelity 0.4 and clean-fid 0.1.35 import torchvision, of which PyPI has no
build beside torch for CPUs. Of what they compute here it gives nothing but ToTensor, and to
pytorch-fid the layers of the blocks whose `forward` that package writes itself; torch-fidelity has
copies of these under the same names. They stand in for it, and all else is the packages' own.
"""

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from contourdiff_jax.models import inception

NAMES = ("torch_fidelity", "pytorch_fid", "cleanfid")


class Packages(NamedTuple):
    """Features [N, 2048] of the PNG files of a folder, by mode, and the packages' functions."""

    features: dict[str, Callable[[Path], np.ndarray]]
    frechet: dict[str, Callable]
    torch_fidelity_kid: Callable
    clean_fid_kid: Callable
    network: torch.nn.Module  # torch-fidelity's


def missing() -> list[str]:
    return [name for name in NAMES if importlib.util.find_spec(name) is None]


class _ToTensor:
    """Rows, columns, channels -> channels, rows, columns; bytes become 0 to 1."""

    def __call__(self, image):
        array = np.array(image)
        tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        return tensor / 255 if array.dtype == np.uint8 else tensor


def stand_in() -> dict[str, types.ModuleType]:
    """Modules by the names of torchvision's that the packages import."""
    names = ("datasets", "transforms", "transforms.functional", "models", "models.inception")
    modules = {"torchvision": types.ModuleType("torchvision")}
    modules["torchvision"].__version__ = "0.28"
    for name in names:
        modules[f"torchvision.{name}"] = types.ModuleType(f"torchvision.{name}")
        parent, _, last = f"torchvision.{name}".rpartition(".")
        setattr(modules[parent], last, modules[f"torchvision.{name}"])
    for name in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(modules["torchvision.datasets"], name, type(name, (), {}))
    modules["torchvision.transforms"].ToTensor = _ToTensor
    return modules


def load(weights: Path) -> Packages:
    """The packages with weights of a file; `stand_in` must be among the modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_fidelity import feature_extractor_inceptionv3 as blocks
        from torch_fidelity import metric_fid, metric_kid

        def network():
            return blocks.FeatureExtractorInceptionV3(
                "inception", ["2048"], feature_extractor_weights_path=weights
            )

        models = sys.modules["torchvision.models"]
        models.inception_v3 = lambda **_: network()
        models.inception.InceptionA = blocks.InceptionA
        models.inception.InceptionC = blocks.InceptionC
        models.inception.InceptionE = blocks.InceptionE_1

        from cleanfid import fid as clean
        from pytorch_fid import fid_score
        from pytorch_fid import inception as pytorch

    pytorch.load_state_dict_from_url = lambda *_, **__: torch.load(weights)
    plain = pytorch.InceptionV3(resize_input=False, normalize_input=False).eval()
    theirs, original = pytorch.InceptionV3(), network()

    def pytorch_fid(folder):
        files = sorted(folder.glob("*.png"))
        return fid_score.get_activations(files, theirs, 8, 2048, "cpu", 0)

    def torch_fidelity(folder):
        files = sorted(folder.glob("*.png"))
        images = [np.array(fid_score.Image.open(file).convert("RGB")) for file in files]
        tensors = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            return np.concatenate([original(part)[0].numpy() for part in tensors.split(8)])

    def clean_fid(folder):
        # Its own network is this one, as TorchScript, and takes (x - 128) / 128.
        def custom(x):
            return plain((x - 128) / 128)[0].squeeze(-1).squeeze(-1)

        return clean.get_folder_features(
            str(folder), custom, num_workers=0, batch_size=8, device="cpu", verbose=False
        )

    def torch_fidelity_fid(x, y):
        stats = [metric_fid.fid_features_to_statistics(torch.from_numpy(a)) for a in (x, y)]
        return metric_fid.fid_statistics_to_metric(*stats, False)[metric_fid.KEY_METRIC_FID]

    def pytorch_fid_fid(x, y):
        stats = [s for a in (x, y) for s in (a.mean(0), np.cov(a, rowvar=False))]
        return fid_score.calculate_frechet_distance(*stats)

    def torch_fidelity_kid(x, y, size):
        given = {"kid_subset_size": size, "verbose": False}
        found = metric_kid.kid_features_to_metric(*map(torch.from_numpy, (x, y)), **given)
        return found[metric_kid.KEY_METRIC_KID_MEAN]

    return Packages(
        {"pytorch-fid": pytorch_fid, "torch-fidelity": torch_fidelity, "clean-fid": clean_fid},
        {
            "pytorch-fid": pytorch_fid_fid,
            "torch-fidelity": torch_fidelity_fid,
            "clean-fid": clean.fid_from_feats,
        },
        torch_fidelity_kid,
        clean.kernel_distance,
        original,
    )


def random_weights(path: Path, seed: int = 0) -> None:
    """A file of random weights of the released ones' names and shapes, in the old form of torch."""
    generator = torch.Generator().manual_seed(seed)
    state = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    for name, (rows, columns, inputs, width) in inception.shapes().items():
        kernel = torch.randn(width, inputs, rows, columns, generator=generator)
        # Kaiming's 2, less what the spread of the scales below adds: features of the released
        # network lie around 0.4, and KID to 1e-5 means something at that scale only.
        state[f"{name}.conv.weight"] = kernel * (1.68 / (rows * columns * inputs)) ** 0.5
        for field in ("weight", "running_var"):
            state[f"{name}.bn.{field}"] = 0.5 + torch.rand(width, generator=generator)
        for field in ("bias", "running_mean"):
            state[f"{name}.bn.{field}"] = torch.randn(width, generator=generator) / 10
    torch.save(state, path, _use_new_zipfile_serialization=False)


# ----------------------------------------------------------------------------------------------
# Images
# ----------------------------------------------------------------------------------------------

PICTURES = ("harvard_ct", "harvard_mr", "harvard_mr_extra", "synthrad_ct_brain")


def slices(data: Path, size: int, kind: str, count: int) -> list[np.ndarray]:
    """`count` real slices [size, size] or, in colour, [size, size, 3], spread over all there are.

    Those of 256 pixels are the files' own; of 512, the same enlarged. Colours are three slices that
    follow one another.
    """
    files = [file for name in PICTURES for file in sorted((data / "png2d" / name).glob("*.png"))]
    chosen = np.linspace(0, len(files) - 3, count).astype(int)
    read = [[Image.open(files[first + i]) for i in range(3)] for first in chosen]
    resized = [[np.asarray(i.resize((size, size))) for i in images] for images in read]
    return [np.stack(i, -1) if kind == "colour" else i[0] for i in resized]


def read(folder: Path) -> np.ndarray:
    """The pictures of a folder in the order of their names."""
    return np.stack([np.array(Image.open(file)) for file in sorted(folder.glob("*.png"))])
