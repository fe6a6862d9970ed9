# SPDX-License-Identifier: Apache-2.0
"""Folders of Stable Diffusion as pipelines of diffusers save and load them.

The reference is diffusers 0.42 (pipelines/pipeline_utils.py) with transformers 5.24. Such a folder
has a model_index.json, which says what is in it: a folder for each network with its configuration
and its weights, one for the scheduler and one for the tokenizer. What a network is, and what its
parameters are called, is for the files beside this one.

    read(folder) -> Pipeline      configurations are checked against one another, weights by shape
    Part.params() -> parameters   weights are read
    write(folder, ..)             the inverse, tensor for tensor
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax import models
from contourdiff_jax.contracts import Params
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import (
    autoencoder_kl,
    clip_text,
    parameters,
    schedulers,
    tokenizer,
    unet2d_condition,
    weight_files,
)
from contourdiff_jax.interop.autoencoder_kl import Coder
from contourdiff_jax.interop.parameters import Words
from contourdiff_jax.interop.unet2d_condition import Branch, Network
from contourdiff_jax.models import autoencoder, clip, controlnet
from contourdiff_jax.models.clip import TextConfig
from contourdiff_jax.runtime import disk, forms

PLAIN = "StableDiffusionPipeline"
CONTROLLED = "StableDiffusionControlNetPipeline"
INSTRUCTED = "StableDiffusionInstructPix2PixPipeline"
# The networks of each; a text encoder may be missing where what it says of prompts is kept.
NEEDED = {
    PLAIN: ("unet", "vae"),
    CONTROLLED: ("unet", "vae", "controlnet"),
    INSTRUCTED: ("unet", "vae"),
}
# Without effect on what is drawn, but for the image encoder, which is of adapters.
UNNEEDED = ("safety_checker", "feature_extractor", "image_encoder")

INDEX, CONFIG = "model_index.json", "config.json"
SCHEDULER = "scheduler/scheduler_config.json"
# Files of a tokenizer that some version reads.
OF_TOKENIZER = (
    *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
REMEDY = "save the pipeline again"

Config = Network | Branch | Coder | TextConfig


class Part(NamedTuple):
    """A network of a pipeline, whose parameters are still in its files.

    Attributes:
      config: what it is.
      network: its functions: a models.Model, or what `build` of controlnet.py, autoencoder.py or
        clip.py makes.
      words: how its parameters are called there.
      found: where they are, see parameters.matched.
    """

    config: Config
    network: Any
    words: Words
    found: Params

    def params(self) -> Params:
        """The parameters, float32; InputError where they are not finite."""
        return parameters.read(self.words, self.found)


class Pipeline(NamedTuple):
    """A pipeline's folder.

    Attributes:
      kind: PLAIN, CONTROLLED or INSTRUCTED.
      unet, vae, controlnet, text_encoder: its networks; the last two may be missing.
      scheduler: what its file says, for schedulers.ours and schedulers.note.
      tokenizer: its folder, for tokenizer.load; None where there is none.
      passed_over: names of what is there and is not needed.
    """

    kind: str
    unet: Part
    vae: Part
    controlnet: Part | None
    text_encoder: Part | None
    scheduler: dict
    tokenizer: Path | None
    passed_over: tuple[str, ...]


# ----------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What is to be known of a network to read and write it.

    Attributes:
      library, name: of its class.
      config: fields of a config.json -> what it is.
      fields: (config, pixels of an image, pixels of a latent) -> fields of a config.json.
      network: config -> its functions.
      words: config -> how its parameters are called.
      stem: of the names of its files.
    """

    library: str
    name: str
    config: Callable[[Mapping], Config]
    fields: Callable[[Config, int, int], dict]
    network: Callable[[Config], Any]
    words: Callable[[Config], Words]
    stem: str = weight_files.STEM


def section(model: Mapping) -> ConfigDict:
    """The `model` section of a Network or a Branch, without conditions.

    Raises:
      InputError: a network that cannot be built.
    """
    config = configuration.from_dict({"model": dict(model)})
    configuration.check_model(config)
    config.model.conditions = ()
    return config.model


def _autoencoder(coder: Coder) -> ConfigDict:
    config = configuration.from_dict({"autoencoder": coder.section})
    configuration.check(config)
    return config.autoencoder


def _unet_fields(unet: Network, size: int, wide: int) -> dict:
    channels = {"inputs": unet.inputs, "outputs": unet.outputs}
    return unet2d_condition.unet(
        section(unet.model), **channels, size=size // wide, linear=unet.linear
    )


def _branch_options(branch: Branch) -> dict:
    return {"hint": branch.hint, "hint_channels": branch.hint_channels}


def _branch_fields(branch: Branch, size: int, wide: int) -> dict:
    return unet2d_condition.controlnet(
        section(branch.model),
        inputs=branch.inputs,
        linear=branch.linear,
        **_branch_options(branch),
    )


