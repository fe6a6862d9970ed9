# SPDX-License-Identifier: Apache-2.0
"""Exporting: a run's averaged network and its scheduler, as a folder that diffusers loads."""

from pathlib import Path

from contourdiff_jax import methods
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import (
    parameters,
    schedulers,
    stable_diffusion,
    unet2d,
    weight_files,
)
from contourdiff_jax.methods.diffusion import NETWORK, Diffusion
from contourdiff_jax.models import conditioning
from contourdiff_jax.runtime import disk, ownership
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run

MADE = "an exported model"  # by which the folder of one is known
PIPELINES = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}


def export(run_folder: str | Path, out: str | Path, like: str | Path | None = None) -> None:
    """Write a run as the folder of a diffusers pipeline, from which `import` makes it again.

    Args:
      like: for a run of latents that attends to a prompt, the folder of the pipeline that it came
        from, with the text encoder and tokenizer that are to be copied.

    Raises:
      InputError: not a run, a setting that diffusers has no equivalent of, or `out` is in use.
    """
    run_folder, out = Path(run_folder), Path(out)
    ownership.check_apart("out", out, {"run": run_folder})
    ownership.check_is_free(out, MADE)
    ours = run.load(run_folder)
    if ours.codec is not None:
        with ownership.folder(out, MADE) as partial:
            count = stable_diffusion.export_pipeline(ours, run_folder, partial, like)
        print(f"{out}: {count:,} parameters for diffusers")
        return
    if ours.base:
        raise InputError(f"{run_folder}: a ControlNet of pixels, which diffusers has none of")
    if like is not None:
        raise InputError(f"--like: {run_folder} has no text encoder to be copied; leave it out")
    config = ours.config
    if config.model.dims == 3:
        raise InputError(f"{run_folder}: draws volumes, and diffusers has networks of slices alone")
    method = methods.build(ours, mesh=meshes.local(1))
    if not isinstance(method, Diffusion):
        # A segmenter's draws no images.
        remedy = "" if ours.labels else "; use it with `contourdiff translate`"
        raise InputError(
            f"{run_folder}: a run of {config.method}, and diffusers knows networks of diffusion "
            f"alone{remedy}"
        )
    try:
        unet = unet2d.unet(
            config.model,
            inputs=1 + conditioning.channels(config.model),
            outputs=1,
            size=ours.grid.size,
        )
        scheduler = schedulers.theirs(config)
    except InputError as error:
        raise InputError(f"{run_folder}: {error}") from None
    _, averages = checkpoint.averages(run_folder, method.players, method.mesh)
    tensors = parameters.written(parameters.of_unet2d(config.model), averages[NETWORK])
    kind = scheduler["_class_name"]
    files = {
        "model_index.json": {
            "_class_name": PIPELINES.get(kind, "DDPMPipeline"),
            "scheduler": ["diffusers", kind],
            "unet": ["diffusers", unet2d.UNET],
        },
        "unet/config.json": unet,
        "scheduler/scheduler_config.json": scheduler,
    }
    with ownership.folder(out, MADE) as partial:
        for name, fields in files.items():
            disk.write_json(partial / name, fields)
        weight_files.write(partial / "unet" / weight_files.WEIGHTS, tensors, {"format": "pt"})
        ours.save(partial, run.EXPORTED)
    print(f"{out}: {sum(t.size for t in tensors.values()):,} parameters for diffusers")
