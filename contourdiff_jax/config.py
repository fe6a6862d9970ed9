# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: every field, its default and its unit.

A file under configs/ starts from `default()` and changes what its experiment is about; on the
command line, `--config.train.batch=8` changes a field. A run keeps its own in config.json.

A new field needs a default here, a rule where not every value can be (RULES), an entry in NEEDS
where it has no effect without others, and an entry in tests/test_config.py that shows its effect.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from contourdiff_jax.errors import InputError


def default() -> ConfigDict:
    """The defaults: a network of 2.4 million parameters that learns on a laptop.

    They are locked, so that a misspelt field is an error and not a new field.
    """
    return ConfigDict(
        {
            "seed": 0,
            # The method (methods/): diffusion (ContourDiff), distilled (to few steps, with
            # --teacher), controlnet (with --base), regression, pix2pix, cyclegan (with
            # --source_store), autoencoder, or segmentation, which `segment` trains.
            "method": "diffusion",
            # The grid belongs to the store. Zero or empty accepts the store's; anything else must
            # agree with it.
            "grid": {"axis": "", "spacing": 0.0, "size": 0, "slice_spacing": 0.0},
            # Contours of the training domain (contours/settings.py): default, united or published,
            # or the original's of a store prepared with them: original, original_cleaned. What is
            # set below replaces what the preset says of the modality; None leaves it.
            "contours": {
                "preset": "default",
                "windows": placeholder(tuple),
                "curve": placeholder(tuple),
                "low": placeholder(float),
                "high": placeholder(float),
                "blur": placeholder(int),
                "apart": placeholder(int),
                "thin": placeholder(float),
                "native": placeholder(bool),
                "clean": placeholder(tuple),
            },
            "augment": {
                "flip": 0.5,  # probability of exchanging left and right
                "probability": 0.9,  # of any of the following
                "scale": 0.1,  # each axis by up to 1 + scale, or down by as much
                "zoom": 0.1,  # both axes together, likewise
                "rotation": 10.0,  # degrees, either way
                "shift": 0.05,  # fraction of the width, either way
                "depth": 0.1,  # of volumes: the slicing axis by up to 1 + depth, or down by as much
            },
            # Patches of volumes that a network of three dimensions learns from
            # (data/volumetric.py).
            "volume": {
                "depth": 32,  # slices; 0: as many as the longest training volume has
                "side": 0,  # pixels a side; 0: whole slices
            },
            # The most by which an image's contours are disturbed in training; 0: not at all. It
            # prepares a model for contours of another modality (contours/disturbance.py).
            "disturbance": {
                "thresholds": 0.0,  # both by up to a factor of 1 + this, or down by as much
                "contrast": 0.0,  # of the greys, as share of black to white
                "noise": 0.0,  # standard deviation, as share of black to white
                "displacement": 0.0,  # standard deviation in pixels
                "doubled": 0.0,  # probability of showing contours both displaced and not
                "missing": 0.0,  # share of the contours that is left out, in pieces
            },
            # How the pictures differ in training that a network with the condition picture sees
            # (contours/recast.py).
            "recast": {
                # Of the rises of the curve from grey to grey, as the shape of a gamma distribution:
                # below 1 most of its pieces are nearly level, far above it is a straight line.
                "evenness": 1.0,
                "blur": 1.0,  # most of the standard deviation in pixels
                "noise": 0.06,  # most of the standard deviation, as share of black to white
            },
            "model": {
                # Of what is learnt and drawn at once: 2 for slices; 3 for volumes, or patches of
                # them (docs/volumes.md).
                "dims": 2,
                # What the network sees beside the noisy image: contour, or with it neighbour, the
                # slice before; source, the image of the source of a paired store; or contour with
                # picture, that in which contours are sought (contours/recast.py). (): nothing, for
                # the base of a ControlNet.
                "conditions": ("contour",),
                # How a missing condition is told: flag, by a channel of its own, or empty, by empty
                # values, as published.
                "null": "flag",
                # Pixels a side of the squares that the network takes for one, and draws at once: 2
                # takes a quarter of the time (models/patches.py).
                "patch": 1,
                "channels": (16, 32, 64, 128),  # features at each resolution, halving each time
                # Of the first resolutions of a network of volumes: so many see each slice alone and
                # are halved in plane, where slices lie farther apart than pixels.
                "planar": 0,
                "layers": 1,  # residual blocks per resolution
                # Within a residual block: 1, or 2 with one for broader shape (blocks.Broader).
                "paths": 1,
                "attention": (False, False, False, True),  # at each resolution: to itself
                "decoder_attention": (),  # likewise in the decoder; (): as in the encoder
                "middle_attention": True,
                "middle_norm": True,  # whether that attention has a group normalisation
                "middle_divisor": 1.0,  # of the output of each of the middle's blocks
                # A convolution with each change of resolution, as published; means and repetition
                # alone save a third of the work.
                "resample_convolution": False,
                "downsample_padding": 1,  # of that convolution on the near side; 0 in DDPM's code
                # Features of what is attended to beside the image, such as a text's 768 in Stable
                # Diffusion; 0: nothing is. With it, attention is a transformer block's
                # (models/transformer.py).
                "context": 0,
                "head_width": 32,  # features per attention head; 0: all of them in one
                # Heads at each resolution, or one number for all, whatever their width; (): as many
                # as head_width makes.
                "heads": (),
                # Positions a side of the blocks whose means attend to one another in place of every
                # position, at each resolution, or one number for all; (): every position does.
                "pool": (),
                "groups": 8,  # of group normalisation
                "epsilon": 1e-5,  # of group normalisation
                "time_scale_shift": False,  # time scales and shifts features, or is added to them
                # Of the waves that tell the time: their order, with sines first in DDPM's code, and
                # by how many steps the lowest frequency is lower, 1 there.
                "time_cosine_first": True,
                "time_shift": 0,
                "centre_input": False,  # x -> 2 x - 1
                "dropout": 0.0,
                "dtype": "float32",  # of computation, or bfloat16; parameters are float32
                # Compute the inside of every block again for the gradients instead of keeping it:
                # an accelerator needs more time and less memory (a CPU's compiler undoes it).
                "rematerialise": False,
                # Attention in cuDNN's fused kernel, which keeps no scores, on an NVIDIA GPU in
                # bfloat16. Elsewhere it makes no difference.
                "fused_attention": False,
            },
            "diffusion": {
                "steps": 1000,  # T
                "schedule": "cosine",  # or linear, as published, or scaled_linear
                "beta_first": 1e-4,  # of linear and scaled_linear
                "beta_last": 0.02,
                "zero_terminal_snr": False,  # no signal at all at the last timestep; not with eps
                "prediction": "v",  # or eps, as published, or x0
                # Weight of the squared error: none (as published), x0 or min_snr. A network learns
                # to follow contours where there is much noise: x0 puts the weight there, and an
                # exponent below 1 the timesteps, t = T u^exponent with u uniform. With little
                # training nothing else here helps as much (experiments/001_heads).
                "weighting": "x0",
                "time_exponent": 0.7,
                # The timesteps that are learnt: all, or only those that the sampler visits
                # (methods/diffusion.py): sampler.
                "timesteps": "all",
                "gamma": 5.0,  # of min_snr
            },
            # With --teacher: how many steps of the teacher's DDIM one step of the sampler learns to
            # replace. 0: learn from images alone (methods/distilled.py).
            "distillation": {"substeps": 0},
            # The branch by which a ControlNet sees contours (methods/controlnet.py): features of
            # its first layers, halving each time, down to what the base draws, and channels of
            # what it is shown, 3 of those of others.
            "controlnet": {"channels": (16, 32, 96), "image_channels": 1},
            "regression": {
                "loss": "l1",  # of a pixel in the body; or l2
                "ssim": 0.0,  # share of 1 - SSIM in the loss
                # Weight of a pixel outside the body, where there is air; 0: anything is drawn there
                "outside": 0.1,
            },
            # The autoencoder whose latents diffusion with --codec learns in place of pixels
            # (methods/autoencoder.py).
            "autoencoder": {
                "image_channels": 1,  # or 3, of those of others, which are shown greys as colours
                "channels": (32, 64, 64),  # features at each resolution, halving each time
                "layers": 1,  # residual blocks a resolution; one more on the way back
                "latents": 4,  # numbers a latent
                "attention": False,  # self-attention at the lowest resolution
                "groups": 8,  # of group normalisation
                "epsilon": 1e-6,  # of group normalisation
                # Weights beside the mean absolute error: of the distance from a normal
                # distribution, of features of a network given by --perceptual, and of what the
                # critic says, as share of the error's gradient.
                "kl": 1e-6,
                "perceptual": 0.0,
                "adversarial": 0.5,
                "alone": 0.5,  # share of the training before the critic counts
            },
            # Of pix2pix, cyclegan and autoencoder, whom a critic teaches (methods/adversarial.py).
            # These are for small images on a laptop; published settings are those of configs/.
            "adversarial": {
                "width": 32,  # features of the generator's first level
                "levels": 5,  # of pix2pix: how often its U-Net halves an image
                "dropout": 0.5,  # of pix2pix: in inner levels, from the fifth on; while drawing too
                "blocks": 6,  # of cyclegan: residual blocks of its ResNet
                "critic_width": 32,  # features of the critic's first layer
                "critic_layers": 3,  # how often it halves an image: patches of 70 px, with 2 of 34
                "norm": "instance",  # or batch, of the images of a step; alone while drawing
                # Of real and drawn; or vanilla, cross entropy, or hinge, as is usual with
                # autoencoders.
                "loss": "least_squares",
                "l1": 100.0,  # of pix2pix: weight of the mean absolute error beside it
                "cycle": 10.0,  # of cyclegan: weight of what comes back from there and back
                "identity": 0.5,  # of cyclegan: weight of what should stay, as share of that
                "pool": 50,  # of cyclegan: drawn images of before that the critics are shown
            },
            "train": {
                "images": 200_000,  # seen in all, repeats counted
                "batch": 4,  # images per optimiser step, over all devices
                "accumulate": 1,  # parts in which a batch is computed, in turn, to save memory
                "learning_rate": 1e-3,  # at its peak
                "warmup": 400,  # images of linear warm-up
                "decay": "cosine",  # to zero; or linear, as is usual with critics; or none
                "constant": 0.0,  # of linear: share of the training before it
                "beta_1": 0.9,  # of Adam: decay of the mean of gradients; with critics often 0.5
                "weight_decay": 1e-4,
                "clip": 1.0,  # largest global norm of the gradient; 0: any
                "ema_halflife": 1_000,  # images after which a parameter counts half in the average
                "ema_rampup": 0.05,  # the half-life is at most this share of the images seen so far
                # Probability of hiding a condition, for guidance; of several, each alone and all.
                "condition_dropout": 0.0,
                "neighbour": 0.2,  # probability of showing the slice beside, if the network sees it
                "resident": 2.0,  # GiB of slices and masks kept on each device; more is streamed
                # How often, in images; 0: at the end only.
                "log": 400,
                "evaluate": 20_000,  # held-out loss
                "sample": 50_000,  # sample grid
                "checkpoint": 50_000,
                # Minutes after which the next log brings those that are not 0, too; 0: never.
                "minutes": 10.0,
                "keep": 2,  # checkpoints kept
                # Whether the one with the least held-out loss is kept, too: then one is written
                # whenever `evaluate` finds that loss lower than ever.
                "keep_best": False,
                # Where numbers and pictures go beside the run's folder: tensorboard, wandb, trackio
                # (docs/watching.md).
                "log_to": (),
            },
            "sampler": {
                "name": "ddim",  # or ddpm, as published, or dpmpp_2m
                # More were not better; after a short training 2 are best (experiments/012_volumes).
                "steps": 10,
                "spacing": "trailing",  # of the timesteps; or leading, as published, or linspace
                "offset": 0,  # of leading: added to every timestep
                "eta": 0.0,  # of ddim: 0 is deterministic, 1 as random as ddpm
                "clip": True,  # estimates of x_0 to [-1, 1]
                "clipped_eps": True,  # of ddim: eps is that of the clipped x_0; else the network's
                "fixed_stride": False,  # of ddim: steps lead T // n down, not to the next timestep
                # Of ddim: the last step leads to clean data; or, as in Stable Diffusion, to what is
                # noisy as at the first timestep.
                "ends_clean": True,
                # Classifier-free, by contours and by the source; other than 1 needs
                # train.condition_dropout.
                "guidance": 1.0,
                "source_guidance": 1.0,
                "prompt_guidance": 1.0,  # likewise by the prompt
                "control": 1.0,  # of controlnet: share of what its branch adds
                "batch": 16,  # slices, or tiles of a volume, sampled at once
                # What the slices of a volume have in common (translation/volume.py).
                "coherence": 0.0,  # mm between the knots of shared noise; 0: each has its own noise
                "coupling": 0.0,  # share of the neighbours' mean in every estimate of x_0
                "scgd": False,  # each is shown the translation of the one before, as published
                # Of scgd: how far the slice before is followed; 1 as published, with which errors
                # are handed on from slice to slice (experiments/012_volumes).
                "neighbour_guidance": 0.35,
                "candidates": 4,  # of scgd: samples drawn where a chain of slices begins
                "candidate": "lowest_mean",  # the one that is kept, as published; or best_contours
                "anchor": 0,  # of scgd: slices after which a new chain begins; 0: never
                "middle": False,  # of scgd: chains begin in their middle and go both ways
                # Samples of each slice, and which is kept: first, the usual one; lowest_mean;
                # nearest to the slice before; best_contours; or the mean of all.
                "samples": 1,
                "keep": "first",
                # Least overlap of tiles, where volumes exceed the grid; 0: they are cropped. Of
                # three dimensions, where they exceed the patches learnt; 0: drawn in one piece.
                "tiles": 0.0,
            },
            # Devices along each axis of the mesh (runtime/mesh.py); -1: all that are left.
            "mesh": {"data": -1, "fsdp": 1},
        }
    ).lock()


