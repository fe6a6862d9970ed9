# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is installed from it has the configurations, wherever it is used."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "configs", "contourdiff_jax")
PRINT = "from contourdiff_jax import config_files as f; print(f.__file__, f.found('heads'))"


def printed(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What a wheel holds, where it would be installed."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "installed"))
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", f"--outdir={source}/dist", source]
    built = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution" in built.stdout + built.stderr:
        pytest.skip("no package index, which has what builds wheels")
    assert built.returncode == 0, built.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.slow
def test_an_installed_package_has_the_configurations(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    out = printed(sys.executable, "-c", PRINT, cwd=tmp_path, env=environment)
    package = installed / "contourdiff_jax"
    assert out.split() == [f"{package}/config_files.py", f"{package}/configs/heads.py"]
    theirs = {path.name for path in (package / "configs").iterdir()}
    assert theirs == {path.name for path in (ROOT / "configs").glob("*.py")}
    assert [path.name for path in installed.glob("[!c]*")] == []  # configs is no package of its own


@pytest.mark.slow
def test_a_wheel_holds_every_module(installed):
    ours = {path.relative_to(ROOT) for path in (ROOT / "contourdiff_jax").rglob("*.py")}
    assert ours <= {path.relative_to(installed) for path in installed.rglob("*.py")}


def test_a_copy_of_the_repository_has_them_too(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    out = printed(sys.executable, "-c", PRINT, cwd=tmp_path, env=environment)
    assert out.split()[1] == str(ROOT / "configs" / "heads.py")
