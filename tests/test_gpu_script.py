# SPDX-License-Identifier: Apache-2.0
"""The script that measures a GPU in minutes (experiments/019_gpu): all of it, and when parts fail.

Fast tests have a shell script in Python's place, which does what each step's script is to do.
"""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "experiments/019_gpu"
STEPS = {"1": ["machine", "published", "volume", "suite"], "2": ["heads", "methods"]}
ALL = [step for part in STEPS.values() for step in part]
# The last two arguments are the result file and a folder.
PLAYED = """#!/usr/bin/env bash
result=${*: -2:1} step=$(basename "${*: -2:1}" .json)
echo "$step" >>"$CALLS"
"""

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("timeout") is None, reason="a script for Linux"
)


def script(name: str):
    """A script of the experiment as a module."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(out: Path, *flags: str, python: str, patience: float | None = 60, **variables: str):
    """run.sh with that Python."""
    environment = os.environ | {"PYTHON": python, "CALLS": str(out.parent / "calls")} | variables
    command = [str(FOLDER / "run.sh"), *flags, str(out)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=patience
    )


@pytest.fixture
def played(tmp_path):
    """What to do -> a Python that does it."""

    def made(does: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"{PLAYED}{does}\n")
        path.chmod(0o755)
        return str(path)

    return made


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


WHOLE = "echo '{\"done\": true}' >$result"


@pytest.mark.parametrize("part", STEPS)
def test_the_steps_of_a_part_are_done_in_order(played, tmp_path, part):
    out = tmp_path / "out"
    done = run(out, f"--part={part}", "--small", python=played(WHOLE))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().split() == STEPS[part]
    assert [(line["step"], line["status"]) for line in lines(out)] == [(s, 0) for s in STEPS[part]]
    for step in STEPS[part]:
        assert json.loads((out / f"{step}.json").read_text()) == {"done": True}


def test_a_step_that_fails_is_named_and_the_others_go_on(played, tmp_path):
    """What it knew by then is kept, and what knew nothing has a file that says so."""
    out = tmp_path / "out"
    does = """case $step in
        volume) echo '{"half": 1}' >$result; echo broken >&2; exit 3 ;;
        heads) exit 4 ;;
        *) echo '{"done": true}' >$result ;;
    esac"""
    done = run(out, python=played(does))
    assert done.returncode == 1
    assert "not done: volume heads" in done.stderr
    assert {line["step"]: line["status"] for line in lines(out)} == dict.fromkeys(ALL, 0) | {
        "volume": 3,
        "heads": 4,
    }
    assert json.loads((out / "volume.json").read_text()) == {"half": 1}
    assert "broken" in (out / "volume.log").read_text()
    assert json.loads((out / "heads.json").read_text()) == {"failed": 4}
    page = script("collect").page
    (out / "volume.json").unlink()
    with pytest.raises(KeyError):  # of results that are none, nothing is shown
        page(out)


def test_a_step_has_its_time(played, tmp_path):
    """Those that the part has no time left for are recorded too."""
    out = tmp_path / "out"
    done = run(out, "--part=2", "--seconds=5", python=played("exec sleep 60"), patience=50)
    assert done.returncode == 1
    assert [line["status"] for line in lines(out)] == [124, 124]
    assert lines(out)[0]["limit"] == 3 and lines(out)[1]["seconds"] <= 2
    assert json.loads((out / "methods.json").read_text()) == {"failed": 124}


@pytest.mark.parametrize("flags", [["--part=3"], ["--big"]])
def test_flags_that_there_are_not_are_refused(tmp_path, flags):
    done = run(tmp_path / "out", *flags, python="false")
    assert done.returncode == 2 and "usage" in done.stderr
    assert not (tmp_path / "out").exists()


def test_wheels_that_are_none_are_said_before_anything_is_run(played, tmp_path):
    python = played("[ $1 != -m ]")
    done = run(tmp_path / "out", f"--wheels={tmp_path / 'none'}", python=python)
    assert done.returncode == 2 and "fill it with wheels.sh" in done.stderr
    assert not (tmp_path / "out/steps.jsonl").exists()


def test_targets_are_met_or_not_or_not_measured():
    collect = script("collect")
    results = {
        "published": {
            "batches": {
                "16": {
                    "ours": {"train_utilisation": 0.41},
                    "torch, compiled": {"train_ours_is_faster_by": 1.2},
                },
                "64": {"ours": {"failed": "memory"}},
            }
        },
        "volume": {"slices": 150, "pixels": 256, "steps": {"20": {"seconds": 5.0}}},
    }
    found = [line.split("|")[-2].strip() for line in collect.targets(results).splitlines()[2:]]
    assert found == ["**not met**", "met", "met", "not measured"]
    few = {"slices": 6, "pixels": 256, "steps": {"20": {"seconds": 0.1}}}
    for results in ({}, {"volume": few}):
        none = [line.split("|")[-2].strip() for line in collect.targets(results).splitlines()[2:]]
        assert none == ["not measured"] * 4


def test_a_profile_is_what_the_device_spent(tmp_path):
    """Kernels of its streams alone; numbers of kernels do not set them apart."""
    import gzip

    sys.path.append(str(FOLDER))
    costs = script("published").costs
    name = {"ph": "M", "name": "process_name"}
    events = [
        name | {"pid": 1, "args": {"name": "/device:GPU:0"}},
        name | {"pid": 2, "args": {"name": "/host:CPU"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "Stream #1"}},
        *(
            {"ph": "X", "pid": pid, "tid": 1, "name": kernel, "dur": dur}
            for pid, kernel, dur in [
                *[(1, "fusion_1", 1000), (1, "fusion_23", 2000), (1, "conv", 6000)],
                (2, "host", 9000),
            ]
        ),
    ]
    path = tmp_path / "plugins/a.trace.json.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert costs(str(tmp_path)) == [
        {"kernel": "conv", "milliseconds": 6.0, "share": 0.667, "times": 1},
        {"kernel": "fusion", "milliseconds": 3.0, "share": 0.333, "times": 2},
    ]


@pytest.mark.slow
def test_all_of_it_small(tmp_path):
    """On a CPU, with PyTorch where it is; half an hour is for machines that do other things too."""
    out = tmp_path / "out"
    done = run(out, "--small", "--seconds=1800", python=sys.executable, patience=None)
    assert done.returncode == 0, done.stderr
    results = {step: json.loads((out / f"{step}.json").read_text()) for step in ALL}
    assert results["machine"]["platform"] == "cpu"
    assert results["machine"]["peak_tflops"] == "unknown"
    (entry,) = results["published"]["batches"].values()
    assert entry["ours"]["train_images_per_second"] > 0 < entry["ours"]["draw_slices_per_second"]
    assert entry["ours"]["train_utilisation"] == "unknown"
    torch = entry["torch, compiled"]
    assert torch.get("absent") or torch["train_ours_is_faster_by"] > 0
    assert sum(row["share"] for row in entry["profile"]) == pytest.approx(1, abs=0.1)
    for found in results["volume"]["steps"].values():
        assert 0 < found["drawing_seconds"] < found["seconds"]
    assert results["suite"]["passed"] > 5 and not results["suite"]["failed"]
    scores = results["heads"]["scores"]
    for method in ("translation", "mean"):
        assert math.isfinite(scores[method]["psnr_mask"]["value"])
    assert (out / "heads.png").stat().st_size > 1000
    measured = [m for m in results["methods"]["methods"].values() if isinstance(m, dict)]
    assert len(measured) == 3 and all(m["step_seconds"] > 0 < m["draw_seconds"] for m in measured)
    page = script("collect").page(out)
    assert page.count("not measured") == 8  # the targets, which are of a GPU
