# SPDX-License-Identifier: Apache-2.0
"""Cost: what is recorded is what was held, and summaries are those of the volumes."""

import jax
import numpy as np
import pytest

from contourdiff_jax.reports import sections
from contourdiff_jax.reports.sections import Evaluation
from contourdiff_jax.translation import sidecars
from contourdiff_jax.translation.sidecars import Sidecar


def sidecar(seconds, slices, **fields):
    return Sidecar(None, None, seconds, slices, fields, frozenset())


def shown_of(cost):
    """The section of a report."""
    return sections.cost(Evaluation({"methods": {}, "cost": cost}))


def test_the_host_s_peak_grows_with_what_is_held():
    before = sidecars.cost(10)
    held = np.ones(1 << 25)  # 256 MiB
    after = sidecars.cost(10)
    assert after["host_bytes"] >= held.nbytes
    assert after["host_bytes"] >= before["host_bytes"]
    assert after["parameters"] == 10 and after["devices"] == jax.local_device_count()


def test_a_device_that_counts_its_memory_is_asked(monkeypatch):
    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak}

    assert sidecars.cost(1)["device_bytes"] is None  # a CPU does not count
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(5), Device(7)])
    assert sidecars.cost(1)["device_bytes"] == 7


def test_the_summary_is_of_the_volumes():
    recorded = {"parameters": 1234567, "device": "cpu", "devices": 2, "device_bytes": None}
    known = [
        sidecar(0.5, 40, **recorded, host_bytes=2**30),
        sidecar(0.1, 50, **recorded, host_bytes=3 * 2**30),
        sidecar(0.2, 45, **recorded, host_bytes=2 * 2**30),
    ]
    found = sidecars.cost_summary([*known, None])
    assert found["seconds a slice"] == {"value": 0.2, "low": 0.1, "high": 0.5, "n": 3}
    assert found["seconds a volume"]["value"] == pytest.approx(9)
    assert found["host_bytes"] == 3 * 2**30 and "device_bytes" not in found
    shown = shown_of(found)
    assert "1,234,567" in shown and "3.00 GiB" in shown and "2 x cpu" in shown


def test_what_differs_or_was_not_recorded_is_left_out():
    old = sidecar(0.5, 40)
    found = sidecars.cost_summary(
        [old, sidecar(0.5, 40, parameters=3), sidecar(0.5, 40, parameters=4)]
    )
    assert found.keys() == {"seconds a slice", "seconds a volume"}
    assert "device not recorded" in shown_of(found)
    assert sidecars.cost_summary([None, None]) == {} and shown_of({}) == ""
