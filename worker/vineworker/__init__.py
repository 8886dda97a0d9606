"""The vine worker: run tasks and library slots on a node, store files, and fetch them from peers.

It needs only the standard library of Python 3.9 or newer. Without ``/proc``, it measures processes
with psutil, if that is installed. It starts with ``vine_worker HOST PORT``, ``python -m vineworker
HOST PORT`` or ``python vine_worker.pyz HOST PORT``.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
