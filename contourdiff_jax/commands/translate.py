# SPDX-License-Identifier: Apache-2.0
"""Translate volumes of another modality from their contours alone, each onto its own grid.

--source is a volume or a folder in any layout that `contourdiff inspect` knows. Translations come
back in the format of their source, or as --format says: nifti, dicom (a derived series), bids (a
derivative) or nnunet (with the source's labels, ready to train on). Volumes already translated with
the same settings are kept, so an interrupted command is continued by repeating it, and several may
work on one folder.

Slices are translated each for itself; --coherence, --coupling or --scgd let those of a volume know
of one another. --samples draws each several times and writes maps of where they differ.

Example:
    contourdiff translate --run=runs/mr --source=data/test_ct --preset=ct --out=translated
"""

from absl import flags

from contourdiff_jax import config as configuration
from contourdiff_jax.commands import scan_flags
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.errors import InputError
from contourdiff_jax.translation import outputs
from contourdiff_jax.translation import samples as selection
from contourdiff_jax.translation.folder import translate

# Fields of the `sampler` section that are of whole volumes, and what their flags do.
TOGETHER = {
    "coherence": "mm along the slicing axis over which slices share noise; 0 for none",
    "coupling": "share of a slice's neighbours in it, at every step",
    "scgd": "show each slice the translation of the one before",
    "neighbour_guidance": "of scgd: how far the slice before is followed, 1 as published",
    "candidates": "of scgd: drawn where a chain of slices begins",
    "candidate": "of scgd: which of them is kept, lowest_mean or best_contours",
    "anchor": "of scgd: slices after which a new chain begins; 0 for never",
    "middle": "of scgd: begin chains in their middle and go both ways",
    "samples": "of each slice",
    "keep": f"which of the samples is kept: {', '.join(selection.NAMES)}",
    "tiles": "least overlap of tiles, for volumes larger than the grid, as a share; 0 crops them",
}
DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("run", None, "folder of a trained run", flag_values=values)
    flags.DEFINE_string(
        "source", None, "volume or folder of volumes to translate", flag_values=values
    )
    flags.DEFINE_string("out", None, "folder for the translated volumes", flag_values=values)
    flags.DEFINE_string("preset", None, "modality of the source: ct or mr", flag_values=values)
    flags.DEFINE_string(
        "contours",
        None,
        f"contours of the source: a JSON file, or {', '.join(contour_settings.PRESETS)}",
        flag_values=values,
    )
    flags.DEFINE_string("masks", None, "folder with body masks of the source", flag_values=values)
    flags.DEFINE_enum(
        "format", "same", list(outputs.FORMATS), "format of the translations", flag_values=values
    )
    flags.DEFINE_string(
        "kind", None, "what the target shows, as in names of BIDS: T1w, ct", flag_values=values
    )
    flags.DEFINE_string(
        "labels", None, "folder with label maps of the source, for nnunet", flag_values=values
    )
    flags.DEFINE_string(
        "sampler", None, "ddim, ddpm or dpmpp_2m; the run's by default", flag_values=values
    )
    flags.DEFINE_integer("steps", None, "sampling steps; the run's by default", flag_values=values)
    flags.DEFINE_float(
        "guidance", None, "classifier-free guidance; the run's by default", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "seed of the noise", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "batch_size", None, "slices at once; the run's by default", flag_values=values
    )
    defaults = configuration.default().sampler
    for name, text in TOGETHER.items():
        define = DEFINE[type(defaults[name])]
        define(name, None, f"{text}; the run's by default", flag_values=values)
    flags.DEFINE_bool(
        "maps",
        None,
        "write maps of mean, deviation and structure not asked for; where there are several "
        "samples by default",
        flag_values=values,
    )
    flags.DEFINE_integer("devices", None, "devices to use; all by default", flag_values=values)
    flags.DEFINE_bool(
        "overwrite", False, "replace translations made with other settings", flag_values=values
    )
    scan_flags.define_flags(values)


def main(values: flags.FlagValues) -> int:
    for name in ("run", "source", "out", "preset"):
        if values[name].value is None:
            raise InputError(f"--{name} is required; see `contourdiff translate --help`")
    result = translate(
        values.run,
        values.source,
        values.out,
        preset=values.preset,
        contours_file=values.contours,
        body_masks=values.masks,
        **scan_flags.from_flags(values),
        form=values.format,
        kind=values.kind,
        labels=values.labels,
        sampler_name=values.sampler,
        steps=values.steps,
        guidance_scale=values.guidance,
        seed=values.seed,
        batch_size=values.batch_size,
        together={name: values[name].value for name in TOGETHER},
        maps=values.maps,
        devices=values.devices,
        overwrite=values.overwrite,
    )
    return 1 if result.failed else 0
