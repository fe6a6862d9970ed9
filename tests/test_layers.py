# SPDX-License-Identifier: Apache-2.0
"""Layers: rooms stand above what they use, no import runs back up and none in a circle.

Imports are read from the source, those inside functions too, so nothing is run.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = "contourdiff_jax"
ROOT = Path(__file__).parents[1] / PACKAGE

# From the bottom to the top. A room is a folder or a file directly in the package.
ROOMS = (
    *("errors", "contracts", "config", "figures", "runtime", "config_files", "volumes"),
    *("contours", "diffusion", "models", "data", "training", "methods", "interop"),
    *("translation", "evaluation", "reports", "api", "demo", "commands", "cli", "__main__"),
)
# Packages that only some rooms may know.
ONLY_IN = {"absl": ("commands", "cli"), "flax": ("models",), "gradio": ("demo",)}


def _modules() -> dict[str, Path]:
    """Files by the name of the module, without the package's own."""
    modules = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts).removesuffix("__init__").removesuffix(".")] = path
    return modules


MODULES = _modules()


def _imported(path: Path) -> set[str]:
    """All that a file imports; of the package, modules without its name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix(f"{PACKAGE}.")
                names.add(f"{PACKAGE}.{inner}" if inner in MODULES else node.module)
    return names


IMPORTS = {name: _imported(path) for name, path in MODULES.items()}
# Between modules of the package; all may know its version.
EDGES = {
    name: {it.removeprefix(f"{PACKAGE}.") for it in imported if it.startswith(f"{PACKAGE}.")}
    for name, imported in IMPORTS.items()
    if name
}


def _room(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_is_in_a_room():
    assert {_room(module) for module in MODULES if module} <= set(ROOMS)


def test_no_import_runs_up():
    upwards = {
        (module, other)
        for module, others in EDGES.items()
        for other in others
        if ROOMS.index(_room(other)) > ROOMS.index(_room(module))
    }
    assert not upwards, "rooms stand above what they use"


def test_no_imports_in_a_circle():
    """Modules that import nothing but what is gone are taken away, until none or a circle is."""
    left = dict(EDGES)
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    assert not left, "these import one another, or what does"


@pytest.mark.parametrize("package", ONLY_IN)
def test_some_packages_are_known_to_some_rooms_only(package):
    knowing = {
        module
        for module, imported in IMPORTS.items()
        if any(name.split(".")[0] == package for name in imported)
        and _room(module) not in ONLY_IN[package]
    }
    assert not knowing, f"{package} is for {', '.join(ONLY_IN[package])} only"


def test_json_is_read_in_one_place():
    """Where it is checked; but for what the configuration makes of its own fields."""
    reading = {name for name, path in MODULES.items() if "json.load" in path.read_text()}
    assert reading == {"runtime.forms", "config"}
