# SPDX-License-Identifier: Apache-2.0
"""Scoring a folder of translations against their truth and the contours they were made from.

A `Request` says what is compared. It is answered in four steps: read what belongs together, score
volume by volume, summarise over subjects, write.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from contourdiff_jax import figures
from contourdiff_jax.config import SEEDS
from contourdiff_jax.data.layouts import pairs, scans
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import baselines, cases, records, scores, unpaired
from contourdiff_jax.evaluation.baselines import Baselines
from contourdiff_jax.evaluation.cases import Case, Translations
from contourdiff_jax.evaluation.metrics import bootstrap, catalogue, paired, uncertainty
from contourdiff_jax.evaluation.records import Outcome
from contourdiff_jax.runtime import disk, ownership, processes
from contourdiff_jax.translation import sidecars
from contourdiff_jax.translation.sidecars import NOTICE
from contourdiff_jax.volumes import io
from contourdiff_jax.volumes.grid import AXES, planes_across
from contourdiff_jax.volumes.masks import extent
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed

MOST_SHIFT = 10  # mm; what is farther off is not registered
PANELS = 8  # volumes that are drawn
MADE = "an evaluation"  # by which the folder of one is known
READ = ("translated", "truth", "source", "real")  # of images, each understood in its own way
PARTNERS = ("truth", "source", "masks", "labels", "uncertainty")  # pair up with translations
Folder = str | Path


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a folder of images is understood: see `layouts.find`; the spacing is the request's."""

    layout: str = "auto"
    select: str | None = None
    assumed: Assumed = UNKNOWN

    def given(self) -> dict:
        """What is said of it, by the names of flags."""
        fields = {"layout": self.layout, "select": self.select, **self.assumed.to_dict()}
        del fields["spacing"]
        return {name: v for name, v in fields.items() if v is not None and v != "auto"}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be scored, and how; fields that are one value are flags of the command."""

    translated: Folder  # made by `contourdiff translate`, or by another tool
    out: Folder
    truth: Folder | None = None  # true target volumes on the translations' own grids
    real: Folder | None = None  # target volumes of other subjects, for baselines and distances
    source: Folder | None = None  # the volumes that were translated
    masks: Folder | None = None  # of bodies; by default computed from the source, or the truth
    labels: Folder | None = None  # label maps, for errors inside each label
    uncertainty: Folder | None = None  # standard deviations of translations, in their native units
    preset: str | None = None  # of translations without sidecars
    source_preset: str | None = None  # of their sources
    grid: str = "source"  # compares on the volumes' own voxels, 'model' on the model's grid
    conventions: str | None = None  # 'synthrad' scores whole volumes as that challenge does, too
    distances: unpaired.Options | None = None  # from the real volumes, and by which features
    memorisation: Folder | None = None  # store that the run was trained on, to look for copies
    shift: float = 0.0  # mm to which truths are registered: scores at the best place near by, too
    seed: int = 0  # of the bootstrap
    overwrite: bool = False  # an evaluation of that name
    # One's own, by name: (image, truth, body) [H, W] of a slice -> number, or None. Images are HU,
    # or of MR fractions of the volume's window.
    metrics: Mapping[str, scores.Own] = dataclasses.field(default_factory=dict)
    pixel_spacing: float | None = None  # mm, of pictures, where no sidecar says it
    # How folders of READ are understood. Pictures of real are as those of the truth, and those of
    # translations lie as their sources, of which sidecars tell, where nothing else is said.
    readings: Mapping[str, Reading] = dataclasses.field(default_factory=dict)

    @property
    def partners(self) -> dict[str, Folder]:
        """The folders of PARTNERS that are given."""
        folders = {name: getattr(self, name) for name in PARTNERS}
        return {name: folder for name, folder in folders.items() if folder is not None}

    def reading(self, name: str) -> Reading:
        """How a folder of READ is understood."""
        return self.readings.get(name, Reading())

    @property
    def compares(self) -> bool:
        """Whether each translation is compared with volumes of its own."""
        return self.truth is not None or self.source is not None

    @property
    def features(self) -> str | None:
        """The network whose features distances are measured by; None of a file, or of none."""
        features = self.distances and self.distances.features
        return features if features in unpaired.NETWORKS else None

    def check(self) -> None:
        """InputError for a request without an answer, and for a part of it that changes nothing."""
        for name, known in (("grid", scores.GRIDS), ("conventions", (None, *scores.CHALLENGES))):
            if getattr(self, name) not in known:
                value, names = getattr(self, name), ", ".join(filter(None, known))
                raise InputError(f"--{name}={value}: known are {names}")
        apart = self.distances is None and self.memorisation is None
        on_grid = self.truth is not None or self.features == "inception"
        for wrong, message in (
            (
                not 0 <= self.seed < SEEDS,
                f"--seed={self.seed} must be at least 0 and below {SEEDS}",
            ),
            (
                apart and not self.compares,
                "nothing to compare with: give --truth, --source or both, --features or "
                "--memorisation",
            ),
            (
                self.features and self.real is None,
                f"--features={self.features} compares with the volumes of --real; give them",
            ),
            *(
                (
                    self.truth is None and getattr(self, name) is not None,
                    f"--{name} is about errors, which need --truth",
                )
                for name in ("labels", "uncertainty", "conventions")
            ),
            (
                self.metrics and self.truth is None,
                "metrics: your own compare with the truth; give `truth`",
            ),
            *(
                (
                    catalogue.of(name) is not catalogue.UNKNOWN,
                    f"metrics: {name} is one of ours; take another name",
                )
                for name in self.metrics
            ),
            (not 0 <= self.shift <= MOST_SHIFT, f"--shift={self.shift:g}: 0 to {MOST_SHIFT} mm"),
            (self.shift and self.truth is None, "--shift is that of the truth; give --truth"),
            *(
                (
                    getattr(self, name) is None and not (name == "truth" and self.real is not None),
                    f"--{name}_{flag}: it is of --{name}; give that too, or leave it out",
                )
                for name in READ
                for flag in self.reading(name).given()
            ),
            (
                self.masks is not None and not self.compares,
                "--masks: nothing is compared inside them without --truth or --source",
            ),
            (
                self.real is not None and not self.compares and not self.features,
                "--real is for baselines, which need --truth or --source, and for --features of a "
                "network",
            ),
            (
                self.grid != "source" and not on_grid,
                f"--grid={self.grid} is where images are compared, with --truth or by "
                "--features=inception",
            ),
        ):
            if wrong:
                raise InputError(message)
        if self.distances is not None:
            self.distances.check()

    def command(self) -> str:
        """The command line of the same request."""
        names = ("real", "preset", "source_preset", "grid", "conventions", "memorisation")
        names += ("pixel_spacing",)
        options = {"translated": self.translated} | self.partners
        options |= {name: getattr(self, name) for name in names}
        options |= {"shift": self.shift} if self.shift else {}
        for name in READ:
            for flag, value in self.reading(name).given().items():
                options[f"{name}_{flag}"] = list(value) if isinstance(value, tuple) else value
        options |= {} if self.distances is None else self.distances.flags()
        return records.command("evaluate", options | {"seed": self.seed, "out": self.out})


def evaluate(request: Request) -> Outcome | None:
    """Scores a folder of translated volumes: metrics.json, rows.csv and pictures in `request.out`.

    Of several processes each takes the features of a part of the volumes; all else the main one
    does, and the others return None.

    Raises InputError when nothing can be scored, or when a subject to be scored was trained on.
    """
    request.check()
    out, seed = Path(request.out), request.seed
    read = ("translated", "real", "memorisation", *PARTNERS)
    ownership.check_apart("out", out, {name: getattr(request, name) for name in read})
    ownership.check_is_free(out, MADE, request.overwrite)
    translations = _read(request)
    learned = distances = memory = None
    if request.real is not None and request.compares and processes.is_main():
        learned = baselines.learn(request.real, translations)
    if request.distances is not None:
        distances = unpaired.measure(
            request.distances, translations, request.real, request.grid, seed
        )
    if not processes.is_main():  # only features take so long that several do better
        return None
    if request.memorisation is not None:
        from contourdiff_jax.evaluation import memorisation  # with JAX, it takes a second

        memory = memorisation.measure(request.memorisation, translations, seed)

    with ownership.folder(out, MADE, request.overwrite) as folder:
        for pictures in ("panels", "views"):
            (folder / pictures).mkdir()
        compared = _Compared()
        if request.compares:
            compared = _compare(request, translations, learned, folder)
        parts = [p for p in (translations, learned, distances, memory, compared) if p is not None]
        failed = list(dict.fromkeys(failure for part in parts for failure in part.failed))
        subject_of = translations.subject_of
        if request.compares and not compared.names:
            raise InputError(
                f"{request.translated}: none of {len(subject_of)} volumes could be scored: "
                f"{failed[0][1]}"
            )
        data = _data(request, translations, learned, compared)
        methods = records.summarise(compared.rows, seed, subject_of)
        for part in (distances, memory):
            if part is not None:
                data |= part.data
                names = methods | part.methods
                methods = {m: methods.get(m, {}) | part.methods.get(m, {}) for m in names}
        metrics = records.content(request.command(), data, methods, failed)
        metrics["cost"] = sidecars.cost_summary(translations.sidecars.values())
        records.write(folder, metrics, compared.rows)
        if compared.curves:
            figure = figures.sparsification(uncertainty.REMOVED, np.array(compared.curves))
            (folder / "sparsification.png").write_bytes(figures.png(figure))
        if distances is not None and request.distances.statistics:
            distances.save(folder / "statistics")
        if memory is not None:
            memory.save(folder)
    return Outcome(metrics, failed)


def _read(request: Request) -> Translations:
    """The translations that can be scored, with their partners and settings."""
    failed = []
    given = {
        name: dataclasses.replace(request.reading(name).assumed, spacing=request.pixel_spacing)
        for name in READ
    }
    translated = pairs.by_name(
        request.translated,
        None,
        given["translated"],
        failed,
        translations=True,
        **_chosen(request, "translated"),
    )
    readable, damaged = cases.read_sidecars(translated)
    settings = cases.common_settings(
        translated, readable, request.preset, request.source_preset, request.source is not None
    )
    of_source = _told(settings.assumed, given["source"])
    # Pictures of a translation are as large as those of its source, and lie as they do; so, where
    # nothing else is said, are those of the truth and of real volumes.
    beside = of_source.of_companions
    assumed = {
        "source": of_source,
        "translated": _filled(given["translated"], beside),
        "truth": _filled(given["truth"], beside),
    }
    alike = request.reading("real").assumed == UNKNOWN
    assumed["real"] = assumed["truth"] if alike else _filled(given["real"], beside)
    kinds = {"truth": settings.target.modality, "masks": "masks", "labels": "labels"}
    kinds["source"] = settings.source and settings.source.modality
    partners = {
        name: pairs.by_name(
            folder, kinds.get(name), assumed.get(name, beside), **_chosen(request, name)
        )
        for name, folder in request.partners.items()
    }
    for name, of in {"translated": translated, **partners}.items():
        said = request.reading(name).assumed if name in READ else UNKNOWN
        scans.check_assumed(of.values(), said, f"{name}_")
    every = [scan for of in (translated, *partners.values()) for scan in of.values()]
    if request.real is None:
        scans.check_assumed(every, Assumed(request.pixel_spacing))
    return Translations(
        {
            name: dataclasses.replace(translated[name], assumed=assumed["translated"])
            for name in readable
        },
        readable,
        dataclasses.replace(settings, assumed=of_source),
        partners,
        {name: scan.subject for name, scan in translated.items()},
        failed + damaged,
        {"assumed": assumed["real"], **_chosen(request, "real")},
    )


def _chosen(request: Request, name: str) -> dict:
    """Arguments of `pairs.by_name`: which scans of a folder are meant."""
    if name not in READ:
        return {}
    reading = request.reading(name)
    return {"layout": reading.layout, "select": reading.select, "prefix": f"{name}_"}


def _filled(said: Assumed, usual: Assumed) -> Assumed:
    """What is said, and else what is usual."""
    fields = {name: value for name, value in vars(said).items() if value is not None}
    return dataclasses.replace(usual, **fields)


def _told(recorded: Assumed, said: Assumed) -> Assumed:
    """What the sidecars say of the source, or else the flags; InputError where they differ."""
    for name, value in vars(said).items():
        known = getattr(recorded, name)
        if None not in (value, known) and value != known:
            flag = "pixel_spacing" if name == "spacing" else f"source_{name}"
            raise InputError(f"--{flag}: the sidecars say that it is {known}; leave it out")
    return _filled(recorded, said)


# ----------------------------------------------------------------------------------------------
# Scoring
# ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Compared:
    """Scores of translations beside volumes of their own.

    Attributes:
      rows: of rows.csv.
      names: of the scans that were scored.
      real: volumes of `Baselines.coherence` that any of them was compared with.
      curves: [2, F] of each scan's uncertainty, see `uncertainty.sparsification`.
      failed: (path, reason).
    """

    rows: list[tuple] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    real: list[tuple] = dataclasses.field(default_factory=list)
    curves: list[tuple] = dataclasses.field(default_factory=list)
    failed: list[tuple[Path, str]] = dataclasses.field(default_factory=list)


def _compare(
    request: Request, translations: Translations, learned: Baselines | None, folder: Path
) -> _Compared:
    """Scores volume by volume; of the first, pictures go to panels/ and views/ in `folder`."""
    compared = _Compared()
    for name, scan in tqdm(
        translations.scans.items(), desc="evaluate", unit="volume", disable=None
    ):
        with io.failures(scan.path, compared.failed):
            case = cases.read(
                scan, translations.sidecars[name], translations.partners, translations.settings
            )
            alike = baselines.alike(case, learned)
            rows = scores.rows(
                case,
                baselines.methods(case, learned),
                request.grid,
                [coherence for _, _, coherence in alike],
                request.conventions is not None,
                request.shift,
                request.metrics,
            )
            curve = None, None
            if case.deviation is not None:
                curve = uncertainty.sparsification(*scores.ranked(case))
            if len(compared.names) < PANELS:
                disk.write(folder / "panels" / f"{name}.png", figures.png(_panel(case)))
                disk.write(folder / "views" / f"{name}.png", figures.png(_views(case)))
            compared.names.append(name)
            compared.rows.extend(rows)
            compared.real.extend(real for real in alike if real not in compared.real)
            if curve[0] is not None:
                compared.curves.append(curve)
    compared.rows.extend(
        (subject, scores.WHOLE, "real", metric, value, None)
        for subject, _, coherence in compared.real
        for metric, value in coherence.items()
        if value is not None
    )
    return compared


# ----------------------------------------------------------------------------------------------
# Pictures
# ----------------------------------------------------------------------------------------------


def _images(case: Case, *, on_grid: bool) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
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
    """The volume's panel: slices on the model's grid, spread over the body."""
    columns, error = _images(case, on_grid=True)
    if case.source is not None:
        columns = {"source": columns["source"], "contours": case.condition} | columns
    numbers = np.linspace(*extent(case.body), figures.PANEL_ROWS + 2)[1:-1]
    numbers = np.unique(numbers.round().astype(int))
    return figures.panel(
        f"{case.name} · {case.settings.grid.axis} · {NOTICE}",
        {name: slices[numbers] for name, slices in columns.items()},
        None if error is None else error[numbers],
        case.resampling.positions[numbers],
    )


def _views(case: Case) -> Figure:
    """Planes through the middle of the body across the slices, on the volume's own voxels."""
    columns, error = _images(case, on_grid=False)
    rows = []
    for axis in scores.reformatted_axes(case.settings):
        middle = sum(extent(planes_across(axis, case.mask))) // 2

        def cut(volume, axis=axis, middle=middle):
            return planes_across(axis, volume)[middle]

        height, width = case.spacing[list(AXES[axis][1:])]
        pictures = {name: cut(values) for name, values in columns.items()}
        rows.append((axis, pictures, None if error is None else cut(error), height / width))
    return figures.views(f"{case.name} · {NOTICE}", rows)