# ml_collections calls a configuration file's function of this name; without --config, this one.
get_config = default


def from_dict(fields: dict) -> ConfigDict:
    """A configuration from plain dicts; raises InputError for fields that are not ours."""
    if not isinstance(fields, dict):
        raise InputError(f"config: {fields!r}, where a dictionary of sections belongs")
    config = default()
    _check_types(config, fields, "config")
    _check_known(config, fields, "config")
    try:
        config.update(ConfigDict(fields))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"config: {str(error.args[0]).splitlines()[0]}") from None
    return config


def replaced(config: ConfigDict, values: Mapping[str, object]) -> ConfigDict:
    """The configuration with other values of some fields, by dotted name, as `changes` has them."""
    fields = config.to_dict()
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        (fields[section] if section else fields)[field] = value
    return from_dict(fields)


def _check_known(config: ConfigDict, fields: dict, name: str) -> None:
    """Raise InputError for the first field that is not ours, by its name."""
    for field, value in fields.items():
        if field not in config:
            raise InputError(f"{name}.{field}: unknown; known are {', '.join(config)}")
        if isinstance(value, dict) and isinstance(config[field], ConfigDict):
            _check_known(config[field], value, f"{name}.{field}")


def _check_types(config: ConfigDict, fields: dict, name: str) -> None:
    """Raise InputError for what a ConfigDict takes: null, and as a number true, or what none is."""
    for field in fields.keys() & config.keys():
        value, kind = fields[field], config.get_type(field)
        if kind is ConfigDict:
            if not isinstance(value, dict):
                raise InputError(f"{name}.{field}: {value!r}, where a section of fields belongs")
            _check_types(config[field], value, f"{name}.{field}")
        number = kind in (int, float) and isinstance(value, int)
        absurd = number and (isinstance(value, bool) or abs(value) > SEEDS)
        if absurd or (value is None and config[field] is not None):
            raise InputError(f"{name}.{field}: {value!r:.40}, where {kind.__name__} belongs")


