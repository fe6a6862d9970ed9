# SPDX-License-Identifier: Apache-2.0
"""Render whole-head label maps as CT and MR volumes: a translation task with known truth.

The anatomy is real (label maps of 1 mm whole heads); only the intensities are simulated, so the
same head can be had in every modality, voxel for voxel, with its tissue labels. Subjects of the
four roles never overlap:

    OUT/train_mr/<subject>_mr.nii.gz    target domain (T1), the only one that is trained on
    OUT/train_ct/<subject>_ct.nii.gz    other subjects, for methods that train on source images
    OUT/test_ct/<subject>_ct.nii.gz     what is translated
    OUT/test_t2/<subject>_t2.nii.gz     a second source domain of the same test heads
    OUT/test_mr/<subject>_mr.nii.gz     the truth (T1) of both, for scoring only
    OUT/{train_mr,train_ct,test}_labels/<subject>_labels.nii.gz
        0 air, 1 brain, 2 ventricles and sulcal fluid, 3 bone, 4 soft tissue, 5 lesion

With --folds K --fold k, every K-th subject (from the k-th) is a test subject: K runs test every
head once. CT is in HU with noise, a head holder under the head, air at -1000. MR is a spin-echo
signal in arbitrary but common units (gain 2000) with a smooth bias field and Rician noise. Each
head has a few white-matter lesions: bright in T2, darker in T1, nearly invisible in CT.
Deterministic in the seed and the subject's name.

    python render_heads.py --labels LABEL_MAPS --out OUT [--fold 0 --folds 4] [--thickness 3]

Needs numpy, scipy and nibabel.
"""

import argparse
import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

# tissue: HU mean, HU texture s.d., T1 [ms], T2 [ms], proton density (typical 1.5 T values)
TISSUES = {
    "air": (-1000, 3, 1, 1, 0.0),
    "white matter": (29, 2, 780, 90, 0.70),
    "grey matter": (38, 2, 1100, 95, 0.82),
    "deep grey matter": (36, 2, 950, 85, 0.80),
    "fluid": (6, 2, 4000, 2000, 1.0),
    "soft tissue": (45, 12, 1000, 45, 0.80),
    "fat": (-95, 8, 260, 80, 0.95),
    "skin": (20, 10, 900, 35, 0.70),
    "cortical bone": (1050, 160, 300, 1, 0.06),
    "marrow": (350, 90, 350, 60, 0.75),
    "eye": (10, 3, 3200, 900, 1.0),
    "mucosa": (30, 10, 1300, 70, 0.80),
    "vessel": (48, 4, 1500, 15, 0.25),
    "cord": (33, 3, 850, 85, 0.72),
    "lesion": (24, 3, 1350, 160, 0.85),
}
LABELS = {
    "white matter": (2, 41, 7, 46, 28, 60, 85, 251, 252, 253, 254, 255, 530),
    "grey matter": (3, 42, 8, 47),
    "deep grey matter": (
        10,
        49,
        11,
        50,
        12,
        51,
        13,
        52,
        16,
        17,
        53,
        18,
        54,
        26,
        58,
        25,
        57,
        136,
        137,
        163,
        164,
    ),
    "fluid": (4, 43, 5, 44, 14, 15, 24, 72, 30, 62),
    "soft tissue": (507,),
    "skin": (511,),
    "cortical bone": (515,),
    "marrow": (516,),
    "eye": (506,),
    "mucosa": (509,),
    "vessel": (502, 514),
    "cord": (512, 508),
}
NAMES = list(TISSUES)
GAIN = 2000.0
T1_WEIGHTED, T2_WEIGHTED = (550.0, 14.0), (4000.0, 95.0)  # (TR, TE) [ms]


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


def smooth_field(rng, shape, scale, amplitude):
    """Multiplicative field exp(amplitude * smooth noise), one knot every `scale` voxels."""
    knots = rng.standard_normal([max(2, int(np.ceil(s / scale)) + 1) for s in shape])
    zoom = [s / k for s, k in zip(shape, knots.shape, strict=True)]
    field = ndimage.zoom(knots, zoom, order=3)[: shape[0], : shape[1], : shape[2]]
    return np.exp(amplitude * field)


def paint(tissue, values, blur):
    image = np.asarray(values, np.float32)[tissue]
    return ndimage.gaussian_filter(image, blur)


