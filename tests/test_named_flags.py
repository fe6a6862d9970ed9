# SPDX-License-Identifier: Apache-2.0
"""No message tells a user to give a flag that the command does not have."""

import ast
import re

import numpy as np
import pytest
from named_flags import flags_of, lacking, unquoted
from PIL import Image
from test_layers import EDGES, MODULES

from contourdiff_jax import cli

OTHERS = {"reports.sections": {"evaluate"}}  # whose flags a page names, and says so
SCRIPTS = "commands.completion"  # its texts are scripts, of all commands
PLACE = "\0"  # stands for what an f-string fills in


def _texts(tree: ast.AST):
    """The strings of a module but for its docstrings, PLACE for what they are filled with."""
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(node.value)
        if isinstance(node, ast.JoinedStr):
            inside |= set(ast.walk(node)) - {node}
            yield "".join(
                getattr(part, "value", PLACE) if isinstance(part, ast.Constant) else PLACE
                for part in node.values
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield node.value


def _reached(command: str) -> set[str]:
    """Modules that a command imports, and these import."""
    known, new = set(), {cli.COMMANDS[command].removeprefix("contourdiff_jax.")}
    while new:
        known |= new
        new = {other for module in new for other in EDGES.get(module, ())} - known
    return known


REACHED = {command: _reached(command) for command in cli.COMMANDS}


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("", SCRIPTS)])
def test_flags_in_texts_are_of_a_command_that_gets_there(module):
    """What an f-string puts before a name, or after it, may be anything that makes it a flag."""
    commands = [command for command, modules in REACHED.items() if module in modules]
    known = set().union(*map(flags_of, {*commands} | OTHERS.get(module, set())))
    for text in map(unquoted, _texts(ast.parse(MODULES[module].read_bytes()))):
        for name in re.findall(rf"(?<![\w-])--([a-z{PLACE}][\w{PLACE}]*)", text):
            pattern = re.compile(name.replace(PLACE, r"\w*"))
            assert not commands or any(map(pattern.fullmatch, known)), f"--{name!r} in {text!r}"


@pytest.fixture
def pictures(tmp_path):
    """Folders of slices: of two kinds side by side, of one, and of greys called CT."""
    rng = np.random.default_rng(0)
    for place in ("two/t1/a-1", "two/t2/a-1", "ct/a-1", "mixed/a-1", "side/a-1"):
        path = tmp_path / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(path)
    (tmp_path / "mixed/b.nii.gz").write_bytes(b"")
    return tmp_path


WRONG = (
    ("prepare", "--source=ct", "--preset=ct", "--out=new"),
    ("prepare", "--source=two", "--preset=mr", "--out=new"),
    ("prepare", "--source=mixed", "--preset=mr", "--out=new"),
    ("prepare", "--source=ct", "--preset=mr", "--out=new", "--pairs=ct", "--pairs_preset=ct"),
    ("prepare", "--source=ct", "--preset=mr", "--out=new", "--pairs=two", "--pairs_preset=mr"),
    ("inspect", "ct", "--preset=mr", "--pairs=two", "--pairs_preset=ct"),
    ("inspect", "ct", "--layout=none"),
    ("evaluate", "--translated=ct", "--truth=two", "--preset=mr", "--out=new"),
    ("evaluate", "--translated=ct", "--truth=mixed", "--preset=mr", "--out=new"),
    ("evaluate", "--translated=mixed", "--truth=ct", "--preset=mr", "--out=new"),
    ("evaluate", "--translated=side", "--truth=ct", "--preset=ct", "--out=new"),
    ("evaluate", "--translated=side", "--truth=ct", "--preset=ct", "--out=new", "--real=ct"),
    ("evaluate", "--translated=side", "--source=ct", "--preset=mr", "--source_preset=ct",
     "--out=new"),
    ("evaluate", "--translated=side", "--truth=ct", "--preset=mr", "--out=new",
     "--truth_layout=none"),
    ("evaluate", "--translated=side", "--truth=ct", "--preset=mr", "--out=new",
     "--truth_half=left", "--truth_select=none"),
    ("evaluate", "--translated=side", "--truth=ct", "--preset=mr", "--out=new",
     "--pixel_spacing=1e9"),
    ("segment", "--train_images=two", "--train_labels=two", "--test_images=two",
     "--test_labels=two", "--preset=mr", "--out=new"),
    ("contours", "--store=ct", "--source=ct"),
    ("report", "--out=report.html", "ct"),
    ("card", "--run=ct", "--out=card.md"),
    ("import", "--checkpoint=ct", "--workdir=new", "--preset=mr", "--spacing=1"),
)  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_errors_name_flags_of_their_command(pictures, monkeypatch, capfd, arguments):
    monkeypatch.chdir(pictures)
    assert cli.main(["contourdiff", *arguments]) in (1, 2)
    said = "".join(capfd.readouterr())
    assert said and not lacking(arguments[0], said)
