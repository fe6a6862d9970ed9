# SPDX-License-Identifier: Apache-2.0
"""Scoring a folder of translations against their truth and the contours they were made from."""

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from contourdiff_jax import figures
from contourdiff_jax.data.layouts import pairs
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import baselines, cases, records, scores, unpaired
from contourdiff_jax.evaluation.cases import Case, Settings
from contourdiff_jax.evaluation.metrics import bootstrap, paired
from contourdiff_jax.evaluation.metrics import uncertainty as ranking
from contourdiff_jax.runtime import disk, processes
from contourdiff_jax.translation import sidecars as cost
from contourdiff_jax.translation.sidecars import NOTICE
from contourdiff_jax.volumes.grid import AXES, planes_across
from contourdiff_jax.volumes.masks import extent
from contourdiff_jax.volumes.volume import Assumed

PANELS = 8  # subjects that are drawn


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The content of metrics.json, and the files that could not be scored with the reason."""

    metrics: dict
    failed: list[tuple[Path, str]]


def evaluate(
    translated,
    out,
    *,
    truth=None,
    real=None,
    source=None,
    masks=None,
    labels=None,
    uncertainty=None,
    preset: str | None = None,
    source_preset: str | None = None,
    grid: str = "source",
    conventions: str | None = None,
    distances: unpaired.Options | None = None,
    memorisation=None,
    seed: int = 0,
    overwrite: bool = False,
) -> Evaluation | None:
    """Scores a folder of translated volumes: metrics.json, rows.csv and pictures in `out`.

    Of several processes each takes the features of a part of the volumes for --features; all else
    the main one does, and the others return None.

    Args:
      translated: folder made by `contourdiff translate`, or by another tool.
      out: folder to write.
      truth: folder with the true target volumes on the translations' own grids.
      real: folder with target volumes of other subjects, for the baselines and distances.
      source: folder with the volumes that were translated.
      masks: folder with body masks; else they are computed from the source, or from the truth.
      labels: folder with label maps, for errors inside each label.
      uncertainty: folder with standard deviations of the translations, in their native units.
      preset, source_preset: the target's and the source's, for translations without sidecars.
      grid: 'source' compares at the volumes' own resolution, 'model' on the model's grid.
      conventions: 'synthrad' scores whole volumes as that challenge does, too.
      distances: what to measure the distance from the real volumes by, None for not at all.
      memorisation: the store that the run was trained on, to look for copies of its slices.
      seed: of the bootstrap.
      overwrite: replace an evaluation of that name.

    Raises InputError when nothing can be scored, or when a subject to be scored was trained on.
    """
    out = Path(out)
    if all(given is None for given in (truth, source, distances, memorisation)):
        raise InputError(
            "nothing to compare with: give --truth, --source or both, --features or --memorisation"
        )
    if distances is not None and distances.features in unpaired.NETWORKS and real is None:
        features = distances.features
        raise InputError(f"--features={features} compares with the volumes of --real; give them")
    for name, folder in (("labels", labels), ("uncertainty", uncertainty)):
        if folder is not None and truth is None:
            raise InputError(f"--{name} is about errors, which need --truth")
    if conventions is not None and truth is None:
        raise InputError("--conventions is about errors, which need --truth")
    for flag, value, known in (
        ("grid", grid, scores.GRIDS),
        ("conventions", conventions, (None, *scores.CHALLENGES)),
    ):
        if value not in known:
            raise InputError(f"--{flag}={value}: known are {', '.join(filter(None, known))}")
    _check_free(out, overwrite)
    given = {"truth": truth, "source": source, "masks": masks}
    given |= {"labels": labels, "uncertainty": uncertainty}
    given = {name: folder for name, folder in given.items() if folder is not None}

    # Read: what there is to score, and in which terms.
    failed = []
    scans = pairs.by_name(translated, failed=failed)
    sidecars, damaged = cases.read_sidecars(scans)
    failed += damaged
    settings = cases.common_settings(scans, sidecars, preset, source_preset, "source" in given)
    # Pictures of a translation are as large as those of its source, and so are those of the truth.
    assumed = Assumed(settings.assumed.spacing)
    scans = {name: dataclasses.replace(scan, assumed=assumed) for name, scan in scans.items()}
    understood = {
        "truth": (settings.target.modality, assumed),
        "source": (settings.source and settings.source.modality, settings.assumed),
        "masks": (None, assumed),
        "labels": (None, assumed),
        "uncertainty": (None, assumed),
    }
    partners = {what: pairs.by_name(folder, *understood[what]) for what, folder in given.items()}
    pairing = processes.is_main() and not (truth is None and source is None)
    to_pair = list(sidecars) if pairing else []
    learned = None
    if real is not None and to_pair:
        scored_subjects = {scans[name].subject for name in sidecars}
        learned = baselines.learn(real, scored_subjects, settings)
        failed += learned.failed
    far = None
    if distances is not None:
        measured = {name: scans[name] for name in sidecars}
        far = unpaired.measure(
            distances, measured, sidecars, partners.get("source"), real, settings, grid, seed
        )
        failed += far.failed
    if not processes.is_main():  # only features take so long that several do better
        return None
    memory = None
    if memorisation is not None:
        from contourdiff_jax.evaluation import (
            memorisation as memories,  # with JAX, it takes a second
        )

        measured = {name: scans[name] for name in sidecars}
        truths = partners.get("truth")
        memory = memories.measure(memorisation, measured, sidecars, truths, settings, seed)
        failed += memory.failed

    with _new_folder(out, overwrite) as folder:
        # Score: subject by subject.
        rows, scored, beside, curves = [], [], [], []
        for subject in tqdm(to_pair, desc="evaluate", unit="volume", disable=None):
            try:
                case = cases.read(scans[subject], sidecars[subject], partners, settings)
                alike = baselines.alike(case, learned)
                coherence = [followed for _, _, followed in alike]
                methods = baselines.methods(case, learned)
                rows += scores.rows(case, methods, grid, coherence, conventions is not None)
            except InputError as error:
                failed.append((scans[subject].path, str(error)))
                continue
            scored.append(subject)
            beside += [real for real in alike if real not in beside]
            if len(scored) <= PANELS:
                (folder / "panels" / f"{subject}.png").write_bytes(figures.png(_panel(case)))
                (folder / "views" / f"{subject}.png").write_bytes(figures.png(_views(case)))
            if case.deviation is not None:
                curves.append(ranking.sparsification(*scores.ranked(case)))
        if to_pair and not scored:
            raise InputError(
                f"{translated}: none of {len(scans)} volumes could be scored: {failed[0][1]}"
            )

        rows += [
            (subject, scores.WHOLE, "real", metric, value, None)
            for subject, _, followed in beside
            for metric, value in followed.items()
            if value is not None
        ]

        # Summarise and write.
        options = {"real": real, "preset": preset, "source_preset": source_preset, "grid": grid}
        options |= {"conventions": conventions, "memorisation": memorisation}
        slices = {row[:2] for row in rows if row[1] != scores.WHOLE}
        data = {"subjects": scored or list(sidecars), "slices": len(slices)}
        models = sorted({known.weights for known in sidecars.values() if known and known.weights})
        data |= {records.WEIGHTS: ", ".join(models)} if models else {}
        data |= _description(settings, given, grid, seed)
        data |= {
            f"of --{what} without a translation": alone
            for what in ("truth", "source")
            if (alone := sorted(partners.get(what, {}).keys() - scans.keys()))
        }
        if learned is not None:
            data |= {"real volumes of the baselines": learned.count}
            data |= {"real volumes left out": learned.left_out} if learned.left_out else {}
            data |= {"real volumes of the same gaps": len(beside)}
        if conventions is not None:
            data |= {conventions: scores.challenge_description(settings)}
        whose = {name: scan.subject for name, scan in scans.items()}
        data |= records.several(whose)
        methods = records.summarise(rows, seed, whose)
        for also in (far, memory):
            if also is not None:
                data |= also.data
                both = methods | also.methods
                methods = {m: methods.get(m, {}) | also.methods.get(m, {}) for m in both}
        if far is not None:
            options |= {name: value for name, value in vars(distances).items() if value}
            if distances.statistics:
                far.save(folder / "statistics")
        if memory is not None:
            memory.save(folder)
        failed = list(dict.fromkeys(failed))
        data |= {"failed": [reason for _, reason in failed]} if failed else {}
        metrics = {
            "schema": records.SCHEMA,
            "notice": NOTICE,
            "command": _command(translated=translated, **given, **options, seed=seed, out=out),
            "versions": records.versions(),
            "data": data,
            "methods": methods,
            "cost": cost.cost_summary(sidecars.values()),
        }
        records.write(folder, metrics, rows)
        curves = [curve for curve in curves if curve[0] is not None]
        if curves:
            figure = figures.sparsification(ranking.REMOVED, np.array(curves))
            (folder / "sparsification.png").write_bytes(figures.png(figure))
    return Evaluation(metrics, failed)


# ----------------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------------


def _seen(case: Case, *, on_grid: bool) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Images in [0, 1] by name, and the absolute error where there is a truth.

    They are slices on the model's grid, or the volumes themselves.
    """
    columns = {}
    for name, preset in (
        ("source", case.settings.source),
        ("translation", case.settings.target),
        ("truth", case.settings.target),
    ):
        values = getattr(case, name)
        if values is not None:
            shown = case.resampling.slices(values, preset.air) if on_grid else values
            columns[name] = preset.image.fraction(shown)
    if case.truth is None:
        return columns, None
    return columns, np.abs(columns["translation"] - columns["truth"])