def _convolutional(of: Network | Branch) -> Words:
    return parameters.of_condition(section(of.model), of.linear)


KINDS = {
    "unet": Kind(
        *("diffusers", unet2d_condition.UNET),
        config=unet2d_condition.network,
        fields=_unet_fields,
        network=lambda unet: models.build(
            section(unet.model), channels=unet.inputs, outputs=unet.outputs
        ),
        words=_convolutional,
    ),
    "vae": Kind(
        *("diffusers", autoencoder_kl.AUTOENCODER),
        config=autoencoder_kl.section,
        fields=lambda coder, size, wide: autoencoder_kl.fields(
            _autoencoder(coder), scale=coder.scale, size=size
        ),
        network=lambda coder: autoencoder.build(_autoencoder(coder)),
        words=lambda coder: parameters.of_autoencoder(_autoencoder(coder)),
    ),
    "controlnet": Kind(
        *("diffusers", unet2d_condition.CONTROLNET),
        config=unet2d_condition.branch,
        fields=_branch_fields,
        network=lambda branch: controlnet.build(
            section(branch.model), channels=branch.inputs, **_branch_options(branch)
        ),
        words=_convolutional,
    ),
    "text_encoder": Kind(
        *("transformers", clip_text.TEXT_MODEL),
        config=clip_text.text_config,
        fields=lambda text, size, wide: clip_text.fields(text),
        network=clip.build,
        words=lambda text: parameters.of_text(),
        stem="model",
    ),
}


# ----------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------


def read(folder: str | Path) -> Pipeline:
    """What is in a pipeline's folder.

    Of weights only names and shapes are read, of the variant that weight_files.py prefers.

    Raises:
      InputError: a pipeline, a component, a setting or a tensor that is not supported, and parts
        that do not fit one another; the file is named, and the field.
    """
    folder = Path(folder)
    index = folder / INDEX
    if not index.is_file():
        raise InputError(f"{folder}: holds no {INDEX}; name the folder of a pipeline")
    fields = _json(index)
    with forms.naming(index):
        kind, components = fields.get("_class_name"), _components(fields)
        _check_components(kind, components)
    networks = {name: _network(folder / name, name) for name in KINDS if name in components}
    _check_fit(
        kind,
        {name: config for name, (config, *_) in networks.items()},
        lambda name: str(folder / name / CONFIG),
    )
    scheduler = _scheduler(folder / SCHEDULER)
    words = folder / "tokenizer"
    if "tokenizer" in components and not words.is_dir():
        raise InputError(f"{words}: is not there, but {INDEX} names it; {REMEDY}")
    parts = {name: _part(folder / name, name, *network) for name, network in networks.items()}
    return Pipeline(
        kind,
        **{name: parts.get(name) for name in KINDS},
        scheduler=scheduler,
        tokenizer=words if "tokenizer" in components else None,
        passed_over=tuple(name for name in UNNEEDED if name in components),
    )


def read_part(folder: str | Path, name: str) -> Part:
    """One network: of a pipeline's folder, or saved alone, as ControlNets are.

    Args:
      name: of KINDS.

    Raises:
      InputError: see `read`.
    """
    folder = Path(folder)
    return _part(folder, name, *_network(folder, name))


def _network(folder: Path, name: str) -> tuple[Config, Any, Words]:
    """What a Part has but for its parameters."""
    path, kind = folder / CONFIG, KINDS[name]
    fields = _json(path)
    with forms.naming(path):
        config = kind.config(fields)
        return config, kind.network(config), kind.words(config)


def _part(folder: Path, name: str, config: Config, network: Any, words: Words) -> Part:
    kind = KINDS[name]
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    tensors = weight_files.tensors(folder, kind.stem, (kind.library, kind.name))
    return Part(config, network, words, parameters.matched(shapes, words, tensors, folder))


def _scheduler(path: Path) -> dict:
    fields = _json(path)
    with forms.naming(path):
        config = configuration.from_dict(schedulers.ours(fields))
        configuration.check_diffusion(config)
        configuration.check_sampler(config)
    return fields


def _json(path: Path) -> dict:
    return forms.read(path, dict[str, object], REMEDY)


def _components(fields: Mapping) -> dict[str, str]:
    """{component: its class} of those that are there; what is no pair is an option."""
    pairs = {name: value for name, value in fields.items() if isinstance(value, list)}
    pairs = forms.checked(pairs, dict[str, tuple[str | None, str | None]])
    return {name: kind for name, (_, kind) in pairs.items() if kind is not None}


def _check_components(kind: str, components: Mapping[str, str]) -> None:
    if kind not in list(NEEDED):
        raise InputError(f"_class_name: {kind!r} is not supported, only {', '.join(NEEDED)}")
    for name in (*NEEDED[kind], "scheduler"):
        if name not in components:
            raise InputError(f"{name}: missing, and a {kind} needs it; {REMEDY}")
    classes = {name: (of.name,) for name, of in KINDS.items()} | {"tokenizer": tokenizer.CLASSES}
    for name, of in components.items():
        if name in classes and of not in classes[name]:
            raise InputError(f"{name}: {of!r} is not supported, only {', '.join(classes[name])}")
        known = (*NEEDED[kind], "scheduler", "text_encoder", "tokenizer", *UNNEEDED)
        if name not in known:
            raise InputError(f"{name}: not a component of a {kind} that is known here")


