# SPDX-License-Identifier: Apache-2.0
"""The weights of InceptionV3 that FID and KID take: fetched once, and verified."""

import hashlib
import os
import re
from pathlib import Path

from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import torchfile
from contourdiff_jax.models import inception
from contourdiff_jax.runtime import downloads

# The release "fid_weights" of https://github.com/mseitzer/pytorch-fid, converted there from
# TensorFlow's inception-2015-12-05.tgz; see FID_WEIGHTS_URL in src/pytorch_fid/inception.py.
NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
VARIABLE = "CONTOURDIFF_INCEPTION"  # of the environment: the path of the file


def cached() -> Path:
    """Where the weights are kept."""
    return downloads.kept() / NAME


def fetch(path: Path) -> Path:
    """Download the weights to `path` unless they are there, and verify them; returns the path.

    Raises InputError where they cannot be had, saying how to get them otherwise.
    """
    if path.exists():
        if hashlib.sha256(torchfile.contents(path)).hexdigest() != SHA256:
            raise InputError(f"{path}: exists, but is not {NAME}; remove it, or choose --out")
        return path
    remedy = (
        f"try again, or fetch it on another machine, check that its SHA-256 is {SHA256}, and put "
        f"it at {path}, or name it by --weights or ${VARIABLE}"
    )
    downloads.fetch(URL, path, SHA256, remedy)
    return path


def load(path=None) -> tuple[dict, str, str]:
    """(parameters of the network, name of their file without its suffix, its SHA-256).

    Args:
      path: the file; by default $CONTOURDIFF_INCEPTION, or that of the cache.

    Raises:
      InputError: no such file; one whose name ends, as torch names its files, in the beginning of
        another SHA-256 ("...-6726825d.pth"); or one that holds other tensors.
    """
    path = Path(path or os.environ.get(VARIABLE) or cached())
    if path == cached() and not path.exists():
        raise InputError(
            f"no weights of InceptionV3 at {path}: run `contourdiff weights`, or fetch {URL} "
            f"elsewhere and put it there, or name it by --weights or ${VARIABLE}"
        )
    content = torchfile.contents(path)
    digest = hashlib.sha256(content).hexdigest()
    promised = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if promised and not digest.startswith(promised[1]):
        raise InputError(
            f"{path}: its SHA-256 begins with {digest[:8]}, not {promised[1]} as its name says; it "
            f"is damaged or another file, fetch it again"
        )
    tensors = torchfile.read(path, content)
    try:
        return inception.fold(tensors), path.stem, digest
    except InputError as error:
        raise InputError(f"{path}: not the weights of that InceptionV3: {error}") from None
