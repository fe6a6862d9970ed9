# SPDX-License-Identifier: Apache-2.0
"""Files of configurations: what they may hold, and what of them is refused."""

import json
from pathlib import Path

import pytest

from contourdiff_jax import config, config_files
from contourdiff_jax.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
NESTED = """
# what is not at its default
method: regression
train:
  learning_rate: 5e-4   # YAML 1.1 takes this for a text
  batch: 8
sampler.batch: 3
model: {null: empty, channels: [8, 16], attention: [no, yes]}
contours: {windows: [[0, 0.5], [0.25, 1]]}
"""
FAULTY = "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({})"
CHANGED = {
    "method": "regression",
    "train.learning_rate": 5e-4,
    "train.batch": 8,
    "sampler.batch": 3,
    "model.null": "empty",
    "model.channels": [8, 16],
    "model.attention": [False, True],
    "contours.windows": [[0, 0.5], [0.25, 1]],
}


def written(folder, name, text):
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


@pytest.mark.parametrize(
    ("name", "text"), [("a.yaml", NESTED), ("a.yml", NESTED), ("a.json", CHANGED)]
)
def test_a_file_gives_the_fields_that_are_not_at_their_defaults(tmp_path, name, text):
    found = config_files.read(written(tmp_path, name, text))
    assert config.changes(found) == CHANGED
    assert found.model.channels == (8, 16)


def test_a_file_of_comments_is_the_defaults(tmp_path):
    assert not config.changes(config_files.read(written(tmp_path, "a.yaml", "# nothing yet\n")))


def test_what_a_run_keeps_is_read_as_the_run_reads_it(tmp_path):
    """One of before methods were told had no such field; what a user writes has the default."""
    fields = {"distillation": {"substeps": 4}}
    of_run = {"schema": 1, "config": fields, "data": {}}
    assert config_files.read(written(tmp_path, "config.json", of_run)).method == "distilled"
    assert config_files.read(written(tmp_path, "mine.json", fields)).method == "diffusion"


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.yaml", "train: {bach: 8}", r"config\.train\.bach: unknown; known are accumulate"),
        ("a.json", {"train.bach": 8}, r"config\.train\.bach: unknown"),
        ("a.yaml", "train: 5", r"config\.train: 5, where a section"),
        ("a.yaml", "train: 5\ntrain.batch: 8", r"config\.train: 8, beside"),
        ("a.yaml", "train.batch: 8\ntrain: {batch: 9}", r"config\.train\.batch: given twice"),
        ("a.yaml", "seed: 1\nseed: 2", "'seed' is no name, or given twice.*line 1"),
        ("a.yaml", "? [1, 2]\n: 3", "is no name"),
        ("a.yaml", "train: [", "cannot be read as YAML.*line 1"),
        ("a.yaml", "train: &a {batch: *a}", "recursive"),
        ("a.yaml", "seed: !!python/object:os.system 3", "cannot be read as YAML.*constructor"),
        ("a.yaml", "[1, 2]", "where a dictionary of sections belongs"),
        ("a.yaml", "train: {batch: many}", r"config\.train\.batch: 'many', where int belongs"),
        ("a.yaml", "train.batch: .nan", r"config\.train\.batch: nan, where int belongs"),
        ("a.json", {"model": {"channels": 5}}, r"config\.model\.channels: 5, where tuple belongs"),
        ("a.json", {"train": {"learning_rate": 10**400}}, r"config\.train\.learning_rate: 1000"),
        ("a.py", "x = 1", "has no get_config; write one that returns a ConfigDict"),
        ("a.py", "def get_config():\n    return 5", "get_config must return a ConfigDict"),
        (
            "a.py",
            "def get_config():\n    raise SystemExit(0)",
            "cannot be run: SystemExit: 0; correct",
        ),
        ("a.py", "def get_config():\n    return 1 / 0", "cannot be run: ZeroDivisionError: "),
        ("a.py", FAULTY.format("{'colour': 'red'}"), r"config\.colour: unknown"),
        ("a.py", FAULTY.format("{5: 6}"), r"config\.5: unknown"),
        (
            "a.py",
            FAULTY.format("{'train': {'batch': 'x'}}"),
            r"config\.train\.batch: 'x', where int",
        ),
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", {"schema": 1, "config": {}, "digest": "0"}, "changed since it was written"),
    ],
)
def test_what_is_no_configuration_is_one_line_with_the_file(tmp_path, name, text, named):
    path = written(tmp_path, name, text)
    with pytest.raises(InputError, match=f"^{path}: .*{named}") as error:
        config_files.read(path)
    assert "\n" not in str(error.value)


def test_those_of_the_package_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heads").mkdir()
    assert config_files.found("heads") == CONFIGS / "heads.py"
    assert set(config_files.names()) == {path.stem for path in CONFIGS.glob("*.py")}


def test_the_cause_of_a_file_that_fails_is_kept(tmp_path):
    """For whoever reads it from Python, with the line that failed."""
    with pytest.raises(InputError) as error:
        config_files.read(written(tmp_path, "a.py", "1 / 0"))
    assert isinstance(error.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("given", ["headz", "mine.toml", "", "."])
def test_what_is_neither_a_name_nor_a_file_is_told_the_names(given):
    with pytest.raises(InputError, match=rf"--config={given}: .*\.yaml.*heads, latent_small"):
        config_files.found(given)
