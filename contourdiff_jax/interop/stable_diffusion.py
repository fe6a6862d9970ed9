# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion's pipelines as runs, and runs of latents as such pipelines.

    StableDiffusionPipeline                  a run that sees nothing: the base of a ControlNet, or
                                             what a run with --init begins with
    StableDiffusionInstructPix2PixPipeline   diffusion that sees the source
    StableDiffusionControlNetPipeline        a ControlNet that sees contours, with its base

The autoencoder becomes the run's codec, and what the text encoder makes of one prompt becomes its
prompt.npy: nothing of text is needed from then on. Networks are read one after the other, so that
no more than one of them is in memory at a time.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from contourdiff_jax import config as configuration
from contourdiff_jax import methods
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contracts import CONTOUR, SOURCE
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import pipelines, schedulers, tokenizer
from contourdiff_jax.interop.autoencoder_kl import Coder
from contourdiff_jax.interop.pipelines import CONTROLLED, INSTRUCTED, PLAIN, Part, Pipeline
from contourdiff_jax.interop.unet2d_condition import Branch, Network
from contourdiff_jax.methods import controlnet, prompts
from contourdiff_jax.methods.autoencoder import AUTOENCODER
from contourdiff_jax.methods.parts import NETWORK
from contourdiff_jax.models import autoencoder
from contourdiff_jax.runtime import forms, ownership
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.training.run import CodecOf, PromptOf, Run
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Preset, Window

METHODS = {PLAIN: "diffusion", INSTRUCTED: "diffusion", CONTROLLED: "controlnet"}
SEEN = {PLAIN: (), INSTRUCTED: (SOURCE.name,), CONTROLLED: (CONTOUR.name,)}
# How such models are drawn with, where a pipeline's caller does not say otherwise.
STEPS = 50
GUIDANCE = {"prompt_guidance": 7.5}
BY_SOURCE = {"source_guidance": 1.5}
# With which all of them are trained; without it, nothing can be asked for by guidance.
DROPOUT = 0.05
MADE = "a run"


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is that of a pipeline of Stable Diffusion."""
    index = folder / pipelines.INDEX
    if not index.is_file():
        return False
    name = forms.read(index, dict[str, object], pipelines.REMEDY).get("_class_name")
    return isinstance(name, str) and name.startswith("StableDiffusion")


# --------------------------------------------------------------------------------------------------
# From a pipeline
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Images:
    """What a pipeline does not say of the images that it draws.

    Attributes:
      preset, window: of their intensities, see training.run.Run.
      axis, spacing, size: of their grid; size is that of the pipeline by default.
      contours: settings of contours: a JSON file or the name of a contour preset.
      source: preset of the images that InstructPix2Pix is shown; None for others.
    """

    preset: Preset
    window: Window
    axis: str
    spacing: float
    size: int | None
    contours: str | Path
    source: Preset | None = None


def import_pipeline(folder: Path, workdir: Path, images: Images, prompt: str) -> None:
    """Make a run of a pipeline.

    Args:
      folder: of the pipeline.
      workdir: folder of the run.
      prompt: that is shown to its networks.

    Raises:
      InputError: a pipeline that cannot be used. No files are left behind.
    """
    found = pipelines.read(folder)
    if found.text_encoder is None or found.tokenizer is None:
        raise InputError(f"{folder}: without text_encoder and tokenizer, no prompt can be made")
    if (found.kind == INSTRUCTED) != (images.source is not None):
        raise InputError("--source_preset and InstructPix2Pix, which sees it: each needs the other")
    words = tokenizer.load(found.tokenizer)
    ids = np.stack([words(""), words(prompt)])
    config = _config(found)
    coder: Coder = found.vae.config
    section = configuration.from_dict({"autoencoder": coder.section}).autoencoder
    size = _size(folder, section) if images.size is None else images.size
    autoencoder.check_size(section, size)
    configuration.check(config, size=size, side=autoencoder.side(section))
    for line in (*_passed_over(found), *filter(None, [schedulers.note(found.scheduler)])):
        print(f"note: {line}")
    plain = Run(
        config,
        images.preset,
        images.window,
        Grid(images.axis, images.spacing, size),
        contour_settings.named(images.contours, images.preset.modality),
        (),
        source_preset=images.source,
        paired=images.source is not None,
    )
    with ownership.folder(workdir, MADE) as partial:
        ours = dataclasses.replace(
            plain,
            codec=CodecOf(section, coder.scale, _keep_codec(found.vae, plain, section, partial)),
            prompt=PromptOf(prompt, _keep_prompt(found.text_encoder, ids, partial)),
        )
        if found.kind == CONTROLLED:
            ours = dataclasses.replace(ours, base=_keep_base(found.unet, ours, partial / run.BASE))
        ours.save(partial)
        learnt = found.controlnet or found.unet
        count = _keep(learnt, NETWORK, partial)[1]
    sees = " and ".join(config.model.conditions) or "nothing: it is a base, or a beginning"
    print(f"{workdir}: {count:,} parameters; sees {sees}")


def _passed_over(found: Pipeline) -> list[str]:
    names = ", ".join(found.passed_over)
    return [f"passed over, since nothing of it is needed: {names}"] if names else []


def _config(found: Pipeline) -> ConfigDict:
    """The configuration of a run of a pipeline."""
    with forms.naming(Path(pipelines.SCHEDULER)):
        sections = schedulers.ours(found.scheduler)
    network: Network = found.unet.config
    sections["diffusion"] |= {"weighting": "none", "time_exponent": 1.0}
    sections["sampler"] |= {"steps": STEPS, "batch": 1, **GUIDANCE}
    if found.kind == INSTRUCTED:
        sections["sampler"] |= BY_SOURCE
    fields = {
        "method": METHODS[found.kind],
        "model": network.model | {"conditions": SEEN[found.kind], "null": "empty"},
        "train": {"condition_dropout": DROPOUT},
    }
    if found.kind == CONTROLLED:
        branch: Branch = found.controlnet.config
        section = {"channels": tuple(branch.hint_channels), "image_channels": branch.hint}
        fields["controlnet"] = section
    return configuration.from_dict(fields | sections)


def _size(folder: Path, section: ConfigDict) -> int:
    """Pixels a side of the images that a pipeline draws by default."""
    path = folder / "unet" / pipelines.CONFIG
    size = forms.read(path, dict[str, object], pipelines.REMEDY).get("sample_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"{path}: sample_size: {size!r} is not that of a square; give --size")
    return size * autoencoder.side(section)


def _keep_codec(vae: Part, ours: Run, section: ConfigDict, folder: Path) -> str:
    """Writes the codec's run into the folder of a run; its digest."""
    config = configuration.default()
    config.method, config.model.conditions = "autoencoder", (SOURCE.name,)
    config.autoencoder.update(section)
    itself = dataclasses.replace(ours, config=config, source_preset=ours.preset, paired=False)
    (folder / run.CODEC).mkdir()
    itself.save(folder / run.CODEC)
    return _keep(vae, AUTOENCODER, folder / run.CODEC)[0]


