# SPDX-License-Identifier: Apache-2.0
"""Write a run's averaged network as a folder that diffusers loads, with its scheduler.

OUT is a pipeline's folder: UNet2DModel.from_pretrained(OUT, subfolder="unet") loads the network,
and DDPMScheduler.from_pretrained(OUT, subfolder="scheduler") the scheduler, which may be
DDIMScheduler or DPMSolverMultistepScheduler too. `contourdiff import` makes the same run of OUT
again. Networks can be exported if UNet2DModel has an equivalent, such as that of
configs/contourdiff_2d.py. A run of Stable Diffusion becomes the folder of such a pipeline again,
with the text encoder and the tokenizer of --like, the one that it came from.

Example:
    contourdiff export --run=runs/mr --out=exported
"""

from absl import flags

from contourdiff_jax.errors import InputError
from contourdiff_jax.interop.exporting import export


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff export`."""
    flags.DEFINE_string("run", None, "folder of a trained run", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write", flag_values=values)
    flags.DEFINE_string(
        "like",
        None,
        "of Stable Diffusion: folder of the pipeline that the run came from",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> int:
    """Runs the command."""
    for name in ("run", "out"):
        if values[name].value is None:
            raise InputError(f"--{name} is required; see `contourdiff export --help`")
    export(values.run, values.out, values.like)
    return 0
