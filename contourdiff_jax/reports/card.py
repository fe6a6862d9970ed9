# SPDX-License-Identifier: Apache-2.0
"""A run's model card: one page of Markdown on what it is, what for, and where it fails."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import contourdiff_jax
from contourdiff_jax.contracts import CONTOUR, PICTURE, SOURCE, About
from contourdiff_jax.data import pseudonyms
from contourdiff_jax.data.store import SPLITS, Store, open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import records, verdict
from contourdiff_jax.evaluation.metrics import bootstrap, catalogue
from contourdiff_jax.evaluation.records import Record
from contourdiff_jax.reports import page, tables
from contourdiff_jax.runtime import disk
from contourdiff_jax.training.run import Run, load
from contourdiff_jax.translation.sidecars import NOTICE

KEPT = 0.8  # of a label's contrast; a label that keeps less is named
NOT_STATED = "not stated"
USE = (
    "Research on image translation: pictures of {target} with the anatomy of another modality's, "
    "for example to train segmentation, where the contours of the source show what is needed. Not "
    "for diagnosis, treatment, or any decision about a patient."
)
INCEPTION = (
    "InceptionV3 of 2015-12-05 as pytorch-fid distributes it, Apache-2.0; it scores the images and "
    "is no part of the model"
)
COLUMNS = ("translation", "curve", "mean", "truth", "real", "lower", "upper")  # methods shown


def card(
    run_folder,
    out,
    evaluations=(),
    *,
    store=None,
    checkpoint: str | int = "last",
    licence: str | None = None,
    data_licence: str | None = None,
    use: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the card of a run to `out`, a Markdown file.

    Args:
      run_folder: made by train or import.
      evaluations: evaluation folders or metrics.json files, of this run's translations.
      store: the store that it was trained on, for what it holds.
      checkpoint: that the card is of: "last", "best" or a step.
      licence, data_licence: of the run's weights and of the data, as their owner states them.
      use: what the model is meant for; by default research, and not diagnosis.
      overwrite: replace a card of that name.

    Returns the card's path. Raises InputError for what is not a run, its store or an evaluation.
    """
    run_folder, out = Path(run_folder), Path(out)
    if out.suffix.lower() != ".md":
        raise InputError(f"{out}: name the card .md")
    disk.check_is_new(out, overwrite, NOTICE)
    trained = load(run_folder)
    training_store = None if store is None else _open_store(store, trained)
    weights = functools.cache(lambda: _weights(run_folder, trained, checkpoint))
    scores = [_read_scores(Path(path), trained, weights) for path in evaluations]
    target = trained.preset.modality.upper()
    data = _data(trained, training_store) | {"licence of the data": data_licence or NOT_STATED}
    licences = {"code": "Apache-2.0", "weights of this run": licence or NOT_STATED}
    if any("weights" in record.metrics["data"] for record in scores):
        licences["weights behind KID and FID"] = INCEPTION
    parts = [
        f"# Model card: {_cell(run_folder.resolve().name)}",
        f"> **{NOTICE}**",
        f"{_kind(trained)}, of contourdiff_jax {contourdiff_jax.__version__}.",
        "## Intended use",
        use or USE.format(target=target),
        "## Data",
        _table(data),
        "## Training",
        _table(_training(run_folder, trained) | _checkpoint(run_folder, trained, checkpoint)),
        "## Scores",
        *map(_scores, scores),
        *([] if scores else ["None: no evaluation was given."]),
        "## Known failures",
        "\n".join(f"- {_cell(line)}" for line in known_failures(scores, trained)),
        "## Licences",
        _table(licences),
    ]
    disk.write(out, "\n\n".join(parts) + "\n")
    return out


# ----------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------


def _open_store(path, trained: Run) -> Store:
    """The store of a run; InputError for another one."""
    store = open_store(path)
    scheme = pseudonyms.scheme_of(trained.subjects)
    subjects = pseudonyms.made(store.subjects("train"), scheme)
    if subjects != trained.subjects or store.grid != trained.grid:
        raise InputError(
            f"{path}: not the store that the run was trained on: it has another grid, or other "
            f"training subjects"
        )
    return store