def _keep_base(unet: Part, ours: Run, folder: Path) -> str:
    """Writes the run of a ControlNet's base; its digest."""
    config = configuration.from_dict(
        ours.config.to_dict()
        | {"method": "diffusion", "controlnet": configuration.default().controlnet.to_dict()}
    )
    config.model = controlnet.base_section(ours.config)
    folder.mkdir()
    dataclasses.replace(ours, config=config).save(folder)
    return _keep(unet, NETWORK, folder)[0]


def _keep_prompt(encoder: Part, ids: np.ndarray, folder: Path) -> str:
    """Writes what a text encoder makes of tokens [2, M]; its digest."""
    array = np.asarray(jax.jit(encoder.network.encode)(encoder.params(), ids))
    prompts.write(folder / run.PROMPT, array)
    return prompts.digest(array)


def _keep(part: Part, player: str, folder: Path) -> tuple[str, int]:
    """Writes a network as the averages of a run: (digest, number of parameters)."""
    params = part.params()
    checkpoint.save_averages(folder, {player: params})
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return checkpoint.digest({player: params}), count


# --------------------------------------------------------------------------------------------------
# To a pipeline
# --------------------------------------------------------------------------------------------------


def export_pipeline(ours: Run, folder: Path, out: Path, like: str | Path | None) -> int:
    """Write a run of latents as the folder of a pipeline; how many parameters it has.

    Args:
      folder: of the run.
      out: a folder that is there.
      like: folder of the pipeline that the run came from, with the text encoder and the tokenizer
        that its prompt was made with: they are copied.

    Raises:
      InputError: a run that no pipeline is the same as.
    """
    kind, config = _kind(ours), ours.config
    if like is None:
        raise InputError(
            "--like: the folder of the pipeline that the run came from is needed, whose text "
            "encoder and tokenizer are copied"
        )
    origin = pipelines.read(like)
    network: Network = origin.unet.config
    # On one device: each core of a CPU would have a copy of its own.
    method = methods.build(ours, mesh=meshes.local(1))
    fixed = method.fixed
    learnt = checkpoint.averages(folder, method.players, method.mesh)[1][NETWORK]
    coder = Coder(ours.codec.section.to_dict(), ours.codec.scale)
    model = _model_fields(ours)
    latents = ours.codec.section.latents
    sees = 2 if kind == INSTRUCTED else 1
    unet = Network(model, sees * latents, latents, network.linear)
    made: dict[str, tuple] = {
        "unet": (unet, fixed["base"] if kind == CONTROLLED else learnt),
        "vae": (coder, fixed["codec"]),
    }
    if kind == CONTROLLED:
        hint = config.controlnet
        branch = Branch(model, latents, hint.image_channels, tuple(hint.channels), network.linear)
        made["controlnet"] = (branch, learnt)
    if origin.text_encoder is not None:
        made["text_encoder"] = (origin.text_encoder.config, origin.text_encoder.params())
    pipelines.write(
        out,
        kind,
        made,
        scheduler=schedulers.theirs(config),
        size=ours.grid.size,
        tokenizer_folder=origin.tokenizer,
    )
    return sum(leaf.size for _, params in made.values() for leaf in jax.tree.leaves(params))


def _kind(ours: Run) -> str:
    """The pipeline that a run is the same as; InputError where there is none."""
    config = ours.config
    if not config.model.context:
        raise InputError(
            "config.model.context: 0; pipelines of Stable Diffusion have networks that attend to a "
            "prompt"
        )
    seen = tuple(config.model.conditions)
    for kind, method in METHODS.items():
        if (config.method, seen) == (method, SEEN[kind]):
            break
    else:
        raise InputError(
            f"config.model.conditions: {seen}; no pipeline of Stable Diffusion shows its network "
            f"these"
        )
    if seen and kind == INSTRUCTED and config.model.null != "empty":
        raise InputError("config.model.null: flag has no equivalent in diffusers; only empty has")
    return kind


def _model_fields(ours: Run) -> Mapping:
    fields = ours.config.model.to_dict()
    return {name: value for name, value in fields.items() if name != "conditions"}
