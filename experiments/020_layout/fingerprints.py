# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of what the commands write: does a change of the code change any of it?

    python fingerprints.py OUT.json [--work=DIR]
    python fingerprints.py --compare BEFORE.json AFTER.json

The first form runs the commands on generated heads of 32 px, in a folder of its own (DIR, else a
temporary one), and writes what came of it. The second prints a line for each difference; its exit
status is 1 if there are any. PYTHONPATH says which version of the package is run: nothing of it is
imported here, and nothing but the files that it writes is read.

A fingerprint is a SHA-256, shortened, of the content: voxels and affine of volumes, pixels of
pictures, all elements of DICOM but identifiers, arrays of checkpoints. Numbers that are few stay as
they are. Times, versions, memory and the command line are left out; before `report` and `card` are
run, they are taken out of what these read. Paths are relative to DIR.

Left out altogether: `quickstart`, which trains for as long as the clock says, and `weights`, which
downloads. Equal fingerprints are to be expected on one kind of processor, with one number of cores
and one set of libraries; all are in the header. Of two versions the second takes less time where
JAX_COMPILATION_CACHE_DIR is one folder for both: what has not changed is found compiled.
"""

import argparse
import base64
import csv
import functools
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import safetensors.numpy
import SimpleITK
from PIL import Image

COMMAND = [sys.executable, "-m", "contourdiff_jax"]
COMMANDS = (
    *("quickstart", "phantoms", "inspect", "prepare", "contours", "train", "translate"),
    *("evaluate", "segment", "report", "card", "import", "export", "weights"),
)
LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "nibabel"),
    *("pydicom", "SimpleITK", "opencv-python-headless", "scikit-image", "pillow", "matplotlib"),
)
# Fields of JSON that depend on the clock, the machine or the version.
CHANGING = {
    *("seconds", "images_per_second", "seconds a slice", "seconds a volume"),
    *("version", "Version", "versions", "command", "device", "devices"),
    *("host_bytes", "device_bytes"),
}
ITEMS = ("params", "ema", "optimiser", "progress")  # of a checkpoint
# Of DICOM: identifiers are made of all that is written, and so of the version.
IDENTIFIERS = ("SoftwareVersions", "SOPInstanceUID", "MediaStorageSOPInstanceUID")
IDENTIFIERS += ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
IDENTIFIERS += ("ImplementationClassUID", "ImplementationVersionName")

GRID = ("--spacing=7.2", "--size=32")
TRAINED = {"images": 160, "log": 20, "evaluate": 80, "sample": 80, "checkpoint": 60}  # 40 steps
SMALL = {  # a network that compiles in a few seconds
    "model.channels": "(32,)",
    "model.attention": "(True,)",
    "model.middle_attention": False,
    "train.sample": 0,
    "train.checkpoint": 0,
    "sampler.steps": 4,
}
DISTURBED = {
    "disturbance.thresholds": 0.5,
    "disturbance.contrast": 0.1,
    "disturbance.noise": 0.05,
    "disturbance.displacement": 1.0,
    "disturbance.doubled": 0.3,
    "disturbance.missing": 0.2,
}
# One that diffusers' UNet2DModel can represent.
EXPORTED = {
    "model.channels": "(16,32)",
    "model.attention": "(False,True)",
    "model.middle_attention": True,
    "model.head_width": 8,
    "model.null": "empty",
    "model.resample_convolution": True,
    "diffusion.schedule": "linear",
    "diffusion.prediction": "eps",
    "diffusion.weighting": "none",
    "sampler.name": "ddpm",
}
REDUCED = {
    "model.dtype": "bfloat16",
    "model.dropout": 0.1,
    "model.rematerialise": True,
    "model.fused_attention": True,
    "train.condition_dropout": 0.1,
}
ACCUMULATED = {"train.batch": 8, "train.accumulate": 2, "mesh.fsdp": 2}  # and sharded
DIGITS = 16  # of a digest, in base 16
WAIT = 300  # seconds for a checkpoint of the run that is killed
AT_ONCE = 2  # commands, where none needs what another makes


# --------------------------------------------------------------------------------------------------
# Fingerprints of files
# --------------------------------------------------------------------------------------------------


def sha256(*parts) -> str:
    """The first digits, of bytes, texts and arrays; of these, type and shape count too."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(f"{part.dtype} {part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        total.update(part.encode() if isinstance(part, str) else part)
    return total.hexdigest()[:DIGITS]


def of_file(path: Path):
    """The fingerprint of a file, by what it is."""
    name = path.name
    for suffix, reader in READERS.items():
        if name.endswith(suffix):
            return reader(path)
    return sha256(path.read_bytes())


def of_folder(folder: Path, *patterns: str) -> dict:
    """{relative name: fingerprint} of its files, those of checkpoints left out."""
    found = {path for pattern in patterns or ("**/*",) for path in folder.glob(pattern)}
    names = {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}
    kept = {n: p for n, p in names.items() if not n.startswith(("checkpoints/", "tensorboard/"))}
    if not kept:
        raise SystemExit(f"{folder}: holds no file to take the fingerprint of")
    return {name: of_file(path) for name, path in sorted(kept.items())}


def lasting(value, changing=CHANGING):
    """JSON without the fields that change."""
    if isinstance(value, dict):
        return {name: lasting(v, changing) for name, v in value.items() if name not in changing}
    return [lasting(v, changing) for v in value] if isinstance(value, list) else value


def without_versions(text: str) -> str:
    """Text without the version of the package."""
    return re.sub(r"(contourdiff[-_]jax) \d+\.\d+\S*?(?=[.<\s]*(?:<|\s|$))", r"\1", text)


def _nifti(path: Path) -> str:
    image = nib.load(path)
    header = image.header
    codes = [int(header[name]) for name in ("qform_code", "sform_code", "xyzt_units")]
    scale = [float(header[name]) for name in ("scl_slope", "scl_inter")]
    told = json.dumps([codes, repr(scale), bytes(header["descrip"]).decode("latin1")])
    return sha256(np.asanyarray(image.dataobj), image.affine, told)


def _itk(path: Path) -> str:
    image = SimpleITK.ReadImage(str(path))
    geometry = (image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return sha256(SimpleITK.GetArrayFromImage(image), repr(geometry))


def _dicom(path: Path) -> str:
    dataset = pydicom.dcmread(path)
    elements = [
        f"{e.tag} {e.VR} {e.value!r}"
        for part in (dataset.file_meta, dataset)
        for e in part
        if e.keyword not in (*IDENTIFIERS, "PixelData", "FileMetaInformationGroupLength")
    ]
    return sha256("\n".join(elements), dataset.PixelData)


def _picture(path) -> str:
    with Image.open(path) as image:
        return sha256(image.mode, np.asarray(image))


def _arrays(path: Path) -> dict:
    with np.load(path) as arrays:
        return {name: sha256(arrays[name]) for name in sorted(arrays)}


def _tensors(path: Path) -> str:
    tensors = safetensors.numpy.load_file(path)
    return sha256(*(part for name in sorted(tensors) for part in (name, tensors[name])))


def _json(path: Path) -> dict:
    """All of metrics; of others what is short, and the digests of what is longer."""
    fields = lasting(json.loads(path.read_text()))
    if path.name == "metrics.json":
        return fields
    if path.name == "inspect.json":  # of DICOM the files' own digests change with the version
        fields = lasting(fields, {"sha256"})
    return {name: _shortened(value) for name, value in fields.items()}


def _shortened(value):
    text = json.dumps(value)
    return value if len(text) <= 200 else sha256(text)


def _lines(path: Path) -> dict:
    """Of JSON lines, every field's values in their order."""
    found = {}
    for line in map(json.loads, path.read_text().splitlines()):
        for name, value in lasting(line).items():
            found.setdefault(name, []).append(value)
    return found


def _table(path: Path) -> str:
    with path.open(newline="") as stream:
        rows = [lasting(row) for row in csv.DictReader(stream)]
    return sha256(json.dumps(rows))


def _page(path: Path) -> dict:
    """Of a page, its text, and the pictures inside it by themselves."""
    pictures = []

    def taken(match: re.Match) -> str:
        pictures.append(_picture(io.BytesIO(base64.b64decode(match[1]))))
        return f"picture {len(pictures)}"

    text = re.sub(r"data:image/png;base64,([A-Za-z0-9+/=]+)", taken, path.read_text())
    return {"text": sha256(without_versions(text)), "pictures": pictures}


READERS = {
    ".nii.gz": _nifti,
    ".nii": _nifti,
    ".mha": _itk,
    ".nrrd": _itk,
    ".dcm": _dicom,
    ".png": _picture,
    ".tif": _picture,
    ".npy": lambda path: sha256(np.load(path)),
    ".npz": _arrays,
    ".safetensors": _tensors,
    ".json": _json,
    ".jsonl": _lines,
    ".csv": _table,
    ".html": _page,
    ".md": lambda path: sha256(without_versions(path.read_text())),
}


def of_checkpoint(folder: Path) -> dict:
    """Digests of the arrays of a checkpoint's items, with their names.

    The files that Orbax writes differ from time to time, the arrays do not.
    """
    import jax
    import orbax.checkpoint as ocp

    def digest(item: Path) -> str:
        reader = ocp.PyTreeCheckpointer()
        tree = reader.metadata(item).item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        leaves = jax.tree_util.tree_leaves_with_path(reader.restore(item, restore_args=plain))
        return sha256(*(p for path, a in leaves for p in (jax.tree_util.keystr(path), a)))

    return {item: digest(folder / item) for item in ITEMS if (folder / item).is_dir()}


def of_run(folder: Path) -> dict:
    """Of a run: its files, and the arrays of its last checkpoint."""
    last = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    arrays = of_checkpoint((folder / "checkpoints" / str(last)).absolute())
    return of_folder(folder) | {"checkpoint": {"step": last} | arrays}


# --------------------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------------------


class Work:
    """The folder that everything is made in; commands are run there.

    What they compile is kept there as well, for the next of them, where the environment does not
    say otherwise.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        kept = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
        self._environment = kept | os.environ
        if paths := os.environ.get("PYTHONPATH"):  # from where it was set
            paths = [os.path.abspath(path) for path in paths.split(os.pathsep)]
            self._environment["PYTHONPATH"] = os.pathsep.join(paths)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def package(self) -> str:
        """Where the package lies whose commands are run."""
        code = "import contourdiff_jax; print(*contourdiff_jax.__path__)"
        argv = [sys.executable, "-c", code]
        told = subprocess.run(
            argv, cwd=self.folder, env=self._environment, check=True, capture_output=True, text=True
        )
        return told.stdout.strip()

    def begin(self, *arguments: str, output) -> subprocess.Popen:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self._environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def run(self, *arguments: str) -> str:
        """Runs a command, which must do all it is asked for; returns what it prints."""
        began = time.perf_counter()
        with tempfile.TemporaryFile() as output:
            status = self.begin(*arguments, output=output).wait()
            output.seek(0)
            text = output.read().decode()
        if status:
            raise SystemExit(f"contourdiff {' '.join(arguments)}: status {status}\n{text}")
        print(f"{time.perf_counter() - began:6.1f} s  {' '.join(arguments)[:90]}", flush=True)
        return text

    def each(self, commands: Iterable[Iterable[str]]) -> list[str]:
        """Runs commands that do not need one another; returns what they print."""
        return together(functools.partial(self.run, *arguments) for arguments in commands)


def together(actions: Iterable[Callable]) -> list:
    """What actions return of which none needs another's; some are done at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda action: action(), actions))


def options(fields: dict) -> list[str]:
    """Fields of the configuration as they are given on the command line."""
    return [f"--config.{name}={value}" for name, value in fields.items()]


def trained(store: str, out: str, fields: dict | None = None, *more: str) -> list[str]:
    """The command line of a training."""
    every = {f"train.{name}": value for name, value in TRAINED.items()} | (fields or {})
    return ["train", f"--store={store}", f"--workdir={out}", *options(every), *more]


def killed(work: Work, arguments: list[str], checkpoints: Path) -> None:
    """Runs a command and kills it as soon as it has written a checkpoint."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output, work.begin(*arguments, output=output) as process:
        try:
            while not any(path.name.isdigit() for path in checkpoints.glob("*")):
                if process.poll() is not None or time.perf_counter() > began + WAIT:
                    raise SystemExit(f"{checkpoints}: no checkpoint was written")
                time.sleep(0.01)
        finally:
            process.kill()
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"{checkpoints.parent}: came to its end before it could be killed")


def flags(text: str) -> dict[str, str]:
    """Of a command's help, the flags and what is said of each."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("  --")]
    return dict(line.split(": ", 1) for line in lines)


# --------------------------------------------------------------------------------------------------
# What is done
# --------------------------------------------------------------------------------------------------


def helps(work: Work) -> dict:
    texts = work.each((name, "--help") for name in COMMANDS)
    return dict(zip(COMMANDS, map(flags, texts), strict=True))


def data(work: Work) -> dict:
    """Heads of few slices for most, of many for distances, and of a wider view for tiles."""
    few = ("--slices=5", "--thickness=24")
    asked = {
        "data": ("--subjects=9", "--test=2", "--train_ct=3", "--size=32", *few),
        "many": (
            *("--subjects=6", "--test=2", "--train_ct=1", "--size=32"),
            *("--slices=30", "--thickness=5"),
        ),
        "wide": (
            *("--subjects=3", "--test=1", "--train_ct=1", "--size=48", *few),
            *("--spacing=7.2", "--bias=1"),
        ),
    }
    work.each(("phantoms", f"--out={name}", *given) for name, given in asked.items())
    _other_formats(work)
    return {name: of_folder(work / name) for name in asked}


def _other_formats(work: Work) -> None:
    """CT heads as .mha and .nrrd, and MR heads as pictures, a folder for each subject."""
    (work / "itk").mkdir()
    heads = sorted((work / "data/test_ct").iterdir())
    for path, suffix in zip(heads, ("mha", "nrrd"), strict=True):
        volume = nib.load(path)
        image = SimpleITK.GetImageFromArray(np.asanyarray(volume.dataobj).T)
        x, y, z = map(float, volume.affine[:3, 3])
        image.SetSpacing(list(map(float, volume.affine.diagonal()[:3])))
        image.SetOrigin((-x, -y, z))  # ITK counts from right to left and from front to back
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        SimpleITK.WriteImage(image, str(work / f"itk/{path.name.split('.')[0]}.{suffix}"))
    for path in sorted((work / "data/train_mr").iterdir())[:2]:
        voxels = np.asanyarray(nib.load(path).dataobj)
        folder = work / f"pictures/{path.name.split('_')[0]}"
        folder.mkdir(parents=True)
        for number, plane in enumerate(np.moveaxis(voxels, 2, 0)):
            grey = np.uint8(np.clip(plane / voxels.max() * 255, 0, 255)).T[::-1]
            Image.fromarray(grey).save(folder / f"slice_{number:03}.png")


def stores(work: Work) -> dict:
    mr, ct = ("--source=data/train_mr", "--preset=mr"), ("--source=data/train_ct", "--preset=ct")
    asked = {
        "mr": (*mr, *GRID, "--validation=0.25"),
        "mr_all": (*mr, *GRID, "--validation=0", "--masks=data/train_mr_labels"),
        "mr_original": (*mr, *GRID, "--validation=0", "--contours=original"),
        "ct": (*ct, *GRID, "--labels=data/train_ct_labels"),
        "coronal": (*mr, "--axis=coronal"),
        "itk": ("--source=itk", "--preset=ct", *GRID),
        "pictures": ("--source=pictures", "--preset=mr", "--pixel_spacing=7.2", *GRID),
    }
    work.each(("prepare", f"--out=stores/{name}", *given) for name, given in asked.items())
    return {name: of_folder(work / f"stores/{name}") for name in asked}


def runs(work: Work) -> dict:
    """Forty steps each. Networks other than default and neighbour are small ones.

    What was killed and resumed must end as what was not.
    """
    mr, every = "stores/mr", "stores/mr_all"
    taught = SMALL | {"distillation.substeps": 2, "sampler.steps": 3}
    asked = {
        "default": trained(mr, "runs/default"),
        "small": trained(every, "runs/small", SMALL),
    }
    work.each(asked.values())  # what these compile, others find compiled
    others = {  # those that take longest come first
        "neighbour": (mr, {"model.conditions": "('contour','neighbour')"}),
        "accumulated": (every, SMALL | ACCUMULATED),
        "reduced": (every, SMALL | REDUCED),
        "distilled": (every, taught, "--teacher=runs/small"),
        "exported": (every, SMALL | EXPORTED),
        "disturbed": (every, SMALL | DISTURBED),
        "original": ("stores/mr_original", SMALL | {"contours.preset": "original"}),
        "streamed": (every, SMALL | {"train.resident": 0}),
    }
    asked |= {
        name: trained(store, f"runs/{name}", fields, *more)
        for name, (store, fields, *more) in others.items()
    }
    asked["resumed"] = trained(mr, "runs/resumed")

    def resumed() -> None:
        killed(work, asked["resumed"], work / "runs/resumed/checkpoints")
        work.run(*asked["resumed"])

    together([resumed, *(functools.partial(work.run, *asked[name]) for name in others)])
    found = {name: of_run(work / f"runs/{name}") for name in asked}
    if found["resumed"] != found["default"]:
        raise SystemExit("the run that was killed and resumed is another than the one that was not")
    return found


def batch(size: int) -> str:
    """The flag of translate for slices at once, which had another name."""
    helped = subprocess.run([*COMMAND, "translate", "--help"], capture_output=True, text=True)
    return f"--batch={size}" if "--batch:" in helped.stdout else f"--batch_size={size}"


def translations(work: Work) -> dict:
    ct = ("--source=data/test_ct", "--preset=ct")
    asked = {
        "plain": ("default", *ct),
        "samples": ("default", *ct, "--samples=2", "--maps"),
        "kept": ("default", *ct, "--samples=2", "--keep=best_contours", "--seed=5"),
        "coupling": ("default", *ct, "--coupling=0.5"),
        "coherence": ("default", *ct, "--coherence=30"),
        "dpmpp_2m": ("default", *ct, "--sampler=dpmpp_2m"),
        "ddpm": ("default", *ct, "--sampler=ddpm", "--steps=12"),
        "tiles": ("default", "--source=wide/test_ct", "--preset=ct", "--tiles=0.25"),
        "one_device": ("default", *ct, "--devices=1", batch(4)),
        "scgd": ("neighbour", *ct, "--scgd"),
        "scgd_chains": (
            *("neighbour", *ct, "--scgd", "--middle", "--anchor=2"),
            *("--candidate=best_contours", "--neighbour_guidance=1"),
        ),
        "guidance": ("reduced", *ct, "--guidance=2"),
        "original": ("original", *ct),
        "distilled": ("distilled", *ct),
        "itk": ("default", "--source=itk", "--preset=ct"),
        "nifti": ("default", "--source=itk", "--preset=ct", "--format=nifti", "--contours=united"),
        "dicom": ("default", *ct, "--format=dicom"),
        "bids": ("default", "--source=data/test_t2", "--preset=mr", "--format=bids", "--kind=T1w"),
        "nnunet": ("default", *ct, "--format=nnunet", "--labels=data/test_labels"),
        # What the segmenters and the distances learn from.
        "train_ct": ("default", "--source=data/train_ct", "--preset=ct"),
    }
    commands = [
        ("translate", f"--run=runs/{run}", f"--out=translated/{name}", *given)
        for name, (run, *given) in asked.items()
    ]
    work.run(*commands[0])  # what it compiles, others find compiled
    work.each(commands[1:])
    return {name: of_folder(work / f"translated/{name}") for name in asked}


def inspections(work: Work) -> dict:
    """Of each layout and format, those included that `translate` writes."""
    asked = {"phantoms": "data/test_ct", "itk": "itk", "pictures": "pictures"}
    asked |= {name: f"translated/{name}" for name in ("dicom", "bids", "nnunet")}
    again = ("--source=translated/dicom", "--out=stores/dicom", "--preset=mr", "--spacing=7.2")
    inspect = [("inspect", source, f"--out=inspected/{name}") for name, source in asked.items()]
    work.each([*inspect, ("prepare", *again)])
    found = {name: of_folder(work / f"inspected/{name}") for name in asked}
    return found | {"prepared from dicom": of_folder(work / "stores/dicom", "*.npy")}


def crossings(work: Work) -> dict:
    asked = {
        "one": ("--store=stores/mr",),
        "two": ("--store=stores/mr", "--source=stores/ct"),
    }
    work.each(("contours", f"--out=crossing/{name}", *given) for name, given in asked.items())
    return {name: of_folder(work / f"crossing/{name}") for name in asked}


def segmentations(work: Work) -> dict:
    work.run(
        *("segment", "--train_images=translated/train_ct", "--train_labels=data/train_ct_labels"),
        *("--test_images=data/test_mr", "--test_labels=data/test_labels", "--out=segmented"),
        *("--lower_images=data/train_ct", "--lower_preset=ct", "--classes=1,3,4"),
        *("--images=32", "--seeds=1", *GRID),
    )
    return of_folder(work / "segmented")


def evaluations(work: Work) -> dict:
    paired = ("--truth=data/test_mr", "--source=data/test_ct")
    asked = {
        "plain": (
            *("--translated=translated/plain", *paired, "--real=data/train_mr"),
            *("--labels=data/test_labels", "--memorisation=stores/mr", "--conventions=synthrad"),
        ),
        "coupling": ("--translated=translated/coupling", *paired, "--grid=model"),
        "samples": (
            *("--translated=translated/samples", *paired),
            "--uncertainty=translated/samples/maps/std",
        ),
        "distances": (
            *("--translated=many/test_t2", "--preset=mr", "--real=many/train_mr"),
            *("--features=segmenter", "--weights=segmented/weights/translation_0.safetensors"),
            "--statistics",
        ),
    }
    work.each(("evaluate", f"--out=scores/{name}", *given) for name, given in asked.items())
    return {name: of_folder(work / f"scores/{name}") for name in asked}


def diffusers(work: Work) -> dict:
    """There and back again: the average of the parameters must be the same."""
    work.run("export", "--run=runs/exported", "--out=diffusers")
    work.run("import", "--checkpoint=diffusers", "--workdir=runs/imported")
    os.remove(work / "diffusers/contourdiff.json")
    work.run(
        *("import", "--checkpoint=diffusers", "--workdir=runs/foreign", "--preset=mr"),
        *("--spacing=7.2", "--window=0,1000"),
    )
    found = {name: of_run(work / f"runs/{name}") for name in ("imported", "foreign")}
    return {"exported": of_folder(work / "diffusers")} | found


def pages(work: Work) -> dict:
    """Report and card, of runs and scores that have no times any more."""
    for path in work.folder.glob("runs/*/stats.jsonl"):
        lines = [lasting(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for path in (*work.folder.glob("scores/*/rows.csv"), work / "segmented/rows.csv"):
        with path.open(newline="") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
            names = reader.fieldnames
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | {"seconds": ""} for row in rows)
    for path in (*work.folder.glob("scores/*/metrics.json"), work / "segmented/metrics.json"):
        fields = lasting(json.loads(path.read_text()))
        if fields.get("cost"):
            once = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
            fields["cost"] |= {f"seconds a {what}": once for what in ("slice", "volume")}
        path.write_text(json.dumps(fields, indent=2))
    scores = ["scores/plain", "scores/coupling", "scores/samples", "segmented"]
    work.run(
        "report", "--out=report.html", *scores, "scores/distances", "runs/default", "runs/small"
    )
    work.run(
        *("card", "--run=runs/default", "--store=stores/mr", "--out=card.md"),
        *("--licence=none", *scores[:3]),
    )
    work.run("card", "--run=runs/distilled", "--out=card_distilled.md")
    found = of_folder(work.folder, "*.html", "*.md")
    return found | {"report_figures": of_folder(work / "report_figures")}


PARTS = {  # in the order in which one needs the other
    "help": helps,
    "phantoms": data,
    "prepare": stores,
    "train": runs,
    "translate": translations,
    "inspect": inspections,
    "contours": crossings,
    "segment": segmentations,
    "evaluate": evaluations,
    "diffusers": diffusers,
    "pages": pages,
}


# --------------------------------------------------------------------------------------------------
# The result
# --------------------------------------------------------------------------------------------------


def header(work: Work) -> dict:
    names = [line for line in _cpuinfo() if line.startswith("model name")]
    return {
        "contourdiff_jax": work.run("--version").split()[-1],
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def take(out: Path, folder: Path) -> None:
    """Runs everything in a folder and writes the fingerprints."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax misses what a whole checkpoint has
    work, began = Work(folder.absolute()), time.perf_counter()
    print(f"commands of {work.package()}", flush=True)
    result = {"header": header(work), "fingerprints": {}}
    for name, part in PARTS.items():
        result["fingerprints"][name] = part(work)
    out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    count = len(list(flat(result["fingerprints"])))
    print(f"{out}: {count:,} fingerprints in {time.perf_counter() - began:.0f} s")


def flat(fields, name: str = "") -> Iterator[tuple[str, object]]:
    """(name, value) of everything in nested dictionaries and lists."""
    if isinstance(fields, dict | list) and fields:
        items = fields.items() if isinstance(fields, dict) else enumerate(fields)
        for key, value in items:
            yield from flat(value, f"{name} > {key}" if name else str(key))
    else:
        yield name, fields


def compare(before: Path, after: Path) -> int:
    """Prints the differences; returns how many there are."""
    ours, theirs = (json.loads(path.read_text()) for path in (after, before))
    for name, now, was in differences(ours["header"], theirs["header"]):
        print(f"note: {name}: {was} before, {now} after")
    count = 0
    for name, now, was in differences(ours["fingerprints"], theirs["fingerprints"]):
        print(f"{name}: {was} before, {now} after")
        count += 1
    total = len(dict(flat(theirs["fingerprints"])))
    print(f"{count or 'no'} differences of {total:,} fingerprints")
    return count


def differences(ours: dict, theirs: dict) -> Iterator[tuple[str, object, object]]:
    """(name, ours, theirs) of what is not the same."""
    a, b = dict(flat(ours)), dict(flat(theirs))
    for name in sorted(a.keys() | b.keys()):
        now, was = (str(each.get(name, "absent")) for each in (a, b))
        if now != was:
            yield name, now, was


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, help="JSON file to write")
    parser.add_argument("--work", type=Path, help="folder to work in, new or empty; it is kept")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    given = parser.parse_args()
    if (given.compare is None) == (given.out is None):
        parser.error("give a file to write, or --compare with two of them")
    if given.compare:
        return 1 if compare(*given.compare) else 0
    if given.work is None:
        folder = Path(tempfile.mkdtemp(prefix="fingerprints"))
        try:
            take(given.out, folder)
        finally:
            shutil.rmtree(folder)
        return 0
    given.work.mkdir(parents=True, exist_ok=True)
    if any(given.work.iterdir()):
        parser.error(f"{given.work}: not empty")
    take(given.out, given.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
