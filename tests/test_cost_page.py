# SPDX-License-Identifier: Apache-2.0
"""The cost page says what its script says, and the script what networks and speeds imply."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cost():
    path = ROOT / "experiments/016_cost/cost.py"
    spec = importlib.util.spec_from_file_location("cost", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def network(cost):
    return json.loads(cost.RESULT.read_text())["GFLOP an image"][cost.PUBLISHED]


def test_the_page_shows_the_tables_of_the_script(cost, capsys):
    cost.main(["table"])
    page = (ROOT / "docs/cost.md").read_text()
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in page


def test_the_page_names_the_operations_that_were_counted(network):
    page = (ROOT / "docs/cost.md").read_text()
    assert f"{network['forward']:.0f} GFLOP" in page and f"{network['train']:,.0f} to train" in page


def test_a_measured_speed_takes_the_place_of_the_assumption(cost, capsys):
    flags = "--images=72000 --images_per_second=5 --volumes=96 --slices_per_second=16 --devices=8"
    cost.main(["table", "--price=3", *flags.split()])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| measured")]
    assert rows == [
        "| measured | 32 h, costs 96.00 | 4.0 h, costs 96.00 (measured) | 30 min, costs 96.00 |",
        "| measured | 2.0 h, costs 6.00 | 15 min, costs 6.00 (measured) | 112 s, costs 6.00 |",
    ]


def test_gradients_that_wait_for_links_cost_most_where_there_is_little_to_compute(cost, network):
    def slower(batch):
        """Longest time on 64 devices over a 64th of that on one."""
        times = cost.training(network, 1_000, batch)["H100"]
        return 64 * times[64][1] / times[1][1]

    assert 1 < slower(32) < slower(8) < slower(1)


def test_gradients_that_travel_while_a_step_computes_cost_nothing(cost, network):
    for times in cost.training(network, 1_000, 8).values():
        assert 64 * times[64][0] == pytest.approx(8 * times[8][0]) == pytest.approx(times[1][0])


@pytest.mark.slow
def test_operations_are_those_of_the_networks(cost):
    stored = json.loads(cost.RESULT.read_text())["GFLOP an image"]
    for name, found in cost.count().items():
        assert found == pytest.approx(stored[name], rel=0.01)