def _weights(folder: Path, trained: Run, which: str | int) -> str:
    """The digest of the averaged weights of a run's checkpoint."""
    from contourdiff_jax import methods  # it takes a second, as JAX does
    from contourdiff_jax.runtime import mesh as meshes
    from contourdiff_jax.training import checkpoint

    one = meshes.local(1)
    players = methods.build(trained, mesh=one).players
    _, averages = checkpoint.averages(folder, players, one, which)
    return checkpoint.digest(averages, trained.marks)


def _read_scores(path: Path, trained: Run, weights: Callable[[], str]) -> Record:
    """An evaluation of a run's translations; InputError for one of other translations."""
    path = path / "metrics.json" if path.is_dir() else path
    record = records.read(path)
    target = record.metrics["data"].get("target preset", trained.preset.name)
    if target != trained.preset.name:
        raise InputError(f"{path}: scores of {target}, but the run draws {trained.preset.name}")
    scored = record.metrics["data"].get(records.WEIGHTS)
    if scored and scored != weights():
        raise InputError(
            f"{path}: scores of another model, or of this run before it was trained further; "
            f"translate and evaluate again"
        )
    return record


# ----------------------------------------------------------------------------------------------
# Sections
# ----------------------------------------------------------------------------------------------


def _about(trained: Run) -> About:
    """What is to be said of its method."""
    from contourdiff_jax import methods  # it takes a second, as JAX does

    return methods.about(trained.config.method)


def _kind(trained: Run) -> str:
    """What a run draws, from what, and how."""
    target, seen = trained.preset.modality.upper(), trained.config.model.conditions
    source = "the image of the source"
    if PICTURE.name in seen:
        source = "their contours and the grey picture in which these are sought"
    elif SOURCE.name not in seen:
        source = "their contours alone"
    elif CONTOUR.name in seen:
        source += " and their contours"
    if not seen:
        source = "nothing, the base of a ControlNet or what another run begins with"
    about = _about(trained)
    drawn = "slices" if trained.config.model.dims == 2 else "whole volumes"
    return f"{about.kind} that draws {drawn} of {target} from {source}, {about.how}"


def _data(trained: Run, store: Store | None) -> dict[str, str]:
    grid = trained.grid
    fields = {
        "modality": trained.preset.modality.upper(),
        "intensities": trained.preset.described(trained.window),
        "grid": f"{grid.axis}, {grid.size} x {grid.size} px of {grid.spacing:g} mm{grid.every}",
        "subjects trained on": f"{len(trained.subjects)}" if trained.subjects else NOT_STATED,
    }
    if store is None:
        return fields
    for split in SPLITS:
        rows = store.rows(split)
        count = len(np.unique(store.index["volume"][rows]))
        if count:
            fields[f"{split} split"] = (
                f"{_many(len(store.subjects(split)), 'subject')}, {_many(count, 'volume')}, "
                f"{_many(len(rows), 'slice')}"
            )
    files = sorted(set(store.index["sha256"].tolist()))
    digest = hashlib.sha256("\n".join(files).encode()).hexdigest()
    fields["fingerprint"] = f"{digest[:16]}, of the SHA-256 of {_many(len(files), 'file')}"
    return fields