# Fields of the `contours` section with the defaults that they had in runs without a method.
CONTOURS_OF_BEFORE = {
    **{"windows": (), "curve": (), "low": 20.0, "high": 50.0, "blur": 3},
    **{"apart": 0, "thin": 0.0, "native": False, "clean": ()},
}


def of_before(fields: dict) -> dict:
    """Fields of a run as they are called today; those of earlier versions have no method.

    A number of substeps then said that a network is distilled. Contours were those of the preset
    alone, whatever the other fields of the section were, unless windows, a curve or native were
    given; then all of these fields counted, and the preset did not.
    """
    if not isinstance(fields, dict) or "method" in fields:
        return fields
    distillation, contours = (fields.get(name) for name in ("distillation", "contours"))
    if isinstance(distillation, dict) and distillation.get("substeps"):
        fields = fields | {"method": "distilled"}
    if isinstance(contours, dict):
        if any(contours.get(name) for name in ("windows", "curve", "native")):
            contours = CONTOURS_OF_BEFORE | contours
        else:
            contours = {n: value for n, value in contours.items() if n not in CONTOURS_OF_BEFORE}
        fields = fields | {"contours": contours}
    return fields


# Beginnings of the names of fields that say how a run is computed, not what it learns.
COMPUTING = ("mesh.", "model.rematerialise", "model.fused_attention")


