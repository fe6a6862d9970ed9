# SPDX-License-Identifier: Apache-2.0
"""Flags that messages name, and those that commands have."""

import functools
import importlib
import re

from absl import flags

from contourdiff_jax import cli


@functools.cache
def flags_of(command: str) -> frozenset[str]:
    """Names of the flags of a command."""
    values = flags.FlagValues()
    importlib.import_module(cli.COMMANDS[command]).define_flags(values)
    negated = {f"no{name}" for name in values if values[name].boolean}
    return frozenset({*values, *negated, "help"})


def unquoted(text: str) -> str:
    """A message without the other commands that it quotes: `prepare --axis=coronal`, or a line."""
    return re.sub(r"`[^`]*`|contourdiff \w+ --.*", "", text)


def lacking(command: str, said: str) -> set[str]:
    """Flags that a message names, and the command does not have."""
    return set(re.findall(r"(?<![\w-])--([a-z]\w*)", unquoted(said))) - flags_of(command)
