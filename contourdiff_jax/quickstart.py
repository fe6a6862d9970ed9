# SPDX-License-Identifier: Apache-2.0
"""Everything once, in minutes, on generated heads: train on MR, translate CT, score, report.

Makes phantoms, trains on the MR of some, translates the CT of others from its contours alone, scores the
result against the MR that these others would have had, and writes WORKDIR/report.html.

Example:
    contourdiff quickstart --workdir=quickstart --minutes=5
"""

import json
import time
from pathlib import Path

from absl import flags

from contourdiff_jax import config as configuration
from contourdiff_jax.errors import InputError

# A grid and a network that two CPU cores train in minutes.
SIZE = 64  # px
SPACING = 3.6  # mm
SUBJECTS = {"subjects": 38, "test": 6, "train_ct": 4}  # the other 28 are trained on


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder for everything that is made", flag_values=values)
    flags.DEFINE_float("minutes", 5.0, "time to train", lower_bound=0.05, flag_values=values)
    flags.DEFINE_integer("seed", 0, "seed of phantoms, training and noise", flag_values=values)


def main(values: flags.FlagValues) -> int:
    if values.workdir is None:
        raise InputError("--workdir is required")
    quickstart(Path(values.workdir), minutes=values.minutes, seed=values.seed)
    return 0


def config(seed: int = 0):
    """The configuration of the quickstart, but for the number of images, which its time budget decides."""
    settings = configuration.default()
    settings.seed = seed
    settings.train.learning_rate = 2e-3
    settings.train.ema_halflife = 2_000
    settings.train.warmup = 1_000
    return settings


def quickstart(workdir: Path, *, minutes: float, seed: int) -> None:
    """See the module's docstring. Raises InputError where `workdir` is taken by something else."""
    from contourdiff_jax.data.phantoms import phantoms
    from contourdiff_jax.data.prepare import prepare
    from contourdiff_jax.evaluate import evaluate
    from contourdiff_jax.report import report
    from contourdiff_jax.train import images_per_second, train
    from contourdiff_jax.translate import translate

    began = time.perf_counter()
    data, store, run = workdir / "data", workdir / "store", workdir / "run"
    if not data.exists():
        _say("generating heads")
        phantoms(data, **SUBJECTS, size=SIZE, spacing=SPACING, seed=seed)
    if not store.exists():
        _say("preparing the MR of the training subjects")
        prepare(data / "train_mr", store, "mr", spacing=SPACING, size=SIZE)

    settings = config(seed)
    budget = workdir / "budget.json"
    if not budget.exists():
        # The time is turned into a number of images once, so that a resumed run is the same run.
        speed = images_per_second(settings, store)
        images = int(speed * minutes * 60)
        budget.write_text(json.dumps({"minutes": minutes, "images": images}) + "\n")
        _say(f"{speed:.1f} images/s on this machine: {images:,} images in {minutes:g} minutes")
    settings.train.images = json.loads(budget.read_text())["images"]
    settings.train.evaluate = max(1, settings.train.images // 8)
    settings.train.sample = max(1, settings.train.images // 4)
    settings.train.checkpoint = max(1, settings.train.images // 4)
    settings.train.log = max(1, settings.train.images // 50)

    _say("training on MR alone")
    if not train(settings, store, run):
        raise InputError(f"{workdir}: training was stopped; the same command goes on")
    _say("translating CT that training has not seen, from its contours")
    translate(run, data / "test_ct", workdir / "translated", preset="ct", seed=seed)
    _say("scoring against the MR of the same heads")
    evaluate(
        workdir / "translated",
        workdir / "scores",
        truth=data / "test_mr",
        source=data / "test_ct",
        real=data / "train_mr",
        overwrite=True,
    )
    report(workdir / "report.html", [run, workdir / "scores"], overwrite=True)
    _say(f"done after {(time.perf_counter() - began) / 60:.1f} minutes: see {workdir / 'report.html'}")


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)
