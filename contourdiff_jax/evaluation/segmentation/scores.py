# SPDX-License-Identifier: Apache-2.0
"""Scores of segmenters on test volumes: by network, over the seeds, and what is not defined."""

import csv
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from contourdiff_jax.evaluation import records
from contourdiff_jax.evaluation.metrics import catalogue
from contourdiff_jax.evaluation.scores import WHOLE


@dataclasses.dataclass(frozen=True)
class Score:
    """Metrics of one network on one test volume; None where a number is not defined."""

    scan: str
    method: str
    seed: int | None  # None for what no network is part of
    metrics: dict[str, float | None]


def over_seeds(scores: list[Score]) -> list[tuple]:
    """Rows of rows.csv: means over the seeds, of what is defined for all of them."""
    groups = defaultdict(lambda: defaultdict(list))
    for score in scores:
        for metric, value in score.metrics.items():
            groups[score.scan, score.method][metric].append(value)
    seeds = Counter((score.scan, score.method) for score in scores)
    return [
        (scan, WHOLE, method, metric, float(np.mean(values)), None)
        for (scan, method), metrics in groups.items()
        for metric, values in metrics.items()
        if None not in values and len(values) == seeds[scan, method]
    ]


def by_seed(scores: list[Score], subject_of: Mapping[str, str]) -> dict:
    """The Dice of every network: the mean over labels, a subject's scans, and subjects.

    Args:
      subject_of: {scan: subject}.
    """
    values = defaultdict(dict)
    for score in scores:
        if score.seed is not None and "dice" in score.metrics:
            values[f"{score.method}, seed {score.seed}"][score.scan] = [score.metrics["dice"]]
    means = {name: records.subject_means(scans, subject_of) for name, scans in values.items()}
    return {
        "dice of each network": {
            name: round(np.mean(list(subjects.values())), 4) for name, subjects in means.items()
        }
    }


def undefined(scores: list[Score]) -> dict:
    """How often a label was not found, or where there is none, and so has no distances."""
    counts, missing = Counter(), Counter()
    for score in scores:
        for metric, value in score.metrics.items():
            label = catalogue.label(metric, "assd_{label}")
            if label is not None:
                name = f"{score.method}, label {label}"
                counts[name] += 1
                missing[name] += value is None
    texts = {name: f"{missing[name]} of {counts[name]}" for name in counts if missing[name]}
    return {"label maps without a distance": texts} if texts else {}


def write(path: Path, scores: list[Score]) -> None:
    """Writes seeds.csv: the scores of every network, empty where a number is not defined."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("subject", "method", "seed", "metric", "value"))
        for score in scores:
            if score.seed is None:
                continue
            for metric, value in score.metrics.items():
                text = "" if value is None else f"{value:.7g}"
                writer.writerow((score.scan, score.method, score.seed, metric, text))
