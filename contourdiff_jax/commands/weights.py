# SPDX-License-Identifier: Apache-2.0
"""Fetch the weights of InceptionV3 that FID and KID need, once, and verify them.

They are 91 MB of pytorch-fid's release, and go to ~/.cache/contourdiff_jax, or --out. Where there
is no network, the command says what to fetch elsewhere and where to put it.

Example:
    contourdiff weights --out=pt_inception-2015-12-05-6726825d.pth
"""

from pathlib import Path

from absl import flags

from contourdiff_jax.interop.inception import cached, fetch


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `contourdiff weights`."""
    flags.DEFINE_string("out", None, "file to write; in the cache by default", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Runs the command."""
    print(fetch(Path(values.out) if values.out else cached()))
    return 0
