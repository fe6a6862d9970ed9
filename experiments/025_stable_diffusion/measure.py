# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion 1.5 with a ControlNet at its full size: in, once through every part, and out.

    python measure.py OUT

diffusers and transformers write a pipeline with random weights, 1.43 thousand million of them, and
answer once with each part, on 64 x 64 latents. It is imported, each part answers here in a process
of its own, and it is exported. The words of its tokenizer are made up, its ids are CLIP's.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
LATENTS, SIZE, WORDS = 64, 512, 49_408
PROMPT = "an mr image"
PARTS = ("text_encoder", "vae", "controlnet")  # the last with its U-Net: a whole denoising step


def make(out: Path) -> None:
    """OUT/pipeline, and OUT/answers.npz: inputs of its parts, and what diffusers answers."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    channels = (320, 640, 1280, 1280)
    unet = diffusers.UNet2DConditionModel(
        sample_size=LATENTS, cross_attention_dim=768, attention_head_dim=8
    ).eval()
    assert unet.config.block_out_channels == channels
    branch = diffusers.ControlNetModel.from_unet(unet).eval()
    with torch.no_grad():
        for parameter in branch.parameters():
            if not parameter.any():  # what is zero at first
                parameter.normal_(std=0.02)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=SIZE,
    ).eval()
    words = tokenizer(out / "words")
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_attention_heads=12, vocab_size=WORDS
        )
    ).eval()
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=unet,
        controlnet=branch,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out / "pipeline")
    z_t, hint = torch.randn(1, 4, LATENTS, LATENTS), (torch.rand(1, 1, SIZE, SIZE) < 0.1).float()
    image, t = torch.rand(1, 3, SIZE, SIZE) * 2 - 1, torch.tensor([421])
    ids = torch.tensor(words(PROMPT, padding="max_length", max_length=77).input_ids)[None]
    with torch.no_grad():
        context = text(ids).last_hidden_state
        down, middle = branch(z_t, t, context, hint.expand(1, 3, -1, -1), return_dict=False)
        answer = unet(
            *(z_t, t, context),
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        posterior, drawn = vae.encode(image).latent_dist, vae.decode(z_t).sample
    arrays = {"z_t": z_t, "hint": hint, "t": t, "image": image, "ids": ids}
    arrays |= {
        "text_encoder": context,
        "controlnet": answer,
        "vae": posterior.mean,
        "image_of": drawn,
    }
    np.savez(out / "answers.npz", **{name: array.numpy() for name, array in arrays.items()})


def tokenizer(folder: Path):
    """A tokenizer with CLIP's ids of bytes and of beginning and end; other words are none."""
    import tokenizers
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    signs = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = [*signs, *(f"{sign}</w>" for sign in signs)]
    names += [f"word{number}" for number in range(WORDS - 2 - len(names))]
    names += ["<|startoftext|>", "<|endoftext|>"]
    ids = {name: number for number, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(folder)


def part(out: Path, name: str) -> None:
    """Answers as diffusers did, with a part of the run, and prints what that took."""
    import jax

    from contourdiff_jax import methods
    from contourdiff_jax.interop import pipelines
    from contourdiff_jax.methods import codecs, prompts
    from contourdiff_jax.methods.diffusion import NETWORK
    from contourdiff_jax.models import autoencoder, patches
    from contourdiff_jax.runtime import mesh as meshes
    from contourdiff_jax.training import checkpoint, run

    given = np.load(out / "answers.npz")
    last = {k: np.moveaxis(given[k], 1, -1) for k in given.files if given[k].ndim == 4}
    ours, mesh = run.load(out / "run"), meshes.local()
    if name == "text_encoder":
        read = pipelines.read_part(out / "pipeline/text_encoder", "text_encoder")
        arguments, answer = (read.params(), given["ids"]), read.network.encode
        wanted = [given["text_encoder"]]
    elif name == "vae":
        network = autoencoder.build(ours.codec.section)
        params = codecs.weights(out / "run" / run.CODEC, ours.codec.section, mesh)
        arguments, wanted = (params, last["image"], last["z_t"]), [last["vae"], last["image_of"]]

        def answer(params, image, z_t):
            return network.encode(params, image)[0], network.decode(params, z_t)
    else:
        method = methods.build(ours, mesh=mesh)
        params = checkpoint.averages(out / "run", method.players, mesh)[1][NETWORK]
        contour = np.asarray(patches.fold(last["hint"], 8))
        contour = np.concatenate([contour, np.ones_like(contour[..., :1])], -1)
        seen = {"contour": contour, **prompts.shown(method.fixed, last["z_t"].shape)}
        arguments, wanted = (
            (method.fixed, params, last["z_t"], given["t"], seen),
            [last["controlnet"]],
        )

        def answer(fixed, *arguments):
            return method.network.bound(fixed)(*arguments)

    seconds, compiled = [], jax.jit(answer)
    for _ in range(2):
        began = time.perf_counter()
        found = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - began)
    found = found if isinstance(found, tuple) else (found,)
    differences = [float(np.abs(a - b).max() / b.std()) for a, b in zip(found, wanted, strict=True)]
    leaves = jax.tree.leaves(arguments[:2] if name == "controlnet" else arguments[0])
    numbers = sum(leaf.size for leaf in leaves)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "numbers held": numbers,
                "seconds, compiled": round(seconds[0], 1),
                "seconds": round(seconds[1], 1),
                "peak GiB": round(peak / 2**30, 2),
                "largest difference in deviations": max(differences),
            }
        )
    )


def command(*arguments) -> dict:
    """Seconds of a command of contourdiff, and the most memory [GiB] that its process held."""
    began = time.perf_counter()
    code = (
        "import resource, sys; from contourdiff_jax import cli; status = cli.main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    argv = [sys.executable, "-c", code, "contourdiff", *map(str, arguments)]
    printed = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
    peak = int(printed.split()[-1]) / 2**20
    return {"seconds": round(time.perf_counter() - began, 1), "peak GiB": round(peak, 2)}


def same(one: Path, other: Path) -> bool:
    """Whether two files of tensors hold the same names and values."""
    from safetensors import safe_open

    with safe_open(one, "np") as a, safe_open(other, "np") as b:
        names = set(a.keys())
        if names != set(b.keys()):
            return False
        return all(np.array_equal(a.get_tensor(name), b.get_tensor(name)) for name in names)


def main(out: Path) -> None:
    argv = [sys.executable, __file__]
    if not (out / "answers.npz").exists():
        subprocess.run([*argv, "make", out], check=True)
    source, files = out / "pipeline", {}
    for folder in ("unet", "vae", "controlnet"):
        (files[folder],) = (source / folder).glob("*.safetensors")
    weights = sum(path.stat().st_size for path in files.values()) / 2**30
    result = {"GiB of U-Net, autoencoder and ControlNet": round(weights, 2)}
    result["import"] = command(
        *("import", f"--checkpoint={source}", f"--workdir={out / 'run'}", "--preset=mr"),
        *("--spacing=0.5", f"--prompt={PROMPT}"),
    )
    for name in PARTS:
        run = subprocess.run([*argv, name, out], check=True, stdout=subprocess.PIPE, text=True)
        result[name] = json.loads(run.stdout.splitlines()[-1])
    exported = out / "exported"
    result["export"] = command(
        "export", f"--run={out / 'run'}", f"--out={exported}", f"--like={source}"
    )
    result["the same tensors again"] = all(
        same(path, exported / path.relative_to(source)) for path in files.values()
    )
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    elif sys.argv[1] in PARTS:
        part(Path(sys.argv[2]), sys.argv[1])
    else:
        main(Path(sys.argv[1]))
