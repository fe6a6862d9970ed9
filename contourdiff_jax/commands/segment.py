# SPDX-License-Identifier: Apache-2.0
"""Judge translations by segmenters: train on them, test on real volumes of the target.

Small U-Nets are trained on the volumes of --train_images with the labels of what these were
translated from, and tested on real volumes of the target with labels of their own: Dice, and the
distances ASSD and HD95 of surfaces in mm, of each label, on the test volume's own voxels. Two
bounds say what that is worth: --lower_images, the sources as they are, and --upper_images, real
volumes of the target with labels. Everything is repeated with several --seeds.

Volumes and labels belong together by their names. A subject is trained on or tested, never both.
All labels that all sets have are learnt; --classes chooses some of them, and the others become
background. --preset is not needed where translations have sidecars of `translate`. Predicted label
maps, the networks (for `evaluate --features=segmenter`) and pictures are written too. What cannot
be used is reported and left out. docs/scores.md defines the numbers.

Example:
  contourdiff segment --train_images=translated --train_labels=data/train_ct_labels \\
    --test_images=data/test_mr --test_labels=data/test_labels --out=segmented \\
    --lower_images=data/train_ct --lower_preset=ct \\
    --upper_images=data/train_mr --upper_labels=data/train_mr_labels
"""

import sys

from absl import flags

from contourdiff_jax.commands import number_flags, required_flags
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import records
from contourdiff_jax.evaluation.segmentation.protocol import Request, segment
from contourdiff_jax.volumes import intensity

REQUIRED = {
    "train_images": "Folder of translated volumes, to train on.",
    "train_labels": "Folder of the label maps of what was translated.",
    "test_images": "Folder of real volumes of the target, to test on.",
    "test_labels": "Folder of their label maps.",
    "out": "Folder to write.",
}

GROUPS = {
    "required": tuple(REQUIRED),
    "bounds": ("lower_images", "lower_labels", "lower_preset", "upper_images", "upper_labels"),
    "what the images are": ("preset", "test_preset", "axis", "spacing", "size"),
    "what is learnt": ("classes", "images", "batch", "seeds", "seed"),
}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff segment`."""
    optional = {
        "lower_images": "Folder of the sources themselves, for the lower bound.",
        "lower_labels": "Folder of their label maps; those of the translations by default.",
        "upper_images": "Folder of other real volumes of the target, for the upper bound.",
        "upper_labels": "Folder of their label maps.",
    }
    for name, text in (REQUIRED | optional).items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    presets = sorted(intensity.PRESETS)
    for name, text in (
        ("preset", "Intensities of the translations; by default their sidecars say."),
        ("test_preset", "Intensities of the real volumes; those of the translations by default."),
        ("lower_preset", "Intensities of the sources."),
    ):
        flags.DEFINE_enum(name, None, presets, text, flag_values=values)
    flags.DEFINE_list("classes", None, "Labels to learn; all by default.", flag_values=values)
    number_flags.define_grid(values)
    whole = flags.DEFINE_integer
    whole("images", None, "That each network sees; 100 epochs by default.", flag_values=values)
    whole("batch", 8, "Images of a training step.", flag_values=values)
    whole("seeds", 3, "Networks trained on each set.", flag_values=values)
    number_flags.define_seed(values, "Of the first network, and of the bootstrap.")


def main(values: flags.FlagValues) -> int:
    """Runs the command; 0 if every volume was used, 1 if some were left out."""
    required_flags.check(values, "segment", REQUIRED)
    options = {name: values[name].value for name in values}
    outcome = segment(Request(**options | {"classes": _numbers(values.classes)}))
    print(records.table(outcome.metrics["methods"]))
    print(f"{values.out}: {records.count(outcome.metrics['data'])} tested")
    for _, reason in outcome.failed:
        print(f"left out: {reason}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _numbers(classes: list[str] | None) -> list[int] | None:
    try:
        return classes and [int(number) for number in classes]
    except ValueError:
        raise InputError(f"--classes={','.join(classes)}: give whole numbers: 1,2,5") from None