# ----------------------------------------------------------------------------------------------
# The record
# ----------------------------------------------------------------------------------------------


def _data(
    request: Request, translations: Translations, learned: Baselines | None, compared: _Compared
) -> dict:
    """What was scored and how, in words that a report can print."""
    settings, subject_of = translations.settings, translations.subject_of
    slices = {row[:2] for row in compared.rows if row[1] != scores.WHOLE}
    data = records.subjects(compared.names or list(translations.scans), subject_of)
    data |= {"slices": len(slices)}
    weights = {sidecar.weights for sidecar in translations.sidecars.values() if sidecar} - {""}
    data |= {records.WEIGHTS: weights.pop()} if weights else {}
    data |= _description(request, translations)
    for name in ("truth", "source"):
        alone = sorted(translations.partners.get(name, {}).keys() - subject_of.keys())
        data |= {f"of --{name} without a translation": alone} if alone else {}
    if learned is not None:
        data |= {"real volumes of the baselines": learned.count}
        data |= {"real volumes left out": learned.left_out} if learned.left_out else {}
        data |= {"real volumes of the same gaps": len(compared.real)}
    if request.conventions is not None:
        data |= {request.conventions: scores.challenge_description(settings)}
    return data


def _origin_of_masks(request: Request, translations: Translations) -> str:
    """Where body masks are from, see `cases.read`."""
    if request.masks is not None:
        return "given"
    computed = f"computed from the {'truth' if request.source is None else 'source'}"
    sides = (translations.partners.get(side, {}) for side in ("source", "truth"))
    has = {name for side in sides for name, scan in side.items() if scan.mask is not None}
    if not has & translations.scans.keys():
        return computed
    return f"the layout's, else {computed}" if translations.scans.keys() - has else "the layout's"


