# SPDX-License-Identifier: Apache-2.0
"""The flag --config, and the fields that --config.a.b=v changes."""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from contourdiff_jax import config as configuration
from contourdiff_jax import config_files
from contourdiff_jax.errors import InputError


class _Parser(config_flags.ConfigFileFlagParser):
    """Reads what --config names."""

    def parse(self, given: str) -> ConfigDict:
        name, colon, argument = given.partition(":")  # get_config may take an argument
        path = config_files.found(name)
        if path.suffix not in config_files.PYTHON:
            return config_files.read(path).lock()
        config = super().parse(f"{path}{colon}{argument}")
        if not isinstance(config, ConfigDict):
            raise InputError(f"--config={given}: get_config must return a ConfigDict")
        return config


def define_flag(values: flags.FlagValues) -> None:
    known = ", ".join(config_files.names())
    config_flags.DEFINE_config_file(
        "config",
        configuration.__file__,
        f"configuration: a file, or one of {known}; --config.a.b=v changes a field",
        flag_values=values,
    )
    values["config"].parser = _Parser("config")


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
