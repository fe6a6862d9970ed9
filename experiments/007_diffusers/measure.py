# SPDX-License-Identifier: Apache-2.0
"""Time and memory of importing and exporting the published network, and whether it is the same.

    python measure.py OUT

diffusers writes the network of ContourDiff with random weights, once in one file and once in shards
of 100 MB, and loads what is exported. Each command runs in a process of its own.
"""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

SIZE = 64  # px of the images that both networks are shown


def make(out: Path) -> None:
    """OUT/whole and OUT/shards, with an input and what diffusers answers."""
    import diffusers
    import numpy as np
    import torch

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=256,
        in_channels=2,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=(*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
    ).eval()
    for name, shard in (("whole", "10GB"), ("shards", "100MB")):
        unet.save_pretrained(out / name / "unet", max_shard_size=shard)
        diffusers.DDPMScheduler().save_pretrained(out / name / "scheduler")
    z_t, contour = torch.randn(2, 1, SIZE, SIZE), (torch.rand(2, 1, SIZE, SIZE) < 0.1).float()
    t = torch.tensor([10, 900])
    with torch.no_grad():
        answer = unet(torch.cat([z_t, contour], 1), t).sample
    np.savez(out / "answer.npz", z_t=z_t, t=t, contour=contour, answer=answer)


def measured(*arguments) -> dict:
    """Seconds of a command, and the most memory [MiB] that its process held."""
    began = time.perf_counter()
    code = (
        "import resource, sys; from contourdiff_jax import cli; status = cli.main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "peak MiB": round(int(printed.split()[-1]) / 1024),
    }


def difference(out: Path, folder: Path) -> float:
    """Largest difference between our answer and theirs, in standard deviations of theirs."""
    import jax
    import numpy as np

    from contourdiff_jax import config, methods
    from contourdiff_jax.data import examples
    from contourdiff_jax.methods.diffusion import NETWORK
    from contourdiff_jax.runtime import mesh as meshes
    from contourdiff_jax.training import checkpoint, run

    given = np.load(out / "answer.npz")
    mesh = meshes.make(config.default().mesh)
    method = methods.build(run.load(folder), mesh=mesh)
    params = checkpoint.averages(folder, method.players, mesh)[1][NETWORK]
    z_t = np.moveaxis(given["z_t"], 1, -1)
    condition = {"contour": examples.given(given["contour"][:, 0])}
    answer = np.moveaxis(
        jax.jit(method.network.bound(()))(params, z_t, given["t"], condition), -1, 1
    )
    return float(np.abs(answer - given["answer"]).max() / given["answer"].std())


def measure(out: Path) -> dict:
    subprocess.run([sys.executable, __file__, "make", out], check=True)
    weights = out / "whole/unet/diffusion_pytorch_model.safetensors"
    result = {"weights MiB": round(weights.stat().st_size / 2**20)}
    for name in ("whole", "shards"):
        source, run = f"--checkpoint={out / name}", f"--workdir={out / name}_run"
        result[f"import, {name}"] = measured(
            "contourdiff", "import", source, run, "--preset=mr", "--spacing=1"
        )
    exported = out / "exported"
    result["export"] = measured(
        "contourdiff", "export", f"--run={out / 'whole_run'}", f"--out={exported}"
    )
    files = [weights, exported / weights.relative_to(out / "whole")]
    result["same bytes"] = len({tensors(path) for path in files}) == 1
    result["largest difference of outputs"] = difference(out, out / "whole_run")
    return result


def tensors(path: Path) -> str:
    """sha256 over names and values; the header may list them in another order."""
    from safetensors.numpy import load_file

    total = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        total.update(name.encode() + tensor.tobytes())
    return total.hexdigest()


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        result = measure(Path(sys.argv[1]))
        text = json.dumps(result, indent=1)
        Path(__file__).with_name("result.json").write_text(text + "\n")
        print(text)
