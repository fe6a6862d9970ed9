# SPDX-License-Identifier: Apache-2.0
"""Real patients: what is each task's best baseline, and does a model beat it?

    python experiments/021_real/benchmark.py OUT [--tasks=ct_to_t1,..] [--models=diffusion,..]

$CONTOURDIFF_DATA/real holds the pictures (README.md). Each task is prepared, trained, translated
and scored by the commands alone; what is done is kept, so that the same command goes on.
OUT/result.json: scores by task and model, beside the baselines of the same patients.
"""

import argparse
import csv
import json
import os
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from PIL import Image

from contourdiff_jax.contours.settings import preset
from contourdiff_jax.evaluation.metrics import bootstrap
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.volume import Assumed

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from commands import contourdiff  # beside this folder

DATA = Path(os.environ.get("CONTOURDIFF_DATA", HERE.parents[2] / "shared/data")) / "real"
SIZE = ("--size=128", "--spacing=2")
SEED = 0


class Task(NamedTuple):
    """A translation between two kinds of pictures.

    Attributes:
      target: folder of the target's pictures of the patients that are trained on.
      source, truth: folders of the pictures of those that are tested.
      preset: of the source.
      range: of the source's pictures in its units; None of MR.
      target_range: of the target's.
      masks: name of the folder of head masks beside the pictures; None where there are none.
      pairs: folder of the source's pictures of the patients that are trained on, for methods that
        learn from pairs; None where there are none.
      shift: mm to which the truth is registered; None where it is exactly.
    """

    target: str
    source: str
    truth: str
    preset: str
    range: str | None = None
    target_range: str | None = None
    masks: str | None = None
    pairs: str | None = None
    shift: float | None = None


CURVED = ":curve"  # after a folder of CT: its pictures as the contours' curve shows them
SYNTHRAD = "synthrad_mid/axial"
# HU of black and white: SynthRAD's pictures were scaled each by itself; ctmr's CT was windowed.
HU, NARROW = "brain", "-25,115"
TASKS = {
    "ct_to_t1": Task(
        *(f"{SYNTHRAD}/{kind}" for kind in ("mr", "ct", "mr")),
        *("ct", HU),
        masks="mask",
        pairs=f"{SYNTHRAD}/ct",
    ),
    # What pairs give where the CT is seen as its contours are.
    "ct_to_t1_curved": Task(
        *(f"{SYNTHRAD}/{kind}" for kind in ("mr", f"ct{CURVED}", "mr")),
        "mr",
        masks="mask",
        pairs=f"{SYNTHRAD}/ct{CURVED}",
    ),
    "ct_to_t1_elsewhere": Task("lgg/t1", "ctmr/ct", "ctmr/t1", "ct", NARROW, shift=4),
    "flair_to_t1": Task("lgg/t1", "lgg/flair", "lgg/t1", "mr", pairs="lgg/flair"),
    "t1c_to_t1": Task("lgg/t1", "lgg/t1c", "lgg/t1", "mr"),
    # What the truth's own contours and picture give: of any source no more can be had.
    "own_to_t1": Task(*[f"{SYNTHRAD}/mr"] * 3, "mr", masks="mask"),
    "own_to_t1_lgg": Task(*["lgg/t1"] * 3, "mr"),
    "t1_to_flair": Task("lgg/flair", "lgg/t1", "lgg/flair", "mr", pairs="lgg/t1"),
    "mr_to_ct": Task(
        *(f"{SYNTHRAD}/{kind}" for kind in ("ct", "mr", "ct")),
        "mr",
        target_range=HU,
        masks="mask",
        pairs=f"{SYNTHRAD}/mr",
    ),
}


def is_tested(patient: str, patients: list[str]) -> bool:
    """Whether a patient is of the test side: of each centre's every fourth; of ctmr two of five."""
    centre = (
        [other for other in patients if other[:3] == patient[:3]] if patient[0] == "1" else None
    )
    if centre:  # SynthRAD: 1BA001, 1BB007, ..
        return centre.index(patient) % 4 == 3
    if len(patients) == 5:
        return patients.index(patient) >= 3
    return patients.index(patient) % 7 in (3, 6)


def sides(folder: Path) -> dict[str, list[Path]]:
    """The pictures of a folder: 'train' and 'test', by patient."""
    by_patient = defaultdict(list)
    for path in sorted(folder.glob("*.png")):
        by_patient[path.stem.rpartition("-")[0]].append(path)
    patients = sorted(by_patient)
    parts = {"train": [], "test": []}
    for patient, pictures in by_patient.items():
        parts["test" if is_tested(patient, patients) else "train"] += pictures
    return parts


