# SPDX-License-Identifier: Apache-2.0
"""What `contourdiff inspect` shows of runs; of scans, see tests/data/inspection."""

import jax
import pytest

from contourdiff_jax import cli, config, methods, models
from contourdiff_jax.training import run
from contourdiff_jax.training.summary import summary


def test_a_run_is_shown_with_its_network(trained, capsys):
    assert cli.main(["contourdiff", "inspect", str(trained)]) == 0
    shown = capsys.readouterr().out
    for text in (
        str(trained),
        "method    diffusion",
        "images    mr, axial, 32 px of 7.2 mm",
        "contours  low 20, high 50, windows ((0.0, 1.0),), blur 3",
        "training  checkpoints after 16 of 16 images, 3 subjects",
        "changed   model.attention = [False, True]",
        "train.condition_dropout = 0.1",
    ):
        assert text in shown
    (params,) = methods.networks(run.load(trained)).values()
    assert models.overview(params) in shown
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f"Total: {count:,}" in shown and "conv_in/kernel" in shown


def test_a_summary_has_every_change_and_only_what_there_is(trained, tmp_path):
    ours = run.load(trained)
    lines = summary(trained, ours)
    assert set(lines) == {"method", "images", "contours", "training", "changed"}
    names = {line.split(" = ")[0] for line in lines["changed"]}
    assert names == set(config.changes(ours.config))
    assert summary(tmp_path, ours)["training"][0].startswith("checkpoints after none of 16")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out=out"], "--out: is of scans"),
        (["--select=T1w"], "--select: is of scans"),
        (["scans"], "inspect it on its own"),
    ],
)
def test_what_is_of_scans_is_refused(trained, capsys, arguments, named):
    assert cli.main(["contourdiff", "inspect", str(trained), *arguments]) == 2
    assert named in capsys.readouterr().err
