# SPDX-License-Identifier: Apache-2.0
"""The flags of every command that several processes run together."""

from absl import flags


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of the first of several processes that do this together; auto: as SLURM, Open "
        "MPI, Kubernetes or the TPU pod says",
        flag_values=values,
    )
    flags.DEFINE_integer("processes", None, "how many there are", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "process", None, "which this is, from 0", lower_bound=0, flag_values=values
    )
