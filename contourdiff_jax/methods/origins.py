# SPDX-License-Identifier: Apache-2.0
"""Origins: what a run that begins takes of others, their parts and their settings.

A run may begin with the weights of another (`init`), learn in an autoencoder's space (`codec`),
show contours to a network that stays (`base`) or learn from one (`teacher`). What it needs of them
to be whole becomes its own (parts.py).
"""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax.data.store import Store
from contourdiff_jax.errors import InputError
from contourdiff_jax.methods import codecs, controlnet
from contourdiff_jax.training import run
from contourdiff_jax.training.run import BASE, CODEC, PROMPT, Run

SECTIONS = ("model", "diffusion", "sampler")  # that a run of latents knows


class Origins(NamedTuple):
    """Runs that another begins with, by their flags."""

    codec: Path | None = None
    base: Path | None = None
    init: Path | None = None
    teacher: Path | None = None

    @property
    def first(self) -> Path | None:
        """The one whose network it has."""
        return self.base or self.init or self.teacher


def adopted(config: ConfigDict, theirs: Run) -> ConfigDict:
    """A configuration with the settings of the run of latents, or of the base, that it begins with.

    Such a run knows its network, its process and how it is drawn with, by guidance too, which needs
    conditions that are dropped. A field that is not at its default is left as it is; what the
    network sees is always the configuration's own.

    Args:
      theirs: that run, or the run itself where it has begun.
    """
    fields, changed = config.to_dict(), configuration.changes(config)
    for section in SECTIONS:
        for name, value in theirs.config[section].to_dict().items():
            if name != "conditions" and f"{section}.{name}" not in changed:
                fields[section][name] = value
    if "train.condition_dropout" not in changed:
        fields["train"]["condition_dropout"] = theirs.config.train.condition_dropout
    return configuration.from_dict(fields)


def of(config: ConfigDict, before: Run | None, origins: Origins) -> Run | None:
    """The run whose settings a configuration adopts; None for none.

    Args:
      before: the run where it has begun.
    """
    if config.method not in configuration.STEPS:
        return None
    first = before or (run.load(origins.first) if origins.first else None)
    known = first is not None and (first.codec or first.base or (origins.base and before is None))
    return first if known else None


def parts(config: ConfigDict, before: Run | None, origins: Origins, store: Store) -> dict:
    """Fields of a run that say of which parts it is made; see run.begin.

    Args:
      before: the run where it has begun.

    Raises:
      InputError: an origin that cannot be one, or is another than the run has begun with.
    """
    stepwise, branched = (
        config.method in methods for methods in (configuration.STEPS, configuration.BRANCHED)
    )
    if origins.codec and (not stepwise or branched):
        raise InputError(f"--codec: the space that diffusion learns in, not {config.method}")
    if before is not None:
        return _again(config, before, origins)
    init = run.load(origins.init) if branched and origins.init else None
    if init is not None and init.base and not origins.base:
        fields = {name: getattr(init, name) for name in ("codec", "prompt", "base")}
        return fields | {"parts": init.parts}
    if branched != bool(origins.base):
        raise InputError("--base and config.method=controlnet: each needs the other")
    fields, paths = {}, {}
    if origins.base:
        fields["base"], paths[BASE] = controlnet.chosen(config, origins.base), origins.base
    first = origins.first if stepwise else None
    theirs = run.load(first) if first else None
    if origins.codec or (theirs and theirs.codec):
        chosen = origins.codec or first
        fields["codec"], paths[CODEC] = codecs.chosen(chosen, store), codecs.place(chosen)
    if theirs and theirs.prompt:
        fields["prompt"], paths[PROMPT] = theirs.prompt, first / PROMPT
    return fields | {"parts": paths}


def _again(config: ConfigDict, before: Run, origins: Origins) -> dict:
    """Those of a run that has begun, whose flags may be given again.

    What a kill kept from its folder is where it comes from, if that is named.
    """
    codec, base = origins.codec, origins.base
    if codec and (before.codec is None or codecs.identity(codec) != before.codec.digest):
        raise InputError(f"{codec}: another codec than the run has begun with; leave it out")
    if base and controlnet.chosen(config, base) != before.base:
        raise InputError(f"{base}: another base than the run has begun with; leave it out")
    first, paths = origins.first, dict(before.parts)
    if before.codec and CODEC not in paths and (codec or first):
        paths[CODEC] = codecs.place(codec or first)
    if before.base and BASE not in paths and base:
        paths[BASE] = base
    if before.prompt and PROMPT not in paths and first and (first / PROMPT).is_file():
        paths[PROMPT] = first / PROMPT
    fields = {name: getattr(before, name) for name in ("codec", "prompt", "base")}
    return fields | {"parts": paths}
