# SPDX-License-Identifier: Apache-2.0
"""Render whole-head label maps as CT and MR volumes: a translation task with known truth.

The anatomy is real (label maps of 1 mm whole heads); only the intensities are simulated, so the
same head can be had in every modality, voxel for voxel, with its tissue labels. Subjects of the
roles never overlap:

    OUT/train_mr/<subject>_mr.nii.gz    target domain (T1), the only one that is trained on
    OUT/train_ct/<subject>_ct.nii.gz    other subjects, for methods that train on source images
    OUT/pairs_ct/<subject>_ct.nii.gz    with --pairs: CT of the heads of train_mr, for pairs
    OUT/test_ct/<subject>_ct.nii.gz     what is translated
    OUT/test_t2/<subject>_t2.nii.gz     a second source domain of the same test heads
    OUT/test_{pd,flair,cbct}/..         with --unseen: three more, cbct is cone-beam CT
    OUT/test_mr/<subject>_mr.nii.gz     the truth (T1) of all these, for scoring only
    OUT/{train_mr,train_ct,test}_labels/<subject>_labels.nii.gz
        0 air, 1 brain, 2 ventricles and sulcal fluid, 3 bone, 4 soft tissue, 5 lesion

With --folds K --fold k, every K-th subject (from the k-th) is a test subject: K runs test every
head once. The pictures are those of the package's renderers (`data/phantoms/rendering.py`):
clinical CT in HU, spin-echo MR in arbitrary units. Each head has a few white-matter lesions: bright
in T2, darker in T1, nearly invisible in CT. Deterministic in the seed and the subject's name.

    python render_heads.py --labels LABEL_MAPS --out OUT [--fold 0 --folds 4] [--thickness 3]
"""

import argparse
import dataclasses
import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from contourdiff_jax.data.phantoms import rendering, xrays

TISSUES = rendering.TISSUES | {
    "cord": dataclasses.replace(rendering.TISSUES["white matter"], name="cord"),
}
NAMES = list(TISSUES)
LABELS = {
    "white matter": (2, 41, 7, 46, 28, 60, 85, 251, 252, 253, 254, 255, 530),
    "grey matter": (3, 42, 8, 47),
    "deep grey matter": (
        *(10, 49, 11, 50, 12, 51, 13, 52, 16, 17, 53),
        *(18, 54, 26, 58, 25, 57, 136, 137, 163, 164),
    ),
    "fluid": (4, 43, 5, 44, 14, 15, 24, 72, 30, 62),
    "soft tissue": (507,),
    "skin": (511,),
    "cortical bone": (515,),
    "marrow": (516,),
    "eye": (506,),
    "mucosa": (509,),
    "blood": (502, 514),
    "cord": (512, 508),
}
GROUPS = {  # the labels that are written
    1: ("white matter", "grey matter", "deep grey matter"),
    2: ("fluid",),
    3: ("cortical bone", "marrow"),
    4: ("soft tissue", "fat", "skin", "mucosa", "eye", "blood", "cord"),
    5: ("lesion",),
}
# What is drawn of a head: a number of its own for its random stream, and how it is drawn.
KINDS = {
    "mr": (0, rendering.T1_WEIGHTED),
    "ct": (1, xrays.CLINICAL),
    "t2": (3, rendering.T2_WEIGHTED),
    "flair": (4, rendering.FLAIR),
    "cbct": (5, xrays.CONE_BEAM),
    "pd": (6, rendering.PD_WEIGHTED),
}
LESIONS = 2  # the number of their random stream


def tissue_map(labels):
    """Label map [X, Y, Z] -> tissue index; unknown labels inside the head count as soft tissue."""
    tissue = np.where(labels > 0, NAMES.index("soft tissue"), NAMES.index("air")).astype(np.uint8)
    for name, values in LABELS.items():
        tissue[np.isin(labels, values)] = NAMES.index(name)
    # The label maps hold no fat: give the scalp a fatty layer just under the skin.
    skin = tissue == NAMES.index("skin")
    near = ndimage.binary_dilation(skin, iterations=4) & (tissue == NAMES.index("soft tissue"))
    tissue[near] = NAMES.index("fat")
    return tissue


