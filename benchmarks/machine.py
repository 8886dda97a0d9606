"""Where the numbers come from."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("daskvine", "dask", "distributed", "coffea", "awkward", "uproot")


def describe() -> dict[str, Any]:
    """Describe this machine and this Python."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": _versions(),
        "load_average": os.getloadavg()[0],
    }


def line(machine: dict[str, Any]) -> str:
    """Format the description of the machine as one line."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    python, load = machine["python"], machine["load_average"]
    return (
        f"{machine['cores']} cores ({machine['processor']}), {machine['system']}, Python {python}, "
        f"{packages}; load average {load:.2f} before, {os.getloadavg()[0]:.2f} after"
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
