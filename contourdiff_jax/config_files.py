# SPDX-License-Identifier: Apache-2.0
"""Files of configurations: those that come with the package, by name, and those of users.

A Python file has a function `get_config` that returns a ConfigDict. A YAML or JSON file gives the
fields that are not at their defaults, nested or dotted:

    method: regression
    train: {batch: 8}
    sampler.steps: 2

A run's config.json is such a file, too.
"""

import json
import re
import runpy
from pathlib import Path

import yaml
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, forms

# In an installed package they lie within, in a copy of the repository beside.
PLACES = tuple(Path(__file__).parents[n] / "configs" for n in (0, 1))
PYTHON, YAML, JSON = (".py",), (".yaml", ".yml"), (".json",)
SUFFIXES = (*PYTHON, *YAML, *JSON)
REMEDY = "correct it, or take another"


def names() -> dict[str, Path]:
    """The configurations that come with the package, sorted by name."""
    place = next((place for place in PLACES if place.is_dir()), None)
    return {path.stem: path for path in sorted(place.glob("*.py"))} if place else {}


def found(given: str) -> Path:
    """The file of a path, or of a name that has no suffix.

    Raises InputError for a path or a name that is none.
    """
    path = Path(given)
    if path.suffix in SUFFIXES and path.is_file():
        return path
    if path.suffix in SUFFIXES:
        raise InputError(f"--config={given}: no such file")
    if given in names():
        return names()[given]
    argument = "; a colon and an argument may follow a Python file or one of these alone"
    raise InputError(
        f"--config={given}: is neither a file in {', '.join(SUFFIXES)} nor one of "
        f"{', '.join(names())}{argument if ':' in given else ''}"
    )


def read(path: Path, *arguments: str) -> ConfigDict:
    """The configuration of a file.

    Args:
      arguments: of `get_config`, where that takes any.

    Raises:
      InputError: unreadable, or with fields that are not ours; of a Python file, which is a
        program, whatever it raises, with that as its cause.
    """
    if path.suffix in PYTHON:
        fields = _of_python(path, arguments)
    else:
        fields = forms.read(path, object, REMEDY) if path.suffix in JSON else _of_yaml(path)
    with forms.naming(path):
        if isinstance(fields, dict) and {"schema", "config"} <= fields.keys():  # that of a run
            fields = configuration.of_before(fields["config"])
        if path.suffix not in PYTHON:
            fields = _nested(fields)
        if isinstance(fields, dict):
            _check_kinds(configuration.default(), fields, "config")
        return configuration.from_dict(fields)


def _check_kinds(config: ConfigDict, fields: dict, name: str) -> None:
    """Raise InputError for the first value that its field cannot hold, by the field's whole name.

    Sets those of `config` that it can; what is no field is left to `configuration.from_dict`.
    """
    for field in [field for field in fields if field in config]:
        value, kind = fields[field], config.get_type(field)
        try:
            if kind is not ConfigDict:
                config[field] = value
            elif isinstance(value, dict):
                _check_kinds(config[field], value, f"{name}.{field}")
        except (TypeError, ValueError, OverflowError):
            wrong = f"{name}.{field}: {value!r:.40}, where {kind.__name__} belongs"
            raise InputError(wrong) from None


def _of_python(path: Path, arguments: tuple[str, ...]) -> dict:
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config = get_config and get_config(*arguments)
    except (Exception, SystemExit) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path}: cannot be run: {why:.200}; {REMEDY}") from error
    if get_config is None:
        raise InputError(f"{path}: has no get_config; write one that returns a ConfigDict")
    if not isinstance(config, ConfigDict):
        raise InputError(f"{path}: get_config must return a ConfigDict")
    return config.to_dict()


def _of_yaml(path: Path):
    try:
        fields = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {disk.reason(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as YAML: {why:.200}; {REMEDY}") from None
    return {} if fields is None else fields


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, and keys are names, each given once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        # What stands for nothing or true elsewhere, as `null` does, may be the name of a field.
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str) or keys.count(key) > 1:
                problem = f"{key!r:.40} is no name, or given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


# PyYAML knows numbers as YAML 1.1 wrote them: with a point and a signed exponent.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _nested(fields):
    """Fields with dotted names taken apart: {"train.batch": 8} as {"train": {"batch": 8}}."""
    if not isinstance(fields, dict):
        return fields
    sections: dict = {}
    for name, value in fields.items():
        section, _, field = name.partition(".")
        inner = {field: value} if field else value
        before = sections.setdefault(section, {} if isinstance(inner, dict) else inner)
        if isinstance(inner, dict) and isinstance(before, dict):
            if twice := before.keys() & inner.keys():
                raise InputError(f"config.{section}.{min(twice)}: given twice")
            before.update(inner)
        elif before is not inner:
            raise InputError(f"config.{section}: {json.dumps(value):.40}, beside fields of it")
    return sections
