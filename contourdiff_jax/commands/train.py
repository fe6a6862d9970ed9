# SPDX-License-Identifier: Apache-2.0
"""Train a model on the images of one store: by default ContourDiff's, given their contours.

With --minutes or --images it chooses the settings that suit so much training, and writes them into
the run. Repeated with the same store and workdir, the command resumes the run, by its own
configuration if none is given; more --images let one that is finished go on. Ctrl-C, SIGTERM and
SIGHUP save and stop. Several processes train together with --coordinator (docs/clusters.md).

--config takes a Python file, a YAML or JSON file of the fields that are not at their defaults, the
config.json of a run, or the name of a configuration that comes with the package.

Example:
    contourdiff train --store=stores/mr --workdir=runs/mr --minutes=30
"""

from pathlib import Path

from absl import flags

from contourdiff_jax.commands import cluster_flags, config_flag, required_flags

GROUPS = {
    "required": ("store", "workdir"),
    "how long, and with which settings": ("minutes", "images", "config"),
    "what else it learns from": ("source_store", "init", "teacher", "codec", "base", "perceptual"),
    "checks": ("verify",),
    **cluster_flags.GROUP,
}


def define_flags(values: flags.FlagValues) -> None:
    config_flag.define_flag(values)
    flags.DEFINE_string("store", None, "store to train on, made by prepare", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_float(
        "minutes",
        None,
        "train for about so long on this machine, with the settings that suit that; or --images",
        lower_bound=0.05,
        upper_bound=1e6,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "images",
        None,
        "images to see in all, with the settings that suit so many; of a run that has begun, its "
        "new end",
        lower_bound=1,
        upper_bound=10**9,
        flag_values=values,
    )
    flags.DEFINE_string(
        "init", None, "run whose averaged weights to start from", flag_values=values
    )
    flags.DEFINE_string(
        "teacher",
        None,
        "run whose averaged weights to start from, and of whose steps to learn "
        "--config.distillation.substeps in one",
        flag_values=values,
    )
    flags.DEFINE_string(
        "source_store",
        None,
        "store of the source, for a method that learns from both without pairs: cyclegan",
        flag_values=values,
    )
    flags.DEFINE_string(
        "codec",
        None,
        "run of an autoencoder whose latents diffusion learns in place of pixels, or a run of such",
        flag_values=values,
    )
    flags.DEFINE_string(
        "base",
        None,
        "run of diffusion that sees no conditions, to which a ControlNet shows contours",
        flag_values=values,
    )
    flags.DEFINE_string(
        "perceptual",
        None,
        "segmenter (.safetensors of `segment`) by whose features an autoencoder compares images, "
        "with the weight of --config.autoencoder.perceptual",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "verify", True, "compare the store's files with their digests first", flag_values=values
    )
    cluster_flags.define_flags(values)


def main(values: flags.FlagValues) -> int:
    required_flags.check(values, "train", GROUPS["required"])
    from contourdiff_jax import methods  # JAX takes a second: not for --help
    from contourdiff_jax.runtime import processes

    config = config_flag.given(values)
    with cluster_flags.joined(values):
        finished = methods.train(
            config,
            values.store,
            values.workdir,
            images=values.images,
            minutes=values.minutes,
            init=values.init,
            teacher=values.teacher,
            source_store=values.source_store,
            codec=values.codec,
            base=values.base,
            perceptual=None if values.perceptual is None else _perceptual(values.perceptual),
            verified=values.verify,
        )
        if finished and processes.is_main():
            _tell(values)
    return 0 if finished else 1


def _tell(values: flags.FlagValues) -> None:
    """Where the run is, and what comes next."""
    run = values.workdir
    print(
        f"{run}: trained; next:\n"
        f"  contourdiff translate --run={run} --source=SCANS --preset=ct --out=TRANSLATED\n"
        f"  contourdiff train --store={values.store} --workdir={run} --images=MORE"
    )


def _perceptual(file: str):
    """A trained segmenter, as an autoencoder's loss asks for it."""
    from contourdiff_jax.evaluation.segmentation import trained
    from contourdiff_jax.methods.autoencoder import Perceptual
    from contourdiff_jax.models import segmenter

    found, _ = trained.load(Path(file))
    return Perceptual(found.params, segmenter.build(len(found.labels)).stages)
