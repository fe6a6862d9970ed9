# SPDX-License-Identifier: Apache-2.0
"""Rendered CT beside real CT: contours, noise, cupping, and what of the MR a CT tells by itself.

    CONTOURDIFF_DATA=DIR python compare.py OUT NAME=HEADS ..

HEADS is a folder of CT and MR that experiments/001_heads/render_heads.py has made with --folds=1.
Real are the slices of the 90 training patients of experiments/021_real, and a series of DIR/dicom.
What is prepared in OUT is kept. Writes result.json and figure.png beside this file.
"""

import json
import os
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage
from skimage.exposure import match_histograms

from contourdiff_jax.contours import agreement
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.evaluation import contour_gap
from contourdiff_jax.evaluation.metrics import bootstrap, gap, paired
from contourdiff_jax.volumes.intensity import Window

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "021_real"))
import benchmark

DATA = Path(os.environ.get("CONTOURDIFF_DATA", HERE.parents[2] / "shared/data"))
SERIES = DATA / "dicom/ge_head_ct"
GRID = {"spacing": 2.0, "size": 128}
AIR, BRAIN = 1.5, 33.0  # grey of air, HU of the commonest grey in a brain
ONE_SCALE = (-1008.0, 1470.0)  # HU of black and white
LEVEL = 9.7  # HU between two greys of SynthRAD's pictures
MIDDLE = (0.35, 0.45, 0.55, 0.65)  # of the brain's height, where those are
THICK = 2  # slices of 3 mm that one of the series is as thick as
SHOWN, FIELD = Window(0, 80), 210.0  # HU, mm of the figure
SHOWN_SLICE = 17  # of the series
CONTOURS = ("default", "united", "published")
BONE = 250  # HU
DEEP, OUTER = 20.0, 6.0  # mm below the skull, where brain is deep, and where it is outer
CLOSED = 8  # pixels, half of the widest gap in a skull
PATCH = 20.0  # mm
WIDTHS = (1.0, 2.0, 4.0)  # mm
LEAST = 5000.0  # mm2 of brain in a slice that is looked at


# --------------------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------------------


def brain_grey(grey: np.ndarray) -> int:
    """The commonest grey deep in the head of a picture [H, W] of 8 bits."""
    body = grey > 30
    core = ndimage.binary_erosion(ndimage.binary_fill_holes(body), iterations=25)
    return int(np.bincount(grey[core & body], minlength=256).argmax())


def hounsfield(grey: np.ndarray) -> np.ndarray:
    """HU of a picture that was scaled by itself: black is air, the commonest grey is BRAIN."""
    return -1000 + (grey - AIR) * (BRAIN + 1000) / (brain_grey(grey) - AIR)


def write(path: Path, volume: np.ndarray, spacing) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.int16(np.round(volume)), np.diag([*spacing, 1.0])), path)


def synthrad(out: Path) -> None:
    """The training patients' slices as volumes of one slice."""
    for kind in ("ct", "mr"):
        for path in benchmark.sides(DATA / f"real/{benchmark.SYNTHRAD}/{kind}")["train"]:
            grey = np.rot90(np.asarray(Image.open(path)), -1)
            values = hounsfield(grey) if kind == "ct" else grey.astype(float)
            write(out / kind / f"{path.stem}.nii.gz", values[..., None], (1, 1, 3))


