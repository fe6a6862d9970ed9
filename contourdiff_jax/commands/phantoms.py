# SPDX-License-Identifier: Apache-2.0
"""Generate head-like CT and MR volumes with labels: unpaired for training, paired for testing.

No two heads are alike, and every one can be had in every modality, voxel for voxel. Subjects of the
three roles never overlap:

    OUT/train_mr/<subject>_mr.nii.gz       target domain (T1-weighted), the only images to train on
    OUT/train_ct/<subject>_ct.nii.gz       source domain, other subjects
    OUT/test_ct/<subject>_ct.nii.gz        what is translated
    OUT/test_t2/<subject>_t2.nii.gz        a second source domain, the same heads
    OUT/test_{pd,flair,cbct}/..            with --unseen three more: PD, FLAIR and cone-beam CT
    OUT/test_mr/<subject>_mr.nii.gz        the truth of all these
    OUT/{train_mr,train_ct,test}_labels/<subject>_labels.nii.gz
        0 air, 1 brain, 2 ventricles and sulcal fluid, 3 bone, 4 soft tissue, 5 lesion

CT is as hard as that of a clinic: white and grey matter 4 to 7 HU apart, noise that neighbours
share, brain brighter under the skull, streaks between bones.

Example:
    contourdiff phantoms --out=phantoms --subjects=24 --size=128
"""

import dataclasses

from absl import flags

from contourdiff_jax.commands import number_flags
from contourdiff_jax.data.phantoms.heads import LEVEL, Heads, phantoms
from contourdiff_jax.errors import InputError

GROUPS = {
    "required": ("out",),
    "which heads": ("subjects", "test", "train_ct", "bias", "unseen", "seed"),
    "their voxels": ("size", "spacing", "slices", "thickness", "level"),
    "files": ("overwrite",),
}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff phantoms`."""
    flags.DEFINE_string("out", None, "folder to make", flag_values=values)
    flags.DEFINE_integer("subjects", 24, "how many heads", flag_values=values)
    flags.DEFINE_integer("size", 128, "in-plane matrix", flag_values=values)
    flags.DEFINE_integer("test", None, "test subjects (default: a quarter)", flag_values=values)
    flags.DEFINE_integer(
        "train_ct", None, "subjects with CT only (default: half of the rest)", flag_values=values
    )
    flags.DEFINE_integer("slices", 24, "slices per volume", flag_values=values)
    flags.DEFINE_float("thickness", 6.0, "slice thickness in mm", flag_values=values)
    flags.DEFINE_float(
        "level",
        LEVEL,
        "height of the middle slice in mm: 28 leaves out the face",
        flag_values=values,
    )
    flags.DEFINE_float(
        "spacing", None, "in-plane spacing in mm (default: 230 mm / size)", flag_values=values
    )
    number_flags.define_seed(values, "seed of all randomness")
    flags.DEFINE_float(
        "bias", 0.0, "structural bias between the domains, 0 for none, 1 strong", flag_values=values
    )
    flags.DEFINE_boolean(
        "unseen", False, "also PD, FLAIR and cone-beam CT of the test subjects", flag_values=values
    )
    flags.DEFINE_boolean("overwrite", False, "replace the phantoms in OUT", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Runs the command."""
    if values.out is None:
        raise InputError("phantoms: --out is required, the folder to make")
    options = {field.name: values[field.name].value for field in dataclasses.fields(Heads)}
    roles = phantoms(values.out, **options, overwrite=values.overwrite)
    counts = ", ".join(f"{len(names)} {role}" for role, names in roles.items())
    print(f"{values.out}: {counts}")
    return 0
