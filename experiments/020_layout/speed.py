# SPDX-License-Identifier: Apache-2.0
"""Times training and translation of two versions of the package in turns on one machine.

    python experiments/020_layout/speed.py BEFORE AFTER OUT.json [--turns=5]

BEFORE and AFTER are checkouts. What is timed is the documented commands with the default network at
64 px: of training the images a second between the second and the last line of stats.jsonl, so that
neither start nor compilation counts; of translation the median seconds a slice of its sidecars,
without the first volume, for the same reason; of both the seconds of the whole command too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMAGES = 1024


def contourdiff(version: Path, work: Path, *arguments: str) -> float:
    """Runs a command of a version; returns its seconds."""
    environment = os.environ | {
        "PYTHONPATH": str(version.resolve()),
        "JAX_COMPILATION_CACHE_DIR": str(work / f"compiled_{version.resolve().name}"),
    }
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "contourdiff_jax", *arguments],
        cwd=work,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def turn(version: Path, work: Path, name: str) -> dict[str, float]:
    """One training and one translation: {'quantity': value}."""
    run, out = work / f"run_{name}", work / f"out_{name}"
    train = contourdiff(
        version,
        work,
        "train",
        "--store=store",
        f"--workdir={run}",
        f"--config.train.images={IMAGES}",
        "--config.train.log=64",
    )
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "images_per_second" in line]
    images = lines[-1]["images"] - lines[1]["images"]
    rate = images / (lines[-1]["seconds"] - lines[1]["seconds"])
    translate = contourdiff(
        version,
        work,
        "translate",
        f"--run={run}",
        "--source=heads/test_ct",
        "--preset=ct",
        f"--out={out}",
        "--steps=4",
    )
    seconds = []
    for sidecar in sorted(out.rglob("*.json")):
        fields = json.loads(sidecar.read_text())
        if "slices" in fields:
            seconds.append(fields["seconds"] / fields["slices"])
    return {
        "training, images/s": rate,
        "training, s of the command": train,
        "translation, s a slice": statistics.median(seconds[1:]),
        "translation, s of the command": translate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    versions = {"before": given.before, "after": given.after}
    measured = {name: [] for name in versions}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        contourdiff(given.before, work, "phantoms", "--out=heads", "--size=64", "--slices=24")
        contourdiff(
            given.before,
            work,
            "prepare",
            "--source=heads/train_mr",
            "--out=store",
            "--preset=mr",
            "--size=64",
        )
        for number in range(given.turns):
            # Who begins takes turns, too.
            for name, version in sorted(versions.items(), reverse=number % 2 == 0):
                measured[name].append(turn(version, work, f"{name}{number}"))
                print(
                    name,
                    {key: round(value, 4) for key, value in measured[name][-1].items()},
                    flush=True,
                )
    result = {}
    for quantity in measured["before"][0]:
        values = {name: [one[quantity] for one in turns] for name, turns in measured.items()}
        ratios = [after / before for before, after in zip(*values.values(), strict=True)]
        result[quantity] = values | {
            "after / before": {
                "median": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
        }
    given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
