# SPDX-License-Identifier: Apache-2.0
"""Our schedules and samplers in diffusers' words: names and numbers only, no files.

The reference is diffusers 0.42 (schedulers/scheduling_ddpm.py, scheduling_ddim.py,
scheduling_pndm.py and scheduling_dpmsolver_multistep.py). `ours` and `theirs` are inverses of each
other, except for what diffusers leaves to the caller (the number of steps, eta, and whether eps is
clipped), for the stride of its DDIM, which is fixed, and for schedulers in whose place DDIM stands.
"""

import math
from collections.abc import Mapping

from contourdiff_jax import config as configuration
from contourdiff_jax.errors import InputError

SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
# Those that Stable Diffusion and InstructPix2Pix were published with have no equivalent here. DDIM
# draws of the same schedule: it solves the equation that PNDM solves to a higher order (Liu et al.
# 2022, arXiv 2202.09778), and Euler's ancestral steps without their fresh noise.
STAND_INS = {"pndm": "ddim", "euler_ancestral": "ddim"}
READ = SCHEDULERS | {
    "pndm": "PNDMScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}

# Fields of a scheduler_config.json that have an equivalent here, with diffusers' defaults.
COMMON = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "thresholding": False,
    "sample_max_value": 1.0,
}
CLIPPED = COMMON | {"clip_sample": True, "clip_sample_range": 1.0}
# With the fields that have none: only diffusers' default is supported, which ours do.
FIELDS = {
    "ddpm": CLIPPED | {"trained_betas": None, "variance_type": "fixed_small"},
    "ddim": CLIPPED | {"trained_betas": None, "set_alpha_to_one": True},
    "pndm": {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "set_alpha_to_one": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "skip_prk_steps": False,
    },
    "euler_ancestral": {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    },
    "dpmpp_2m": {
        **(COMMON | {"timestep_spacing": "linspace"}),
        "trained_betas": None,
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    },
}
# Of these any value is supported; how PNDM begins is no matter of what stands in for it.
FREE = {*CLIPPED, "set_alpha_to_one", "skip_prk_steps"}
# Without effect here: thresholding at 1 is clipping, whatever share of pixels lies beyond.
IDLE = {"dynamic_thresholding_ratio"}
# What clips x_0, and the field with the limit.
CLIPPING = {"thresholding": "sample_max_value", "clip_sample": "clip_sample_range"}


def ours(fields: Mapping) -> dict[str, dict]:
    """A scheduler_config.json -> fields of the `diffusion` and `sampler` sections (see config.py).

    Raises:
      InputError: a scheduler, or a field of it, without an equivalent here; it is named.
    """
    scheduler = fields.get("_class_name", SCHEDULERS["ddpm"])
    kind = _ours("_class_name", scheduler, READ)
    name = STAND_INS.get(kind, kind)
    fields = {n: v for n, v in fields.items() if not n.startswith("_") and n not in IDLE}
    for field, value in fields.items():
        if not any(field in known for known in FIELDS.values()):
            raise InputError(f"{field}: not a field of a {scheduler} that is known here")
        # Fields of another scheduler, which `from_config` leaves there, have no effect.
        usual = FIELDS[kind].get(field, value)
        if (field not in FREE and value != usual) or (value is None and usual is not None):
            raise InputError(f"{field}: {value!r} is not supported, only {usual!r}")
    fields = FIELDS[kind] | {n: v for n, v in fields.items() if n in FIELDS[kind]}
    leading = fields["timestep_spacing"] == "leading"
    sections = {
        "diffusion": {
            "steps": fields["num_train_timesteps"],
            "schedule": _ours("beta_schedule", fields["beta_schedule"], BETAS),
            "beta_first": fields["beta_start"],
            "beta_last": fields["beta_end"],
            "zero_terminal_snr": fields.get("rescale_betas_zero_snr", False),
            "prediction": _ours("prediction_type", fields["prediction_type"], PREDICTIONS),
        },
        "sampler": {
            "name": name,
            "clip": _clips(fields),
            "spacing": fields["timestep_spacing"],
            "offset": fields["steps_offset"] if leading else 0,
            # What DDIMScheduler does unless the caller says otherwise.
            "clipped_eps": name != "ddim",
            "fixed_stride": name == "ddim",
            "ends_clean": fields.get("set_alpha_to_one", True),
        },
    }
    configuration.from_dict(sections)  # refuses values of the wrong type
    return sections


def note(fields: Mapping) -> str:
    """What is to be said of a scheduler that another stands in for; "" of any other."""
    for kind, name in STAND_INS.items():
        if fields.get("_class_name") == READ[kind]:
            return f"{READ[kind]} has no equivalent here; {name} draws, of the same schedule"
    return ""


def theirs(config) -> dict:
    """A configuration -> the scheduler_config.json of its schedule and sampler.

    Raises:
      InputError: a setting that the scheduler has no equivalent of; it is named.
    """
    diffusion, sampler = config.diffusion, config.sampler
    configuration.check_diffusion(config)  # refuses what there is not here either
    configuration.check_sampler(config)
    if (sampler.name, sampler.spacing, sampler.fixed_stride) == ("ddim", "linspace", False):
        raise InputError(
            f"config.sampler.fixed_stride: False has no equivalent in {SCHEDULERS['ddim']} with "
            f"spacing=linspace"
        )
    clipping = "thresholding" if sampler.name == "dpmpp_2m" else "clip_sample"
    ending = {"set_alpha_to_one": sampler.ends_clean} if sampler.name == "ddim" else {}
    return {
        "_class_name": SCHEDULERS[sampler.name],
        "num_train_timesteps": diffusion.steps,
        "beta_start": diffusion.beta_first,
        "beta_end": diffusion.beta_last,
        "beta_schedule": BETAS[diffusion.schedule],
        "prediction_type": PREDICTIONS[diffusion.prediction],
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr,
        "timestep_spacing": sampler.spacing,
        "steps_offset": sampler.offset,
        clipping: sampler.clip,
        CLIPPING[clipping]: 1.0,
        **ending,
    }


def _clips(fields: Mapping) -> bool:
    """Whether x_0 is clipped to [-1, 1]; raises InputError for other ranges."""
    for clipping, limit in CLIPPING.items():
        if fields.get(clipping):
            if fields[limit] != 1:
                raise InputError(f"{limit}: {fields[limit]!r} is not supported, only 1.0")
            return fields[clipping]
    return False


def _ours(field: str, value, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if value == theirs:
            return ours
    raise InputError(f"{field}: {value!r} is not supported, only {', '.join(names.values())}")