def _training(folder: Path, trained: Run) -> dict[str, str]:
    config, about = trained.config, _about(trained)
    model, train = config.model, config.train
    adam = "AdamW" if train.weight_decay else "Adam"
    fields = {
        "network": f"{about.network(config)}, sees {', '.join(model.conditions) or 'nothing'}",
        **_parameters(trained),
        **about.training(config),
    }
    if trained.codec:
        fields["learnt in"] = (
            f"latents of an autoencoder, weights {trained.codec.digest[:16]}: one for "
            f"{trained.codec.side} x {trained.codec.side} pixels, times {trained.codec.scale:.4g}"
        )
    if trained.base:
        fields["base"] = f"weights {trained.base[:16]}, which are not learnt"
    if trained.prompt:
        fields["prompt"] = trained.prompt.text or "no words"
    if trained.teacher:
        fields["teacher"] = (
            f"weights {trained.teacher[:16]}, {_many(config.distillation.substeps, 'step')} of "
            f"theirs learnt as one"
        )
    stats = page.read_stats(folder / "stats.jsonl")
    if not stats:  # of an imported run
        return fields | {"training": "not recorded"}
    last = stats[-1]
    fields["optimiser"] = f"{adam}, learning rate {train.learning_rate:g}, batch {train.batch}"
    seconds = f" in {last['seconds'] / 60:,.1f} minutes" if "seconds" in last else ""
    fields["trained for"] = f"{last['images']:,} images of {train.images:,}{seconds}"
    losses = [line["heldout_loss"] for line in stats if "heldout_loss" in line]
    if losses:
        fields["held-out loss"] = f"{losses[-1]:.4g}, at best {min(losses):.4g}"
    return fields | page.measured(config.method, stats)


def _checkpoint(folder: Path, trained: Run, which: str | int) -> dict[str, str]:
    """Which checkpoint the card is of; nothing where the run has none, or was imported."""
    from contourdiff_jax.training import checkpoint  # it takes a second, as JAX does

    if which == checkpoint.LAST and not any(checkpoint.steps(folder)):
        return {}
    step = checkpoint.chosen(folder, which)
    loss = checkpoint.losses(folder).get(step)
    held_out = "" if loss is None else f", held-out loss {loss:.4g}"
    images = step * trained.config.train.batch
    return {"checkpoint": f"of step {step:,}, after {images:,} images{held_out}"}


def _parameters(trained: Run) -> dict[str, str]:
    """How many parameters each network that the run holds has, in all and in its parts."""
    from contourdiff_jax import methods, models  # they take a second, as JAX does

    return {
        f"parameters of the {player}": f"{models.count(params):,}: "
        + ", ".join(f"{part} {models.count(inside):,}" for part, inside in params.items())
        for player, params in methods.networks(trained).items()
    }


def _scores(record: Record) -> str:
    """The headline of an evaluation, and what a translation cost."""
    metrics = record.metrics
    methods = {column: metrics["methods"].get(column, {}) for column in COLUMNS}
    measured = dict.fromkeys(name for scores in methods.values() for name in scores)
    headline = catalogue.headlines(measured, *catalogue.FIRST)
    shown = [column for column in COLUMNS if any(name in methods[column] for name in headline)]
    lines = [["", *shown], ["---"] * (len(shown) + 1)]
    for metric in headline:
        entries = [methods[column].get(metric) for column in shown]
        cells = ["–" if entry is None else bootstrap.text(entry) for entry in entries]
        lines.append([_cell(catalogue.directed(metric)), *cells])
    subjects = max((entry["n"] for entry in methods["translation"].values()), default=0)
    source = str(metrics["data"].get("source preset") or "a source that is not named").upper()
    return "\n\n".join(
        (
            f"### {_cell(record.name)}: from {_cell(source)}, {_many(subjects, 'subject')}",
            "\n".join(f"| {' | '.join(line)} |" for line in lines),
            f"Mean of the subjects, with 95% intervals over them.{_cost(metrics['cost'])}",
        )
    )


def _cost(cost: dict) -> str:
    if not cost:
        return ""
    a_slice, a_volume = (cost[f"seconds a {unit}"]["value"] for unit in ("slice", "volume"))
    text = f" Translated in {a_slice:.3g} s a slice, {a_volume:.3g} s a volume"
    size = cost.get("device_bytes") or cost.get("host_bytes")
    if size:
        text += f", with {tables.gibibytes(size)} of memory"
    return f"{text}."


