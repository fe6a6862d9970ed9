# SPDX-License-Identifier: Apache-2.0
"""Importing: runs made of diffusers' UNet2DModel, which is what the original saves.

Folders of Stable Diffusion's pipelines are for stable_diffusion.py.
"""

from pathlib import Path

import jax

from contourdiff_jax import config as configuration
from contourdiff_jax import models
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contracts import CONTOUR, NEIGHBOUR
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import (
    parameters,
    schedulers,
    sharing,
    stable_diffusion,
    unet2d,
    weight_files,
)
from contourdiff_jax.methods.diffusion import NETWORK
from contourdiff_jax.runtime import disk, forms, ownership
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Preset, Window

# What a network sees beside the image, by the number of these channels, as in ContourDiff.
CONDITIONS = {1: (CONTOUR.name,), 2: (CONTOUR.name, NEIGHBOUR.name)}
STEPS = 50  # of sampling, as published; the configuration of a scheduler does not say


# ----------------------------------------------------------------------------------------------
# The run
# ----------------------------------------------------------------------------------------------


def import_checkpoint(
    source: str | Path,
    workdir: str | Path,
    *,
    preset: str | None = None,
    window: tuple[float, float] | None = None,
    axis: str | None = None,
    spacing: float | None = None,
    size: int | None = None,
    contours_file: str | Path | None = None,
    prompt: str | None = None,
    source_preset: str | None = None,
) -> None:
    """Make a run of a diffusers model.

    Args:
      source: a pipeline's folder, or its `unet`. One that `export` wrote of such a network says all
        of the following itself, and so does a shared run (sharing.py); of any other, preset and
        spacing have to be given.
      workdir: folder of the run.
      preset: intensities of the images that the model draws, 'ct', 'ct_wide' or 'mr'.
      window: intensities of the model's -1 and 1; default: the preset's.
      axis, spacing, size: of the grid, see volumes/grid.py; default: axial, and the model's size.
      contours_file: settings of the contours that it was trained with: a JSON file, or the name of
        a contour preset; default: the original's.
      prompt: shown to networks of Stable Diffusion; default: no words.
      source_preset: modality of the images that an InstructPix2Pix is shown.

    Raises:
      InputError: a model or an argument that cannot be used. No files are left behind.
    """
    workdir = Path(workdir)
    meshes.check_devices()
    ownership.check_is_free(workdir, sharing.OWN)
    images = {
        "preset": preset,
        "window": window,
        "axis": axis,
        "spacing": spacing,
        "size": size,
        "contours": contours_file,
    }
    if (shared := sharing.at(source)) != Path(source):
        _check_unsaid(images | {"prompt": prompt, "source_preset": source_preset}, source)
        sharing.keep(shared, workdir)
        print(f"{workdir}: a run of {run.load(Path(workdir)).config.method}")
        return
    if stable_diffusion.is_pipeline(Path(source)):
        ownership.check_apart("workdir", workdir, {"checkpoint": source})
        _check_described(source, preset, spacing)
        kind = intensity.preset(preset)
        images = stable_diffusion.Images(
            preset=kind,
            window=_preset_window(kind, window),
            axis=axis or "axial",
            spacing=spacing,
            size=size,
            contours=contours_file or "original",
            source=None if source_preset is None else intensity.preset(source_preset),
        )
        stable_diffusion.import_pipeline(Path(source), workdir, images, prompt or "")
        return
    for name, value in (("prompt", prompt), ("source_preset", source_preset)):
        if value is not None:
            raise InputError(f"--{name}: {source} sees none; leave it out")
    unet = _unet(Path(source))
    ownership.check_apart("workdir", workdir, {"checkpoint": source})
    root = unet.parent if unet.name == "unet" else unet
    if (root / run.EXPORTED).is_file():
        _check_unsaid(images, root / run.EXPORTED)
        ours = _exported(root, unet / "config.json")
    else:
        ours = _foreign(root, unet / "config.json", images)
    config = ours.config
    with forms.naming(root):
        configuration.check_diffusion(config)
        configuration.check_sampler(config)
    tensors = weight_files.tensors(unet)
    with forms.naming(unet / "config.json"):
        configuration.check_model(config)
        configuration.check_size(config, ours.grid.size)
    model = models.build(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    words = parameters.of_unet2d(config.model)
    params = parameters.read(words, parameters.matched(shapes, words, tensors, unet))
    with ownership.folder(workdir, sharing.OWN) as partial:
        ours.save(partial)
        checkpoint.save_averages(partial, {NETWORK: params})
    count = models.count(params)
    print(f"{workdir}: {count:,} parameters; sees {' and '.join(config.model.conditions)}")


def _check_unsaid(values: dict, where: str | Path) -> None:
    """Raise InputError for a value that is given though a file says it."""
    for name, value in values.items():
        if value is not None:
            raise InputError(f"--{name}: {where} says it already; leave it out")


def _exported(root: Path, unet: Path) -> run.Run:
    """The run that `export` wrote; InputError where the files beside it were changed since."""
    path, scheduler = root / run.EXPORTED, _scheduler(root)
    ours = run.read(path)
    with forms.naming(path):
        network = unet2d.unet(ours.config.model, inputs=0, outputs=0, size=0)
        sampling = schedulers.theirs(ours.config)
    beside = [(unet, unet2d.model, network)]
    if scheduler is not None:
        beside.append((scheduler, schedulers.ours, sampling))
    for file, meaning, written in beside:
        fields = _json(file)
        with forms.naming(file):
            same = meaning(fields) == meaning(written)
        if not same:
            raise InputError(
                f"{path}: says other than {file}; remove it, and say --preset and more"
            )
    return ours


def _foreign(root: Path, unet: Path, images: dict) -> run.Run:
    """The run of a model without any record of its images, which `images` describes."""
    _check_described(root, images["preset"], images["spacing"])
    preset, fields = intensity.preset(images["preset"]), _json(unet)
    with forms.naming(unet):
        model = unet2d.model(fields) | _conditions(fields)
        size = _size(fields) if images["size"] is None else images["size"]
    grid = Grid(images["axis"] or "axial", images["spacing"], size)
    settings = contour_settings.named(images["contours"] or "original", preset.modality)
    config = configuration.from_dict({"model": model} | _sampling(root))
    return run.Run(config, preset, _preset_window(preset, images["window"]), grid, settings, ())


def _check_described(source, preset, spacing) -> None:
    for name, value in (("preset", preset), ("spacing", spacing)):
        if value is None:
            raise InputError(f"--{name} is required: {source} does not say what it was trained on")


def _conditions(fields: dict) -> dict:
    inputs, outputs = (fields.get(name) for name in ("in_channels", "out_channels"))
    if outputs != 1:
        raise InputError(f"out_channels: {outputs!r} is not supported, only 1, a grey image")
    if inputs not in (1 + n for n in CONDITIONS):
        raise InputError(
            f"in_channels: {inputs!r} is not supported, only 2, the image and its contours, and 3, "
            f"with a neighbouring slice"
        )
    return {"conditions": CONDITIONS[inputs - 1], "null": "empty"}


def _size(fields: dict) -> int:
    size = fields.get("sample_size")
    sides = size if isinstance(size, list) else [size]
    if not all(isinstance(side, int) and side == sides[0] for side in sides) or not sides:
        raise InputError(f"sample_size: {size!r} is not that of a square; give --size")
    return sides[0]


def _preset_window(preset: Preset, shown: tuple[float, float] | None) -> Window:
    """The window in which preset.image, the part that the model sees, is from LOW to HIGH."""
    if shown is None:
        return intensity.IDENTITY
    scale = (shown[1] - shown[0]) / (preset.image.high - preset.image.low)
    low = shown[0] - scale * preset.image.low
    return Window(low, low + scale)


def _sampling(root: Path) -> dict:
    """The `diffusion` and `sampler` sections: what the scheduler says, and else as published."""
    training = {"weighting": "none", "time_exponent": 1.0}
    path = _scheduler(root)
    if path is None:
        print(f"note: {root} saves no scheduler; DDPM's is assumed, as published")
    fields = {} if path is None else _json(path)
    with forms.naming(path or root):
        sections = schedulers.ours(fields)
    if note := schedulers.note(fields):
        print(f"note: {note}")
    diffusion, sampler = sections["diffusion"], sections["sampler"]
    # DPM-Solver++ may leave out a timestep.
    most = diffusion["steps"] - (sampler["name"] == "dpmpp_2m")
    return {
        "diffusion": diffusion | training,
        "sampler": sampler | {"steps": min(STEPS, most), "neighbour_guidance": 1.0},
    }


# ----------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------


def _unet(source: Path) -> Path:
    """The folder with a network's config.json."""
    if source.is_file():
        weight_files.refuse_pickle(source)
        raise InputError(f"{source}: a file; name the folder with its config.json")
    for folder in (source / "unet", source):
        if (folder / "config.json").is_file():
            return folder
    saved = [path.parent.parent.name for path in disk.entries(source, "*/unet/config.json")]
    hint = f"; name one of {', '.join(saved)} in it" if saved else ""
    raise InputError(f"{source}: holds no unet/config.json{hint}")


def _scheduler(root: Path) -> Path | None:
    """The file that says how a model is sampled, where there is one."""
    paths = (root / "scheduler/scheduler_config.json", root / "scheduler_config.json")
    return next((path for path in paths if path.is_file()), None)


def _json(path: Path) -> dict:
    return forms.read(path, dict[str, object], "save the model again")