def _panel(case: Case) -> Figure:
    """The subject's panel: slices on the model's grid, spread over the body."""
    columns, error = _seen(case, on_grid=True)
    if case.source is not None:
        columns = {"source": columns["source"], "contours": case.condition} | columns
    numbers = np.linspace(*extent(case.body), figures.PANEL_ROWS + 2)[1:-1]
    numbers = np.unique(numbers.round().astype(int))
    return figures.panel(
        f"{case.subject} · {case.settings.grid.axis} · {NOTICE}",
        {name: slices[numbers] for name, slices in columns.items()},
        None if error is None else error[numbers],
        case.resampling.positions[numbers],
    )


def _views(case: Case) -> Figure:
    """Planes through the middle of the body across the slices, on the volume's own voxels."""
    columns, error = _seen(case, on_grid=False)
    rows = []
    for axis in scores.reformatted_axes(case.settings):
        middle = sum(extent(planes_across(axis, case.mask))) // 2

        def cut(volume, axis=axis, middle=middle):
            return planes_across(axis, volume)[middle]

        height, width = case.spacing[list(AXES[axis][1:])]
        pictures = {name: cut(values) for name, values in columns.items()}
        rows.append((axis, pictures, None if error is None else cut(error), height / width))
    return figures.views(f"{case.subject} · {NOTICE}", rows)


