"""The vine worker: runs tasks and library slots on a node, keeps files, and fetches what it lacks from its peers.

Standard library only, Python 3.9 or newer (where there is no ``/proc``, psutil measures, if there is one); started with
``vine_worker HOST PORT``, ``python -m vineworker HOST PORT`` or ``python vine_worker.pyz HOST PORT``.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
