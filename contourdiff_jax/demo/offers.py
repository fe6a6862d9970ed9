# SPDX-License-Identifier: Apache-2.0
"""Offers: runs that visitors translate with; each is loaded and compiled once.

What is drawn and written is what `contourdiff translate` draws and writes: an offer adds that its
network is kept, and that someone is told how far it is.
"""

import dataclasses
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from contourdiff_jax import config as configuration
from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.demo import uploads
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.training import run as runs
from contourdiff_jax.training.run import Run
from contourdiff_jax.translation import folder as translation
from contourdiff_jax.translation import volume
from contourdiff_jax.translation.folder import Network, Request
from contourdiff_jax.translation.outputs import MAPS
from contourdiff_jax.translation.sidecars import Settings
from contourdiff_jax.translation.volume import SourceVolume
from contourdiff_jax.volumes import filenames
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed

MOST_SAMPLES = 8


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a visitor asks for.

    Attributes:
      modality: of the image, 'ct' or 'mr'.
      contours: settings that they changed; None: those of `contourdiff translate`.
      samples: how many are drawn of every slice; with several come maps of where they differ.
      seed: of the noise.
      assumed: what a picture does not say itself; of anything else it counts for nothing.
    """

    modality: str
    contours: ContourSettings | None = None
    samples: int = 1
    seed: int = 0
    assumed: Assumed = UNKNOWN

    def __post_init__(self):
        for name, value, most in (
            ("samples", self.samples, MOST_SAMPLES),
            ("seed", self.seed, configuration.SEEDS - 1),
        ):
            low = int(name == "samples")
            if type(value) is not int or not low <= value <= most:
                raise InputError(f"{name}: {value!r} must be a whole number from {low} to {most}")


class Made(NamedTuple):
    """The files of a translation."""

    image: Path
    sidecar: Path
    maps: dict[str, Path]  # by name
    whole: Path | None  # a zip of all of these, where there are maps


class Offer:
    """A run that visitors may choose.

    Attributes:
      folder: of the run.
      run: what it was made with.
      stepwise: whether it draws step by step, so that its samples differ.
    """

    def __init__(self, folder: str | Path, steps: int | None = None):
        """
        Args:
          steps: of sampling, for all visitors, if the run takes any; default: its own.

        Raises:
          InputError: no run, or none that draws so.
        """
        self.folder, self.run = Path(folder), runs.load(Path(folder))
        self.stepwise = self.run.config.method in configuration.STEPS
        self._sampler = {"steps": steps} if steps and self.stepwise else {}
        self._networks: dict[bool, Network] = {}  # by the direction of a run that has two
        self._loading = threading.Lock()
        translation.asked(self.request(Path("image"), Path("out"), Wish(self.run.preset.modality)))

    def request(self, source: Path, out: Path, wish: Wish) -> Request:
        """What `contourdiff translate` is asked for; changed contours are kept beside `out`."""
        changed = None
        if wish.contours is not None:
            changed = out.with_name("contours.json")
            disk.write_json(changed, wish.contours.to_dict())
        return Request(
            self.folder,
            source,
            out,
            preset=self._preset(wish.modality),
            assumed=wish.assumed if filenames.suffix_of(source) in filenames.PICTURES else UNKNOWN,
            contours=changed,
            sampler=self._sampler | ({"samples": wish.samples} if wish.samples > 1 else {}),
            seed=wish.seed,
        )

    def read(self, request: Request) -> tuple[SourceVolume, Settings]:
        """The image of a request as the network is shown it; InputError for what cannot be one."""
        trained, config, settings = translation.asked(request)
        found = uploads.scan(Path(request.source), settings.source.modality, request.assumed)
        network = self._network(trained, config.sampler, request)
        plan = translation.planned(trained, config.sampler, settings, request, network)
        return volume.read(plan, found), settings

    def translate(self, request: Request, told: Callable[[int], None]) -> Made:
        """Draw and write what is asked for.

        Args:
          told: is called with the number of batches drawn so far, and may raise to end it.
        """

        def watched(*asked) -> Network:
            network = self._network(*asked)
            draw = _counted(network.translator.draw, told)
            return network._replace(translator=dataclasses.replace(network.translator, draw=draw))

        result = translation.translate(request, watched)
        (image,), out = result.done, Path(request.out)
        (sidecar,) = disk.entries(out, "*.json")
        maps = {path.parent.name: path for path in disk.entries(out, f"{MAPS}/*/*.nii.gz")}
        whole = None
        if maps:  # beside what it holds, or it would swallow itself without end
            whole = Path(shutil.make_archive(f"{out.parent / sidecar.stem}_all", "zip", out))
        return Made(image, sidecar, maps, whole)

    def batches(self, slices: int, samples: int) -> int:
        """How many batches so many samples of so many slices are, each drawn for itself."""
        config = self.run.config
        return samples * (1 if config.model.dims == 3 else math.ceil(slices / config.sampler.batch))

    def _preset(self, modality: str) -> str:
        """The intensities of a source: what the run learnt from, if it is of that modality."""
        run = self.run
        known = [run.source_preset, run.source_window and run.preset]  # the second: of two ways
        return next((it.name for it in known if it and it.modality == modality), modality)

    def _network(self, trained: Run, sampler, request: Request) -> Network:
        with self._loading:
            if trained.backward not in self._networks:
                made = translation.network(trained, sampler, request)
                self._networks[trained.backward] = made
            return self._networks[trained.backward]


def _counted(draw: Callable, told: Callable[[int], None]) -> Callable:
    """`draw`, which tells after each call how many there were."""
    count = 0

    def counting(*arguments):
        nonlocal count
        drawn = draw(*arguments)
        drawn.block_until_ready()
        count += 1
        told(count)
        return drawn

    return counting
