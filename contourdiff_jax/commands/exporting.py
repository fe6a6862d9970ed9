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

from absl import flags

from contourdiff_jax.errors import InputError
from contourdiff_jax.interop.exporting import export


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("run", None, "folder of a trained run", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write", flag_values=values)


def main(values: flags.FlagValues) -> int:
    for name in ("run", "out"):
        if values[name].value is None:
            raise InputError(f"--{name} is required; see `contourdiff export --help`")
    export(values.run, values.out)
    return 0