def known_failures(evaluations: list[Record], trained: Run) -> list[str]:
    """Where the model is known to fail, a sentence each."""
    tested = "every source but those scored above" if evaluations else "every source"
    if SOURCE.name in trained.config.model.conditions:
        lines = ["What the image shows beyond the source is made up."]
        source = trained.source_preset
        kind = "pairs" if trained.paired else "unpaired images"
        learnt = f"{kind} of {source.modality.upper()} and" if source else "sources and"
        learnt += f" {trained.preset.modality.upper()}"
    elif PICTURE.name in trained.config.model.conditions:
        lines = [
            "The source is seen as a grey picture, and not by its contours alone. What the image "
            "shows beyond that picture is made up, and so is how bright each tissue is: in "
            "training the picture was the target's own, in other greys."
        ]
        learnt = f"contours and pictures of {trained.preset.modality.upper()}"
    else:
        lines = [
            "What the source's contours do not show cannot be in the image, and what the image "
            "shows without them is made up."
        ]
        learnt = f"contours of {trained.preset.modality.upper()}"
    lines.append(
        f"Training saw {learnt} alone; {tested} is untested, as are other anatomy, scanners and "
        f"ages than those of the data."
    )
    lines += filter(None, [_about(trained).fails])
    memory_measured = False
    for name, metrics, *_ in evaluations:
        ours, truth = (metrics["methods"].get(method, {}) for method in ("translation", "truth"))
        for failures in (_contours, _contrasts, _flicker, _memory):
            lines += [f"{name}: {sentence}" for sentence in failures(ours, truth)]
        lines += [f"{name}: {sentence}" for sentence in verdict.unbeaten(metrics["methods"])]
        failed = len(metrics["data"].get("failed", ()))
        if failed:
            lines.append(f"{name}: {failed} of the volumes could not be scored.")
        memory_measured |= "memory_distance" in ours
    if not memory_measured:
        lines.append("Whether it repeats training slices was not measured.")
    return lines


def _contours(ours: dict, truth: dict) -> Iterator[str]:
    """Contours that are missing, and those that nobody asked for."""
    if "contour_recall" not in ours or "contour_precision" not in ours:
        return
    missing, added = (
        f"{1 - ours[name]['value']:.1%}"
        + (f" (of the truth: {1 - truth[name]['value']:.1%})" if name in truth else "")
        for name in ("contour_recall", "contour_precision")
    )
    yield (
        f"{missing} of the source's contours are missing in the translation; {added} of the "
        f"translation's were not asked for."
    )


def _contrasts(ours: dict, truth: dict) -> Iterator[str]:
    """Labels that lose much of what makes them stand out."""
    lost = []
    for name, entry in truth.items():
        label = catalogue.label(name, "contrast_label_{label}")
        if label is not None and name in ours:
            kept = ours[name]["value"] / (entry["value"] or np.inf)
            if kept < KEPT:
                lost.append(f"label {label} {kept:.0%}")
    if lost:
        yield f"contrast is lost; of the truth's, {', '.join(lost)} are left."


def _flicker(ours: dict, truth: dict) -> Iterator[str]:
    """Slices that fit together less well than the truth's."""
    if "flicker" in ours and "flicker" in truth:
        flicker, right = (scores["flicker"]["value"] for scores in (ours, truth))
        if flicker > right:
            yield f"slices flicker by {flicker:.3f} of the window, the truth's by {right:.3f}."


def _memory(ours: dict, truth: dict) -> Iterator[str]:
    """How much nearer its slices come to training slices than unseen real ones do."""
    if "memory_closer_ratio" in ours:
        yield (
            f"its slices resemble one training subject more than unseen real slices do with a "
            f"chance of {bootstrap.text(ours['memory_closer_ratio'])}; 0.5 where nothing is "
            f"remembered."
        )


# ----------------------------------------------------------------------------------------------
# Markdown
# ----------------------------------------------------------------------------------------------


def _table(fields: dict[str, str]) -> str:
    lines = [f"| {name} | {_cell(text)} |" for name, text in fields.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _cell(text: str) -> str:
    """Text in one line, escaped so that it ends no cell and is no HTML, link or other markup."""
    text = re.sub(r"([\\`*|]|\](?=[(\[:]))", r"\\\1", " ".join(text.split()))
    return text.replace("<", "&lt;")


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
