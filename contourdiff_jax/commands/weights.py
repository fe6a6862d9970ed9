# SPDX-License-Identifier: Apache-2.0
"""Fetch the weights of InceptionV3 that FID and KID take, once, and verify them.

They are 91 MB of pytorch-fid's release, in ~/.cache/contourdiff_jax, or --out. Where there is no
network, it says what to fetch elsewhere and where to put it.

Example:
  contourdiff weights --out=pt_inception-2015-12-05-6726825d.pth
"""

from pathlib import Path

from absl import flags

from contourdiff_jax.interop.inception import cached, fetch


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("out", None, "File to write; the cache by default.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    print(fetch(Path(values.out) if values.out else cached()))
    return 0
