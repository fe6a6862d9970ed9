# SPDX-License-Identifier: Apache-2.0
"""Completion: what a shell proposes, as bash itself says."""

import re
import shutil
import subprocess

import pytest

from contourdiff_jax import cli, config, methods
from contourdiff_jax.commands import completion

ASK = """source "$1"; shift
COMP_WORDS=(contourdiff "$@") COMP_CWORD=$#
_contourdiff; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A file of each shell's script, as the command prints it."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in completion.SHELLS:
        (folder / shell).write_text(completion.script(shell))
    return folder


@pytest.fixture
def proposed(scripts, tmp_path):
    """What bash proposes after these words, in a folder with a few files."""
    for name in ("runs", "my scans"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.yaml").touch()

    def ask(*words):
        command = ["bash", "-c", ASK, "bash", scripts / "bash", *words]
        told = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return told.stdout.split("\n")[:-1]

    return ask


def test_the_command_prints_the_script(capsys, scripts):
    assert cli.main(["contourdiff", "completion", "--shell=bash"]) == 0
    assert capsys.readouterr().out == (scripts / "bash").read_text()


def test_a_shell_must_be_named(capsys):
    assert cli.main(["contourdiff", "completion"]) == 2
    assert "completion: --shell is required" in capsys.readouterr().err


def test_commands(proposed):
    assert proposed("tr") == ["train", "translate"]
    assert proposed("") == [*cli.COMMANDS, "--help", "--version"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "--work"], ["--workdir="]),
        (["train", "--ver"], ["--verify"]),
        (["train", "--nov"], ["--noverify"]),
        (["train", "--config.train.log"], ["--config.train.log=", "--config.train.log_to="]),
        (["train", "--workdir", "=", "r", "--sto"], ["--store="]),
        (["translate", "--checkp"], ["--checkpoint="]),
        (["translate", "--workd"], [""]),  # of another command
        (["inspect", "--he"], ["--help"]),
    ],
)
def test_flags(proposed, words, expected):
    assert proposed(*words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prepare", "--preset", "="], ["ct", "ct_wide", "mr"]),  # as bash divides --preset=
        (["prepare", "--preset", "=", "m"], ["mr"]),
        (["prepare", "--preset=m"], ["--preset=mr"]),  # as zsh does not divide it
        (["train", "--config.train.decay", "=", ""], ["cosine", "linear", "none"]),
        (["train", "--config", "=", "latent"], ["latent_small"]),
        (["train", "--config", "=", "mi"], ["mine.yaml"]),
        (["train", "--config.method", "=", "c"], ["controlnet", "cyclegan"]),
        (["train", "--config.train.log_to", "=", ""], ["tensorboard", "wandb", "trackio"]),
        (["translate", "--preset", "="], ["ct", "ct_wide", "mr"]),
        (["import", "--source_preset", "="], ["ct", "ct_wide", "mr"]),
        (["translate", "--checkpoint", "="], ["last", "best"]),
        (["card", "--checkpoint", "="], ["last", "best"]),
        (["import", "--checkpoint", "=", "r"], ["runs"]),
        (["train", "--store", "=", "r"], ["runs"]),
        (["inspect", "my"], ["my scans"]),
        (["train", "--store=r"], ["--store=runs"]),
    ],
)
def test_values_and_files(proposed, words, expected):
    assert proposed(*words) == expected


def test_all_methods_are_proposed():
    assert config.RULES["method"].names == tuple(methods.METHODS)


def test_zsh_runs_the_function_of_bash(scripts):
    loading, function = (scripts / "zsh").read_text().split("\n", 1)
    assert "bashcompinit" in loading and function == (scripts / "bash").read_text()


def test_fish_is_told_the_same(scripts):
    text = (scripts / "fish").read_text()
    for command in cli.COMMANDS:
        assert f"complete -c contourdiff -f -n __fish_use_subcommand -a {command}\n" in text
    assert re.search("from prepare' -l preset -x -a 'ct ct_wide mr' -d '", text)
    assert re.search("from train' -l noverify\n", text)
    # Every quotation ends in its line.
    assert all(line.replace(r"\'", "").count("'") % 2 == 0 for line in text.splitlines())
    if shutil.which("fish"):
        subprocess.run(["fish", "--no-execute", scripts / "fish"], check=True)
