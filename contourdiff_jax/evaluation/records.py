# SPDX-License-Identifier: Apache-2.0
"""Records of scores: metrics.json with means and intervals over subjects, rows.csv with all values.

metrics.json  {"schema", "notice", "command", "versions", "data",
               "methods": {method: {metric: {"value", "low", "high", "n"}}}, "cost"}
rows.csv      subject (its scan, where any has several), slice, method, metric, value, seconds
"""

import csv
import dataclasses
import importlib.metadata
import json
import platform
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

import contourdiff_jax
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation.metrics import bootstrap, catalogue
from contourdiff_jax.runtime import disk, forms, ownership
from contourdiff_jax.translation.sidecars import NOTICE

SCHEMA = 1  # of metrics.json
SUBJECTS = "subject of each scan"  # in "data", where a subject has several: {scan: subject}
WEIGHTS = "weights of the model"  # that translated: their digest, in its "data"
INTERVAL = {"value": float, "low": float | None, "high": float | None, "n": int}
FORM = {  # of metrics.json
    "methods": dict[str, dict[str, INTERVAL]],
    "data?": {
        f"{SUBJECTS}?": dict[str, str],
        f"{WEIGHTS}?": str,
        "target preset?": str | None,
        "source preset?": str | None,
        "failed?": tuple[str, ...],
    },
    "versions?": dict[str, object],
    "cost?": dict[str, object],
}
COST = {  # what is recorded, where anything is
    "seconds a slice": INTERVAL,
    "seconds a volume": INTERVAL,
    **dict.fromkeys(("parameters?", "devices?", "host_bytes?", "device_bytes?"), int),
}
COLUMNS = ("subject", "slice", "method", "metric", "value", "seconds")  # of rows.csv


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The content of metrics.json, and (path, reason) of what could not be used."""

    metrics: dict
    failed: list[tuple[Path, str]]


# --------------------------------------------------------------------------------------------------
# Subjects
# --------------------------------------------------------------------------------------------------


def by_subject(
    rows: Iterable[tuple], subject_of: Mapping[str, str] | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """{method: {metric: {subject: mean}}}, subjects sorted; scans are means of their slices.

    Args:
      rows: (scan, slice, method, metric, value, ..).
      subject_of: {scan: subject}, where a subject may have several scans.
    """
    slices = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for scan, _, method, metric, value, *_ in rows:
        slices[method][metric][scan].append(value)
    return {
        method: {metric: subject_means(scans, subject_of) for metric, scans in metrics.items()}
        for method, metrics in slices.items()
    }


def subject_means(
    values: Mapping[str, list[float]], subject_of: Mapping[str, str] | None = None
) -> dict[str, float]:
    """{subject: mean over its scans}, subjects sorted; scans are means of their values.

    Args:
      values: {scan: values}.
      subject_of: {scan: subject}; a scan that is not in it is a subject of its own.
    """
    means = defaultdict(list)
    for scan, of_scan in sorted(values.items()):
        means[(subject_of or {}).get(scan, scan)].append(np.mean(of_scan))
    return {subject: float(np.mean(of_scans)) for subject, of_scans in sorted(means.items())}


def summarise(
    rows: Iterable[tuple], seed: int, subject_of: Mapping[str, str] | None = None
) -> dict[str, dict[str, dict]]:
    """{method: {metric: interval}} over the subjects of `by_subject`."""
    return {
        method: {
            metric: bootstrap.interval(list(means.values()), seed)
            for metric, means in metrics.items()
        }
        for method, metrics in by_subject(rows, subject_of).items()
    }


def subjects(scans: Iterable[str], subject_of: Mapping[str, str]) -> dict:
    """What "data" says of the scans that were scored.

    Args:
      scans: names.
      subject_of: {scan: subject}, of these and of others that could not be scored.

    Returns:
      {"subjects": names}; where any of them has several scans, "scans" with their names and
      SUBJECTS with the subject of each are there too.
    """
    scans = list(scans)
    if len(set(subject_of.values())) == len(subject_of):
        return {"subjects": scans}
    unique = list(dict.fromkeys(subject_of[scan] for scan in scans))
    return {"subjects": unique, "scans": scans, SUBJECTS: dict(subject_of)}


def count(data: dict) -> str:
    """How many subjects were scored, and how many scans where that differs."""
    scans = f" in {len(data['scans'])} scans" if "scans" in data else ""
    return f"{len(data['subjects'])} subjects{scans}"


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def command(name: str, options: Mapping[str, object]) -> str:
    """The line that runs a command with the options that are not None; lists are joined."""
    words = ["contourdiff", name]
    for option, value in options.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        if text is not None:
            words.append(f"--{option}={text}")
    return shlex.join(words)


def content(line: str, data: dict, methods: dict, failed: list[tuple[Path, str]]) -> dict:
    """The content of metrics.json; `line` is the command."""
    data = data | ({"failed": [reason for _, reason in failed]} if failed else {})
    return {
        "schema": SCHEMA,
        "notice": NOTICE,
        "command": line,
        "versions": versions(),
        "data": data,
        "methods": methods,
    }


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
    """Versions of this package, of Python and of the packages that numbers may depend on."""
    packages = ("numpy", "scipy", "scikit-image", "nibabel", "opencv-python-headless", "jax")
    return {
        "contourdiff-jax": contourdiff_jax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


LEGEND = (
    "↑ higher is better, ↓ lower; without an arrow, right is what the truth has. Without a unit: "
    "shares of the intensity window, or ratios."
)


def table(methods: dict) -> str:
    """What to print of an evaluation: a table for each section that anything was measured of.

    Metrics go down, methods across, each with its interval; what is no headline of its section is
    counted.
    """
    measured = list(dict.fromkeys(name for scores in methods.values() for name in scores))
    shown = {
        section: catalogue.headlines(measured, section) or catalogue.of_section(measured, section)
        for section in catalogue.SECTIONS
    }
    names = [catalogue.directed(metric) for metrics in shown.values() for metric in metrics]
    width = max(map(len, (*catalogue.SECTIONS, *names))) + 2
    tables = [_lines(title, methods, metrics, width) for title, metrics in shown.items() if metrics]
    left = len(measured) - len(names)
    more = f" Not shown, in metrics.json: {left}." if left else ""
    return "\n\n".join([*tables, LEGEND + more])


def _lines(title: str, methods: dict, metrics: list[str], first: int) -> str:
    """A table of the methods that have any of the metrics, its first column `first` wide."""
    names = [name for name, scores in methods.items() if not scores.keys().isdisjoint(metrics)]
    rows = [[title.ljust(first), *names]]
    for metric in metrics:
        entries = [methods[name].get(metric) for name in names]
        cells = ("–" if e is None else bootstrap.text(e) for e in entries)
        rows.append([f"  {catalogue.directed(metric)}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """An evaluation as it was written.

    Attributes:
      name: of its folder, or of the file where that is not called metrics.json.
      metrics: content of metrics.json; "data" and "cost" are there, if empty.
      rows: of rows.csv, with value and seconds as floats, NaN where empty; none without the file.
      folder: with its pictures; None for a file of another name, which is a copy and belongs to
        nothing around it.
    """

    name: str
    metrics: dict
    rows: list[dict]
    folder: Path | None = None


def read(path: Path) -> Record:
    """The evaluation of a metrics.json, or of a copy of it under another name.

    Raises InputError for what is not one, is damaged or has no metric.
    """
    metrics, folder = _read_metrics(path), path.resolve().parent
    if path.name != "metrics.json":
        return Record(path.stem, metrics, [])
    ownership.check_finished(folder, "make it again")
    return Record(folder.name, metrics, _read_rows(path.with_name("rows.csv")), folder)


def _read_metrics(path: Path) -> dict:
    metrics = {"data": {}, "cost": {}} | forms.read(path, FORM, "evaluate again", SCHEMA)
    if not any(metrics["methods"].values()):
        raise InputError(f"{path}: no method has a metric; evaluate again")
    with forms.naming(path, "evaluate again"):
        return metrics | {
            "cost": forms.checked(metrics["cost"], COST if metrics["cost"] else {}, "cost")
        }


def _read_rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [
                {name: row[name] for name in COLUMNS[:4]}
                | {"value": float(row["value"]), "seconds": float(row["seconds"] or "nan")}
                for row in csv.DictReader(stream)
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: not the rows of an evaluation: {disk.reason(error)}") from error
