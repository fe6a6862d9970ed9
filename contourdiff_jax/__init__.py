# SPDX-License-Identifier: Apache-2.0
"""Unpaired, contour-conditioned medical image translation in JAX.

The method is ContourDiff (arXiv 2403.10786). From Python:

    import contourdiff_jax as cd

    run = cd.load("runs/mr")
    mr = run(nibabel.load("ct.nii.gz"), preset="ct")

api.py says what else there is. It is imported when something of it is asked for: JAX takes a
second, and the command line does without it as long as it can.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contourdiff_jax.api import (
        Model,
        Store,
        contours_of,
        evaluate,
        load,
        open_store,
        phantoms,
        prepare,
        train,
        translate,
    )

__all__ = [
    "Model",
    "Store",
    "contours_of",
    "evaluate",
    "load",
    "open_store",
    "phantoms",
    "prepare",
    "train",
    "translate",
]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("contourdiff_jax.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
