# SPDX-License-Identifier: Apache-2.0
"""The flag --config, and the fields that --config.a.b=v changes."""

import re
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from contourdiff_jax import config as configuration
from contourdiff_jax import config_files


class _Parser(flags.ArgumentParser):
    """Reads what --config names; after a colon, the argument of its get_config."""

    def parse(self, given: str) -> ConfigDict:
        name, *arguments = _divided(given)
        return config_files.read(config_files.found(name), *arguments)


def _divided(given: str) -> tuple[str, ...]:
    """What --config names and, of a Python file or a name, the argument after a colon.

    Other colons belong to the path.
    """
    parts = re.fullmatch(rf"(.*?\.py|{'|'.join(config_files.names())}):(.*)", given, re.DOTALL)
    return (given,) if parts is None or Path(given).is_file() else parts.groups()


def define_flag(values: flags.FlagValues) -> None:
    known = ", ".join(config_files.names())
    text = f"configuration: a file, or one of {known}; --config.a.b=v changes a field"
    config_flags.DEFINE_config_file("config", None, text, flag_values=values)
    values["config"].parser = _Parser()
    values.set_default("config", configuration.__file__)


def given(values: flags.FlagValues) -> ConfigDict | None:
    """The configuration of --config with the fields that are set on the command line.

    Without --config it is that of the run where it has begun; None where nothing is said at all.
    """
    from contourdiff_jax.training import run  # JAX takes a second: not for --help

    names = [name for name in values if name.startswith("config.") and values[name].present]
    if not values["config"].present and not names:
        return None
    config = configuration.from_dict(values.config.to_dict())
    if values["config"].present or not run.exists(Path(values.workdir)):
        return config
    fields, names = configuration.flat(config), [name.removeprefix("config.") for name in names]
    own = run.load(Path(values.workdir)).config
    return configuration.replaced(own, {name: fields[name] for name in names})
