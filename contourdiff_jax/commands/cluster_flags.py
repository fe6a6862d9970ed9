# SPDX-License-Identifier: Apache-2.0
"""The flags of commands that several processes can run together."""

import contextlib

from absl import flags

from contourdiff_jax.runtime import processes

GROUP = {"several processes": ("coordinator", "processes", "process", "timeout")}


def define_flags(values: flags.FlagValues) -> None:
    """The flags that say how this process meets the others."""
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
    flags.DEFINE_integer(
        "timeout", 300, "seconds to wait for the others", lower_bound=1, flag_values=values
    )


def joined(values: flags.FlagValues) -> contextlib.AbstractContextManager[None]:
    """`processes.joined`, as the flags say."""
    return processes.joined(values.coordinator, values.processes, values.process, values.timeout)
