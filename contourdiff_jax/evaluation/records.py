# SPDX-License-Identifier: Apache-2.0
"""Records of scores: metrics.json with means and intervals over subjects, rows.csv with all values.

metrics.json  {"schema", "notice", "command", "versions", "data",
               "methods": {method: {metric: {"value", "low", "high", "n"}}}}
rows.csv      subject (its scan, where it has several), slice, method, metric, value, seconds
"""

import csv
import importlib.metadata
import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

import contourdiff_jax
from contourdiff_jax.evaluation.metrics import bootstrap

SCHEMA = 1  # of metrics.json
SUBJECTS = "subject of each scan"  # in "data", where a subject has several: {scan: subject}
WEIGHTS = "weights of the model"  # that translated: their digest, in its "data"
COLUMNS = ("subject", "slice", "method", "metric", "value", "seconds")  # of rows.csv


def by_subject(
    rows: Iterable[tuple], whose: Mapping[str, str] | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """{method: {metric: {subject: mean}}}, subjects sorted: over scans the means of their slices.

    Args:
      rows: (scan, slice, method, metric, value, ..).
      whose: scan -> subject, where a subject may have several scans.
    """
    slices = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for scan, _, method, metric, value, *_ in rows:
        slices[method][metric][scan].append(value)

    def means(scans: dict[str, list[float]]) -> dict[str, float]:
        found = defaultdict(list)
        for scan, values in sorted(scans.items()):
            found[(whose or {}).get(scan, scan)].append(np.mean(values))
        return {subject: float(np.mean(values)) for subject, values in sorted(found.items())}

    return {
        method: {metric: means(scans) for metric, scans in metrics.items()}
        for method, metrics in slices.items()
    }


def summarise(
    rows: Iterable[tuple], seed: int, whose: Mapping[str, str] | None = None
) -> dict[str, dict[str, dict]]:
    """{method: {metric: interval}} over the subjects of `by_subject`."""
    return {
        method: {
            metric: bootstrap.interval(list(means.values()), seed)
            for metric, means in metrics.items()
        }
        for method, metrics in by_subject(rows, whose).items()
    }


def several(whose: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What "data" says of whose the scans are: nothing where each is a subject's only one."""
    return {SUBJECTS: dict(whose)} if len(set(whose.values())) < len(whose) else {}


def write(folder: Path, metrics: dict, rows: list[tuple]) -> None:
    """Writes metrics.json and rows.csv."""
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for *row, value, seconds in rows:
            writer.writerow([*row, f"{value:.7g}", "" if seconds is None else f"{seconds:.4g}"])


def versions() -> dict[str, str]:
    """Of this package, Python and what numbers may depend on."""
    packages = ("numpy", "scipy", "scikit-image", "nibabel", "opencv-python-headless", "jax")
    return {
        "contourdiff-jax": contourdiff_jax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def table(methods: dict) -> str:
    """Metrics down, methods across, each with its interval."""
    names = list(methods)
    rows = [["", *names]]
    for metric in dict.fromkeys(metric for metrics in methods.values() for metric in metrics):
        entries = [methods[name].get(metric) for name in names]
        rows.append([metric, *("" if e is None else bootstrap.text(e) for e in entries)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