def render_ct(tissue, rng):
    """Tissue map -> CT [HU], with a head holder: a bright shell that no MR would show."""
    jitter = 1 + 0.05 * rng.standard_normal(len(NAMES))
    hu = paint(
        tissue,
        [
            TISSUES[n][0] * (j if TISSUES[n][0] > 0 else 1)
            for n, j in zip(NAMES, jitter, strict=True)
        ],
        0.5,
    )
    texture = (
        ndimage.gaussian_filter(rng.standard_normal(tissue.shape).astype(np.float32), 0.7) / 0.3
    )
    hu += paint(tissue, [TISSUES[n][1] for n in NAMES], 0.5) * texture * 0.5
    x, y, z = np.indices(tissue.shape, sparse=True)
    inside = np.argwhere(tissue[:, :, tissue.shape[2] // 2] > 0)
    centre, low = inside[:, 0].mean(), inside[:, 1].min()
    radius = np.sqrt((x - centre) ** 2 + (y - (low + 70)) ** 2) + 0 * z
    shell = (np.abs(radius - 86) < 2.5) & (y < low + 30) & (tissue == 0)
    hu[shell] = 180
    hu += 6 * rng.standard_normal(tissue.shape)
    return np.clip(np.round(hu), -1024, 3071).astype(np.int16)


def render_mr(tissue, rng, weighting=T1_WEIGHTED):
    """Tissue map -> spin-echo signal, bias field, Rician noise; weighting (TR, TE) [ms]."""
    repetition, echo = weighting
    signal = []
    for name in NAMES:
        _, _, t1, t2, density = TISSUES[name]
        t1, t2 = t1 * (1 + 0.04 * rng.standard_normal()), t2 * (1 + 0.04 * rng.standard_normal())
        signal.append(density * (1 - np.exp(-repetition / t1)) * np.exp(-echo / t2))
    image = paint(tissue, signal, 0.6)
    texture = (
        ndimage.gaussian_filter(rng.standard_normal(tissue.shape).astype(np.float32), 1.0) / 0.2
    )
    image = image * (1 + 0.02 * texture) * smooth_field(rng, tissue.shape, 90, 0.06)
    sigma = 0.006
    noisy = np.hypot(
        image + sigma * rng.standard_normal(image.shape), sigma * rng.standard_normal(image.shape)
    )
    return np.clip(np.round(noisy * GAIN), 0, 32767).astype(np.int16)


def coarse_labels(tissue):
    groups = {
        1: ("white matter", "grey matter", "deep grey matter"),
        2: ("fluid",),
        3: ("cortical bone", "marrow"),
        4: ("soft tissue", "fat", "skin", "mucosa", "eye", "vessel", "cord"),
        5: ("lesion",),
    }
    out = np.zeros(tissue.shape, np.uint8)
    for value, names in groups.items():
        out[np.isin(tissue, [NAMES.index(n) for n in names])] = value
    return out


def thin(array, step, label=False):
    """Slices of thickness `step`: averages along z (labels: the middle slice)."""
    depth = array.shape[2] // step * step
    blocks = array[:, :, :depth].reshape(*array.shape[:2], -1, step)
    return (
        blocks[..., step // 2]
        if label
        else np.round(blocks.astype(np.float32).mean(-1)).astype(array.dtype)
    )


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
    for path, role in roles.items():
        subject = path.name.split(".")[0].replace("training_seg_", "head")
        image = nib.as_closest_canonical(nib.load(path))
        labels = np.asarray(image.dataobj).astype(int)
        z = np.flatnonzero(
            (np.isin(labels, LABELS["grey matter"])).any((0, 1))
        )  # the brain's extent
        labels, first = labels[:, :, z[0] : z[-1] + 1], z[0]
        affine = image.affine.copy()
        affine[:3, 3] += affine[:3, 2] * (first + (args.thickness - 1) / 2)
        affine[:3, 2] *= args.thickness
        tissue = tissue_map(labels)
        seed = int(hashlib.sha256(f"{args.seed}/{subject}".encode()).hexdigest()[:8], 16)
        add_lesions(tissue, np.random.default_rng(seed + 2))

        def save(array, folder, kind, label=False):
            target = args.out / folder / f"{subject}_{kind}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(thin(array, args.thickness, label), affine), target)

        if role in ("train_mr", "test"):
            save(
                render_mr(tissue, np.random.default_rng(seed)),
                role.replace("test", "test_mr"),
                "mr",
            )
        if role in ("train_ct", "test"):
            save(
                render_ct(tissue, np.random.default_rng(seed + 1)),
                role.replace("test", "test_ct"),
                "ct",
            )
        if role == "test":
            save(render_mr(tissue, np.random.default_rng(seed + 3), T2_WEIGHTED), "test_t2", "t2")
        save(coarse_labels(tissue), f"{role}_labels", "labels", label=True)
        print(role, subject, tissue.shape, flush=True)


if __name__ == "__main__":
    main()
