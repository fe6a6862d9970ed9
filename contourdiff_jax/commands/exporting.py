# SPDX-License-Identifier: Apache-2.0
"""Write a run as one file to share, or its averaged network as a folder that diffusers loads.

An --out that ends in .zip becomes a file of what others need to translate with the run: its
configuration, its averaged weights and its card (--card, which `contourdiff card` writes; by
default one of the run alone). `translate`, `demo`, `import` and cd.load take that file, or
URL#sha256=DIGEST of it.

Another OUT is a pipeline's folder: UNet2DModel.from_pretrained(OUT, subfolder="unet") loads the
network, and DDPMScheduler.from_pretrained(OUT, subfolder="scheduler") the scheduler, which may be
DDIMScheduler or DPMSolverMultistepScheduler too. `contourdiff import` makes the same run of OUT
again. Networks can be exported if UNet2DModel has an equivalent, such as that of
configs/contourdiff_2d.py. A run of Stable Diffusion becomes the folder of such a pipeline again,
with the text encoder and the tokenizer of --like, the one that it came from.

Example:
    contourdiff export --run=runs/mr --out=mr.zip --card=card.md
    contourdiff export --run=runs/mr --out=exported
"""

import tempfile
from pathlib import Path

from absl import flags

from contourdiff_jax.commands import required_flags
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import sharing
from contourdiff_jax.interop.exporting import export
from contourdiff_jax.reports.card import card
from contourdiff_jax.runtime import disk
from contourdiff_jax.training import checkpoint


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff export`."""
    flags.DEFINE_string("run", None, "folder of a trained run", flag_values=values)
    flags.DEFINE_string("out", None, "the .zip file or the folder to write", flag_values=values)
    flags.DEFINE_string(
        "checkpoint",
        checkpoint.LAST,
        "of a .zip file: last, best or a step",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "subjects",
        False,
        "of a .zip file: with the pseudonyms of training subjects, by which others are kept from "
        "scoring the run on these",
        flag_values=values,
    )
    flags.DEFINE_string("card", None, "model card, for a .zip file", flag_values=values)
    flags.DEFINE_string(
        "like",
        None,
        "of Stable Diffusion: folder of the pipeline that the run came from",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> int:
    """Runs the command."""
    required_flags.check(values, "export", ("run", "out"))
    if not sharing.is_named(values.out):
        for name in ("card", "checkpoint", "subjects"):
            if values[name].present:
                raise InputError(f"--{name}: is for a .zip file; leave it out")
        export(values.run, values.out, values.like)
        return 0
    if values.like is not None:
        raise InputError("--like: a .zip file has all of its own; leave it out")
    _share(values.run, values.out, values.card, values.checkpoint, values.subjects)
    return 0


def _share(run: str, out: str, written: str | None, which: str, subjects: bool) -> None:
    """Writes the file to share, and says how others use it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(written or Path(folder) / sharing.CARD)
        if not written:
            card(run, file, checkpoint=which)
        disk.check_is_file(file)
        digest = sharing.pack(run, out, file, which, subjects)
    size = Path(out).stat().st_size / 1e6
    print(
        f"{out}: {size:.1f} MB; where it is put at a URL, others translate with it by\n"
        f"  contourdiff translate --run=URL#sha256={digest} --source=SCANS --preset=ct "
        f"--out=TRANSLATED"
    )