def rendered(heads: Path, out: Path) -> None:
    """Slices of rendered heads as those of the pictures are, and as those of the series."""
    for kind in ("ct", "mr"):
        for path in sorted((heads / f"test_{kind}").iterdir()):
            image = nibabel.load(path)
            volume = np.asarray(image.dataobj, np.float32)
            middle = volume[..., [int(volume.shape[2] * height) for height in MIDDLE]]
            if kind == "ct":
                middle = np.round(middle / LEVEL) * LEVEL
                whole = volume[..., : volume.shape[2] // THICK * THICK]
                thick = whole.reshape(*whole.shape[:2], -1, THICK).mean(-1)
                write(out / "thick" / path.name, thick, (1, 1, 3 * THICK))
            write(out / kind / path.name, middle, (1, 1, 3))


def store(source: Path, out: Path, preset: str, contours: str | None = None):
    """The slices of a folder on the grid, and how their contours are taken."""
    place = out / "stores" / "_".join(source.relative_to(source.parents[1]).parts)
    if not place.exists():
        prepare(source, place, preset, validation=0, **GRID)
    return contour_gap.domain(place, contours)


# --------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------


def regions(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brain and skull [H, W] of a CT slice; both empty where the skull is open wider than 3 cm."""
    bone = np.pad(values > BONE, CLOSED)  # pictures may end at the skull
    shut = ndimage.binary_closing(bone, iterations=CLOSED)
    hollow = (ndimage.binary_fill_holes(shut) & ~bone)[CLOSED:-CLOSED, CLOSED:-CLOSED]
    bone = bone[CLOSED:-CLOSED, CLOSED:-CLOSED]
    pieces, _ = ndimage.label(ndimage.binary_erosion(hollow, iterations=2))
    sizes = np.bincount(pieces.ravel(), minlength=2)[1:]
    if sizes.max() * GRID["spacing"] ** 2 < LEAST:
        return np.zeros_like(bone), np.zeros_like(bone)
    brain = pieces == 1 + sizes.argmax()
    near = ndimage.binary_dilation(brain, iterations=12)
    return brain, ndimage.binary_dilation(bone) & near


def contours_of(domain, values: np.ndarray) -> dict:
    """Share of brain and of skull that is contour; `values` [n, H, W] HU of the rows."""
    drawn = domain.contours() > 0
    owners = domain.store.index["subject"][domain.rows]
    found = {"brain": [], "skull": []}
    for owner in np.unique(owners):
        parts = [
            (d, *regions(v))
            for d, v in zip(drawn[owners == owner], values[owners == owner], strict=True)
        ]
        for number, name in enumerate(found, 1):
            area = sum(part[number].sum() for part in parts)
            if area:
                found[name].append(sum((part[0] & part[number]).sum() for part in parts) / area)
    return {name: bootstrap.interval(np.array(shares), 0) for name, shares in found.items()}


def gaps(sources: dict, target) -> dict:
    """Gap of the contours of each source to those of the target."""
    unit = gap.unit(target.masks)
    theirs = target.counts(target.contours(), gap.frames(target.masks, unit))
    yardstick, total = gap.yardstick(theirs), gap.total(theirs)

    def entry(domain):
        counts = gap.total(domain.counts(domain.contours(), gap.frames(domain.masks, unit)))
        numbers = gap.statistics(counts, unit * GRID["spacing"])
        return gap.gap(counts, total, yardstick) | {"statistics": numbers}

    return {name: entry(domain) for name, domain in sources.items()}


def kindness(ct, mr) -> dict:
    """What of the MR of the same slices a CT tells without a model, by slices.

    Returns:
      curve: SSIM in the body of the picture in which the CT's contours are sought, with the MR's
        own histogram; brain: Pearson's correlation of that picture and the MR in the brain;
        tissue: that of HU and the MR in the brain without its fluid;
        contours: F-measure of the contours of both in the brain, between 0, that of another's MR,
        and 1.
    """
    hu, greys = (domain.store.values(domain.rows) for domain in (ct, mr))
    greys = mr.store.preset.image.fraction(greys)
    drawn = ct.contours(), mr.contours()
    found = {"curve": [], "brain": [], "tissue": [], "contours": []}
    for k, (values, true, mask) in enumerate(zip(hu, greys, ct.masks, strict=True)):
        brain, _ = regions(values)
        if not brain.any():
            continue
        picture = np.interp(values, *zip(*ct.settings.curve, strict=True))
        matched = np.zeros_like(true)
        matched[mask] = match_histograms(picture[mask], true[mask])
        found["curve"].append(paired.scores(matched, true, 1.0, mask)["ssim_mask"])
        found["brain"].append(np.corrcoef(picture[brain], true[brain])[0, 1])
        soft = ndimage.gaussian_filter(values, 1)
        tissue = ndimage.binary_erosion(brain & (soft > 22) & (soft < 55))
        found["tissue"].append(np.corrcoef(values[tissue], true[tissue])[0, 1])
        ours, other = drawn[0][k] * brain, drawn[1][(k + len(hu) // 2) % len(hu)] * brain
        own, chance = (
            agreement.contour_agreement(ours, theirs)["contour_f1"]
            for theirs in (drawn[1][k] * brain, other)
        )
        found["contours"].append((own - chance) / (1 - chance))
    return {name: bootstrap.interval(values, 0) for name, values in found.items()}


def noise(planes, spacing: float) -> dict:
    """How uneven brain is in CT slices [H, W] in HU.

    Returns:
      sd: standard deviation in patches from which their slow course is taken, lower quartile and
        median over patches, of squares of several widths; cupping: by how many HU brain is
        brighter under the skull than deep, mean over slices.
    """
    deviations, cups = {width: [] for width in WIDTHS}, []
    for plane in planes:
        bone = ndimage.binary_closing(plane > BONE, iterations=round(4 / spacing))
        hollow = ndimage.binary_fill_holes(bone) & ~bone
        if hollow.sum() * spacing**2 < LEAST:
            continue
        depth = ndimage.distance_transform_edt(hollow) * spacing
        tissue = (plane > 20) & (plane < 50)
        outer, deep = tissue & (depth > 3) & (depth < OUTER), tissue & (depth > DEEP)
        if outer.any() and deep.any():
            cups.append(plane[outer].mean() - plane[deep].mean())
        soft = ndimage.gaussian_filter(plane, 2 / spacing)
        inside = (depth > 5) & (soft > 10) & (soft < 60)
        for patch in patches(plane, inside, round(PATCH / spacing)):
            for width, found in deviations.items():
                found.append(averaged(patch, round(width / spacing)).std())
    return {
        "patches": len(deviations[WIDTHS[0]]),
        "sd": {f"{w:g} mm": np.percentile(d, (25, 50)).tolist() for w, d in deviations.items()},
        "cupping": float(np.mean(cups)),
    }


def patches(plane, inside, side):
    """What is left of the squares that lie inside when a quadratic is taken out."""
    y, x = np.mgrid[:side, :side].reshape(2, -1) / side - 0.5
    basis = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], 1)
    for i in range(0, plane.shape[0] - side, side // 2):
        for j in range(0, plane.shape[1] - side, side // 2):
            where = slice(i, i + side), slice(j, j + side)
            if inside[where].all():
                values = plane[where].ravel()
                fitted = basis @ np.linalg.lstsq(basis, values, rcond=None)[0]
                yield (values - fitted).reshape(side, side)


def averaged(patch, factor):
    n = len(patch) // factor
    return patch[: n * factor, : n * factor].reshape(n, factor, n, factor).mean((1, 3))


# --------------------------------------------------------------------------------------------------


def main(out: Path, folders: dict[str, Path]) -> None:
    if not (out / "synthrad").exists():
        synthrad(out / "synthrad")
    for name, heads in folders.items():
        if not (out / name).exists():
            rendered(heads, out / name)
    names = ("synthrad", *folders)
    result = {"pictures": {}}
    ct = {name: store(out / name / "ct", out, "ct") for name in names}
    hu = {name: domain.store.values(domain.rows) for name, domain in ct.items()}
    for contours in CONTOURS:
        domains = {name: store(out / name / "ct", out, "ct", contours) for name in names}
        result["pictures"][contours] = gaps(domains, domains["synthrad"])
        for name, domain in domains.items():
            result["pictures"][contours][name] |= contours_of(domain, hu[name])
    mr = {name: store(out / name / "mr", out, "mr") for name in names}
    result["kindness"] = {name: kindness(ct[name], mr[name]) for name in names}
    result["mr"] = gaps(mr, mr["synthrad"])
    result["ct to mr"] = {name: gaps({name: ct[name]}, mr[name])[name] for name in names}
    series = {"ge": store(SERIES, out, "ct")}
    series |= {name: store(out / name / "thick", out, "ct") for name in folders}
    result["series"] = {
        name: contours_of(domain, domain.store.values(domain.rows))
        for name, domain in series.items()
    }
    result["brain in HU"] = assumed_hu()
    result["noise of pictures"] = {
        name: noise(planes_of(sorted((out / name / "ct").iterdir())), 1.0) for name in names
    }
    scans = [pydicom.dcmread(path) for path in sorted(SERIES.iterdir())]
    pixel = float(scans[0].PixelSpacing[0])
    planes = [s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in scans]
    result["noise"] = {"ge": noise(planes, pixel)}
    shown = {"real": (planes[SHOWN_SLICE], pixel)}
    for name in folders:
        paths = sorted((out / name / "thick").iterdir())
        result["noise"][name] = noise(planes_of(paths), 1.0)
        first = planes_of(paths[:1])
        shown[name] = (np.rot90(first[len(first) * 6 // 10]), 1.0)
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    figure(shown).savefig(HERE / "figure.png", dpi=100)
    print(table(result))


def assumed_hu() -> dict:
    """Percentiles of where the brains would lie in HU by one scale for all pictures."""
    low, high = ONE_SCALE
    paths = benchmark.sides(DATA / f"real/{benchmark.SYNTHRAD}/ct")["train"]
    greys = [brain_grey(np.asarray(Image.open(path))) for path in paths]
    found = low + np.array(greys) * (high - low) / 255
    return {f"{q}%": float(np.percentile(found, q)) for q in (0, 5, 25, 50, 75, 95, 100)}


def planes_of(paths: list[Path]) -> list[np.ndarray]:
    """The slices [X, Y] of NIfTI volumes."""
    return [plane for p in paths for plane in np.moveaxis(nibabel.load(p).get_fdata(), 2, 0)]


def figure(planes: dict[str, tuple[np.ndarray, float]]) -> Figure:
    """Slices [H, W] in HU side by side, in a window of the brain."""
    drawn = Figure(figsize=(3 * len(planes), 3.4), layout="constrained")
    for axis, (name, (plane, pixel)) in zip(
        drawn.subplots(1, len(planes)), planes.items(), strict=True
    ):
        y, x = np.argwhere(ndimage.binary_opening(plane > -200, iterations=4)).mean(0).astype(int)
        half = int(FIELD / 2 / pixel)
        part = plane[max(y - half, 0) : y + half, max(x - half, 0) : x + half]
        axis.imshow(part, cmap="gray", vmin=SHOWN.low, vmax=SHOWN.high, interpolation="none")
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
    return drawn


def table(result: dict) -> str:
    """What result.json holds, to read."""
    lines = []
    for contours, found in result["pictures"].items():
        for name, entry in found.items():
            shares = [entry[part]["value"] for part in ("brain", "skull")]
            parts = [entry[part] for part in ("gap", *gap.PARTS)]
            lines.append(f"{contours:10} {name:9} brain, skull, gap " + numbers(*shares, *parts))
    for name, entry in result["kindness"].items():
        told = [entry[part]["value"] for part in ("curve", "brain", "tissue", "contours")]
        lines.append(f"kindness   {name:9} curve, brain, tissue, contours " + numbers(*told))
    lines.append(f"brain by one scale {result['brain in HU']}")
    for name, uneven in result["noise of pictures"].items():
        lines.append(f"pictures   {name:9} sd {uneven['sd']} cupping {uneven['cupping']:.2f}")
    for part in ("mr", "ct to mr"):
        lines += [f"{part:10} {n:9} gap {e['gap']:.2f}" for n, e in result[part].items()]
    for name, entry in result["series"].items():
        shares = [entry[part]["value"] for part in ("brain", "skull")]
        uneven = result["noise"][name]
        lines.append(f"series     {name:9} brain, skull " + numbers(*shares))
        lines.append(f"  sd {uneven['sd']} cupping {uneven['cupping']:.2f}")
    return "\n".join(lines)


def numbers(*values: float) -> str:
    return " ".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    given = [argument.partition("=") for argument in sys.argv[2:]]
    main(Path(sys.argv[1]), {name: Path(heads) for name, _, heads in given})
