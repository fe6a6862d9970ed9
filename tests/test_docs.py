# SPDX-License-Identifier: Apache-2.0
"""What the documentation names is there: files, headings, and the flags of commands."""

import importlib
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
from absl import flags

from contourdiff_jax import cli, config
from contourdiff_jax.data.phantoms.heads import phantoms

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


# --------------------------------------------------------------------------------------------------
# Pages whose commands are run in their order, with the scans that they name
# --------------------------------------------------------------------------------------------------

SHORTER = (  # trainings, and what takes long without them
    (r"--minutes=\d+", "--images=32"),
    (r"--config\.train\.images=\d+|--images=\d+", "--images=32"),
    (r"(train\s+--config=configs/\S+ --store=\S+ --workdir=\S+)$", r"\1 --images=8"),
)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder with scans/mr to train on, scans/ct to translate and scans/ct_mr, their truth."""
    place = tmp_path_factory.mktemp("guide")
    phantoms(place / "heads", subjects=6, size=64, spacing=3.6, slices=8, test=2)
    for kind, folder in (("mr", "train_mr"), ("ct", "test_ct"), ("ct_mr", "test_mr")):
        (place / "scans").mkdir(exist_ok=True)
        shutil.copytree(place / "heads" / folder, place / "scans" / kind)
    shutil.copytree(ROOT / "configs", place / "configs")
    return place


def commands_of(page: str) -> list[list[str]]:
    """The commands of a page's blocks, each as its words, with SHORTER trainings."""
    blocks = re.findall(r"^ *```\n(.*?)^ *```", text_of(page), re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    for pattern, shorter in SHORTER:
        lines = [re.sub(pattern, shorter, line) for line in lines]
    return [shlex.split(line) for line in lines if line.startswith("contourdiff ")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "known"),
    [
        ("README.md", ("inspect", "prepare", "train", "translate", "evaluate", "report")),
        ("docs/for_students.md", ("inspect", "prepare", "train", "translate")),
        ("docs/volumes.md", ("prepare", "train", "translate")),
    ],
)
def test_commands_run_as_they_are_printed(page, known, scans, tmp_path, monkeypatch):
    """One after the other, in a folder with the scans; each leaves what it says it writes."""
    for name in ("scans", "configs"):
        (tmp_path / name).symlink_to(scans / name)
    monkeypatch.chdir(tmp_path)
    ran, first = [], sorted(Path("scans/ct").iterdir())[0]
    for words in commands_of(page):
        words = [word.replace("scans/ct/p01.nii.gz", str(first)) for word in words]
        assert cli.main(words) == 0, words
        ran.append(words[1])
        for word in words:
            flag, _, place = word.partition("=")
            assert flag not in ("--out", "--workdir") or Path(place).exists(), words
    assert tuple(ran) == known