def differences(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    """Dotted names of the fields in which two runs differ; how they are computed does not count."""
    return [name for name in _unequal(ours, theirs) if not name.startswith(COMPUTING)]


def changes(config: ConfigDict) -> dict[str, object]:
    """The fields that are not at their defaults, by dotted name, with their values."""
    values = flat(config)
    return {name: values[name] for name in _unequal(config, default())}


def _unequal(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    a, b = flat(ours), flat(theirs)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def flat(config: ConfigDict) -> dict[str, object]:
    """All fields by dotted name, with values as JSON has them."""
    values = {}
    for section, fields in json.loads(json.dumps(config.to_dict())).items():
        nested = isinstance(fields, dict)
        values |= {f"{section}.{n}": v for n, v in fields.items()} if nested else {section: fields}
    return values


# --------------------------------------------------------------------------------------------------
# What cannot work
# --------------------------------------------------------------------------------------------------

MOST_LAYERS = 64  # residual blocks a resolution: more is a slip, and would be built for hours
MOST = 1e9  # of any number: more is a slip, too
SEEDS = 2**62  # are below: JAX and NumPy take them, and segmenters count on from theirs
FUSED_WIDTH = 128  # features of a head at most that cuDNN's attention takes on every NVIDIA GPU
ADVERSARIAL = ("pix2pix", "cyclegan")  # methods with a generator and a critic
OF_ITSELF = ("autoencoder",)  # methods that draw the image that they are shown
UNPAIRED = ("cyclegan",)  # methods that learn from a second store, of the source
SHOWN_ALONE = (*UNPAIRED, *OF_ITSELF)  # methods that see the source and nothing else
AT_ONCE = ("regression", *ADVERSARIAL, *OF_ITSELF)  # methods that draw at once, without steps
CRITICISED = (*ADVERSARIAL, *OF_ITSELF)  # methods with a critic, and networks of their own
SEEN_LAST = 3  # pixels a side that a critic needs after its halvings
WIDEST = 2**16  # features of a resolution, images of a batch
# contracts.CONDITIONS; this file imports nothing heavy.
CONDITIONS = ("contour", "neighbour", "source", "picture")

BRANCHED = ("controlnet",)  # methods with a base, that see contours by a branch
VOLUMETRIC = ("diffusion", "distilled", "regression")  # methods that may learn volumes
# Fields of the sampler that join slices which are drawn on their own.
JOINING = ("coherence", "coupling", "scgd")
STEPS = ("diffusion", "distilled", *BRANCHED)  # methods that draw step by step

# What a network may see; the slice before says nothing of the next without its contours or source.
CONDITIONS_SEEN = (
    (),
    ("contour",),
    ("contour", "neighbour"),
    ("source",),
    ("contour", "source"),
    ("contour", "neighbour", "source"),
    ("contour", "picture"),
    ("contour", "neighbour", "picture"),
)


def of_source(conditions: Iterable[str]) -> list[str]:
    """The conditions that show something of a source, sorted; the slice before is drawn."""
    return sorted({*conditions} - {"neighbour"})


class Rule(NamedTuple):
    """What a field may be: a test, words for what fails it, and its values where they are few."""

    holds: Callable[[object], bool]
    words: str
    names: tuple = ()


def _between(least: float, most: float = MOST) -> Rule:
    words = f"must lie between {least:g} and {most:g}"
    return Rule(lambda value: least <= value <= most, words)


def _among(*names: str) -> Rule:
    words = f"is not one of {', '.join(map(str, names))}"
    return Rule(lambda value: value in names, words, names)


ABOVE_0 = Rule(lambda value: 0 < value <= MOST, f"must be above 0 and at most {MOST:g}")
SHARE = _between(0, 1)
BELOW_1 = Rule(lambda value: 0 <= value < 1, "must be at least 0 and below 1")
SWITCHES = Rule(lambda value: all(v in (True, False) for v in value), "must be True and False")
DEVICES = Rule(lambda value: value == -1 or 1 <= value <= MOST, "must be positive, or -1")
FEATURES = Rule(
    lambda value: value and all(type(c) is int and 0 < c <= WIDEST for c in value),
    f"must be whole numbers from 1 to {WIDEST}, one a resolution",
)
NUMBERS = Rule(
    lambda value: all(type(n) is int and 0 < n <= WIDEST for n in value),
    f"must be whole numbers from 1 to {WIDEST}, one a resolution or one for all",
)
SINKS = ("tensorboard", "wandb", "trackio")  # training/sinks.py
PLACES = Rule(
    lambda names: all(n in SINKS and names.count(n) == 1 for n in names),
    f"must be names among {', '.join(SINKS)}, each once",
    SINKS,
)
FREE = Rule(lambda value: True, "")  # a switch, or checked with others below

RULES = {
    # Python may bring a method of its own, so that methods/ refuses what none is.
    "method": FREE._replace(names=(*STEPS, *AT_ONCE, "segmentation")),
    "seed": Rule(lambda value: 0 <= value < SEEDS, f"must be at least 0 and below {SEEDS}"),
    "grid.axis": _among("", "axial", "coronal", "sagittal"),
    "grid.spacing": _between(0),
    "grid.size": _between(0),
    "grid.slice_spacing": _between(0),
    "augment.flip": SHARE,
    "augment.probability": SHARE,
    "augment.scale": _between(0, 10),
    "augment.zoom": _between(0, 10),
    "augment.rotation": _between(0, 360),
    "augment.shift": _between(0, 10),
    "augment.depth": _between(0, 10),
    "volume.depth": _between(0, 2**14),
    "volume.side": _between(0, 2**14),
    "disturbance.thresholds": _between(0, 1000),
    "disturbance.contrast": _between(0, 1000),
    "disturbance.noise": _between(0, 1000),
    "disturbance.displacement": _between(0, 1000),
    "disturbance.doubled": SHARE,
    "disturbance.missing": SHARE,
    "recast.evenness": ABOVE_0,
    "recast.blur": _between(0, 2),  # recast.REACH px hold no wider Gaussian
    "recast.noise": _between(0, 1000),
    "model.conditions": Rule(
        lambda names: names in CONDITIONS_SEEN,
        f"must be one of {', '.join(map(str, CONDITIONS_SEEN))}",
    ),
    "model.dims": _among(2, 3),
    "model.null": _among("flag", "empty"),
    "model.channels": FEATURES,
    "model.planar": _between(0, MOST_LAYERS),
    "model.layers": _between(1, MOST_LAYERS),
    "model.paths": _among(1, 2),
    "model.patch": _between(1, 64),
    "model.attention": SWITCHES,
    "model.decoder_attention": SWITCHES,
    "model.time_shift": _between(0),
    "model.middle_divisor": ABOVE_0,
    "model.downsample_padding": _among(0, 1),
    "model.context": _between(0, WIDEST),
    "model.head_width": _between(0),
    "model.heads": NUMBERS,
    "model.pool": NUMBERS,
    "model.groups": _between(1),
    "model.epsilon": ABOVE_0,
    "model.dropout": BELOW_1,
    "model.dtype": _among("float32", "bfloat16"),
    "diffusion.steps": _between(2, 1e6),
    "diffusion.schedule": _among("linear", "scaled_linear", "cosine"),
    "diffusion.prediction": _among("eps", "x0", "v"),
    "diffusion.weighting": _among("none", "x0", "min_snr"),
    "diffusion.time_exponent": ABOVE_0,
    "diffusion.timesteps": _among("all", "sampler"),
    "diffusion.gamma": ABOVE_0,
    "distillation.substeps": _between(0),
    "regression.loss": _among("l1", "l2"),
    "regression.ssim": SHARE,
    "regression.outside": _between(0, 1000),
    "controlnet.channels": FEATURES,
    "controlnet.image_channels": _among(1, 3),
    "autoencoder.image_channels": _among(1, 3),
    "autoencoder.channels": Rule(
        lambda value: FEATURES.holds(value) and len(value) > 1, f"{FEATURES.words}; two at least"
    ),
    "autoencoder.layers": _between(1, MOST_LAYERS),
    "autoencoder.latents": _between(1, WIDEST),
    "autoencoder.groups": _between(1),
    "autoencoder.epsilon": ABOVE_0,
    **{f"autoencoder.{name}": _between(0) for name in ("kl", "perceptual", "adversarial")},
    "autoencoder.alone": SHARE,
    "adversarial.width": _between(1, WIDEST),
    "adversarial.levels": _between(2, 16),
    "adversarial.dropout": BELOW_1,
    "adversarial.blocks": _between(1, MOST_LAYERS),
    "adversarial.critic_width": _between(1, WIDEST),
    "adversarial.critic_layers": _between(1, 8),
    "adversarial.norm": _among("instance", "batch"),
    "adversarial.loss": _among("least_squares", "vanilla", "hinge"),
    **{f"adversarial.{name}": _between(0) for name in ("l1", "cycle", "identity")},
    "adversarial.pool": _between(0, WIDEST),
    **{f"train.{name}": ABOVE_0 for name in ("images", "ema_halflife", "keep", "accumulate")},
    **{
        f"train.{name}": _between(0)
        for name in (
            *("learning_rate", "warmup", "weight_decay", "clip", "ema_rampup", "resident"),
            *("log", "evaluate", "sample", "checkpoint", "minutes"),
        )
    },
    "train.batch": _between(1, WIDEST),
    "train.log_to": PLACES,
    "train.decay": _among("cosine", "linear", "none"),
    "train.constant": BELOW_1,
    "train.beta_1": BELOW_1,
    "train.condition_dropout": SHARE,
    "train.neighbour": SHARE,
    "sampler.name": _among("ddpm", "ddim", "dpmpp_2m"),
    "sampler.steps": _between(1),
    "sampler.spacing": _among("trailing", "leading", "linspace"),
    "sampler.offset": _between(0),
    "sampler.eta": SHARE,
    "sampler.guidance": _between(-1000, 1000),
    "sampler.source_guidance": _between(-1000, 1000),
    "sampler.prompt_guidance": _between(-1000, 1000),
    "sampler.control": _between(0, 1000),
    "sampler.batch": _between(1, WIDEST),
    "sampler.coherence": _between(0),
    "sampler.coupling": BELOW_1,
    "sampler.neighbour_guidance": _between(0, 1000),
    "sampler.candidates": _between(1, 1000),
    "sampler.candidate": _among("lowest_mean", "best_contours"),
    "sampler.anchor": _between(0),
    "sampler.samples": _between(1, 1000),
    "sampler.keep": _among("first", "lowest_mean", "nearest", "best_contours", "mean"),
    "sampler.tiles": _between(0, 0.5),
    "mesh.data": DEVICES,
    "mesh.fsdp": DEVICES,
}


def check(config: ConfigDict, *, size: int | None = None, side: int = 1) -> None:
    """Refuse what cannot work, before anything runs.

    Args:
      size: pixels a side of the images, where they are known.
      side: pixels a side of a latent, where latents are learnt.

    Raises:
      InputError: the first such field, by its name, and what to do.
    """
    for section, fields in config.items():
        if isinstance(fields, ConfigDict):
            check_values(section, fields)
        else:
            _check_field(section, fields, f"config.{section}")
    check_model(config)
    _check_disturbance(config)
    _check_dropout(config)
    if config.model.dims == 3:
        _check_volumes(config)
    check_diffusion(config)
    check_sampler(config)
    _check_few_steps(config)
    if config.method in AT_ONCE and "neighbour" in config.model.conditions:
        raise InputError(
            f"config.model.conditions: neighbour is the slice drawn before, and {config.method} "
            "draws all at once; leave it out"
        )
    if config.method in SHOWN_ALONE:
        _check_shown_alone(config)
    if config.method in BRANCHED and tuple(config.model.conditions) != ("contour",):
        raise InputError(
            f"config.model.conditions: {config.method} sees contours alone; leave it as it is"
        )
    if not config.model.conditions and config.method not in ("diffusion", "segmentation"):
        raise InputError(f"config.model.conditions: (), and {config.method} sees nothing else")
    if config.method == "cyclegan" and config.train.accumulate > 1:
        raise InputError(
            "config.train.accumulate: critics are shown all images of a step at once; set it to 1"
        )
    _check_autoencoder(config.autoencoder)
    if size is not None:
        check_size(config, size, side)


def _check_volumes(config: ConfigDict) -> None:
    if config.method not in VOLUMETRIC:
        raise InputError(
            f"config.model.dims: {config.method} learns slices; set it to 2, or take one of "
            f"{', '.join(VOLUMETRIC)}"
        )
    if "neighbour" in config.model.conditions:
        raise InputError(
            "config.model.conditions: neighbour is the slice drawn before, and with "
            "config.model.dims=3 all of a volume is drawn at once; leave it out"
        )


def _check_shown_alone(config: ConfigDict) -> None:
    if tuple(config.model.conditions) != ("source",):
        raise InputError(
            f"config.model.conditions: {config.method} sees the source alone; set "
            "--config.model.conditions=\"('source',)\""
        )


def _check_autoencoder(section: ConfigDict) -> None:
    for features in section.channels:
        if features % section.groups:
            raise InputError(
                f"config.autoencoder.channels: {features} is not a multiple of "
                f"config.autoencoder.groups={section.groups}"
            )


def check_values(section: str, fields: ConfigDict, prefix: str | None = None) -> None:
    """Raise InputError for a field of a section whose value is never allowed.

    Args:
      prefix: of the fields' names where they were set.
    """
    for name, value in fields.items():
        called = f"config.{section}.{name}" if prefix is None else _called(name, prefix)
        _check_field(f"{section}.{name}", value, called)


def _called(field: str, prefix: str) -> str:
    """A sampler's field as whoever set it knows it; of flags, that of the name is --sampler."""
    return "--sampler" if (prefix, field) == ("--", "name") else f"{prefix}{field}"


def _check_field(name: str, value, called: str) -> None:
    rule = RULES.get(name, FREE)
    if not rule.holds(value):
        shown = repr(value) if isinstance(value, str) else value
        raise InputError(f"{called}: {shown} {rule.words}")


def check_model(config: ConfigDict) -> None:
    """Raise InputError for a network that cannot be built."""
    check_values("model", config.model)
    model, channels = config.model, tuple(config.model.channels)
    # Waves come in pairs, and their frequencies are spread over one step less with a shift of 1.
    if channels[0] % 2 or channels[0] // 2 == model.time_shift:
        raise InputError(
            f"config.model.channels: the first, {channels[0]}, is that of the time embedding too "
            f"and must be even and above {2 * model.time_shift}"
        )
    decoder = model.decoder_attention or model.attention
    attention = tuple(model.attention), tuple(decoder)
    for name, entries in zip(("attention", "decoder_attention"), attention, strict=True):
        if len(entries) != len(channels):
            raise InputError(
                f"config.model.{name}: {len(entries)} entries for the {len(channels)} resolutions "
                f"of config.model.channels; give one for each"
            )
    for features in channels:
        if features % model.groups:
            raise InputError(
                f"config.model.channels: {features} is not a multiple of "
                f"config.model.groups={model.groups}"
            )
    for name in ("heads", "pool"):
        if len(model[name]) not in (0, 1, len(channels)):
            raise InputError(
                f"config.model.{name}: {len(model[name])} entries for the {len(channels)} "
                f"resolutions of config.model.channels; give one for each, or one for all"
            )
    if model.pool and model.context:
        raise InputError(
            "config.model.pool: a transformer of config.model.context attends from every "
            "position; leave it as ()"
        )
    if model.planar > len(channels):
        raise InputError(
            f"config.model.planar: {model.planar} of the {len(channels)} resolutions of "
            f"config.model.channels; take at most as many"
        )
    attentive, of_width = _attentive(model), ("head_width", model.head_width)
    for level in attentive:
        name, divisor = ("heads", _each(model, "heads")[level]) if model.heads else of_width
        if divisor and channels[level] % divisor:
            raise InputError(
                f"config.model.channels: {channels[level]} has attention and is not a multiple of "
                f"config.model.{name}={divisor}"
            )
    if model.fused_attention:
        _check_fused(model, attentive)


def head_widths(model: ConfigDict) -> tuple[int, ...]:
    """Features of a head of attention at each resolution of a `model` section."""
    channels = tuple(model.channels)
    if not model.heads:
        return tuple(model.head_width or features for features in channels)
    return tuple(c // heads for c, heads in zip(channels, _each(model, "heads"), strict=True))


def pools(model: ConfigDict) -> tuple[int, ...]:
    """Positions a side of the blocks that attention averages, at each resolution."""
    return _each(model, "pool") or (1,) * len(model.channels)


def _each(model: ConfigDict, field: str) -> tuple[int, ...]:
    """What a field asks for, one number for each resolution."""
    return tuple(model[field]) * (len(model.channels) if len(model[field]) == 1 else 1)


def _attentive(model: ConfigDict) -> list[int]:
    """Resolutions that have attention, by place, that of the middle last."""
    attention = zip(model.attention, model.decoder_attention or model.attention, strict=True)
    levels = [level for level, a in enumerate(attention) if any(a)]
    return levels + ([len(model.channels) - 1] if model.middle_attention else [])


def _check_fused(model: ConfigDict, attentive: list[int]) -> None:
    """Raise InputError where cuDNN's kernel could not take the heads, once it is compiled."""
    if model.dtype != "bfloat16":
        raise InputError(
            f"config.model.fused_attention computes in bfloat16, "
            f"and config.model.dtype is {model.dtype}"
        )
    name = "heads" if model.heads else "head_width"
    for level in attentive:
        width = head_widths(model)[level]
        if width % 8 or width > FUSED_WIDTH:
            raise InputError(
                f"config.model.{name}: heads of {width} features, where "
                f"config.model.fused_attention takes multiples of 8 up to {FUSED_WIDTH}"
            )


def check_size(config: ConfigDict, size: int, side: int = 1, *, depth: int | None = None) -> None:
    """Raise InputError for an image that the network cannot halve often enough.

    Args:
      size: of images in pixels.
      side: pixels a side of what the network takes for one: those of a latent.
      depth: slices of a patch, of a network of volumes.
    """
    if config.model.dims == 3 and side > 1:
        raise InputError(
            "--codec: latents are those of slices, and config.model.dims=3 learns volumes; leave "
            "it out"
        )
    if depth is not None:
        _check_depth(config.model, depth)
    halvings, field = _halvings(config)
    patch = 1 if config.method in CRITICISED else config.model.patch
    unit = side * patch * 2**halvings
    if size % unit:
        cut = f" after patches of {patch} px" if patch > 1 else ""
        cut += f" as latents of {side} px" if side > 1 else ""
        patches = config.model.dims == 3 and size == config.volume.side
        flag = "config.volume.side" if patches else "size"
        raise InputError(
            f"images of {size} px cannot be halved {halvings} times{cut}: "
            f"take --{flag}={-(-size // unit) * unit}{field and f', or {field}'}"
        )
    layers = config.adversarial.critic_layers
    # After its halvings a critic has two convolutions that take a pixel each.
    if config.method in CRITICISED and size >> layers < SEEN_LAST:
        raise InputError(
            f"config.adversarial.critic_layers: of images of {size} px nothing is left after "
            f"{layers} halvings; take fewer"
        )


def depth_unit(model: ConfigDict) -> int:
    """What the slices of all that a network draws at once are a multiple of."""
    return model.patch * 2 ** _deep_halvings(model) if model.dims == 3 else 1


def _deep_halvings(model: ConfigDict) -> int:
    """How often a network of volumes halves them along the slices; planar resolutions do not."""
    return max(0, len(model.channels) - 1 - model.planar)


def _check_depth(model: ConfigDict, depth: int) -> None:
    unit, halvings = depth_unit(model), _deep_halvings(model)
    if depth % unit:
        cut = f" after patches of {model.patch} px" if model.patch > 1 else ""
        fewer = ", or raise config.model.planar" if halvings else ""
        raise InputError(
            f"patches of {depth} slices cannot be halved {halvings} times{cut}: "
            f"take --config.volume.depth={-(-depth // unit) * unit}{fewer}"
        )


def _halvings(config: ConfigDict) -> tuple[int, str]:
    """How often the network of a method halves images, and what to do for fewer."""
    if config.method == "pix2pix":
        return config.adversarial.levels, "lower config.adversarial.levels"
    if config.method == "cyclegan":
        return 2, ""
    section = "autoencoder" if config.method in OF_ITSELF else "model"
    return len(config[section].channels) - 1, f"shorten config.{section}.channels"


def _check_disturbance(config: ConfigDict) -> None:
    if config.disturbance.doubled and not config.disturbance.displacement:
        raise InputError(
            "config.disturbance.doubled: contours are doubled where they are displaced; "
            "set config.disturbance.displacement too"
        )


def _check_dropout(config: ConfigDict) -> None:
    count = len(config.model.conditions) + bool(config.model.context)
    # Others lose each condition by itself.
    scaled = "source" in config.model.conditions or config.model.context
    if scaled and count > 1 and (count + 1) * config.train.condition_dropout > 1:
        raise InputError(
            f"config.train.condition_dropout: {config.train.condition_dropout:g} for each of "
            f"{count} conditions and for all at once are more than 1; take at most 1/{count + 1}"
        )


def check_diffusion(config: ConfigDict) -> None:
    """Raise InputError for a forward process that there is not."""
    check_values("diffusion", config.diffusion)
    diffusion = config.diffusion
    if not 0 < diffusion.beta_first <= diffusion.beta_last < 1:
        raise InputError(
            f"config.diffusion: beta_first={diffusion.beta_first} and "
            f"beta_last={diffusion.beta_last} must satisfy 0 < beta_first <= beta_last < 1"
        )
    if diffusion.zero_terminal_snr and diffusion.prediction == "eps":
        raise InputError(
            "config.diffusion.zero_terminal_snr: from pure noise eps says nothing of the "
            "image; let config.diffusion.prediction be v or x0"
        )


def check_sampler(config: ConfigDict, prefix: str = "config.sampler.") -> None:
    """Raise InputError for a `sampler` section with which nothing can be drawn.

    Args:
      prefix: of its fields' names where they were set.
    """
    check_values("sampler", config.sampler, prefix)
    sampler, total = config.sampler, config.diffusion.steps
    if sampler.eta and sampler.name != "ddim":
        raise InputError(f"{prefix}eta: only ddim has it, not {sampler.name}; set it to 0")
    if sampler.offset and sampler.spacing != "leading":
        raise InputError(f"{prefix}offset: leading has it, not {sampler.spacing}; set it to 0")
    # DPM-Solver++ leaves out a timestep, see samplers.timesteps.
    most = total - int(sampler.name == "dpmpp_2m" and sampler.spacing != "trailing")
    if sampler.steps > most:
        raise InputError(f"{prefix}steps: {sampler.steps} must lie between 1 and {most}")
    if sampler.spacing == "leading" and sampler.offset:
        count = sampler.steps + total - most
        if (count - 1) * (total // count) + sampler.offset >= total:
            raise InputError(
                f"{prefix}offset: {sampler.offset} leads out of the schedule's {total} timesteps"
            )
    for field in ("guidance", "source_guidance", "prompt_guidance"):
        if sampler[field] != 1 and not config.train.condition_dropout:
            raise InputError(
                f"{prefix}{field}: must be 1 for a network trained without condition dropout; "
                "train with --config.train.condition_dropout=0.1"
            )
    for field in JOINING:
        if sampler[field] and config.model.dims == 3:
            raise InputError(
                f"{prefix}{field}: joins slices that are drawn on their own, and "
                f"config.model.dims=3 draws whole volumes; leave it out"
            )
    if sampler.scgd and "neighbour" not in config.model.conditions:
        raise InputError(
            f"{prefix}scgd: the network does not see neighbours; train with "
            "--config.model.conditions=\"('contour', 'neighbour')\""
        )
    if sampler.scgd and sampler.coupling:
        raise InputError(
            f"{prefix}scgd draws slice after slice, {prefix}coupling all at once; choose one"
        )


def _check_few_steps(config: ConfigDict) -> None:
    substeps, sampler = config.distillation.substeps, config.sampler
    if (substeps > 0) != (config.method == "distilled"):
        raise InputError("--teacher and --config.distillation.substeps: each needs the other")
    other = sampler.eta or sampler.fixed_stride or not sampler.ends_clean
    if substeps and (sampler.name != "ddim" or other):
        raise InputError(
            "config.distillation: what is learnt are steps of DDIM to clean data; let "
            "config.sampler.name be ddim, eta 0, fixed_stride false and ends_clean true"
        )
    scales = (sampler.guidance, sampler.source_guidance, sampler.prompt_guidance)
    if substeps and scales != (1, 1, 1):
        raise InputError("config.distillation: guidance is not learnt; let config.sampler's be 1")
    if substeps * sampler.steps > config.diffusion.steps:
        raise InputError(
            f"config.distillation.substeps: {substeps} for each of {sampler.steps} steps are more "
            f"than the {config.diffusion.steps} of config.diffusion.steps"
        )


# --------------------------------------------------------------------------------------------------
# What would have no effect
# --------------------------------------------------------------------------------------------------


class Need(NamedTuple):
    """What a field needs to have an effect: a test of the configuration, and the words for it."""

    holds: Callable[[ConfigDict], bool]
    words: str  # after 'unless'; {} stands for what comes before the name of a sampler's field


def _learns_all(config: ConfigDict) -> bool:
    """Whether the network learns all timesteps, and not those alone that its sampler visits."""
    return config.diffusion.timesteps == "all" and config.method != "distilled"


# Beginnings of the names of fields that say how images arise from noise, and what is none of them.
OF_STEPS = ("diffusion.", "sampler.", "model.time_", "train.condition_dropout")
OF_ANY = ("sampler.batch", "sampler.tiles")
STEPPED = Need(lambda c: c.method not in AT_ONCE, f"config.method is one of {', '.join(STEPS)}")
# Of the network of diffusion, which others than those with a critic have; what they see is theirs.
OF_UNET, SEEN = "model.", ("model.conditions",)
WITH_UNET = Need(
    lambda c: c.method not in CRITICISED, f"config.method is none of {', '.join(CRITICISED)}"
)
WITH_CRITIC, WITH_GENERATOR, OF_PIX2PIX, OF_CYCLEGAN, OF_AUTOENCODER, OF_CONTROLNET = (
    Need(lambda c, names=names: c.method in names, f"config.method is {' or '.join(names)}")
    for names in (CRITICISED, ADVERSARIAL, ADVERSARIAL[:1], ADVERSARIAL[1:], OF_ITSELF, BRANCHED)
)
VOLUMES = Need(lambda c: c.model.dims == 3, "config.model.dims is 3")
REGRESSED = Need(lambda c: c.method == "regression", "config.method is regression")
PIXELWISE = Need(
    lambda c: REGRESSED.holds(c) and c.regression.ssim < 1,
    f"{REGRESSED.words} and config.regression.ssim is below 1",
)
RECAST = Need(lambda c: "picture" in c.model.conditions, "config.model.conditions has picture")
MOVES = ("scale", "zoom", "rotation", "shift")
MOVED = Need(lambda c: c.augment.probability > 0, "config.augment.probability is above 0")
SLOPED = Need(
    lambda c: c.diffusion.schedule != "cosine",
    "config.diffusion.schedule is linear or scaled_linear",
)
ATTENTIVE = Need(
    lambda c: bool(_attentive(c.model)), "config.model.attention or middle_attention asks for some"
)
CONTOURED, SOURCED = (
    Need(lambda c, name=name: name in c.model.conditions, f"config.model.conditions has {name}")
    for name in ("contour", "source")
)
CHAINED = Need(lambda c: c.sampler.scgd, "{}scgd is true")
SHOWN = Need(
    lambda c: c.sampler.scgd and c.sampler.anchor != 1, "{}scgd is true and {}anchor not 1"
)

NEEDS = {
    "contours.preset": Need(
        lambda c: None in c.contours.to_dict().values(), "a field of config.contours is not set"
    ),
    "augment.probability": Need(
        lambda c: any(c.augment[name] for name in (*MOVES, *["depth"] * VOLUMES.holds(c))),
        f"one of config.augment's {', '.join(MOVES)}, or of volumes depth, is above 0",
    ),
    "augment.depth": Need(
        lambda c: VOLUMES.holds(c) and MOVED.holds(c), f"{VOLUMES.words} and {MOVED.words}"
    ),
    **{f"volume.{name}": VOLUMES for name in ("depth", "side")},
    **{f"augment.{name}": MOVED for name in MOVES},
    **{
        f"disturbance.{name}": CONTOURED
        for name in ("thresholds", "contrast", "noise", "displacement", "missing")
    },
    "sampler.guidance": CONTOURED,
    "sampler.source_guidance": SOURCED,
    "sampler.prompt_guidance": Need(
        lambda c: c.model.context > 0, "config.model.context is above 0"
    ),
    "sampler.control": OF_CONTROLNET,
    **{f"recast.{name}": RECAST for name in ("evenness", "blur", "noise")},
    # A transformer block always has one.
    "model.middle_norm": Need(
        lambda c: c.model.middle_attention and not c.model.context,
        "config.model.middle_attention is true and config.model.context 0",
    ),
    "model.resample_convolution": Need(
        lambda c: len(c.model.channels) > 1, "config.model.channels has several resolutions"
    ),
    "model.downsample_padding": Need(
        lambda c: c.model.resample_convolution and len(c.model.channels) > 1,
        "config.model.resample_convolution is true and config.model.channels has several "
        "resolutions",
    ),
    "model.planar": VOLUMES,
    "model.context": ATTENTIVE,
    "model.pool": ATTENTIVE,
    "model.heads": ATTENTIVE,
    "model.head_width": Need(
        lambda c: ATTENTIVE.holds(c) and not c.model.heads,
        f"{ATTENTIVE.words} and config.model.heads is ()",
    ),
    "model.fused_attention": ATTENTIVE,
    "diffusion.beta_first": SLOPED,
    "diffusion.beta_last": SLOPED,
    "diffusion.time_exponent": Need(
        lambda c: c.sampler.steps > 1 or _learns_all(c),
        "several timesteps are learnt; let config.sampler.steps be above 1",
    ),
    "diffusion.timesteps": Need(
        lambda c: c.method != "distilled",
        "config.method is another than distilled, which learns its sampler's timesteps alone",
    ),
    "diffusion.gamma": Need(
        lambda c: c.diffusion.weighting == "min_snr", "config.diffusion.weighting is min_snr"
    ),
    "regression.ssim": REGRESSED,
    "regression.loss": PIXELWISE,
    "regression.outside": PIXELWISE,
    **{f"adversarial.{name}": WITH_CRITIC for name in ("critic_width", "critic_layers", "norm")},
    "adversarial.loss": WITH_CRITIC,
    "adversarial.width": WITH_GENERATOR,
    **{f"adversarial.{name}": OF_PIX2PIX for name in ("levels", "l1")},
    **{f"adversarial.{name}": OF_CYCLEGAN for name in ("blocks", "cycle", "pool")},
    "adversarial.dropout": Need(
        lambda c: c.method == "pix2pix" and c.adversarial.levels > 5,
        "config.method is pix2pix and config.adversarial.levels above 5",
    ),
    "adversarial.identity": Need(
        lambda c: c.method == "cyclegan" and c.adversarial.cycle > 0,
        "config.method is cyclegan and config.adversarial.cycle above 0",
    ),
    "train.condition_dropout": Need(
        lambda c: bool(c.model.conditions or c.model.context),
        "config.model.conditions or config.model.context shows something",
    ),
    "train.constant": Need(lambda c: c.train.decay == "linear", "config.train.decay is linear"),
    "train.ema_halflife": Need(
        lambda c: c.train.ema_rampup > 0, "config.train.ema_rampup is above 0"
    ),
    "train.neighbour": Need(
        lambda c: "neighbour" in c.model.conditions, "config.model.conditions has neighbour"
    ),
    "sampler.clipped_eps": Need(
        lambda c: c.sampler.name == "ddim" and c.sampler.clip, "{}name is ddim and {}clip is true"
    ),
    **{
        f"sampler.{name}": Need(lambda c: c.sampler.name == "ddim", "{}name is ddim")
        for name in ("fixed_stride", "ends_clean")
    },
    "sampler.neighbour_guidance": SHOWN,
    "sampler.candidates": CHAINED,
    "sampler.candidate": Need(
        lambda c: c.sampler.scgd and c.sampler.candidates > 1,
        "{}scgd is true and {}candidates is above 1",
    ),
    "sampler.anchor": CHAINED,
    "sampler.middle": SHOWN,
    "sampler.tiles": Need(
        lambda c: STEPPED.holds(c) or VOLUMES.holds(c), f"{STEPPED.words}, or {VOLUMES.words}"
    ),
    "sampler.keep": Need(lambda c: c.sampler.samples > 1, "{}samples is above 1"),
}


def _needs(name: str) -> Iterator[Need]:
    """All that a field needs."""
    if name.startswith(OF_STEPS) and name not in OF_ANY:
        yield STEPPED
    if name.startswith(OF_UNET) and name not in SEEN:
        yield WITH_UNET
    for section, need in (("autoencoder.", OF_AUTOENCODER), ("controlnet.", OF_CONTROLNET)):
        if name.startswith(section):
            yield need
    if name in NEEDS:
        yield NEEDS[name]


def check_idle(
    config: ConfigDict, given: Iterable[str] | None = None, prefix: str = "config.sampler."
) -> None:
    """Raise InputError for a field that was set and has no effect under the others.

    For what is about to be made: runs and models of others are taken as they are.

    Args:
      given: dotted names of the fields that were set; without it, of those not at their defaults.
      prefix: of names of the sampler's fields where they were set.
    """
    for name in sorted(changes(config) if given is None else given):
        for need in _needs(name):
            if need.holds(config):
                continue
            section, _, field = name.partition(".")
            called = _called(field, prefix) if section == "sampler" else f"config.{name}"
            words = need.words.replace("{}name", _called("name", prefix)).replace("{}", prefix)
            raise InputError(f"{called}: has no effect unless {words}")
