# SPDX-License-Identifier: Apache-2.0
"""Methods, one file each: what a method learns and how it draws. Here they are built and trained.

A method is added by a file with a function `build` and a line in METHODS (CONTRIBUTING.md).
"""

import dataclasses
import functools
from pathlib import Path
from types import ModuleType

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
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
    parts,
    pix2pix,
    regression,
    segmentation,
)
from contourdiff_jax.models import unet
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.runtime import ownership, processes
from contourdiff_jax.training import checkpoint, loop, run
from contourdiff_jax.training.run import Run

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
    _check_known(ours.config.method)
    return METHODS[ours.config.method].build(ours, store=store, mesh=mesh, **how)


def about(name: str) -> About:
    """What a model card says of a method; of one without an ABOUT, its name."""
    plain = About(f"A model of the method {name}", "as it was configured")
    return getattr(METHODS.get(name), "ABOUT", plain)


def _check_known(name: str) -> None:
    if name not in METHODS:
        raise InputError(f"config.method: {name!r} is not one of {', '.join(METHODS)}")


def train(
    config: ConfigDict,
    store: str | Path,
    workdir: str | Path,
    *,
    init: str | Path | None = None,
    teacher: str | Path | None = None,
    source_store: str | Path | None = None,
    codec: str | Path | None = None,
    base: str | Path | None = None,
    perceptual: autoencoder.Perceptual | None = None,
    verified: bool = True,
) -> bool:
    """Train until `config.train.images` have been seen; returns whether that was reached.

    Args:
      config: see config.py.
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
      verified: whether to read the whole store first and compare it with its digests.

    Raises:
      InputError: one of these that cannot be used; a loss that is not finite.
    """
    read = {"store": store, "init": init, "teacher": teacher, "source_store": source_store}
    read |= {"codec": codec, "base": base}
    ownership.check_apart("workdir", workdir, read)
    if teacher and config.method == "diffusion":
        config = configuration.from_dict(config.to_dict() | {"method": "distilled"})
    _check_known(config.method)
    asked = configuration.changes(config)
    if origin := base or init:
        config = _adopted(config, run.load(Path(origin)))
    configuration.check(config)
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
    meshes.check_devices()
    workdir, how = Path(workdir), {"teacher": Path(teacher)} if teacher else {}
    begun = bool(processes.told(lambda: "yes" if run.exists(workdir) else ""))
    if not begun:
        configuration.check_idle(config, asked)
    opened = processes.together(lambda: run.opened(Path(store), verified))
    if source_store:
        how["source"] = processes.together(lambda: run.opened(Path(source_store), verified))
    if perceptual is not None:
        how["perceptual"] = perceptual
    before = run.load(workdir) if begun else None
    begins = _begins(config, before, {"codec": codec, "base": base, "init": init}, opened)
    known = begins.get("codec")
    configuration.check_size(config, opened.grid.size // (known.side if known else 1))
    ours = run.begin(config, opened, source=how.get("source"), before=before, **begins)
    method = build(ours, store=opened, **how)
    if teacher:
        ours = dataclasses.replace(ours, teacher=checkpoint.digest(method.start))
    return continued(ours, method, workdir, init=init)


def _begins(
    config: ConfigDict, before: Run | None, given: dict[str, str | Path | None], store: Store
) -> dict:
    """Fields of a run that say of which parts it is made; see run.begin.

    Args:
      before: the run where it is there already: it has all its parts.
      given: runs by their flags, or None: of a run that begins, its parts are theirs.
    """
    codec, base, init = (Path(given[n]) if given[n] else None for n in ("codec", "base", "init"))
    stepwise, branched = (
        config.method in methods for methods in (configuration.STEPS, configuration.BRANCHED)
    )
    if codec and (not stepwise or branched):
        raise InputError(f"--codec: the space that diffusion learns in, not {config.method}")
    if before is not None:
        if codec and codecs.chosen(codec, store) != before.codec:
            raise InputError(f"{codec}: another codec than the run has begun with; leave it out")
        return {name: getattr(before, name) for name in ("codec", "prompt", "base", "parts")}
    if branched != bool(base):
        raise InputError("--base and config.method=controlnet: each needs the other")
    fields, paths = {}, {}
    origin = base or init if stepwise else None
    if base:
        fields["base"], paths[run.BASE] = controlnet.chosen(config, base), base
    theirs = run.load(origin) if origin else None
    if codec or (theirs and theirs.codec):
        chosen = codec or origin
        fields["codec"], paths[run.CODEC] = codecs.chosen(chosen, store), codecs.place(chosen)
    if theirs and theirs.prompt:
        fields["prompt"], paths[run.PROMPT] = theirs.prompt, origin / run.PROMPT
    return fields | {"parts": paths}


def _adopted(config: ConfigDict, theirs: Run) -> ConfigDict:
    """A configuration with the sections of the run of latents that it begins with.

    Such a run knows the network, its process and how it is drawn with, by guidance too, which needs
    conditions that are dropped. A section that is not at its defaults is left as it is; what the
    network sees is always the configuration's own.
    """
    if theirs.codec is None or config.method not in configuration.STEPS:
        return config
    fields, usual = config.to_dict(), configuration.default().to_dict()
    for section in ("model", "diffusion", "sampler"):
        seen = {name: v for name, v in fields[section].items() if name == "conditions"}
        if fields[section] == usual[section] | seen:
            fields[section] = theirs.config[section].to_dict() | seen
    dropout = "condition_dropout"
    fields["train"][dropout] = fields["train"][dropout] or theirs.config.train[dropout]
    return configuration.from_dict(fields)


def continued(
    ours: Run,
    method: Method,
    workdir: Path,
    *,
    init: str | Path | None = None,
    compiled: loop.Compiled | None = None,
    name: str | None = None,
) -> bool:
    """Train the method of a run in its folder, from where it stopped; see `train`.

    Args:
      compiled: the program of a method with the same step, so as not to compile it again.
      name: see loop.train.
    """
    compiled, start = compiled or loop.compiled(method, ours.config.train), method.start
    if init and not checkpoint.exists(workdir):
        start = _begun(Path(init), ours, method)
    with run.claimed(workdir, ours) as check:
        if processes.is_main():
            parts.keep(ours.parts, workdir)
        return loop.train(
            method,
            compiled,
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
    both = {theirs.config.method, ours.config.method} <= {"diffusion"}
    if not both or they_see == ours_see or they_see != ours_see[: len(they_see)]:
        return checkpoint.averages(init, method.players, method.mesh)[1]
    players = build(theirs, mesh=method.mesh).players
    _, averages = checkpoint.averages(init, players, method.mesh)
    wanted = jax.eval_shape(method.players[parts.NETWORK].init, jax.random.key(0))
    inputs = wanted["conv_in"]["kernel"].shape[-2]
    widened = jax.jit(
        functools.partial(unet.widened, channels=inputs),
        out_shardings=meshes.shardings(method.mesh, wanted),
    )
    return {parts.NETWORK: widened(averages[parts.NETWORK])}


def networks(ours: Run) -> dict[str, Params]:
    """The parameters of each of a run's players, as ShapeDtypeStructs."""
    players = build(ours, mesh=meshes.local()).players
    key = jax.random.key(0)
    return {name: jax.eval_shape(player.init, key) for name, player in players.items()}


def images_per_second(config: ConfigDict, store: str | Path, *, steps: int = 4) -> float:
    """Training speed on this machine: the median of a few steps, input included."""
    opened = open_store(store)
    method = build(run.begin(config, opened), store=opened)
    compiled = loop.compiled(method, config.train)
    return loop.images_per_second(method, compiled, config.train, seed=config.seed, steps=steps)
