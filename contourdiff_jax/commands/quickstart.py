# SPDX-License-Identifier: Apache-2.0
"""Everything once, in minutes, on generated heads: train on MR, translate CT, score, report.

Generates heads, trains on the MR of some, translates the CT of others from its contours alone,
scores the result against the true MR of the latter, and writes WORKDIR/report.html.

Example:
    contourdiff quickstart --workdir=quickstart --minutes=5
"""

import time
from pathlib import Path

from absl import flags

from contourdiff_jax import config as configuration
from contourdiff_jax.commands import number_flags
from contourdiff_jax.errors import InputError

MADE = "a quickstart"  # by which its folder is known
# A grid and a network that two CPU cores train in minutes.
SIZE = 64  # px
SPACING = 3.6  # mm
HEADS = {
    "subjects": 44,  # of which 34 are trained on
    "test": 6,
    "train_ct": 4,
    "slices": 16,
    "level": 28.0,  # mm, from the orbits up: faces take longer to learn
}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff quickstart`."""
    flags.DEFINE_string("workdir", None, "folder for everything that is made", flag_values=values)
    flags.DEFINE_float(
        "minutes", 5.5, "time to train", lower_bound=0.05, upper_bound=1e5, flag_values=values
    )
    number_flags.define_seed(values, "seed of phantoms, training and noise")


def main(values: flags.FlagValues) -> int:
    """Runs the command; 1 where training was stopped."""
    if values.workdir is None:
        raise InputError("--workdir is required")
    finished = quickstart(Path(values.workdir), minutes=values.minutes, seed=values.seed)
    return 0 if finished else 1


def config(seed: int = 0):
    """The configuration of the quickstart, but for the number of images, which time decides."""
    settings = configuration.default()
    settings.seed = seed
    # A few minutes are spent on almost pure noise, where contours alone tell what is there. The
    # best that this allows is a single step, to the mean of all images with these contours. With
    # hours, the defaults and more steps give texture too.
    settings.train.batch = 2
    settings.diffusion.time_exponent = 0.1
    settings.sampler.steps = 1
    settings.augment.probability = 0.3
    # One device is enough for this, and divides the batch.
    settings.mesh.update(data=1, fsdp=1)
    return settings


def quickstart(workdir: Path, *, minutes: float, seed: int = 0) -> bool:
    """Make WORKDIR/report.html and all that it needs; False where a signal stopped the training.

    What an earlier call has finished is kept, so that an interrupted quickstart goes on.
    """
    # Imported here: `contourdiff quickstart --help` needs none of it.
    from contourdiff_jax.data.phantoms.heads import phantoms
    from contourdiff_jax.data.prepare import prepare
    from contourdiff_jax.evaluation.folder import Request, evaluate
    from contourdiff_jax.methods import train
    from contourdiff_jax.reports.page import report
    from contourdiff_jax.runtime import disk, ownership
    from contourdiff_jax.training import run
    from contourdiff_jax.translation import folder as translation

    ownership.check_is_free(workdir, MADE, overwrite=True)
    disk.write_json(workdir / ownership.MARK, {"made": MADE, "files": {}})
    began = time.perf_counter()
    data, store, trained = workdir / "data", workdir / "store", workdir / "run"
    if not data.exists():
        _say("generating heads")
        phantoms(data, **HEADS, size=SIZE, spacing=SPACING, seed=seed)
    if not store.exists():
        _say("preparing the MR of the training subjects")
        prepare(data / "train_mr", store, "mr", spacing=SPACING, size=SIZE)

    _say("training on MR alone")
    # A run that has begun goes on as it is.
    settings = None if run.exists(trained) else config(seed)
    if not train(settings, store, trained, minutes=minutes):
        return False
    _say("translating CT of other heads, from its contours alone")
    ct, translated = data / "test_ct", workdir / "translated"
    translation.translate(translation.Request(trained, ct, translated, preset="ct", seed=seed))
    _say("scoring against the MR of those heads")
    evaluate(
        Request(
            workdir / "translated",
            workdir / "scores",
            truth=data / "test_mr",
            source=data / "test_ct",
            real=data / "train_mr",
            labels=data / "test_labels",
            overwrite=True,
        )
    )
    page = workdir / "report.html"
    report(page, [trained, workdir / "scores"], overwrite=True)
    _say(f"done in {(time.perf_counter() - began) / 60:.1f} minutes; open {page}")
    return True


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)
