# SPDX-License-Identifier: Apache-2.0
"""The flag --config: what of it is a path, and what an argument."""

import pytest
from absl import flags

from contourdiff_jax.commands import config_flag
from contourdiff_jax.errors import InputError

TAKING = """from contourdiff_jax import config


def get_config(seed="1"):
    settings = config.default()
    settings.seed = int(seed.replace(":", ""))
    return settings
"""


@pytest.fixture
def seed(tmp_path, monkeypatch):
    """The seed of what --config names, in a folder with files of every kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    for name in ("mine.py", "a:b/mine.py"):
        (tmp_path / name).write_text(TAKING)
    for name in ("mine.yaml", "a:b/mine.yaml", "odd.py:2.yaml"):
        (tmp_path / name).write_text("seed: 7")

    def of(given):
        values = flags.FlagValues()
        config_flag.define_flag(values)
        values(["train", f"--config={given}"])
        return values.config.seed

    return of


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("mine.py", 1),
        ("mine.py:3", 3),
        ("mine.py:3:4", 34),
        ("a:b/mine.py", 1),
        ("a:b/mine.py:3", 3),
        ("mine.yaml", 7),
        ("a:b/mine.yaml", 7),
        ("odd.py:2.yaml", 7),
        ("heads", 0),
    ],
)
def test_an_argument_follows_a_python_file_and_other_colons_are_of_the_path(seed, given, expected):
    assert seed(given) == expected


@pytest.mark.parametrize("given", ["mine.yaml:3", "headz:3"])
def test_an_argument_that_nothing_takes(seed, given):
    with pytest.raises(InputError, match=f"^--config={given}: .*a colon and an argument may"):
        seed(given)


def test_a_configuration_of_the_package_that_takes_no_argument(seed):
    with pytest.raises(InputError, match=r"heads\.py: .*takes 0 positional arguments"):
        seed("heads:3")
