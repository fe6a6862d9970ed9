# SPDX-License-Identifier: Apache-2.0
"""Methods, one file each: what a method learns and how it draws. Here they are built and trained.

A method is added by a file with a function `build` and a line in METHODS (CONTRIBUTING.md).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax import config_files
from contourdiff_jax.contracts import About, Method, Params
from contourdiff_jax.data.store import Store, open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import (
    autoencoder,
    codecs,
    controlnet,
    cyclegan,
    diffusion,
    distilled,
    origins,
    parts,
    pix2pix,
    regression,
    segmentation,
)
from contourdiff_jax.methods.origins import Origins
from contourdiff_jax.models import unet
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.runtime import ownership, processes
from contourdiff_jax.training import checkpoint, loop, recipe, run, sinks
from contourdiff_jax.training.run import Run

OWN = "own"  # config.method of one that is none of these
# By config.method.
METHODS: dict[str, ModuleType] = {
    "diffusion": diffusion,
    "distilled": distilled,
    "controlnet": controlnet,
    "regression": regression,
    "pix2pix": pix2pix,
    "cyclegan": cyclegan,
    "autoencoder": autoencoder,
    "segmentation": segmentation,
}


def build(ours: Run, *, store: Store | None = None, mesh: Mesh | None = None, **how) -> Method:
    """The method of a run, to train on a store or, without one, to draw.

    Args:
      mesh: the devices to use; without it those that fit the configuration's batches.
      how: what this method's own `build` takes besides: `sampler`, a section to draw with in place
        of the run's own; `teacher`, a run to learn from; `source`, a store of the source;
        `perceptual`, see autoencoder.Perceptual.

    Raises:
      InputError: a field that cannot work, named.
    """
    if ours.build is not None:
        return ours.build(ours, store=store, mesh=mesh, **how)
    _check_known(ours.config.method)
    return METHODS[ours.config.method].build(ours, store=store, mesh=mesh, **how)


def about(name: str) -> About:
    """What a model card says of a method; of one without an ABOUT, its name."""
    plain = About(f"A model of the method {name}", "as it was configured")
    return getattr(METHODS.get(name), "ABOUT", plain)


def _check_known(name: str) -> None:
    if name not in METHODS:
        raise InputError(
            f"config.method: {name!r} is not one of {', '.join(METHODS)}; where it is your own, "
            "give what builds it from Python, by `method`"
        )


def train(
    config: ConfigDict | str | Path | None,
    store: str | Path,
    workdir: str | Path,
    *,
    images: int | None = None,
    minutes: float | None = None,
    init: str | Path | None = None,
    teacher: str | Path | None = None,
    source_store: str | Path | None = None,
    codec: str | Path | None = None,
    base: str | Path | None = None,
    perceptual: autoencoder.Perceptual | None = None,
    method: Callable[..., Method] | None = None,
    verified: bool = True,
) -> bool:
    """Train until `config.train.images` have been seen; returns whether that was reached.

    Args:
      config: see config.py; a file of one, or the name of one of the package's (config_files.py);
        None: that of the run in the folder, or else the defaults.
      images: to see in all, with the settings that suit so many (training/recipe.py).
      minutes: likewise, as many as are seen in that time on this machine.
      store: folder made by `prepare`; its 'train' split is learnt, its 'val' split held out.
      workdir: folder of the run; where it holds a run of the same configuration, that is resumed.
        All processes must see the same folder.
      init: a run whose averaged weights to begin with, and its codec and prompt, if it has them.
      teacher: a run whose averaged weights to begin with and to learn from, see `distillation` in
        config.py; needed when the run is resumed, too.
      source_store: a store of the source, for a method that learns from both without pairs.
      codec: a run of an autoencoder whose latents are learnt, or of such latents. A copy of it
        becomes part of the run, which is resumed without it.
      base: for a ControlNet, the run of diffusion that it shows contours, with its codec and its
        prompt; likewise.
      perceptual: for an autoencoder, a network by whose features images are compared.
      method: what builds a method of your own, or one of the package's otherwise, as a `build` of
        methods/ does: functools.partial(diffusion.build, network=..). The run is to be loaded with
        it; config.method is a name for it, `own` unless it is another than those of METHODS.
      verified: whether to read the whole store first and compare it with its digests.

    Raises:
      InputError: one of these that cannot be used; a loss that is not finite.
    """
    if minutes is not None and images is not None:
        raise InputError("--minutes and --images: each says how long to train; give one of them")
    for name, amount in (("images", images), ("minutes", minutes)):
        if amount is not None and not 0 < amount < math.inf:
            raise InputError(f"--{name}: {amount} must be above 0")
    if isinstance(config, str | Path):
        config = config_files.read(config_files.found(str(config)))
    read = {"store": store, "init": init, "teacher": teacher, "source_store": source_store}
    read |= {"codec": codec, "base": base}
    ownership.check_apart("workdir", workdir, read)
    workdir = Path(workdir)
    begun = bool(processes.told(lambda: "yes" if run.exists(workdir) else ""))
    before = run.load(workdir) if begun else None
    if config is None:
        config = before.config if begun else configuration.default()
    if teacher and config.method == "diffusion":
        config = configuration.from_dict(config.to_dict() | {"method": "distilled"})
    if method is not None and config.method in METHODS:
        config = configuration.replaced(config, {"method": OWN})
    if method is None:
        _check_known(config.method)
    meshes.check_devices()
    asked = configuration.changes(config)
    if images or minutes:
        config = _budgeted(config, before, images)
    given = Origins(*(Path(it) if it else None for it in (codec, base, init, teacher)))
    if (theirs := origins.of(config, before, given)) is not None:
        config = origins.adopted(config, theirs)
    configuration.check(config)
    sinks.check(config.train.log_to)
    if config.method == "distilled" and not teacher:
        raise InputError("--teacher and --config.distillation.substeps: each needs the other")
    if teacher and config.method != "distilled":
        raise InputError("--teacher: a network of diffusion alone learns from one; leave it out")
    if (config.method in configuration.UNPAIRED) != bool(source_store):
        raise InputError(
            f"--source_store and config.method={' or '.join(configuration.UNPAIRED)}: each needs "
            f"the other"
        )
    if teacher and init:
        raise InputError("--init: a network begins with the weights of its teacher; leave it out")
    if config.method == "segmentation":
        raise InputError("config.method: segmenters are trained by `contourdiff segment`")
    how = {"teacher": Path(teacher)} if teacher else {}
    if not begun:
        configuration.check_idle(config, asked)
    opened = processes.together(lambda: run.opened(Path(store), verified))
    if source_store:
        how["source"] = processes.together(lambda: run.opened(Path(source_store), verified))
    if perceptual is not None:
        how["perceptual"] = perceptual
    fields = origins.parts(config, before, given, opened)
    side = fields["codec"].side if fields.get("codec") else 1
    configuration.check_size(config, opened.grid.size, side)
    fields["build"] = method
    ours = run.begin(config, opened, source=how.get("source"), before=before, **fields)
    built = build(ours, store=opened, **how)  # and refuse what cannot be, before there is a folder
    if minutes and not begun:
        config = _in_time(built, config, minutes, asked)
        ours = dataclasses.replace(ours, config=config)
        built = build(ours, store=opened, **how)
    if teacher:
        ours = dataclasses.replace(ours, teacher=checkpoint.digest(built.start))

    def kept() -> Method:
        own = dataclasses.replace(ours, parts=parts.keep(ours.parts, workdir))
        built = build(own, store=opened, **how)
        return dataclasses.replace(built, feed=codecs.kept(own, built.feed, workdir))

    return continued(ours, built, workdir, init=init, kept=kept if ours.parts else None)


def _budgeted(config: ConfigDict, before: Run | None, images: int | None) -> ConfigDict:
    """The configuration for so many images; of a run that has begun, its own with these.

    Without `images`, a new run's follows from the time (`_in_time`).
    """
    asked = configuration.changes(config)
    if before is None:
        return config if images is None else recipe.fitted(config, images, asked)
    asked.pop("train.images", None)  # it goes on to those of the run, or to `images`
    config = configuration.replaced(before.config, asked)
    if images is not None:
        config.train.images = recipe.in_batches(config, images)
    return config


def _in_time(method: Method, config: ConfigDict, minutes: float, asked) -> ConfigDict:
    """The configuration for as many images as the method sees in that time here."""
    program = loop.compiled(method, config.train)
    speed = loop.images_per_second(method, program, config.train, seed=config.seed)
    speed = float(processes.told(lambda: repr(speed)))
    config = recipe.fitted(config, 60 * minutes * speed, asked)
    if processes.is_main():
        print(f"{speed:.1f} images/s here: {minutes:g} minutes are {config.train.images:,} images")
    return config


def continued(
    ours: Run,
    method: Method,
    workdir: Path,
    *,
    init: str | Path | None = None,
    kept: Callable[[], Method] | None = None,
    compiled: loop.Compiled | None = None,
    name: str | None = None,
) -> bool:
    """Train the method of a run in its folder, from where it stopped; see `train`.

    Args:
      kept: what makes the method with parts from the run's folder, once that is claimed; in place
        of `method`.
      compiled: the program of a method with the same step, so as not to compile it again.
      name: see loop.train.
    """

    def ready(method: Method) -> tuple[loop.Compiled, Mapping[str, Params] | None]:
        program = compiled or loop.compiled(method, ours.config.train)
        if init and not checkpoint.exists(workdir):
            return program, _begun(Path(init), ours, method)
        return program, method.start

    if kept is None:
        program, start = ready(method)
    with run.claimed(workdir, ours) as check:
        if kept is not None:
            method = kept()
            program, start = ready(method)
        return loop.train(
            method,
            program,
            ours.config.train,
            workdir,
            seed=ours.config.seed,
            start=start,
            name=name,
            check=check,
        )


def _begun(init: Path, ours: Run, method: Method) -> dict[str, Params]:
    """What the players of a run begin with: the averages of another.

    Of a network of diffusion that saw less, the first convolution is widened by zeros.
    """
    theirs = run.load(init)
    ours_see, they_see = (tuple(each.config.model.conditions) for each in (ours, theirs))
    _, averages = checkpoint.averages(init, build(theirs, mesh=method.mesh).players, method.mesh)
    both = {theirs.config.method, ours.config.method} <= {"diffusion"}
    both &= theirs.config.model.dims == ours.config.model.dims
    if not both or they_see == ours_see or they_see != ours_see[: len(they_see)]:
        _check_same(averages, method, init)
        return averages
    wanted = jax.eval_shape(method.players[parts.NETWORK].init, jax.random.key(0))
    inputs = wanted["conv_in"]["kernel"].shape[-2]
    pixels = ours.config.model.patch**2
    widened = jax.jit(
        functools.partial(unet.widened, channels=inputs, pixels=pixels),
        out_shardings=meshes.shardings(method.mesh, wanted),
    )
    return {parts.NETWORK: widened(averages[parts.NETWORK])}


def _check_same(averages: Mapping[str, Params], method: Method, init: Path) -> None:
    """Raise InputError where weights are not those of a method's networks."""
    for name, params in averages.items():
        if name not in method.players:
            raise InputError(f"{init}: has a network {name}, which the configuration has not")
        wanted = jax.eval_shape(method.players[name].init, jax.random.key(0))
        checkpoint.check_shapes(params, wanted, str(init))


def networks(ours: Run) -> dict[str, Params]:
    """The parameters of each network that a run holds, as ShapeDtypeStructs.

    They are those of its players, and beside them "codec" and "base" where it has one.
    """
    players = build(ours, mesh=meshes.local()).players
    key = jax.random.key(0)
    learnt = {name: jax.eval_shape(player.init, key) for name, player in players.items()}
    base = controlnet.network_of(ours).base if ours.base else None
    return learnt | parts.networks(ours, base=base)


def images_per_second(config: ConfigDict, store: str | Path, *, steps: int = 4) -> float:
    """Training speed on this machine: the median of a few steps, input included."""
    opened = open_store(store)
    method = build(run.begin(config, opened), store=opened)
    compiled = loop.compiled(method, config.train)
    return loop.images_per_second(method, compiled, config.train, seed=config.seed, steps=steps)
