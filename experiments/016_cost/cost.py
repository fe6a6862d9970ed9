# SPDX-License-Identifier: Apache-2.0
"""What training and translation take on 1, 8 and 64 devices: from measured speeds, or assumed ones.

    python cost.py count
    python cost.py table [--images_per_second=X --slices_per_second=Y --devices=N] [--price=P]

`count` has JAX count the operations of the networks, into result.json beside this file. `table`
prints what docs/cost.md shows; a speed that was measured on N devices takes the place of the
assumption, and a price for an hour of one device gives costs. Speeds of accelerators follow from
their makers' peak and a share of it that is assumed: no row of theirs is measured.
"""

import argparse
import importlib.util
import json
from pathlib import Path

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent
RESULT = HERE / "result.json"

# TFLOP/s in bf16 without sparsity, and GB/s each way from a device to the others, among 8 and among
# 64. Peaks and links within a machine or a slice: NVIDIA's data sheets of A100 and H100 SXM, and
# cloud.google.com/tpu/docs/v5e and v6e. Between machines of GPUs: 200 and 400 Gbit/s for each GPU.
ACCELERATORS = {
    "A100": (312, {8: 300, 64: 25}),
    "H100": (989, {8: 450, 64: 50}),
    "TPU v5e": (197, {8: 200, 64: 200}),
    "TPU v6e": (918, {8: 400, 64: 400}),
}
UTILISATION = (0.4, 0.3)  # shares of the peak, assumed: the faster and the slower end of a range
DEVICES = (1, 8, 64)
PUBLISHED = "published, 256 px"
STEPS = 20  # of sampling
SLICES = 150  # of a volume


# --------------------------------------------------------------------------------------------------
# Operations
# --------------------------------------------------------------------------------------------------


def count() -> dict:
    """Of each network, its parameters and GFLOP an image for translation (a step) and training."""
    from contourdiff_jax import config

    found = {PUBLISHED: operations(_configuration("contourdiff_2d"), 256)}
    for size in (64, 96, 128):
        found[f"default, {size} px"] = operations(config.default(), size)
    return found


def operations(config, size: int) -> dict:
    import jax
    import jax.numpy as jnp

    from contourdiff_jax import models
    from contourdiff_jax.contracts import CONDITIONS

    model = models.build(config.model)
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    condition = {
        name: jax.ShapeDtypeStruct((1, size, size, CONDITIONS[name].channels + 1), jnp.float32)
        for name in config.model.conditions
    }
    given = params, image, jax.ShapeDtypeStruct((1,), jnp.int32), condition

    def loss(*given):
        return jnp.square(model.apply(*given)).mean()

    def gflop(function) -> float:
        # Of the program as written: what a compiler makes of it differs from device to device. On a
        # GPU convolutions are written as such, on a CPU in forms that need fewer operations.
        lowered = jax.jit(function).trace(*given).lower(lowering_platforms=("cuda",))
        return round(lowered.cost_analysis()["flops"] / 1e9, 2)

    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "forward": gflop(model.apply),
        "train": gflop(jax.value_and_grad(loss)),
    }


def _configuration(name: str):
    path = EXPERIMENTS.parent / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


# --------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------


