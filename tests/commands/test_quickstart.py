# SPDX-License-Identifier: Apache-2.0
"""The whole line, from nothing to a report, as a user meets it first."""

import json

import pytest

from contourdiff_jax.cli import main


@pytest.mark.slow
def test_quickstart_makes_a_report_and_picks_up_where_it_stopped(tmp_path, capsys):
    """Half a minute of training shows that the line holds; what five reach is an experiment."""
    out = tmp_path / "quickstart"
    arguments = ["contourdiff", "quickstart", f"--workdir={out}", "--minutes=0.5"]
    assert main(arguments) == 0
    methods = json.loads((out / "scores" / "metrics.json").read_text())["methods"]
    assert {"translation", "source", "histogram", "mean"} <= methods.keys()
    assert methods["translation"]["ssim_mask"]["n"] == 6
    assert "data:image/png;base64" in (out / "report.html").read_text()
    assert len(list((out / "translated").glob("*.nii.gz"))) == 6

    config = (out / "run" / "config.json").read_text()
    assert main(arguments) == 0
    assert (out / "run" / "config.json").read_text() == config
    assert "6 kept from before" in capsys.readouterr().out
