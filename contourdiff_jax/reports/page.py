# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page about training runs and evaluations."""

import json
from html import escape
from pathlib import Path

import numpy as np

from contourdiff_jax import figures
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import records
from contourdiff_jax.evaluation.metrics import catalogue
from contourdiff_jax.evaluation.records import Record
from contourdiff_jax.reports import comparison, html, sections
from contourdiff_jax.runtime import disk, forms, ownership
from contourdiff_jax.training import logs
from contourdiff_jax.translation.sidecars import NOTICE

AXES = ("ssim_mask", "psnr_mask")  # of the figure of slices
FIGURES = "figures of a report"  # what their folder holds
SAMPLES = 3  # sample grids shown of a run, the last ones


def report(out, inputs, *, overwrite: bool = False) -> Path:
    """Writes the page `out` and its figures in the folder <stem>_figures beside it.

    Args:
      out: the .html file to write.
      inputs: run folders, evaluation folders and metrics.json files.
      overwrite: replace a report of that name and its figures.

    Returns the page's path. Raises InputError for an input that is none of these or is damaged.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: name the page .html")
    if not inputs:
        raise InputError("nothing to report: name run folders, evaluation folders or metrics.json")
    folder = out.with_name(f"{out.stem}_figures")
    disk.check_is_new(out, overwrite, NOTICE)
    ownership.check_is_free(folder, FIGURES, overwrite)
    evaluations, runs = _recognise(map(Path, inputs))
    written = [records.read(path) for path in evaluations]
    drawn = {}  # PNG files by their names
    parts = [_comparison(evaluations, written)]
    for number, record in enumerate(written, start=1):
        parts.append(_evaluation(record, f"{number:02d}", drawn))
    for number, run in enumerate(runs, start=len(written) + 1):
        parts.append(_run(run, f"{number:02d}", drawn))
    page = html.page("contourdiff report", NOTICE, [part for part in parts if part])
    with disk.file(out) as partial:
        partial.write_text(page, encoding="utf-8")
        with ownership.folder(folder, FIGURES, overwrite) as pictures:
            for name, png in drawn.items():
                (pictures / name).write_bytes(png)
    return out


def _recognise(inputs) -> tuple[list[Path], list[Path]]:
    """The files of evaluations and the folders of runs among paths, each in their order."""
    evaluations, runs = [], []
    for path in inputs:
        if path.is_file() and path.suffix == ".json":
            evaluations.append(path)
        elif (path / "metrics.json").is_file():
            evaluations.append(path / "metrics.json")
        elif (path / "config.json").is_file():
            runs.append(path)
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        else:
            raise InputError(
                f"{path}: neither a run (config.json) nor an evaluation (metrics.json)"
            )
    return evaluations, runs


# ----------------------------------------------------------------------------------------------
# Evaluations
# ----------------------------------------------------------------------------------------------


def _comparison(paths: list[Path], written: list[Record]) -> str:
    """The section that compares several evaluations; "" of fewer."""
    # A copy under another name has no rows to be compared by, and none is compared with itself.
    different = {
        path.resolve(): record
        for path, record in zip(paths, written, strict=True)
        if record.folder is not None
    }
    if len(different) < 2:
        return ""
    names = comparison.names(list(different))
    compared = [
        record._replace(name=name) for name, record in zip(names, different.values(), strict=True)
    ]
    every = dict.fromkeys(row["metric"] for record in compared for row in record.rows)
    return comparison.section(compared, catalogue.headlines(every, *catalogue.FIRST))


def _evaluation(record: Record, prefix: str, drawn: dict[str, bytes]) -> str:
    """The sections of an evaluation; the figures go to `drawn`, by names with that prefix."""
    measured = dict.fromkeys(row["metric"] for row in record.rows)
    headline = catalogue.headlines(measured, *catalogue.SCORES)
    drawings = {
        "subjects": figures.subjects(record.rows, {m: catalogue.directed(m) for m in headline}),
        "slices": figures.slices(record.rows, {name: catalogue.title(name) for name in AXES}),
    }
    pngs = {name: figures.png(figure) for name, figure in drawings.items() if figure is not None}
    drawn |= {f"{prefix}_{name}.png": png for name, png in pngs.items()}
    evaluation = sections.Evaluation(record.metrics, record.folder, pngs)
    parts = [section(evaluation) for section in sections.SECTIONS]
    title = f"<h2>Evaluation: {escape(record.name)}</h2>"
    return "\n".join([title, *(part for part in parts if part)])


# ----------------------------------------------------------------------------------------------
# Runs
# ----------------------------------------------------------------------------------------------


def _run(folder: Path, prefix: str, drawn: dict[str, bytes]) -> str:
    """The section of a training run."""
    config = forms.read(folder / "config.json", dict[str, object], "restore it from a copy")
    stats = read_stats(folder / "stats.jsonl")
    parts = [f"<h2>Training run: {escape(folder.resolve().name)}</h2>"]
    if stats:
        parts.append(f"<p>{escape(_progress(stats))}</p>")
        for words, value in measured(_method(config), stats).items():
            parts.append(f"<p>{escape(words)}: {value}</p>")
        figure = figures.curves(stats)
        if figure is not None:
            drawn[f"{prefix}_training.png"] = png = figures.png(figure)
            parts.append(html.picture(png, "Training, against the images seen."))
    samples = disk.entries(folder / "samples", "*.png")[-SAMPLES:]
    if samples:
        pictures = [
            html.picture(html.read_png(path), f"{path.stem.lstrip('0')} images") for path in samples
        ]
        parts.append(f'<h3>Samples</h3><div class="row">{"".join(pictures)}</div>')
        parts.append('<p class="note">From left: a slice, what is seen of it, what is drawn.</p>')
    text = json.dumps(config, indent=2, ensure_ascii=False)
    parts.append(html.details("Configuration", f"<pre>{escape(text)}</pre>"))
    return "\n".join(parts)


def read_stats(path: Path) -> list[dict]:
    """Lines of stats.jsonl; none without the file. A last line cut short by a kill is skipped."""
    if not path.is_file():
        return []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {disk.reason(error)}") from error
    stats = []
    for number, line in enumerate(lines, start=1):
        try:
            stats.append(forms.checked(forms.parsed(line), logs.FORM))
        except InputError as error:
            if number == len(lines):
                break
            raise InputError(f"{path}: line {number}: {error}; leave this run out") from None
    if not stats:
        raise InputError(f"{path}: empty, nothing was trained; leave this run out or train it")
    return stats


def _method(config: dict) -> str:
    """The method of a run, of its config.json; runs of earlier versions do not say."""
    fields = config.get("config")
    return str(fields.get("method", "")) if isinstance(fields, dict) else ""


def measured(method: str, stats: list[dict]) -> dict[str, str]:
    """What is measured of held-out images and belongs to what is said of a run, in words."""
    from contourdiff_jax import methods  # it takes a second, as JAX does

    found = {}
    for name, words in methods.about(method).measured.items():
        values = [line[name] for line in stats if name in line]
        found |= {words: f"{values[-1]:.4g}"} if values else {}
    return found


def _progress(stats: list[dict]) -> str:
    """One sentence on how far the run went."""
    speeds = [line["images_per_second"] for line in stats if "images_per_second" in line]
    speed = f", {np.median(speeds):,.3g} a second" if speeds else ""
    return f"{stats[-1]['images']:,} images seen{speed}."
