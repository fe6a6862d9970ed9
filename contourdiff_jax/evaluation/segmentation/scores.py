# SPDX-License-Identifier: Apache-2.0
"""What segmenters reach on test volumes: by network, over the seeds, and what is not defined."""

import csv
import dataclasses
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from contourdiff_jax.evaluation.scores import WHOLE


@dataclasses.dataclass(frozen=True)
class Score:
    """What one network reaches on one test volume; None where a number is not defined."""

    subject: str
    method: str
    seed: int | None  # None for what no network is part of
    metrics: dict[str, float | None]


def over_seeds(found: list[Score]) -> list[tuple]:
    """Rows of rows.csv: means over the seeds, of what is defined for all of them."""
    groups = defaultdict(lambda: defaultdict(list))
    for score in found:
        for metric, value in score.metrics.items():
            groups[score.subject, score.method][metric].append(value)
    seeds = Counter((score.subject, score.method) for score in found)
    return [
        (subject, WHOLE, method, metric, float(np.mean(values)), None)
        for (subject, method), metrics in groups.items()
        for metric, values in metrics.items()
        if None not in values and len(values) == seeds[subject, method]
    ]


def by_seed(found: list[Score]) -> dict:
    """The mean Dice over labels and subjects of every network."""
    values = defaultdict(list)
    for score in found:
        if score.seed is not None and "dice" in score.metrics:
            values[f"{score.method}, seed {score.seed}"].append(score.metrics["dice"])
    return {"dice of each network": {name: round(np.mean(v), 4) for name, v in values.items()}}


def undefined(found: list[Score]) -> dict:
    """How often a label was not found, or where there is none, and so has no distances."""
    counts, missing = Counter(), Counter()
    for score in found:
        for metric, value in score.metrics.items():
            if metric.startswith("assd_"):
                name = f"{score.method}, label {metric.removeprefix('assd_')}"
                counts[name] += 1
                missing[name] += value is None
    texts = {name: f"{missing[name]} of {counts[name]}" for name in counts if missing[name]}
    return {"label maps without a distance": texts} if texts else {}


def write(path: Path, found: list[Score]) -> None:
    """seeds.csv: what every network reaches, empty where a number is not defined."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("subject", "method", "seed", "metric", "value"))
        for score in found:
            if score.seed is None:
                continue
            for metric, value in score.metrics.items():
                text = "" if value is None else f"{value:.7g}"
                writer.writerow((score.subject, score.method, score.seed, metric, text))
