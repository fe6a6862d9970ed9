# SPDX-License-Identifier: Apache-2.0
"""Score translated volumes against their truth and the contours that they were made from.

Volumes of --translated, --truth, --source, --masks, --labels and --uncertainty belong together when
their names agree up to the modality (head01_ct, head01_mr). With --truth, images are compared in
the target's intensity window scaled to [0, 1], slice by slice, over the image and inside the body.
With --source, the contours of the translation are compared with those of the source. With --real,
volumes of the target domain, baselines are scored as well: the source with its histogram matched to
theirs, so too the picture in which its contours are sought, and the mean image. It is said in words
which of them the translation does not beat.

How well slices fit together is measured along their axis, beside the truth and the real volumes,
and with --truth in planes reformatted across the slices. --labels adds errors inside each label.
--uncertainty, standard deviations of the translations in their own units, adds how well these rank
the errors. --features adds KID and FID, which say how far the images lie from those of --real.
--shift adds the scores of each slice at the best place within so many mm, for truths that are not
registered better. --conventions=synthrad adds MAE, PSNR, SSIM and MS-SSIM of whole volumes as the
SynthRAD challenges take them. --memorisation, the store that the run was trained on, adds how near
the translations come to its slices. docs/scores.md defines the numbers.

Folders of images may need what `prepare` and `translate` may: --truth_select, --source_layout and
the like. So may pictures, which do not say what their numbers mean: --truth_range, _half and
_rotate, which count for --real as well unless it has its own. Of the source sidecars say all that.

A volume that cannot be scored is reported and skipped.

Example:
  contourdiff evaluate --translated=translated --out=scores \\
    --truth=data/test_mr --source=data/test_ct --real=data/train_mr
"""

import dataclasses
import sys

from absl import flags

from contourdiff_jax.commands import cluster_flags, number_flags, required_flags, scan_flags
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import records, scores, verdict
from contourdiff_jax.evaluation.folder import READ, Reading, Request, evaluate
from contourdiff_jax.evaluation.unpaired import MODE, MODES, NETWORKS, Options
from contourdiff_jax.volumes import intensity

GROUPS = {
    "required": ("translated", "out"),
    "what is compared with": (
        *("truth", "source", "real", "masks", "labels", "uncertainty", "memorisation"),
    ),
    "what the images are": ("preset", "source_preset", "pixel_spacing"),
    "how they are compared": ("grid", "shift", "conventions", "seed"),
    "KID and FID": ("features", "weights", "mode", "foreground", "three_views", "statistics"),
    "how the folders are found and read": tuple(
        f"{name}_{flag}" for name in READ for flag in scan_flags.OF_FOLDER
    ),
    "files": ("overwrite",),
    **cluster_flags.GROUP,
}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff evaluate`."""
    for name, text in (
        ("translated", "Folder of translated volumes with their sidecars."),
        ("truth", "Folder of the true target volumes."),
        ("real", "Folder of target volumes of other subjects, for baselines, KID and FID."),
        ("source", "Folder of the volumes that were translated."),
        ("masks", "Folder of body masks; by default they are computed."),
        ("labels", "Folder of label maps: errors are given inside each label too."),
        ("uncertainty", "Folder of standard deviations of the translations, in their units."),
        ("memorisation", "Store that the run was trained on, to look for copies of its slices."),
        ("out", "Folder to write."),
        ("features", "For distances: inception, segmenter, or a .npz of other features."),
        ("weights", "Of InceptionV3, see `contourdiff weights`; or of a segmenter."),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    presets = sorted(intensity.PRESETS)
    for name, default, known, text in (
        ("preset", None, presets, "Target intensities, without sidecars."),
        ("source_preset", None, presets, "Source intensities, without sidecars."),
        ("grid", "source", scores.GRIDS, "Where images are compared."),
        ("conventions", None, scores.CHALLENGES, "Score volumes as others do, too."),
        ("mode", None, MODES, f"Whose KID and FID; {MODE} by default."),
    ):
        flags.DEFINE_enum(name, default, list(known), text, flag_values=values)
    for name, text in (
        ("foreground", "For KID and FID, make all air but the body."),
        ("three_views", "For KID and FID, slice volumes along all three axes."),
        ("statistics", "Keep mean and covariance of the features, as pytorch-fid reads them."),
        ("overwrite", "Replace an evaluation."),
    ):
        flags.DEFINE_bool(name, False, text, flag_values=values)
    flags.DEFINE_float(
        "shift",
        0.0,
        "Of truths that are registered to so many mm only: score slices at the best place, too.",
        flag_values=values,
    )
    scan_flags.define_spacing(values)
    for name in READ:
        scan_flags.define_folder(values, f"{name}_")
    number_flags.define_seed(values, "Seed of the bootstrap.")
    cluster_flags.define_flags(values)


def main(values: flags.FlagValues) -> int:
    """Runs the command; 0 if every volume was scored, 1 if some were not."""
    required_flags.check(values, "evaluate", GROUPS["required"])
    names = [field.name for field in dataclasses.fields(Request) if field.name in values]
    request = Request(
        **{name: values[name].value for name in names},
        distances=distances_from_flags(values),
        readings={name: _reading(values, name) for name in READ},
    )
    if values.coordinator is not None and not request.features:
        shared = " or ".join(NETWORKS)
        raise InputError(f"--coordinator: processes share --features={shared}, and nothing else")
    with cluster_flags.joined(values):
        outcome = evaluate(request)
    if outcome is None:
        return 0
    data = outcome.metrics["data"]
    print(records.table(outcome.metrics["methods"]))
    print(f"{values.out}: {records.count(data)} scored")
    for sentence in verdict.unbeaten(outcome.metrics["methods"]):
        print(f"note: {sentence}")
    for name in ("truth", "source"):
        alone = data.get(f"of --{name} without a translation")
        if alone:
            print(f"note: no translation of {', '.join(alone)} of --{name}", file=sys.stderr)
    for _, reason in outcome.failed:
        print(f"left out: {reason}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _reading(values: flags.FlagValues, name: str) -> Reading:
    """How the folder of that name is understood; the spacing is that of all."""
    reading = Reading(**scan_flags.from_flags(values, f"{name}_"))
    return dataclasses.replace(reading, assumed=dataclasses.replace(reading.assumed, spacing=None))


def distances_from_flags(values: flags.FlagValues) -> Options | None:
    """The options as given on the command line; None without --features."""
    names = [field.name for field in dataclasses.fields(Options)]
    if values.features is not None:
        return Options(**{name: values[name].value for name in names})
    for name in names:
        if values[name].value:
            raise InputError(f"--{name} goes with --features")
    return None
