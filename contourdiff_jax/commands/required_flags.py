# SPDX-License-Identifier: Apache-2.0
"""The flags that a command cannot do without."""

from collections.abc import Iterable

from absl import flags

from contourdiff_jax.errors import InputError


def check(values: flags.FlagValues, command: str, names: Iterable[str]) -> None:
    """Raise InputError for the first of these flags that is not given."""
    for name in names:
        if values[name].value is None:
            raise InputError(f"--{name} is required; see `contourdiff {command} --help`")