def _description(request: Request, translations: Translations) -> dict:
    """How volumes were compared."""
    settings = translations.settings
    grid = settings.grid
    image = settings.target.image
    data = {
        "source preset": settings.source and settings.source.name,
        "target preset": settings.target.name,
        "model grid": f"{grid.axis}, {grid.size} x {grid.size} px of {grid.spacing:g} mm"
        f"{grid.every}",
        "interval": bootstrap.description(request.seed),
    }
    if request.compares:
        data |= {
            "body mask": _origin_of_masks(request, translations),
            "slices scored inside the body": "those that show at least "
            f"{scores.LEAST_BODY:.0%} of it",
            "coherence along the axis": "on the model's grid, inside the body, in fractions of the "
            "intensity window; unevenly spaced slices are interpolated to even ones first; ratios "
            f"are to real volumes whose gaps differ by at most {baselines.SAME_GAP:.0%}",
        }
    if request.truth is not None:
        data |= {
            "reformatted planes": f"at most {scores.PLANES} in each direction, spread over the "
            "body, on the volume's own voxels; ssim on square pixels of the finer spacing",
            "body and labels": "mae, psnr and bias (mean of translation - truth) over the voxels "
            f"of a volume; contrast is with the most frequent label within {scores.AROUND:g} mm",
            "grid of the comparison": "the source's own"
            if request.grid == "source"
            else "the model's: truth, source and translation resampled to it",
            "intensities": f"preset values {image.low:g} to {image.high:g} scaled to [0, 1]; "
            "truth through its own volume's window, translation through the run's",
            "ssim": f"uniform window of {paired.SSIM_WINDOW} x {paired.SSIM_WINDOW}, "
            "sample covariance, data range 1",
            "psnr": f"data range 1, at most {paired.PSNR_CAP:g} dB",
        }
    if request.source is not None:
        contours = {side: used.to_dict() for side, used in settings.contours.items()}
        data |= {
            "contours": f"on the model's grid, within {scores.TOLERANCE} px of those of the source",
            "contour settings": contours,
        }
    return data
