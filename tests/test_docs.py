# SPDX-License-Identifier: Apache-2.0
"""What the documentation names is there: files, headings, and the flags of commands."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
from absl import flags

from contourdiff_jax import cli, config

# ml_collections loads configuration files with it.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "experiments/*/README.md", "tpu_scripts/README.md")
    for path in ROOT.glob(pattern)
)
MANUALS = [page for page in PAGES if page.startswith(("README", "CONTRIBUTING", "docs/"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(rf"contourdiff ({'|'.join(cli.COMMANDS)})\b([^\n`#]*)")


def text_of(page: str) -> str:
    """A page, with the lines of a command in one."""
    return re.sub(r"\\\n\s*", " ", (ROOT / page).read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """What links within a page may point to: its headings, as forges and the site name them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_point_to_what_exists(page):
    for link in LINK.findall(text_of(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", MANUALS)
def test_commands_have_the_flags_that_are_named(page):
    for name, rest in COMMAND.findall(text_of(page)):
        values = flags.FlagValues()
        importlib.import_module(cli.COMMANDS[name]).define_flags(values)
        for flag in re.findall(r"--([\w.]+)", rest):
            known = flag in values or flag.removeprefix("no") in values or flag == "help"
            field = flag.removeprefix("config.")
            assert known or ("config" in values and field in config.flat(config.default())), flag


def test_links_out_of_the_documentation_are_words_on_its_site():
    """It is built without the other files of the repository, but for pictures."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/site/hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    for link, words in (
        ("([012](../experiments/012_volumes))", "(`experiments/012_volumes`)"),
        ("[tpu_scripts](../tpu_scripts)", "`tpu_scripts`"),
        ("[what it loses](../tpu_scripts/README.md)", "what it loses (`tpu_scripts/README.md`)"),
        ("[how](../CONTRIBUTING.md)", "[how](contributing.md)"),
        ("![heads](../experiments/a.png)", "![heads](experiments/a.png)"),
        ("[cost](cost.md)", "[cost](cost.md)"),
    ):
        assert hooks.OUTSIDE.sub(hooks.inside, link) == words
    for page in (ROOT / "docs").glob("*.md"):
        text = hooks.OUTSIDE.sub(hooks.inside, page.read_text(encoding="utf-8"))
        assert "](../" not in text, page
