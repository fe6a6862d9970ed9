# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: configs/ is a folder of the package where that is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["contourdiff_jax*"]), "contourdiff_jax.configs"],
    package_dir={"contourdiff_jax.configs": "configs"},
)
