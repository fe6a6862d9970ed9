# SPDX-License-Identifier: Apache-2.0
"""Write a run's averaged network as a folder that diffusers loads, with its scheduler.

OUT is a pipeline's folder: UNet2DModel.from_pretrained(OUT, subfolder="unet") loads the network and
DDPMScheduler.from_pretrained(OUT, subfolder="scheduler"), or DDIMScheduler, or
DPMSolverMultistepScheduler, what it samples with. `contourdiff import` makes the same run of it
again. Only networks that UNet2DModel has an equivalent of can be exported, such as that of
configs/contourdiff_2d.py.

Example:
    contourdiff export --run=runs/mr --out=exported
"""

import json
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from contourdiff_jax import atomic, checkpoint, models, run
from contourdiff_jax import mesh as meshes
from contourdiff_jax.data import batches
from contourdiff_jax.diffusion import schedulers
from contourdiff_jax.errors import InputError
from contourdiff_jax.models import conditioning, diffusers, weights

PIPELINES = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("run", None, "folder of a trained run", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write", flag_values=values)


def main(values: flags.FlagValues) -> int:
    for name in ("run", "out"):
        if values[name].value is None:
            raise InputError(f"--{name} is required; see `contourdiff export --help`")
    export(values.run, values.out)
    return 0


def export(run_folder: str | Path, out: str | Path) -> None:
    """Write the run as a diffusers pipeline's folder; see the module's docstring.

    Raises:
      InputError: not a run, a setting that diffusers has no equivalent of, or `out` is in use.
    """
    run_folder, out = Path(run_folder), Path(out)
    atomic.check_is_free(out)
    ours = run.load(run_folder)
    config = ours.config
    try:
        model = models.build(config.model, batches.CONDITIONS)
        unet = diffusers.unet(
            config.model,
            inputs=1 + conditioning.channels(config.model, batches.CONDITIONS),
            outputs=1,
            size=ours.grid.size,
        )
        scheduler = schedulers.theirs(config)
    except InputError as error:
        raise InputError(f"{run_folder}: {error}") from None
    one = meshes.replicated(meshes.make(ConfigDict({"data": 1, "fsdp": 1})))
    _, params = checkpoint.load_average(run_folder, model.init, one)
    tensors = {
        diffusers.name(config.model, tuple(key.key for key in path)): diffusers.theirs(
            np.asarray(leaf)
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    kind = scheduler["_class_name"]
    files = {
        "model_index.json": {
            "_class_name": PIPELINES.get(kind, "DDPMPipeline"),
            "scheduler": ["diffusers", kind],
            "unet": ["diffusers", diffusers.UNET],
        },
        "unet/config.json": unet,
        "scheduler/scheduler_config.json": scheduler,
    }
    with atomic.folder(out) as partial:
        for name, fields in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        weights.write(partial / "unet", tensors)
        ours.save(partial, run.EXPORTED)
    print(f"{out}: {sum(t.size for t in tensors.values()):,} parameters for diffusers")