def experiments(networks: dict) -> list[str]:
    """Speeds of experiments on two CPU cores, and the arithmetic that they amount to."""
    rows = []

    def add(experiment: str, network: str, kind: str, speed: float) -> None:
        words = {"train": "training", "forward": "translation, network calls"}[kind]
        gflop = networks[network][kind]
        folder = f"[{experiment[:3]}](../experiments/{experiment})"
        rows.append(f"| {network} | {words} | {speed:.1f} | {speed * gflop:.0f} | {folder} |")

    for entry in _read("011_input")["sizes"]:
        speed = 1000 * entry["batch"] / entry["milliseconds"]["step"]
        add("011_input", f"default, {entry['size']} px", "train", speed)
    if timed := _read("012_volumes").get("time"):
        slices = sum(timed["slices"]) / len(timed["slices"])  # a volume
        seconds = timed["seconds a volume"]["each slice for itself"]
        add("012_volumes", "default, 96 px", "forward", timed["steps"] * slices / seconds)
    return [
        "| network | what | images/s | GFLOP/s | |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]


def training(network: dict, images: int, batch: int) -> dict:
    """{accelerator: {devices: (least, most) seconds}} to train with `batch` images on each."""
    # A ring hands every gradient round twice, in float32; at worst no step computes meanwhile.
    sent = 2 * 4 * network["parameters"]
    seconds = {}
    for name, (peak, links) in ACCELERATORS.items():
        fast, slow = (batch * network["train"] / (1e3 * peak * share) for share in UTILISATION)
        waiting = {n: sent * (n - 1) / n / (1e9 * link) for n, link in links.items()}
        seconds[name] = {
            n: tuple(images / (batch * n) * step for step in (fast, slow + waiting.get(n, 0)))
            for n in DEVICES
        }
    return seconds


def translation(network: dict, volumes: int) -> dict:
    """Likewise to translate volumes, which devices share without speaking to each other."""
    gflop = volumes * SLICES * STEPS * network["forward"]
    return {
        name: {n: tuple(gflop / (1e3 * peak * share * n) for share in UTILISATION) for n in DEVICES}
        for name, (peak, _) in ACCELERATORS.items()
    }


def measured(count: int, speed: float, devices: int) -> dict:
    """Likewise for `count` images or slices at the speed that some devices had together."""
    return {"measured": {n: (count / speed * devices / n,) * 2 for n in DEVICES}}


def table(what: str, rows: dict, price: float | None, measured_on: int | None = None) -> list[str]:
    """Markdown of such times, with costs where an hour of a device has a price."""

    def cell(n: int, seconds: tuple[float, float]) -> str:
        text = _range(*seconds)
        if price is not None:
            costs = [f"{n * s / 3600 * price:,.2f}" for s in seconds]
            text += f", costs {' to '.join(dict.fromkeys(costs))}"
        return text + (" (measured)" if n == measured_on else "")

    heads = [f"{n} device{'s' * (n > 1)}" for n in DEVICES]
    lines = [f"| {what} | {' | '.join(heads)} |", "| --- " * (1 + len(DEVICES)) + "|"]
    for name, times in rows.items():
        lines.append(f"| {name} | {' | '.join(cell(n, times[n]) for n in DEVICES)} |")
    return lines


def _range(least: float, most: float) -> str:
    unit, seconds = next(
        (u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if most >= 2 * s or s == 1
    )
    ends = [f"{t / seconds:.{0 if t / seconds >= 10 else 1}f}" for t in (least, most)]
    return f"{' to '.join(dict.fromkeys(ends))} {unit}"


def _read(experiment: str) -> dict:
    path = EXPERIMENTS / experiment / "result.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("count", "table"))
    parser.add_argument("--images", type=int, default=2_000_000, help="seen in training")
    parser.add_argument("--batch", type=int, default=8, help="images on each device at once")
    parser.add_argument("--volumes", type=int, default=1000, help=f"of {SLICES} slices")
    parser.add_argument("--images_per_second", type=float, help="of training, measured")
    parser.add_argument("--slices_per_second", type=float, help="of translation, measured")
    parser.add_argument("--devices", type=int, default=1, help="that it was measured on")
    parser.add_argument("--price", type=float, help="of an hour of one device")
    given = parser.parse_args(arguments)

    if given.what == "count":
        import jax

        result = {"GFLOP an image": count(), "jax": jax.__version__}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        return
    networks = json.loads(RESULT.read_text())["GFLOP an image"]
    network = networks[PUBLISHED]
    worked_out = {
        "training": training(network, given.images, given.batch),
        "translation": translation(network, given.volumes),
    }
    counts = {"training": given.images, "translation": given.volumes * SLICES}
    speeds = {"training": given.images_per_second, "translation": given.slices_per_second}
    tables = [experiments(networks)]
    for what, speed in speeds.items():
        if speed is None:
            tables.append(table(what, worked_out[what], given.price))
        else:
            rows = measured(counts[what], speed, given.devices)
            tables.append(table(what, rows, given.price, given.devices))
    print("\n\n".join("\n".join(lines) for lines in tables))


if __name__ == "__main__":
    main()