def _description(settings: Settings, given: dict, grid: str, seed: int) -> dict:
    """What was compared, and how, in words that a report can print."""
    axis, spacing, size = dataclasses.astuple(settings.grid)
    image = settings.target.image
    data = {
        "source preset": settings.source and settings.source.name,
        "target preset": settings.target.name,
        "model grid": f"{axis}, {size} x {size} px of {spacing:g} mm",
        "interval": f"{bootstrap.LEVEL:.0%} percentile bootstrap of the mean over subjects, "
        f"{bootstrap.RESAMPLES} resamples, seed {seed}",
    }
    if "truth" in given or "source" in given:
        data |= {
            "body mask": "given"
            if "masks" in given
            else f"computed from the {'source' if 'source' in given else 'truth'}",
            "slices scored inside the body": "those that show at least "
            f"{scores.LEAST_BODY:.0%} of it",
            "coherence along the axis": "on the model's grid, inside the body, in fractions of the "
            "intensity window; unevenly spaced slices are interpolated to even ones first; ratios "
            f"are to real volumes whose gaps differ by at most {baselines.SAME_GAP:.0%}",
        }
    if "truth" in given:
        data |= {
            "reformatted planes": f"at most {scores.PLANES} in each direction, spread over the "
            "body, on the volume's own voxels; ssim on square pixels of the finer spacing",
            "body and labels": "mae, psnr and bias (mean of translation - truth) over the voxels "
            f"of a volume; contrast is with the most frequent label within {scores.AROUND:g} mm",
            "grid of the comparison": "the source's own"
            if grid == "source"
            else "the model's: truth, source and translation resampled to it",
            "intensities": f"preset values {image.low:g} to {image.high:g} scaled to [0, 1]; "
            "truth through its own volume's window, translation through the run's",
            "ssim": f"uniform window of {paired.SSIM_WINDOW} x {paired.SSIM_WINDOW}, "
            "sample covariance, data range 1",
            "psnr": f"data range 1, at most {paired.PSNR_CAP:g} dB",
        }
    if "source" in given:
        data |= {
            "contours": f"on the model's grid, within {scores.TOLERANCE} px of those of the source",
            "contour settings": {name: used.to_dict() for name, used in settings.contours.items()},
        }
    return data


def _command(**arguments) -> str:
    given = [f"--{name}={value}" for name, value in arguments.items() if value is not None]
    return shlex.join(["contourdiff", "evaluate", *given])


def _check_free(out: Path, overwrite: bool) -> None:
    """InputError where nothing may be written: only an evaluation is ever replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "metrics.json").is_file():
        raise InputError(f"{out}: exists and is not an evaluation; give another --out")
    if not overwrite:
        raise InputError(f"{out}: exists already; pass --overwrite to replace it")


@contextlib.contextmanager
def _new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write to that becomes `out` when all went well, and vanishes when not."""
    with disk.folder(out, lambda path: _check_free(path, overwrite)) as partial:
        for pictures in ("panels", "views"):
            (partial / pictures).mkdir()
        yield partial
