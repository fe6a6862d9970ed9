# SPDX-License-Identifier: Apache-2.0
"""The tutorial notebook: it runs as it stands, and keeps what it showed."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs/tutorial.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_was_executed_without_an_error():
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


@pytest.mark.slow
def test_it_runs_from_heads_to_scores(tmp_path, monkeypatch, capsys):
    """With a short training; the shape of what it says is that of the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    space = {}
    for cell in CELLS:
        source = "".join(cell["source"])
        shorter = source.replace("MINUTES = 5", "MINUTES = 0.2")
        exec(compile(shorter, str(NOTEBOOK), "exec"), space)
    said = capsys.readouterr().out
    for method in ("translation", "curve", "mean"):
        assert f"{method:12} SSIM 0." in said
    of = space["scores"].metrics["methods"]
    assert of["translation"]["contour_f1"]["value"] > of["mean"]["contour_f1"]["value"]