def add_lesions(tissue, rng):
    """Three to eight ellipsoidal white-matter lesions of 2-7 mm radius, in place."""
    white = np.argwhere(tissue == NAMES.index("white matter"))
    x, y, z = np.indices(tissue.shape, sparse=True)
    for centre in white[rng.integers(0, len(white), rng.integers(3, 9))]:
        radius = rng.uniform(2, 7) * rng.uniform(0.6, 1.0, 3)
        inside = (
            sum(((g - c) / r) ** 2 for g, c, r in zip((x, y, z), centre, radius, strict=True)) < 1
        )
        tissue[inside & (tissue == NAMES.index("white matter"))] = NAMES.index("lesion")


def picture(tissue, kind, seed, thickness):
    """[X, Y, Z // thickness] of a tissue map of 1 mm."""
    number, how = KINDS[kind]
    scene = (tissue, (1.0, 1.0, 1.0), np.random.default_rng(seed + number))
    options = {"tissues": dict(enumerate(TISSUES.values())), "reduction": (1, 1, thickness)}
    if isinstance(how, xrays.Beam):
        return rendering.render_ct(*scene, beam=how, **options)
    return rendering.render_mr(*scene, weighting=how, **options)


def coarse_labels(tissue, thickness):
    """The labels of the middle of each slice."""
    out = np.zeros(tissue.shape, np.uint8)
    for value, names in GROUPS.items():
        out[np.isin(tissue, [NAMES.index(n) for n in names])] = value
    whole = tissue.shape[2] // thickness * thickness
    return out[:, :, thickness // 2 : whole : thickness]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--thickness", type=int, default=3, help="slice thickness [mm]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", type=int, default=0, help="which fold's subjects are for testing")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--pairs", action="store_true", help="also the CT of the heads of train_mr")
    parser.add_argument("--unseen", action="store_true", help="also PD, FLAIR and cone-beam CT")
    args = parser.parse_args()

    paths = sorted(args.labels.glob("*.nii*"))
    if len(paths) < 3:
        parser.error(
            f"--labels: {args.labels} holds {len(paths)} label maps, at least 3 are needed"
        )
    test = paths[args.fold :: args.folds]
    rest = [p for p in paths if p not in test]
    half = (len(rest) + 1) // 2
    roles = {
        **{p: "train_mr" for p in rest[:half]},
        **{p: "train_ct" for p in rest[half:]},
        **{p: "test" for p in test},
    }
    kinds = {
        "train_mr": {"mr": "train_mr"} | ({"ct": "pairs_ct"} if args.pairs else {}),
        "train_ct": {"ct": "train_ct"},
        "test": {
            kind: f"test_{kind}"
            for kind in ("mr", "ct", "t2", *(("pd", "flair", "cbct") if args.unseen else ()))
        },
    }
    for path, role in roles.items():
        subject = path.name.split(".")[0].replace("training_seg_", "head")
        image = nib.as_closest_canonical(nib.load(path))
        labels = np.asarray(image.dataobj).astype(int)
        # The brain's extent.
        z = np.flatnonzero((np.isin(labels, LABELS["grey matter"])).any((0, 1)))
        labels, first = labels[:, :, z[0] : z[-1] + 1], z[0]
        affine = image.affine.copy()
        affine[:3, 3] += affine[:3, 2] * (first + (args.thickness - 1) / 2)
        affine[:3, 2] *= args.thickness
        tissue = tissue_map(labels)
        seed = int(hashlib.sha256(f"{args.seed}/{subject}".encode()).hexdigest()[:8], 16)
        add_lesions(tissue, np.random.default_rng(seed + LESIONS))

        def save(array, folder, kind):
            target = args.out / folder / f"{subject}_{kind}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), target)

        for kind, folder in kinds[role].items():
            save(picture(tissue, kind, seed, args.thickness), folder, kind)
        save(coarse_labels(tissue, args.thickness), f"{role}_labels", "labels")
        print(role, subject, tissue.shape, flush=True)


if __name__ == "__main__":
    main()
