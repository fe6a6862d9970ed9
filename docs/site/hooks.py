# SPDX-License-Identifier: Apache-2.0
"""What the site has beside the pages of docs/: commands, the API, and links that work there.

MkDocs calls the functions whose names begin with `on_` (mkdocs.org, "Events").
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"(!?)\[([^\]]+)\]\(\.\./([^)\s]+)\)")  # a link out of docs/
CONTRIBUTING = "CONTRIBUTING.md"

# Pages of the API: their titles, and the modules whose public names they show.
PAGES = {
    "api.md": ("Python API", ("api", "errors", "contracts")),
    "extending.md": (
        "What methods, samplers and metrics are made of",
        (
            *("config", "volumes.volume", "volumes.grid", "contours.settings", "data.store"),
            *("diffusion.schedules", "diffusion.process", "diffusion.samplers"),
            *("diffusion.guidance", "data.feeds", "methods", "training.state"),
            *("evaluation.metrics.catalogue", "evaluation.metrics.paired"),
            *("evaluation.metrics.consistency", "evaluation.metrics.distribution"),
            *("evaluation.metrics.overlap", "evaluation.metrics.bootstrap"),
        ),
    ),
}


def on_config(config):
    """Pages that the navigation does not name are listed at its end."""
    known = str(config.nav)
    names = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    if more := [name for name in names if f"'{name}'" not in known]:
        config.nav.append({"More": more})
    return config


def on_files(files, config):
    """Adds the pages that are made of the package, and its style."""
    from mkdocs.structure.files import File

    pages = {name: _api(*page) for name, page in PAGES.items()}
    pages["commands.md"] = _commands()
    pages["site.css"] = ".md-grid { max-width: 84rem }"  # help is 100 characters wide
    pages[CONTRIBUTING.lower()] = (ROOT / CONTRIBUTING).read_text(encoding="utf-8")
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lets links out of docs/ be words; pictures from there are brought along."""
    from mkdocs.structure.files import File

    for mark, _, path in OUTSIDE.findall(markdown):
        if mark and files.get_file_from_path(path) is None:
            files.append(File(path, str(ROOT), config.site_dir, use_directory_urls=False))
    return OUTSIDE.sub(inside, markdown)


def inside(link: re.Match) -> str:
    """A link out of docs/ as it stands on the site, which has no other files of the repository."""
    mark, text, path = link.groups()
    if mark:
        return f"![{text}]({path})"
    if path == CONTRIBUTING:
        return f"[{text}]({path.lower()})"
    named = path.removeprefix("experiments/").startswith(text) or path.endswith(text)
    return f"`{path}`" if named else f"{text} (`{path}`)"


def _api(title: str, modules: tuple[str, ...]) -> str:
    return "\n\n".join((f"# {title}", *(f"::: contourdiff_jax.{name}" for name in modules)))


HELP = """
from contourdiff_jax import cli
for name in ("help", *cli.COMMANDS):
    print(end=f"\\0{name}\\n", flush=True)
    cli.main(["contourdiff", *dict.fromkeys((name, "--help"))])
"""


def _commands() -> str:
    """The help of every command, of one process: commands leave their mark on it."""
    there = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", HELP], env=there, check=True, capture_output=True)
    shown = (part.split("\n", 1) for part in done.stdout.decode().split("\0")[1:])
    parts = (f"## {name}\n\n```text\n{text.rstrip()}\n```" for name, text in shown)
    return "\n\n".join(("# Commands", *parts))
