# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: every field, its default and its unit.

A file under configs/ starts from `default()` and changes what its experiment is about; on the
command line, `--config.train.batch=8` changes a field. What a run was made with is kept in its
config.json.
"""

import json

from ml_collections import ConfigDict

from contourdiff_jax.errors import InputError


def default() -> ConfigDict:
    """The defaults: a network of 2.4 million parameters that learns on a laptop.

    Locked: a misspelt field is an error, not a new field.
    """
    return ConfigDict(
        {
            "seed": 0,
            # The grid belongs to the store. Zero or empty accepts the store's; anything else must
            # agree with it.
            "grid": {"axis": "", "spacing": 0.0, "size": 0},
            # Contours of the training domain: default, united or published, or the original's of
            # a store that was prepared with them: original, original_cleaned (data/contours.py).
            # Where windows, a curve or native are given, they and what follows count instead.
            "contours": {
                "preset": "default",
                "windows": (),
                "curve": (),
                "low": 20.0,
                "high": 50.0,
                "blur": 3,
                "apart": 0,
                "thin": 0.0,
                "native": False,
                "clean": (),
            },
            "augment": {
                "flip": 0.5,  # probability of exchanging left and right
                "probability": 0.9,  # of any of the following
                "scale": 0.1,  # each axis by up to 1 + scale, or down by as much
                "zoom": 0.1,  # both axes together, likewise
                "rotation": 10.0,  # degrees, either way
                "shift": 0.05,  # fraction of the width, either way
            },
            # Of the contours alone, in training, each image by up to so much; 0: not at all. Meant
            # to let a model expect contours of another modality (data/disturbance.py).
            "disturbance": {
                "thresholds": 0.0,  # both by up to a factor of 1 + this, or down by as much
                "contrast": 0.0,  # of the greys, as share of black to white
                "noise": 0.0,  # standard deviation, as share of black to white
                "displacement": 0.0,  # standard deviation in pixels
                "doubled": 0.0,  # probability of contours in both places, displaced and not
                "missing": 0.0,  # share of the contours, in pieces
            },
            "model": {
                # What the network sees beside the noisy image: contour, or with it neighbour, the
                # slice before.
                "conditions": ("contour",),
                # A missing condition is told by a channel of its own, or is empty, as published.
                "null": "flag",
                "channels": (16, 32, 64, 128),  # features at each resolution, halving each time
                "layers": 1,  # residual blocks per resolution
                "attention": (False, False, False, True),  # self-attention at each resolution
                "decoder_attention": (),  # likewise in the decoder; where the encoder has it if ()
                "middle_attention": True,
                "middle_norm": True,  # whether that attention has a group normalisation
                "middle_divisor": 1.0,  # of what the middle's blocks give
                # A convolution with each change of resolution, as published; plain means and
                # repetition save a third of the work.
                "resample_convolution": False,
                "downsample_padding": 1,  # of that convolution on the near side; 0 in DDPM's code
                "head_width": 32,  # features per attention head; 0: all of them in one
                "groups": 8,  # of group normalisation
                "epsilon": 1e-5,  # of group normalisation
                "time_scale_shift": False,  # time scales and shifts features, or is added to them
                "time_cosine_first": True,  # order of the time's waves; sines first in DDPM's code
                "time_shift": 0,  # steps that the time's lowest frequency is lower; 1 in DDPM's
                "centre_input": False,  # x -> 2 x - 1
                "dropout": 0.0,
                "dtype": "float32",  # of computation, or bfloat16; parameters are float32
                # Compute the inside of every block again for the gradients instead of keeping it:
                # an accelerator takes more time and less memory (a CPU's compiler undoes it).
                "rematerialise": False,
                # Attention in cuDNN's fused kernel on an NVIDIA GPU, in bfloat16: scores between
                # positions are not kept. Elsewhere it makes no difference.
                "fused_attention": False,
            },
            "diffusion": {
                "steps": 1000,  # T
                "schedule": "cosine",  # or linear, as published, or scaled_linear
                "beta_first": 1e-4,  # of linear and scaled_linear
                "beta_last": 0.02,
                "zero_terminal_snr": False,  # no signal at all at the last timestep; not with eps
                "prediction": "v",  # or eps, as published, or x0
                # Weight of the squared error: none (as published), x0 or min_snr. What contours say
                # is learnt where there is much noise: x0 puts the weight there, an exponent below
                # 1 the timesteps, t = T u^exponent with u uniform. With little training nothing
                # else here is worth as much (experiments/001_heads).
                "weighting": "x0",
                "time_exponent": 0.7,
                # The timesteps that are learnt: all, or sampler, those alone that config.sampler
                # visits (diffusion/few_steps.py).
                "timesteps": "all",
                "gamma": 5.0,  # of min_snr
            },
            # With --teacher: how many steps of its DDIM one of config.sampler's learns to replace.
            # 0: learn from images alone (diffusion/few_steps.py).
            "distillation": {"substeps": 0},
            "train": {
                "images": 200_000,  # seen in all, repeats counted
                "batch": 4,  # images per optimiser step, over all devices
                "accumulate": 1,  # parts a batch is computed in, in turn, to save memory
                "learning_rate": 1e-3,  # at its peak
                "warmup": 400,  # images of linear warm-up, before the cosine to zero
                "weight_decay": 1e-4,
                "clip": 1.0,  # largest global norm of the gradient
                "ema_halflife": 1_000,  # images after which a parameter counts half in the average
                "ema_rampup": 0.05,  # the half-life is at most this share of the images seen so far
                "condition_dropout": 0.0,  # probability of training without condition, for guidance
                "neighbour": 0.2,  # probability of showing the slice beside, where one is seen
                "resident": 2.0,  # GiB of slices and masks kept on each device; more is streamed
                # How often, in images; 0: at the end only.
                "log": 400,
                "evaluate": 20_000,  # held-out loss
                "sample": 50_000,  # sample grid
                "checkpoint": 50_000,
                "keep": 2,  # checkpoints kept
            },
            "sampler": {
                "name": "ddim",  # or ddpm, as published, or dpmpp_2m
                # More were no better; after a short training 2 are best (experiments/012_volumes).
                "steps": 10,
                "spacing": "trailing",  # of the timesteps; or leading, as published, or linspace
                "offset": 0,  # of leading: added to every timestep
                "eta": 0.0,  # of ddim: 0 is deterministic, 1 as random as ddpm
                "clip": True,  # estimates of x_0 to [-1, 1]
                "clipped_eps": True,  # of ddim: eps follows from the clipped x_0; else as predicted
                "fixed_stride": False,  # of ddim: steps lead T // n down, not to the next timestep
                "guidance": 1.0,  # classifier-free; other than 1 needs train.condition_dropout
                "batch": 16,  # slices sampled at once
                # What the slices of a volume have in common (translate_volume.py).
                "coherence": 0.0,  # mm between knots of noise that they share; 0: each has its own
                "coupling": 0.0,  # share of the neighbours' mean in every estimate of x_0
                "scgd": False,  # each is shown the translation of the one before, as published
                # Of scgd: how far the slice before is followed; 1 as published, where errors are
                # handed on from slice to slice (experiments/012_volumes).
                "neighbour_guidance": 0.35,
                "candidates": 4,  # of scgd: drawn where a chain of slices begins
                "candidate": "lowest_mean",  # which of them is kept, as published; best_contours
                "anchor": 0,  # of scgd: slices after which a new chain begins; 0: never
                "middle": False,  # of scgd: chains begin in their middle and go both ways
                # Samples of each slice, and which is kept: first, the usual one; lowest_mean;
                # nearest, to the slice before; best_contours; or the mean of all.
                "samples": 1,
                "keep": "first",
                "tiles": 0.0,  # least overlap, where volumes exceed the grid; 0: they are cropped
            },
            # Devices along each axis of the mesh; -1: all that are left.
            "mesh": {"data": -1, "fsdp": 1},
        }
    ).lock()


# ml_collections loads a configuration file by this name: this file serves where none is given.
get_config = default


def from_dict(fields: dict) -> ConfigDict:
    """A configuration from plain dicts; raises InputError for fields that are not ours."""
    if not isinstance(fields, dict):
        raise InputError(f"config: {fields!r}, where a dictionary of sections belongs")
    config = default()
    for name, section in config.items():
        if isinstance(section, ConfigDict) and not isinstance(fields.get(name, {}), dict):
            raise InputError(f"config.{name}: {fields[name]!r}, where a section of fields belongs")
    try:
        config.update(ConfigDict(fields))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"config: {str(error.args[0]).splitlines()[0]}") from None
    return config


# Fields, by the beginnings of their names, that say how a run is computed and not what it learns.
COMPUTING = ("mesh.", "model.rematerialise", "model.fused_attention")


def differences(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    """Dotted names of the fields in which two runs differ; how they are computed does not count."""
    a, b = (_flat(json.loads(json.dumps(c.to_dict()))) for c in (ours, theirs))
    return sorted(
        name
        for name in a.keys() | b.keys()
        if a.get(name) != b.get(name) and not name.startswith(COMPUTING)
    )


def _flat(fields: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in fields.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat
