# SPDX-License-Identifier: Apache-2.0
"""What the steps have in common: their arguments, how results are kept, what a device can do."""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
GIB = 2**30


class Peak(NamedTuple):
    """A second's operations in bf16, without sparsity, and bytes, as a maker says."""

    operations: float
    bytes: float


# NVIDIA's data sheets of H200 and H100 SXM and of A100 80 GB SXM, by JAX's device_kind.
PEAKS = {
    "NVIDIA H200": Peak(989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": Peak(989e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 2.039e12),
}


class Step(NamedTuple):
    """The arguments of a step: whether it is small, its result file, a folder for its work."""

    small: bool
    result: Path
    work: Path


def arguments(description: str) -> Step:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("result", type=Path)
    parser.add_argument("work", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    return Step(given.small, given.result.resolve(), given.work.resolve())


def keep(path: Path, result: dict) -> None:
    """Write what is known by now; whoever stops the process finds the file whole."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, path)


def rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Median of a call that ends when the device is done; the first is not counted."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def peak(kind: str) -> Peak | None:
    """None for a device whose maker's numbers are not listed."""
    return PEAKS.get(kind)
