# SPDX-License-Identifier: Apache-2.0
"""Translate volumes of another modality, each onto its own grid.

Most runs see nothing of a source but its contours; those with the condition picture see the grey
picture in which these are sought, too. Those that learnt from a paired store see its image, and
then --preset must be that of the sources they learnt from.

--source is a volume or a folder in any layout that `contourdiff inspect` knows. Translations come
back in the format of their source, or as --format says: nifti, dicom (a derived series), bids (a
derivative) or nnunet (with the source's labels, ready to train on). Volumes already translated with
the same settings are kept, so an interrupted command is continued by repeating it, and several may
work on one folder.

Every field of the run's config.sampler has a flag, which replaces it. Slices are translated each
for itself; --coherence, --coupling or --scgd let those of a volume know of one another. --samples
draws each several times and writes maps of where they differ.

Example:
    contourdiff translate --run=runs/mr --source=data/test_ct --preset=ct --out=translated
"""

import dataclasses

from absl import flags

from contourdiff_jax import config as configuration
from contourdiff_jax.commands import number_flags, required_flags, scan_flags
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.training import checkpoint
from contourdiff_jax.translation import outputs, samples
from contourdiff_jax.translation.folder import Request, translate
from contourdiff_jax.volumes import intensity

# What the flags of the `sampler` section say of themselves, see config.py.
SAMPLER = {
    "name": "the sampler: ddim, ddpm or dpmpp_2m",
    "steps": "of sampling: the fewer, the faster",
    "spacing": "of the timesteps: trailing, leading or linspace",
    "offset": "of --spacing=leading: added to every timestep",
    "eta": "of ddim: 0 is deterministic, 1 as random as ddpm",
    "clip": "estimates of the image to its range",
    "clipped_eps": "of ddim: let the noise follow from the clipped estimate",
    "fixed_stride": "of ddim: let every step lead equally far down",
    "ends_clean": "of ddim: let the last step lead to clean data, not to the first timestep",
    "guidance": "classifier-free, by contours; other than 1 needs a run trained for it",
    "source_guidance": "likewise, by the image of the source",
    "prompt_guidance": "likewise, by the prompt of the run",
    "control": "of a ControlNet: share of what its branch adds",
    "batch": "slices at once; the run's by default",
    "coherence": "mm along the slicing axis over which slices share noise; 0 for none",
    "coupling": "share of a slice's neighbours in it, at every step",
    "scgd": "show each slice the translation of the one before",
    "neighbour_guidance": "of scgd: how far the slice before is followed, 1 as published",
    "candidates": "of scgd: drawn where a chain of slices begins",
    "candidate": "of scgd: which of them is kept, lowest_mean or best_contours",
    "anchor": "of scgd: slices after which a new chain begins; 0 for never",
    "middle": "of scgd: begin chains in their middle and go both ways",
    "samples": "of each slice; the run's by default",
    "keep": f"which of the samples is kept: {', '.join(samples.NAMES)}; the run's by default",
    "tiles": "least overlap of tiles, for volumes larger than the grid, as a share; 0 crops them",
}
DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}

GROUPS = {
    "required": ("run", "source", "preset", "out"),
    "which weights": ("checkpoint",),
    "what is seen of the source": ("contours", "masks", "direction"),
    **scan_flags.GROUP,
    "how an image is drawn; by default as the run says": (
        *("sampler", "steps", "spacing", "offset", "eta", "clip", "clipped_eps", "fixed_stride"),
        *("ends_clean", "guidance", "source_guidance", "prompt_guidance", "control", "seed"),
    ),
    "how the slices of a volume hold together; by default as the run says": (
        *("coherence", "coupling", "scgd", "neighbour_guidance", "candidates", "candidate"),
        *("anchor", "middle", "tiles"),
    ),
    "several samples and their maps": ("samples", "keep", "maps"),
    "the finished volume": ("normalise", "contrast"),
    "files": ("format", "kind", "labels", "overwrite"),
    "devices": ("batch", "devices"),
}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff translate`."""
    known = ", ".join(contour_settings.PRESETS)
    for name, text in (
        ("run", "folder of a trained run, or a shared one: FILE.zip, URL#sha256=DIGEST"),
        ("source", "volume or folder of volumes to translate"),
        ("out", "folder for the translated volumes"),
        ("contours", f"contours of the source: a JSON file, or {known}"),
        ("masks", "folder with body masks of the source"),
        ("checkpoint", "of the run: last, best (of held-out loss), or the step of another"),
        ("kind", "what the target shows, as in names of BIDS: T1w, ct"),
        ("labels", "folder with label maps of the source, for nnunet"),
    ):
        default = checkpoint.LAST if name == "checkpoint" else None
        flags.DEFINE_string(name, default, text, flag_values=values)
    flags.DEFINE_enum(
        "preset",
        None,
        sorted(intensity.PRESETS),
        "intensities of the source",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "format", "same", list(outputs.FORMATS), "format of the translations", flag_values=values
    )
    for field, value in configuration.default().sampler.items():
        DEFINE[type(value)](_flag(field), None, SAMPLER[field], flag_values=values)
    flags.DEFINE_enum(
        "direction",
        None,
        ["forward", "backward"],
        "of a run that translates both ways: to the preset of its `train --store`, or of its "
        "`train --source_store`; what suits --preset by default",
        flag_values=values,
    )
    number_flags.define_seed(values, "seed of the noise")
    flags.DEFINE_bool(
        "normalise",
        False,
        "give every volume the mean and the deviation of those that the run learnt from",
        flag_values=values,
    )
    flags.DEFINE_float(
        "contrast",
        0.0,
        "enhance the contrast automatically, with histograms clipped to this; 0 for none",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_bool(
        "maps",
        None,
        "write maps of mean, deviation and structure not asked for; where there are several "
        "samples by default",
        flag_values=values,
    )
    text, most = "devices to use; all by default", 10**6
    flags.DEFINE_integer("devices", None, text, lower_bound=1, upper_bound=most, flag_values=values)
    flags.DEFINE_bool(
        "overwrite", False, "replace translations made with other settings", flag_values=values
    )
    scan_flags.define_flags(values)


def main(values: flags.FlagValues) -> int:
    """Runs the command; 0 if every volume was translated, 1 if some were not."""
    required_flags.check(values, "translate", GROUPS["required"])
    own = [field.name for field in dataclasses.fields(Request) if field.name != "sampler"]
    options = {name: values[name].value for name in own if name in values}
    sampler = {field: values[_flag(field)].value for field in SAMPLER}
    request = Request(
        **options | scan_flags.from_flags(values),
        sampler={field: value for field, value in sampler.items() if value is not None},
    )
    return 1 if translate(request).failed else 0


def _flag(field: str) -> str:
    """The flag of a field of the `sampler` section: its name, but of `name` itself."""
    return "sampler" if field == "name" else field