def linked(folder: str, side: str, out: Path) -> Path:
    """A folder of the pictures of one side."""
    place = out / "data" / side / folder.replace(":", "_")
    if not place.exists():
        partial = place.with_name(f"{place.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        of_curve = folder.endswith(CURVED)
        for path in sides(DATA / folder.removesuffix(CURVED))[side]:
            if of_curve:
                curve(path, partial / path.name)
            else:
                shutil.copy(path, partial)
        partial.rename(place)
    return place


def curve(ct: Path, place: Path) -> None:
    """A CT picture as the curve of the contours shows it: tissues in the order of T1's greys."""
    values = io.read(ct, assumed=Assumed(1.0, HU)).array[:, :, 0]
    greys = np.interp(values, *zip(*preset("default", "ct").curve, strict=True))
    Image.fromarray(np.uint8(np.round(255 * greys[::-1, ::-1].T))).save(place)


def hounsfield(pictures: Path) -> Path:
    """CT pictures as NIfTI volumes of HU, one slice each: scores in HU need a truth in HU."""
    place = pictures.with_name(f"{pictures.name}_hu")
    if not place.exists():
        partial = place.with_name(f"{place.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in sorted(pictures.glob("*.png")):
            volume = io.read(path, assumed=Assumed(1.0, HU))
            patient = path.stem.rpartition("-")[0]
            image = nibabel.Nifti1Image(np.int16(np.round(volume.array)), volume.affine)
            nibabel.save(image, partial / f"{patient}.nii.gz")
        partial.rename(place)
    return place


def flag(name: str, value) -> str | None:
    return None if value is None else f"--{name}={value}"


def store(task: Task, modality: str, out: Path, paired: bool) -> Path:
    """The store of a task's training patients, all of them trained on; with pairs or without."""
    folder = task.target
    name = task.target.replace("/", "_")
    if paired:
        name += "_with_" + task.pairs.replace("/", "_").replace(":", "_")
    place = out / "stores" / name
    masks = task.masks and linked(f"{Path(folder).parent}/{task.masks}", "train", out)
    pairs = ()
    if paired:
        pairs = (
            *(flag("pairs", linked(task.pairs, "train", out)), flag("pairs_preset", task.preset)),
            *(flag("pairs_range", task.range), flag("pairs_masks", masks)),
        )
    contourdiff(
        "prepare",
        *(f"--source={linked(folder, 'train', out)}", f"--out={place}", f"--preset={modality}"),
        *(*SIZE, "--pixel_spacing=1", "--validation=0", flag("masks", masks)),
        flag("range", task.target_range),
        *pairs,
        done=place,
    )
    return place


def scored(name: str, task: Task, model: str, options: argparse.Namespace) -> dict:
    """Trains, translates and scores one task with one model; the content of metrics.json."""
    out = options.out
    target = "ct" if task.target_range else "mr"
    config = json.loads((HERE / "models.json").read_text())[model]
    learnt = store(task, target, out, config.get("paired", False))
    run = out / "runs" / model / learnt.name
    contourdiff(
        "train",
        *(f"--store={learnt}", f"--workdir={run}"),
        *(f"--config.{field}={_spelt(value)}" for field, value in config["config"].items()),
        flag("config.train.images", options.images),
        done=None,
    )
    translated = out / "translated" / model / name
    source, truth = (linked(folder, "test", out) for folder in (task.source, task.truth))
    real = linked(task.target, "train", out)
    if task.target_range:
        truth, real = hounsfield(truth), hounsfield(real)
    masks = task.masks and linked(f"{Path(task.source).parent}/{task.masks}", "test", out)
    contourdiff(
        "translate",
        *(f"--run={run}", f"--source={source}", f"--out={translated}", f"--preset={task.preset}"),
        *("--pixel_spacing=1", flag("range", task.range), flag("masks", masks)),
        *("--overwrite", *config.get("translate", ())),
    )
    scores = out / "scores" / model / name
    contourdiff(
        "evaluate",
        *(f"--translated={translated}", f"--source={source}", f"--truth={truth}"),
        *(f"--real={real}", flag("masks", masks)),
        *("--grid=model", "--overwrite", f"--out={scores}", f"--seed={SEED}"),
        flag("shift", task.shift),
    )
    methods = json.loads((scores / "metrics.json").read_text())["methods"]
    return {
        "methods": {
            method: {metric: of[metric] for metric in KEPT if metric in of}
            for method, of in methods.items()
        },
        "centres": centres(scores / "rows.csv"),
    }


def _spelt(value) -> str:
    """As a field is given on a command line: lists are tuples there."""
    return repr(tuple(value)) if isinstance(value, list) else str(value)


KEPT = ("ssim_mask", "psnr_mask", "mae_mask", "mae_hu_mask", "contour_f1")
KEPT += ("ssim_shifted", "psnr_shifted")


def centres(rows: Path) -> dict:
    """{centre: {metric: interval}} of the translation, where patients are of several."""
    values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with rows.open(newline="") as stream:
        for row in csv.DictReader(stream):
            if row["method"] == "translation" and row["metric"] in KEPT:
                centre = row["subject"][:3] if row["subject"].startswith("1B") else ""
                values[centre][row["metric"]][row["subject"]].append(float(row["value"]))
    if len(values) < 2:
        return {}
    return {
        centre: {
            metric: bootstrap.interval([np.mean(of) for of in subjects.values()], SEED)
            for metric, subjects in metrics.items()
        }
        for centre, metrics in sorted(values.items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument(
        "--models", default=",".join(json.loads((HERE / "models.json").read_text()))
    )
    parser.add_argument("--images", type=int, help="that are trained on, in place of each model's")
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"{DATA}: not there; CONTOURDIFF_DATA names the folder that holds it")
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    place = options.out / "result.json"
    models = json.loads((HERE / "models.json").read_text())
    for name in options.tasks.split(","):
        for model in options.models.split(","):
            if models[model].get("paired") and TASKS[name].pairs is None:
                continue
            scores = scored(name, TASKS[name], model, options)
            # Read again: other models may be under way beside this one.
            result = json.loads(place.read_text()) if place.exists() else {}
            result.setdefault(name, {})[model] = scores
            place.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
