# SPDX-License-Identifier: Apache-2.0
"""Make a run of a diffusers model: of the original ContourDiff, or of Stable Diffusion.

--checkpoint is a folder with unet/config.json and its safetensors (the original's model_epoch_N),
or that unet folder. It does not say which images it was trained on, so the other flags have to; a
folder that `contourdiff export` wrote says it. --axis is axial by default, and --size the model's
own. Pickles are not read. The folder of a Stable Diffusion pipeline becomes a run of latents, with
--prompt as what it attends to (docs/latent.md).

Example:
    contourdiff import --checkpoint=out/model_epoch_400 --workdir=runs/mr --preset=mr --spacing=1
"""

import math

from absl import flags

from contourdiff_jax.commands import number_flags, required_flags
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop.importing import import_checkpoint
from contourdiff_jax.volumes import intensity


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff import`."""
    flags.DEFINE_string("checkpoint", None, "folder of a diffusers model", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run to make", flag_values=values)
    presets = sorted(intensity.PRESETS)
    flags.DEFINE_enum("preset", None, presets, "intensities of its images", flag_values=values)
    flags.DEFINE_list(
        "window", None, "LOW,HIGH: its black and white; the preset's by default", flag_values=values
    )
    number_flags.define_grid(values, axis=None)
    flags.DEFINE_string(
        "contours",
        None,
        "contours it was trained with: a JSON file, or "
        f"{', '.join(contour_settings.PRESETS)}; original by default",
        flag_values=values,
    )
    flags.DEFINE_string(
        "prompt",
        None,
        "of Stable Diffusion: the words that its networks attend to; none by default",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "source_preset",
        None,
        presets,
        "of InstructPix2Pix: intensities of the images that it is shown, as --preset",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> int:
    """Runs the command."""
    required_flags.check(values, "import", ("checkpoint", "workdir"))
    import_checkpoint(
        values.checkpoint,
        values.workdir,
        preset=values.preset,
        window=None if values.window is None else _window(values.window),
        axis=values.axis,
        spacing=values.spacing,
        size=values.size,
        contours_file=values.contours,
        prompt=values.prompt,
        source_preset=values.source_preset,
    )
    return 0


def _window(words: list[str]) -> tuple[float, float]:
    try:
        low, high = map(float, words)
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise InputError(f"--window={','.join(words)}: must be LOW,HIGH with LOW below HIGH")
    return low, high