# Fields in which a ControlNet is as its U-Net, with their names in a config.json.
COMMON = {
    "channels": "block_out_channels",
    "layers": "layers_per_block",
    "context": "cross_attention_dim",
}


def _check_fit(kind: str, configs: Mapping[str, Config], called: Callable[[str], str]) -> None:
    """Raise InputError where networks do not fit one another.

    Args:
      called: name of a network -> what its configuration is called.
    """

    def check(name: str, field: str, value, wanted, why: str) -> None:
        if value != wanted:
            raise InputError(f"{called(name)}: {field}: {value}, where {why} asks for {wanted}")

    unet, vae = configs["unet"], _autoencoder(configs["vae"])
    model, latents, wide = section(unet.model), vae.latents, autoencoder.side(vae)
    of_vae = "latent_channels of the vae"
    check("unet", "out_channels", unet.outputs, latents, of_vae)
    sees = 2 if kind == INSTRUCTED else 1  # the latents of the source beside
    check("unet", "in_channels", unet.inputs, sees * latents, f"{of_vae} in a {kind}")
    if branch := configs.get("controlnet"):
        check("controlnet", "in_channels", branch.inputs, latents, of_vae)
        own = section(branch.model)
        for ours, theirs in COMMON.items():
            check("controlnet", theirs, own[ours], model[ours], "the unet")
        field, halvings = "conditioning_embedding_out_channels", len(branch.hint_channels) - 1
        if 2**halvings != wide:
            raise InputError(
                f"{called('controlnet')}: {field}: {len(branch.hint_channels)} make a latent "
                f"{2**halvings} px wide, and block_out_channels of the vae make it {wide}"
            )
    if text := configs.get("text_encoder"):
        seen = "cross_attention_dim of the unet"
        check("text_encoder", "hidden_size", text.width, model.context, seen)
        if text.positions < tokenizer.LENGTH:
            raise InputError(
                f"{called('text_encoder')}: max_position_embeddings: {text.positions}, where "
                f"prompts have {tokenizer.LENGTH} tokens"
            )


# ----------------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------------


def write(
    folder: str | Path,
    kind: str,
    parts: Mapping[str, tuple[Config, Params]],
    *,
    scheduler: Mapping,
    size: int,
    tokenizer_folder: Path | None = None,
) -> None:
    """Write the folder of a pipeline, from which diffusers loads it.

    Where there is no text encoder, diffusers has to be told `text_encoder=None, tokenizer=None`,
    and takes what such an encoder makes of prompts.

    Args:
      kind: PLAIN, CONTROLLED or INSTRUCTED.
      parts: {name of KINDS: what it is, and its parameters}, as Part has them.
      scheduler: what its file is to say, see schedulers.theirs.
      size: of images, in pixels.
      tokenizer_folder: whose files are copied.

    Raises:
      InputError: parts that are missing or do not fit one another, or what cannot be written.
    """
    folder = Path(folder)
    classes = {name: (KINDS[name].library, KINDS[name].name) for name in parts}
    classes["scheduler"] = ("diffusers", scheduler["_class_name"])
    if tokenizer_folder is not None:
        classes["tokenizer"] = ("transformers", tokenizer.CLASSES[0])
    _check_components(kind, {name: of for name, (_, of) in classes.items()})
    _check_fit(kind, {name: config for name, (config, _) in parts.items()}, lambda name: name)
    absent = dict.fromkeys(("text_encoder", "tokenizer", *UNNEEDED), (None, None))
    index = {name: list(pair) for name, pair in sorted((absent | classes).items())}
    options = {"requires_safety_checker": False}
    wide = autoencoder.side(_autoencoder(parts["vae"][0]))
    fields = {name: KINDS[name].fields(config, size, wide) for name, (config, _) in parts.items()}
    disk.write_json(folder / INDEX, {"_class_name": kind} | index | options)
    disk.write_json(folder / SCHEDULER, dict(scheduler))
    for name, (config, params) in parts.items():
        of = KINDS[name]
        disk.write_json(folder / name / CONFIG, fields[name])
        tensors = parameters.written(of.words(config), params)
        path = folder / name / f"{of.stem}.safetensors"
        weight_files.write(path, tensors, {"format": "pt"})
    for name in OF_TOKENIZER if tokenizer_folder is not None else ():
        _copy(tokenizer_folder / name, folder / "tokenizer" / name)


def _copy(source: Path, target: Path) -> None:
    """The same bytes where there is such a file."""
    if source.is_file():
        with disk.reading(source):
            data = source.read_bytes()
        disk.write(target, data)
