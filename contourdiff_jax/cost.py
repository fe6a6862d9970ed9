# SPDX-License-Identifier: Apache-2.0
"""Cost: what a translation takes of time and memory, as sidecars record and evaluations sum it up.

Memory is the most that the process has held so far, on the host and, where the backend counts it,
on the device that held most.
"""

import statistics
import sys
from collections.abc import Iterable

from contourdiff_jax.sidecars import Sidecar

# JAX is imported where a translation has it anyway: summaries do without.


def fields(parameters: int) -> dict:
    """What a sidecar says of a network with so many parameters and of the machine, so far."""
    import jax

    return {
        "parameters": parameters,
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "host_bytes": _host_bytes(),
        "device_bytes": _device_bytes(),
    }


def _host_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # of Unix alone
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


def _device_bytes() -> int | None:
    """None on CPUs, whose memory is the host's."""
    import jax

    counted = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]
    return max(peaks, default=None)


def summary(sidecars: Iterable[Sidecar | None]) -> dict:
    """What the sidecars of an evaluation say; empty where there is none.

    Returns:
      {"seconds a slice", "seconds a volume": {"value": median, "low": least, "high": most, "n"}},
      and where sidecars have them "parameters", "device", "devices", and the largest "host_bytes"
      and "device_bytes".
    """
    known = [sidecar for sidecar in sidecars if sidecar is not None]
    if not known:
        return {}
    found = {
        "seconds a slice": _spread([sidecar.seconds for sidecar in known]),
        "seconds a volume": _spread([sidecar.seconds * sidecar.slices for sidecar in known]),
    }
    recorded = [sidecar.cost for sidecar in known if sidecar.cost]
    for name in ("parameters", "device", "devices"):
        values = {cost.get(name) for cost in recorded}
        if len(values) == 1 and None not in values:
            found[name] = values.pop()
    for name in ("host_bytes", "device_bytes"):
        peaks = [cost[name] for cost in recorded if cost.get(name) is not None]
        if peaks:
            found[name] = max(peaks)
    return found


def _spread(values: list[float]) -> dict:
    middle, least, most = statistics.median(values), min(values), max(values)
    return {"value": middle, "low": least, "high": most, "n": len(values)}
