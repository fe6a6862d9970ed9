# SPDX-License-Identifier: Apache-2.0
"""What the version before wrote can be gone on with: its stores, its runs and its translations.

tests/fixtures/before/README.md says which version that was, and what it was asked for.
"""

import json
import shutil
import sys
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from contourdiff_jax import cli
from contourdiff_jax.volumes import grid

FIXTURE = Path(__file__).parent / "fixtures" / "before"
HOW = {"run": (), "neighbour": ("--scgd",), "distilled": ()}  # runs, and how they translate
VOLUME = "phantom004_ct.nii.gz"
CLOSE = 1e-3  # of the range: what other processors may make of the same arithmetic


@pytest.fixture(autouse=True)
def before(tmp_path, monkeypatch):
    """A copy of what there was, to work in."""
    for name in ("store", "source", "stopped", "ended"):
        shutil.copytree(FIXTURE / name, tmp_path / name)
    with tarfile.open(FIXTURE / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    # That version put slices back by linear weights alone.
    monkeypatch.setattr(grid, "_consistent", lambda backward, forward: backward)
    # A command sets sys.argv, where ml_collections looks for overrides.
    monkeypatch.setattr(sys, "argv", ["contourdiff"])
    return tmp_path


def contourdiff(*arguments):
    assert cli.main(["contourdiff", *arguments]) == 0


def translate(name, out):
    given = ("--source=source", "--preset=ct", f"--run=runs/{name}", f"--out={out}")
    contourdiff("translate", *given, *HOW[name])


def assert_alike(ours: Path, theirs: Path):
    """Volumes of one place, and of one content up to rounding."""
    ours, before = nib.load(ours / VOLUME), nib.load(theirs / VOLUME)
    np.testing.assert_array_equal(ours.affine, before.affine)
    assert ours.get_data_dtype() == before.get_data_dtype()
    low, high = json.loads(Path("stopped/run/phantom004_ct.json").read_text())["window"]
    ours, before = (np.asarray(image.dataobj) for image in (ours, before))
    assert np.ptp(before) > 0.5 * (high - low)
    np.testing.assert_allclose(ours, before, rtol=0, atol=CLOSE * (high - low))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "distilled")) for n in HOW]
)
def test_a_run_translates_as_before(before, name):
    translate(name, "out")
    assert_alike(before / "out", before / "stopped" / name)


@pytest.mark.parametrize(
    "name", ["run", *(pytest.param(n, marks=pytest.mark.slow) for n in HOW if n != "run")]
)
def test_a_run_is_resumed_and_ends_as_before(before, name, capfd):
    """With the same command, on the store as it is."""
    run = before / "runs" / name
    config = (run / "config.json").read_bytes()
    contourdiff("train", *(FIXTURE / f"{name}.txt").read_text().splitlines())
    assert "resuming after 24" in capfd.readouterr().out
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"6", "12"}
    assert (run / "config.json").read_bytes() == config
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    translate(name, "out")
    assert_alike(before / "out", before / "ended" / name)


def test_translations_are_scored_and_runs_described(before):
    contourdiff("evaluate", "--translated=stopped/run", "--source=source", "--out=scores")
    data = json.loads((before / "scores" / "metrics.json").read_text())["data"]
    assert data["subjects"] == ["phantom004"] and data["target preset"] == "mr"
    contourdiff("card", "--run=runs/run", "--store=store", "--out=card.md", "scores")
    contourdiff("report", "--out=report.html", "scores", "runs/run", "runs/distilled")
    for name in ("card.md", "report.html"):
        assert (before / name).stat().st_size > 1000
