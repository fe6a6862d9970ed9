# SPDX-License-Identifier: Apache-2.0
"""Experiments that are made of commands: what is done is kept, and what one takes is measured.

Scripts find this file with `sys.path.append(str(Path(__file__).parents[1]))`.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from contourdiff_jax import methods, models
from contourdiff_jax.evaluation.metrics import bootstrap
from contourdiff_jax.training import run

PROBE = 240  # images that the speed of a training is taken of


def contourdiff(command: str, *flags: str | None, done: Path | None = None) -> dict:
    """Runs a command, unless what it makes is there; its seconds, and its memory in GiB.

    A flag that is None is left out.
    """
    if done is not None and done.exists():
        return {}
    argv = [sys.executable, "-m", "contourdiff_jax", command, *filter(None, flags)]
    print(*argv[2:], flush=True)
    start = time.monotonic()
    process = subprocess.Popen(argv)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise SystemExit(f"{command} failed")
    return {"seconds": time.monotonic() - start, "GiB": usage.ru_maxrss / 2**20}


def trained(place: Path, *flags: str, minutes: float, cores: int, probe: int = PROBE) -> dict:
    """Trains a run for so many minutes of two cores, and says what that took.

    As many images are seen as a short training before sees in that time; where fewer cores are
    given to it here, it takes as much longer.

    Args:
      flags: of train, but for the folder and the number of images.
      probe: images of the short training.
    """
    record = place.with_suffix(".json")
    if not record.exists():
        short = place.with_name(f"{place.name}_probe")
        contourdiff(
            "train",
            *(*flags, f"--workdir={short}", f"--config.train.images={probe}"),
            f"--config.train.log={max(1, probe // 6)}",
            done=short / "checkpoints",
        )
        speed = np.median([line["images_per_second"] for line in stats(short)][1:])
        batch = run.load(short).config.train.batch
        images = max(1, int(60 * minutes * speed * 2 / cores) // batch) * batch
        taken = contourdiff(
            "train", *flags, f"--workdir={place}", f"--config.train.images={images}"
        )
        taken |= {"images": images, "images_per_second": stats(place)[-1]["images_per_second"]}
        params = methods.networks(run.load(place))
        taken["parameters"] = {player: models.count(tree) for player, tree in params.items()}
        record.write_text(json.dumps(taken, indent=1))
    return json.loads(record.read_text())


def stats(place: Path) -> list[dict]:
    """The lines of a run's stats.jsonl that say how fast it was."""
    lines = [json.loads(line) for line in (place / "stats.jsonl").read_text().splitlines()]
    return [line for line in lines if "images_per_second" in line]


def by_subject(rows: Path) -> dict:
    """{method: {metric: {subject: mean}}} of a table of scores."""
    values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with rows.open(newline="") as stream:
        for row in csv.DictReader(stream):
            values[row["method"]][row["metric"]][row["subject"]].append(float(row["value"]))
    return {
        method: {
            metric: {subject: float(np.mean(v)) for subject, v in subjects.items()}
            for metric, subjects in metrics.items()
        }
        for method, metrics in values.items()
    }


def pooled(parts: list[dict], others: list[dict] | None, kept: Iterable[str]) -> dict:
    """{metric: interval} over the subjects of all folds, and the differences from another way.

    Args:
      parts: of each fold {metric: {subject: value}}; `others` likewise.
      kept: the metrics.
    """
    found = {}
    values, others = merged(parts), merged(others or [])
    for metric in kept:
        of, beside = (_finite(each.get(metric, {})) for each in (values, others))
        if of:
            found[metric] = bootstrap.interval(list(of.values()))
        if both := sorted(of.keys() & beside.keys()):
            pair = ([each[subject] for subject in both] for each in (of, beside))
            found[f"{metric}_more"] = bootstrap.difference(*pair)
    return found


def _finite(values: dict) -> dict:
    """Without what is not: the truth's PSNR is infinite, as of a volume without an error."""
    return {subject: value for subject, value in values.items() if np.isfinite(value)}


def merged(parts: list[dict]) -> dict:
    """{metric: {subject: value}} of all folds together."""
    values = defaultdict(dict)
    for part in parts:
        for metric, of in part.items():
            values[metric] |= of
    return dict(values)
