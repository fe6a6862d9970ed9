# SPDX-License-Identifier: Apache-2.0
"""Show a page on which an image is uploaded, translated, looked at and downloaded.

An upload is a NIfTI file, a zip of one DICOM series, or a picture. Contours can be moved before it
is translated; several samples give a map of where they differ. What is downloaded is to the bit
what `contourdiff translate` writes for that file. Visitors see nothing of one another, and their
files are deleted when they close the page.

The page is served to this computer alone, unless --host says otherwise: it asks for no password.
Needs gradio: pip install 'contourdiff-jax[demo]'.

Example:
  contourdiff demo --run=runs/mr --run=runs/ct --steps=5
"""

from absl import flags

from contourdiff_jax.demo.offers import Offer
from contourdiff_jax.demo.server import serve
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import sharing


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff demo`."""
    flags.DEFINE_multi_string("run", None, "A run, or a shared one; several may be given.", values)
    flags.DEFINE_string("host", "127.0.0.1", "Address to serve at.", flag_values=values)
    for name, default, text, most in (
        ("port", 7860, "Port to serve at.", 65535),
        ("upload_mb", 512, "MB that an upload may have.", 1 << 16),
        ("steps", None, "Of sampling; those of the run by default.", 1000),
    ):
        flags.DEFINE_integer(
            name, default, text, lower_bound=1, upper_bound=most, flag_values=values
        )


def main(values: flags.FlagValues) -> int:
    """Serves the page until a signal ends it."""
    if not values.run:
        raise InputError("--run is required; see `contourdiff demo --help`")
    folders = [sharing.at(run) for run in values.run]
    if len({*folders}) < len(folders):
        raise InputError("--run: the same run twice; name it once")
    names = [folder.resolve().name for folder in folders]
    names = names if len({*names}) == len(names) else values.run
    offers = {n: Offer(run, values.steps) for n, run in zip(names, folders, strict=True)}
    if values.steps is not None and not any(offer.stepwise for offer in offers.values()):
        raise InputError("--steps: no run here draws step by step; leave it out")
    serve(offers, values.host, values.port, values.upload_mb)
    return 0
